//! Errors as the window gets them.

use documents::DocumentError;
use engine::{EngineError, ErrorCode};
use serde::Serialize;
use ts_rs::TS;

/// A stable code to switch on, and words for a person.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub struct CommandError {
    /// What to switch on.
    pub code: ErrorCode,
    /// What to show.
    pub message: String,
}

impl CommandError {
    /// Something was asked for that cannot be, with the reason.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::InvalidRequest, message: message.into() }
    }

    /// The system refused something.
    pub fn io(error: &dyn std::error::Error) -> Self {
        Self { code: ErrorCode::Io, message: error.to_string() }
    }
}

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}

impl From<DocumentError> for CommandError {
    fn from(error: DocumentError) -> Self {
        let code = match &error {
            DocumentError::Io { path, source } => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                EngineError::Io { path: path.clone(), source }.code()
            }
            DocumentError::Changed { .. } => ErrorCode::Conflict,
            _ => ErrorCode::InvalidRequest,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<settings::SettingsError> for CommandError {
    fn from(error: settings::SettingsError) -> Self {
        match error {
            settings::SettingsError::Io { .. } => Self::io(&error),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl From<clipboard::ClipboardError> for CommandError {
    fn from(error: clipboard::ClipboardError) -> Self {
        Self::io(&error)
    }
}

impl From<history::HistoryError> for CommandError {
    fn from(error: history::HistoryError) -> Self {
        Self::io(&error)
    }
}

/// What a window is answered.
pub type CommandResult<T> = Result<T, CommandError>;
