//! The clipboard: read when someone asks, written when someone accepts, and put back when that was a mistake.

use std::sync::Mutex;

use crate::application::lock;
use crate::error::CommandError;

/// Most of a copied text that is completed, in bytes: its end.
const MAX_BYTES: usize = 64 << 10;

#[derive(Default)]
pub(crate) struct Clipboard {
    /// Kept for as long as the app runs: on X11 and Wayland whoever wrote a text must be there to hand it out.
    handle: Mutex<Option<arboard::Clipboard>>,
    /// What stood there before the last text of ours.
    before: Mutex<Option<String>>,
}

impl Clipboard {
    fn with<T>(
        &self,
        work: impl FnOnce(&mut arboard::Clipboard) -> Result<T, arboard::Error>,
    ) -> Result<T, arboard::Error> {
        let mut handle = lock(&self.handle);
        if handle.is_none() {
            *handle = Some(arboard::Clipboard::new()?);
        }
        handle.as_mut().map_or(Err(arboard::Error::ContentNotAvailable), work)
    }

    /// The text that was copied; `None` when it is empty or no text.
    pub(crate) fn read(&self) -> Result<Option<String>, CommandError> {
        match self.with(arboard::Clipboard::get_text) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(last_bytes(&text).to_owned())),
            Err(arboard::Error::ContentNotAvailable) => Ok(None),
            Err(error) => Err(CommandError::io(&error)),
        }
    }

    /// Puts `text` there; what was there comes back with [`undo`](Self::undo).
    pub(crate) fn write(&self, text: String) -> Result<(), CommandError> {
        let before = self.with(arboard::Clipboard::get_text).ok();
        self.with(|clipboard| clipboard.set_text(text)).map_err(|error| CommandError::io(&error))?;
        *lock(&self.before) = before;
        Ok(())
    }

    /// Puts back what the last text of ours replaced. False when there is no such text.
    pub(crate) fn undo(&self) -> Result<bool, CommandError> {
        let Some(before) = lock(&self.before).take() else { return Ok(false) };
        self.with(|clipboard| clipboard.set_text(before)).map_err(|error| CommandError::io(&error))?;
        Ok(true)
    }
}

fn last_bytes(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_BYTES);
    &text[(start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())..]
}
