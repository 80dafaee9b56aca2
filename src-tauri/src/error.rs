//! Errors as the window gets them.

use engine::{EngineError, ErrorCode};
use serde::Serialize;
use ts_rs::TS;

/// A stable code to switch on, and words for a person.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct CommandError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

impl From<EngineError> for CommandError {
    fn from(error: EngineError) -> Self {
        Self { code: error.code(), message: error.to_string() }
    }
}
