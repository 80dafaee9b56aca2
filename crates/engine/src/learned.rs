//! What is kept of a model between runs: what its passes cost on this device, and what token
//! recycling has learnt. All of it can be lost without harm, so problems with the files are no errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Model, ModelError};
use serde::{Deserialize, Serialize};
use speculate::{PassCosts, TokenRecycling};

use crate::EngineError;
use crate::cost::measure_pass_costs;

/// Goes up when kernels change so much that old measurements mislead.
const COSTS_VERSION: u32 = 3;
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The files of one model.
#[derive(Clone, Debug)]
pub(crate) struct LearnedFiles {
    folder: PathBuf,
    /// The start of their names.
    stem: String,
}

#[derive(Serialize, Deserialize)]
struct CostsFile {
    version: u32,
    device: String,
    /// Rows and milliseconds.
    points: Vec<(usize, f64)>,
    /// Milliseconds that adaptive rows add.
    adaptive_ms: f64,
}

#[derive(Serialize, Deserialize)]
struct VerdictFile {
    version: u32,
    gpu: String,
    is_quicker: bool,
}

/// A file for each way of running, so that they do not take each other's place.
fn kind_for(device: &str) -> String {
    let slug = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("{}.json", device.chars().map(slug).collect::<String>())
}

fn verdict_kind(gpu: &str) -> String {
    format!("verdict-{}", kind_for(gpu))
}

impl LearnedFiles {
    /// In `folder`, for the weights with this SHA-256.
    pub(crate) fn new(folder: &Path, sha256: &str) -> Option<Self> {
        let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| Self { folder: folder.to_owned(), stem: sha256[..16].to_owned() })
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.stem))
    }

    fn read(&self, kind: &str) -> Option<Vec<u8>> {
        let path = self.path(kind);
        let is_small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_FILE_BYTES);
        is_small.then(|| std::fs::read(path).ok()).flatten()
    }

    /// Whole or not at all: a reader never sees half a file.
    fn write(&self, kind: &str, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.persist(self.path(kind))?;
        Ok(())
    }

    /// What passes of `model` were found to cost on its device.
    pub(crate) fn known_costs(&self, model: &Model) -> Option<PassCosts> {
        let device = model.device_fingerprint();
        let known =
            self.read(&kind_for(&device)).and_then(|bytes| serde_json::from_slice::<CostsFile>(&bytes).ok());
        let known = known.filter(|file| file.version == COSTS_VERSION && file.device == device);
        known.and_then(|file| {
            let costs = PassCosts::new(file.points)?;
            let adaptive_ms = costs.of(1) + file.adaptive_ms;
            Some(costs.with_adaptive(1, adaptive_ms))
        })
    }

    /// Measures what passes of `model` cost, and writes it down.
    ///
    /// # Errors
    /// [`ModelError::Cancelled`] when `is_cancelled` says so while it is measured.
    pub(crate) fn measure_costs(
        &self,
        model: &Arc<Model>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<PassCosts>, EngineError> {
        let device = model.device_fingerprint();
        let kind = kind_for(&device);
        let costs = match measure_pass_costs(model, is_cancelled) {
            Ok(costs) => costs,
            Err(error @ EngineError::Model(ModelError::Cancelled)) => return Err(error),
            // Widths are guessed.
            Err(_) => return Ok(None),
        };
        let file = CostsFile {
            version: COSTS_VERSION,
            device,
            points: costs.points().to_vec(),
            adaptive_ms: costs.adaptive_ms(),
        };
        if let Ok(bytes) = serde_json::to_vec(&file) {
            // Measured again next time.
            let _ = self.write(&kind, &bytes);
        }
        Ok(Some(costs))
    }

    /// Whether the GPU with this name was found to be quicker at the model than the processor.
    pub(crate) fn is_quicker_on(&self, gpu: &str) -> Option<bool> {
        let file: VerdictFile = serde_json::from_slice(&self.read(&verdict_kind(gpu))?).ok()?;
        (file.version == COSTS_VERSION && file.gpu == gpu).then_some(file.is_quicker)
    }

    /// Writes down whether it is.
    pub(crate) fn save_is_quicker_on(&self, gpu: &str, is_quicker: bool) {
        let file = VerdictFile { version: COSTS_VERSION, gpu: gpu.to_owned(), is_quicker };
        if let Ok(bytes) = serde_json::to_vec(&file) {
            // Found out again next time.
            let _ = self.write(&verdict_kind(gpu), &bytes);
        }
    }

    /// What token recycling has learnt.
    pub(crate) fn recycling(&self, model: &Model) -> TokenRecycling {
        let bytes = self.read("recycling");
        let vocabulary = model.architecture().vocabulary;
        bytes.and_then(|bytes| TokenRecycling::load(&bytes, vocabulary)).unwrap_or_default()
    }

    /// Removes them all.
    pub(crate) fn remove(&self) {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let prefix = format!("{}.", self.stem);
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
            // What stays is small, and of no use to anybody.
            let _ = std::fs::remove_file(entry.path());
        }
    }

    pub(crate) fn save_recycling(&self, bytes: &[u8]) {
        // Learnt again.
        let _ = self.write("recycling", bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ModelConfig;

    fn tiny() -> Arc<Model> {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        Arc::new(Model::load(&ModelConfig::new(tiny)).expect("the tiny model"))
    }

    /// As the engine does.
    fn costs_of(files: &LearnedFiles, model: &Arc<Model>) -> PassCosts {
        let measure = || files.measure_costs(model, &|| false).expect("measures").expect("costs");
        files.known_costs(model).unwrap_or_else(measure)
    }

    #[test]
    fn whether_a_gpu_is_quicker_is_found_out_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = LearnedFiles::new(folder.path(), &"ab".repeat(32)).expect("a hash");
        let (one, other) = ("RTX 4090 (cuda:0)", "RTX 4090 (vulkan:0)");
        assert_eq!(files.is_quicker_on(one), None);
        files.save_is_quicker_on(one, true);
        files.save_is_quicker_on(other, false);
        assert_eq!((files.is_quicker_on(one), files.is_quicker_on(other)), (Some(true), Some(false)));
        std::fs::write(files.path(&verdict_kind(one)), b"{").expect("writes");
        assert_eq!(files.is_quicker_on(one), None);
    }

    #[test]
    fn costs_are_measured_once_for_a_device() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = LearnedFiles::new(folder.path(), &"ab".repeat(32)).expect("a hash");
        let model = tiny();
        let measured = costs_of(&files, &model);
        // A measurement never gives the same numbers twice, to so many digits.
        let read = costs_of(&files, &model);
        for (a, b) in read.points().iter().zip(measured.points()) {
            assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-9 * b.1);
        }
        let path =
            std::fs::read_dir(folder.path()).expect("the folder").next().expect("a file").expect("it").path();
        // Nothing here takes an hour: what says so was not measured.
        let hour = 3_600_000.0;
        let file = |version, device: &str, points: &[(usize, f64)]| {
            let file =
                CostsFile { version, device: device.to_owned(), points: points.to_vec(), adaptive_ms: 0.0 };
            serde_json::to_string(&file).expect("JSON")
        };
        let device = model.device_fingerprint();
        let points = [(1, hour), (8, 2.0 * hour)];
        let of_one = |text: &str| {
            std::fs::write(&path, text).expect("writes");
            costs_of(&files, &model).of(1)
        };
        assert_eq!(
            of_one(&file(COSTS_VERSION, &device, &points)),
            hour,
            "what was measured here is believed"
        );
        assert!(of_one(&file(COSTS_VERSION, "another device", &points)) < hour, "it is measured again");
        assert!(std::fs::read_to_string(&path).expect("the file").contains(&device), "and written down");
        assert!(of_one(&file(COSTS_VERSION + 1, &device, &points)) < hour);
        for broken in ["", "{", &file(COSTS_VERSION, &device, &[(1, -hour)])] {
            assert!(of_one(broken) < hour, "{broken}");
        }
    }

    #[test]
    fn what_recycling_learnt_survives_and_broken_files_are_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = LearnedFiles::new(folder.path(), &"cd".repeat(32)).expect("a hash");
        let model = tiny();
        assert!(files.recycling(&model).is_empty());
        files.save_recycling(&TokenRecycling::default().save());
        assert!(files.path("recycling").exists() && files.recycling(&model).is_empty());
        std::fs::write(files.path("recycling"), b"something else").expect("writes");
        assert!(files.recycling(&model).is_empty());
        let other = LearnedFiles::new(folder.path(), &"ef".repeat(32)).expect("a hash");
        other.save_recycling(b"another model's");
        files.remove();
        assert!(!files.path("recycling").exists() && other.path("recycling").exists());
        assert!(LearnedFiles::new(folder.path(), "../../etc/passwd").is_none());
        assert!(LearnedFiles::new(folder.path(), "").is_none());
    }
}
