//! What a run goes on from: everything that learns, the optimizer's state, and the number of steps.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use crate::adapter::{Numbers, TrainedAdapter, bytes_of, write_safetensors};
use crate::base::Base;
use crate::error::TrainError;
use crate::optimizer::AdamW;

/// Goes up when what is computed changes its meaning.
const VERSION: &str = "1";

/// Writes it to `path`, whole or not at all. `config` names the run.
pub(crate) fn save(
    path: &Path,
    base: &Base,
    adapter: &TrainedAdapter,
    optimizer: &AdamW,
    config: &str,
) -> Result<(), TrainError> {
    let mut tensors: Vec<Numbers> = Vec::new();
    for ((name, variable), moments) in adapter.variables().into_iter().zip(optimizer.moments()?) {
        let [mean, square] = moments;
        for (part, tensor) in [("value", variable.as_tensor()), ("mean", &mean), ("square", &square)] {
            let bytes = bytes_of(tensor, Dtype::F32)?;
            tensors.push((format!("{name}.{part}"), tensor.dims().to_vec(), Dtype::F32, bytes));
        }
    }
    let metadata = HashMap::from([
        ("version".to_owned(), VERSION.to_owned()),
        ("base_sha256".to_owned(), base.sha256().to_owned()),
        ("step".to_owned(), optimizer.n_steps.to_string()),
        ("config".to_owned(), config.to_owned()),
    ]);
    write_safetensors(path, &tensors, metadata)
}

/// Goes on from the checkpoint at `path`, bit for bit. False when there is none.
///
/// # Errors
/// A file that is none, or of another model or run.
pub(crate) fn load(
    path: &Path,
    base: &Base,
    adapter: &TrainedAdapter,
    optimizer: &mut AdamW,
    config: &str,
) -> Result<bool, TrainError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(TrainError::io(path)(error)),
    };
    let unreadable = |error: safetensors::SafeTensorError| TrainError::unreadable(path, error);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(unreadable)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(unreadable)?;
    let notes = header.metadata().clone().unwrap_or_default();
    let note = |key: &str| notes.get(key).cloned().unwrap_or_default();
    if note("base_sha256") != base.sha256() {
        let (expected, got) = (base.sha256().to_owned(), note("base_sha256"));
        return Err(TrainError::OtherBase { path: path.to_owned(), expected, got });
    }
    for (what, key, expected) in
        [("its version", "version", VERSION), ("its configuration", "config", config)]
    {
        if note(key) != expected {
            let (path, expected, got) = (path.to_owned(), expected.to_owned(), note(key));
            return Err(TrainError::OtherRun { path, what, expected, got });
        }
    }
    let step = note("step");
    let step = step.parse().map_err(|_| TrainError::unreadable(path, format!("its step is `{step}`")))?;
    let read = |name: &str, like: &Tensor| -> Result<Tensor, TrainError> {
        let view = tensors.tensor(name).map_err(unreadable)?;
        if view.dtype() != Dtype::F32 || view.shape() != like.dims() {
            return Err(TrainError::unreadable(path, format!("`{name}` has another shape or type")));
        }
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        Ok(Tensor::from_vec(values, like.dims(), like.device())?)
    };
    // All is read before anything is changed.
    let (mut values, mut moments) = (Vec::new(), Vec::new());
    let variables = adapter.variables();
    for (name, variable) in &variables {
        let like = variable.as_tensor();
        values.push(read(&format!("{name}.value"), like)?);
        moments.push([read(&format!("{name}.mean"), like)?, read(&format!("{name}.square"), like)?]);
    }
    for ((_, variable), value) in variables.iter().zip(&values) {
        variable.set(value)?;
    }
    optimizer.resume(&moments, step)?;
    Ok(true)
}
