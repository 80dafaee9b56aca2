//! Every type of weights and every kind of shape, against the plainest forward pass.

#[path = "common/reference.rs"]
mod reference;

use std::sync::Arc;

use model::gguf::{GgufFile, TensorType};
use model::{Device, DeviceInfo, Family, Model, ModelConfig, RandomModelConfig, write_random_model};
use speculate::{RowPlan, Target};

const TOKENS: [u32; 6] = [5, 300, 7, 7, 199, 42];

fn logits(path: &std::path::Path) -> Vec<f32> {
    logits_on(path, Device::Cpu)
}

fn logits_on(path: &std::path::Path, device: Device) -> Vec<f32> {
    let config = ModelConfig { device, ..ModelConfig::new(path) };
    let model = Arc::new(Model::load(&config).expect("the random model loads"));
    let mut plan = RowPlan::prefill(0, &TOKENS);
    (0..6).for_each(|row| {
        plan.want_logits(row);
    });
    model.sequence().expect("memory").forward(&plan).expect("the plan fits").full.clone()
}

#[test]
fn every_type_and_shape_agrees_with_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("random.gguf");
    // Biases and grouped queries; one key-value head for each query head, and a tied table.
    let shapes = [
        (Family::Qwen2, 8, 2, false),
        (Family::Llama, 4, 4, true),
        (Family::Qwen3, 4, 1, true),
        (Family::Granite, 8, 4, false),
    ];
    for (family, n_heads, n_kv_heads, is_tied) in shapes {
        for tensor_type in TensorType::ALL {
            let config = RandomModelConfig {
                family,
                tensor_type,
                n_layers: 2,
                hidden: 256,
                n_heads,
                n_kv_heads,
                feed_forward: 512,
                vocabulary: 411,
                context_length: 64,
                is_tied,
                native_sat: None,
                seed: 3,
            };
            write_random_model(&config, &path).expect("writes");
            let theirs = reference::logits(&path, &TOKENS);
            let rms = |values: &mut dyn Iterator<Item = f32>| {
                let (sum, n) = values.fold((0.0f64, 0), |(sum, n), x| (sum + f64::from(x * x), n + 1));
                (sum / f64::from(n)).sqrt()
            };
            let size = rms(&mut theirs.iter().copied());
            let check = |device: Device, bound: f64| {
                let ours = logits_on(&path, device.clone());
                assert!(ours.iter().all(|logit| logit.is_finite()));
                let distance = rms(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
                println!(
                    "{family:?} {tensor_type:?} on {device:?}: logits of {size:.3}, distance {distance:.6}"
                );
                assert!(
                    distance < bound * size,
                    "{family:?} {tensor_type:?} on {device:?}: {distance} of {size}"
                );
            };
            // Activations are quantized to eight bits where weights are.
            check(Device::Cpu, 0.05);
            // On GPUs they are not. The kernels have a test of every type; here two see every family.
            if [TensorType::Q4_K, TensorType::BF16].contains(&tensor_type) {
                DeviceInfo::all().into_iter().for_each(|info| check(Device::Gpu(info), 1e-4));
            }
        }
    }
}

/// A model whose weights are the numbers themselves.
fn small(family: Family) -> RandomModelConfig {
    RandomModelConfig {
        family,
        tensor_type: TensorType::F32,
        n_layers: 3,
        hidden: 64,
        n_heads: 4,
        n_kv_heads: 2,
        feed_forward: 96,
        vocabulary: 411,
        context_length: 64,
        is_tied: false,
        native_sat: None,
        seed: 5,
    }
}

/// Granite's multipliers, folded into the weights of a llama model by hand.
#[test]
fn multipliers_are_those_of_the_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let [granite, llama] = ["granite.gguf", "llama.gguf"].map(|name| folder.path().join(name));
    let config = small(Family::Granite);
    write_random_model(&config, &granite).expect("writes");
    let plain = RandomModelConfig { family: Family::Llama, ..config };
    write_random_model(&plain, &llama).expect("writes");
    let [embedding, residual, attention, divisor] =
        RandomModelConfig::GRANITE_MULTIPLIERS.map(|(_, value)| value);
    let factor = |tensor: &str| match tensor.split('.').nth_back(1).unwrap_or_default() {
        "token_embd" => embedding,
        "attn_output" | "ffn_down" => residual,
        // Heads are 16 wide, whose root the other model divides by.
        "attn_q" => attention * 4.0,
        "output" => 1.0 / divisor,
        _ => 1.0,
    };
    let header = GgufFile::open(&llama).expect("the file");
    let mut bytes = std::fs::read(&llama).expect("the file");
    for (name, entry) in header.header().tensors() {
        for value in bytes[entry.bytes.clone()].as_chunks_mut::<4>().0 {
            *value = (f32::from_le_bytes(*value) * factor(name)).to_le_bytes();
        }
    }
    std::fs::write(&llama, bytes).expect("writes");
    let (ours, expected) = (logits(&granite), logits(&llama));
    let size = expected.iter().fold(0.0f32, |size, logit| size.max(logit.abs()));
    for (ours, expected) in ours.iter().zip(&expected) {
        assert!((ours - expected).abs() < 1e-4 * size, "{ours} {expected}, of {size}");
    }
    // And they are not without effect.
    write_random_model(&plain, &llama).expect("writes");
    assert!(logits(&llama).iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.01 * size));
}

/// An entry of a header: its key, what kind its value is, and the value.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat()
}

/// Puts entries in front of those of a file. What follows stays aligned: a last entry fills up 32 bytes.
fn add_entries(path: &std::path::Path, mut entries: Vec<Vec<u8>>) {
    let text = |n_bytes: usize| [&(n_bytes as u64).to_le_bytes()[..], &vec![b'x'; n_bytes]].concat();
    let n_bytes = entries.iter().map(Vec::len).sum::<usize>() + entry("filling", STRING, &text(0)).len();
    entries.push(entry("filling", STRING, &text(n_bytes.next_multiple_of(32) - n_bytes)));
    let mut bytes = std::fs::read(path).expect("the file");
    // The number of entries is behind magic, version and number of tensors; they follow it.
    let count = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
    bytes[16..24].copy_from_slice(&(count + entries.len() as u64).to_le_bytes());
    bytes.splice(24..24, entries.concat());
    std::fs::write(path, bytes).expect("writes");
}

const FLOAT: u32 = 6;
const STRING: u32 = 8;

/// Linear scaling of positions, by the key of today and by that of older files, in the whole of a model.
#[test]
fn linear_scaling_of_positions_agrees_with_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("scaled.gguf");
    let config = small(Family::Llama);
    write_random_model(&config, &path).expect("writes");
    let unscaled = logits(&path);
    let size = unscaled.iter().fold(0.0f32, |size, logit| size.max(logit.abs()));
    let factor = 4.0f32.to_le_bytes();
    let linear = [&6u64.to_le_bytes()[..], b"linear"].concat();
    let today = vec![
        entry("llama.rope.scaling.type", STRING, &linear),
        entry("llama.rope.scaling.factor", FLOAT, &factor),
    ];
    for entries in [today, vec![entry("llama.rope.scale_linear", FLOAT, &factor)]] {
        write_random_model(&config, &path).expect("writes");
        add_entries(&path, entries);
        let (ours, theirs) = (logits(&path), reference::logits(&path, &TOKENS));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() < 1e-4 * size, "{ours} {theirs}, of {size}");
        }
        assert!(ours.iter().zip(&unscaled).any(|(a, b)| (a - b).abs() > 0.001 * size), "without effect");
    }
}

#[test]
fn shapes_that_are_none_are_refused() {
    let base = RandomModelConfig::llama_7b(TensorType::Q4_K);
    let path = std::path::Path::new("never-written.gguf");
    let refused = [
        RandomModelConfig { n_heads: 3, ..base.clone() },
        RandomModelConfig { n_kv_heads: 0, ..base.clone() },
        RandomModelConfig { hidden: 4096 + 32, ..base.clone() },
        RandomModelConfig { vocabulary: 100, ..base.clone() },
        RandomModelConfig { n_layers: 0, ..base },
    ];
    for config in refused {
        let error = write_random_model(&config, path).expect_err("no such shape").to_string();
        assert!(error.starts_with("a random model must have"), "{error}");
    }
    assert!(!path.exists());
}
