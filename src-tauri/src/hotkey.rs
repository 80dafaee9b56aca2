//! The keys that complete the clipboard from any program.

use serde::Serialize;
use tauri::AppHandle;
use tauri_plugin_global_shortcut::{GlobalShortcutExt, Shortcut, ShortcutState};
use ts_rs::TS;

/// What became of the hotkey.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "state", rename_all = "snake_case")]
#[ts(export)]
pub(crate) enum Hotkey {
    /// None is wanted.
    Off,
    /// It works.
    Active {
        /// The keys.
        keys: String,
    },
    /// It cannot be had.
    Failed {
        /// The keys.
        keys: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// Has `keys` complete the clipboard, in the place of those before.
pub(crate) fn register(app: &AppHandle, keys: &str) -> Hotkey {
    let failed = |reason: String| Hotkey::Failed { keys: keys.to_owned(), reason };
    let shortcuts = app.global_shortcut();
    // What is not registered need not go.
    let _ = shortcuts.unregister_all();
    if keys.trim().is_empty() {
        return Hotkey::Off;
    }
    let shortcut: Shortcut = match keys.parse() {
        Ok(shortcut) => shortcut,
        Err(error) => return failed(format!("{error}. Write keys as in Ctrl+Alt+Space.")),
    };
    if clipboard::is_wayland() {
        let what = "This desktop (Wayland) shows no program the keys of another.";
        return failed(format!("{what} Bind the command `sateen clipboard` to the keys in its settings."));
    }
    let on_press = |app: &AppHandle, _: &Shortcut, event: tauri_plugin_global_shortcut::ShortcutEvent| {
        if event.state() == ShortcutState::Pressed {
            crate::popup::toggle(app);
        }
    };
    match shortcuts.on_shortcut(shortcut, on_press) {
        Ok(()) => Hotkey::Active { keys: keys.to_owned() },
        Err(error) => failed(format!(
            "Another program has these keys, or the system refuses them ({error}). Choose others."
        )),
    }
}
