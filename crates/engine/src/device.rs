//! What a model runs on: the processor, or a GPU where that is quicker.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use model::{Device, DeviceInfo, Model};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::cost::PassTimer;
use crate::learned::LearnedFiles;
use crate::{EngineError, MemoryNeeded};

/// What a model is to run on: `auto`, `cpu`, or a GPU like `cuda:0`, `vulkan:1` or `metal`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// A GPU that holds the model and is quicker at it than the processor, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// This GPU, where it can be used. Without a number it is the first of its kind.
    Gpu(String),
}

/// A device is named by its interface and a number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device is `auto`, `cpu`, `cuda:N`, `vulkan:N` or `metal:N`. Given: `{got}`")]
pub struct DeviceChoiceError {
    got: String,
}

impl FromStr for DeviceChoice {
    type Err = DeviceChoiceError;

    fn from_str(name: &str) -> Result<Self, DeviceChoiceError> {
        let (api, number) = name.split_once(':').unwrap_or((name, "0"));
        let is_known = ["cuda", "vulkan", "metal"].contains(&api) && number.parse::<u8>().is_ok();
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ if is_known => Ok(Self::Gpu(name.to_owned())),
            _ => Err(DeviceChoiceError { got: name.chars().take(64).collect() }),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = DeviceChoiceError;

    fn try_from(name: String) -> Result<Self, DeviceChoiceError> {
        name.parse()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(name) => f.write_str(name),
        }
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, TS)]
#[ts(export)]
pub struct FoundDevice {
    /// How it is chosen, like `vulkan:0`.
    pub id: String,
    /// What its driver calls it.
    pub name: String,
    /// Whether it is a program that pretends to be one: such a device is used when it is named only.
    pub is_software: bool,
}

/// The GPUs that this machine's drivers name.
pub fn found_devices() -> Vec<FoundDevice> {
    let found = DeviceInfo::all().into_iter();
    found.map(|info| FoundDevice { id: info.id(), is_software: info.is_software, name: info.name }).collect()
}

/// A model, and why it does not run on a GPU where one was looked for.
pub(crate) struct LoadedOn {
    pub(crate) model: Arc<Model>,
    pub(crate) note: Option<String>,
}

/// Loads a model with `load` on what `choice` says. Where a GPU cannot be used the processor is, and the note says why.
/// `files` know whether a GPU was found to be quicker: the model is loaded on both to find out, once.
///
/// # Errors
/// Those of loading it on the processor, and cancellation.
pub(crate) fn load_on(
    choice: &DeviceChoice,
    needed: MemoryNeeded,
    files: Option<&LearnedFiles>,
    load: &dyn Fn(Device) -> Result<Model, EngineError>,
) -> Result<LoadedOn, EngineError> {
    let on_processor = |note| Ok(LoadedOn { model: Arc::new(load(Device::Cpu)?), note });
    match choice {
        DeviceChoice::Cpu => on_processor(None),
        DeviceChoice::Gpu(name) => match DeviceInfo::find(name).map_err(|error| error.to_string()) {
            Ok(info) => match check_fits(&info, needed).and_then(|()| load(Device::Gpu(info))) {
                Ok(model) => Ok(LoadedOn { model: Arc::new(model), note: None }),
                Err(error) if error.is_cancelled() => Err(error),
                Err(error) => on_processor(Some(format!("GPU not used: {error}"))),
            },
            Err(reason) => on_processor(Some(format!("GPU not used: {reason}"))),
        },
        DeviceChoice::Auto => {
            let mut notes = Vec::new();
            // A program that pretends to be a GPU is used when it is named only.
            for info in DeviceInfo::all().into_iter().filter(|info| !info.is_software) {
                let name = info.name.clone();
                match quicker_on(info, needed, files, load) {
                    Ok(Some(model)) => return Ok(LoadedOn { model, note: None }),
                    Ok(None) => notes.push(format!("{name} is slower than the processor")),
                    Err(error) if error.is_cancelled() => return Err(error),
                    Err(error) => notes.push(format!("{name}: {error}")),
                }
            }
            on_processor((!notes.is_empty()).then(|| format!("GPU not used: {}", notes.join("; "))))
        }
    }
}

/// A GPU whose memory is known must hold the model.
fn check_fits(info: &DeviceInfo, needed: MemoryNeeded) -> Result<(), EngineError> {
    match info.memory_bytes.filter(|&available| available < needed.total_bytes) {
        Some(available) => {
            let needed = needed.total_bytes;
            Err(EngineError::NoGpuMemory { gpu: info.name.clone(), needed, available })
        }
        None => Ok(()),
    }
}

/// The model on a GPU, where both one and eight rows are quicker there.
fn quicker_on(
    info: DeviceInfo,
    needed: MemoryNeeded,
    files: Option<&LearnedFiles>,
    load: &dyn Fn(Device) -> Result<Model, EngineError>,
) -> Result<Option<Arc<Model>>, EngineError> {
    check_fits(&info, needed)?;
    let gpu = format!("{} ({})", info.name, info.id());
    let known = files.and_then(|files| files.is_quicker_on(&gpu));
    if known == Some(false) {
        return Ok(None);
    }
    let there = Arc::new(load(Device::Gpu(info))?);
    if known == Some(true) {
        return Ok(Some(there));
    }
    let times_there = times(&there)?;
    let times_here = times(&Arc::new(load(Device::Cpu)?))?;
    let is_quicker = times_there.iter().zip(times_here).all(|(there, here)| *there < here);
    if let Some(files) = files {
        files.save_is_quicker_on(&gpu, is_quicker);
    }
    Ok(is_quicker.then_some(there))
}

/// Milliseconds of a pass over one and over eight rows: the fastest of some.
fn times(model: &Arc<Model>) -> Result<[f64; 2], EngineError> {
    let mut timer = PassTimer::new(model)?;
    let mut times = [f64::INFINITY; 2];
    for _ in 0..4 {
        for (time, n_rows) in times.iter_mut().zip([1, 8]) {
            *time = time.min(timer.tokens(n_rows)?);
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ModelConfig;

    #[test]
    fn devices_are_named_by_interface_and_number() {
        for name in ["auto", "cpu", "cuda:0", "vulkan:12", "metal", "vulkan"] {
            let choice: DeviceChoice = name.parse().expect("a device");
            assert_eq!(choice.to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:x", "vulkan:-1", "cuda:0:1", "cuda:999", "CPU"] {
            let error = name.parse::<DeviceChoice>().expect_err("none").to_string();
            assert!(error.ends_with(&format!("Given: `{name}`")), "{error}");
        }
    }

    /// What cannot be used is said, and the processor does the work.
    #[test]
    fn a_gpu_that_is_not_there_leaves_the_processor() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let needed = MemoryNeeded::of_file(0);
        let load = |device: Device| Ok(Model::load(&ModelConfig { device, ..ModelConfig::new(tiny) })?);
        let on = |name: &str| load_on(&name.parse().expect("a device"), needed, None, &load).expect("loads");
        let missing = on("vulkan:99");
        assert!(missing.model.device().starts_with("CPU"));
        let note = missing.note.expect("it says why");
        assert!(note.starts_with("GPU not used: there is no device `vulkan:99`"), "{note}");
        // The software device of the tests is no GPU that anybody would want.
        let own = on("auto");
        assert!(own.model.device().starts_with("CPU") && own.note.is_none());
        let named = on("vulkan:0");
        assert!(named.model.device().ends_with("(vulkan:0)") && named.note.is_none(), "{:?}", named.note);
        assert!(on("cpu").model.device().starts_with("CPU"));
        // Nor does anybody load what a GPU cannot hold.
        let choice = "vulkan:0".parse().expect("a device");
        let too_large = load_on(&choice, MemoryNeeded::of_file(1 << 60), None, &load).expect("loads");
        assert!(too_large.model.device().starts_with("CPU"));
        let note = too_large.note.expect("it says why");
        assert!(note.contains("GB are needed on ") && note.ends_with(" GB are its memory"), "{note}");
    }
}
