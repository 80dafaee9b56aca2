//! The errors of this crate.

use std::path::PathBuf;

use model::{ModelError, TokenizerError};

/// Why training cannot begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are; sources say the rest.
pub enum TrainError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    #[error("a step cannot be computed")]
    Compute(#[from] candle_core::Error),
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error(
        "this program trains on the processor alone; one built with `--features cuda` can use NVIDIA's GPUs"
    )]
    NoCuda,
    #[error(
        "models that scale their logits (Granite) cannot be trained themselves; an adapter can be trained for them"
    )]
    ScaledLogits,
    #[error("the GPU: {0}")]
    Gpu(String),
    #[error("{needed} bytes of memory are needed to train this model, {available} are free")]
    NoMemory { needed: u64, available: u64 },
    #[error("{} holds {got} usable texts, at least {bound} are needed", path.display())]
    TooLittleText { path: PathBuf, got: usize, bound: usize },
    #[error("`{field}` must be {bound}. Given: {got}")]
    OutOfRange { field: &'static str, bound: &'static str, got: String },
    #[error("{} is for another model: its weights have the SHA-256 {got}, these {expected}", path.display())]
    OtherBase { path: PathBuf, expected: String, got: String },
    #[error("{} is of another run: {what} is {got} there and {expected} here", path.display())]
    OtherRun { path: PathBuf, what: &'static str, expected: String, got: String },
    #[error("nothing would learn: the adapter has no Markov head, and none was asked for")]
    NothingLearns,
    #[error("{} is there already; remove it, or name another file", path.display())]
    Exists { path: PathBuf },
    #[error("the loss of step {step} is not a number; a smaller learning rate may help")]
    NotANumber { step: usize },
}

impl TrainError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn unreadable(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Unreadable { path: path.into(), reason: reason.to_string() }
    }
}
