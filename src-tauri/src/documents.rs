//! The files that are open. The window knows them by number and never names a path.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::{EngineError, ErrorCode};
use serde::Serialize;
use ts_rs::TS;

use crate::error::CommandError;

/// Largest file that the editor opens.
pub(crate) const MAX_FILE_BYTES: u64 = 16 << 20;

/// A file in the editor.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
#[ts(export)]
pub(crate) struct Document {
    /// Its number, for saving.
    pub(crate) id: u32,
    /// Name of the file.
    pub(crate) name: String,
    /// Where it is, for people.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

/// A document that came from outside the window.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "event", rename_all = "snake_case")]
#[ts(export)]
pub(crate) enum DocumentEvent {
    /// It was opened.
    Opened(Document),
    /// It could not be opened.
    Failed(CommandError),
}

/// Why a file cannot be opened or saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} holds {got} bytes; the editor opens at most {MAX_FILE_BYTES}", path.display())]
    TooLarge { path: PathBuf, got: u64 },
    #[error("{} is not UTF-8 text: byte {at}", path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("document {id} is not open")]
    NotOpen { id: u32 },
    #[error("{} is not a file", path.display())]
    NotAFile { path: PathBuf },
}

impl From<DocumentError> for CommandError {
    fn from(error: DocumentError) -> Self {
        let code = match &error {
            DocumentError::Io { path, source } => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                EngineError::Io { path: path.clone(), source }.code()
            }
            _ => ErrorCode::InvalidRequest,
        };
        Self { code, message: error.to_string() }
    }
}

/// All open files.
#[derive(Default)]
pub(crate) struct Documents {
    paths: Mutex<HashMap<u32, PathBuf>>,
}

impl Documents {
    fn paths(&self) -> MutexGuard<'_, HashMap<u32, PathBuf>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, path: PathBuf) -> u32 {
        let mut paths = self.paths();
        if let Some((&id, _)) = paths.iter().find(|(_, known)| **known == path) {
            return id;
        }
        let id = paths.keys().max().map_or(1, |id| id + 1);
        paths.insert(id, path);
        id
    }

    /// Reads the file at `path`.
    pub(crate) fn open(&self, path: &Path) -> Result<Document, DocumentError> {
        let io = |source| DocumentError::Io { path: path.to_owned(), source };
        let path = path.canonicalize().map_err(io)?;
        let io = |source| DocumentError::Io { path: path.clone(), source };
        let metadata = std::fs::metadata(&path).map_err(io)?;
        if !metadata.is_file() {
            return Err(DocumentError::NotAFile { path });
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(DocumentError::TooLarge { got: metadata.len(), path });
        }
        let bytes = std::fs::read(&path).map_err(io)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            DocumentError::NotText { path: path.clone(), at }
        })?;
        let id = self.register(path.clone());
        Ok(Document { id, name: file_name(&path), path: path.display().to_string(), text })
    }

    /// Writes `text` to the open document `id`.
    pub(crate) fn save(&self, id: u32, text: &str) -> Result<Document, DocumentError> {
        let path = self.paths().get(&id).cloned().ok_or(DocumentError::NotOpen { id })?;
        self.save_as(&path, text)
    }

    /// Writes `text` to `path`, which may be new.
    pub(crate) fn save_as(&self, path: &Path, text: &str) -> Result<Document, DocumentError> {
        // A link stays a link: what it points to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        write_whole(&path, text).map_err(|source| DocumentError::Io { path: path.clone(), source })?;
        let id = self.register(path.clone());
        Ok(Document { id, name: file_name(&path), path: path.display().to_string(), text: String::new() })
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes beside `path` and renames, so that a full disk or a crash never costs the old content.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut part =
        tempfile::Builder::new().prefix(".sateen-").tempfile_in(folder.unwrap_or(Path::new(".")))?;
    part.write_all(text.as_bytes())?;
    part.as_file().sync_all()?;
    match std::fs::metadata(path) {
        Ok(metadata) => part.as_file().set_permissions(metadata.permissions())?,
        Err(_) => set_new_file_permissions(part.as_file())?,
    }
    part.persist(path)?;
    Ok(())
}

/// Temporary files are private; a new document is like any other new file.
#[cfg(unix)]
fn set_new_file_permissions(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_new_file_permissions(_file: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_saved_where_they_came_from() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.py");
        std::fs::write(&path, "x = 1\r\n").expect("writes");
        let documents = Documents::default();
        let document = documents.open(&path).expect("opens");
        assert_eq!((document.name.as_str(), document.text.as_str()), ("a.py", "x = 1\r\n"));
        assert_eq!(documents.open(&path).expect("opens").id, document.id);
        documents.save(document.id, "x = 2\r\n").expect("saves");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "x = 2\r\n");
        let names: Vec<_> = std::fs::read_dir(folder.path()).expect("lists").collect();
        assert_eq!(names.len(), 1, "nothing is left beside the file");
    }

    #[test]
    fn what_is_not_text_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image.bin");
        std::fs::write(&path, b"ab\xff\xfe").expect("writes");
        let documents = Documents::default();
        assert!(matches!(documents.open(&path), Err(DocumentError::NotText { at: 2, .. })));
        assert!(matches!(documents.open(folder.path()), Err(DocumentError::NotAFile { .. })));
        assert!(matches!(documents.open(&folder.path().join("none")), Err(DocumentError::Io { .. })));
        assert!(matches!(documents.save(7, ""), Err(DocumentError::NotOpen { id: 7 })));
    }

    #[cfg(unix)]
    #[test]
    fn a_failed_save_leaves_the_old_content() {
        let documents = Documents::default();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gone").join("a.py");
        assert!(documents.save_as(&path, "x").is_err());
        assert!(!path.exists());
    }
}
