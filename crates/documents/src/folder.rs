//! A folder whose files are listed and opened by their paths below it.

use std::path::{Component, Path, PathBuf};

use ignore::WalkBuilder;
use serde::Serialize;
use ts_rs::TS;

use crate::DocumentError;

/// Most files that are listed.
const MAX_FILES: usize = 20_000;

/// A folder that someone opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    root: PathBuf,
}

/// The files of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, TS)]
#[ts(export)]
pub struct FolderListing {
    /// Name of the folder.
    pub name: String,
    /// Where it is, for people.
    pub path: String,
    /// Paths below it with `/`, in order; what version control ignores is left out, and so is what is hidden.
    pub files: Vec<String>,
    /// False when there are more than are listed.
    pub is_complete: bool,
}

impl Folder {
    /// The folder at `path`.
    ///
    /// # Errors
    /// [`DocumentError`] when it is none.
    pub fn open(path: &Path) -> Result<Self, DocumentError> {
        let root = path.canonicalize().map_err(DocumentError::io(path))?;
        if !root.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(DocumentError::Io { path: root, source });
        }
        Ok(Self { root })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.root.file_name().unwrap_or(self.root.as_os_str()).to_string_lossy().into_owned()
    }

    /// Its files.
    pub fn list(&self) -> FolderListing {
        let mut files = Vec::new();
        let mut is_complete = true;
        let walk = WalkBuilder::new(&self.root).require_git(false).sort_by_file_name(Ord::cmp).build();
        for entry in walk.filter_map(Result::ok) {
            if !entry.file_type().is_some_and(|kind| kind.is_file()) {
                continue;
            }
            if files.len() == MAX_FILES {
                is_complete = false;
                break;
            }
            // A name that is no text cannot be asked for.
            files.extend(self.below(entry.path()));
        }
        let path = self.root.display().to_string();
        FolderListing { name: self.name(), path, files, is_complete }
    }

    /// The path of a file below the folder, with `/`; `None` when it is elsewhere.
    pub fn below(&self, path: &Path) -> Option<String> {
        let parts = path.strip_prefix(&self.root).ok()?.components();
        let parts: Option<Vec<&str>> = parts.map(|part| part.as_os_str().to_str()).collect();
        parts.map(|parts| parts.join("/"))
    }

    /// The file at `below`, a path as [`list`](Self::list) gives them. What leads out of the folder is refused, by
    /// links too.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn file(&self, below: &str) -> Result<PathBuf, DocumentError> {
        let outside = || DocumentError::Outside { path: below.into() };
        let is_plain = Path::new(below).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || below.is_empty() {
            return Err(outside());
        }
        let path = self.root.join(below);
        let path = path.canonicalize().map_err(DocumentError::io(&path))?;
        if path.starts_with(&self.root) { Ok(path) } else { Err(outside()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_without_what_is_ignored() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes it");
            std::fs::write(path, text).expect("writes");
        };
        write("src/a.py", "");
        write("src/deep/er/b.py", "");
        write("target/c.py", "");
        write(".hidden/d.py", "");
        write("README.md", "");
        write(".gitignore", "target\n");
        let listing = Folder::open(folder.path()).expect("a folder").list();
        assert_eq!(listing.files, ["README.md", "src/a.py", "src/deep/er/b.py"]);
        assert!(listing.is_complete);
        assert!(Folder::open(&folder.path().join("README.md")).is_err());
        assert!(Folder::open(&folder.path().join("none")).is_err());
    }

    #[test]
    fn nothing_outside_can_be_opened() {
        let parent = tempfile::tempdir().expect("a folder");
        let inside = parent.path().join("inside");
        std::fs::create_dir(&inside).expect("makes it");
        std::fs::write(inside.join("a.py"), "x").expect("writes");
        std::fs::write(parent.path().join("secret"), "x").expect("writes");
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", inside.join("link")).expect("a link");
        let folder = Folder::open(&inside).expect("a folder");
        let path = folder.file("a.py").expect("a file");
        assert_eq!(folder.below(&path).as_deref(), Some("a.py"));
        for outside in ["../secret", "/etc/passwd", "", "a/../../secret", "link", "./a.py"] {
            let refused = folder.file(outside);
            assert!(matches!(refused, Err(DocumentError::Outside { .. })), "{outside}: {refused:?}");
        }
        assert!(matches!(folder.file("none.py"), Err(DocumentError::Io { .. })));
    }
}
