//! Files and folders as the window opens them.

use std::path::{Path, PathBuf};

use documents::{Document, Draft, Folder, FolderListing, MAX_FILE_BYTES};
use serde::Serialize;
use ts_rs::TS;

use crate::error::{CommandError, CommandResult};
use crate::state::{Application, lock};

/// A document that came from outside the window.
#[derive(Clone, Debug, Serialize, TS)]
#[serde(tag = "event", rename_all = "snake_case")]
#[ts(export)]
pub enum DocumentEvent {
    /// It was opened.
    Opened(Document),
    /// A folder was.
    FolderOpened(FolderListing),
    /// It could not be opened.
    Failed(CommandError),
}

/// A text that was not saved when the app ended.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub struct RestoredDraft {
    /// The text.
    pub draft: Draft,
    /// What its file holds now; `null` when it was never saved, or its file is gone.
    pub document: Option<Document>,
}

impl Application {
    /// Opens a file or a folder.
    pub fn open(&self, path: &Path) -> DocumentEvent {
        let opened = match path.is_dir() {
            true => self.open_folder(path).map(DocumentEvent::FolderOpened),
            false => self.documents.open(path).map(DocumentEvent::Opened).map_err(CommandError::from),
        };
        opened.unwrap_or_else(DocumentEvent::Failed)
    }

    /// What the app was started with, once.
    pub fn open_initial(&self) -> Option<DocumentEvent> {
        self.take_initial_path().map(|path| self.open(&path))
    }

    /// Makes a folder the one that the window shows.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn open_folder(&self, path: &Path) -> CommandResult<FolderListing> {
        let folder = Folder::open(path)?;
        let listing = folder.list();
        *lock(&self.folder) = Some(folder);
        Ok(listing)
    }

    /// Where the open folder is.
    pub fn folder_root(&self) -> Option<PathBuf> {
        lock(&self.folder).as_ref().map(|folder| folder.root().to_owned())
    }

    /// The files of the open folder, looked at anew; `None` without one.
    pub fn list_folder(&self) -> Option<FolderListing> {
        let folder = lock(&self.folder).clone();
        folder.map(|folder| folder.list())
    }

    /// Opens a file of the open folder.
    ///
    /// # Errors
    ///
    /// No folder is open, the path leads out of it, or the file is none that can be shown.
    pub fn open_in_folder(&self, below: &str) -> CommandResult<Document> {
        let folder = lock(&self.folder).clone();
        let Some(folder) = folder else { return Err(CommandError::invalid("no folder is open")) };
        Ok(self.documents.open(&folder.file(below)?)?)
    }

    /// Texts that were not saved when the app ended.
    pub fn restored_drafts(&self) -> Vec<RestoredDraft> {
        let restored = |draft: Draft| {
            let is_saved = !draft.path.is_empty();
            let document = is_saved.then(|| self.documents.open(Path::new(&draft.path)).ok()).flatten();
            RestoredDraft { draft, document }
        };
        self.drafts.left_behind().into_iter().map(restored).collect()
    }

    /// Keeps the text of a tab, for completions beside it and for after a crash.
    ///
    /// # Errors
    ///
    /// It is longer than a file may be, or cannot be written.
    pub fn keep_draft(&self, draft: Draft) -> CommandResult<()> {
        let n_bytes = draft.text.len() + draft.name.len() + draft.path.len();
        if n_bytes as u64 > MAX_FILE_BYTES {
            return Err(CommandError::invalid(format!(
                "a text is kept up to {MAX_FILE_BYTES} bytes. Given: {n_bytes}"
            )));
        }
        Ok(self.drafts.keep(draft, self.settings().privacy.drafts)?)
    }
}
