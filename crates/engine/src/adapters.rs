//! SAT adapters, found by the weights they were trained for: those that ship inside the program, and those of the user.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use model::{AdapterSource, ModelSummary, SatAdapter};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::library::check_id;
use crate::{EngineError, InstalledModel, ModelLibrary};

const BUILT_IN: [&[u8]; 3] = [
    include_bytes!("../../../models/sat-qwen2.5-coder-0.5b.safetensors"),
    include_bytes!("../../../models/sat-qwen2.5-coder-1.5b.safetensors"),
    include_bytes!("../../../models/sat-smollm2-135m.safetensors"),
];

/// The adapter for the weight file with this SHA-256.
pub(crate) fn built_in_for(sha256: &str) -> Option<AdapterSource> {
    let fits = |bytes: &&&[u8]| SatAdapter::base_of(bytes).as_deref() == Some(sha256);
    BUILT_IN.iter().find(fits).map(|bytes| AdapterSource::BuiltIn(bytes))
}

/// What a model's adaptive tokens come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The adapter that ships for the weights, if any does.
    #[default]
    Shipped,
    /// None: adaptive tokens are untrained.
    Off,
    /// One in a file.
    File(PathBuf),
}

impl AdapterChoice {
    /// The user's newest adapter, and where there is none the one that ships.
    pub const NEWEST: &str = "newest";
    /// The adapter that ships.
    pub const SHIPPED: &str = "shipped";
    /// No adapter.
    pub const OFF: &str = "off";

    pub(crate) fn source(&self, sha256: &str) -> Option<AdapterSource> {
        match self {
            Self::Shipped => built_in_for(sha256),
            Self::Off => None,
            Self::File(path) => Some(AdapterSource::File(path.clone())),
        }
    }
}

impl InstalledModel {
    /// What `choice` means for this model: one of the three words above, or the name of an adapter that the user has
    /// added. [`AdapterChoice::NEWEST`] where there is none of the name (any more).
    pub fn adapter(&self, choice: &str) -> AdapterChoice {
        let named = self.adapters.iter().find(|adapter| adapter.name == choice);
        match choice {
            AdapterChoice::OFF => AdapterChoice::Off,
            AdapterChoice::SHIPPED => AdapterChoice::Shipped,
            _ => match named.or(self.adapters.first()) {
                Some(adapter) => AdapterChoice::File(adapter.path.clone()),
                None => AdapterChoice::Shipped,
            },
        }
    }
}

/// Digits of a hash that are enough to tell weights apart.
const N_DIGITS: usize = 16;

/// An adapter that the user has added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct InstalledAdapter {
    /// Its name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

impl ModelLibrary {
    fn adapters_folder(&self) -> PathBuf {
        self.folder().join("adapters")
    }

    fn adapter_path(&self, sha256: &str, name: &str) -> PathBuf {
        let base = sha256.get(..N_DIGITS).unwrap_or(sha256);
        self.adapters_folder().join(format!("{base}.{name}.safetensors"))
    }

    /// The user's adapters for the weights with this SHA-256, the newest first: that is the one which is used unless another
    /// is chosen.
    pub(crate) fn adapters_for(&self, sha256: &str) -> Vec<InstalledAdapter> {
        let base = sha256.get(..N_DIGITS).unwrap_or(sha256);
        let entries = std::fs::read_dir(self.adapters_folder()).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, InstalledAdapter)> = entries
            .filter_map(|entry| {
                let file = entry.file_name().to_string_lossy().into_owned();
                let name = file.strip_prefix(base)?.strip_prefix('.')?.strip_suffix(".safetensors")?;
                let added = entry.metadata().ok()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                Some((added, InstalledAdapter { name: name.to_owned(), path: entry.path() }))
            })
            .collect();
        found.sort_by(|(a, of_a), (b, of_b)| b.cmp(a).then_with(|| of_a.name.cmp(&of_b.name)));
        found.into_iter().map(|(_, adapter)| adapter).collect()
    }

    /// Checks the adapter in the file `source` and adds a copy. Its name is that of the file, in small letters; the id of
    /// the model that it is for comes with it.
    ///
    /// # Errors
    /// When no installed model has the weights that it was trained for, it does not fit them, or its name is taken.
    pub fn add_adapter(&self, source: &Path) -> Result<(String, InstalledAdapter), EngineError> {
        let bytes = SatAdapter::read(source)?;
        let base = SatAdapter::base_of(&bytes).unwrap_or_default();
        let installed =
            self.list()?.models.into_iter().find(|model| !base.is_empty() && model.sha256 == base);
        let Some(model) = installed else { return Err(EngineError::NoBase { sha256: base }) };
        SatAdapter::parse(&bytes, source, &ModelSummary::architecture_of(&model.path)?)?;
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let name: String = stem
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' })
            .collect();
        check_id(&name)?;
        let path = self.adapter_path(&base, &name);
        let words = [AdapterChoice::NEWEST, AdapterChoice::SHIPPED, AdapterChoice::OFF];
        if path.exists() || words.contains(&name.as_str()) {
            return Err(EngineError::AdapterExists { name });
        }
        let folder = self.adapters_folder();
        std::fs::create_dir_all(&folder).map_err(EngineError::io(&folder))?;
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            std::io::Write::write_all(&mut file, &bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(EngineError::io(&path))?;
        Ok((model.id, InstalledAdapter { name, path }))
    }

    /// Removes the user's adapter `name` of the model `id`.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_adapter(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let model = self.find(id)?;
        let adapter = model.adapters.iter().find(|adapter| adapter.name == name);
        let known =
            || model.adapters.iter().map(|adapter| adapter.name.as_str()).collect::<Vec<_>>().join(", ");
        let adapter =
            adapter.ok_or_else(|| EngineError::NoAdapter { name: name.to_owned(), known: known() })?;
        std::fs::remove_file(&adapter.path).map_err(EngineError::io(&adapter.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Catalog;

    #[test]
    fn adapters_of_the_user_are_found_by_their_weights() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = ModelLibrary::new(folder.path().join("models"));
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let model = library.add(tiny.as_ref(), crate::AddMode::Link).expect("adds");
        assert!(model.adapters.is_empty());
        // That of another model, and what is none.
        let other = folder.path().join("Other One.safetensors");
        std::fs::write(&other, BUILT_IN[0]).expect("writes");
        let error = library.add_adapter(&other).expect_err("its model is not there");
        assert!(error.to_string().contains("is not installed"), "{error}");
        std::fs::write(&other, b"nothing").expect("writes");
        assert!(matches!(library.add_adapter(&other), Err(EngineError::NoBase { .. })));
        assert!(library.add_adapter(folder.path()).is_err());
        // Files with the right names, which is all that the listing looks at.
        std::fs::create_dir(library.adapters_folder()).expect("a folder");
        for name in ["old", "new"] {
            std::fs::write(library.adapter_path(&model.sha256, name), b"x").expect("writes");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::fs::write(library.adapter_path(&"0".repeat(64), "foreign"), b"x").expect("writes");
        let names = |library: &ModelLibrary| -> Vec<String> {
            let adapters = library.find(&model.id).expect("it").adapters;
            adapters.into_iter().map(|adapter| adapter.name).collect()
        };
        assert_eq!(names(&library), ["new", "old"]);
        library.remove_adapter(&model.id, "new").expect("removes");
        assert_eq!(names(&library), ["old"]);
        let error = library.remove_adapter(&model.id, "../x").expect_err("no such adapter");
        assert!(error.to_string().contains("It has: old"), "{error}");
    }

    #[test]
    fn the_catalogue_models_with_adapters_are_found() {
        let catalog = Catalog::built_in();
        let has_adapter = |id: &str| {
            let entry = catalog.find(id).expect("in the catalogue");
            entry.sha256.as_deref().and_then(built_in_for).is_some()
        };
        for id in ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2-135m"] {
            assert!(has_adapter(id), "{id}");
        }
        assert!(built_in_for("").is_none());
    }
}
