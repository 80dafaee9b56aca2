//! Every type of weights and every kind of shape: the packed kernels against candle's products.

use std::sync::Arc;

use model::gguf::TensorType;
use model::{Family, LinearKernels, Model, ModelConfig, RandomModelConfig, write_random_model};
use speculate::{RowPlan, Target};

fn logits(path: &std::path::Path, linear_kernels: LinearKernels) -> Vec<f32> {
    let config = ModelConfig { linear_kernels, ..ModelConfig::new(path) };
    let model = Arc::new(Model::load(&config).expect("the random model loads"));
    let mut plan = RowPlan::prefill(0, &[5, 300, 7, 7, 199, 42]);
    (0..6).for_each(|row| {
        plan.want_logits(row);
    });
    model.sequence().forward(&plan).expect("the plan fits").full.clone()
}

#[test]
fn packed_kernels_agree_with_candle_on_every_type_and_shape() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("random.gguf");
    // Biases and grouped queries; one key-value head for each query head, and a tied table.
    for (family, n_heads, n_kv_heads, is_tied) in [(Family::Qwen2, 8, 2, false), (Family::Llama, 4, 4, true)]
    {
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
                seed: 3,
            };
            write_random_model(&config, &path).expect("writes");
            let (packed, candle) =
                (logits(&path, LinearKernels::Packed), logits(&path, LinearKernels::Candle));
            assert!(packed.iter().all(|logit| logit.is_finite()));
            let rms = |values: &mut dyn Iterator<Item = f32>| {
                let (sum, n) = values.fold((0.0f64, 0), |(sum, n), x| (sum + f64::from(x * x), n + 1));
                (sum / f64::from(n)).sqrt()
            };
            let size = rms(&mut candle.iter().copied());
            let distance = rms(&mut packed.iter().zip(&candle).map(|(a, b)| a - b));
            println!("{family:?} {tensor_type:?}: logits of {size:.3}, distance {distance:.4}");
            // candle quantizes activations of the K types in blocks of 256, ours in blocks of 32.
            assert!(distance < 0.05 * size, "{family:?} {tensor_type:?}: {distance} of {size}");
        }
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
