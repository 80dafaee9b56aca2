//! Keys that are typed into other programs.

use std::time::Duration;

use enigo::{Direction, Enigo, Key, Keyboard, Settings};

use crate::ClipboardError;

/// What a program needs to get the focus back, before keys are typed into it.
const FOCUS_BACK: Duration = Duration::from_millis(90);

/// Whether the desktop is a Wayland one, where no program sees keys that were typed into another, nor types any.
pub fn is_wayland() -> bool {
    cfg!(target_os = "linux")
        && std::env::var_os("WAYLAND_DISPLAY").is_some_and(|display| !display.is_empty())
}

/// Types Ctrl+V into the program that has the focus in a moment.
///
/// # Errors
/// [`ClipboardError`] where that is not possible.
pub fn paste() -> Result<(), ClipboardError> {
    std::thread::sleep(FOCUS_BACK);
    let mut keyboard = Enigo::new(&Settings::default())?;
    keyboard.key(Key::Control, Direction::Press)?;
    let typed = keyboard.key(Key::Unicode('v'), Direction::Click);
    // Whatever became of the other key, this one must not stay down.
    keyboard.key(Key::Control, Direction::Release)?;
    Ok(typed?)
}
