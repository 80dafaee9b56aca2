//! The input of linear layers.

use super::{LinearLayer, MAX_ROWS, Rows, block_rows, place_among, tile_rows};
use crate::activations::{MIN_PARALLEL_VALUES, RowsWriter};
use crate::lanes::prefetch;
use crate::{BLOCK, Pool, QuantizedRows, SharedSlice, TILE, Tier, add_rows, rms_norm};

/// Rows that linear layers multiply, of which the adaptive ones come last.
#[derive(Debug, Default)]
pub struct LinearInput {
    /// The rows as they were computed, `[n_rows, width]`.
    pub values: Vec<f32>,
    /// Index of the first adaptive row; the number of rows when there is none.
    pub first_adaptive: usize,
    /// The rows in bytes, and their sizes; no bytes where the width is not whole blocks.
    pub(crate) rows: QuantizedRows,
    /// `x A` of the adaptive rows, for each of the layers that share the input.
    inner: Vec<QuantizedRows>,
}

impl LinearInput {
    /// The rows in bytes.
    pub fn rows(&self) -> &QuantizedRows {
        &self.rows
    }

    /// Makes `values` the input: rows of `width`, quantized where that is whole blocks.
    ///
    /// # Panics
    /// When the values are no whole rows.
    pub fn quantize(&mut self, pool: &Pool, tier: Tier, width: usize) {
        self.rows.quantize(pool, tier, &self.values, width);
    }

    /// Makes room for `[n_rows, width]`.
    pub(super) fn resize(&mut self, n_rows: usize, width: usize) {
        self.values.resize(n_rows * width, 0.0);
        self.rows.resize(n_rows, width);
    }

    /// Lets tasks write disjoint parts.
    pub(super) fn writer(&mut self) -> InputWriter<'_> {
        InputWriter {
            width: self.rows.width,
            rows: self.rows.writer(),
            values: SharedSlice::new(&mut self.values),
        }
    }

    fn both(&self) -> Rows<'_> {
        Rows { quantized: &self.rows, values: &self.values }
    }

    /// `hidden += residual`, then `values = hidden / sqrt(mean(hidden²) + epsilon) * weight`, quantized;
    /// `hidden` is `[n_rows, width of weight]`.
    ///
    /// # Panics
    /// When the sizes do not fit each other.
    pub fn normalise(
        &mut self,
        pool: &Pool,
        tier: Tier,
        residual: Option<&[f32]>,
        hidden: &mut [f32],
        weight: &[f32],
        epsilon: f32,
    ) {
        let width = weight.len();
        assert!(hidden.len().is_multiple_of(width), "whole rows");
        assert!(residual.is_none_or(|residual| residual.len() == hidden.len()), "the size of the residual");
        let n_rows = hidden.len() / width;
        self.resize(n_rows, width);
        let writer = self.writer();
        let hidden = SharedSlice::new(hidden);
        pool.run_if(n_rows * width >= MIN_PARALLEL_VALUES, n_rows, &|row| {
            let start = row * width;
            // SAFETY: each row belongs to one task.
            let hidden = unsafe { hidden.range_mut(start, width) };
            if let Some(residual) = residual {
                add_rows(tier, &residual[start..start + width], hidden);
            }
            // SAFETY: as above.
            let values = unsafe { writer.values.range_mut(start, width) };
            rms_norm(tier, hidden, weight, epsilon, values);
            // SAFETY: as above.
            unsafe { writer.rows.write(tier, row, 0, values) };
        });
    }

    /// Computes `x A` of the adaptive rows for each of `layers`.
    pub(super) fn prepare_deltas<const N: usize>(
        &mut self,
        pool: &Pool,
        tier: Tier,
        layers: &[LinearLayer<'_>; N],
    ) {
        self.first_adaptive = self.first_adaptive.min(self.rows.n_rows);
        let n_adaptive = self.rows.n_rows - self.first_adaptive;
        if n_adaptive == 0 || layers.iter().all(|layer| layer.delta.is_none()) {
            self.first_adaptive = self.rows.n_rows;
            return;
        }
        let n_blocks = layers.map(|layer| layer.delta.map_or(0, |delta| delta.b.n_in / BLOCK));
        self.inner.resize_with(N.max(self.inner.len()), QuantizedRows::default);
        for (inner, n_blocks) in self.inner.iter_mut().zip(n_blocks) {
            inner.resize(n_adaptive, n_blocks.max(1) * BLOCK);
        }
        let mut inner = self.inner.iter_mut();
        let writers: [_; N] = std::array::from_fn(|_| inner.next().map(QuantizedRows::writer));
        let rows = Rows { quantized: &self.rows, values: &self.values };
        let first_adaptive = self.first_adaptive;
        pool.run(n_blocks.iter().sum(), &|task| {
            let (idx, block) = place_among(&n_blocks, task);
            let (Some(delta), Some(writer)) = (layers[idx].delta, &writers[idx]) else { return };
            for first in (0..n_adaptive).step_by(MAX_ROWS) {
                let n = MAX_ROWS.min(n_adaptive - first);
                let mut values = [[0.0f32; BLOCK]; MAX_ROWS];
                block_rows(tier, &delta.a, block, rows, first_adaptive + first, &mut values[..n]);
                for (row, values) in values[..n].iter().enumerate() {
                    // SAFETY: each block of each layer belongs to one task.
                    unsafe { writer.write(tier, first + row, block, values) };
                }
            }
        });
    }

    /// Adds outputs `tile_idx` of `layer`, the `idx`-th that shares this input, for rows from `first` on to `out`.
    pub(super) fn tile(
        &self,
        tier: Tier,
        idx: usize,
        layer: &LinearLayer<'_>,
        tile_idx: usize,
        first: usize,
        out: &mut [[f32; TILE]],
    ) {
        let n_token = self.first_adaptive.saturating_sub(first).min(out.len());
        let delta = layer.delta.filter(|_| n_token < out.len());
        if let Some(delta) = delta {
            // It comes while the weights are worked on.
            prefetch(delta.b.tile(tile_idx));
        }
        tile_rows(tier, layer.matrix, tile_idx, self.both(), first, out);
        if let Some(bias) = layer.bias {
            let bias = &bias[tile_idx * TILE..bias.len().min((tile_idx + 1) * TILE)];
            for out in out.iter_mut() {
                out.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        if let Some(delta) = delta {
            let inner = Rows { quantized: &self.inner[idx], values: &[] };
            let first = first + n_token - self.first_adaptive;
            tile_rows(tier, &delta.b, tile_idx, inner, first, &mut out[n_token..]);
        }
    }
}

/// An input that several threads fill.
pub(super) struct InputWriter<'a> {
    width: usize,
    rows: RowsWriter<'a>,
    values: SharedSlice<'a, f32>,
}

impl InputWriter<'_> {
    /// Writes values of a row, from block `first_block` on.
    ///
    /// # Safety
    /// No other thread may write the same blocks.
    pub(super) unsafe fn write(&self, tier: Tier, row: usize, first_block: usize, values: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            let start = row * self.width + first_block * BLOCK;
            self.values.range_mut(start, values.len()).copy_from_slice(values);
            self.rows.write(tier, row, first_block, values);
        }
    }
}
