//! What the metadata of a file say about its model.

use kernels::{AttentionShape, CacheType};

use crate::ModelError;
use crate::forward::MARGIN_ROWS;
use crate::gguf::{GgufError, GgufFile};

/// Architectures of the Llama family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama, Code Llama, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: queries and keys are normalised head by head.
    Qwen3,
    /// Granite 3: multipliers of embeddings, residuals, scores and logits.
    Granite,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Granite];

    /// The name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Granite => "granite",
        }
    }

    /// The family of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether the heads of queries and keys are normalised.
    pub(crate) fn normalises_heads(self) -> bool {
        self == Self::Qwen3
    }

    /// Which values of a head rotate together in its files.
    pub fn rope_layout(self) -> RopeLayout {
        match self {
            Self::Llama | Self::Granite => RopeLayout::Interleaved,
            Self::Qwen2 | Self::Qwen3 => RopeLayout::Half,
        }
    }
}

/// Which values of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Pairs (2i, 2i + 1), the order of llama weights in GGUF files.
    Interleaved,
    /// Pairs (i, i + d/2).
    Half,
}

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Architecture of the Llama family.
    pub family: Family,
    /// Number of layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub feed_forward: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading values of a head that rotate; even.
    pub rope_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f64,
    /// Positions are divided by this (linear scaling; 1 without).
    pub rope_scale: f64,
    /// Which values rotate together.
    pub rope_layout: RopeLayout,
    /// Epsilon of RMSNorm.
    pub norm_epsilon: f32,
    /// Multipliers of what most models leave as it is.
    pub multipliers: Multipliers,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Rows of the embedding table.
    pub vocabulary: usize,
}

/// What Granite multiplies (Granite 3.0 language models, 2024, §2; µP, arXiv 2203.03466). All are 1 elsewhere, and
/// scores are divided by the root of the width of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// Of embeddings.
    pub embedding: f32,
    /// Of what a layer adds to the residual stream.
    pub residual: f32,
    /// Of scores; `None` where they are divided by the root of the width of a head.
    pub attention: Option<f32>,
    /// What logits are divided by.
    pub logits: f32,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, attention: None, logits: 1.0 }
    }
}

impl Multipliers {
    fn of(file: &GgufFile, key: &dyn Fn(&str) -> String) -> Result<Self, ModelError> {
        let read = |name: &str| -> Result<Option<f32>, GgufError> {
            let key = key(name);
            if !file.has(&key) {
                return Ok(None);
            }
            match file.float(&key)? {
                value if (1e-6..=1e6).contains(&value) => Ok(Some(value as f32)),
                got => Err(GgufError::OutOfRange {
                    key,
                    range: "from 0.000001 to 1000000",
                    got: got.to_string(),
                }),
            }
        };
        Ok(Self {
            embedding: read("embedding_scale")?.unwrap_or(1.0),
            residual: read("residual_scale")?.unwrap_or(1.0),
            attention: read("attention.scale")?,
            logits: read("logit_scale")?.unwrap_or(1.0),
        })
    }
}

/// The factor of linear scaling: `rope.scaling.factor`, or in older files `rope.scale_linear`. The scaling of
/// Llama 3 comes as a tensor of its own (`rope_freqs.weight`), with no type or with `llama3`.
fn rope_scale(file: &GgufFile, key: &dyn Fn(&str) -> String) -> Result<f64, ModelError> {
    let kind = match file.has(&key("rope.scaling.type")) {
        true => file.string(&key("rope.scaling.type"))?,
        false => "",
    };
    let factor = match kind {
        "" if file.has(&key("rope.scale_linear")) => key("rope.scale_linear"),
        "linear" => key("rope.scaling.factor"),
        "" | "none" | "llama3" => return Ok(1.0),
        _ => return Err(ModelError::UnsupportedFeature { feature: format!("rotary scaling `{kind}`") }),
    };
    match file.float(&factor)? {
        scale if (1.0..=1024.0).contains(&scale) => Ok(scale),
        scale => {
            Err(GgufError::OutOfRange { key: factor, range: "from 1 to 1024", got: scale.to_string() }.into())
        }
    }
}

impl Architecture {
    /// Reads and checks the metadata of `file`.
    ///
    /// # Errors
    /// When an entry is missing or out of range, or asks for what is not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, ModelError> {
        let got = file.string("general.architecture")?;
        let Some(family) = Family::named(got) else {
            return Err(ModelError::UnsupportedArchitecture { got: got.to_owned() });
        };
        let key = |name: &str| format!("{}.{name}", family.name());
        let count = |name: &str, range: std::ops::RangeInclusive<usize>, words: &'static str| {
            let key = key(name);
            let got = file.count(&key)?;
            if range.contains(&got) {
                Ok(got)
            } else {
                Err(GgufError::OutOfRange { key, range: words, got: got.to_string() })
            }
        };
        let n_layers = count("block_count", 1..=1024, "from 1 to 1024")?;
        let hidden = count("embedding_length", 32..=65_536, "from 32 to 65536")?;
        let feed_forward = count("feed_forward_length", 32..=1 << 20, "from 32 to 1048576")?;
        let n_heads = count("attention.head_count", 1..=1024, "from 1 to 1024")?;
        let n_kv_heads = match file.has(&key("attention.head_count_kv")) {
            true => count("attention.head_count_kv", 1..=1024, "from 1 to 1024")?,
            false => n_heads,
        };
        let context_length = count("context_length", 1..=1 << 20, "from 1 to 1048576")?;
        let head_dim = match file.has(&key("attention.key_length")) {
            true => count("attention.key_length", 2..=1024, "from 2 to 1024")?,
            false => hidden / n_heads,
        };
        let rope_dim = match file.has(&key("rope.dimension_count")) {
            true => count("rope.dimension_count", 2..=1024, "from 2 to 1024")?,
            false => head_dim,
        };
        if !n_heads.is_multiple_of(n_kv_heads) {
            let key = key("attention.head_count_kv");
            let range = "a divisor of the number of heads";
            return Err(GgufError::OutOfRange { key, range, got: n_kv_heads.to_string() }.into());
        }
        if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            let key = key("rope.dimension_count");
            let range = "even and at most the width of a head";
            return Err(GgufError::OutOfRange { key, range, got: rope_dim.to_string() }.into());
        }
        let rope_scale = rope_scale(file, &key)?;
        let rope_base = match file.has(&key("rope.freq_base")) {
            true => file.float(&key("rope.freq_base"))?,
            false => 10_000.0,
        };
        let norm_epsilon = file.float(&key("attention.layer_norm_rms_epsilon"))?;
        if !(rope_base > 1.0 && norm_epsilon > 0.0 && norm_epsilon < 1.0) {
            let key = format!("{} and {}", key("rope.freq_base"), key("attention.layer_norm_rms_epsilon"));
            let got = format!("{rope_base} and {norm_epsilon}");
            return Err(GgufError::OutOfRange { key, range: "above 1, and in (0, 1)", got }.into());
        }
        let embedding = "token_embd.weight";
        let Some(entry) = file.header().tensors().get(embedding) else {
            return Err(ModelError::MissingTensor { tensor: embedding.to_owned() });
        };
        Ok(Self {
            family,
            n_layers,
            hidden,
            feed_forward,
            n_heads,
            n_kv_heads,
            head_dim,
            rope_dim,
            rope_base,
            rope_scale,
            rope_layout: family.rope_layout(),
            norm_epsilon: norm_epsilon as f32,
            multipliers: match family {
                Family::Granite => Multipliers::of(file, &key)?,
                Family::Llama | Family::Qwen2 | Family::Qwen3 => Multipliers::default(),
            },
            context_length,
            vocabulary: entry.shape[0],
        })
    }

    /// Sizes of attention.
    pub(crate) fn attention_shape(&self) -> AttentionShape {
        let shape = AttentionShape::new(self.n_heads, self.n_kv_heads, self.head_dim);
        AttentionShape { scale: self.multipliers.attention.unwrap_or(shape.scale), ..shape }
    }

    /// The forward pass keeps the residual stream in units of what a layer adds: a multiplier less, and the same
    /// result, since RMSNorm divides by the size of the stream.
    pub(crate) fn embedding_multiplier(&self) -> f32 {
        self.multipliers.embedding / self.multipliers.residual
    }

    /// Epsilon in those units.
    pub(crate) fn stream_epsilon(&self) -> f32 {
        self.norm_epsilon / (self.multipliers.residual * self.multipliers.residual)
    }

    /// Memory that keys and values of a context of `max_context` tokens take, or of the longest that the model
    /// was trained for.
    pub fn cache_bytes(&self, max_context: usize, cache_type: CacheType) -> usize {
        let n_rows = max_context.min(self.context_length) + MARGIN_ROWS;
        2 * self.n_layers * n_rows * self.kv_width() * cache_type.size()
    }

    /// Width of the queries.
    pub fn query_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the keys, and of the values.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}
