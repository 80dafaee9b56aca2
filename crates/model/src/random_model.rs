//! Weight files with random weights, of any shape and type: what a pass over a model of that shape
//! costs does not depend on what it has learnt.

use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use crate::ModelError;
use crate::adapter::NativeSat;
use crate::architecture::Family;
use crate::gguf::MetadataValue as Value;
use crate::gguf::{TensorDescription, TensorType, write_header, write_padding};

/// Tokens that every vocabulary has: unknown, start, end, and the 256 bytes.
const N_FIXED_TOKENS: usize = 259;

/// The shape of a random model.
#[derive(Clone, Debug)]
pub struct RandomModelConfig {
    /// The family; qwen2 has biases on queries, keys and values, qwen3 norms of their heads, granite multipliers.
    pub family: Family,
    /// Type of all matrices.
    pub tensor_type: TensorType,
    /// Number of layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key-value heads.
    pub n_kv_heads: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Number of tokens, at least 259.
    pub vocabulary: usize,
    /// Positions.
    pub context_length: usize,
    /// Whether the vocabulary projection shares the embedding table.
    pub is_tied: bool,
    /// Adaptive tokens of the vocabulary, which the file says that it has.
    pub native_sat: Option<NativeSat>,
    /// Seed of the weights.
    pub seed: u64,
}

impl RandomModelConfig {
    /// The shape of Llama 2 and CodeLlama 7B.
    pub fn llama_7b(tensor_type: TensorType) -> Self {
        Self {
            family: Family::Llama,
            tensor_type,
            n_layers: 32,
            hidden: 4096,
            n_heads: 32,
            n_kv_heads: 32,
            feed_forward: 11_008,
            vocabulary: 32_016,
            context_length: 4096,
            is_tied: false,
            native_sat: None,
            seed: 1,
        }
    }

    /// What a random granite model says of its multipliers: those of Granite 3.1 2B.
    pub const GRANITE_MULTIPLIERS: [(&str, f32); 4] = [
        ("embedding_scale", 12.0),
        ("residual_scale", 0.22),
        ("attention.scale", 0.015_625),
        ("logit_scale", 8.0),
    ];

    fn tensors(&self) -> Vec<TensorDescription> {
        let Self { hidden, feed_forward, vocabulary, tensor_type, .. } = *self;
        let kv = hidden / self.n_heads * self.n_kv_heads;
        let describe = |name: &str, shape: Vec<usize>| {
            let tensor_type = if shape.len() == 1 { TensorType::F32 } else { tensor_type };
            TensorDescription { name: name.to_owned(), shape, tensor_type }
        };
        let mut tensors = vec![describe("token_embd.weight", vec![vocabulary, hidden])];
        for layer in 0..self.n_layers {
            let mut add = |name: &str, shape| tensors.push(describe(&format!("blk.{layer}.{name}"), shape));
            add("attn_norm.weight", vec![hidden]);
            for (name, n_out) in [("q", hidden), ("k", kv), ("v", kv)] {
                add(&format!("attn_{name}.weight"), vec![n_out, hidden]);
                if self.family == Family::Qwen2 {
                    add(&format!("attn_{name}.bias"), vec![n_out]);
                }
            }
            if self.family.normalises_heads() {
                add("attn_q_norm.weight", vec![hidden / self.n_heads]);
                add("attn_k_norm.weight", vec![hidden / self.n_heads]);
            }
            add("attn_output.weight", vec![hidden, hidden]);
            add("ffn_norm.weight", vec![hidden]);
            add("ffn_gate.weight", vec![feed_forward, hidden]);
            add("ffn_up.weight", vec![feed_forward, hidden]);
            add("ffn_down.weight", vec![hidden, feed_forward]);
        }
        tensors.push(describe("output_norm.weight", vec![hidden]));
        if !self.is_tied {
            tensors.push(describe("output.weight", vec![vocabulary, hidden]));
        }
        tensors
    }
}

/// Writes a GGUF file (version 3) of this shape to `path`. Its tokenizer knows single bytes only.
///
/// # Errors
/// [`ModelError::RandomModel`] for a shape that is none, [`ModelError::Io`].
pub fn write_random_model(config: &RandomModelConfig, path: &Path) -> Result<(), ModelError> {
    config.check()?;
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let file = std::fs::File::create(path).map_err(io)?;
    write(config, &mut BufWriter::with_capacity(1 << 20, file)).map_err(io)
}

impl RandomModelConfig {
    fn check(&self) -> Result<(), ModelError> {
        let (block, _) = self.tensor_type.block();
        let check = |what: &'static str, ok: bool, got: usize| {
            if ok { Ok(()) } else { Err(ModelError::RandomModel { what, got }) }
        };
        check("a positive number of layers", self.n_layers > 0, self.n_layers)?;
        check("heads that divide the hidden width", is_divisor(self.n_heads, self.hidden), self.n_heads)?;
        check(
            "key-value heads that divide the heads",
            is_divisor(self.n_kv_heads, self.n_heads),
            self.n_kv_heads,
        )?;
        check("a hidden width of whole blocks", self.hidden.is_multiple_of(block.max(32)), self.hidden)?;
        let feed_forward = self.feed_forward;
        check(
            "a feed-forward width of whole blocks",
            feed_forward.is_multiple_of(block.max(32)),
            feed_forward,
        )?;
        check("a vocabulary of 259 tokens or more", self.vocabulary >= N_FIXED_TOKENS, self.vocabulary)
    }
}

fn is_divisor(divisor: usize, number: usize) -> bool {
    divisor > 0 && number > 0 && number.is_multiple_of(divisor)
}

fn write(config: &RandomModelConfig, out: &mut (impl Write + Seek)) -> std::io::Result<()> {
    let family = config.family.name();
    let fixed = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    // No two of these join to a third, so that there are no merges.
    let others = (N_FIXED_TOKENS..config.vocabulary).map(|id| format!("token {id} "));
    let kinds = (0..config.vocabulary).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..N_FIXED_TOKENS => 6,
        _ => 1,
    });
    let key = |name: &str| format!("{family}.{name}");
    let multipliers = RandomModelConfig::GRANITE_MULTIPLIERS.into_iter();
    let multipliers = multipliers.filter(|_| config.family == Family::Granite);
    let count = |number: usize| Value::U32(number as u32);
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".to_owned(), Value::String(family.to_owned())),
        ("general.name".to_owned(), Value::String("Random weights".to_owned())),
        (key("block_count"), count(config.n_layers)),
        (key("embedding_length"), count(config.hidden)),
        (key("feed_forward_length"), count(config.feed_forward)),
        (key("attention.head_count"), count(config.n_heads)),
        (key("attention.head_count_kv"), count(config.n_kv_heads)),
        (key("context_length"), count(config.context_length)),
        (key("attention.key_length"), count(config.hidden / config.n_heads)),
        (key("attention.value_length"), count(config.hidden / config.n_heads)),
        (key("rope.dimension_count"), count(config.hidden / config.n_heads)),
        (key("rope.freq_base"), Value::F32(10_000.0)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        ("tokenizer.ggml.model".to_owned(), Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Strings(fixed.chain(bytes).chain(others).collect())),
        ("tokenizer.ggml.scores".to_owned(), Value::F32s(vec![0.0; config.vocabulary])),
        ("tokenizer.ggml.token_type".to_owned(), Value::I32s(kinds.collect())),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
    ];
    metadata.extend(config.native_sat.map(NativeSat::metadata).into_iter().flatten());
    metadata.extend(multipliers.map(|(name, value)| (key(name), Value::F32(value))));
    let tensors = config.tensors();
    write_header(out, &metadata, &tensors)?;
    let mut random = Random(config.seed);
    for TensorDescription { name, shape, tensor_type } in &tensors {
        write_padding(out)?;
        if shape.len() == 1 {
            // Norms near 1, biases near 0.
            let centre = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            for _ in 0..shape[0] {
                out.write_all(&(centre + 0.1 * random.symmetric()).to_le_bytes())?;
            }
        } else {
            let (block, _) = tensor_type.block();
            let mut bytes = Vec::new();
            for _ in 0..shape[0] {
                bytes.clear();
                (0..shape[1] / block).for_each(|_| random.block(*tensor_type, shape[1], &mut bytes));
                out.write_all(&bytes)?;
            }
        }
    }
    out.flush()
}

struct Random(u64);

impl Random {
    /// Splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From -1 to 1.
    fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// One block: any bits for the codes, and scales that keep sums over `n_in` inputs near 1.
    fn block(&mut self, tensor_type: TensorType, n_in: usize, bytes: &mut Vec<u8>) {
        let spread = 1.0 / (n_in as f32).sqrt();
        match tensor_type {
            TensorType::F32 => bytes.extend((self.symmetric() * spread * 1.7).to_le_bytes()),
            TensorType::F16 => {
                bytes.extend(half::f16::from_f32(self.symmetric() * spread * 1.7).to_le_bytes());
            }
            TensorType::BF16 => {
                bytes.extend(half::bf16::from_f32(self.symmetric() * spread * 1.7).to_le_bytes());
            }
            _ => {
                let start = bytes.len();
                let n_bytes = tensor_type.block().1;
                while bytes.len() < start + n_bytes {
                    bytes.extend(self.next().to_le_bytes());
                }
                bytes.truncate(start + n_bytes);
                // Where the scale is, and the minimum; and what the codes and inner scales spread by.
                let (scale_at, min_at, code_spread) = match tensor_type {
                    TensorType::Q4_0 => (0, None, 4.6),
                    TensorType::Q5_0 => (0, None, 9.2),
                    TensorType::Q8_0 => (0, None, 74.0),
                    TensorType::Q4_1 => (0, Some((2, 7.5)), 4.6),
                    TensorType::Q5_1 => (0, Some((2, 15.5)), 9.2),
                    TensorType::Q2_K => (80, Some((82, 1.5)), 9.0),
                    TensorType::Q3_K => (108, None, 40.0),
                    TensorType::Q4_K => (0, Some((2, 7.5)), 150.0),
                    TensorType::Q5_K => (0, Some((2, 15.5)), 300.0),
                    _ => (208, None, 1300.0),
                };
                let scale = spread / code_spread;
                let mut put = |at: usize, value: f32| {
                    let value = half::f16::from_f32(value).to_le_bytes();
                    bytes[start + at..start + at + 2].copy_from_slice(&value);
                };
                put(scale_at, scale);
                if let Some((at, centre)) = min_at {
                    // Added in the plain types, subtracted in the K types.
                    let is_plain = matches!(tensor_type, TensorType::Q4_1 | TensorType::Q5_1);
                    put(at, if is_plain { -scale * centre } else { scale * centre });
                }
            }
        }
    }
}
