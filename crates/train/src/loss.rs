//! What is made small.

use std::sync::OnceLock;

use candle_core::{D, DType, Device, Error, Result, Tensor};

use crate::outside::computed_outside;
use crate::rows::for_each_row;

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
    /// A row counts only where the slots before it in its group have what the model says among so many of their likeliest
    /// tokens (token-alignment mask, GRIFFIN, arXiv 2502.11018): elsewhere its draft would never be looked at. 0 counts all.
    pub aligned_among: usize,
}

impl LossConfig {
    /// Of a text that has a share of the rows of a step.
    pub(crate) fn scaled(self, share: f64) -> Self {
        let Self { distillation, cross_entropy, .. } = self;
        Self { distillation: share * distillation, cross_entropy: share * cross_entropy, ..self }
    }
}

/// What the rows of a loss are.
#[derive(Clone, Copy, Debug)]
pub struct LossRows<'a> {
    /// Slot of each row.
    pub slots: &'a [u32],
    /// The token that it guesses.
    pub labels: &'a [u32],
    /// The first row of its group.
    pub firsts: &'a [usize],
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { distillation: 0.9, cross_entropy: 0.1, slot_decay: 0.85, aligned_among: 0 }
    }
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
    LossRows { slots, labels, firsts }: LossRows<'_>,
) -> Result<Tensor> {
    let (n_rows, n_outputs) = logits.dims2()?;
    let counts = match config.aligned_among {
        0 => vec![true; n_rows],
        n => aligned(&logits.detach(), teacher, firsts, n)?,
    };
    let weight = |(&slot, counts)| if counts { config.slot_decay.powi(slot as i32) } else { 0.0 };
    let weights: Vec<f64> = slots.iter().zip(counts).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    let rows = weights.iter().zip(labels).map(|(weight, &label)| {
        let has_label = (label as usize) < n_outputs;
        WeightedRow {
            distillation: (weight / sum * config.distillation) as f32,
            cross_entropy: if has_label { (weight / sum * config.cross_entropy) as f32 } else { 0.0 },
            label: if has_label { label } else { 0 },
        }
    });
    let rows: Vec<WeightedRow> = rows.collect();
    let (value, gradient) = match logits.device() {
        Device::Cpu => on_the_processor(&rows, logits, teacher)?,
        _ => by_tensors(&rows, &logits.detach(), &teacher.detach())?,
    };
    computed_outside(logits, &value, move |_, of_loss| gradient.broadcast_mul(of_loss))
}

/// Of which rows all before them in their group have the teacher's likeliest token among their `n` likeliest.
fn aligned(logits: &Tensor, teacher: &Tensor, firsts: &[usize], n: usize) -> Result<Vec<bool>> {
    let of_said = logits.gather(&teacher.argmax_keepdim(D::Minus1)?, D::Minus1)?;
    let n_likelier = logits.broadcast_gt(&of_said)?.to_dtype(DType::F32)?.sum(D::Minus1)?.to_vec1::<f32>()?;
    let mut so_far = true;
    let counts = firsts.iter().enumerate().map(|(row, &first)| {
        so_far = first == row || (so_far && n_likelier[row - 1] < n as f32);
        so_far
    });
    Ok(counts.collect())
}

/// What a row counts for.
struct WeightedRow {
    distillation: f32,
    cross_entropy: f32,
    label: u32,
}

/// The loss, and its gradient by the logits: `(distillation + cross_entropy) q - distillation p - cross_entropy [label]`. A
/// pass over each row, where candle has an operation over all of them for every part.
fn on_the_processor(rows: &[WeightedRow], logits: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n_rows, n_outputs) = logits.dims2()?;
    if teacher.dims2()? != (n_rows, n_outputs) || rows.len() != n_rows {
        return Err(Error::Msg("a teacher's row, a slot and a label for each row of logits".to_owned()));
    }
    let numbers = |tensor: &Tensor| tensor.contiguous()?.flatten_all()?.to_vec1::<f32>();
    let (teacher, mut gradient) = (numbers(teacher)?, numbers(logits)?);
    let losses: Vec<OnceLock<f64>> = (0..n_rows).map(|_| OnceLock::new()).collect();
    for_each_row(&mut gradient, n_outputs, |idx, values| {
        let WeightedRow { distillation, cross_entropy, label } = rows[idx];
        let teacher = &teacher[idx * n_outputs..][..n_outputs];
        let of_label = values[label as usize];
        let (log_q, log_p) = (log_sum_exp(values), log_sum_exp(teacher));
        let mut divergence = 0.0f64;
        for (value, &of_teacher) in values.iter_mut().zip(teacher) {
            let (q, p) = ((*value - log_q).exp(), (of_teacher - log_p).exp());
            divergence += f64::from(p * ((of_teacher - log_p) - (*value - log_q)));
            *value = (distillation + cross_entropy) * q - distillation * p;
        }
        values[label as usize] -= cross_entropy;
        let surprise = f64::from(log_q - of_label);
        let _ = losses[idx].set(f64::from(distillation) * divergence + f64::from(cross_entropy) * surprise);
    });
    let loss: f64 = losses.iter().filter_map(OnceLock::get).sum();
    Ok((
        Tensor::new(loss as f32, &Device::Cpu)?,
        Tensor::from_vec(gradient, (n_rows, n_outputs), &Device::Cpu)?,
    ))
}

fn log_sum_exp(values: &[f32]) -> f32 {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Partial sums, so that what is small counts beside what is large.
    let sums = values.chunks(256).map(|chunk| chunk.iter().map(|value| (value - largest).exp()).sum::<f32>());
    largest + sums.sum::<f32>().ln()
}

/// The same by operations that every device has.
fn by_tensors(rows: &[WeightedRow], logits: &Tensor, teacher: &Tensor) -> Result<(Tensor, Tensor)> {
    let device = logits.device();
    let column = |of: &dyn Fn(&WeightedRow) -> f32| {
        Tensor::from_vec(rows.iter().map(of).collect::<Vec<f32>>(), (rows.len(), 1), device)
    };
    let (distillation, cross_entropy) = (column(&|row| row.distillation)?, column(&|row| row.cross_entropy)?);
    let labels = Tensor::from_vec(rows.iter().map(|row| row.label).collect(), (rows.len(), 1), device)?;
    let (log_q, log_p) = (log_softmax(logits)?, log_softmax(teacher)?);
    let p = log_p.exp()?;
    let divergence = (&p * (log_p - &log_q)?)?.sum_keepdim(D::Minus1)?;
    let surprise = log_q.gather(&labels, D::Minus1)?.neg()?;
    let loss = ((divergence * &distillation)? + (surprise * &cross_entropy)?)?.sum_all()?;
    let gradient = log_q.exp()?.broadcast_mul(&(&distillation + &cross_entropy)?)?;
    let gradient = (gradient - p.broadcast_mul(&distillation)?)?;
    Ok((loss, gradient.scatter_add(&labels, &cross_entropy.neg()?, D::Minus1)?))
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

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
        let config = LossConfig { distillation: 0.5, cross_entropy: 2.0, slot_decay: 0.5, aligned_among: 0 };
        let loss_of = |config| -> f64 {
            let rows = LossRows { slots: &[0, 1], labels: &[2, 9], firsts: &[0, 0] };
            let loss = slot_loss(config, &logits, &teacher, rows).expect("computes");
            f64::from(loss.to_scalar::<f32>().expect("a number"))
        };
        let loss = loss_of(config);
        let (first, second) = ([0.0, 1.0, 2.0], [1.0, 0.0, 0.0]);
        let by_rows = divergence([0.0, 0.0, 1.0], first) + 0.5 * divergence([3.0, 0.0, 0.0], second);
        let expected = (0.5 * by_rows - 2.0 * log_softmax(first)[2]) / 1.5;
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
        // The first slot has what the model says in front: its likeliest is enough for the second to count.
        assert_eq!(loss_of(LossConfig { aligned_among: 1, ..config }), loss);
    }

    #[test]
    fn rows_behind_one_that_is_far_off_do_not_count() {
        let tensor = |values: &[f32]| {
            Tensor::new(values, &Device::Cpu).and_then(|x| x.reshape((values.len() / 4, 4))).expect("rows")
        };
        // The model says 0 everywhere, and so do the slots, but for the first: there it is the third.
        let logits =
            tensor(&[1.0, 3.0, 2.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]);
        let teacher = tensor(&[4.0, 0.0, 0.0, 0.0].repeat(4));
        assert_eq!(aligned(&logits, &teacher, &[0, 0, 0, 3], 2).expect("counts"), [true, false, false, true]);
        assert_eq!(aligned(&logits, &teacher, &[0, 0, 0, 3], 3).expect("counts"), [true; 4]);
        let loss = |n_rows: usize, aligned_among| -> f32 {
            let config = LossConfig { aligned_among, ..LossConfig::default() };
            let [logits, teacher] = [&logits, &teacher].map(|x| x.narrow(0, 0, n_rows).expect("rows"));
            let slots: Vec<u32> = (0..n_rows as u32).collect();
            let rows = LossRows { slots: &slots, labels: &vec![0; n_rows], firsts: &vec![0; n_rows] };
            slot_loss(config, &logits, &teacher, rows).and_then(|loss| loss.to_scalar()).expect("a number")
        };
        assert!((loss(3, 2) - loss(1, 0)).abs() < 1e-6);
        assert!((loss(3, 3) - loss(3, 0)).abs() < 1e-6 && loss(3, 0) < 0.9 * loss(1, 0));
    }

    /// What other devices do is what the processor does, the gradient too.
    #[test]
    fn tensors_and_rows_give_one_loss() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut rows = |scale: f32| {
            let numbers: Vec<f32> = (0..5 * 300).map(|_| scale * (random.f32() - 0.5)).collect();
            Tensor::from_vec(numbers, (5, 300), &Device::Cpu).expect("rows")
        };
        let (logits, teacher) = (rows(20.0), rows(8.0));
        let weighted = [0.3, 0.1, 0.2, 0.25, 0.15].iter().zip([7, 0, 299, 3, 3]);
        let weighted: Vec<WeightedRow> = weighted
            .map(|(&w, label)| WeightedRow { distillation: 0.9 * w, cross_entropy: 0.1 * w, label })
            .collect();
        let numbers = |(loss, gradient): (Tensor, Tensor)| -> Vec<f32> {
            let mut numbers = gradient.flatten_all().and_then(|x| x.to_vec1()).expect("numbers");
            numbers.push(loss.to_scalar().expect("a number"));
            numbers
        };
        let expected = numbers(by_tensors(&weighted, &logits, &teacher).expect("computes"));
        let got = numbers(on_the_processor(&weighted, &logits, &teacher).expect("computes"));
        for (expected, got) in expected.iter().zip(&got) {
            assert!((expected - got).abs() < 1e-6 * expected.abs().max(1.0), "{expected} {got}");
        }
        // The gradient is that of the loss: against differences.
        let rows_of =
            LossRows { slots: &[0, 1, 2, 3, 0], labels: &[7, 0, 999, 3, 3], firsts: &[0, 0, 0, 0, 4] };
        let loss = |logits: &Tensor| slot_loss(LossConfig::default(), logits, &teacher, rows_of);
        let variable = Var::from_tensor(&logits).expect("a variable");
        let gradients = loss(variable.as_tensor()).and_then(|loss| loss.backward()).expect("gradients");
        let gradient = gradients.get(variable.as_tensor()).expect("one").to_vec2::<f32>().expect("numbers");
        let direction = rows(1.0);
        let along = |step: f64| -> f64 {
            let there = (&logits + (&direction * step).expect("rows")).expect("rows");
            f64::from(loss(&there).and_then(|loss| loss.to_scalar::<f32>()).expect("a number"))
        };
        let expected = (along(0.05) - along(-0.05)) / 0.1;
        let direction = direction.to_vec2::<f32>().expect("numbers");
        let got = gradient.iter().flatten().zip(direction.iter().flatten()).map(|(g, d)| f64::from(g * d));
        let got: f64 = got.sum();
        assert!((expected - got).abs() < 2e-3 * expected.abs(), "{expected} {got}");
    }
}
