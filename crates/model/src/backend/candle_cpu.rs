//! The CPU by candle's quantized matrix products, and plain loops for everything else.
//!
//! `QuantizedType::matmul_t` is candle's row-wise path: it takes the same dot product for one row
//! as for many. (`QMatMul` would repack some types and switch kernels with the number of rows.)
//! Types without vector code in candle are rewritten exactly as 8-bit codes first.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QuantizedType};
use candle_core::{CpuStorage, Error};
use speculate::{RowInput, RowPlan};

use super::attention::{attend, dot};
use super::legacy_blocks::{BLOCK, EightBit, to_eight_bit};
use super::{AttentionShape, Backend, MatrixBytes, Rope};
use crate::ModelError;
use crate::architecture::RopeLayout;
use crate::gguf::TensorType;
use crate::kv_cache::KvCache;

/// The backend; it has no state of its own.
pub(crate) struct CandleCpu;

/// Activations `[n_rows, width]`.
#[derive(Default)]
pub(crate) struct HostRows {
    values: Vec<f32>,
    width: usize,
}

impl HostRows {
    fn resize(&mut self, n_rows: usize, width: usize) {
        self.width = width;
        self.values.resize(n_rows * width, 0.0);
    }

    fn n_rows(&self) -> usize {
        self.values.len() / self.width
    }
}

pub(crate) struct Matrix {
    blocks: Box<dyn QuantizedType>,
    /// `[n_out, n_in / 32]`, what `blocks` leaves out: an offset per block.
    offsets: Option<Vec<f32>>,
    n_out: usize,
    n_in: usize,
}

pub(crate) struct LowRank {
    /// `A` transposed, `[rank, n_in]`, so that each value of `x A` is one dot product.
    a_transposed: Vec<f32>,
    /// `[rank, n_out]`
    b: Vec<f32>,
    rank: usize,
}

fn ggml_type(tensor_type: TensorType) -> GgmlDType {
    match tensor_type {
        TensorType::F32 => GgmlDType::F32,
        TensorType::F16 => GgmlDType::F16,
        TensorType::BF16 => GgmlDType::BF16,
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2_K => GgmlDType::Q2K,
        TensorType::Q3_K => GgmlDType::Q3K,
        TensorType::Q4_K => GgmlDType::Q4K,
        TensorType::Q5_K => GgmlDType::Q5K,
        TensorType::Q6_K => GgmlDType::Q6K,
    }
}

impl Backend for CandleCpu {
    type Matrix = Matrix;
    type LowRank = LowRank;
    type Rows = HostRows;
    type Cache = KvCache;

    fn matrix(&self, matrix: MatrixBytes<'_>) -> Result<Matrix, ModelError> {
        let MatrixBytes { tensor_type, n_out, n_in, bytes } = matrix;
        let (blocks, offsets) = match to_eight_bit(tensor_type, bytes) {
            Some(EightBit { q8_0, offsets }) => (GgmlDType::Q8_0.from_data(Cow::Owned(q8_0)), offsets),
            None => (ggml_type(tensor_type).from_data(Cow::Borrowed(bytes)), None),
        };
        Ok(Matrix { blocks, offsets, n_out, n_in })
    }

    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> LowRank {
        let n_in = a.len() / rank;
        let a_transposed = (0..rank * n_in).map(|i| a[i % n_in * rank + i / n_in]).collect();
        LowRank { a_transposed, b, rank }
    }

    fn cache(&self, n_layers: usize, capacity: usize, kv_width: usize) -> KvCache {
        KvCache::new(n_layers, capacity, kv_width)
    }

    fn compact(&self, cache: &mut KvCache, n_base: usize, kept: &[usize]) {
        cache.compact(n_base, kept);
    }

    fn embed(
        &self,
        table: &Matrix,
        slots: &[f32],
        plan: &RowPlan,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        let hidden = table.n_in;
        out.resize(plan.rows().len(), hidden);
        for (row, out) in plan.rows().iter().zip(out.values.chunks_exact_mut(hidden)) {
            match row.input {
                RowInput::Adaptive(slot) => out.copy_from_slice(&slots[slot * hidden..(slot + 1) * hidden]),
                RowInput::Token(token) => {
                    match table.blocks.embedding(&[token], table.n_out, hidden)? {
                        CpuStorage::F32(values) => out.copy_from_slice(&values),
                        _ => return Err(Error::Msg("embeddings are not f32".to_owned()).into()),
                    };
                    if let Some(offsets) = &table.offsets {
                        let n_blocks = hidden / BLOCK;
                        let offsets = &offsets[token as usize * n_blocks..][..n_blocks];
                        for (block, offset) in out.chunks_exact_mut(BLOCK).zip(offsets) {
                            block.iter_mut().for_each(|value| *value += offset);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn rms_norm(&self, input: &HostRows, weight: &[f32], epsilon: f32, out: &mut HostRows) {
        out.resize(input.n_rows(), input.width);
        let rows = input.values.chunks_exact(input.width).zip(out.values.chunks_exact_mut(input.width));
        for (input, out) in rows {
            let mean_square = dot(input, input) / input.len() as f32;
            let scale = 1.0 / (mean_square + epsilon).sqrt();
            for ((out, value), weight) in out.iter_mut().zip(input).zip(weight) {
                *out = value * scale * weight;
            }
        }
    }

    fn linear(
        &self,
        matrix: &Matrix,
        bias: Option<&[f32]>,
        input: &HostRows,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        let n_rows = input.n_rows();
        out.resize(n_rows, matrix.n_out);
        matrix.blocks.matmul_t((n_rows, matrix.n_in, matrix.n_out), &input.values, &mut out.values)?;
        if let Some(offsets) = &matrix.offsets {
            let n_blocks = matrix.n_in / BLOCK;
            let sums: Vec<f32> = input.values.chunks_exact(BLOCK).map(|block| block.iter().sum()).collect();
            for (sums, out) in sums.chunks_exact(n_blocks).zip(out.values.chunks_exact_mut(matrix.n_out)) {
                for (value, offsets) in out.iter_mut().zip(offsets.chunks_exact(n_blocks)) {
                    *value += dot(sums, offsets);
                }
            }
        }
        if let Some(bias) = bias {
            for row in out.values.chunks_exact_mut(matrix.n_out) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        Ok(())
    }

    fn add_low_rank(&self, delta: &LowRank, first_row: usize, input: &HostRows, out: &mut HostRows) {
        let n_in = input.width;
        let inputs = input.values.chunks_exact(n_in).skip(first_row);
        for (input, out) in inputs.zip(out.values.chunks_exact_mut(out.width).skip(first_row)) {
            for idx in 0..delta.rank {
                let scale = dot(input, &delta.a_transposed[idx * n_in..(idx + 1) * n_in]);
                let b_row = &delta.b[idx * out.len()..(idx + 1) * out.len()];
                out.iter_mut().zip(b_row).for_each(|(value, b)| *value += scale * b);
            }
        }
    }

    fn rope(&self, rope: &Rope, plan: &RowPlan, rows: &mut HostRows) {
        let n_pairs = rope.rope_dim / 2;
        let (first_step, second_offset) = match rope.layout {
            RopeLayout::Interleaved => (2, 1),
            RopeLayout::Half => (1, n_pairs),
        };
        for (row, values) in plan.rows().iter().zip(rows.values.chunks_exact_mut(rows.width)) {
            let table = row.position * n_pairs..(row.position + 1) * n_pairs;
            let (cos, sin) = (&rope.cos[table.clone()], &rope.sin[table]);
            for head in values.chunks_exact_mut(rope.head_dim) {
                for pair in 0..n_pairs {
                    let (first, second) = (pair * first_step, pair * first_step + second_offset);
                    let (a, b) = (head[first], head[second]);
                    head[first] = a * cos[pair] - b * sin[pair];
                    head[second] = b * cos[pair] + a * sin[pair];
                }
            }
        }
    }

    fn store(&self, cache: &mut KvCache, layer: usize, plan: &RowPlan, keys: &HostRows, values: &HostRows) {
        cache.store(layer, plan.n_committed(), &keys.values, &values.values);
    }

    fn attend(
        &self,
        cache: &KvCache,
        layer: usize,
        shape: AttentionShape,
        plan: &RowPlan,
        queries: &HostRows,
        out: &mut HostRows,
    ) {
        out.resize(queries.n_rows(), queries.width);
        let (keys, values) = cache.layer(layer);
        attend(shape, plan, keys, values, &queries.values, &mut out.values);
    }

    fn swiglu(&self, gate: &mut HostRows, up: &HostRows) {
        for (gate, up) in gate.values.iter_mut().zip(&up.values) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }

    fn add(&self, input: &HostRows, out: &mut HostRows) {
        out.values.iter_mut().zip(&input.values).for_each(|(sum, value)| *sum += value);
    }

    fn select(&self, input: &HostRows, selection: &[usize], out: &mut HostRows) {
        out.resize(selection.len(), input.width);
        for (&row, out) in selection.iter().zip(out.values.chunks_exact_mut(input.width)) {
            out.copy_from_slice(&input.values[row * input.width..(row + 1) * input.width]);
        }
    }

    fn to_host(&self, rows: &HostRows, out: &mut Vec<f32>) {
        out.clone_from(&rows.values);
    }
}
