//! What models there are and can be had, for people.

use std::path::Path;

use engine::{AddMode, Catalog, CatalogEntry, EngineConfig, EngineError, InstalledModel, MemoryNeeded};
use serde::Serialize;
use serde_json::json;
use ts_rs::TS;

use crate::error::CommandResult;
use crate::state::Application;

/// The models that are there, and those that can be had.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub struct ModelList {
    /// Those that are there.
    pub installed: Vec<InstalledEntry>,
    /// Those of the catalogue that are not.
    pub available: Vec<CatalogEntry>,
    /// Files that look like models and are none, with the reason.
    pub unusable: Vec<String>,
    /// Memory that is free, in bytes; `null` where the system says nothing.
    #[ts(type = "number | null")]
    pub free_bytes: Option<u64>,
}

/// A model that is there.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub struct InstalledEntry {
    /// What it is.
    pub model: InstalledModel,
    /// What it takes with the context of the settings; `null` when its file cannot be read.
    pub memory: Option<MemoryNeeded>,
    /// Where its file is, for people: `~` is the user's home.
    pub place: String,
    /// From the catalogue; `null` for files from elsewhere.
    pub licence: Option<String>,
    /// Which adapter was chosen for it: `newest`, `shipped`, `off`, or the name of one of the user's.
    pub adapter: String,
}

impl Application {
    /// Looks at the folder of models; those below `home` are said to be in `~`.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn list_models(&self, home: Option<&Path>) -> Result<ModelList, EngineError> {
        let listing = self.library()?.list()?;
        let settings = self.settings();
        let catalog = Catalog::built_in().models;
        let entry = |model: InstalledModel| {
            let config: EngineConfig = settings.engine_config(&model);
            let licence =
                catalog.iter().find(|entry| entry.id == model.id).map(|entry| entry.licence.clone());
            let below_home = home.and_then(|home| model.path.strip_prefix(home).ok());
            let place = below_home.map_or_else(|| model.path.clone(), |below| Path::new("~").join(below));
            let memory = MemoryNeeded::of(&config).ok();
            let adapter = settings.adapter_of(&model.id).to_owned();
            InstalledEntry { memory, place: place.display().to_string(), licence, adapter, model }
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

    /// Runs a model, now and at the next start.
    ///
    /// # Errors
    ///
    /// There is none of that name, or the choice cannot be written down.
    pub fn choose_model(&self, id: &str) -> CommandResult<()> {
        let model = self.library()?.find(id)?;
        self.settings_file().change("model", "id", Some(json!(id)))?;
        Ok(self.load(&model)?)
    }

    /// Has a model draft with another adapter, now and from now on.
    ///
    /// # Errors
    ///
    /// The choice cannot be written down, or the model cannot be loaded with it.
    pub fn choose_adapter(&self, id: &str, choice: &str) -> CommandResult<()> {
        let before = self.settings();
        self.settings_file().choose_adapter(id, choice)?;
        Ok(self.apply_settings(&before)?)
    }

    /// Adds a link to a model file.
    ///
    /// # Errors
    ///
    /// It is none, or there is one of its name.
    pub fn add_model(&self, path: &Path) -> Result<InstalledModel, EngineError> {
        self.library()?.add(path, AddMode::Link)
    }

    /// Removes a model, and stops it when it runs.
    ///
    /// # Errors
    ///
    /// There is none of that name, or its file stays.
    pub fn remove_model(&self, id: &str) -> Result<(), EngineError> {
        self.library()?.remove(id)?;
        self.forget(id);
        Ok(())
    }
}
