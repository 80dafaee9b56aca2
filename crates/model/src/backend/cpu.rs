//! The CPU: plain buffers, and the kernels crate over them.
//!
//! Weights are packed at load. When the reference is asked for, they run through candle's row-wise quantized
//! products instead: `matmul_t` takes the same dot product for one row as for many, where `QMatMul` would
//! switch kernels with their number.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QuantizedType};
use candle_core::{CpuStorage, Error};
use kernels::{
    AttentionShape, AttentionSlices, CacheType, DenseFormat, KvCache, LinearInput, LinearLayer, LowRank,
    PackedMatrix, Pool, QuantizedFormat, Tier, VocabularyOut, VocabularyRows, VocabularyScratch,
    WeightFormat,
};
use speculate::{Logits, RowInput, RowPlan, Wanted, rank};

use super::{Backend, LinearKernels, MatrixSource, Norm, Projection, Rope, VocabularyHead};
use crate::ModelError;
use crate::architecture::RopeLayout;
use crate::gguf::TensorType;

/// Tokens among which adaptive rows look for drafts. Byte-pair vocabularies are in the order in which
/// their pairs were found, so that common tokens come first; the whole of a large one would be a
/// third of what an adaptive row costs.
const DRAFT_VOCABULARY: usize = 32_768;

/// The backend: its threads and instruction set.
pub(crate) struct Cpu {
    pool: Pool,
    tier: Tier,
    linear_kernels: LinearKernels,
}

impl Cpu {
    /// With as many threads as the machine has cores for this process when `n_threads` is 0.
    pub(crate) fn new(linear_kernels: LinearKernels, n_threads: usize) -> Self {
        Self { pool: Pool::for_this_machine(n_threads), tier: Tier::detect(), linear_kernels }
    }

    /// What it runs on, for people.
    pub(crate) fn describe(&self) -> String {
        match self.pool.n_threads() {
            1 => "CPU, 1 thread".to_owned(),
            n => format!("CPU, {n} threads"),
        }
    }

    /// Bytes read and multiply-adds of bytes, per second, that the device reaches at best.
    pub(crate) fn roofline(&self) -> (f64, f64) {
        (kernels::read_bandwidth(&self.pool, self.tier), kernels::product_throughput(&self.pool, self.tier))
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// What measurements are valid for.
    pub(crate) fn fingerprint(&self) -> String {
        format!("CPU {}, {} threads", self.tier.name(), self.pool.n_threads())
    }

    /// Rotates the heads of a row to `position`.
    fn rotate(&self, rope: &Rope, position: usize, values: &mut [f32]) {
        let n_pairs = rope.rope_dim / 2;
        let table = position * n_pairs..(position + 1) * n_pairs;
        let (cos, sin) = (&rope.cos[table.clone()], &rope.sin[table]);
        kernels::rotate(self.tier, rope.layout == RopeLayout::Half, rope.head_dim, cos, sin, values);
    }

    /// One layer of the reference.
    fn project_reference(
        &self,
        layer: Projection<'_, Self>,
        input: &HostInput,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        let Projection { linear, delta } = layer;
        reference_product(&linear.matrix, input, out)?;
        add_bias(linear.bias.as_deref(), out);
        if let Some(Delta::Reference { a, b, rank }) = delta {
            let first = input.linear.first_adaptive.min(input.n_rows);
            let values = &input.linear.values[first * (input.linear.values.len() / input.n_rows)..];
            add_delta(a, b, *rank, values, &mut out.values[first * out.width..]);
        }
        Ok(())
    }
}

/// The layers for the kernels, unless they are the reference's.
fn packed<const N: usize>(layers: [Projection<'_, Cpu>; N]) -> Option<[LinearLayer<'_>; N]> {
    let packed = layers.map(|Projection { linear, delta }| match &linear.matrix {
        Matrix::Reference { .. } => None,
        Matrix::Packed(matrix) => {
            let delta = delta.and_then(|delta| match delta {
                Delta::Packed(delta) => Some(delta),
                Delta::Reference { .. } => None,
            });
            Some(LinearLayer { matrix, bias: linear.bias.as_deref(), delta })
        }
    });
    packed.iter().all(Option::is_some).then(|| packed.map(|layer| layer.expect("all are")))
}

/// `out = input Wᵀ`
fn reference_product(matrix: &Matrix, input: &HostInput, out: &mut HostRows) -> Result<(), ModelError> {
    let Matrix::Reference { blocks, n_out, n_in } = matrix else {
        return Err(Error::Msg("packed weights are no reference".to_owned()).into());
    };
    out.resize(input.n_rows, *n_out);
    Ok(blocks.matmul_t((input.n_rows, *n_in, *n_out), &input.linear.values, &mut out.values)?)
}

fn add_bias(bias: Option<&[f32]>, out: &mut HostRows) {
    let Some(bias) = bias else { return };
    for row in out.values.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

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
}

/// The input of linear layers.
#[derive(Default)]
pub(crate) struct HostInput {
    linear: LinearInput,
    n_rows: usize,
}

pub(crate) enum Matrix {
    Packed(PackedMatrix),
    /// The blocks of the file, for candle.
    Reference {
        blocks: Box<dyn QuantizedType>,
        n_out: usize,
        n_in: usize,
    },
}

pub(crate) enum Delta {
    Packed(LowRank),
    /// `A [n_in, rank]` and `B [rank, n_out]` as they are.
    Reference {
        a: Vec<f32>,
        b: Vec<f32>,
        rank: usize,
    },
}

/// `out += (values A) B`, row by row.
fn add_delta(a: &[f32], b: &[f32], rank: usize, values: &[f32], out: &mut [f32]) {
    let (n_in, n_out) = (a.len() / rank, b.len() / rank);
    for (values, out) in values.chunks_exact(n_in).zip(out.chunks_exact_mut(n_out)) {
        let mut inner = vec![0.0f32; rank];
        for (value, a) in values.iter().zip(a.chunks_exact(rank)) {
            inner.iter_mut().zip(a).for_each(|(sum, a)| *sum += value * a);
        }
        for (inner, b) in inner.iter().zip(b.chunks_exact(n_out)) {
            out.iter_mut().zip(b).for_each(|(value, b)| *value += inner * b);
        }
    }
}

fn weight_format(tensor_type: TensorType) -> WeightFormat {
    match tensor_type {
        TensorType::F32 => DenseFormat::F32.into(),
        TensorType::F16 => DenseFormat::F16.into(),
        TensorType::BF16 => DenseFormat::BF16.into(),
        TensorType::Q4_0 => QuantizedFormat::Q4_0.into(),
        TensorType::Q4_1 => QuantizedFormat::Q4_1.into(),
        TensorType::Q5_0 => QuantizedFormat::Q5_0.into(),
        TensorType::Q5_1 => QuantizedFormat::Q5_1.into(),
        TensorType::Q8_0 => QuantizedFormat::Q8_0.into(),
        TensorType::Q2_K => QuantizedFormat::Q2_K.into(),
        TensorType::Q3_K => QuantizedFormat::Q3_K.into(),
        TensorType::Q4_K => QuantizedFormat::Q4_K.into(),
        TensorType::Q5_K => QuantizedFormat::Q5_K.into(),
        TensorType::Q6_K => QuantizedFormat::Q6_K.into(),
    }
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
    type LowRank = Delta;
    type Rows = HostRows;
    type Input = HostInput;
    type Cache = KvCache;
    type Scratch = VocabularyScratch;

    fn matrix(&self, matrix: MatrixSource<'_>) -> Result<Matrix, ModelError> {
        let MatrixSource { tensor, tensor_type, n_out, n_in, read } = matrix;
        match self.linear_kernels {
            LinearKernels::Packed => {
                let packed =
                    PackedMatrix::pack_from(weight_format(tensor_type), n_out, n_in, &self.pool, read);
                packed.map(Matrix::Packed).map_err(|error| ModelError::of_kernel(tensor, error))
            }
            LinearKernels::Candle => {
                let (block, block_bytes) = tensor_type.block();
                let mut bytes = vec![0; n_out * n_in / block * block_bytes];
                read(0, &mut bytes)
                    .map_err(|source| ModelError::Read { tensor: tensor.to_owned(), source })?;
                let blocks = ggml_type(tensor_type).from_data(Cow::Borrowed(&bytes));
                Ok(Matrix::Reference { blocks, n_out, n_in })
            }
        }
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        match matrix {
            Matrix::Packed(matrix) => matrix.n_bytes(),
            Matrix::Reference { blocks, .. } => blocks.storage_size_in_bytes(),
        }
    }

    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Result<Delta, ModelError> {
        match self.linear_kernels {
            LinearKernels::Packed => {
                let packed = LowRank::pack(&a, &b, rank, &self.pool);
                packed.map(Delta::Packed).map_err(|error| ModelError::of_kernel("the adapter", error))
            }
            LinearKernels::Candle => Ok(Delta::Reference { a, b, rank }),
        }
    }

    fn cache(
        &self,
        n_layers: usize,
        capacity: usize,
        shape: AttentionShape,
        cache_type: CacheType,
    ) -> Result<KvCache, ModelError> {
        let cache = KvCache::new(n_layers, capacity, shape, cache_type);
        cache.map_err(|error| ModelError::of_kernel("the cache", error))
    }

    fn compact(&self, cache: &mut KvCache, n_base: usize, kept: &[usize]) {
        cache.compact(n_base, kept);
    }

    fn set_aside(&self, cache: &mut KvCache, slots: Range<usize>) {
        cache.set_aside(slots);
    }

    fn keep_unturned(&self, cache: &mut KvCache, layer: usize, plan: &RowPlan, keys: &HostRows) {
        cache.keep_unturned(layer, plan.n_committed(), &keys.values);
    }

    fn turn(&self, cache: &mut KvCache, rope: &Rope, first: usize) {
        cache.turn(|row, keys| self.rotate(rope, first + row, keys));
    }

    fn copy_prefix(&self, from: &KvCache, n: usize, to: &mut KvCache) {
        to.copy_prefix(from, n);
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
                (RowInput::Token(token), Matrix::Reference { blocks, n_out, n_in }) => {
                    match blocks.embedding(&[token], *n_out, *n_in)? {
                        CpuStorage::F32(values) => out.copy_from_slice(&values),
                        _ => return Err(Error::Msg("embeddings are not f32".to_owned()).into()),
                    }
                }
            }
        }
        Ok(())
    }

    fn weighted_embedding(
        &self,
        table: &Matrix,
        hidden: usize,
        plan: &RowPlan,
        weights: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        let mut rows = HostRows::default();
        self.embed(table, hidden, &[], plan, &mut rows)?;
        let mut sum = vec![0.0f32; hidden];
        for (row, weight) in rows.values.chunks_exact(hidden).zip(weights) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
        }
        Ok(sum)
    }

    fn normalise(
        &self,
        residual: Option<&HostRows>,
        hidden: &mut HostRows,
        norm: Norm<'_>,
        first_adaptive: usize,
        out: &mut HostInput,
    ) {
        out.n_rows = hidden.values.len() / hidden.width;
        out.linear.first_adaptive = first_adaptive;
        let residual = residual.map(|rows| rows.values.as_slice());
        let Norm { weight, epsilon } = norm;
        out.linear.normalise(&self.pool, self.tier, residual, &mut hidden.values, weight, epsilon);
    }

    fn scale(&self, rows: &mut HostRows, factor: f32) {
        rows.values.iter_mut().for_each(|value| *value *= factor);
    }

    fn normalise_heads(&self, rows: &mut HostRows, norm: Norm<'_>) {
        kernels::rms_norm_heads(self.tier, norm.weight, norm.epsilon, &mut rows.values);
    }

    fn project<const N: usize>(
        &self,
        layers: [Projection<'_, Self>; N],
        input: &mut HostInput,
        outs: [&mut HostRows; N],
    ) -> Result<(), ModelError> {
        match packed(layers) {
            Some(layers) => {
                let mut idx = 0;
                let outs = outs.map(|out| {
                    out.resize(input.n_rows, layers[idx].matrix.n_out());
                    idx += 1;
                    out.values.as_mut_slice()
                });
                kernels::project(&self.pool, self.tier, layers, &mut input.linear, outs);
                Ok(())
            }
            None => {
                let mut pairs = layers.into_iter().zip(outs);
                pairs.try_for_each(|(layer, out)| self.project_reference(layer, input, out))
            }
        }
    }

    fn project_swiglu(
        &self,
        gate: Projection<'_, Self>,
        up: Projection<'_, Self>,
        input: &mut HostInput,
        out: &mut HostInput,
    ) -> Result<(), ModelError> {
        out.n_rows = input.n_rows;
        if let Some(layers) = packed([gate, up]) {
            kernels::project_swiglu(&self.pool, self.tier, layers, &mut input.linear, &mut out.linear);
            return Ok(());
        }
        let (mut gates, mut ups) = (HostRows::default(), HostRows::default());
        self.project_reference(gate, input, &mut gates)?;
        self.project_reference(up, input, &mut ups)?;
        kernels::swiglu(self.tier, &mut gates.values, &ups.values);
        out.linear.first_adaptive = input.linear.first_adaptive;
        out.linear.values = gates.values;
        Ok(())
    }

    fn project_vocabulary(
        &self,
        head: VocabularyHead<'_, Self>,
        input: &HostInput,
        wanted: &[Wanted],
        scratch: &mut VocabularyScratch,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        logits.is_full.clear();
        logits.is_full.extend(wanted.iter().map(|&wanted| wanted == Wanted::All));
        if let Matrix::Packed(matrix) = head.matrix {
            let layer = LinearLayer { matrix, bias: head.bias, delta: None };
            // Behind the last row that must be exact, in whatever order they were asked for.
            let last_exact = wanted.iter().rposition(|&wanted| wanted != Wanted::Drafts);
            let rows = VocabularyRows {
                is_full: &logits.is_full,
                first_draft: last_exact.map_or(0, |last| last + 1),
                n_draft_outputs: DRAFT_VOCABULARY,
            };
            let out = VocabularyOut { tops: &mut logits.ranked, full: &mut logits.full };
            kernels::project_vocabulary(&self.pool, self.tier, layer, &input.linear, rows, scratch, out);
            return Ok(());
        }
        let mut rows = HostRows::default();
        reference_product(head.matrix, input, &mut rows)?;
        add_bias(head.bias, &mut rows);
        logits.ranked.clear();
        logits.full.clear();
        for (row, &is_full) in rows.values.chunks_exact(rows.width).zip(&logits.is_full) {
            logits.ranked.push(rank(row));
            logits.full.extend(row.iter().filter(|_| is_full));
        }
        Ok(())
    }

    fn rope(&self, rope: &Rope, plan: &RowPlan, rows: &mut HostRows) {
        for (row, values) in plan.rows().iter().zip(rows.values.chunks_exact_mut(rows.width)) {
            self.rotate(rope, row.position, values);
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
        first_adaptive: usize,
        out: &mut HostInput,
    ) {
        out.linear.first_adaptive = first_adaptive;
        out.n_rows = queries.values.len() / queries.width;
        out.linear.values.resize(queries.values.len(), 0.0);
        let super::Visibility { n_committed, visible, hidden } = pass;
        let slices = AttentionSlices {
            queries: &queries.values,
            cached: cache.layer(layer),
            n_committed: *n_committed,
            visible,
            hidden,
        };
        kernels::attend(&self.pool, self.tier, shape, &slices, &mut out.linear.values);
        out.linear.quantize(&self.pool, self.tier, queries.width);
    }

    fn select(&self, input: &HostRows, selection: &[usize], out: &mut HostRows) {
        out.resize(selection.len(), input.width);
        for (&row, out) in selection.iter().zip(out.values.chunks_exact_mut(input.width)) {
            out.copy_from_slice(&input.values[row * input.width..(row + 1) * input.width]);
        }
    }
}
