//! The softmax of scores over what each row sees, with its gradient: as one pass over them forward and one backward,
//! where candle's parts would take twenty over mostly hidden scores.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Result, Shape, Tensor};

use crate::rows::{for_each_row, numbers};

/// Two ranges of columns that each row sees: of the text, and of the rows of its own group. Rows of scores beyond the last
/// begin again at the first, as heads do.
type Ranges = Arc<Vec<[Range<usize>; 2]>>;

/// What rows see.
#[derive(Clone)]
pub(crate) struct Visible {
    ranges: Ranges,
    /// Elsewhere than on the processor: 0 where a row sees a column, else far below any score, `[n_rows, n_columns]`.
    mask: Option<Tensor>,
}

impl Visible {
    pub(crate) fn new(ranges: Vec<[Range<usize>; 2]>, n_columns: usize, device: &Device) -> Result<Self> {
        let mask = match device {
            Device::Cpu => None,
            device => Some(mask(&ranges, n_columns, device)?),
        };
        Ok(Self { ranges: Arc::new(ranges), mask })
    }
}

/// Made where it is needed: it is far larger than the ranges.
fn mask(ranges: &[[Range<usize>; 2]], n_columns: usize, device: &Device) -> Result<Tensor> {
    let n_rows = ranges.len();
    let columns = Tensor::arange(0u32, n_columns as u32, device)?.reshape((1, n_columns))?;
    let bound = |of: &dyn Fn(&[Range<usize>; 2]) -> usize| {
        let bounds: Vec<u32> = ranges.iter().map(|ranges| of(ranges) as u32).collect();
        Tensor::from_vec(bounds, (n_rows, 1), device)
    };
    let within = |i: usize| -> Result<Tensor> {
        let from_start = columns.broadcast_ge(&bound(&|ranges| ranges[i].start)?)?;
        let to_end = columns.broadcast_lt(&bound(&|ranges| ranges[i].end)?)?;
        from_start.to_dtype(DType::F32)? * to_end.to_dtype(DType::F32)?
    };
    (within(0)? + within(1)?)?.affine(-HIDDEN, HIDDEN)
}

/// Far below any score.
const HIDDEN: f64 = -1e30;

struct Forward {
    visible: Ranges,
    scale: f32,
}

struct Backward {
    visible: Ranges,
    scale: f32,
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        "softmax over what rows see"
    }

    fn cpu_fwd(&self, scores: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let n_columns = layout.dims().last().copied().unwrap_or(0);
        let scores = numbers(scores, layout)?;
        let mut shares = vec![0.0f32; scores.len()];
        for_each_row(&mut shares, n_columns, |row, shares| {
            let scores = &scores[row * n_columns..][..n_columns];
            let visible = &self.visible[row % self.visible.len()];
            let columns = || visible.iter().cloned().flatten();
            let largest = columns().map(|column| scores[column]).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0f32;
            for column in columns() {
                shares[column] = ((scores[column] - largest) * self.scale).exp();
                sum += shares[column];
            }
            columns().for_each(|column| shares[column] /= sum);
        });
        Ok((CpuStorage::F32(shares), layout.shape().clone()))
    }
}

impl CustomOp2 for Backward {
    fn name(&self) -> &'static str {
        "gradient of the softmax over what rows see"
    }

    fn cpu_fwd(
        &self,
        shares: &CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        of_gradient: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n_columns = layout.dims().last().copied().unwrap_or(0);
        let (shares, gradient) = (numbers(shares, layout)?, numbers(gradient, of_gradient)?);
        let mut out = vec![0.0f32; shares.len()];
        for_each_row(&mut out, n_columns, |row, out| {
            let shares = &shares[row * n_columns..][..n_columns];
            let gradient = &gradient[row * n_columns..][..n_columns];
            let visible = &self.visible[row % self.visible.len()];
            let columns = || visible.iter().cloned().flatten();
            let mean: f32 = columns().map(|column| shares[column] * gradient[column]).sum();
            for column in columns() {
                out[column] = self.scale * shares[column] * (gradient[column] - mean);
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// Shares of `scale * scores`, `[.., n_rows, n_columns]`, which add up to 1 over what each row sees and are 0 elsewhere. `scale` is
/// positive. No part of a graph.
pub(crate) fn visible_softmax(scores: &Tensor, visible: &Visible, scale: f64) -> Result<Tensor> {
    let Some(mask) = &visible.mask else {
        let visible = visible.ranges.clone();
        return scores.contiguous()?.apply_op1_no_bwd(&Forward { visible, scale: scale as f32 });
    };
    let (n_rows, n_columns) = mask.dims2()?;
    let by_heads = scores.detach().contiguous()?.reshape(((), n_rows, n_columns))?;
    let scores_seen = (by_heads * scale)?.broadcast_add(mask)?;
    let weights = scores_seen.broadcast_sub(&scores_seen.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?.reshape(scores.shape())
}

/// The gradient of the scores of [`visible_softmax`] from that of the `shares`, shapes alike.
pub(crate) fn softmax_gradient(
    shares: &Tensor,
    gradient: &Tensor,
    visible: &Visible,
    scale: f64,
) -> Result<Tensor> {
    if visible.mask.is_none() {
        let backward = Backward { visible: visible.ranges.clone(), scale: scale as f32 };
        return shares.contiguous()?.apply_op2_no_bwd(&gradient.contiguous()?, &backward);
    }
    let weighted = (shares * gradient)?;
    let means = weighted.sum_keepdim(D::Minus1)?;
    (weighted - shares.broadcast_mul(&means)?)? * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another device does by a mask is what the processor does by ranges, forward and backward.
    #[test]
    fn masks_and_ranges_are_one_softmax() {
        let ranges = vec![[0..2, 4..5], [0..3, 4..6], [1..1, 5..6]];
        let mask = mask(&ranges, 6, &Device::Cpu).expect("a mask");
        let by_ranges = Visible { ranges: Arc::new(ranges), mask: None };
        let by_mask = Visible { mask: Some(mask), ..by_ranges.clone() };
        let mut random = fastrand::Rng::with_seed(1);
        let mut numbers = |n: usize| (0..n).map(|_| 8.0 * random.f32() - 4.0).collect::<Vec<f32>>();
        // Two heads of two groups of rows.
        let shape = (2, 6, 6);
        let scores = Tensor::from_vec(numbers(72), shape, &Device::Cpu).expect("scores");
        let weights = Tensor::from_vec(numbers(72), shape, &Device::Cpu).expect("weights");
        let of = |visible: &Visible| -> Result<[Vec<f32>; 2]> {
            let shares = visible_softmax(&scores, visible, 0.7)?;
            let gradient = softmax_gradient(&shares, &weights, visible, 0.7)?;
            Ok([shares.flatten_all()?.to_vec1()?, gradient.flatten_all()?.to_vec1()?])
        };
        let (expected, got) = (of(&by_ranges).expect("computes"), of(&by_mask).expect("computes"));
        for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
            assert!((expected - got).abs() < 1e-6, "{expected} {got}");
        }
    }
}
