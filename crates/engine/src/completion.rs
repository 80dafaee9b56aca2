//! What is asked of the engine, and what it answers.

use serde::{Deserialize, Serialize};
use speculate::SamplingParams;
use ts_rs::TS;

use crate::{ContextFile, EngineError, Extent, PromptBudget};

/// Largest number of tokens in a completion.
pub(crate) const MAX_TOKENS: usize = 4096;
/// Largest number of stop strings.
pub(crate) const MAX_STOP_STRINGS: usize = 16;
/// Largest stop string in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 256;
/// Largest text before or after the cursor in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 16 << 20;

/// Largest size of the other open files together, in bytes.
pub(crate) const MAX_OTHER_BYTES: usize = 1 << 20;
/// Longest path, and longest name of a repository, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1024;
/// Most completions besides the first: as many likely tokens are known after a row.
pub(crate) const MAX_ALTERNATIVES: usize = speculate::N_RANKED - 1;

/// How to decode. The text is the same in every way; only the time differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum Speculation {
    /// One token per forward pass.
    Off,
    /// SDSAT as published: one pass drafts with semantic adaptive tokens, the next verifies.
    Sdsat,
    /// Semantic adaptive tokens that draft in the pass that verifies, as trees.
    Fused,
    /// Prompt lookup, the plain baseline.
    Lookup,
    /// Drafters that cost no forward pass: suffixes, other files, token recycling, phrases.
    Free,
    /// All drafters, as wide as this device gains from, and ordinary decoding where nothing gains.
    #[default]
    Auto,
}

impl Speculation {
    /// All ways.
    pub const ALL: [Self; 6] = [Self::Off, Self::Sdsat, Self::Fused, Self::Lookup, Self::Free, Self::Auto];

    /// Its name in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Sdsat => "sdsat",
            Self::Fused => "fused",
            Self::Lookup => "lookup",
            Self::Free => "free",
            Self::Auto => "auto",
        }
    }
}

/// A request for the text between `prefix` and `suffix`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// Text before the cursor.
    pub prefix: String,
    /// Text after the cursor.
    pub suffix: String,
    /// Path of the file, from the root of its repository: the model is told.
    pub path: Option<String>,
    /// Name of the repository.
    pub repository: String,
    /// Other open files. What is like the text at the cursor becomes part of the prompt, as far as the budget
    /// goes; all of them are drafted from.
    pub other_files: Vec<ContextFile>,
    /// Places that were edited lately, the latest first: part of the prompt whatever they are like.
    pub recent_edits: Vec<ContextFile>,
    /// How much of all this the model is told.
    pub budget: PromptBudget,
    /// Where the completion ends.
    pub extent: Extent,
    /// Completions that begin otherwise, besides the first; they share its prefill.
    pub n_alternatives: usize,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the completion; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// How to decode.
    pub speculation: Speculation,
}

impl CompletionRequest {
    /// A greedy request for at most 64 tokens.
    pub fn new(prefix: impl Into<String>, suffix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            suffix: suffix.into(),
            path: None,
            repository: String::new(),
            other_files: Vec::new(),
            recent_edits: Vec::new(),
            budget: PromptBudget::default(),
            extent: Extent::default(),
            n_alternatives: 0,
            max_tokens: 64,
            stop: Vec::new(),
            sampling: SamplingParams::default(),
            speculation: Speculation::default(),
        }
    }

    /// Checks the limits of every field but the sampling parameters, which the sampler checks.
    ///
    /// # Errors
    /// [`EngineError::InvalidRequest`].
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let check = |field, ok: bool, bound: String, got: String| {
            if ok { Ok(()) } else { Err(EngineError::InvalidRequest { field, bound, got }) }
        };
        let (n, bound) = (self.max_tokens, format!("from 1 to {MAX_TOKENS}"));
        check("max_tokens", (1..=MAX_TOKENS).contains(&n), bound, n.to_string())?;
        let (n, bound) = (self.stop.len(), format!("at most {MAX_STOP_STRINGS} strings"));
        check("stop", n <= MAX_STOP_STRINGS, bound, n.to_string())?;
        for stop in &self.stop {
            let bound = format!("strings of 1 to {MAX_STOP_BYTES} bytes");
            check(
                "stop",
                (1..=MAX_STOP_BYTES).contains(&stop.len()),
                bound,
                format!("{} bytes", stop.len()),
            )?;
        }
        let n_bytes =
            |files: &[ContextFile]| files.iter().map(|file| file.text.len() + file.path.len()).sum::<usize>();
        for (field, files) in [("other_files", &self.other_files), ("recent_edits", &self.recent_edits)] {
            let (n, bound) = (n_bytes(files), format!("at most {MAX_OTHER_BYTES} bytes together"));
            check(field, n <= MAX_OTHER_BYTES, bound, format!("{n} bytes"))?;
        }
        for (field, name) in
            [("path", self.path.as_deref().unwrap_or_default()), ("repository", &self.repository)]
        {
            let bound = format!("at most {MAX_NAME_BYTES} bytes");
            check(field, name.len() <= MAX_NAME_BYTES, bound, format!("{} bytes", name.len()))?;
        }
        let (n, bound) = (self.n_alternatives, format!("at most {MAX_ALTERNATIVES}"));
        check("n_alternatives", n <= MAX_ALTERNATIVES, bound, n.to_string())?;
        for (field, text) in [("prefix", &self.prefix), ("suffix", &self.suffix)] {
            let bound = format!("at most {MAX_TEXT_BYTES} bytes");
            check(field, text.len() <= MAX_TEXT_BYTES, bound, format!("{} bytes", text.len()))?;
        }
        Ok(())
    }
}

/// Text that arrived together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether it comes from accepted drafts.
    pub drafted: bool,
}

/// What a forward pass brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct StepEvent {
    /// New text, in order. It may be empty: part of a character, or what may become a stop string.
    pub pieces: Vec<Piece>,
    /// Drafts that the pass verified.
    pub n_drafted: usize,
    /// Drafts among them that were accepted.
    pub n_accepted: usize,
    /// Rows of the pass, those of the prompt included.
    pub n_rows: usize,
    /// Why the pass was as wide as it was, where that was weighed.
    pub explanation: Option<String>,
}

impl StepEvent {
    /// Adds what the pass after this one brought.
    pub(crate) fn append(&mut self, next: Self) {
        for piece in next.pieces {
            match self.pieces.last_mut() {
                Some(last) if last.drafted == piece.drafted => last.text.push_str(&piece.text),
                _ => self.pieces.push(piece),
            }
        }
        self.n_drafted += next.n_drafted;
        self.n_accepted += next.n_accepted;
        self.n_rows += next.n_rows;
        self.explanation = next.explanation.or(self.explanation.take());
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum StopReason {
    /// The model ended the text.
    EndOfText,
    /// The request's limit of tokens.
    MaxTokens,
    /// A stop string.
    StopString,
    /// The completion reached the text that already follows the cursor.
    FollowingText,
    /// The end of the line, for a cursor within one.
    EndOfLine,
    /// The end of the block.
    EndOfBlock,
    /// The same text again and again.
    Repetition,
    /// The model's context is full.
    ContextLimit,
}

/// A completion and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct Completion {
    /// The text to insert at the cursor.
    pub text: String,
    /// Tokens decided, a final end-of-text token included.
    pub n_tokens: usize,
    /// Forward passes of the decode loop.
    pub n_steps: usize,
    /// Drafts verified.
    pub n_drafted: usize,
    /// Drafts accepted.
    pub n_accepted: usize,
    /// Share of drafts accepted at each place of a draft: of those verified there, how many were
    /// accepted.
    pub accepted_per_slot: Vec<f64>,
    /// Drafts verified at each place of a draft.
    pub drafted_per_slot: Vec<usize>,
    /// Tokens per forward pass: `n_tokens / n_steps`.
    pub mean_accepted_tokens: f64,
    /// Rows per forward pass, of which one is the pending token.
    pub mean_rows: f64,
    /// Accepted drafts by the drafter that was surest of them.
    pub accepted_by_drafter: Vec<AcceptedDrafts>,
    /// From the request to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Tokens per second after the first step, which computes the end of the prompt too; 0 when that was
    /// the only one.
    pub tokens_per_s: f64,
    /// From the request to the end, in milliseconds.
    pub total_ms: f64,
    /// Tokens of the prompt.
    pub n_prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub n_reused_tokens: usize,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Other completions of the same place, without those that say the same.
    pub alternatives: Vec<String>,
    /// The tokens themselves.
    #[serde(skip)]
    #[ts(skip)]
    pub tokens: Vec<u32>,
}

/// The share of a drafter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct AcceptedDrafts {
    /// Its name: `sat`, `suffix`, `corpus`, `recycling`, `phrases` or `lookup`.
    pub drafter: String,
    /// Drafts that were accepted.
    pub n_accepted: usize,
}

/// How a request ended, if it did not fail.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran to its end.
    Ended(Box<Completion>),
    /// A newer request of the same client took its place.
    Superseded,
    /// It was cancelled.
    Cancelled,
}
