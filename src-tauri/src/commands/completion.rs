//! Completions in the editor, and what became of them.

use std::time::Instant;

use engine::{Completion, CompletionRequest, EngineError, Event, Outcome, StepEvent, Submission};
use history::{Fate, Insight};
use serde::{Deserialize, Serialize};
use tauri::ipc::Channel;
use tauri::{AppHandle, Manager, State};
use ts_rs::TS;

use super::CommandResult;
use crate::application::{Application, Client};
use crate::error::CommandError;

/// The text around the cursor.
#[derive(Clone, Debug, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub(crate) struct CompleteArguments {
    prefix: String,
    suffix: String,
    /// What the window calls the tab.
    key: String,
    /// Name of the file.
    name: String,
    /// Where the file is, as it was told; empty for what was never saved.
    path: String,
    /// Other completions of the same place.
    n_alternatives: u32,
}

/// How a completion went on. The window gets one message per forward pass, or fewer when it is slow.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "event", rename_all = "snake_case")]
#[ts(export)]
pub(crate) enum CompletionEvent {
    /// A forward pass brought text.
    Step(StepEvent),
    /// It ended.
    Ended {
        /// What it is.
        completion: Completion,
        /// Its number in the history, if it is kept.
        #[ts(type = "number | null")]
        entry: Option<i64>,
    },
    /// A newer request took its place.
    Superseded,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed(CommandError),
}

#[tauri::command]
pub(crate) fn complete(
    app: AppHandle,
    arguments: CompleteArguments,
    on_event: Channel<CompletionEvent>,
) -> CommandResult<()> {
    let CompleteArguments { prefix, suffix, key, name, path, n_alternatives } = arguments;
    let application = app.state::<Application>();
    let request = CompletionRequest {
        path: Some(application.path_for_model(&path, &name)),
        repository: application.repository(),
        other_files: application.other_files(&key),
        n_alternatives: n_alternatives as usize,
        ..application.request(prefix, suffix)
    };
    let (started, submission) = (Instant::now(), application.submit(Client::Editor, request)?);
    forward(&app, Client::Editor, submission, started, on_event)
}

/// Hands the events of a submission to a window, from a thread of its own.
pub(super) fn forward(
    app: &AppHandle,
    client: Client,
    mut submission: Submission,
    started: Instant,
    on_event: Channel<CompletionEvent>,
) -> CommandResult<()> {
    let app = app.clone();
    let forward = move || {
        while let Some(event) = submission.next_event() {
            let event = match event {
                Event::Step(step) => CompletionEvent::Step(step),
                Event::Ended(Ok(Outcome::Ended(completion))) => {
                    let elapsed_ms = started.elapsed().as_secs_f64() * 1000.0;
                    let entry = app.state::<Application>().record(client, &completion, elapsed_ms);
                    CompletionEvent::Ended { completion: *completion, entry }
                }
                Event::Ended(Ok(Outcome::Superseded)) => CompletionEvent::Superseded,
                Event::Ended(Ok(Outcome::Cancelled)) => CompletionEvent::Cancelled,
                Event::Ended(Err(error)) => CompletionEvent::Failed(error.into()),
            };
            // Without a window there is nobody to complete for, and dropping the submission cancels it.
            if on_event.send(event).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("completion".to_owned()).spawn(forward);
    thread.map_err(|source| EngineError::Io { path: "a thread".into(), source })?;
    Ok(())
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
