//! The files that someone works on: opened and saved without losing what another program wrote, kept until they are
//! saved, found in a folder.

#![forbid(unsafe_code)]

mod documents;
mod drafts;
mod error;
mod folder;

pub use documents::{Document, Documents, MAX_FILE_BYTES};
pub use drafts::{Draft, Drafts};
pub use error::DocumentError;
pub use folder::{Folder, FolderListing};
