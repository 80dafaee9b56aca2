//! The models that are installed: weight files in the user's data folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use model::{ModelSummary, sha256_of_file};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::adapters::{InstalledAdapter, built_in_for};
use crate::learned::LearnedFiles;
use crate::prompt::PromptFormat;
use crate::{Catalog, CatalogEntry, EngineError};

/// Longest model id.
const MAX_ID_BYTES: usize = 64;

/// An installed model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct InstalledModel {
    /// Name in commands and settings.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// The weight file.
    pub path: PathBuf,
    /// Its size.
    #[ts(type = "number")]
    pub size_bytes: u64,
    /// Its SHA-256, in hexadecimal, as it was checked when it was installed.
    pub sha256: String,
    /// `llama` or `qwen2`.
    pub architecture: String,
    /// Quantization of most of its matrices.
    pub quantization: String,
    /// Number of weights.
    #[ts(type = "number")]
    pub n_parameters: u64,
    /// How it is asked for the middle of a text.
    pub prompt_format: String,
    /// Whether it can fill in, or only go on.
    pub can_infill: bool,
    /// Where its semantic adaptive tokens come from.
    pub adaptive_tokens: AdaptiveTokens,
    /// Whether an adapter ships for it.
    pub has_shipped_adapter: bool,
    /// Adapters that the user has added, the newest first: that is the one which is used unless another is chosen.
    pub adapters: Vec<InstalledAdapter>,
}

/// Where a model's semantic adaptive tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[ts(export)]
#[serde(rename_all = "snake_case")]
pub enum AdaptiveTokens {
    /// It has none that were trained.
    None,
    /// An adapter, which ships or is the user's.
    Adapter,
    /// Its vocabulary.
    Native,
}

impl std::fmt::Display for AdaptiveTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Adapter => "adapter",
            Self::Native => "its own",
        })
    }
}

/// How a local file enters the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddMode {
    /// A copy; the original may go away.
    Copy,
    /// A symbolic link; the original must stay.
    Link,
}

/// What is in a library.
#[derive(Debug, Default)]
pub struct LibraryListing {
    /// The models, by id.
    pub models: Vec<InstalledModel>,
    /// Files that look like models but cannot be used, and why.
    pub unusable: Vec<(PathBuf, EngineError)>,
}

/// The folder of installed models.
#[derive(Clone, Debug)]
pub struct ModelLibrary {
    folder: PathBuf,
}

/// Goes up when what is remembered changes its meaning.
const RECORD_VERSION: u32 = 4;

/// What is remembered of a model beside its file, so that listing it costs nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The file that this is about.
    stamp: FileStamp,
    sha256: String,
    name: Option<String>,
    architecture: String,
    quantization: String,
    n_parameters: u64,
    prompt_format: String,
    can_infill: bool,
    has_native_sat: bool,
}

/// What changes when a file does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileStamp {
    size_bytes: u64,
    /// Nanoseconds since 1970.
    modified_ns: u128,
    inode: u64,
}

impl FileStamp {
    fn of(path: &Path) -> Result<Self, EngineError> {
        let metadata = std::fs::metadata(path).map_err(EngineError::io(path))?;
        if !metadata.is_file() {
            return Err(EngineError::NotAFile);
        }
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        let modified_ns = modified.map_or(0, |since| since.as_nanos());
        Ok(Self { size_bytes: metadata.len(), modified_ns, inode })
    }
}

/// Checks that `id` names a file in the library and nothing outside it.
pub(crate) fn check_id(id: &str) -> Result<(), EngineError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    let first = id.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if first && id.len() <= MAX_ID_BYTES && id.chars().all(allowed) {
        return Ok(());
    }
    Err(EngineError::ModelId { got: id.to_owned() })
}

impl ModelLibrary {
    /// The library in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The user's library: `$SATEEN_DATA_DIR/models`, or `models` in the platform's folder for
    /// the data of programs.
    ///
    /// # Errors
    /// [`EngineError::NoDataFolder`].
    pub fn of_user() -> Result<Self, EngineError> {
        let data = match std::env::var_os("SATEEN_DATA_DIR") {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder),
            _ => directories::ProjectDirs::from("", "", "sateen")
                .ok_or(EngineError::NoDataFolder)?
                .data_dir()
                .to_owned(),
        };
        Ok(Self::new(data.join("models")))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the weights of `id` are or would be.
    pub(crate) fn weights_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.gguf"))
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// Everything in the folder that is or looks like a model.
    ///
    /// # Errors
    /// [`EngineError::Io`] when the folder cannot be read.
    pub fn list(&self) -> Result<LibraryListing, EngineError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(EngineError::io(&self.folder)(error)),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
        paths.sort();
        let mut listing = LibraryListing::default();
        for path in paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "gguf")) {
            let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match self.find(&id) {
                Ok(model) => listing.models.push(model),
                Err(error) => listing.unusable.push((path, error)),
            }
        }
        Ok(listing)
    }

    /// The installed model `id`.
    ///
    /// # Errors
    /// [`EngineError::NotInstalled`], or what is wrong with its file.
    pub fn find(&self, id: &str) -> Result<InstalledModel, EngineError> {
        check_id(id)?;
        let path = self.weights_path(id);
        if !path.exists() {
            return Err(EngineError::NotInstalled { id: id.to_owned() });
        }
        let stamp = FileStamp::of(&path)?;
        let known = self.record(id).filter(|record| record.stamp == stamp);
        let record = match known {
            Some(record) => record,
            // A file that is new, or another than it was: look once, remember for the next time.
            None => self.read_and_remember(id, stamp, None)?,
        };
        // A hub's file whose hash the catalogue does not know goes by its name.
        let is_it = |entry: &CatalogEntry| match &entry.sha256 {
            Some(sha256) => *sha256 == record.sha256,
            None => entry.id == id,
        };
        let in_catalog = Catalog::built_in().models.into_iter().find(is_it);
        let name = in_catalog.as_ref().map(|entry| entry.name.clone()).or(record.name);
        let adapters = self.adapters_for(&record.sha256);
        let has_shipped_adapter = built_in_for(&record.sha256).is_some();
        let adaptive_tokens = if !adapters.is_empty() || has_shipped_adapter {
            AdaptiveTokens::Adapter
        } else if record.has_native_sat {
            AdaptiveTokens::Native
        } else {
            AdaptiveTokens::None
        };
        Ok(InstalledModel {
            id: id.to_owned(),
            name: name.unwrap_or_else(|| id.to_owned()),
            path,
            size_bytes: record.stamp.size_bytes,
            sha256: record.sha256,
            architecture: record.architecture,
            quantization: in_catalog.map_or(record.quantization, |entry| entry.quantization),
            n_parameters: record.n_parameters,
            prompt_format: record.prompt_format,
            can_infill: record.can_infill,
            adaptive_tokens,
            has_shipped_adapter,
            adapters,
        })
    }

    fn record(&self, id: &str) -> Option<Record> {
        let bytes = std::fs::read(self.record_path(id)).ok()?;
        serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.version == RECORD_VERSION)
    }

    /// Checks the file of `id`, and notes what it holds. `sha256` is given where it was computed already.
    fn read_and_remember(
        &self,
        id: &str,
        stamp: FileStamp,
        sha256: Option<&str>,
    ) -> Result<Record, EngineError> {
        let path = self.weights_path(id);
        let (summary, tokenizer) = ModelSummary::read(&path)?;
        let format = PromptFormat::of(&tokenizer);
        let sha256 = match sha256 {
            Some(sha256) => sha256.to_owned(),
            None => sha256_of_file(&path)?,
        };
        let record = Record {
            version: RECORD_VERSION,
            stamp,
            sha256,
            name: summary.name,
            architecture: summary.architecture.family.name().to_owned(),
            quantization: summary.quantization,
            n_parameters: summary.n_parameters,
            can_infill: format.can_infill(),
            prompt_format: format.name(),
            has_native_sat: summary.native_sat.is_some(),
        };
        // A folder that is full or read-only costs the same look next time, and nothing else.
        let _ = write_whole(&self.record_path(id), &record);
        Ok(record)
    }

    /// The model `id`, or the default model without one.
    ///
    /// # Errors
    /// Those of [`Self::find`] and [`Self::default_model`].
    pub fn find_or_default(&self, id: Option<&str>) -> Result<InstalledModel, EngineError> {
        match id {
            Some(id) => self.find(id),
            None => self.default_model(),
        }
    }

    /// The model to use when none is named: the catalogue's first that is installed, else any.
    ///
    /// # Errors
    /// [`EngineError::NoModel`].
    pub fn default_model(&self) -> Result<InstalledModel, EngineError> {
        for entry in Catalog::built_in().models {
            if self.weights_path(&entry.id).exists() {
                return self.find(&entry.id);
            }
        }
        self.list()?.models.into_iter().next().ok_or(EngineError::NoModel)
    }

    /// Checks the local file at `source` and adds it. Its id is its name, in small letters.
    ///
    /// # Errors
    /// When the file is not a usable model, or its id is taken. Nothing is left behind.
    pub fn add(&self, source: &Path, mode: AddMode) -> Result<InstalledModel, EngineError> {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let id: String = stem
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
            .collect();
        check_id(&id)?;
        let path = self.weights_path(&id);
        if path.exists() {
            return Err(EngineError::AlreadyInstalled { id });
        }
        let source = source.canonicalize().map_err(EngineError::io(source))?;
        FileStamp::of(&source)?;
        ModelSummary::read(&source)?;
        self.create_folder()?;
        let size_bytes = std::fs::metadata(&source).map_err(EngineError::io(&source))?.len();
        match mode {
            AddMode::Link => symlink(&source, &path).map_err(EngineError::io(&path))?,
            AddMode::Copy => {
                self.check_space(size_bytes)?;
                let part = path.with_extension("gguf.part");
                let copied = std::fs::copy(&source, &part).and_then(|_| std::fs::rename(&part, &path));
                if let Err(error) = copied {
                    let _ = std::fs::remove_file(&part);
                    return Err(EngineError::io(&path)(error));
                }
            }
        }
        self.find(&id)
    }

    /// Where what is measured and learnt of the models is kept.
    pub(crate) fn learned_folder(weights: &Path) -> Option<PathBuf> {
        weights.parent().map(|folder| folder.join("learned"))
    }

    /// Removes the model `id`, and what was learnt of it.
    ///
    /// # Errors
    /// [`EngineError::NotInstalled`] or [`EngineError::Io`].
    pub fn remove(&self, id: &str) -> Result<(), EngineError> {
        check_id(id)?;
        let path = self.weights_path(id);
        if path.symlink_metadata().is_err() {
            return Err(EngineError::NotInstalled { id: id.to_owned() });
        }
        let record = self.record(id);
        std::fs::remove_file(&path).map_err(EngineError::io(&path))?;
        let _ = std::fs::remove_file(self.record_path(id));
        let folder = Self::learned_folder(&path);
        if let Some(files) =
            folder.zip(record).and_then(|(folder, record)| LearnedFiles::new(&folder, &record.sha256))
        {
            files.remove();
        }
        Ok(())
    }

    pub(crate) fn create_folder(&self) -> Result<(), EngineError> {
        std::fs::create_dir_all(&self.folder).map_err(EngineError::io(&self.folder))
    }

    /// Refuses to start what cannot end for want of space.
    pub(crate) fn check_space(&self, needed: u64) -> Result<(), EngineError> {
        let free = fs4::available_space(&self.folder).map_err(EngineError::io(&self.folder))?;
        if free < needed {
            return Err(EngineError::NoSpace { folder: self.folder.clone(), needed, free });
        }
        Ok(())
    }

    /// Notes what was checked of a model whose hash is known.
    ///
    /// # Errors
    /// What is wrong with its file.
    pub(crate) fn remember(&self, id: &str, sha256: &str) -> Result<(), EngineError> {
        let stamp = FileStamp::of(&self.weights_path(id))?;
        self.read_and_remember(id, stamp, Some(sha256)).map(|_| ())
    }
}

/// Writes `value` as JSON so that a reader sees the old file or the new one, never half of it.
pub(crate) fn write_whole(path: &Path, value: &impl Serialize) -> Result<(), EngineError> {
    let part = path.with_extension("json.part");
    let write = || {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(EngineError::io(path))
}

#[cfg(unix)]
fn symlink(source: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(source, link)
}

#[cfg(windows)]
fn symlink(source: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(source, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_the_folder() {
        for id in ["", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "A", "a\0", "-a", "%2e%2e", "é"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        assert!(check_id(&"a".repeat(65)).is_err());
        assert!(check_id("qwen2.5-coder_0.5b").is_ok());
    }

    #[test]
    fn files_that_are_not_models_are_refused_and_leave_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let library = ModelLibrary::new(folder.path().join("models"));
        let file = folder.path().join("My Model.gguf");
        std::fs::write(&file, b"GGUF but not really").expect("writes");
        assert!(matches!(library.add(&file, AddMode::Copy), Err(EngineError::Model(_))));
        assert!(matches!(
            library.add(&folder.path().join("none.gguf"), AddMode::Copy),
            Err(EngineError::Io { .. })
        ));
        assert!(!library.folder().exists());
        assert!(matches!(library.default_model(), Err(EngineError::NoModel)));
        assert!(matches!(library.find("my-model"), Err(EngineError::NotInstalled { .. })));
    }
}
