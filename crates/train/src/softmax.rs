//! The softmax of scores over what each row sees, with its gradient: as one pass over them forward and one backward,
//! where candle's parts would take twenty over mostly hidden scores.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Error, Layout, Result, Shape, Tensor};

/// Two ranges of columns that each row sees: of the text, and of the rows of its own group. Rows of scores beyond the last
/// begin again at the first, as heads do.
pub(crate) type Visible = Arc<Vec<[Range<usize>; 2]>>;

struct Forward {
    visible: Visible,
    scale: f32,
}

struct Backward {
    visible: Visible,
    scale: f32,
}

fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Msg("scores must be contiguous".to_owned()));
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `of_row` with the index of each row of `out` and the row, on as many threads as there are.
fn for_each_row(out: &mut [f32], n_columns: usize, of_row: impl Fn(usize, &mut [f32]) + Sync) {
    let n_rows = out.len() / n_columns.max(1);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = n_rows.div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        for (idx, rows) in out.chunks_mut(share * n_columns).enumerate() {
            let of_row = &of_row;
            scope.spawn(move || {
                rows.chunks_exact_mut(n_columns)
                    .enumerate()
                    .for_each(|(row, values)| of_row(idx * share + row, values));
            });
        }
    });
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

    fn bwd(&self, _: &Tensor, shares: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Self { visible, scale } = self;
        let backward = Backward { visible: visible.clone(), scale: *scale };
        shares.contiguous()?.apply_op2_no_bwd(&gradient.contiguous()?, &backward).map(Some)
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
/// positive.
pub(crate) fn visible_softmax(scores: &Tensor, visible: &Visible, scale: f64) -> Result<Tensor> {
    scores.contiguous()?.apply_op1(Forward { visible: visible.clone(), scale: scale as f32 })
}
