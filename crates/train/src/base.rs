//! The model, which is frozen where an adapter is trained for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// What becomes of what layers compute of rows of adaptive tokens until their gradients are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// It is kept.
    Kept,
    /// It is computed a second time, a layer after the other (arXiv 1604.06174): a step takes longer and far less memory, and
    /// comes to the same gradients.
    Recomputed,
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
    /// The token that ends a text, where it is the last output and none of the first tokens.
    end: Option<u32>,
    /// Angles per position: `[n_positions, rope_dim / 2]`.
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    tokenizer: Arc<Tokenizer>,
    format: PromptFormat,
    sha256: String,
    path: PathBuf,
    pub(crate) learns: Learns,
    pub(crate) activations: Activations,
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
        let activations = match device.is_cpu() {
            true => activations_that_fit(&summary, max_positions, learns, engine::available_memory())?,
            false => Activations::Kept,
        };
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
        let n_first = architecture.vocabulary.min(DRAFT_VOCABULARY);
        // A model that learns itself drafts as its own token was trained to.
        let end = tokenizer.end_of_text().filter(|&end| end as usize >= n_first);
        let end = end.filter(|_| learns == Learns::Nothing);
        let output = match content.tensor_infos.contains_key("output.weight") {
            true => expect("output.weight")?,
            false => embedding.clone(),
        };
        let first = output.narrow(0, 0, n_first)?;
        let head = match end {
            Some(end) => Tensor::cat(&[first, output.narrow(0, end as usize, 1)?], 0)?.t()?,
            None => first.t()?,
        };
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
            end,
            cos,
            sin,
            tokenizer: Arc::new(tokenizer),
            format,
            sha256,
            path,
            learns,
            activations,
            native_sat: summary.native_sat,
            variables,
        })
    }

    /// The same, by another way to gradients. A model that learns itself keeps what it computes.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What becomes of what layers compute: kept where there is memory enough.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// The same weights, of which none learns here.
    pub(crate) fn frozen(&self) -> Self {
        let detached = |tensor: &Tensor| tensor.detach();
        let linear = |linear: &Linear| Linear {
            weight: detached(&linear.weight),
            bias: linear.bias.as_ref().map(detached),
        };
        let layers = self.layers.iter().map(|layer| Layer {
            attention_norm: detached(&layer.attention_norm),
            feed_forward_norm: detached(&layer.feed_forward_norm),
            linears: layer.linears.each_ref().map(linear),
            head_norms: layer.head_norms.as_ref().map(|norms| norms.each_ref().map(detached)),
        });
        Self {
            architecture: self.architecture.clone(),
            device: self.device.clone(),
            embedding: detached(&self.embedding),
            layers: layers.collect(),
            output_norm: detached(&self.output_norm),
            head: detached(&self.head),
            end: self.end,
            cos: self.cos.clone(),
            sin: self.sin.clone(),
            tokenizer: self.tokenizer.clone(),
            format: self.format.clone(),
            sha256: self.sha256.clone(),
            path: self.path.clone(),
            learns: Learns::Nothing,
            activations: self.activations,
            native_sat: self.native_sat,
            variables: Vec::new(),
        }
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

    /// Tokens that drafts are looked for among: the first of the vocabulary, and the one that ends a text.
    pub fn n_outputs(&self) -> usize {
        self.head.dims()[1]
    }

    /// How many of these are the first of the vocabulary.
    pub(crate) fn n_first(&self) -> usize {
        self.n_outputs() - self.end.iter().len()
    }

    /// The token that ends a text, where it is the last output and none of the first tokens.
    pub(crate) fn end(&self) -> Option<u32> {
        self.end
    }

    /// The token that an output is of.
    pub(crate) fn token_of(&self, output: u32) -> u32 {
        self.end.filter(|_| output as usize == self.n_first()).unwrap_or(output)
    }

    /// The outputs that are of `tokens`; the highest number for tokens that are none.
    pub(crate) fn outputs_of(&self, tokens: &[u32]) -> Vec<u32> {
        let n_first = self.n_first() as u32;
        let output = |&token: &u32| match token < n_first {
            true => token,
            false if self.end == Some(token) => n_first,
            false => u32::MAX,
        };
        tokens.iter().map(output).collect()
    }

    /// What adapters call the way heads rotate.
    pub(crate) fn rope_name(&self) -> &'static str {
        match self.architecture.rope_layout {
            RopeLayout::Interleaved => "interleaved",
            RopeLayout::Half => "half",
        }
    }
}

/// The quickest way to gradients that `available` bytes suffice for.
fn activations_that_fit(
    summary: &ModelSummary,
    max_positions: usize,
    learns: Learns,
    available: Option<u64>,
) -> Result<Activations, TrainError> {
    let architecture = &summary.architecture;
    // Beside each weight that learns stand its gradient and two means of the optimizer; a table is read in two forms.
    let of_weight = if learns == Learns::Everything { 16 } else { 4 };
    let table = architecture.vocabulary * architecture.hidden * size_of::<f32>();
    let weights = of_weight * summary.n_parameters + table as u64;
    let of_step = |n_layers| weights + step_bytes(architecture, n_layers, max_positions);
    let (kept, recomputed) = (of_step(architecture.n_layers), of_step(1));
    match (available, learns) {
        (Some(available), _) if available >= kept => Ok(Activations::Kept),
        (Some(available), Learns::Nothing) if available >= recomputed => Ok(Activations::Recomputed),
        (Some(available), _) => {
            let needed = if learns == Learns::Everything { kept } else { recomputed };
            Err(TrainError::NoMemory { needed, available })
        }
        (None, _) => Ok(Activations::Kept),
    }
}

/// About what a step holds, with as many adaptive rows as a text has tokens: what is kept of each row in so many layers until
/// its gradient is known, and what is made of logits. By measurement, weights included: 256 rows of the 135M took 1.4 GB and of
/// the 0.5B 3.6, of which this and the weights say 1.7 and 4.0, and with one layer at a time 0.9 and 2.9, of which they say 0.9 and 2.8.
fn step_bytes(architecture: &Architecture, n_layers: usize, max_positions: usize) -> u64 {
    let Architecture { hidden, feed_forward, n_heads, vocabulary, .. } = *architecture;
    let of_row = n_layers * (3 * feed_forward + 10 * hidden + 2 * n_heads * 2 * max_positions)
        + 5 * vocabulary.min(DRAFT_VOCABULARY);
    (size_of::<f32>() * max_positions * of_row) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_kept_where_there_is_room() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let (summary, _) = ModelSummary::read(Path::new(tiny)).expect("a model");
        let of = |learns, available| activations_that_fit(&summary, 64, learns, Some(available));
        let needed = |error: Result<Activations, TrainError>| match error {
            Err(TrainError::NoMemory { needed, available: 0 }) => needed,
            other => panic!("{other:?}"),
        };
        let least = needed(of(Learns::Nothing, 0));
        assert!(matches!(of(Learns::Nothing, least), Ok(Activations::Recomputed)));
        assert!(matches!(of(Learns::Nothing, 100 * least), Ok(Activations::Kept)));
        assert!(matches!(of(Learns::Nothing, least - 1), Err(TrainError::NoMemory { .. })));
        // A model that learns itself keeps them.
        let whole = needed(of(Learns::Everything, 0));
        assert!(whole > least && matches!(of(Learns::Everything, whole), Ok(Activations::Kept)));
        assert!(matches!(of(Learns::Everything, whole - 1), Err(TrainError::NoMemory { .. })));
    }
}
