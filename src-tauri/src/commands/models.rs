//! Models: what there is, what can be had, and which runs.

use std::path::Path;

use engine::{
    AddMode, Catalog, CatalogEntry, EngineConfig, InstallProgress, InstalledModel, MemoryNeeded,
    ModelSources, Recommendation, SpeedMeasurement,
};
use serde::Serialize;
use serde_json::json;
use tauri::ipc::Channel;
use tauri::{AppHandle, Emitter, Manager, State};
use tauri_plugin_dialog::DialogExt;
use ts_rs::TS;

use super::CommandResult;
use crate::application::{Application, ApplicationState};
use crate::error::CommandError;

/// The models that are there, and those that can be had.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct ModelList {
    installed: Vec<InstalledEntry>,
    available: Vec<CatalogEntry>,
    /// Files that look like models and are none, with the reason.
    unusable: Vec<String>,
    /// Memory that is free, in bytes; `null` where the system says nothing.
    #[ts(type = "number | null")]
    free_bytes: Option<u64>,
}

/// A model that is there.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct InstalledEntry {
    model: InstalledModel,
    /// What it takes with the context of the settings; `null` when its file cannot be read.
    memory: Option<MemoryNeeded>,
    /// Where its file is, for people: `~` is the user's home.
    place: String,
    /// From the catalogue; `null` for files from elsewhere.
    licence: Option<String>,
}

#[tauri::command]
pub(crate) fn application_state(application: State<'_, Application>) -> ApplicationState {
    application.state()
}

#[tauri::command(async)]
pub(crate) fn list_models(app: AppHandle) -> CommandResult<ModelList> {
    let application = app.state::<Application>();
    let home = app.path().home_dir().ok();
    let listing = application.library()?.list()?;
    let settings = application.settings();
    let catalog = Catalog::built_in().models;
    let entry = |model: InstalledModel| {
        let config: EngineConfig = settings.engine_config(&model);
        let licence = catalog.iter().find(|entry| entry.id == model.id).map(|entry| entry.licence.clone());
        let below_home = home.as_ref().and_then(|home| model.path.strip_prefix(home).ok());
        let place = below_home.map_or_else(|| model.path.clone(), |below| Path::new("~").join(below));
        let memory = MemoryNeeded::of(&config).ok();
        InstalledEntry { memory, place: place.display().to_string(), licence, model }
    };
    let installed: Vec<InstalledEntry> = listing.models.into_iter().map(entry).collect();
    let is_missing = |entry: &&CatalogEntry| installed.iter().all(|other| other.model.id != entry.id);
    let available = catalog.iter().filter(is_missing).cloned().collect();
    let unusable = listing.unusable.iter().map(|(path, error)| format!("{}: {error}", path.display()));
    Ok(ModelList {
        available,
        unusable: unusable.collect(),
        free_bytes: engine::available_memory(),
        installed,
    })
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
    let model = application.library()?.find(&id)?;
    application.settings_file().change("model", "id", Some(json!(id)))?;
    Ok(application.load(&model)?)
}

#[tauri::command]
pub(crate) fn unload_model(application: State<'_, Application>) {
    application.unload();
}

/// Asks for a model file and adds a link to it; `None` when nobody chose one.
#[tauri::command(async)]
pub(crate) fn add_model(app: AppHandle) -> CommandResult<Option<InstalledModel>> {
    let dialog = app.dialog().file().set_title("Add a model").add_filter("Models", &["gguf"]);
    let Some(path) = dialog.blocking_pick_file() else { return Ok(None) };
    let path = path.into_path().map_err(|error| CommandError::invalid(error.to_string()))?;
    Ok(Some(app.state::<Application>().library()?.add(&path, AddMode::Link)?))
}

/// Adds the model files that were dropped on the window, and says what became of them.
pub(crate) fn add_dropped(app: &AppHandle, path: &Path) {
    let added = app.state::<Application>().library().and_then(|library| library.add(path, AddMode::Link));
    let words = match &added {
        Ok(model) => format!("{} was added.", model.name),
        Err(error) => error.to_string(),
    };
    // Fails only when the window is gone, and then there is nobody to tell.
    let _ = app.emit_to("main", "model_added", words);
}

#[tauri::command(async)]
pub(crate) fn remove_model(application: State<'_, Application>, id: String) -> CommandResult<()> {
    application.library()?.remove(&id)?;
    application.forget(&id);
    Ok(())
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
