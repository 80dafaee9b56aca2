//! SAT adapters: what a frozen model needs to run semantic adaptive tokens.

pub(crate) mod tensors;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use speculate::{MarkovHead, N_RANKED};

use crate::ModelError;
use crate::adapter::tensors::AdapterTensors;
use crate::architecture::{Architecture, RopeLayout};
use crate::backend::DRAFT_VOCABULARY;
use crate::gguf::{GgufError, GgufFile, MetadataValue};

/// Largest adapter file in bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Largest number of slots in a group.
pub(crate) const MAX_SLOTS: usize = 32;
/// Largest rank of a delta.
pub(crate) const MAX_RANK: usize = 1024;

/// The linear layers a delta applies to, in the order of [`LayerDeltas`].
pub(crate) const LINEARS: [&str; 7] = ["q", "k", "v", "o", "gate", "up", "down"];

/// One low-rank delta, `y += (x A) B`.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    /// `[n_in, rank]`
    pub(crate) a: Vec<f32>,
    /// `[rank, n_out]`
    pub(crate) b: Vec<f32>,
}

/// Deltas of one layer, in the order of [`LINEARS`].
pub(crate) type LayerDeltas = [Delta; LINEARS.len()];

/// A checkpoint whose vocabulary has semantic adaptive tokens: an id that is repeated for every slot of a group, as
/// published (SDSAT, arXiv 2403.18647), or one for each. They are never tokens of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeSat {
    /// The id, or the first of them.
    pub token: u32,
    /// Slots of a group.
    pub n_slots: usize,
    /// Which ids its slots have.
    pub ids: SlotIds,
}

/// Which ids the slots of a group have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotIds {
    /// One and the same.
    Shared,
    /// One behind the other, at most [`MAX_IDS`](NativeSat::MAX_IDS).
    Consecutive,
}

impl NativeSat {
    /// The id, how many slots make a group, and how many ids they have: one where nothing is said.
    const TOKEN_KEY: &str = "sateen.sat.token_id";
    const SLOTS_KEY: &str = "sateen.sat.n_tokens";
    const IDS_KEY: &str = "sateen.sat.n_ids";

    /// So many ids may be no tokens of a text that the best of the ranked ones is always a token.
    pub const MAX_IDS: usize = N_RANKED - 1;

    /// One whose slots share the id `token`.
    pub const fn shared(token: u32, n_slots: usize) -> Self {
        Self { token, n_slots, ids: SlotIds::Shared }
    }

    /// The ids of its slots.
    pub fn tokens(self) -> std::ops::Range<u32> {
        let n = match self.ids {
            SlotIds::Shared => 1,
            SlotIds::Consecutive => self.n_slots as u32,
        };
        self.token..self.token.saturating_add(n)
    }

    /// What a file says of it.
    pub fn metadata(self) -> [(String, MetadataValue); 3] {
        let n_ids = self.tokens().len() as u32;
        [(Self::TOKEN_KEY, self.token), (Self::SLOTS_KEY, self.n_slots as u32), (Self::IDS_KEY, n_ids)]
            .map(|(key, value)| (key.to_owned(), MetadataValue::U32(value)))
    }

    /// What the metadata of a file says of it.
    ///
    /// # Errors
    /// When an id is not one of the vocabulary, or the group too large.
    pub fn from_gguf(file: &GgufFile, architecture: &Architecture) -> Result<Option<Self>, ModelError> {
        if !file.has(Self::TOKEN_KEY) {
            return Ok(None);
        }
        let out_of_range = |key: &str, range, got: usize| GgufError::OutOfRange {
            key: key.to_owned(),
            range,
            got: got.to_string(),
        };
        let within = |key: &str, max: usize, range| match file.count(key)? {
            got if (1..=max).contains(&got) => Ok(got),
            got => Err(out_of_range(key, range, got)),
        };
        let n_slots = within(Self::SLOTS_KEY, MAX_SLOTS, "from 1 to 32")?;
        let n_ids = if file.has(Self::IDS_KEY) { file.count(Self::IDS_KEY)? } else { 1 };
        let ids = match n_ids {
            1 => SlotIds::Shared,
            _ if n_ids == n_slots && n_ids <= Self::MAX_IDS => SlotIds::Consecutive,
            _ => {
                let range = "1, or one for each slot and at most 7";
                return Err(out_of_range(Self::IDS_KEY, range, n_ids).into());
            }
        };
        // The first of a vocabulary is a token in any case.
        let last = architecture.vocabulary.saturating_sub(n_ids);
        let token = within(Self::TOKEN_KEY, last, "a token of the vocabulary, and not the first")? as u32;
        Ok(Some(Self { token, n_slots, ids }))
    }
}

/// Where an adapter comes from.
#[derive(Clone, Debug)]
pub enum AdapterSource {
    /// A safetensors file.
    File(PathBuf),
    /// The content of one, shipped inside the program.
    BuiltIn(&'static [u8]),
}

/// An adapter: embeddings of the semantic adaptive tokens, and deltas that apply to their rows.
#[derive(Clone, Debug)]
pub struct SatAdapter {
    /// `[k, hidden]`, f32.
    pub(crate) embedding: Vec<f32>,
    /// None where embeddings are all that it is (rank 0).
    pub(crate) layers: Vec<LayerDeltas>,
    pub(crate) rank: usize,
    /// What says how the drafts of slots depend on each other, where that was trained.
    pub(crate) markov_head: Option<Arc<MarkovHead>>,
    /// The token that ends a text, where slots draft it although it is none of the first [`DRAFT_VOCABULARY`].
    pub(crate) end: Option<u32>,
    n_slots: usize,
    base_sha256: String,
}

fn mismatch(what: impl Into<String>, expected: impl ToString, got: impl ToString) -> ModelError {
    ModelError::AdapterMismatch { what: what.into(), expected: expected.to_string(), got: got.to_string() }
}

impl SatAdapter {
    /// Largest number of slots in a group.
    pub const MAX_SLOTS: usize = MAX_SLOTS;
    /// Largest rank of a delta.
    pub const MAX_RANK: usize = MAX_RANK;
    /// Names of the factors of a Markov head: of the token before, and of the token that is drafted; `[n_tokens, rank]` each, of
    /// the first tokens of the vocabulary.
    pub const MARKOV: [&str; 2] = ["markov.before", "markov.after"];
    /// What the metadata call the token that ends a text, of an adapter whose slots draft it beside the first
    /// [`DRAFT_VOCABULARY`] tokens; its factors in a Markov head stand behind theirs.
    pub const END: &str = "end";
    /// Names of what the trainer made them from, `[hidden, rank]` each, for who goes on from them: of embeddings, and of rows
    /// of the output layer.
    pub const MARKOV_PROJECTIONS: [&str; 2] = ["markov.before.projection", "markov.after.projection"];

    /// Reads the adapter in `source` and checks that it fits `architecture`.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`] and [`ModelError::AdapterMismatch`].
    pub fn load(source: &AdapterSource, architecture: &Architecture) -> Result<Self, ModelError> {
        match source {
            AdapterSource::BuiltIn(bytes) => Self::parse(bytes, "(built in)".as_ref(), architecture),
            AdapterSource::File(path) => Self::parse(&Self::read(path)?, path, architecture),
        }
    }

    /// The bytes of the file at `path`, which may be an adapter: a regular file of a bounded size.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`].
    pub fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
        let refuse = |reason: String| ModelError::AdapterFile { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("not a regular file".to_owned()));
        }
        let n_bytes = metadata.len();
        if n_bytes > MAX_FILE_BYTES {
            return Err(refuse(format!("it holds {n_bytes} bytes, at most {MAX_FILE_BYTES} are read")));
        }
        std::fs::read(path).map_err(|error| refuse(error.to_string()))
    }

    /// The linear layers that deltas apply to, in their order: name in the file, inputs, outputs.
    pub fn linears(architecture: &Architecture) -> [(&'static str, usize, usize); LINEARS.len()] {
        let Architecture { hidden, feed_forward, .. } = *architecture;
        let (query, kv) = (architecture.query_width(), architecture.kv_width());
        let widths = [
            (hidden, query),
            (hidden, kv),
            (hidden, kv),
            (query, hidden),
            (hidden, feed_forward),
            (hidden, feed_forward),
            (feed_forward, hidden),
        ];
        std::array::from_fn(|idx| (LINEARS[idx], widths[idx].0, widths[idx].1))
    }

    /// SHA-256 of the weight file that the adapter in `bytes` was trained for, in hexadecimal;
    /// `None` when it does not say.
    pub fn base_of(bytes: &[u8]) -> Option<String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
        metadata.metadata().as_ref()?.get("base_sha256").cloned()
    }

    /// Reads the adapter in `bytes`, which `path` names in errors.
    ///
    /// # Errors
    /// [`ModelError::AdapterFile`] and [`ModelError::AdapterMismatch`].
    pub fn parse(bytes: &[u8], path: &Path, architecture: &Architecture) -> Result<Self, ModelError> {
        let tensors = AdapterTensors::new(bytes, path)?;
        let refuse = |reason: String| ModelError::AdapterFile { path: path.to_owned(), reason };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| refuse(error.to_string()))?;
        let notes = metadata.metadata().clone().unwrap_or_default();
        let note = |key: &str| notes.get(key).map(String::as_str).unwrap_or_default();
        let number = |key: &str, min: usize, max: usize| match note(key).parse::<usize>() {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(mismatch(key, format!("from {min} to {max}"), format!("`{}`", note(key)))),
        };
        let n_slots = number("k", 1, MAX_SLOTS)?;
        let rank = number("rank", 0, MAX_RANK)?;
        let rope = match architecture.rope_layout {
            RopeLayout::Interleaved => "interleaved",
            RopeLayout::Half => "half",
        };
        if note("rope") != rope {
            return Err(mismatch("rope", rope, note("rope")));
        }

        let vocabulary = architecture.vocabulary;
        let end = match notes.get(Self::END).map(|end| (end, end.parse::<u32>())) {
            None => None,
            Some((_, Ok(end))) if (DRAFT_VOCABULARY..vocabulary).contains(&(end as usize)) => Some(end),
            Some((end, _)) => {
                let expected = format!("from {DRAFT_VOCABULARY} to {vocabulary}, that not among them");
                return Err(mismatch(Self::END, expected, format!("`{end}`")));
            }
        };

        let floats = |name: &str, shape: [usize; 2]| tensors.of_shape(name, &shape);
        let Architecture { n_layers, hidden, .. } = *architecture;
        let embedding = floats("sat.embedding", [n_slots, hidden])?;
        let n_with_deltas = if rank == 0 { 0 } else { n_layers };
        let mut layers = Vec::with_capacity(n_with_deltas);
        for layer in 0..n_with_deltas {
            let delta = |(short, n_in, n_out): (&str, usize, usize)| -> Result<Delta, ModelError> {
                let name = format!("layers.{layer}.{short}");
                let a = floats(&format!("{name}.lora_a"), [n_in, rank])?;
                let b = floats(&format!("{name}.lora_b"), [rank, n_out])?;
                Ok(Delta { a, b })
            };
            let [q, k, v, o, gate, up, down] = Self::linears(architecture);
            layers.push([delta(q)?, delta(k)?, delta(v)?, delta(o)?, delta(gate)?, delta(up)?, delta(down)?]);
        }
        let [before, after] = Self::MARKOV;
        let has_markov_head = [before, after].iter().any(|name| tensors.has(name));
        let markov_head = if has_markov_head {
            let shape = tensors.shape(before)?;
            let fits = |n: usize, max: usize| (1..=max).contains(&n);
            let &[n_tokens, rank] = &shape[..] else {
                return Err(mismatch(format!("shape of {before}"), "two sizes", format!("{shape:?}")));
            };
            if !fits(n_tokens, vocabulary) || !fits(rank, MAX_RANK) {
                let expected = format!("at most [{vocabulary}, {MAX_RANK}]");
                return Err(mismatch(format!("shape of {before}"), expected, format!("{shape:?}")));
            }
            let n_drafted = n_tokens + usize::from(end.is_some());
            let [before, after] = [floats(before, [n_tokens, rank])?, floats(after, [n_drafted, rank])?];
            for name in Self::MARKOV_PROJECTIONS.iter().filter(|name| tensors.has(name)) {
                floats(name, [hidden, rank])?;
            }
            Some(Arc::new(MarkovHead::new(rank, &before, &after, end)))
        } else {
            None
        };
        let of_markov_head = Self::MARKOV.iter().chain(&Self::MARKOV_PROJECTIONS);
        let n_of_markov_head = of_markov_head.filter(|name| tensors.has(name)).count();
        let n_expected = 1 + n_with_deltas * 2 * LINEARS.len() + n_of_markov_head;
        if tensors.len() != n_expected {
            return Err(mismatch("number of tensors", n_expected, tensors.len()));
        }
        let base_sha256 = note("base_sha256").to_owned();
        Ok(Self { embedding, layers, rank, markov_head, end, n_slots, base_sha256 })
    }

    /// Number of semantic adaptive tokens in a group.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// What its slots are embedded as, `[n_slots, hidden]`.
    pub fn embedding(&self) -> &[f32] {
        &self.embedding
    }

    /// Whether it has a low-rank delta on each linear layer.
    pub fn has_deltas(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Whether a draft of its depends on the token before.
    pub fn has_markov_head(&self) -> bool {
        self.markov_head.is_some()
    }

    /// SHA-256 of the weight file that the adapter was trained for, in hexadecimal.
    pub fn base_sha256(&self) -> &str {
        &self.base_sha256
    }
}
