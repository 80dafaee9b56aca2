//! The one error of this crate.

use std::path::PathBuf;

use crate::gguf::{GgufError, TensorType};
use crate::tokenizer::TokenizerError;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum ModelError {
    #[error("a random model must have {what}. Given: {got}")]
    RandomModel { what: &'static str, got: usize },
    #[error("{}: {source}", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("the metadata: {0}")]
    Metadata(#[from] GgufError),
    #[error("the tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("the architecture `{got}` is not supported; `llama`, `qwen2`, `qwen3` and `granite` are")]
    UnsupportedArchitecture { got: String },
    #[error("this model needs {feature}, which is not supported")]
    UnsupportedFeature { feature: String },
    #[error("tensor `{tensor}` is missing")]
    MissingTensor { tensor: String },
    #[error("tensor `{tensor}` is not part of a {family} model")]
    UnexpectedTensor { tensor: String, family: &'static str },
    #[error("tensor `{tensor}` must have shape {expected:?}. Given: {got:?}")]
    TensorShape { tensor: String, expected: Vec<usize>, got: Vec<usize> },
    #[error("tensor `{tensor}` must have type {expected}. Given: {got:?}")]
    TensorType { tensor: String, expected: &'static str, got: TensorType },
    #[error("tensor `{tensor}` holds a value that is not finite")]
    NotFinite { tensor: String },
    #[error("cannot read the adapter {}: {reason}", path.display())]
    AdapterFile { path: PathBuf, reason: String },
    #[error("the adapter's `{what}` must be {expected}. Given: {got}")]
    AdapterMismatch { what: String, expected: String, got: String },
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    TokenOutsideVocabulary { token: u32, vocabulary: usize },
    #[error("adaptive slot {slot} is outside the adapter's {n_slots}")]
    SlotOutsideAdapter { slot: usize, n_slots: usize },
    #[error("the context holds {capacity} rows. Needed: {needed}")]
    ContextFull { capacity: usize, needed: usize },
    #[error("a plan starts at row {planned} of the cache, which holds {committed}")]
    PlanOutOfStep { planned: usize, committed: usize },
    #[error("the work was given up")]
    Cancelled,
    #[error("a layout contradicts the {committed} rows of the cache")]
    LayoutOutOfStep { committed: usize },
    #[error(transparent)]
    Gpu(gpu::GpuError),
    #[error(
        "{device} gives a row other numbers when it is computed among others, so it cannot decode exactly"
    )]
    VaryingRows { device: String },
    #[error("a sequence of another model has nothing to copy from")]
    OtherModel,
    #[error("reading tensor `{tensor}`: {source}")]
    Read { tensor: String, source: std::io::Error },
    #[error("{n_bytes} bytes of memory for {what} cannot be had")]
    NoMemory { what: String, n_bytes: usize },
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

impl ModelError {
    /// What the kernels said of `what`.
    pub(crate) fn of_kernel(what: &str, error: kernels::KernelError) -> Self {
        let what = what.to_owned();
        match error {
            kernels::KernelError::OutOfMemory { n_bytes } => Self::NoMemory { what, n_bytes },
            kernels::KernelError::Read(source) => Self::Read { tensor: what, source },
            // All that is left.
            _ => Self::NotFinite { tensor: what },
        }
    }
}
