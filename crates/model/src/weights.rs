//! From the tensors of a file to the weights of the forward pass.

use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::ModelError;
use crate::architecture::{Architecture, Family};
use crate::backend::{Backend, EndOfText, Linear, MatrixSource};
use crate::gguf::{GgufFile, TensorEntry, TensorType};

/// Weights of one layer.
pub(crate) struct Layer<B: Backend> {
    pub(crate) attention_norm: B::Vector,
    pub(crate) q: Linear<B>,
    pub(crate) k: Linear<B>,
    pub(crate) v: Linear<B>,
    /// Norms of the heads of queries and keys, where the family has them.
    pub(crate) head_norms: Option<[B::Vector; 2]>,
    pub(crate) o: Linear<B>,
    pub(crate) feed_forward_norm: B::Vector,
    pub(crate) gate: Linear<B>,
    pub(crate) up: Linear<B>,
    pub(crate) down: Linear<B>,
}

/// All weights of a model.
pub(crate) struct Weights<B: Backend> {
    pub(crate) embedding: B::Matrix,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) output_norm: B::Vector,
    /// `None` when the vocabulary projection shares the embedding table.
    pub(crate) output: Option<Linear<B>>,
    /// What adaptive rows draft beside the first tokens, where they were trained to.
    pub(crate) end: Option<EndOfText<B>>,
}

impl<B: Backend> Weights<B> {
    /// Loads the tensors of `file`, the row of the token `end` once more by itself, and what Llama 3.1 divides the
    /// frequencies of its rotation by: one for each pair, none in others. Tells `progress` the share that is done, from 0 to 1.
    ///
    /// # Errors
    /// When a tensor is missing, unknown, or of another shape than `architecture` says, and when `progress`
    /// gives up.
    pub(crate) fn load(
        backend: &B,
        file: &GgufFile,
        architecture: &Architecture,
        end: Option<u32>,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<(Self, Vec<f32>), ModelError> {
        let mut loader = Loader { backend, file, n_used: 0 };
        let Architecture { n_layers, hidden, feed_forward, vocabulary, .. } = *architecture;
        let Architecture { family, head_dim, .. } = *architecture;
        let (query, kv) = (architecture.query_width(), architecture.kv_width());
        let embedding = loader.matrix("token_embd.weight", vocabulary, hidden)?;
        let mut layers = Vec::with_capacity(n_layers);
        for layer in 0..n_layers {
            let name = |name: &str| format!("blk.{layer}.{name}");
            layers.push(Layer {
                attention_norm: loader.device_vector(&name("attn_norm.weight"), hidden)?,
                q: loader.linear(&name("attn_q"), query, hidden)?,
                k: loader.linear(&name("attn_k"), kv, hidden)?,
                v: loader.linear(&name("attn_v"), kv, hidden)?,
                head_norms: match family.normalises_heads() {
                    true => Some([
                        loader.device_vector(&name("attn_q_norm.weight"), head_dim)?,
                        loader.device_vector(&name("attn_k_norm.weight"), head_dim)?,
                    ]),
                    false => None,
                },
                o: loader.linear(&name("attn_output"), hidden, query)?,
                feed_forward_norm: loader.device_vector(&name("ffn_norm.weight"), hidden)?,
                gate: loader.linear(&name("ffn_gate"), feed_forward, hidden)?,
                up: loader.linear(&name("ffn_up"), feed_forward, hidden)?,
                down: loader.linear(&name("ffn_down"), hidden, feed_forward)?,
            });
            if progress((layer + 1) as f32 / (n_layers + 1) as f32).is_break() {
                return Err(ModelError::Cancelled);
            }
        }
        let mut output_norm = loader.vector("output_norm.weight", hidden)?;
        // Logits are linear in what this norm gives.
        output_norm.iter_mut().for_each(|weight| *weight /= architecture.multipliers.logits);
        let output_norm = backend.vector(output_norm)?;
        let output = match loader.entry("output.weight") {
            Some(_) => Some(loader.linear("output", vocabulary, hidden)?),
            None => None,
        };
        let end = match end {
            Some(token) => {
                let name = if output.is_some() { "output" } else { "token_embd" };
                Some(EndOfText { token, linear: loader.row(name, vocabulary, hidden, token as usize)? })
            }
            None => None,
        };
        let divisors = "rope_freqs.weight";
        let rope_divisors = match loader.entry(divisors) {
            Some(_) => loader.vector(divisors, architecture.rope_dim / 2)?,
            None => Vec::new(),
        };
        if rope_divisors.iter().any(|&divisor| divisor <= 0.0) {
            return Err(ModelError::NotFinite { tensor: divisors.to_owned() });
        }
        loader.finish(family, n_layers)?;
        if progress(1.0).is_break() {
            return Err(ModelError::Cancelled);
        }
        Ok((Self { embedding, layers, output_norm, output, end }, rope_divisors))
    }
}

struct Loader<'a, B> {
    backend: &'a B,
    file: &'a GgufFile,
    n_used: usize,
}

impl<'a, B: Backend> Loader<'a, B> {
    fn entry(&self, tensor: &str) -> Option<&'a TensorEntry> {
        self.file.header().tensors().get(tensor)
    }

    fn expect(&mut self, tensor: &str, expected: &[usize]) -> Result<&'a TensorEntry, ModelError> {
        let Some(entry) = self.entry(tensor) else {
            return Err(ModelError::MissingTensor { tensor: tensor.to_owned() });
        };
        if entry.shape != expected {
            let (expected, got) = (expected.to_vec(), entry.shape.clone());
            return Err(ModelError::TensorShape { tensor: tensor.to_owned(), expected, got });
        }
        self.n_used += 1;
        Ok(entry)
    }

    fn matrix(&mut self, tensor: &str, n_out: usize, n_in: usize) -> Result<B::Matrix, ModelError> {
        let entry = self.expect(tensor, &[n_out, n_in])?;
        let read = |offset: usize, part: &mut [u8]| self.file.read_part(entry, offset, part);
        let tensor_type = entry.tensor_type;
        self.backend.matrix(MatrixSource { tensor, tensor_type, n_out, n_in, read: &read })
    }

    fn linear(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Linear<B>, ModelError> {
        let matrix = self.matrix(&format!("{name}.weight"), n_out, n_in)?;
        let bias = format!("{name}.bias");
        let bias = match self.entry(&bias) {
            Some(_) => Some(self.device_vector(&bias, n_out)?),
            None => None,
        };
        Ok(Linear { matrix, bias })
    }

    /// Row `row` of a layer that was loaded before, as a layer with one output.
    fn row(&self, name: &str, n_out: usize, n_in: usize, row: usize) -> Result<Linear<B>, ModelError> {
        let (tensor, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let missing = || ModelError::MissingTensor { tensor: tensor.clone() };
        let entry = self.entry(&tensor).ok_or_else(missing)?;
        let start = row * (entry.bytes.len() / n_out);
        let read = |offset: usize, part: &mut [u8]| self.file.read_part(entry, start + offset, part);
        let (tensor, tensor_type) = (tensor.as_str(), entry.tensor_type);
        let matrix =
            self.backend.matrix(MatrixSource { tensor, tensor_type, n_out: 1, n_in, read: &read })?;
        let bias = match self.entry(&bias) {
            Some(entry) => Some(self.backend.vector(vec![self.numbers(&bias, entry)?[row]])?),
            None => None,
        };
        Ok(Linear { matrix, bias })
    }

    fn device_vector(&mut self, tensor: &str, len: usize) -> Result<B::Vector, ModelError> {
        let values = self.vector(tensor, len)?;
        self.backend.vector(values)
    }

    fn vector(&mut self, tensor: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let entry = self.expect(tensor, &[len])?;
        self.numbers(tensor, entry)
    }

    fn numbers(&self, tensor: &str, entry: &TensorEntry) -> Result<Vec<f32>, ModelError> {
        if entry.tensor_type != TensorType::F32 {
            let (tensor, got) = (tensor.to_owned(), entry.tensor_type);
            return Err(ModelError::TensorType { tensor, expected: "F32", got });
        }
        let bytes = self.file.read_tensor(entry);
        let bytes = bytes.map_err(|source| ModelError::Read { tensor: tensor.to_owned(), source })?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(ModelError::NotFinite { tensor: tensor.to_owned() }),
        }
    }

    /// An unknown tensor means an unknown computation, so the model would be wrong without it.
    fn finish(self, family: Family, n_layers: usize) -> Result<(), ModelError> {
        let tensors = self.file.header().tensors();
        if tensors.len() == self.n_used {
            return Ok(());
        }
        let is_known = |name: &str| {
            let stem = name.trim_end_matches(".weight").trim_end_matches(".bias");
            let in_layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            match in_layer {
                Some((layer, stem)) => {
                    layer.parse::<usize>().is_ok_and(|layer| layer < n_layers)
                        && (LAYER_TENSORS.contains(&stem)
                            || family.normalises_heads() && HEAD_NORMS.contains(&stem))
                }
                None => ["token_embd", "output_norm", "output", "rope_freqs"].contains(&stem),
            }
        };
        let unknown = tensors.keys().find(|name| !is_known(name)).cloned().unwrap_or_default();
        Err(ModelError::UnexpectedTensor { tensor: unknown, family: family.name() })
    }
}

const HEAD_NORMS: [&str; 2] = ["attn_q_norm", "attn_k_norm"];
const LAYER_TENSORS: [&str; 9] =
    ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];

impl<B: Backend> Weights<B> {
    /// Bytes of the matrices that a pass reads.
    pub(crate) fn pass_bytes(&self, backend: &B) -> usize {
        let head = self.output.as_ref().map_or(&self.embedding, |output| &output.matrix);
        let of_layer = |layer: &Layer<B>| {
            let Layer { q, k, v, o, gate, up, down, .. } = layer;
            [q, k, v, o, gate, up, down]
                .map(|linear| backend.matrix_bytes(&linear.matrix))
                .iter()
                .sum::<usize>()
        };
        self.layers.iter().map(of_layer).sum::<usize>() + backend.matrix_bytes(head)
    }
}

/// SHA-256 of the file at `path`, in hexadecimal.
///
/// # Errors
/// [`ModelError::Io`].
pub fn sha256_of_file(path: &Path) -> Result<String, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = std::io::Read::read(&mut file, &mut buffer).map_err(io)?;
        if n == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..n]);
    }
}
