//! Our forward pass against candle-transformers' on the same files, and against the plainest one.

mod common;
#[path = "common/reference.rs"]
mod reference;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::Content;
use common::{golden, ids, load};
use model::{Device, Model, ModelConfig};
use speculate::{RowPlan, Target};

/// Nats between the two distributions at most: both quantize activations, but candle per 256 values for some types
/// and we per 32, and sums run in another order.
const MAX_DIVERGENCE: f64 = 0.02;
/// Nats from numbers that are f32 throughout, on average and at most: what eight bits for activations cost.
const MEAN_FROM_F32: f64 = 0.01;
const MAX_FROM_F32: f64 = 0.05;

fn compare(
    id: &str,
    n_tokens: usize,
    candle_logits: impl FnOnce(Content, &mut std::fs::File, &Tensor) -> Tensor,
) {
    let tokens = &ids(&golden(id)["prompts"][1]["ids"])[..n_tokens];
    compare_files(&common::weights(id), Some(id), tokens, candle_logits);
}

/// `id` names a real model with an adapter.
fn compare_files(
    path: &std::path::Path,
    id: Option<&str>,
    tokens: &[u32],
    candle_logits: impl FnOnce(Content, &mut std::fs::File, &Tensor) -> Tensor,
) {
    let mut file = std::fs::File::open(path).expect("installed");
    let content = Content::read(&mut file).expect("a GGUF file");
    let input =
        Tensor::new(tokens, &candle_core::Device::Cpu).and_then(|t| t.unsqueeze(0)).expect("a tensor");
    let theirs = candle_logits(content, &mut file, &input).flatten_all().and_then(|t| t.to_vec1::<f32>());
    let theirs = theirs.expect("logits");

    let model = match id {
        Some(id) => load(id),
        None => std::sync::Arc::new(Model::load(&ModelConfig::new(path)).expect("loads")),
    };
    let mut sequence = model.sequence().expect("memory");
    let mut plan = RowPlan::prefill(0, tokens);
    plan.want_logits(tokens.len() - 1);
    let ours = sequence.forward(&plan).expect("the plan fits").row(0).full.expect("asked for");
    assert_eq!(ours.len(), theirs.len());
    let divergence = common::kl_divergence(&theirs, ours);
    println!("{}: divergence from candle-transformers {divergence:.6}", path.display());
    assert!(divergence < MAX_DIVERGENCE, "{divergence}");
    assert_eq!(speculate::rank(ours)[0].0, speculate::rank(&theirs)[0].0);
}

#[test]
fn logits_agree_with_quantized_llama() {
    compare("smollm2-135m", 64, |content, file, input| {
        use candle_transformers::models::quantized_llama::ModelWeights;
        let mut model = ModelWeights::from_gguf(content, file, &candle_core::Device::Cpu).expect("loads");
        model.forward(input, 0).expect("runs")
    });
}

#[test]
fn logits_agree_with_quantized_qwen2() {
    compare("qwen2.5-coder-0.5b", 32, |content, file, input| {
        use candle_transformers::models::quantized_qwen2::ModelWeights;
        let mut model = ModelWeights::from_gguf(content, file, &candle_core::Device::Cpu).expect("loads");
        model.forward(input, 0).expect("runs")
    });
}

/// No Qwen3 model was at hand that everybody can have, so its weights are random.
#[test]
fn logits_agree_with_quantized_qwen3() {
    use candle_transformers::models::quantized_qwen3::ModelWeights;
    use model::gguf::TensorType;
    use model::{Family, RandomModelConfig, write_random_model};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("qwen3.gguf");
    let config = RandomModelConfig {
        family: Family::Qwen3,
        n_layers: 3,
        hidden: 256,
        n_heads: 8,
        n_kv_heads: 2,
        feed_forward: 512,
        vocabulary: 411,
        ..RandomModelConfig::llama_7b(TensorType::Q8_0)
    };
    write_random_model(&config, &path).expect("writes");
    compare_files(&path, None, &[5, 300, 7, 7, 199, 42, 410, 3], |content, file, input| {
        let mut model = ModelWeights::from_gguf(content, file, &candle_core::Device::Cpu).expect("loads");
        model.forward(input, 0).expect("runs")
    });
}

/// The forward pass against one whose numbers are f32 throughout: they differ in the rounding of activations on the
/// processor, and of sums only on GPUs.
fn compare_with_reference(weights: std::path::PathBuf, tokens: &[u32]) {
    for device in common::devices() {
        let tokens = if device == Device::Cpu { tokens } else { &tokens[..6] };
        compare_on(device, &weights, tokens);
    }
}

fn compare_on(device: Device, weights: &std::path::Path, tokens: &[u32]) {
    let (most, on_average) = match &device {
        Device::Cpu => (MAX_FROM_F32, MEAN_FROM_F32),
        Device::Gpu(_) => (1e-6, 1e-6),
    };
    let config = ModelConfig { max_context: 256, device, ..ModelConfig::new(weights) };
    let model = std::sync::Arc::new(Model::load(&config).expect("loads"));
    let mut plan = RowPlan::prefill(0, tokens);
    (0..tokens.len()).for_each(|row| {
        plan.want_logits(row);
    });
    let ours = model.sequence().expect("memory").forward(&plan).expect("the plan fits").full.clone();
    let theirs = reference::logits(weights, tokens);
    let n = ours.len() / tokens.len();
    let rows = ours.chunks_exact(n).zip(theirs.chunks_exact(n));
    let divergences: Vec<f64> = rows.map(|(ours, theirs)| common::kl_divergence(theirs, ours)).collect();
    println!("{} on {}: divergences from f32 {divergences:.3?}", weights.display(), model.device());
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    assert!(mean < on_average, "{mean}: {divergences:?}");
    assert!(divergences.iter().all(|&divergence| divergence < most), "{divergences:?}");
}

#[test]
fn f32_agrees_with_the_tiny_model() {
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    compare_with_reference(tiny.into(), &[1, 300, 20, 599, 42, 42, 7]);
}

#[test]
fn f32_agrees_with_the_real_models() {
    for id in common::IDS {
        let tokens = ids(&golden(id)["prompts"][1]["ids"]);
        compare_with_reference(common::weights(id), &tokens[..16]);
    }
}
