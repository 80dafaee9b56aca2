//! The clipboard: read when someone asks, written when someone accepts, put back when that was a mistake, and typed
//! into the program that had the focus.

#![forbid(unsafe_code)]

mod clipboard;
mod paste;
mod program;

pub use clipboard::Clipboard;
pub use paste::{is_wayland, paste};
pub use program::focused_program;

/// Why the clipboard or the keyboard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClipboardError {
    /// The clipboard refuses.
    #[error("the clipboard cannot be used: {0}")]
    Clipboard(#[from] arboard::Error),
    /// There is no way to type into other programs.
    #[error("keys cannot be typed into another program: {0}")]
    NoKeyboard(#[from] enigo::NewConError),
    /// A key was refused.
    #[error("a key cannot be typed into another program: {0}")]
    Key(#[from] enigo::InputError),
}
