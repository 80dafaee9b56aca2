//! What a user has chosen: one file that the window writes and the command line reads.
//!
//! [`SettingsFile`] reads it, changes one setting at a time, and never loses what it does not know. A file that
//! cannot be read is set aside, and a value that is none of its setting's counts as not chosen; either is said.

#![forbid(unsafe_code)]

mod file;
mod folders;
mod schema;

pub use file::{Notice, SettingsError, SettingsFile};
pub use folders::{config_folder, state_folder};
pub use schema::{
    AppearanceSettings, ClipboardSettings, CompletionSettings, ModelSettings, PrivacySettings, Settings,
    StartSettings, Theme,
};
