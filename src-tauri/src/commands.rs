//! What the window can ask for. Each command checks what it gets like any other outside input.

use engine::{
    Catalog, CatalogEntry, Completion, CompletionRequest, EngineError, ErrorCode, Event, InstallProgress,
    InstalledModel, Outcome, PackageClient, Recommendation, StepEvent,
};
use serde::{Deserialize, Serialize};
use tauri::ipc::Channel;
use tauri::{AppHandle, Manager, State};
use tauri_plugin_dialog::DialogExt;
use ts_rs::TS;

use crate::application::{Application, ApplicationState};
use crate::documents::{Document, MAX_FILE_BYTES};
use crate::error::CommandError;

type CommandResult<T> = Result<T, CommandError>;

/// The models that are there, and those that can be had.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct ModelList {
    installed: Vec<InstalledModel>,
    available: Vec<CatalogEntry>,
}

/// The text around the cursor.
#[derive(Clone, Debug, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub(crate) struct CompleteArguments {
    prefix: String,
    suffix: String,
    /// Name of the file.
    path: Option<String>,
    max_tokens: u32,
}

/// How a completion went on. The window gets one message per forward pass, or fewer when it is slow.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "event", rename_all = "snake_case")]
#[ts(export)]
pub(crate) enum CompletionEvent {
    /// A forward pass brought text.
    Step(StepEvent),
    /// It ended.
    Ended(Completion),
    /// A newer request took its place.
    Superseded,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed(CommandError),
}

#[tauri::command]
pub(crate) fn application_state(application: State<'_, Application>) -> ApplicationState {
    application.state()
}

#[tauri::command(async)]
pub(crate) fn list_models(application: State<'_, Application>) -> CommandResult<ModelList> {
    let installed = application.library()?.list()?.models;
    let is_missing = |entry: &CatalogEntry| installed.iter().all(|model| model.id != entry.id);
    let available = Catalog::built_in().models.into_iter().filter(is_missing).collect();
    Ok(ModelList { installed, available })
}

/// What this machine runs fast enough. Takes some seconds.
#[tauri::command(async)]
pub(crate) fn recommend_models(application: State<'_, Application>) -> CommandResult<Recommendation> {
    let library = application.library()?;
    Ok(engine::recommend(&library, &Catalog::built_in(), engine::FIRST_TEXT_BUDGET_MS)?)
}

/// `false` when it was cancelled.
#[tauri::command(async)]
pub(crate) fn install_model(
    application: State<'_, Application>,
    id: String,
    on_progress: Channel<InstallProgress>,
) -> CommandResult<bool> {
    let catalog = Catalog::built_in();
    let entry = catalog.find(&id)?;
    let cancel = application.begin_installation();
    let client = PackageClient::find()?;
    let on_window_gone = cancel.clone();
    let mut tell = |progress| {
        if on_progress.send(progress).is_err() {
            on_window_gone.cancel();
        }
    };
    let installed = engine::install(entry, &application.library()?, &client, &cancel, &mut tell)?;
    match installed {
        Some(model) => application.load(&model).map(|()| true).map_err(CommandError::from),
        None => Ok(false),
    }
}

#[tauri::command]
pub(crate) fn cancel_install(application: State<'_, Application>) {
    application.cancel_installation();
}

#[tauri::command(async)]
pub(crate) fn load_model(application: State<'_, Application>, id: String) -> CommandResult<()> {
    let model = application.library()?.find(&id)?;
    Ok(application.load(&model)?)
}

#[tauri::command]
pub(crate) fn complete(
    application: State<'_, Application>,
    arguments: CompleteArguments,
    on_event: Channel<CompletionEvent>,
) -> CommandResult<()> {
    let CompleteArguments { prefix, suffix, path, max_tokens } = arguments;
    let request =
        CompletionRequest { max_tokens: max_tokens as usize, path, ..CompletionRequest::new(prefix, suffix) };
    let mut submission = application.submit(request)?;
    let forward = move || {
        while let Some(event) = submission.next_event() {
            let event = match event {
                Event::Step(step) => CompletionEvent::Step(step),
                Event::Ended(Ok(Outcome::Ended(completion))) => CompletionEvent::Ended(*completion),
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

/// The file that the app was started with.
#[tauri::command(async)]
pub(crate) fn initial_document(application: State<'_, Application>) -> CommandResult<Option<Document>> {
    match application.take_initial_file() {
        Some(file) => Ok(Some(application.documents().open(&file)?)),
        None => Ok(None),
    }
}

/// Asks for a file and opens it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn open_document(app: AppHandle) -> CommandResult<Option<Document>> {
    let Some(path) = app.dialog().file().set_title("Open").blocking_pick_file() else { return Ok(None) };
    let path = path.into_path().map_err(|error| invalid(error.to_string()))?;
    Ok(Some(app.state::<Application>().documents().open(&path)?))
}

/// Saves the document `id`, or asks for a name when there is none; `None` when nobody gave one. A file that another
/// program has changed is only written with `overwrite`.
#[tauri::command(async)]
pub(crate) fn save_document(
    app: AppHandle,
    id: Option<u32>,
    text: String,
    overwrite: bool,
) -> CommandResult<Option<Document>> {
    if text.len() as u64 > MAX_FILE_BYTES {
        let message = format!("`text` must be at most {MAX_FILE_BYTES} bytes. Given: {}", text.len());
        return Err(invalid(message));
    }
    let application = app.state::<Application>();
    if let Some(id) = id {
        return Ok(Some(application.documents().save(id, &text, overwrite)?));
    }
    let Some(path) = app.dialog().file().set_title("Save").blocking_save_file() else { return Ok(None) };
    let path = path.into_path().map_err(|error| invalid(error.to_string()))?;
    Ok(Some(application.documents().save_as(&path, &text)?))
}

fn invalid(message: String) -> CommandError {
    CommandError { code: ErrorCode::InvalidRequest, message }
}
