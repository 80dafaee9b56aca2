//! Completions: prompts, sessions, the decode loop, stop rules, the catalogue of models.
//!
//! The principal type is [`Engine`], a thread that owns one model and answers one request at a
//! time, the newest first. The command line, the app and every other way in call the same
//! functions, so no feature exists in one of them only.

mod adapters;
mod cancel;
mod catalog;
mod completion;
mod cost;
mod decode;
mod engine;
mod error;
mod install;
mod library;
mod output;
mod prompt;

pub use cancel::CancelToken;
pub use catalog::{Catalog, CatalogEntry, Part};
pub use completion::{Completion, CompletionRequest, Outcome, Piece, Speculation, StepEvent, StopReason};
pub use cost::{CostTable, PassCost, PrefillCost, measure_cost};
pub use decode::Session;
pub use engine::{Engine, EngineConfig, EngineState, LoadedModel};
pub use error::{EngineError, ErrorCode};
pub use install::{InstallProgress, InstallStage, PackageClient, install};
pub use library::{AddMode, InstalledModel, LibraryListing, ModelLibrary};
pub use prompt::{PromptBudget, PromptFormat, byte_offset};
pub use speculate::SamplingParams;
