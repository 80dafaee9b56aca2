//! What is copied and pasted.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ClipboardError;

/// Most of a copied text that is read, in bytes: its end.
const MAX_BYTES: usize = 64 << 10;

/// The clipboard of the desktop.
#[derive(Default)]
pub struct Clipboard {
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
    ///
    /// # Errors
    /// [`ClipboardError`].
    pub fn read(&self) -> Result<Option<String>, ClipboardError> {
        match self.with(arboard::Clipboard::get_text) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => Ok(Some(last_bytes(&text).to_owned())),
            Err(arboard::Error::ContentNotAvailable) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts `text` there; what was there comes back with [`undo`](Self::undo).
    ///
    /// # Errors
    /// [`ClipboardError`].
    pub fn write(&self, text: String) -> Result<(), ClipboardError> {
        let before = self.with(arboard::Clipboard::get_text).ok();
        self.with(|clipboard| clipboard.set_text(text))?;
        *lock(&self.before) = before;
        Ok(())
    }

    /// Puts back what the last text of ours replaced. False when there is no such text.
    ///
    /// # Errors
    /// [`ClipboardError`].
    pub fn undo(&self) -> Result<bool, ClipboardError> {
        let Some(before) = lock(&self.before).take() else { return Ok(false) };
        self.with(|clipboard| clipboard.set_text(before))?;
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn last_bytes(text: &str) -> &str {
    let start = text.len().saturating_sub(MAX_BYTES);
    &text[(start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_text_counts_and_characters_stay_whole() {
        assert_eq!(last_bytes("short"), "short");
        let long = "é".repeat(MAX_BYTES);
        let end = last_bytes(&long);
        assert!(end.len() <= MAX_BYTES && end.len() > MAX_BYTES - 2 && long.ends_with(end));
    }
}
