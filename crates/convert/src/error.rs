//! The errors of this crate.

use std::path::{Path, PathBuf};

use model::{ModelError, TokenizerError};

/// Why a checkpoint cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are; sources say the rest.
pub enum ConvertError {
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is there already; remove it, or name another file", path.display())]
    Exists { path: PathBuf },
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("`{key}` of {} must be {bound}. There: {got}", path.display())]
    Setting { path: PathBuf, key: &'static str, bound: &'static str, got: String },
    #[error("{what} is not supported")]
    Unsupported { what: String },
    #[error("{} has no safetensors file", folder.display())]
    NoWeights { folder: PathBuf },
    #[error("the checkpoint lacks the tensor `{tensor}`")]
    MissingTensor { tensor: String },
    #[error("nobody knows what the tensor `{tensor}` is for")]
    UnknownTensor { tensor: String },
    #[error("the tensor `{tensor}` has the shape {got:?}, not {expected}")]
    Shape { tensor: String, expected: String, got: Vec<usize> },
    #[error("the tensor `{tensor}` has a value that is no number")]
    NotFinite { tensor: String },
    #[error("{} has neither `tokenizer.model` nor `tokenizer.json`", folder.display())]
    NoVocabulary { folder: PathBuf },
    #[error("no tokenizer here splits text as {} does", path.display())]
    UnknownTokenizer { path: PathBuf },
    #[error("{} belongs to another model: to the file with the SHA-256 {expected}, not {got}", path.display())]
    OtherBase { path: PathBuf, expected: String, got: String },
    #[error("{} cannot be merged: {reason}", path.display())]
    NotMergeable { path: PathBuf, reason: &'static str },
    #[error("the vocabulary has no room for the adaptive token {token}: {reason}")]
    TakenToken { token: u32, reason: String },
    #[error("quantizing")]
    Quantize(#[from] candle_core::Error),
    #[error("what was written cannot be used")]
    Model(#[from] ModelError),
    /// It names the file itself, or what does not fit the model.
    #[error("the adapter")]
    Adapter(#[source] ModelError),
    #[error("the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    #[error("cancelled")]
    Cancelled,
}

impl ConvertError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn unreadable(path: &Path, reason: impl ToString) -> Self {
        Self::Unreadable { path: path.to_owned(), reason: reason.to_string() }
    }
}
