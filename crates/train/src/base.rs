//! The model, which is frozen where an adapter is trained for it.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor, Var};
use engine::PromptFormat;
use model::{Architecture, DRAFT_VOCABULARY, ModelSummary, NativeSat, RopeLayout, Tokenizer, sha256_of_file};

use crate::TrainError;
use crate::device::TrainDevice;
use crate::frozen::frozen_product;

/// Divisors of frequencies, by what a file calls them: constants of the architecture.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// `y = x Wᵀ + b`.
pub(crate) struct Linear {
    /// `[n_in, n_out]`, a view of the file's `[n_out, n_in]`.
    pub(crate) weight: Tensor,
    /// `[n_out]`
    pub(crate) bias: Option<Tensor>,
}

/// In the order of an adapter's deltas: q, k, v, o, gate, up, down.
pub(crate) struct Layer {
    pub(crate) attention_norm: Tensor,
    pub(crate) feed_forward_norm: Tensor,
    pub(crate) linears: [Linear; 7],
    /// Of queries and keys.
    pub(crate) head_norms: Option<[Tensor; 2]>,
}

/// What of a model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learns {
    /// Nothing: it is what an adapter is for.
    Nothing,
    /// All its weights.
    Everything,
}

/// A model, in f32: exactly the weights of the file, until they learn.
pub struct Base {
    pub(crate) architecture: Architecture,
    pub(crate) device: Device,
    /// `[vocabulary, hidden]`
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Tensor,
    /// Of the tokens that drafts are looked for among: `[hidden, n_outputs]`.
    pub(crate) head: Tensor,
    /// Angles per position: `[n_positions, rope_dim / 2]`.
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    tokenizer: Tokenizer,
    format: PromptFormat,
    sha256: String,
    path: PathBuf,
    pub(crate) learns: Learns,
    /// The semantic adaptive token that the file has.
    pub(crate) native_sat: Option<NativeSat>,
    /// What learns, by its name in the file.
    pub(crate) variables: Vec<(String, Var)>,
}

impl Base {
    /// Reads the weight file at `path` for texts of up to `max_positions` tokens, to be trained on `device`.
    ///
    /// # Errors
    /// What is wrong with the file or the device, and [`TrainError::NoMemory`].
    pub fn load(path: &Path, max_positions: usize, device: TrainDevice) -> Result<Self, TrainError> {
        Self::load_as(path, max_positions, device, Learns::Nothing)
    }

    /// The same for a model that learns.
    pub(crate) fn load_as(
        path: &Path,
        max_positions: usize,
        device: TrainDevice,
        learns: Learns,
    ) -> Result<Self, TrainError> {
        let device = device.open()?;
        let (summary, tokenizer) = ModelSummary::read(path)?;
        // What a GPU has not is said when it is asked for.
        if device.is_cpu() {
            // Beside each weight that learns stand its gradient and two means of the optimizer.
            let of_weight = if learns == Learns::Everything { 16 } else { 4 };
            let needed = summary.n_parameters * of_weight + step_bytes(&summary.architecture, max_positions);
            if let Some(available) = engine::available_memory().filter(|&available| available < needed) {
                return Err(TrainError::NoMemory { needed, available });
            }
        }
        let sha256 = sha256_of_file(path)?;
        let architecture = summary.architecture;
        let mut file = std::fs::File::open(path).map_err(TrainError::io(path))?;
        let content = Content::read(&mut file).map_err(|error| TrainError::unreadable(path, error))?;
        let mut variables = Vec::new();
        let mut tensor = |name: &str| -> Result<Option<Tensor>, TrainError> {
            if !content.tensor_infos.contains_key(name) {
                return Ok(None);
            }
            let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
            let tensor = tensor.dequantize(&Device::Cpu)?.to_device(&device)?;
            if learns == Learns::Nothing || name == ROPE_DIVISORS {
                return Ok(Some(tensor));
            }
            let variable = Var::from_tensor(&tensor)?;
            let tensor = variable.as_tensor().clone();
            variables.push((name.to_owned(), variable));
            Ok(Some(tensor))
        };
        let missing = |name: &str| model::ModelError::MissingTensor { tensor: name.to_owned() };
        let mut expect = |name: &str| tensor(name)?.ok_or_else(|| TrainError::from(missing(name)));
        let embedding = expect("token_embd.weight")?;
        let mut layers = Vec::with_capacity(architecture.n_layers);
        for layer in 0..architecture.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let mut linear = |part: &str| -> Result<Linear, TrainError> {
                let weight = expect(&name(&format!("{part}.weight")))?.t()?;
                let bias = name(&format!("{part}.bias"));
                let bias = content.tensor_infos.contains_key(&bias).then(|| expect(&bias)).transpose()?;
                Ok(Linear { weight, bias })
            };
            let linears = [
                linear("attn_q")?,
                linear("attn_k")?,
                linear("attn_v")?,
                linear("attn_output")?,
                linear("ffn_gate")?,
                linear("ffn_up")?,
                linear("ffn_down")?,
            ];
            let has_head_norms = content.tensor_infos.contains_key(&name("attn_q_norm.weight"));
            let head_norms = match has_head_norms {
                true => Some([expect(&name("attn_q_norm.weight"))?, expect(&name("attn_k_norm.weight"))?]),
                false => None,
            };
            let attention_norm = expect(&name("attn_norm.weight"))?;
            let feed_forward_norm = expect(&name("ffn_norm.weight"))?;
            layers.push(Layer { attention_norm, feed_forward_norm, linears, head_norms });
        }
        let scale = 1.0 / f64::from(architecture.multipliers.logits);
        let output_norm = match scale == 1.0 {
            true => expect("output_norm.weight")?,
            false if learns == Learns::Nothing => (expect("output_norm.weight")? * scale)?,
            false => return Err(TrainError::ScaledLogits),
        };
        let n_outputs = architecture.vocabulary.min(DRAFT_VOCABULARY);
        let output = match content.tensor_infos.contains_key("output.weight") {
            true => expect("output.weight")?,
            false => embedding.clone(),
        };
        let head = output.narrow(0, 0, n_outputs)?.t()?;
        let divisors = match content.tensor_infos.contains_key(ROPE_DIVISORS) {
            true => expect(ROPE_DIVISORS)?.to_vec1::<f32>()?,
            false => vec![1.0; architecture.rope_dim / 2],
        };
        let (cos, sin) = angles(&architecture, &divisors, max_positions, &device)?;
        let format = PromptFormat::of(&tokenizer);
        let path = path.to_owned();
        Ok(Self {
            architecture,
            device,
            embedding,
            layers,
            output_norm,
            head,
            cos,
            sin,
            tokenizer,
            format,
            sha256,
            path,
            learns,
            native_sat: summary.native_sat,
            variables,
        })
    }

    /// `x w`, `[n_rows, n_out]` from `[n_rows, n_in]` and `[n_in, n_out]`; its gradient reaches `w` where that learns.
    pub(crate) fn product(&self, x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
        match self.learns {
            Learns::Nothing => frozen_product(x, w),
            Learns::Everything => x.matmul(w),
        }
    }

    /// Sizes and constants.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The tokenizer that came with the weights.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How it is asked.
    pub fn format(&self) -> &PromptFormat {
        &self.format
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Longest text in tokens, a group behind its last included.
    pub fn max_positions(&self) -> usize {
        self.cos.dims()[0]
    }

    /// Tokens that drafts are looked for among: the first of the vocabulary.
    pub fn n_outputs(&self) -> usize {
        self.head.dims()[1]
    }

    /// What adapters call the way heads rotate.
    pub(crate) fn rope_name(&self) -> &'static str {
        match self.architecture.rope_layout {
            RopeLayout::Interleaved => "interleaved",
            RopeLayout::Half => "half",
        }
    }
}

/// About what a step holds, with as many adaptive rows as a text has tokens: what is kept of each row in each layer until
/// its gradient is known. By measurement: 256 rows of the 135M took 3.9 GB and of the 0.5B 5.7, of which this says 3.9 and 6.5.
fn step_bytes(architecture: &Architecture, max_positions: usize) -> u64 {
    const BYTES_PER_NUMBER: usize = 7;
    let Architecture { n_layers, hidden, feed_forward, n_heads, .. } = *architecture;
    let per_row = 12 * feed_forward + 10 * hidden + 6 * n_heads * 2 * max_positions;
    (BYTES_PER_NUMBER * max_positions * n_layers * per_row) as u64
}

/// Cosines and sines, `[n_positions, rope_dim / 2]` each (RoFormer, arXiv 2104.09864).
fn angles(
    architecture: &Architecture,
    divisors: &[f32],
    n_positions: usize,
    device: &Device,
) -> Result<(Tensor, Tensor), TrainError> {
    let half = architecture.rope_dim / 2;
    let frequency = |i: usize| {
        architecture.rope_base.powf(-2.0 * i as f64 / architecture.rope_dim as f64) / f64::from(divisors[i])
    };
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for position in 0..n_positions {
        for i in 0..half {
            let angle = position as f64 / architecture.rope_scale * frequency(i);
            cos.push(angle.cos() as f32);
            sin.push(angle.sin() as f32);
        }
    }
    let shape = (n_positions, half);
    Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
}
