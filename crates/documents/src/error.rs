//! Why a file cannot be opened or saved.

use std::path::{Path, PathBuf};

use crate::MAX_FILE_BYTES;

/// Why a file cannot be opened or saved.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The system says so.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is larger than the editor opens.
    #[error("{} is too large; the editor opens at most {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Saving it would lose what another program wrote.
    #[error("{} was changed by another program", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// It is not text.
    #[error("{} is not UTF-8 text: byte {at}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The first byte that is none of UTF-8.
        at: usize,
    },
    /// Nobody opened it.
    #[error("document {id} is not open")]
    NotOpen {
        /// Its number.
        id: u32,
    },
    /// It is a folder, a device, or something else.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// It is not in the folder that is open.
    #[error("{} is not in the folder that is open", path.display())]
    Outside {
        /// What was asked for.
        path: PathBuf,
    },
}

impl DocumentError {
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
