//! The CPU: plain buffers, and the kernels crate over them. Weights are packed at load.

use std::ops::Range;

use kernels::{
    AttentionShape, AttentionSlices, CacheType, DenseFormat, KvCache, LinearInput, LinearLayer, LowRank,
    PackedMatrix, Pool, QuantizedFormat, Tier, VocabularyOut, VocabularyRows, VocabularyScratch,
    WeightFormat,
};
use speculate::{Layout, Logits, RowInput, RowPlan, Wanted, rank_beside};

use super::{
    Backend, Buffers, DRAFT_VOCABULARY, MatrixSource, Norm, Pass, Projection, RopeTables, VocabularyHead,
};
use crate::ModelError;
use crate::architecture::{Architecture, RopeLayout};
use crate::gguf::TensorType;

/// The backend: its threads and instruction set.
pub(crate) struct Cpu {
    pool: Pool,
    tier: Tier,
}

impl Cpu {
    /// With as many threads as the machine has cores for this process when `n_threads` is 0.
    pub(crate) fn new(n_threads: usize) -> Self {
        Self { pool: Pool::for_this_machine(n_threads), tier: Tier::detect() }
    }

    /// Rotates the heads of a row to `position`.
    fn rotate(&self, rope: &RopeTables, position: usize, values: &mut [f32]) {
        let n_pairs = rope.rope_dim / 2;
        let table = position * n_pairs..(position + 1) * n_pairs;
        let (cos, sin) = (&rope.cos[table.clone()], &rope.sin[table]);
        kernels::rotate(self.tier, rope.layout == RopeLayout::Half, rope.head_dim, cos, sin, values);
    }

    fn rotate_rows(&self, rope: &RopeTables, plan: &RowPlan, rows: &mut HostRows) {
        for (row, values) in plan.rows().iter().zip(rows.values.chunks_exact_mut(rows.width)) {
            self.rotate(rope, row.position, values);
        }
    }
}

fn layer<'a>(projection: Projection<'a, Cpu>) -> LinearLayer<'a> {
    let Projection { linear, delta } = projection;
    LinearLayer { matrix: &linear.matrix, bias: linear.bias.as_deref(), delta }
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

    /// Takes over the rows of `from` that `selection` names.
    fn select(&mut self, from: &Self, selection: &[usize]) {
        self.resize(selection.len(), from.width);
        for (&row, values) in selection.iter().zip(self.values.chunks_exact_mut(from.width)) {
            values.copy_from_slice(&from.values[row * from.width..(row + 1) * from.width]);
        }
    }
}

/// What the rows of a pass see: all committed slots but those hidden from them, and the slots listed for each.
#[derive(Default)]
pub(crate) struct Visibility {
    visible: Vec<Vec<usize>>,
    /// By row; empty where nothing is hidden from any.
    hidden: Vec<Range<usize>>,
}

/// What the vocabulary projection works on.
#[derive(Default)]
pub(crate) struct WantedRows {
    hidden: HostRows,
    residual: HostRows,
    input: LinearInput,
    vocabulary: VocabularyScratch,
    /// Logits of the end of a text.
    ends: Vec<f32>,
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

/// Packs a tensor of a file.
pub(super) fn pack(source: MatrixSource<'_>, pool: &Pool) -> Result<PackedMatrix, ModelError> {
    let MatrixSource { tensor, tensor_type, n_out, n_in, read } = source;
    let packed = PackedMatrix::pack_from(weight_format(tensor_type), n_out, n_in, pool, read);
    packed.map_err(|error| ModelError::of_kernel(tensor, error))
}

impl Backend for Cpu {
    type Matrix = PackedMatrix;
    type LowRank = LowRank;
    type Vector = Vec<f32>;
    type Rope = RopeTables;
    type Plan = Visibility;
    type Rows = HostRows;
    type Input = LinearInput;
    type Cache = KvCache;
    type Scratch = WantedRows;

    fn describe(&self) -> String {
        match self.pool.n_threads() {
            1 => "CPU, 1 thread".to_owned(),
            n => format!("CPU, {n} threads"),
        }
    }

    fn fingerprint(&self) -> String {
        format!("CPU {}, {} threads", self.tier.name(), self.pool.n_threads())
    }

    fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    fn roofline(&self) -> Result<(f64, f64), ModelError> {
        let (pool, tier) = (&self.pool, self.tier);
        Ok((kernels::read_bandwidth(pool, tier), kernels::product_throughput(pool, tier)))
    }

    fn matrix(&self, matrix: MatrixSource<'_>) -> Result<PackedMatrix, ModelError> {
        pack(matrix, &self.pool)
    }

    fn matrix_bytes(&self, matrix: &PackedMatrix) -> usize {
        matrix.n_bytes()
    }

    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Result<LowRank, ModelError> {
        let packed = LowRank::pack(&a, &b, rank, &self.pool);
        packed.map_err(|error| ModelError::of_kernel("the adapter", error))
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, ModelError> {
        Ok(values)
    }

    fn rope(&self, tables: RopeTables) -> Result<RopeTables, ModelError> {
        Ok(tables)
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

    fn buffers(&self, _: &Architecture) -> Result<Buffers<Self>, ModelError> {
        // They grow to what a pass needs.
        Ok(Buffers {
            plan: Visibility::default(),
            hidden: HostRows::default(),
            normed: LinearInput::default(),
            queries: HostRows::default(),
            keys: HostRows::default(),
            values: HostRows::default(),
            attended: LinearInput::default(),
            activated: LinearInput::default(),
            projected: HostRows::default(),
            vocabulary: WantedRows::default(),
        })
    }

    fn set_aside(&self, cache: &mut KvCache, slots: Range<usize>) -> Result<(), ModelError> {
        cache.set_aside(slots);
        Ok(())
    }

    fn turn(&self, cache: &mut KvCache, rope: &RopeTables, first: usize) -> Result<(), ModelError> {
        cache.turn(|row, keys| self.rotate(rope, first + row, keys));
        Ok(())
    }

    fn copy_prefix(&self, from: &KvCache, n: usize, to: &mut KvCache) -> Result<(), ModelError> {
        to.copy_prefix(from, n);
        Ok(())
    }

    fn compact(&self, cache: &mut KvCache, n_base: usize, kept: &[usize]) -> Result<(), ModelError> {
        cache.compact(n_base, kept);
        Ok(())
    }

    fn set_plan(
        &self,
        on_device: &mut Visibility,
        plan: &RowPlan,
        layout: &Layout,
    ) -> Result<(), ModelError> {
        let Visibility { visible, hidden } = on_device;
        visible.resize_with(plan.rows().len(), Vec::new);
        for (row, slots) in visible.iter_mut().enumerate() {
            plan.visible_into(row, slots);
            slots.iter_mut().for_each(|slot| *slot += plan.n_committed());
        }
        hidden.clear();
        if layout.hides(plan.n_committed()) {
            hidden.extend(plan.rows().iter().map(|row| layout.hidden_from(row)));
        }
        Ok(())
    }

    fn embed(
        &self,
        pass: Pass<'_, Self>,
        table: &PackedMatrix,
        slots: Option<&Vec<f32>>,
        out: &mut HostRows,
    ) -> Result<(), ModelError> {
        let (rows, hidden) = (pass.plan.rows(), table.n_in());
        let slots = slots.map_or(&[][..], Vec::as_slice);
        out.resize(rows.len(), hidden);
        for (row, out) in rows.iter().zip(out.values.chunks_exact_mut(hidden)) {
            match row.input {
                RowInput::Adaptive(slot) => {
                    out.copy_from_slice(&slots[slot * hidden..(slot + 1) * hidden]);
                }
                RowInput::Token(token) => table.dequantize_row(token as usize, out),
            }
        }
        Ok(())
    }

    fn weighted_embedding(
        &self,
        table: &PackedMatrix,
        rows: &[&[(u32, f32)]],
        n_copies: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let hidden = table.n_in();
        let (mut row, mut sums) = (vec![0.0f32; hidden], vec![0.0f32; rows.len() * hidden]);
        for (tokens, sum) in rows.iter().zip(sums.chunks_exact_mut(hidden)) {
            for &(token, weight) in *tokens {
                table.dequantize_row(token as usize, &mut row);
                sum.iter_mut().zip(&row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        Ok(sums.repeat(n_copies))
    }

    fn scale(&self, rows: &mut HostRows, factor: f32) -> Result<(), ModelError> {
        rows.values.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }

    fn normalise(
        &self,
        pass: Pass<'_, Self>,
        residual: Option<&HostRows>,
        hidden: &mut HostRows,
        norm: Norm<'_, Self>,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        out.first_adaptive = pass.plan.n_token_rows();
        let residual = residual.map(|rows| rows.values.as_slice());
        out.normalise(&self.pool, self.tier, residual, &mut hidden.values, norm.weight, norm.epsilon);
        Ok(())
    }

    fn normalise_wanted(
        &self,
        pass: Pass<'_, Self>,
        residual: &HostRows,
        hidden: &HostRows,
        norm: Norm<'_, Self>,
        scratch: &mut WantedRows,
    ) -> Result<(), ModelError> {
        let wanted = pass.plan.logit_rows();
        scratch.hidden.select(hidden, wanted);
        scratch.residual.select(residual, wanted);
        // The projection has no delta.
        scratch.input.first_adaptive = usize::MAX;
        let (residual, hidden) = (Some(scratch.residual.values.as_slice()), &mut scratch.hidden.values);
        scratch.input.normalise(&self.pool, self.tier, residual, hidden, norm.weight, norm.epsilon);
        Ok(())
    }

    fn normalise_heads(
        &self,
        _: Pass<'_, Self>,
        _: usize,
        rows: &mut HostRows,
        norm: Norm<'_, Self>,
    ) -> Result<(), ModelError> {
        kernels::rms_norm_heads(self.tier, norm.weight, norm.epsilon, &mut rows.values);
        Ok(())
    }

    fn project<const N: usize>(
        &self,
        pass: Pass<'_, Self>,
        layers: [Projection<'_, Self>; N],
        input: &mut LinearInput,
        outs: [&mut HostRows; N],
    ) -> Result<(), ModelError> {
        let mut of_out = layers.iter();
        let outs = outs.map(|out| {
            let n_out = of_out.next().map_or(0, |layer| layer.linear.matrix.n_out());
            out.resize(pass.plan.rows().len(), n_out);
            out.values.as_mut_slice()
        });
        kernels::project(&self.pool, self.tier, layers.map(layer), input, outs);
        Ok(())
    }

    fn project_swiglu(
        &self,
        _: Pass<'_, Self>,
        gate: Projection<'_, Self>,
        up: Projection<'_, Self>,
        input: &mut LinearInput,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        kernels::project_swiglu(&self.pool, self.tier, [gate, up].map(layer), input, out);
        Ok(())
    }

    fn rotate_and_store(
        &self,
        pass: Pass<'_, Self>,
        rope: &RopeTables,
        queries: &mut HostRows,
        keys: &mut HostRows,
        values: &HostRows,
        cache: &mut KvCache,
        layer: usize,
    ) -> Result<(), ModelError> {
        let first = pass.plan.n_committed();
        self.rotate_rows(rope, pass.plan, queries);
        if pass.is_aside {
            cache.keep_unturned(layer, first, &keys.values);
        }
        self.rotate_rows(rope, pass.plan, keys);
        cache.store(layer, first, &keys.values, &values.values);
        Ok(())
    }

    fn attend(
        &self,
        pass: Pass<'_, Self>,
        cache: &KvCache,
        layer: usize,
        shape: AttentionShape,
        queries: &HostRows,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        out.first_adaptive = pass.plan.n_token_rows();
        out.values.resize(queries.values.len(), 0.0);
        let slices = AttentionSlices {
            queries: &queries.values,
            cached: cache.layer(layer),
            n_committed: pass.plan.n_committed(),
            visible: &pass.on_device.visible,
            hidden: &pass.on_device.hidden,
        };
        kernels::attend(&self.pool, self.tier, shape, &slices, &mut out.values);
        out.quantize(&self.pool, self.tier, queries.width);
        Ok(())
    }

    fn project_vocabulary(
        &self,
        pass: Pass<'_, Self>,
        head: VocabularyHead<'_, Self>,
        scratch: &mut WantedRows,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        let wanted = pass.plan.wanted();
        logits.is_full.clear();
        logits.is_full.extend(wanted.iter().map(|&wanted| wanted == Wanted::All));
        let layer = LinearLayer { matrix: head.matrix, bias: head.bias.map(Vec::as_slice), delta: None };
        // Behind the last row that must be exact, in whatever order they were asked for.
        let last_exact = wanted.iter().rposition(|&wanted| wanted != Wanted::Drafts);
        let first_draft = last_exact.map_or(0, |last| last + 1);
        let rows =
            VocabularyRows { is_full: &logits.is_full, first_draft, n_draft_outputs: DRAFT_VOCABULARY };
        let out = VocabularyOut { tops: &mut logits.ranked, full: &mut logits.full };
        let WantedRows { input, vocabulary, ends, .. } = scratch;
        kernels::project_vocabulary(&self.pool, self.tier, layer, input, rows, vocabulary, out);
        if let Some(end) = head.end.filter(|_| first_draft < wanted.len()) {
            ends.resize(wanted.len(), 0.0);
            let bias = end.linear.bias.as_deref();
            let layer = LinearLayer { matrix: &end.linear.matrix, bias, delta: None };
            kernels::project(&self.pool, self.tier, [layer], input, [ends.as_mut_slice()]);
            let drafts = logits.ranked.iter_mut().zip(ends).skip(first_draft);
            drafts.for_each(|(ranked, logit)| rank_beside(ranked, end.token, *logit));
        }
        Ok(())
    }
}
