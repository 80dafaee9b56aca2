//! Real models, as `make models` installs them.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use model::{Device, DeviceInfo, Model, ModelConfig};
use safetensors::SafeTensors;
use serde_json::Value;
use speculate::{RowPlan, Target};

pub const IDS: [&str; 2] = ["smollm2-135m", "qwen2.5-coder-0.5b"];

/// The installed weight file of a catalogue id.
pub fn weights(id: &str) -> PathBuf {
    let data = match std::env::var_os("SATEEN_DATA_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            directories::ProjectDirs::from("", "", "sateen").expect("a home folder").data_dir().to_owned()
        }
    };
    let path = data.join("models").join(format!("{id}.gguf"));
    assert!(path.exists(), "{} is not installed: run `make models` once", path.display());
    path
}

/// The adapter in this repository for a catalogue id.
pub fn adapter(id: &str) -> PathBuf {
    PathBuf::from(env!("SATEEN_CHECKOUT")).join(format!("models/sat-{id}.safetensors"))
}

/// The adapter in `bytes` with nothing by which a draft depends on the token before.
pub fn without_markov_head(bytes: &[u8]) -> Vec<u8> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).expect("a header");
    let tensors = SafeTensors::deserialize(bytes).expect("tensors");
    let others = tensors.iter().filter(|(name, _)| !name.starts_with("markov."));
    safetensors::serialize(others, metadata.metadata().clone()).expect("a file")
}

/// The adapter in `bytes` with something more in its metadata.
pub fn with_note(bytes: &[u8], key: &str, value: &str) -> Vec<u8> {
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + n]).expect("a header");
    header["__metadata__"][key] = value.into();
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), &header[..], &bytes[8 + n..]].concat()
}

/// What tests run on: the processor, and every GPU. Where there is no graphics card, Debian's `mesa-vulkan-drivers`
/// has one in software.
pub fn devices() -> Vec<Device> {
    let gpus = DeviceInfo::all();
    assert!(!gpus.is_empty(), "no GPU: install `mesa-vulkan-drivers`");
    std::iter::once(Device::Cpu).chain(gpus.into_iter().map(Device::Gpu)).collect()
}

pub fn load(id: &str) -> Arc<Model> {
    load_on(id, &Device::Cpu)
}

pub fn load_on(id: &str, device: &Device) -> Arc<Model> {
    let config = ModelConfig {
        adapter: Some(model::AdapterSource::File(adapter(id))),
        max_context: 1024,
        device: device.clone(),
        ..ModelConfig::new(weights(id))
    };
    Arc::new(Model::load(&config).expect("the installed model loads"))
}

/// The 135M on everything that it runs on.
pub fn on_all_devices() -> impl Iterator<Item = Arc<Model>> {
    devices().into_iter().map(|device| load_on("smollm2-135m", &device))
}

/// The tiny model, loaded once per test binary.
pub fn smollm() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| load("smollm2-135m")).clone()
}

/// What the independent implementation says.
pub fn golden(id: &str) -> Value {
    let path = format!("{}crates/model/tests/data/sat-{id}.golden.json", env!("SATEEN_CHECKOUT"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the golden file")).expect("JSON")
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("an array").iter().map(|id| id.as_u64().expect("a token") as u32).collect()
}

/// How far the distribution of `ours` is from that of `reference`, both logits, in nats: the sum of
/// `p ln(p / q)` (Kullback and Leibler 1951).
pub fn kl_divergence(reference: &[f32], ours: &[f32]) -> f64 {
    assert_eq!(reference.len(), ours.len());
    let log_probabilities = |logits: &[f32]| -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit - max) - sum.ln()).collect()
    };
    let (p, q) = (log_probabilities(reference), log_probabilities(ours));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Logits of every row of a plan over `tokens` with an adaptive group behind the last.
pub fn with_group(model: &Arc<Model>, tokens: &[u32]) -> (RowPlan, Vec<Vec<f32>>) {
    let mut plan = RowPlan::prefill(0, tokens);
    plan.push_adaptive_group(tokens.len() - 1, model.n_adaptive_tokens());
    (0..plan.rows().len()).for_each(|row| {
        plan.want_logits(row);
    });
    let mut sequence = model.sequence().expect("memory");
    let logits = sequence.forward(&plan).expect("the plan fits");
    let rows = (0..plan.rows().len()).map(|row| logits.row(row).full.expect("asked for").to_vec()).collect();
    (plan, rows)
}
