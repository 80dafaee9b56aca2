//! The file of the settings.

use std::io::Write;
use std::path::{Path, PathBuf};

use engine::AdapterChoice;
use serde_json::{Map, Value, json};

use crate::Settings;

/// Layout of the file; older ones are read, newer ones are read as far as they are understood.
const VERSION: u64 = 1;
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;
const VERSION_KEY: &str = "version";

/// Why settings cannot be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value is not what its setting can be.
    #[error("`{setting}` must be {bound}. Given: {got}")]
    OutOfRange {
        /// Group and name.
        setting: String,
        /// What it can be.
        bound: String,
        /// What was given.
        got: String,
    },
    /// There is no such setting.
    #[error("there is no setting `{setting}`")]
    Unknown {
        /// Group and name.
        setting: String,
    },
    /// The file is not one of settings.
    #[error("{} holds no settings: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Something that was wrong with the file and is right now: words for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice(pub String);

/// Settings with the file that they come from.
#[derive(Debug)]
pub struct SettingsFile {
    path: PathBuf,
    /// Everything that the file holds, what is not understood too.
    entries: Map<String, Value>,
    settings: Settings,
}

impl SettingsFile {
    /// The settings at `path`; the defaults where there is no such file. A file that is broken is renamed to
    /// `.bad`, values that cannot be are left out, and both are said.
    pub fn open(path: impl Into<PathBuf>) -> (Self, Vec<Notice>) {
        let path = path.into();
        match read(&path) {
            Ok(None) => (Self { path, entries: Map::new(), settings: Settings::default() }, Vec::new()),
            Ok(Some(entries)) => {
                let (settings, mut notices) = settings_in(&entries);
                if entries.get(VERSION_KEY).and_then(Value::as_u64).is_some_and(|version| version > VERSION) {
                    let what = format!("{} was written by a newer version", path.display());
                    notices.push(Notice(format!("{what}; what is not known here is kept")));
                }
                (Self { path, entries, settings }, notices)
            }
            Err(error) => {
                let notice = match &error {
                    SettingsError::Malformed { .. } => set_aside(&path, &error),
                    _ => format!("{error}; the defaults are used"),
                };
                let empty = Self { path, entries: Map::new(), settings: Settings::default() };
                (empty, vec![Notice(notice)])
            }
        }
    }

    /// The user's settings: `settings.json` in the folder of [`config_folder`](crate::config_folder).
    pub fn of_user() -> (Self, Vec<Notice>) {
        match crate::config_folder() {
            Some(folder) => Self::open(folder.join("settings.json")),
            None => {
                let nowhere =
                    Self { path: PathBuf::new(), entries: Map::new(), settings: Settings::default() };
                (
                    nowhere,
                    vec![Notice("this system names no folder for settings; they are not kept".to_owned())],
                )
            }
        }
    }

    /// The values.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives `name` of `group` the value `value`, and writes the file; with `None` the default again.
    ///
    /// # Errors
    /// [`SettingsError`]; the settings are then what they were.
    pub fn change(&mut self, group: &str, name: &str, value: Option<Value>) -> Result<(), SettingsError> {
        let setting = format!("{group}.{name}");
        let mut known = values_of(&self.settings);
        let Some(slot) = known.get_mut(group).and_then(|values| values.get_mut(name)) else {
            return Err(SettingsError::Unknown { setting });
        };
        let defaults = values_of(&Settings::default());
        let value = value.unwrap_or_else(|| defaults[group][name].clone());
        let got = value.to_string();
        *slot = value;
        let value = slot.clone();
        let settings: Settings = serde_json::from_value(Value::Object(known)).map_err(|error| {
            SettingsError::OutOfRange { setting: setting.clone(), bound: error.to_string(), got }
        })?;
        settings.check()?;
        let mut entries = self.entries.clone();
        entries.insert(VERSION_KEY.to_owned(), json!(VERSION.max(version_of(&self.entries))));
        let of_group = entries.entry(group).or_insert_with(|| json!({}));
        if !of_group.is_object() {
            *of_group = json!({});
        }
        of_group[name] = value;
        self.adopt(entries, settings)
    }

    /// Chooses the adapter of the model `id`, in the words of [`engine::InstalledModel::adapter`], and writes the file.
    ///
    /// # Errors
    /// [`SettingsError`]; the settings are then what they were.
    pub fn choose_adapter(&mut self, id: &str, choice: &str) -> Result<(), SettingsError> {
        let mut adapters = self.settings.model.adapters.clone();
        match choice {
            AdapterChoice::NEWEST => adapters.remove(id),
            _ => adapters.insert(id.to_owned(), choice.to_owned()),
        };
        self.change("model", "adapters", Some(json!(adapters)))
    }

    /// Takes all settings from another file, which must be whole.
    ///
    /// # Errors
    /// [`SettingsError`]; the settings are then what they were.
    pub fn import(&mut self, path: &Path) -> Result<(), SettingsError> {
        let malformed = |reason| SettingsError::Malformed { path: path.to_owned(), reason };
        let entries = read(path)?.ok_or_else(|| malformed("there is no such file".to_owned()))?;
        let settings: Settings = serde_json::from_value(Value::Object(entries.clone()))
            .map_err(|error| malformed(error.to_string()))?;
        settings.check()?;
        self.adopt(entries, settings)
    }

    /// Writes all settings to another file.
    ///
    /// # Errors
    /// [`SettingsError::Io`].
    pub fn export(&self, path: &Path) -> Result<(), SettingsError> {
        let mut entries = self.entries.clone();
        entries.insert(VERSION_KEY.to_owned(), json!(VERSION.max(version_of(&self.entries))));
        for (group, values) in values_of(&self.settings) {
            let of_group = entries.entry(group).or_insert_with(|| json!({}));
            if let (Some(of_group), Value::Object(values)) = (of_group.as_object_mut(), values) {
                of_group.extend(values);
            }
        }
        write(path, &entries)
    }

    fn adopt(&mut self, entries: Map<String, Value>, settings: Settings) -> Result<(), SettingsError> {
        if !self.path.as_os_str().is_empty() {
            write(&self.path, &entries)?;
        }
        (self.entries, self.settings) = (entries, settings);
        Ok(())
    }
}

fn version_of(entries: &Map<String, Value>) -> u64 {
    entries.get(VERSION_KEY).and_then(Value::as_u64).unwrap_or(0)
}

fn values_of(settings: &Settings) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(values)) => values,
        // A structure of numbers, texts and lists is an object.
        _ => Map::new(),
    }
}

/// The settings in `entries`, one by one, so that a value that cannot be costs no other.
fn settings_in(entries: &Map<String, Value>) -> (Settings, Vec<Notice>) {
    let mut settings = Settings::default();
    let mut notices = Vec::new();
    for (group, defaults) in values_of(&Settings::default()) {
        let Some(names) = defaults.as_object() else { continue };
        for name in names.keys() {
            let Some(value) = entries.get(&group).and_then(|values| values.get(name)) else { continue };
            let mut values = values_of(&settings);
            values[&group][name] = value.clone();
            let read = serde_json::from_value::<Settings>(Value::Object(values))
                .map_err(|error| error.to_string())
                .and_then(|read| read.check().map(|()| read).map_err(|error| error.to_string()));
            match read {
                Ok(read) => settings = read,
                Err(reason) => {
                    notices.push(Notice(format!("`{group}.{name}` in the settings is not used: {reason}")));
                }
            }
        }
    }
    (settings, notices)
}

/// `None` where there is no file.
fn read(path: &Path) -> Result<Option<Map<String, Value>>, SettingsError> {
    let io = |source| SettingsError::Io { path: path.to_owned(), source };
    let malformed = |reason| SettingsError::Malformed { path: path.to_owned(), reason };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.is_file() => return Err(malformed("it is not a file".to_owned())),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(malformed(format!("it is larger than {MAX_BYTES} bytes")));
        }
        Ok(_) => (),
    }
    let bytes = std::fs::read(path).map_err(io)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(entries)) => Ok(Some(entries)),
        Ok(_) => Err(malformed("it is no object".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Renames a broken file, so that nothing of it is lost and nothing of it is in the way.
fn set_aside(path: &Path, error: &SettingsError) -> String {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bad");
    let aside = path.with_file_name(name);
    match std::fs::rename(path, &aside) {
        Ok(()) => format!("{error}. It was set aside as {}, and the defaults are used", aside.display()),
        Err(source) => format!("{error}. The defaults are used, and it cannot be set aside: {source}"),
    }
}

/// Beside the file first, so that a crash leaves the old one whole; for its owner's eyes only.
fn write(path: &Path, entries: &Map<String, Value>) -> Result<(), SettingsError> {
    let io = |source| SettingsError::Io { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io)?;
    let mut part = tempfile::Builder::new().prefix(".settings-").tempfile_in(folder).map_err(io)?;
    let text = serde_json::to_string_pretty(entries).map_err(|error| io(error.into()))?;
    writeln!(part, "{text}").map_err(io)?;
    part.as_file().sync_all().map_err(io)?;
    part.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> (tempfile::TempDir, SettingsFile, Vec<Notice>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("settings.json");
        std::fs::write(&path, text).expect("writes");
        let (file, notices) = SettingsFile::open(path);
        (folder, file, notices)
    }

    #[test]
    fn a_change_is_kept_and_nothing_that_is_not_known_is_lost() {
        let text = r#"{"future": [1], "model": {"threads": 2, "quantum": true}, "version": 7}"#;
        let (_folder, mut file, notices) = open(text);
        assert!(notices.len() == 1 && notices[0].0.contains("newer version"), "{notices:?}");
        assert_eq!(file.settings().model.threads, 2);
        file.change("completion", "max_tokens", Some(json!(32))).expect("a sound value");
        file.change("model", "threads", None).expect("the default");
        let (again, _) = SettingsFile::open(file.path());
        assert_eq!(again.settings(), file.settings());
        assert_eq!((again.settings().completion.max_tokens, again.settings().model.threads), (32, 0));
        let kept: Value = serde_json::from_slice(&std::fs::read(file.path()).expect("reads")).expect("JSON");
        assert_eq!(kept["future"], json!([1]));
        assert_eq!(kept["model"]["quantum"], json!(true));
        assert_eq!(kept["version"], json!(7));
    }

    #[test]
    fn a_broken_file_is_set_aside_and_the_next_start_works() {
        for text in ["{\"model\": ", "[]", "", "\u{0}"] {
            let (folder, mut file, notices) = open(text);
            assert_eq!(file.settings(), &Settings::default());
            assert!(notices[0].0.contains(".bad"), "{notices:?}");
            let aside = folder.path().join("settings.json.bad");
            assert_eq!(std::fs::read_to_string(aside).expect("nothing is lost"), text);
            file.change("appearance", "theme", Some(json!("dark"))).expect("a sound value");
            assert!(SettingsFile::open(file.path()).1.is_empty());
        }
    }

    #[test]
    fn a_value_that_cannot_be_costs_no_other() {
        let text = r#"{"model": {"threads": -1, "context_tokens": 2048}, "appearance": 5,
                       "completion": {"temperature": 9, "max_tokens": 10, "speculation": "magic"}}"#;
        let (_folder, mut file, notices) = open(text);
        assert_eq!(file.settings().model.context_tokens, 2048);
        assert_eq!(file.settings().completion.max_tokens, 10);
        assert_eq!(file.settings().completion.temperature, 0.0);
        assert_eq!(notices.len(), 3, "{notices:?}");
        file.change("appearance", "code_size", Some(json!(16))).expect("a sound value");
        assert_eq!(SettingsFile::open(file.path()).0.settings().appearance.code_size, 16.0);
    }

    #[test]
    fn changes_that_cannot_be_are_refused_in_words() {
        let (_folder, mut file, _) = open("{}");
        let cases = [
            (
                "completion",
                "max_tokens",
                json!(0),
                "`completion.max_tokens` must be from 1 to 1024. Given: 0",
            ),
            ("completion", "temperature", json!(2.5), "must be from 0 to 2. Given: 2.5"),
            ("completion", "speculation", json!("magic"), "unknown variant `magic`"),
            ("model", "threads", json!("many"), "invalid type"),
            ("clipboard", "hotkey", json!("a\nb"), "one line"),
            ("model", "none", json!(1), "there is no setting `model.none`"),
            ("none", "id", json!(1), "there is no setting `none.id`"),
        ];
        for (group, name, value, words) in cases {
            let error = file.change(group, name, Some(value)).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(file.settings(), &Settings::default());
        assert_eq!(std::fs::read_to_string(file.path()).expect("reads"), "{}", "nothing was written");
    }

    #[test]
    fn settings_travel_in_a_file_of_their_own() {
        let (folder, mut file, _) = open(r#"{"other": 1}"#);
        file.change("model", "context_tokens", Some(json!(1024))).expect("a sound value");
        let exported = folder.path().join("exported.json");
        file.export(&exported).expect("writes");
        let (_other_folder, mut other, _) = open("{}");
        other.import(&exported).expect("its own export");
        assert_eq!(other.settings(), file.settings());
        std::fs::write(&exported, r#"{"model": {"threads": 100000}}"#).expect("writes");
        assert!(other.import(&exported).is_err() && other.import(&folder.path().join("none")).is_err());
        assert_eq!(other.settings(), file.settings());
    }

    #[cfg(unix)]
    #[test]
    fn settings_are_for_their_owner() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, mut file, _) = open("{}");
        file.change("model", "threads", Some(json!(1))).expect("a sound value");
        let mode = std::fs::metadata(file.path()).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
