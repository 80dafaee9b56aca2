//! What a run goes on from: everything that learns, the optimizer's state, and the number of steps.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};

use crate::error::TrainError;
use crate::optimizer::AdamW;
use crate::tensor_file::{NamedTensor, TensorFile, folder_of, write_tensors};

/// Goes up when what is computed changes its meaning.
const VERSION: &str = "1";

/// Where the checkpoints of a run are, and whose they are.
pub(crate) struct CheckpointPlace {
    path: PathBuf,
    base_sha256: String,
    /// Names the run.
    config: String,
}

/// One that is there, of this run.
pub(crate) struct Checkpoint {
    file: TensorFile,
    /// Steps that were done.
    pub(crate) step: usize,
}

fn parts(name: &str) -> [String; 3] {
    ["value", "mean", "square"].map(|part| format!("{name}.{part}"))
}

impl CheckpointPlace {
    /// Beside `out`: its name with `.checkpoint` behind it.
    ///
    /// # Errors
    /// A folder that cannot be written to: it is found out before hours are spent.
    pub(crate) fn beside(
        out: &Path,
        base_sha256: &str,
        config: &impl serde::Serialize,
    ) -> Result<Self, TrainError> {
        tempfile::NamedTempFile::new_in(folder_of(out)).map_err(TrainError::io(folder_of(out)))?;
        let mut path = out.as_os_str().to_owned();
        path.push(".checkpoint");
        let config = serde_json::to_string(config).map_err(|error| TrainError::unreadable(out, error))?;
        Ok(Self { path: PathBuf::from(path), base_sha256: base_sha256.to_owned(), config })
    }

    /// Writes one behind `step`, whole or not at all.
    ///
    /// # Errors
    /// [`TrainError::Io`], and those of the device.
    pub(crate) fn save(
        &self,
        variables: &[(String, Var)],
        optimizer: &AdamW,
        step: usize,
    ) -> Result<(), TrainError> {
        let mut tensors = Vec::new();
        for ((name, variable), [mean, square]) in variables.iter().zip(optimizer.moments()?) {
            let of_variable: [Tensor; 3] = [variable.as_tensor().clone(), mean, square];
            for (name, tensor) in parts(name).into_iter().zip(of_variable) {
                tensors.push(NamedTensor::single(name, tensor));
            }
        }
        let metadata = HashMap::from([
            ("version".to_owned(), VERSION.to_owned()),
            ("base_sha256".to_owned(), self.base_sha256.clone()),
            ("step".to_owned(), step.to_string()),
            ("config".to_owned(), self.config.clone()),
        ]);
        write_tensors(&self.path, &tensors, metadata)
    }

    /// The one that is there.
    ///
    /// # Errors
    /// A file that is none, or of another model or run; [`TrainError::Exists`] where there is none, but something else at `out`:
    /// nothing of anybody's is written over.
    pub(crate) fn open(&self, out: &Path) -> Result<Option<Checkpoint>, TrainError> {
        let path = &self.path;
        let Some(file) = TensorFile::open(path)? else {
            return match out.exists() {
                true => Err(TrainError::Exists { path: out.to_owned() }),
                false => Ok(None),
            };
        };
        let sha256 = file.note("base_sha256");
        if sha256 != self.base_sha256 {
            let expected = self.base_sha256.clone();
            return Err(TrainError::OtherBase { path: path.to_owned(), expected, got: sha256 });
        }
        for (what, key, expected) in
            [("its version", "version", VERSION), ("its configuration", "config", &self.config)]
        {
            let got = file.note(key);
            if got != expected {
                let (path, expected) = (path.to_owned(), expected.to_owned());
                return Err(TrainError::OtherRun { path, what, expected, got });
            }
        }
        let step = file.note("step");
        let step = step.parse().map_err(|_| TrainError::unreadable(path, format!("its step is `{step}`")))?;
        Ok(Some(Checkpoint { file, step }))
    }

    /// What it held is elsewhere now.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Checkpoint {
    /// Goes on from it, bit for bit: `variables` and the state of `optimizer`, which had gone `n_steps` then, are what they were.
    ///
    /// # Errors
    /// What is not in the file as it should be; nothing is changed then.
    pub(crate) fn restore(
        mut self,
        variables: &[(String, Var)],
        optimizer: &mut AdamW,
        n_steps: usize,
    ) -> Result<(), TrainError> {
        for (name, variable) in variables {
            for name in parts(name) {
                self.file.check(&name, variable.as_tensor())?;
            }
        }
        let mut moments = Vec::new();
        for (name, variable) in variables {
            let [value, mean, square] = parts(name);
            let like = variable.as_tensor();
            moments.push([self.file.read(&mean, like)?, self.file.read(&square, like)?]);
            variable.set(&self.file.read(&value, like)?)?;
        }
        optimizer.resume(&moments, n_steps)
    }
}
