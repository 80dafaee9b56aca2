//! What is made small.

use candle_core::{D, Result, Tensor};

/// How the parts of the loss are weighed.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossConfig {
    /// Weight of the divergence from the model's own distribution at the true position, which is what a draft is
    /// verified against (self-distillation, as of PARD-2, arXiv 2605.08632).
    pub distillation: f64,
    /// Weight of the cross-entropy with the token that stands in the text.
    pub cross_entropy: f64,
    /// A slot's weight is this to the power of its index: a later one counts only where the earlier were accepted.
    pub slot_decay: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { distillation: 0.9, cross_entropy: 0.1, slot_decay: 0.85 }
    }
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Mean over the rows, by their weights: `distillation * KL(p ‖ q) + cross_entropy * -log q(label)`, with `p` of `teacher` and
/// `q` of `logits`, `[n_rows, n_outputs]` each. Labels that are no output count for the divergence only.
///
/// # Errors
/// Shapes that do not match.
pub fn slot_loss(
    config: LossConfig,
    logits: &Tensor,
    teacher: &Tensor,
    slots: &[u32],
    labels: &[u32],
) -> Result<Tensor> {
    let (n_rows, n_outputs) = logits.dims2()?;
    let device = logits.device();
    let weights: Vec<f32> = slots.iter().map(|&slot| config.slot_decay.powi(slot as i32) as f32).collect();
    let sum: f32 = weights.iter().sum();
    let is_output = |label: u32| (label as usize) < n_outputs;
    let of_labels: Vec<f32> =
        weights.iter().zip(labels).map(|(w, &label)| if is_output(label) { *w } else { 0.0 }).collect();
    let inside: Vec<u32> = labels.iter().map(|&label| if is_output(label) { label } else { 0 }).collect();
    let weights = Tensor::from_vec(weights, n_rows, device)?;
    let of_labels = Tensor::from_vec(of_labels, n_rows, device)?;
    let inside = Tensor::from_vec(inside, (n_rows, 1), device)?;

    let log_q = log_softmax(logits)?;
    let log_p = log_softmax(&teacher.detach())?.detach();
    let p = log_p.exp()?;
    let divergence = (&p * (&log_p - &log_q)?)?.sum(D::Minus1)?;
    let surprise = log_q.gather(&inside, D::Minus1)?.squeeze(D::Minus1)?.neg()?;
    let total = ((divergence * weights)?.sum_all()? * config.distillation)?;
    let total = (total + ((surprise * of_labels)?.sum_all()? * config.cross_entropy)?)?;
    total / f64::from(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn it_is_the_sum_that_it_says() {
        let rows =
            |values: &[f32]| Tensor::new(values, &Device::Cpu).and_then(|x| x.reshape((2, 3))).expect("rows");
        let (logits, teacher) =
            (rows(&[0.0, 1.0, 2.0, 1.0, 0.0, 0.0]), rows(&[0.0, 0.0, 1.0, 3.0, 0.0, 0.0]));
        let log_softmax = |x: [f64; 3]| {
            let sum: f64 = x.iter().map(|x| x.exp()).sum();
            x.map(|x| x - sum.ln())
        };
        let divergence = |p: [f64; 3], q: [f64; 3]| -> f64 {
            log_softmax(p).iter().zip(log_softmax(q)).map(|(p, q)| p.exp() * (p - q)).sum()
        };
        let config = LossConfig { distillation: 0.5, cross_entropy: 2.0, slot_decay: 0.5 };
        let loss = slot_loss(config, &logits, &teacher, &[0, 1], &[2, 9]).expect("computes");
        let loss = f64::from(loss.to_scalar::<f32>().expect("a number"));
        let (first, second) = ([0.0, 1.0, 2.0], [1.0, 0.0, 0.0]);
        let by_rows = divergence([0.0, 0.0, 1.0], first) + 0.5 * divergence([3.0, 0.0, 0.0], second);
        let expected = (0.5 * by_rows - 2.0 * log_softmax(first)[2]) / 1.5;
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
    }
}
