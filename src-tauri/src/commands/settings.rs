//! Settings: changed one at a time, checked, written and applied at once.

use std::sync::Mutex;

use application::{Application, CommandError, CommandResult, lock};
use engine::FoundDevice;
use serde::Serialize;
use serde_json::Value;
use settings::Settings;
use tauri::{AppHandle, Emitter, Manager, State};
use tauri_plugin_autostart::ManagerExt;
use ts_rs::TS;

use super::files::{chosen, dialog};
use crate::hotkey::{self, Hotkey};

/// What the settings are now, and what became of those that the system must agree to.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct AppliedSettings {
    settings: Settings,
    hotkey: Hotkey,
}

#[tauri::command(async)]
pub(crate) fn read_settings(app: AppHandle) -> AppliedSettings {
    applied(&app)
}

fn applied(app: &AppHandle) -> AppliedSettings {
    let hotkey = lock(&app.state::<Mutex<Hotkey>>()).clone();
    AppliedSettings { settings: app.state::<Application>().settings(), hotkey }
}

/// Gives a setting another value; the default without one.
#[tauri::command(async)]
pub(crate) fn change_setting(
    app: AppHandle,
    group: String,
    name: String,
    value: Option<Value>,
) -> CommandResult<AppliedSettings> {
    let application = app.state::<Application>();
    let before = application.settings();
    application.settings_file().change(&group, &name, value)?;
    apply(&app, &before)
}

/// Does what changed settings ask for, and tells the windows.
fn apply(app: &AppHandle, before: &Settings) -> CommandResult<AppliedSettings> {
    let application = app.state::<Application>();
    let now = application.settings();
    application.apply_settings(before)?;
    if now.clipboard.hotkey != before.clipboard.hotkey {
        hotkey::register(app, &now.clipboard.hotkey);
    }
    if now.appearance.zoom != before.appearance.zoom {
        app.webview_windows().values().for_each(crate::zoom);
    }
    if now.start.on_login != before.start.on_login {
        let autostart = app.autolaunch();
        let done = if now.start.on_login { autostart.enable() } else { autostart.disable() };
        done.map_err(|error| CommandError::io(&error))?;
    }
    Ok(tell(app))
}

/// Tells the windows what the settings are now.
pub(crate) fn tell(app: &AppHandle) -> AppliedSettings {
    let applied = applied(app);
    // Fails only when the windows are gone, and then there is nobody to tell.
    let _ = app.emit("settings", applied.clone());
    applied
}

/// Asks for a file and takes all settings from it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn import_settings(app: AppHandle) -> CommandResult<Option<AppliedSettings>> {
    let Some(path) = chosen(dialog(&app, "Import settings").blocking_pick_file())? else { return Ok(None) };
    let application = app.state::<Application>();
    let before = application.settings();
    application.settings_file().import(&path)?;
    apply(&app, &before).map(Some)
}

/// Asks for a name and writes all settings there; `false` when nobody gave one.
#[tauri::command(async)]
pub(crate) fn export_settings(app: AppHandle) -> CommandResult<bool> {
    let dialog = dialog(&app, "Export settings").set_file_name("sateen-settings.json");
    let Some(path) = chosen(dialog.blocking_save_file())? else { return Ok(false) };
    app.state::<Application>().settings_file().export(&path)?;
    Ok(true)
}

/// Where the file of the settings is, for people.
#[tauri::command(async)]
pub(crate) fn settings_path(application: State<'_, Application>) -> String {
    application.settings_file().path().display().to_string()
}

/// The GPUs that a model can be told to run on.
#[tauri::command(async)]
pub(crate) fn list_devices() -> Vec<FoundDevice> {
    engine::found_devices()
}
