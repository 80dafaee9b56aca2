//! Texts that are not saved: kept in memory for whoever completes beside them, and on the disk for after a crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::DocumentError;
use crate::documents::write_whole;

/// Most drafts that are offered again.
const MAX_DRAFTS: usize = 100;

/// The text of a tab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct Draft {
    /// What the window calls it.
    pub key: String,
    /// Name of the file.
    pub name: String,
    /// Where it would be saved; empty for what was never saved.
    pub path: String,
    /// All of it.
    pub text: String,
    /// Whether it is not what the file holds.
    pub is_changed: bool,
}

/// The texts of all tabs.
#[derive(Debug, Default)]
pub struct Drafts {
    /// Where they are kept; nothing is written without it.
    folder: Option<PathBuf>,
    /// By key, with a count that says which was kept last.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    n: u64,
    drafts: BTreeMap<String, (u64, Draft)>,
}

impl Drafts {
    /// Drafts that are written to `folder`.
    pub fn in_folder(folder: Option<PathBuf>) -> Self {
        Self { folder, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        let is_plain =
            !key.is_empty() && key.len() <= 64 && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
        self.folder.as_ref().filter(|_| is_plain).map(|folder| folder.join(format!("{key}.json")))
    }

    /// Keeps the text of a tab. On the disk it is only while it is not saved, and only when `is_written`.
    ///
    /// # Errors
    /// [`DocumentError::Io`].
    pub fn keep(&self, draft: Draft, is_written: bool) -> Result<(), DocumentError> {
        if let Some(path) = self.file(&draft.key) {
            if draft.is_changed && is_written {
                let io = DocumentError::io(&path);
                std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(&io)?;
                let text = serde_json::to_string(&draft).map_err(|error| io(error.into()))?;
                write_whole(&path, &text, 0o600).map_err(io)?;
            } else {
                remove(&path)?;
            }
        }
        let mut kept = self.kept();
        kept.n += 1;
        let n = kept.n;
        kept.drafts.insert(draft.key.clone(), (n, draft));
        Ok(())
    }

    /// Forgets the text of a tab that was closed.
    ///
    /// # Errors
    /// [`DocumentError::Io`].
    pub fn remove(&self, key: &str) -> Result<(), DocumentError> {
        self.kept().drafts.remove(key);
        self.file(key).map_or(Ok(()), |path| remove(&path))
    }

    /// The texts of the tabs but `key`, those that were worked on last first.
    pub fn others(&self, key: &str) -> Vec<Draft> {
        let kept = self.kept();
        let mut others: Vec<&(u64, Draft)> =
            kept.drafts.values().filter(|(_, draft)| draft.key != key).collect();
        others.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        others.into_iter().map(|(_, draft)| draft.clone()).collect()
    }

    /// What an earlier run left, which ended before it was saved. What is no draft is left where it is.
    pub fn left_behind(&self) -> Vec<Draft> {
        let Some(entries) = self.folder.as_ref().and_then(|folder| std::fs::read_dir(folder).ok()) else {
            return Vec::new();
        };
        let read = |entry: std::io::Result<std::fs::DirEntry>| -> Option<Draft> {
            let path = entry.ok()?.path();
            let is_draft = path.extension().is_some_and(|extension| extension == "json");
            let bytes = crate::documents::read(&path).ok().filter(|_| is_draft)?;
            let draft: Draft = serde_json::from_slice(&bytes).ok()?;
            (self.file(&draft.key)? == path).then_some(draft)
        };
        let mut drafts: Vec<Draft> = entries.filter_map(read).take(MAX_DRAFTS).collect();
        drafts.sort_by(|a, b| a.key.cmp(&b.key));
        drafts
    }
}

fn remove(path: &Path) -> Result<(), DocumentError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DocumentError::io(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(key: &str, text: &str, is_changed: bool) -> Draft {
        let (key, text) = (key.to_owned(), text.to_owned());
        Draft { key, name: "a.py".to_owned(), path: String::new(), text, is_changed }
    }

    #[test]
    fn what_was_not_saved_is_offered_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let drafts = Drafts::in_folder(Some(folder.path().join("drafts")));
        assert!(drafts.left_behind().is_empty());
        for (key, text, is_changed) in [("k1", "one", true), ("k2", "two", true), ("k3", "three", false)] {
            drafts.keep(draft(key, text, is_changed), true).expect("keeps");
        }
        drafts.keep(draft("k1", "one and more", true), true).expect("keeps");
        drafts.keep(draft("k4", "private", true), false).expect("keeps");
        let texts = |drafts: Vec<Draft>| drafts.into_iter().map(|draft| draft.text).collect::<Vec<_>>();
        assert_eq!(texts(drafts.others("k2")), ["private", "one and more", "three"]);
        std::fs::write(folder.path().join("drafts/broken.json"), "{").expect("writes");
        let again = Drafts::in_folder(Some(folder.path().join("drafts")));
        assert_eq!(texts(again.left_behind()), ["one and more", "two"]);
        again.remove("k1").expect("removes");
        again.keep(draft("k2", "two", false), true).expect("saved now");
        assert!(again.left_behind().is_empty());
    }

    #[test]
    fn keys_name_no_other_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let drafts = Drafts::in_folder(Some(folder.path().join("drafts")));
        for key in ["../up", "a/b", "", "a.b"] {
            drafts.keep(draft(key, "text", true), true).expect("in memory alone");
            drafts.remove(key).expect("nothing to remove");
        }
        assert!(!folder.path().join("up.json").exists() && drafts.left_behind().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn drafts_are_for_their_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let drafts = Drafts::in_folder(Some(folder.path().to_owned()));
        drafts.keep(draft("k", "text", true), true).expect("keeps");
        let mode = std::fs::metadata(folder.path().join("k.json")).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
