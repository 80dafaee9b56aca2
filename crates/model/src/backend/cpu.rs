//! The CPU: plain buffers, and the kernels crate over them.
//!
//! Weights are packed at load. Types that the kernels do not know, and all types when the
//! reference is asked for, run through candle's row-wise quantized products: `matmul_t` takes the
//! same dot product for one row as for many, where `QMatMul` would switch kernels with their number.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::quantized::{GgmlDType, QuantizedType};
use candle_core::{CpuStorage, Error};
use kernels::{
    AttentionShape, AttentionSlices, BLOCK, PackedMatrix, Pool, QuantizedFormat, QuantizedRows, Tier,
};
use speculate::{RowInput, RowPlan};

use super::{Backend, LinearKernels, MatrixBytes, Rope};
use crate::ModelError;
use crate::architecture::RopeLayout;
use crate::gguf::TensorType;
use crate::kv_cache::KvCache;

/// Values of an element-wise operation that a thread does at once.
const PIECE: usize = 2048;

/// The backend: its threads and instruction set.
pub(crate) struct Cpu {
    pool: Pool,
    tier: Tier,
    linear_kernels: LinearKernels,
}

impl Cpu {
    pub(crate) fn new(linear_kernels: LinearKernels) -> Self {
        Self { pool: Pool::for_this_machine(), tier: Tier::detect(), linear_kernels }
    }

    /// What it runs on, for people.
    pub(crate) fn describe(&self) -> String {
        match self.pool.n_threads() {
            1 => "CPU, 1 thread".to_owned(),
            n => format!("CPU, {n} threads"),
        }
    }

    /// Shares pieces of an output among the threads.
    fn for_each_piece<'a>(
        &self,
        pieces: impl Iterator<Item = &'a mut [f32]>,
        work: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let pieces: Vec<Mutex<&mut [f32]>> = pieces.map(Mutex::new).collect();
        self.pool.run(pieces.len(), &|idx| {
            // Each piece is claimed once, so the lock is never waited for.
            work(idx, &mut pieces[idx].lock().unwrap_or_else(PoisonError::into_inner));
        });
    }

    /// Makes `rows` ready to be the input of a linear layer.
    fn quantize(&self, rows: &mut HostRows) {
        if rows.width.is_multiple_of(BLOCK) {
            rows.quantized.quantize(&self.pool, self.tier, &rows.values, rows.width);
        }
    }
}

/// Activations `[n_rows, width]`.
#[derive(Default)]
pub(crate) struct HostRows {
    values: Vec<f32>,
    width: usize,
    /// The same in bytes, where they are the input of linear layers.
    quantized: QuantizedRows,
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

pub(crate) enum Matrix {
    Packed(PackedMatrix),
    Candle { blocks: Box<dyn QuantizedType>, n_out: usize, n_in: usize },
}

pub(crate) struct LowRank {
    /// `A` transposed, `[rank, n_in]`, so that each value of `x A` is one dot product.
    a_transposed: Vec<f32>,
    /// `[rank, n_out]`
    b: Vec<f32>,
    rank: usize,
}

fn packed_format(tensor_type: TensorType) -> Option<QuantizedFormat> {
    Some(match tensor_type {
        TensorType::Q4_0 => QuantizedFormat::Q4_0,
        TensorType::Q4_1 => QuantizedFormat::Q4_1,
        TensorType::Q5_0 => QuantizedFormat::Q5_0,
        TensorType::Q5_1 => QuantizedFormat::Q5_1,
        TensorType::Q8_0 => QuantizedFormat::Q8_0,
        TensorType::Q4_K => QuantizedFormat::Q4_K,
        TensorType::Q5_K => QuantizedFormat::Q5_K,
        TensorType::Q6_K => QuantizedFormat::Q6_K,
        _ => return None,
    })
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

impl Backend for Cpu {
    type Matrix = Matrix;
    type LowRank = LowRank;
    type Rows = HostRows;
    type Cache = KvCache;

    fn matrix(&self, matrix: MatrixBytes<'_>) -> Result<Matrix, ModelError> {
        let MatrixBytes { tensor_type, n_out, n_in, bytes } = matrix;
        let format = packed_format(tensor_type).filter(|_| self.linear_kernels == LinearKernels::Packed);
        Ok(match format {
            Some(format) => Matrix::Packed(PackedMatrix::pack(format, n_out, n_in, bytes, &self.pool)),
            None => {
                let blocks = ggml_type(tensor_type).from_data(Cow::Borrowed(bytes));
                Matrix::Candle { blocks, n_out, n_in }
            }
        })
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
        hidden: usize,
        slots: &[f32],
        plan: &RowPlan,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        out.resize(plan.rows().len(), hidden);
        for (row, out) in plan.rows().iter().zip(out.values.chunks_exact_mut(hidden)) {
            match (row.input, table) {
                (RowInput::Adaptive(slot), _) => {
                    out.copy_from_slice(&slots[slot * hidden..(slot + 1) * hidden]);
                }
                (RowInput::Token(token), Matrix::Packed(packed)) => {
                    packed.dequantize_row(token as usize, out);
                }
                (RowInput::Token(token), Matrix::Candle { blocks, n_out, n_in }) => {
                    match blocks.embedding(&[token], *n_out, *n_in)? {
                        CpuStorage::F32(values) => out.copy_from_slice(&values),
                        _ => return Err(Error::Msg("embeddings are not f32".to_owned()).into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn rms_norm(&self, input: &HostRows, weight: &[f32], epsilon: f32, out: &mut HostRows) {
        out.resize(input.n_rows(), input.width);
        let rows = input.values.chunks_exact(input.width).zip(out.values.chunks_exact_mut(input.width));
        rows.for_each(|(input, out)| kernels::rms_norm(self.tier, input, weight, epsilon, out));
        self.quantize(out);
    }

    fn linear(
        &self,
        matrix: &Matrix,
        bias: Option<&[f32]>,
        input: &HostRows,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        let n_rows = input.n_rows();
        match matrix {
            Matrix::Packed(packed) => {
                out.resize(n_rows, packed.n_out());
                kernels::linear(&self.pool, self.tier, packed, &input.quantized, &mut out.values);
            }
            Matrix::Candle { blocks, n_out, n_in } => {
                out.resize(n_rows, *n_out);
                blocks.matmul_t((n_rows, *n_in, *n_out), &input.values, &mut out.values)?;
            }
        }
        if let Some(bias) = bias {
            for row in out.values.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
        }
        Ok(())
    }

    fn add_low_rank(&self, delta: &LowRank, first_row: usize, input: &HostRows, out: &mut HostRows) {
        let inputs: Vec<&[f32]> = input.values.chunks_exact(input.width).skip(first_row).collect();
        let outputs = out.values.chunks_exact_mut(out.width).skip(first_row);
        self.for_each_piece(outputs, |row, out| {
            kernels::add_low_rank(self.tier, inputs[row], &delta.a_transposed, &delta.b, delta.rank, out);
        });
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
        pass: &super::Visibility,
        queries: &HostRows,
        out: &mut HostRows,
    ) {
        out.resize(queries.n_rows(), queries.width);
        let (keys, values) = cache.layer(layer);
        let super::Visibility { n_committed, visible } = pass;
        let slices =
            AttentionSlices { queries: &queries.values, keys, values, n_committed: *n_committed, visible };
        kernels::attend(&self.pool, self.tier, shape, slices, &mut out.values);
        self.quantize(out);
    }

    fn swiglu(&self, gate: &mut HostRows, up: &HostRows) {
        let up: Vec<&[f32]> = up.values.chunks(PIECE).collect();
        self.for_each_piece(gate.values.chunks_mut(PIECE), |piece, gate| {
            kernels::swiglu(self.tier, gate, up[piece]);
        });
        self.quantize(gate);
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

    fn to_host(&self, rows: &mut HostRows, out: &mut Vec<f32>) {
        // Logits are megabytes: the two buffers take turns instead of being copied.
        std::mem::swap(&mut rows.values, out);
    }
}
