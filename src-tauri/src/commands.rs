//! What the windows can ask for. Each command checks what it gets like any other outside input.

pub(crate) mod completion;
pub(crate) mod files;
pub(crate) mod models;
pub(crate) mod popup;
pub(crate) mod settings;
