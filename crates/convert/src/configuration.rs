//! What `config.json` says, as metadata and tensors of a GGUF file.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::Path;

use model::gguf::{MetadataValue, TensorDescription, TensorType};
use model::{Family, RopeLayout};
use serde::Deserialize;
use serde_json::Value;

use crate::ConvertError;
use crate::checkpoint::{Checkpoint, Stored};
use crate::quantize::{Mix, PlannedTensor, Role, Source};

/// Tensors of old checkpoints that follow from the configuration.
const DERIVED: [&str; 2] = [".rotary_emb.inv_freq", ".attn.masked_bias"];

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// What newer files have instead of the two above.
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    #[serde(default)]
    use_sliding_window: bool,
    embedding_multiplier: Option<f32>,
    residual_multiplier: Option<f32>,
    attention_multiplier: Option<f32>,
    logits_scaling: Option<f32>,
}

/// How positions are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    /// Llama 3.1: low frequencies more than high ones.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

/// A model, by its `config.json`.
pub(crate) struct Configuration {
    name: String,
    family: Family,
    raw: Raw,
    head_dim: usize,
    rope_base: f64,
    rope_scaling: RopeScaling,
}

/// The tensors of a file, and how many tokens its embedding table has.
pub(crate) struct TensorPlan {
    pub(crate) tensors: Vec<PlannedTensor>,
    pub(crate) n_tokens: usize,
}

impl Configuration {
    pub(crate) fn read(folder: &Path) -> Result<Self, ConvertError> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(ConvertError::io(&path))?;
        let raw: Raw =
            serde_json::from_slice(&text).map_err(|error| ConvertError::unreadable(&path, error))?;
        let Some(family) = Family::named(&raw.model_type) else {
            let known = Family::ALL.map(Family::name).join(", ");
            let what = format!("the model type `{}` (there are {known})", raw.model_type);
            return Err(ConvertError::Unsupported { what });
        };
        let setting = |key, bound, ok: bool, got: String| match ok {
            true => Ok(()),
            false => Err(ConvertError::Setting { path: path.clone(), key, bound, got }),
        };
        let (heads, layers) = (raw.num_attention_heads, raw.num_hidden_layers);
        setting("num_hidden_layers", "from 1 to 1024", (1..=1024).contains(&layers), layers.to_string())?;
        setting("num_attention_heads", "from 1 to 1024", (1..=1024).contains(&heads), heads.to_string())?;
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
        let is_even = (2..=1024).contains(&head_dim) && head_dim.is_multiple_of(2);
        setting("head_dim", "even, from 2 to 1024", is_even, head_dim.to_string())?;
        let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
        let divides = (1..=heads).contains(&kv_heads) && heads.is_multiple_of(kv_heads);
        setting("num_key_value_heads", "a divisor of the heads", divides, kv_heads.to_string())?;
        let act = raw.hidden_act.clone().unwrap_or_else(|| "silu".to_owned());
        setting("hidden_act", "silu", act == "silu", act.clone())?;
        if raw.use_sliding_window {
            return Err(ConvertError::Unsupported { what: "a sliding window".to_owned() });
        }
        if raw.partial_rotary_factor.is_some_and(|factor| factor != 1.0) {
            return Err(ConvertError::Unsupported { what: "rotation of parts of heads".to_owned() });
        }
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let rope_base = (raw.rope_theta)
            .or_else(|| rope.and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64))
            .unwrap_or(10_000.0);
        let rope_scaling = rope_scaling(&path, rope)?;
        let name = folder.canonicalize().ok();
        let name =
            name.as_deref().unwrap_or(folder).file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_else(|| raw.model_type.clone());
        Ok(Self { name, family, raw, head_dim, rope_base, rope_scaling })
    }

    /// What a GGUF file says of the model, but for its vocabulary.
    pub(crate) fn metadata(&self) -> Vec<(String, MetadataValue)> {
        let Self { name, family, raw, head_dim, rope_base, .. } = self;
        let text = |text: &str| MetadataValue::String(text.to_owned());
        let count = |n: usize| MetadataValue::U32(n as u32);
        let float = |value: f64| MetadataValue::F32(value as f32);
        let general = [("general.architecture", text(family.name())), ("general.name", text(name))];
        let mut of_family = vec![
            ("block_count", count(raw.num_hidden_layers)),
            ("context_length", count(raw.max_position_embeddings)),
            ("embedding_length", count(raw.hidden_size)),
            ("feed_forward_length", count(raw.intermediate_size)),
            ("attention.head_count", count(raw.num_attention_heads)),
            ("attention.head_count_kv", count(self.n_kv_heads())),
            ("attention.key_length", count(*head_dim)),
            ("attention.value_length", count(*head_dim)),
            ("attention.layer_norm_rms_epsilon", float(raw.rms_norm_eps)),
            ("rope.dimension_count", count(*head_dim)),
            ("rope.freq_base", float(*rope_base)),
        ];
        if let RopeScaling::Linear { factor } = self.rope_scaling {
            of_family.push(("rope.scaling.type", text("linear")));
            of_family.push(("rope.scaling.factor", float(factor)));
        }
        let multipliers = [
            ("embedding_scale", raw.embedding_multiplier),
            ("residual_scale", raw.residual_multiplier),
            ("attention.scale", raw.attention_multiplier),
            ("logit_scale", raw.logits_scaling),
        ];
        let multipliers = multipliers.into_iter().filter(|_| *family == Family::Granite);
        of_family.extend(multipliers.filter_map(|(key, value)| Some((key, MetadataValue::F32(value?)))));
        let general = general.into_iter().map(|(key, value)| (key.to_owned(), value));
        let of_family = of_family.into_iter().map(|(key, value)| (format!("{}.{key}", family.name()), value));
        general.chain(of_family).collect()
    }

    fn n_kv_heads(&self) -> usize {
        self.raw.num_key_value_heads.unwrap_or(self.raw.num_attention_heads)
    }

    /// The tensors of the file, and where each comes from.
    pub(crate) fn tensors(&self, checkpoint: &Checkpoint, mix: Mix) -> Result<TensorPlan, ConvertError> {
        let Self { raw, head_dim, family, .. } = self;
        let (hidden, n_layers) = (raw.hidden_size, raw.num_hidden_layers);
        let (queries, keys) = (raw.num_attention_heads * head_dim, self.n_kv_heads() * head_dim);
        let is_tied = raw.tie_word_embeddings.unwrap_or(false) || checkpoint.get("lm_head.weight").is_none();
        let embedding = "model.embed_tokens.weight";
        let n_tokens = match checkpoint.get(embedding) {
            Some(stored) => stored.shape.first().copied().unwrap_or(0),
            None => return Err(ConvertError::MissingTensor { tensor: embedding.to_owned() }),
        };
        let mut plan = Plan { checkpoint, mix, n_layers, used: BTreeSet::new(), tensors: Vec::new() };
        let role = if is_tied { Role::Logits } else { Role::Matrix };
        plan.add(embedding, "token_embd.weight", &[n_tokens, hidden], role, 0)?;
        if let RopeScaling::Llama3 { .. } = self.rope_scaling {
            plan.add_numbers("rope_freqs.weight", self.rope_divisors());
        }
        // Queries and keys are stored with pairs that are half a head apart; some families want them beside each other.
        let pairs = match family.rope_layout() {
            RopeLayout::Interleaved => NonZeroUsize::new(*head_dim),
            RopeLayout::Half => None,
        };
        for layer in 0..n_layers {
            let from = |name: &str| format!("model.layers.{layer}.{name}");
            let to = |name: &str| format!("blk.{layer}.{name}");
            let attention = [
                ("q", Role::Matrix, queries, pairs),
                ("k", Role::Matrix, keys, pairs),
                ("v", Role::Value, keys, None),
            ];
            plan.add(
                &from("input_layernorm.weight"),
                &to("attn_norm.weight"),
                &[hidden],
                Role::Vector,
                layer,
            )?;
            for (name, role, n_out, pairs) in attention {
                let source = from(&format!("self_attn.{name}_proj"));
                let target = to(&format!("attn_{name}"));
                let (weight, bias) = (format!("{source}.weight"), format!("{source}.bias"));
                plan.add_heads(&weight, &format!("{target}.weight"), &[n_out, hidden], role, layer, pairs)?;
                if checkpoint.get(&bias).is_some() {
                    plan.add_heads(&bias, &format!("{target}.bias"), &[n_out], Role::Vector, layer, pairs)?;
                }
            }
            for name in ["q", "k"] {
                let source = from(&format!("self_attn.{name}_norm.weight"));
                if checkpoint.get(&source).is_some() {
                    plan.add(
                        &source,
                        &to(&format!("attn_{name}_norm.weight")),
                        &[*head_dim],
                        Role::Vector,
                        layer,
                    )?;
                }
            }
            let feed_forward = raw.intermediate_size;
            let rest: [(&str, &str, &[usize], Role); 5] = [
                ("self_attn.o_proj.weight", "attn_output.weight", &[hidden, queries], Role::Matrix),
                ("post_attention_layernorm.weight", "ffn_norm.weight", &[hidden], Role::Vector),
                ("mlp.gate_proj.weight", "ffn_gate.weight", &[feed_forward, hidden], Role::Matrix),
                ("mlp.up_proj.weight", "ffn_up.weight", &[feed_forward, hidden], Role::Matrix),
                ("mlp.down_proj.weight", "ffn_down.weight", &[hidden, feed_forward], Role::Down),
            ];
            for (source, target, shape, role) in rest {
                plan.add(&from(source), &to(target), shape, role, layer)?;
            }
        }
        plan.add("model.norm.weight", "output_norm.weight", &[hidden], Role::Vector, 0)?;
        if is_tied {
            // A copy of the embedding table, if it is there at all.
            plan.used.insert("lm_head.weight".to_owned());
        } else {
            plan.add("lm_head.weight", "output.weight", &[n_tokens, hidden], Role::Logits, 0)?;
        }
        let is_left = |name: &&str| {
            !plan.used.contains(*name) && !DERIVED.iter().any(|derived| name.ends_with(derived))
        };
        match checkpoint.names().find(is_left) {
            Some(tensor) => Err(ConvertError::UnknownTensor { tensor: tensor.to_owned() }),
            None => Ok(TensorPlan { tensors: plan.tensors, n_tokens }),
        }
    }

    /// What the frequency of each pair is divided by (Llama 3.1: `rope_type` `llama3` of its `config.json`).
    fn rope_divisors(&self) -> Vec<f32> {
        let RopeScaling::Llama3 { factor, low, high, original } = self.rope_scaling else {
            return Vec::new();
        };
        let n_pairs = self.head_dim / 2;
        let divisor = |i: usize| {
            let frequency = self.rope_base.powf(-(i as f64) / n_pairs as f64);
            let turns = original * frequency / std::f64::consts::TAU;
            if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..n_pairs).map(|i| divisor(i) as f32).collect()
    }
}

fn rope_scaling(path: &Path, rope: Option<&Value>) -> Result<RopeScaling, ConvertError> {
    let Some(rope) = rope.filter(|rope| !rope.is_null()) else { return Ok(RopeScaling::None) };
    let kind =
        rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &'static str| {
        let got = rope.get(key).and_then(Value::as_f64);
        got.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| ConvertError::Setting {
            path: path.to_owned(),
            key,
            bound: "a positive number of the rotary scaling",
            got: rope.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string),
        })
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")?,
        }),
        other => Err(ConvertError::Unsupported { what: format!("rotary scaling `{other}`") }),
    }
}

struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    mix: Mix,
    n_layers: usize,
    used: BTreeSet<String>,
    tensors: Vec<PlannedTensor>,
}

impl Plan<'_> {
    fn add(
        &mut self,
        source: &str,
        target: &str,
        shape: &[usize],
        role: Role,
        layer: usize,
    ) -> Result<(), ConvertError> {
        self.add_heads(source, target, shape, role, layer, None)
    }

    fn add_heads(
        &mut self,
        source: &str,
        target: &str,
        shape: &[usize],
        role: Role,
        layer: usize,
        head_rows: Option<NonZeroUsize>,
    ) -> Result<(), ConvertError> {
        let Some(stored) = self.checkpoint.get(source) else {
            return Err(ConvertError::MissingTensor { tensor: source.to_owned() });
        };
        let stored: Stored = stored.clone();
        if stored.shape != shape || shape.contains(&0) {
            let (tensor, expected) = (source.to_owned(), format!("{shape:?}"));
            return Err(ConvertError::Shape { tensor, expected, got: stored.shape });
        }
        let tensor_type = self.mix.tensor_type(role, (layer, self.n_layers), stored.width());
        let description = TensorDescription { name: target.to_owned(), shape: shape.to_vec(), tensor_type };
        self.used.insert(source.to_owned());
        let source = Source::Stored { name: source.to_owned(), stored, head_rows };
        self.tensors.push(PlannedTensor { description, source });
        Ok(())
    }

    fn add_numbers(&mut self, target: &str, numbers: Vec<f32>) {
        let (name, shape) = (target.to_owned(), vec![numbers.len()]);
        let description = TensorDescription { name, shape, tensor_type: TensorType::F32 };
        self.tensors.push(PlannedTensor { description, source: Source::Numbers(numbers) });
    }
}
