//! Files: the window knows documents by number, and files of the open folder by their paths below it.

use std::time::Duration;

use application::{Application, CommandError, CommandResult, DocumentEvent, RestoredDraft, lock};
use documents::{Document, Draft, FolderListing, MAX_FILE_BYTES};
use serde::Serialize;
use settings::Settings;
use tauri::{AppHandle, Emitter, Manager, State};
use tauri_plugin_dialog::{DialogExt, FileDialogBuilder, FilePath};
use ts_rs::TS;

use crate::hotkey::Hotkey;

/// What the window starts with.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct Startup {
    settings: Settings,
    hotkey: Hotkey,
    /// What was wrong with settings or history.
    notices: Vec<String>,
    /// Texts that were not saved when the app ended.
    drafts: Vec<RestoredDraft>,
    /// What the app was started with.
    opened: Option<DocumentEvent>,
}

#[tauri::command(async)]
pub(crate) fn startup(app: AppHandle, hotkey: State<'_, std::sync::Mutex<Hotkey>>) -> Startup {
    let application = app.state::<Application>();
    Startup {
        settings: application.settings(),
        hotkey: lock(&hotkey).clone(),
        notices: application.take_notices(),
        drafts: application.restored_drafts(),
        opened: application.open_initial(),
    }
}

/// Opens a file or folder in the window, as if the app had been started with it.
pub(crate) fn open_from_outside(app: &AppHandle, path: &std::path::Path) {
    let event = app.state::<Application>().open(path);
    // Fails only when the window is gone, and then there is nobody to tell.
    let _ = app.emit_to("main", "document", event);
}

/// What someone chose in a dialog.
pub(super) fn chosen(path: Option<FilePath>) -> CommandResult<Option<std::path::PathBuf>> {
    let path = path.map(FilePath::into_path).transpose();
    path.map_err(|error| CommandError::invalid(error.to_string()))
}

/// A dialog that begins in the open folder.
pub(super) fn dialog(app: &AppHandle, title: &str) -> FileDialogBuilder<tauri::Wry> {
    let dialog = app.dialog().file().set_title(title);
    match app.state::<Application>().folder_root() {
        Some(folder) => dialog.set_directory(folder),
        None => dialog,
    }
}

/// Asks for a file and opens it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn open_document(app: AppHandle) -> CommandResult<Option<Document>> {
    let Some(path) = chosen(dialog(&app, "Open").blocking_pick_file())? else { return Ok(None) };
    Ok(Some(app.state::<Application>().documents.open(&path)?))
}

/// Asks for a folder and opens it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn open_folder(app: AppHandle) -> CommandResult<Option<FolderListing>> {
    let Some(path) = chosen(dialog(&app, "Open a folder").blocking_pick_folder())? else { return Ok(None) };
    app.state::<Application>().open_folder(&path).map(Some)
}

/// The files of the open folder, looked at anew; `None` without one.
#[tauri::command(async)]
pub(crate) fn list_folder(application: State<'_, Application>) -> Option<FolderListing> {
    application.list_folder()
}

/// Opens a file of the open folder.
#[tauri::command(async)]
pub(crate) fn open_in_folder(application: State<'_, Application>, below: String) -> CommandResult<Document> {
    application.open_in_folder(&below)
}

/// Saves the document `id`, or asks for a name when there is none or `elsewhere`; `None` when nobody gave one. A file
/// that another program has changed is only written with `overwrite`.
#[tauri::command(async)]
pub(crate) fn save_document(
    app: AppHandle,
    id: Option<u32>,
    text: String,
    overwrite: bool,
    elsewhere: bool,
) -> CommandResult<Option<Document>> {
    if text.len() as u64 > MAX_FILE_BYTES {
        let message = format!("`text` must be at most {MAX_FILE_BYTES} bytes. Given: {}", text.len());
        return Err(CommandError::invalid(message));
    }
    let application = app.state::<Application>();
    if let Some(id) = id.filter(|_| !elsewhere) {
        return Ok(Some(application.documents.save(id, &text, overwrite)?));
    }
    let mut dialog = dialog(&app, "Save as");
    if let Some(path) = id.and_then(|id| application.documents.path(id).ok()) {
        dialog = dialog.set_file_name(path.file_name().unwrap_or_default().to_string_lossy());
    }
    let Some(path) = chosen(dialog.blocking_save_file())? else { return Ok(None) };
    Ok(Some(application.documents.save_as(&path, &text)?))
}

#[tauri::command]
pub(crate) fn close_document(application: State<'_, Application>, id: u32) {
    application.documents.close(id);
}

/// How often other programs' changes are looked for.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Tells the window of documents that another program changes, for as long as the app runs: a page that asked each time would
/// keep its processes from resting.
pub(crate) fn tell_changes(app: &AppHandle) {
    loop {
        std::thread::sleep(BETWEEN_LOOKS);
        for document in app.state::<Application>().documents.changed() {
            // Fails only when the window is gone.
            let _ = app.emit_to("main", "changed_document", document);
        }
    }
}

/// Says that the window shows what another program wrote to a document.
#[tauri::command(async)]
pub(crate) fn accept_change(application: State<'_, Application>, id: u32, text: String) -> CommandResult<()> {
    Ok(application.documents.accept(id, &text)?)
}

/// Keeps the text of a tab, for completions beside it and for after a crash.
#[tauri::command(async)]
pub(crate) fn keep_draft(application: State<'_, Application>, draft: Draft) -> CommandResult<()> {
    application.keep_draft(draft)
}

#[tauri::command(async)]
pub(crate) fn remove_draft(application: State<'_, Application>, key: String) -> CommandResult<()> {
    Ok(application.drafts.remove(&key)?)
}

/// Says in the title of the window what is open.
#[tauri::command]
pub(crate) fn set_title(app: AppHandle, title: String) -> CommandResult<()> {
    let title: String = title.chars().filter(|c| !c.is_control()).take(200).collect();
    let set = app.get_webview_window("main").map_or(Ok(()), |window| window.set_title(&title));
    set.map_err(|error| CommandError::io(&error))
}
