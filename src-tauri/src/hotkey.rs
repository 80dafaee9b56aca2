//! The keys that complete the clipboard from any program.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use application::{Application, lock};
use portal::PortalError;
use serde::Serialize;
use tauri::{AppHandle, Manager};
use tauri_plugin_global_shortcut::{GlobalShortcutExt, Shortcut, ShortcutEvent, ShortcutState};
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
        /// The keys; of a desktop's portal, in its own words.
        keys: String,
    },
    /// The desktop's portal was asked, and perhaps asks the user.
    Asked {
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

/// Has `keys` complete the clipboard, in the place of those before, and remembers what became of that.
pub(crate) fn register(app: &AppHandle, keys: &str) {
    // Whatever was asked of the portal before is not wanted any more.
    let number = NEWEST.fetch_add(1, Ordering::AcqRel) + 1;
    // What is not registered need not go.
    let _ = app.global_shortcut().unregister_all();
    if keys.trim().is_empty() {
        set(app, Hotkey::Off);
    } else if let Err(error) = keys.parse::<Shortcut>() {
        set(app, failed(keys, format!("{error}. Write keys as in Ctrl+Alt+Space.")));
    } else if clipboard::is_wayland() {
        ask_portal(app, keys, number);
    } else {
        set(app, register_with_x11(app, keys));
    }
}

/// Counts registrations, so that an answer to an older one is told apart.
static NEWEST: AtomicU64 = AtomicU64::new(0);

fn set(app: &AppHandle, hotkey: Hotkey) {
    *lock(&app.state::<Mutex<Hotkey>>()) = hotkey;
}

fn failed(keys: &str, reason: String) -> Hotkey {
    Hotkey::Failed { keys: keys.to_owned(), reason }
}

fn register_with_x11(app: &AppHandle, keys: &str) -> Hotkey {
    let on_press = |app: &AppHandle, _: &Shortcut, event: ShortcutEvent| {
        if event.state() == ShortcutState::Pressed && !is_in_excluded_program(app) {
            crate::popup::toggle(app);
        }
    };
    match app.global_shortcut().on_shortcut(keys, on_press) {
        Ok(()) => Hotkey::Active { keys: keys.to_owned() },
        Err(error) => {
            let what = format!("Another program has these keys, or the system refuses them ({error})");
            failed(keys, format!("{what}. Choose others."))
        }
    }
}

fn is_in_excluded_program(app: &AppHandle) -> bool {
    let excluded = app.state::<Application>().settings().clipboard.excluded_programs;
    let focused = if excluded.is_empty() { None } else { clipboard::focused_program() };
    focused.is_some_and(|focused| excluded.iter().any(|program| program.eq_ignore_ascii_case(&focused)))
}

/// On Wayland no program sees the keys of another; the desktop's portal may give some.
fn ask_portal(app: &AppHandle, keys: &str, number: u64) {
    let is_newest = move || NEWEST.load(Ordering::Acquire) == number;
    let refused = |keys: &str, error: &PortalError| {
        let what = "Bind the command `sateen clipboard` to keys in the settings of the desktop instead";
        failed(keys, format!("On Wayland, {error}. {what}."))
    };
    let (of_bound, of_press, wanted) = (app.clone(), app.clone(), keys.to_owned());
    let on_bound = move |bound: Result<String, PortalError>| {
        if is_newest() {
            set(
                &of_bound,
                bound.map_or_else(|error| refused(&wanted, &error), |keys| Hotkey::Active { keys }),
            );
            crate::commands::settings::tell(&of_bound);
        }
    };
    let on_press = move || {
        let app = of_press.clone();
        let is_wanted = is_newest();
        if is_wanted {
            // Windows belong to the main thread; without one there is nobody to show them to.
            let _ = of_press.run_on_main_thread(move || crate::popup::toggle(&app));
        }
        is_wanted
    };
    set(app, Hotkey::Asked { keys: keys.to_owned() });
    if let Err(error) = portal::listen(keys, "Continue the clipboard", on_bound, on_press) {
        set(app, refused(keys, &error));
    }
}
