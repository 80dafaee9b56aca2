//! What is behind the windows, without a window system: whatever draws them hands requests to an [`Application`] and
//! gets states, documents and events of completions back.

#![forbid(unsafe_code)]

mod clipboard_completion;
mod completion;
mod error;
mod files;
mod models;
mod state;

pub use clipboard_completion::{ClipboardCompletion, PopupContent};
pub use completion::{Begun, CompleteArguments, CompletionEvent};
pub use error::{CommandError, CommandResult};
pub use files::{DocumentEvent, RestoredDraft};
pub use models::{InstalledEntry, ModelList};
pub use state::{Application, ApplicationConfig, ApplicationState, Client, lock};

#[cfg(test)]
mod tests;
