//! Models: what there is, what can be had, and which runs.

use std::path::Path;

use application::{Application, ApplicationState, CommandError, CommandResult, ModelList};
use engine::{Catalog, InstallProgress, InstalledModel, ModelSources, Recommendation, SpeedMeasurement};
use tauri::ipc::Channel;
use tauri::{AppHandle, Emitter, Manager, State};
use tauri_plugin_dialog::DialogExt;

use super::files::chosen;
use super::settings::tell;

/// Pages ask when they show what they were started with.
#[tauri::command]
pub(crate) fn application_state(application: State<'_, Application>) -> ApplicationState {
    application.page_is_up();
    application.state()
}

#[tauri::command(async)]
pub(crate) fn list_models(app: AppHandle) -> CommandResult<ModelList> {
    let home = app.path().home_dir().ok();
    Ok(app.state::<Application>().list_models(home.as_deref())?)
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
    let on_window_gone = cancel.clone();
    let mut tell = |progress| {
        if on_progress.send(progress).is_err() {
            on_window_gone.cancel();
        }
    };
    let installed =
        engine::install(entry, &application.library()?, &ModelSources::default(), &cancel, &mut tell)?;
    match installed {
        Some(model) => application.load(&model).map(|()| true).map_err(CommandError::from),
        None => Ok(false),
    }
}

#[tauri::command]
pub(crate) fn cancel_install(application: State<'_, Application>) {
    application.cancel_installation();
}

/// Runs a model, now and at the next start.
#[tauri::command(async)]
pub(crate) fn load_model(application: State<'_, Application>, id: String) -> CommandResult<()> {
    application.choose_model(&id)
}

/// Has a model draft with another adapter: `newest`, `shipped`, `off`, or the name of one of the user's.
#[tauri::command(async)]
pub(crate) fn choose_adapter(app: AppHandle, id: String, choice: String) -> CommandResult<()> {
    app.state::<Application>().choose_adapter(&id, &choice)?;
    tell(&app);
    Ok(())
}

#[tauri::command]
pub(crate) fn unload_model(application: State<'_, Application>) {
    application.unload();
}

/// Asks for a model file and adds a link to it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn add_model(app: AppHandle) -> CommandResult<Option<InstalledModel>> {
    let dialog = app.dialog().file().set_title("Add a model").add_filter("Models", &["gguf"]);
    let Some(path) = chosen(dialog.blocking_pick_file())? else { return Ok(None) };
    Ok(Some(app.state::<Application>().add_model(&path)?))
}

/// Adds the model files that were dropped on the window, and says what became of them.
pub(crate) fn add_dropped(app: &AppHandle, path: &Path) {
    let added = app.state::<Application>().add_model(path);
    let words = match &added {
        Ok(model) => format!("{} was added.", model.name),
        Err(error) => error.to_string(),
    };
    // Fails only when the window is gone, and then there is nobody to tell.
    let _ = app.emit_to("main", "model_added", words);
}

#[tauri::command(async)]
pub(crate) fn remove_model(application: State<'_, Application>, id: String) -> CommandResult<()> {
    Ok(application.remove_model(&id)?)
}

/// What the model that runs costs and gives on this machine. Takes some seconds.
#[tauri::command(async)]
pub(crate) fn measure_model(
    application: State<'_, Application>,
    on_progress: Channel<f32>,
) -> CommandResult<SpeedMeasurement> {
    let model = application.model()?;
    Ok(engine::measure_speed(&model, &mut |progress| on_progress.send(progress).is_ok())?)
}
