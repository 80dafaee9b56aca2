//! Where settings and what is remembered are kept.

use std::path::PathBuf;

use directories::ProjectDirs;

/// A variable of the environment that names a folder, else what the platform says.
fn folder(variable: &str, platform: impl Fn(&ProjectDirs) -> PathBuf) -> Option<PathBuf> {
    match std::env::var_os(variable) {
        Some(folder) if !folder.is_empty() => Some(PathBuf::from(folder)),
        _ => ProjectDirs::from("", "", "sateen").as_ref().map(platform),
    }
}

/// The folder of the settings: `$SATEEN_CONFIG_DIR`, or the platform's. `None` for a user without home.
pub fn config_folder() -> Option<PathBuf> {
    folder("SATEEN_CONFIG_DIR", |folders| folders.config_dir().to_owned())
}

/// The folder of history and unsaved texts: `$SATEEN_STATE_DIR`, or the platform's. `None` for a user without home.
pub fn state_folder() -> Option<PathBuf> {
    folder("SATEEN_STATE_DIR", |folders| {
        folders.state_dir().unwrap_or_else(|| folders.data_local_dir()).to_owned()
    })
}
