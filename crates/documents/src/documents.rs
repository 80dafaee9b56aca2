//! The files that are open. The window knows them by number and never names a path.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use ts_rs::TS;

use crate::DocumentError;

/// Largest file that the editor opens.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Links that are followed, one after the other.
const MAX_LINKS: usize = 40;

/// A file in the editor.
#[derive(Clone, Debug, PartialEq, Serialize, TS)]
#[ts(export)]
pub struct Document {
    /// Its number, for saving.
    pub id: u32,
    /// Name of the file.
    pub name: String,
    /// Where it is, for people.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// A file that is open.
struct OpenFile {
    path: PathBuf,
    /// What it held when it was last read or written here.
    content: Digest,
    /// Size and time of the file when it was looked at last: what they do not show is not looked for.
    stamp: Option<(u64, SystemTime)>,
}

/// Enough of a content to see whether another program has changed it.
type Digest = [u8; 32];

fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// All open files.
#[derive(Default)]
pub struct Documents {
    files: Mutex<HashMap<u32, OpenFile>>,
}

impl Documents {
    fn files(&self) -> MutexGuard<'_, HashMap<u32, OpenFile>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, path: PathBuf, content: Digest) -> u32 {
        let mut files = self.files();
        let known = files.iter().find(|(_, file)| file.path == path).map(|(&id, _)| id);
        let id = known.unwrap_or_else(|| files.keys().max().map_or(1, |id| id + 1));
        let stamp = stamp(&path);
        files.insert(id, OpenFile { path, content, stamp });
        id
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn open(&self, path: &Path) -> Result<Document, DocumentError> {
        let path =
            path.canonicalize().map_err(|source| DocumentError::Io { path: path.to_owned(), source })?;
        let bytes = read(&path)?;
        let content = digest(&bytes);
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            DocumentError::NotText { path: path.clone(), at }
        })?;
        let id = self.register(path.clone(), content);
        Ok(Document { id, name: file_name(&path), path: path.display().to_string(), text })
    }

    /// Documents that another program has changed since they were last read or written here, each once.
    pub fn changed(&self) -> Vec<Document> {
        let mut changed = Vec::new();
        for (&id, file) in self.files().iter_mut() {
            let now = stamp(&file.path);
            if now == file.stamp {
                continue;
            }
            file.stamp = now;
            // A file that is gone stays as it is in the window.
            let Ok(bytes) = read(&file.path) else { continue };
            let content = digest(&bytes);
            if content == file.content {
                continue;
            }
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let path = file.path.display().to_string();
            changed.push(Document { id, name: file_name(&file.path), path, text });
        }
        changed
    }

    /// Says that `text`, what another program wrote to document `id`, is what the window shows now.
    ///
    /// # Errors
    /// [`DocumentError::NotOpen`].
    pub fn accept(&self, id: u32, text: &str) -> Result<(), DocumentError> {
        let mut files = self.files();
        let file = files.get_mut(&id).ok_or(DocumentError::NotOpen { id })?;
        file.content = digest(text.as_bytes());
        Ok(())
    }

    /// Forgets a document that was closed.
    pub fn close(&self, id: u32) {
        self.files().remove(&id);
    }

    /// Where document `id` is.
    ///
    /// # Errors
    /// [`DocumentError::NotOpen`].
    pub fn path(&self, id: u32) -> Result<PathBuf, DocumentError> {
        self.files().get(&id).map(|file| file.path.clone()).ok_or(DocumentError::NotOpen { id })
    }

    /// Writes `text` to the open document `id`, unless another program has written to it since; with `overwrite`
    /// even then.
    ///
    /// # Errors
    /// [`DocumentError::Changed`] when another program has, and others.
    pub fn save(&self, id: u32, text: &str, overwrite: bool) -> Result<Document, DocumentError> {
        let (path, known) = match self.files().get(&id) {
            Some(file) => (file.path.clone(), file.content),
            None => return Err(DocumentError::NotOpen { id }),
        };
        // A file that is gone has nothing to lose.
        let has_changed = match read(&path) {
            Ok(bytes) => digest(&bytes) != known,
            Err(DocumentError::Io { source, .. }) => source.kind() != std::io::ErrorKind::NotFound,
            Err(_) => true,
        };
        if has_changed && !overwrite {
            return Err(DocumentError::Changed { path });
        }
        self.save_as(&path, text)
    }

    /// Writes `text` to `path`, which may be new.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn save_as(&self, path: &Path, text: &str) -> Result<Document, DocumentError> {
        let io = |source| DocumentError::Io { path: path.to_owned(), source };
        let path = target_of(path).map_err(io)?;
        write_whole(&path, text, 0o666).map_err(|source| DocumentError::Io { path: path.clone(), source })?;
        let id = self.register(path.clone(), digest(text.as_bytes()));
        Ok(Document { id, name: file_name(&path), path: path.display().to_string(), text: String::new() })
    }
}

/// The content of a file that the editor may open. No more than that is read, whatever its size is said to be.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DocumentError> {
    let io = |source| DocumentError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(DocumentError::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DocumentError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// What a path leads to, whether that exists or not: a link stays a link, and its target is written.
fn target_of(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // No link, or nothing there yet. The folder may be behind links too.
            Err(_) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.unwrap_or(Path::new(".")).canonicalize()?;
                return Ok(folder.join(path.file_name().unwrap_or_default()));
            }
        }
    }
    Err(std::io::Error::other("links that lead to each other"))
}

fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes beside `path` and renames, so that a full disk or a crash never costs the old content. A new file gets
/// `mode`, less what the user's mask takes.
pub(crate) fn write_whole(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sateen-");
    // Temporary files are private; a new document is like any other new file, as the user's mask has it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    let mut part = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
    part.write_all(text.as_bytes())?;
    if let Ok(metadata) = std::fs::metadata(path) {
        part.as_file().set_permissions(metadata.permissions())?;
    }
    part.as_file().sync_all()?;
    part.persist(path)?;
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
        documents.save(document.id, "x = 2\r\n", false).expect("saves");
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
        assert!(matches!(documents.save(7, "", false), Err(DocumentError::NotOpen { id: 7 })));
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

    /// What another program wrote is not lost without a word.
    #[test]
    fn changes_from_outside_are_not_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.py");
        std::fs::write(&path, "x = 1\n").expect("writes");
        let documents = Documents::default();
        let id = documents.open(&path).expect("opens").id;
        documents.save(id, "x = 2\n", false).expect("nobody else wrote");
        documents.save(id, "x = 3\n", false).expect("what was saved here is known");
        // As long, and perhaps within the same tick of the clock.
        std::fs::write(&path, "y = 3\n").expect("writes");
        let error = documents.save(id, "x = 4\n", false).expect_err("changed");
        assert!(matches!(error, DocumentError::Changed { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "y = 3\n");
        documents.save(id, "x = 4\n", true).expect("that is wanted");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "x = 4\n");
        std::fs::remove_file(&path).expect("removes");
        documents.save(id, "x = 5\n", false).expect("a file that is gone is written anew");
    }

    #[test]
    fn changes_from_outside_are_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.py");
        std::fs::write(&path, "x = 1\n").expect("writes");
        let documents = Documents::default();
        let id = documents.open(&path).expect("opens").id;
        assert!(documents.changed().is_empty());
        std::fs::write(&path, "x = 100\n").expect("writes");
        let changed = documents.changed();
        assert_eq!((changed[0].id, changed[0].text.as_str()), (id, "x = 100\n"));
        assert!(documents.changed().is_empty(), "once");
        assert!(matches!(documents.save(id, "mine", false), Err(DocumentError::Changed { .. })));
        documents.accept(id, "x = 100\n").expect("it is open");
        documents.save(id, "x = 2\n", false).expect("what is shown is known");
        assert!(documents.changed().is_empty(), "what was saved here is no news");
        std::fs::remove_file(&path).expect("removes");
        assert!(documents.changed().is_empty());
        documents.close(id);
        assert!(documents.path(id).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links_and_masks_are_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (link, second) = (folder.path().join("link.py"), folder.path().join("second.py"));
        let target = folder.path().join("target.py");
        std::os::unix::fs::symlink("second.py", &link).expect("a link");
        std::os::unix::fs::symlink("target.py", &second).expect("a link to a file that is not there yet");
        let documents = Documents::default();
        let saved = documents.save_as(&link, "x = 1\n").expect("saves");
        assert_eq!(saved.name, "target.py");
        assert!(link.is_symlink() && second.is_symlink() && !target.is_symlink());
        assert_eq!(std::fs::read_to_string(&link).expect("reads"), "x = 1\n");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        let other = folder.path().join("other");
        std::fs::File::create(&other).expect("a new file");
        assert_eq!(mode(&target), mode(&other), "as any new file");
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o640)).expect("changes");
        documents.save_as(&link, "x = 2\n").expect("saves");
        assert_eq!(mode(&target), 0o640, "as it was");
        std::fs::remove_file(&target).expect("removes");
        std::os::unix::fs::symlink("link.py", &target).expect("a circle");
        assert!(documents.save_as(&link, "x").is_err());
    }

    #[test]
    fn files_that_are_too_large_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large.txt");
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(MAX_FILE_BYTES + 1))
            .expect("a sparse file");
        assert!(matches!(Documents::default().open(&path), Err(DocumentError::TooLarge { .. })));
    }

    /// Set for the process that is killed: the file that it saves again and again.
    const FILE: &str = "SATEEN_FAULTS_FILE";

    #[test]
    #[ignore = "a part of `a_save_that_is_killed_leaves_a_whole_file`"]
    fn child_saves() {
        let Some(path) = std::env::var_os(FILE).map(PathBuf::from) else { return };
        let documents = Documents::default();
        for letter in ["a", "b"].into_iter().cycle() {
            documents.save_as(&path, &letter.repeat(1 << 20)).expect("saves");
        }
    }

    /// Killed at any moment, a save leaves the old content or the new one.
    #[test]
    fn a_save_that_is_killed_leaves_a_whole_file() {
        let n_faults = std::env::var("SATEEN_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("document.txt");
        std::fs::write(&path, "a".repeat(1 << 20)).expect("writes");
        for n in 0..n_faults {
            let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "documents::tests::child_saves", "--include-ignored"])
                .env(FILE, &path)
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("this program starts");
            std::thread::sleep(std::time::Duration::from_millis(20 + n * 37 % 300));
            child.kill().and_then(|()| child.wait()).expect("it was running");
            let text = std::fs::read_to_string(&path).expect("it is there");
            let first = text.chars().next().expect("it is not empty");
            assert!(text.len() == 1 << 20 && text.chars().all(|c| c == first), "half of a save");
        }
    }
}
