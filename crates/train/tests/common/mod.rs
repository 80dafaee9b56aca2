//! What tests of training share.

use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use model::RandomModelConfig;

/// A random model of any family, small enough for finite differences.
pub(crate) fn random_model(family: model::Family, folder: &Path) -> PathBuf {
    let path = folder.join(format!("{}.gguf", family.name()));
    let config = RandomModelConfig {
        family,
        n_layers: 2,
        hidden: 32,
        n_heads: 4,
        n_kv_heads: 2,
        feed_forward: 64,
        vocabulary: 320,
        ..RandomModelConfig::llama_7b(model::gguf::TensorType::F32)
    };
    model::write_random_model(&config, &path).expect("writes");
    path
}

/// Each of `variables` is moved along its gradient, where the change is largest: `loss` must change as the gradient says.
pub(crate) fn gradients_are_slopes(of: &str, variables: Vec<(String, Var)>, loss: impl Fn() -> Tensor) {
    let value = |loss: Tensor| f64::from(loss.to_scalar::<f32>().expect("a number"));
    let gradients = loss().backward().expect("gradients");
    for (name, variable) in variables {
        let gradient = gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has none"));
        let norm = gradient.sqr().and_then(|x| x.sum_all()).and_then(|x| x.to_scalar::<f32>()).expect("it");
        let norm = f64::from(norm).sqrt();
        assert!(norm > 1e-6, "{of}: {name} does not learn: {norm}");
        let before = variable.as_tensor().copy().expect("a copy");
        let distance = 0.004 / norm;
        let at = |sign: f64| {
            let moved = (&before + (gradient * (sign * distance)).expect("a move")).expect("a sum");
            variable.set(&moved).expect("sets");
            value(loss())
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * distance);
        variable.set(&before).expect("sets");
        let expected = norm * norm;
        let error = (slope - expected).abs() / expected;
        assert!(error < 0.05, "{of}: {name}: {slope} by differences, {expected} by gradient");
    }
}
