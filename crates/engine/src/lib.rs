//! Completions: prompts, sessions, the decode loop, stop rules, the catalogue of models.
//!
//! The principal type is [`Engine`], a thread that owns one model and shares its forward passes among the
//! requests of several clients. The command line, the app and every other way in call the same
//! functions, so no feature exists in one of them only.

#![forbid(unsafe_code)]

mod adapters;
mod cancel;
mod catalog;
mod completion;
mod context;
mod cost;
mod device;
mod drafting;
mod engine;
mod error;
mod generation;
mod install;
mod learned;
mod library;
mod likelihood;
mod measure;
mod memory;
mod output;
mod prompt;
mod recommend;
mod run;
mod sequences;
mod session;
mod syntax;

pub use adapters::{AdapterChoice, InstalledAdapter};
pub use cancel::CancelToken;
pub use catalog::{Catalog, CatalogEntry, HubFile, ModelSource, Part};
pub use completion::{
    AcceptedDrafts, Completion, CompletionRequest, Outcome, Piece, Speculation, StepEvent, StopReason,
};
pub use context::{ContextFile, PromptBudget};
pub use cost::{CostTable, PassCost, PassTimer, PrefillCost, Roofline, measure_cost, measure_pass_costs};
pub use device::{DeviceChoice, DeviceChoiceError, FoundDevice, found_devices};
pub use engine::{Engine, EngineConfig, EngineState, Event, LoadedModel, Priority, Submission};
pub use error::{EngineError, ErrorCode};
pub use install::{
    HubClient, InstallProgress, InstallStage, ModelSources, PackageClient, extract_part, install,
};
pub use library::{AdaptiveTokens, AddMode, InstalledModel, LibraryListing, ModelLibrary};
pub use likelihood::{Likelihood, likelihood_in_windows};
pub use measure::{SpeedMeasurement, measure_speed};
pub use memory::{MemoryNeeded, available_memory};
pub use model::gguf::TensorType;
pub use model::{CacheType, Family, Model, NativeSat, RandomModelConfig, write_random_model};
pub use output::{Extent, shown_text};
pub use prompt::{Prompt, PromptFormat, SuffixVisibility, byte_offset};
pub use recommend::{FIRST_TEXT_BUDGET_MS, ModelPace, Recommendation, recommend};
pub use session::{Session, SessionConfig};
pub use speculate::{PassCosts, PublishedTree, SamplingParams};
