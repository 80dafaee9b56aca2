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
mod drafting;
mod engine;
mod error;
mod install;
mod learned;
mod library;
mod output;
mod prompt;
mod run;
mod sequences;
mod session;

pub use cancel::CancelToken;
pub use catalog::{Catalog, CatalogEntry, Part};
pub use completion::{
    AcceptedDrafts, Completion, CompletionRequest, Outcome, Piece, Speculation, StepEvent, StopReason,
};
pub use cost::{CostTable, PassCost, PassTimer, PrefillCost, Roofline, measure_cost, measure_pass_costs};
pub use engine::{Engine, EngineConfig, EngineState, LoadedModel};
pub use error::{EngineError, ErrorCode};
pub use install::{InstallProgress, InstallStage, PackageClient, install};
pub use library::{AddMode, InstalledModel, LibraryListing, ModelLibrary};
pub use model::gguf::TensorType;
pub use model::{Family, Model, RandomModelConfig, write_random_model};
pub use prompt::{PromptBudget, PromptFormat, byte_offset};
pub use session::{Session, SessionConfig};
pub use speculate::{PassCosts, PublishedTree, SamplingParams};
