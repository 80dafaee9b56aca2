//! What the window over the clipboard can ask for.

use application::{Application, CommandError, CommandResult, CompletionEvent, PopupContent};
use tauri::ipc::Channel;
use tauri::{AppHandle, Manager, State};

use super::completion::follow;
use crate::popup;

#[tauri::command]
pub(crate) fn popup_content(application: State<'_, Application>) -> PopupContent {
    application.popup_content()
}

/// Streams the continuation, where there is something to continue; `again` asks for another.
#[tauri::command]
pub(crate) fn popup_stream(
    app: AppHandle,
    again: bool,
    on_event: Channel<CompletionEvent>,
) -> CommandResult<()> {
    let Some(begun) = app.state::<Application>().take_clipboard_completion(again) else { return Ok(()) };
    follow(&app, begun?, on_event)
}

/// Copies the continuation, or what was copied with it, and closes.
#[tauri::command]
pub(crate) fn popup_accept(app: AppHandle, continuation: String, whole: bool) -> CommandResult<()> {
    app.state::<Application>().accept_clipboard_completion(&continuation, whole)?;
    popup::close(&app);
    popup::paste_if_wanted(&app);
    Ok(())
}

/// Gives the window the height of what it shows.
#[tauri::command]
pub(crate) fn popup_fit(app: AppHandle, height: f64) -> CommandResult<()> {
    popup::fit(&app, height).map_err(|error| CommandError::io(&error))
}

#[tauri::command]
pub(crate) fn popup_close(app: AppHandle) {
    popup::close(&app);
}

/// Puts back what the last accepted text replaced in the clipboard. `false` when there is nothing.
#[tauri::command]
pub(crate) fn undo_clipboard(application: State<'_, Application>) -> CommandResult<bool> {
    Ok(application.clipboard.undo()?)
}

pub(crate) fn undo_or_say(app: &AppHandle) {
    if let Err(error) = app.state::<Application>().clipboard.undo() {
        eprintln!("sateen: {error}");
    }
}
