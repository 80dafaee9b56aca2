//! Completions in the editor, and what became of them.

use application::{Application, Begun, CommandResult, CompleteArguments, CompletionEvent};
use engine::EngineError;
use history::{Fate, Insight};
use tauri::ipc::Channel;
use tauri::{AppHandle, Manager, State};

#[tauri::command]
pub(crate) fn complete(
    app: AppHandle,
    arguments: CompleteArguments,
    on_event: Channel<CompletionEvent>,
) -> CommandResult<()> {
    let begun = app.state::<Application>().complete(arguments)?;
    follow(&app, begun, on_event)
}

/// Hands the events of a completion to a window, from a thread of its own.
pub(super) fn follow(app: &AppHandle, begun: Begun, on_event: Channel<CompletionEvent>) -> CommandResult<()> {
    let app = app.clone();
    let follow = move || app.state::<Application>().follow(begun, |event| on_event.send(event).is_ok());
    let thread = std::thread::Builder::new().name("completion".to_owned()).spawn(follow);
    thread.map_err(|source| EngineError::Io { path: "a thread".into(), source })?;
    Ok(())
}

/// Has a place computed ahead, where someone may begin to type.
#[tauri::command]
pub(crate) fn prepare_completion(application: State<'_, Application>, arguments: CompleteArguments) {
    application.prepare(arguments);
}

#[tauri::command]
pub(crate) fn cancel_completion(application: State<'_, Application>) {
    application.cancel_completion();
}

/// Remembers what became of a completion, of which `n_chars` characters were accepted so far.
#[tauri::command(async)]
pub(crate) fn resolve_completion(
    application: State<'_, Application>,
    entry: i64,
    fate: Fate,
    n_chars: u32,
) -> CommandResult<()> {
    let resolved = application.with_history(|history| history.resolve(entry, fate, n_chars as usize));
    Ok(resolved.transpose().map(|_| ())?)
}

/// Most days that are looked back at.
const MAX_DAYS: u32 = 3650;

/// What the history says; `today_ms` is when today began where the user is.
#[tauri::command(async)]
pub(crate) fn insight(
    application: State<'_, Application>,
    today_ms: i64,
    n_days: u32,
) -> CommandResult<Insight> {
    let insight = application.with_history(|history| history.insight(today_ms, n_days.clamp(1, MAX_DAYS)));
    Ok(insight.transpose()?.unwrap_or_default())
}

#[tauri::command(async)]
pub(crate) fn clear_history(application: State<'_, Application>) -> CommandResult<()> {
    Ok(application.with_history(history::History::clear).transpose().map(|_| ())?)
}
