//! A GPU: the kernels of the `gpu` crate. Weights are packed on the host as the CPU's are, tensor by tensor, and brought
//! over as they are. Activations stay f32, but for what linear layers read on matrix units.

mod plan;
mod vocabulary;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use gpu::{
    Activations, AttentionSizes, Buffer, CacheNumber, Delta, Device, DeviceInfo, GatedLayer, GpuError,
    LinearLayer, Matrix, PassRows, ProductExtent, RotaryTables, RotationConfig, RowRange, ScaleLayout,
    WeightLayout,
};
use kernels::{AttentionShape, CacheType, DenseFormat, PackedMatrix, Pool, WeightFormat};
use speculate::{Layout, Logits, RowPlan};

use super::{Backend, Buffers, Linear, MatrixSource, Norm, Pass, Projection, RopeTables, VocabularyHead};
use crate::ModelError;
use crate::architecture::{Architecture, RopeLayout};
use plan::DevicePlan;
use vocabulary::WantedRows;

/// The backend: a device, and the threads that pack weights for it.
pub(crate) struct Gpu {
    device: Device,
    pool: Pool,
    /// Whether the device has matrix units, and all weights so far are for these.
    packs: AtomicBool,
}

impl Gpu {
    /// # Errors
    /// When the device cannot be opened.
    pub(crate) fn new(info: &DeviceInfo, n_threads: usize) -> Result<Self, ModelError> {
        let device = Device::open(info)?;
        let packs = AtomicBool::new(device.packs_rows());
        Ok(Self { device, pool: Pool::for_this_machine(n_threads), packs })
    }

    /// Whether linear layers read packed rows. It does not change once a model is loaded.
    fn packs(&self) -> bool {
        self.packs.load(Ordering::Relaxed)
    }

    /// Makes room for rows that linear layers read, which are divided by the root of the mean of their squares if
    /// there is an epsilon.
    fn reserve_input(
        &self,
        input: &mut LinearInput,
        n_rows: usize,
        width: usize,
        epsilon: Option<f32>,
    ) -> Result<(), ModelError> {
        input.epsilon = epsilon;
        let n = if self.packs() { self.device.packed_words(n_rows, width) } else { n_rows * width };
        self.reserve(&mut input.rows, n)
    }

    fn activations<'a>(&self, input: &'a LinearInput) -> Activations<'a> {
        let LinearInput { rows, epsilon } = input;
        match self.packs() {
            true => Activations::Packed { rows, epsilon: *epsilon },
            false => Activations::Plain(rows),
        }
    }

    /// Makes room for `n` numbers.
    fn reserve(&self, buffer: &mut Buffer, n: usize) -> Result<(), ModelError> {
        if buffer.len() < n {
            *buffer = self.device.empty(n.next_power_of_two())?;
        }
        Ok(())
    }

    fn upload(&self, packed: &PackedMatrix) -> Result<Matrix, ModelError> {
        let layout = weight_layout(packed.format());
        Ok(self.device.matrix(layout, packed.n_out(), packed.n_in(), packed.bytes())?)
    }

    /// [`Backend::normalise`]; where rows are packed, the norm is what products do at their end. With a selection, these
    /// rows are taken.
    fn normalise_rows(
        &self,
        residual: Option<&Buffer>,
        hidden: &Buffer,
        norm: Norm<'_, Self>,
        selection: Option<(&Buffer, usize)>,
        n_rows: usize,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        let Norm { weight, epsilon } = norm;
        self.reserve_input(out, n_rows, weight.len(), Some(epsilon))?;
        let out = &out.rows;
        match self.packs() {
            true => {
                self.device.pack(residual, hidden, Some(weight), selection, n_rows, weight.len(), out);
            }
            false => self.device.normalise(residual, hidden, weight, epsilon, selection, n_rows, out),
        }
        Ok(())
    }

    /// Applies the first factors of deltas to the adaptive rows of the pass.
    fn deltas<'a, const N: usize>(
        &self,
        pass: Pass<'a, Self>,
        layers: [Option<&'a LowRank>; N],
        input: &LinearInput,
    ) -> [Option<Delta<'a>>; N] {
        let first_row = pass.plan.n_token_rows();
        let adaptive = RowRange { first: first_row, n: pass.plan.rows().len() - first_row };
        let rooms = &pass.on_device.inner;
        let first_factors = layers.iter().zip(rooms).filter_map(|(delta, inner)| {
            Some(LinearLayer { matrix: &delta.as_ref()?.a, bias: None, delta: None, out: inner })
        });
        let first_factors: Vec<LinearLayer<'_>> = first_factors.collect();
        self.device.products(&first_factors, self.activations(input), adaptive);
        let mut rooms = rooms.iter();
        layers.map(|delta| {
            let (LowRank { a, b }, inner) = (delta?, rooms.next()?);
            Some(Delta { b, inner, rank: a.n_out(), first_row })
        })
    }
}

fn weight_layout(format: WeightFormat) -> WeightLayout {
    match format {
        WeightFormat::Dense(DenseFormat::F32) => WeightLayout::F32,
        WeightFormat::Dense(DenseFormat::F16) => WeightLayout::F16,
        WeightFormat::Dense(DenseFormat::BF16) => WeightLayout::BF16,
        WeightFormat::Quantized(format) => WeightLayout::Quantized {
            bits: format.bits() as u32,
            centre: format.centre() as u32,
            scales: match format.scale_layout() {
                kernels::ScaleLayout::Block => ScaleLayout::Block,
                kernels::ScaleLayout::BlockMin => ScaleLayout::BlockMin,
                kernels::ScaleLayout::Super => ScaleLayout::Super,
                kernels::ScaleLayout::SuperHalf => ScaleLayout::SuperHalf,
                kernels::ScaleLayout::SuperHalfMin => ScaleLayout::SuperHalfMin,
            },
        },
    }
}

/// `A` and `B`, outputs by inputs.
pub(crate) struct LowRank {
    /// `[rank, n_in]`
    a: Matrix,
    /// `[n_out, rank]`
    b: Buffer,
}

/// Activations that linear layers read.
pub(crate) struct LinearInput {
    /// As they are, or packed.
    rows: Buffer,
    /// Where they are packed, that of the norm that is still to be applied.
    epsilon: Option<f32>,
}

fn transposed(values: &[f32], n_rows: usize) -> Vec<f32> {
    let n_columns = values.len() / n_rows;
    (0..n_columns).flat_map(|column| (0..n_rows).map(move |row| values[row * n_columns + column])).collect()
}

impl Backend for Gpu {
    type Matrix = Matrix;
    type LowRank = LowRank;
    type Vector = Buffer;
    type Rope = RotaryTables;
    type Plan = DevicePlan;
    type Rows = Buffer;
    type Input = LinearInput;
    type Cache = gpu::KvCache;
    type Scratch = WantedRows;

    fn describe(&self) -> String {
        let info = self.device.info();
        format!("{} ({})", info.name, info.id())
    }

    fn fingerprint(&self) -> String {
        let info = self.device.info();
        format!("GPU {} {}", info.id(), info.name)
    }

    fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    fn roofline(&self) -> Result<(f64, f64), ModelError> {
        Ok((self.device.read_bandwidth()?, self.device.product_throughput()?))
    }

    fn matrix(&self, source: MatrixSource<'_>) -> Result<Matrix, ModelError> {
        let matrix = self.upload(&super::cpu::pack(source, &self.pool)?)?;
        self.packs.fetch_and(matrix.takes_packed_rows(), Ordering::Relaxed);
        Ok(matrix)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.n_bytes()
    }

    fn low_rank(&self, a: Vec<f32>, b: Vec<f32>, rank: usize) -> Result<LowRank, ModelError> {
        let n_in = a.len() / rank;
        let a = PackedMatrix::quantize(rank, n_in, &transposed(&a, n_in), &self.pool);
        let a = self.upload(&a.map_err(|error| ModelError::of_kernel("the adapter", error))?)?;
        Ok(LowRank { a, b: self.device.upload_f32(&transposed(&b, rank))? })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Buffer, ModelError> {
        Ok(self.device.upload_f32(&values)?)
    }

    fn rope(&self, tables: RopeTables) -> Result<RotaryTables, ModelError> {
        let RopeTables { layout, head_dim, rope_dim, cos, sin } = tables;
        let halves = layout == RopeLayout::Half;
        let config = RotationConfig { head_dim: head_dim as u32, rope_dim: rope_dim as u32, halves };
        let (cos, sin) = (self.device.upload_f32(&cos)?, self.device.upload_f32(&sin)?);
        Ok(RotaryTables { config, cos, sin })
    }

    fn cache(
        &self,
        n_layers: usize,
        capacity: usize,
        shape: AttentionShape,
        cache_type: CacheType,
    ) -> Result<gpu::KvCache, ModelError> {
        let number = match cache_type {
            CacheType::F32 => CacheNumber::F32,
            CacheType::F16 => CacheNumber::F16,
        };
        Ok(self.device.cache(n_layers, capacity, shape.n_kv_heads * shape.head_dim, number)?)
    }

    fn buffers(&self, architecture: &Architecture) -> Result<Buffers<Self>, ModelError> {
        // They grow to what a pass needs.
        let none = || self.device.empty(0);
        let input = || none().map(|rows| LinearInput { rows, epsilon: None });
        Ok(Buffers {
            plan: DevicePlan::new(&self.device, architecture)?,
            hidden: none()?,
            normed: input()?,
            queries: none()?,
            keys: none()?,
            values: none()?,
            attended: input()?,
            activated: input()?,
            projected: none()?,
            vocabulary: WantedRows::new(&self.device, architecture)?,
        })
    }

    fn set_aside(&self, cache: &mut gpu::KvCache, slots: Range<usize>) -> Result<(), ModelError> {
        Ok(self.device.set_aside(cache, slots)?)
    }

    fn turn(&self, cache: &mut gpu::KvCache, rope: &RotaryTables, first: usize) -> Result<(), ModelError> {
        self.device.turn(cache, rope, first);
        Ok(())
    }

    fn copy_prefix(&self, from: &gpu::KvCache, n: usize, to: &mut gpu::KvCache) -> Result<(), ModelError> {
        self.device.copy_prefix(from, n, to);
        Ok(())
    }

    fn compact(&self, cache: &mut gpu::KvCache, n_base: usize, kept: &[usize]) -> Result<(), ModelError> {
        Ok(self.device.compact(cache, n_base, kept)?)
    }

    fn set_plan(
        &self,
        on_device: &mut DevicePlan,
        plan: &RowPlan,
        layout: &Layout,
    ) -> Result<(), ModelError> {
        on_device.set(self, plan, layout)
    }

    fn embed(
        &self,
        pass: Pass<'_, Self>,
        table: &Matrix,
        slots: Option<&Buffer>,
        out: &mut Buffer,
    ) -> Result<(), ModelError> {
        let n_rows = pass.plan.rows().len();
        self.reserve(out, n_rows * table.n_in())?;
        self.device.embed(table, slots, &pass.on_device.buffer, n_rows, out);
        Ok(())
    }

    fn weighted_embedding(
        &self,
        table: &Matrix,
        rows: &[&[(u32, f32)]],
        n_copies: usize,
    ) -> Result<Buffer, ModelError> {
        let tokens = rows.iter().flat_map(|tokens| tokens.iter());
        let words: Vec<u32> = tokens.flat_map(|&(token, _)| [token, 0, 0, 0, 0, 0]).collect();
        let n_tokens = rows.iter().map(|tokens| tokens.len()).sum();
        let hidden = table.n_in();
        let embedded = self.device.empty(n_tokens * hidden)?;
        self.device.embed(table, None, &self.device.upload_u32(&words)?, n_tokens, &embedded);
        let embedded = self.device.read_f32(&embedded)?;
        let mut embedded = embedded.chunks_exact(hidden);
        let mut sums = vec![0.0f32; rows.len() * hidden];
        for (tokens, sum) in rows.iter().zip(sums.chunks_exact_mut(hidden)) {
            for ((_, weight), row) in tokens.iter().zip(embedded.by_ref()) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        Ok(self.device.upload_f32(&sums.repeat(n_copies))?)
    }

    fn scale(&self, rows: &mut Buffer, factor: f32) -> Result<(), ModelError> {
        self.device.scale(rows, factor, rows.len());
        Ok(())
    }

    fn normalise(
        &self,
        pass: Pass<'_, Self>,
        residual: Option<&Buffer>,
        hidden: &mut Buffer,
        norm: Norm<'_, Self>,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        self.normalise_rows(residual, hidden, norm, None, pass.plan.rows().len(), out)
    }

    fn normalise_wanted(
        &self,
        pass: Pass<'_, Self>,
        residual: &Buffer,
        hidden: &Buffer,
        norm: Norm<'_, Self>,
        scratch: &mut WantedRows,
    ) -> Result<(), ModelError> {
        let n_rows = pass.plan.logit_rows().len();
        let selection = Some((&pass.on_device.buffer, pass.on_device.wanted_at));
        self.normalise_rows(Some(residual), hidden, norm, selection, n_rows, &mut scratch.normed)
    }

    fn normalise_heads(
        &self,
        pass: Pass<'_, Self>,
        n_heads: usize,
        rows: &mut Buffer,
        norm: Norm<'_, Self>,
    ) -> Result<(), ModelError> {
        let n_heads = n_heads * pass.plan.rows().len();
        self.device.normalise_heads(rows, n_heads, norm.weight, norm.epsilon);
        Ok(())
    }

    fn project<const N: usize>(
        &self,
        pass: Pass<'_, Self>,
        layers: [Projection<'_, Self>; N],
        input: &mut LinearInput,
        mut outs: [&mut Buffer; N],
    ) -> Result<(), ModelError> {
        let n_rows = pass.plan.rows().len();
        for (layer, out) in layers.iter().zip(&mut outs) {
            self.reserve(out, n_rows * layer.linear.matrix.n_out())?;
        }
        let deltas = self.deltas(pass, layers.map(|layer| layer.delta), input);
        let linear_layers: Vec<LinearLayer<'_>> = (layers.iter().zip(deltas).zip(&outs))
            .map(|((layer, delta), out)| {
                let Linear { matrix, bias } = layer.linear;
                LinearLayer { matrix, bias: bias.as_ref(), delta, out }
            })
            .collect();
        let all = RowRange { first: 0, n: n_rows };
        self.device.products(&linear_layers, self.activations(input), all);
        Ok(())
    }

    fn project_residual(
        &self,
        pass: Pass<'_, Self>,
        layer: Projection<'_, Self>,
        input: &mut LinearInput,
        projected: &mut Buffer,
        hidden: &mut Buffer,
        norm: Norm<'_, Self>,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        let Linear { matrix, bias } = layer.linear;
        let n_rows = pass.plan.rows().len();
        self.reserve_input(out, n_rows, matrix.n_out(), Some(norm.epsilon))?;
        let [delta] = self.deltas(pass, [layer.delta], input);
        let x = self.activations(input);
        let linear = LinearLayer { matrix, bias: bias.as_ref(), delta, out: hidden };
        if self.device.residual_product(linear, x, n_rows, norm.weight, &out.rows) {
            return Ok(());
        }
        self.reserve(projected, n_rows * matrix.n_out())?;
        let linear = LinearLayer { out: projected, ..linear };
        self.device.product(linear, x, RowRange { first: 0, n: n_rows }, ProductExtent::default());
        self.normalise(pass, Some(projected), hidden, norm, out)
    }

    fn project_swiglu(
        &self,
        pass: Pass<'_, Self>,
        gate: Projection<'_, Self>,
        up: Projection<'_, Self>,
        input: &mut LinearInput,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        let (n_rows, width) = (pass.plan.rows().len(), gate.linear.matrix.n_out());
        self.reserve_input(out, n_rows, width, None)?;
        let deltas = self.deltas(pass, [gate.delta, up.delta], input);
        let x = self.activations(input);
        if gate.linear.bias.is_none() && up.linear.bias.is_none() {
            let gated = [
                GatedLayer { matrix: &gate.linear.matrix, delta: deltas[0] },
                GatedLayer { matrix: &up.linear.matrix, delta: deltas[1] },
            ];
            if self.device.swiglu_products(gated, x, n_rows, &out.rows) {
                return Ok(());
            }
        }
        let of_gate = if self.packs() { &pass.on_device.gate } else { &out.rows };
        let of_up = &pass.on_device.up;
        for ((layer, delta), out) in [gate, up].into_iter().zip(deltas).zip([of_gate, of_up]) {
            let Linear { matrix, bias } = layer.linear;
            let linear = LinearLayer { matrix, bias: bias.as_ref(), delta, out };
            self.device.product(linear, x, RowRange { first: 0, n: n_rows }, ProductExtent::default());
        }
        self.device.swiglu(of_gate, of_up, n_rows * width);
        if self.packs() {
            self.device.pack(None, of_gate, None, None, n_rows, width, &out.rows);
        }
        Ok(())
    }

    fn rotate_and_store(
        &self,
        pass: Pass<'_, Self>,
        rope: &RotaryTables,
        queries: &mut Buffer,
        keys: &mut Buffer,
        values: &Buffer,
        cache: &mut gpu::KvCache,
        layer: usize,
    ) -> Result<(), ModelError> {
        let DevicePlan { widths, rotated, .. } = pass.on_device;
        let sources = [&*queries, &*keys, values];
        let rows = rows_of(pass);
        self.device.rotate_and_store(
            rows,
            sources,
            widths.attention.width(),
            rope,
            rotated,
            cache,
            layer,
            pass.is_aside,
        );
        Ok(())
    }

    fn attend(
        &self,
        pass: Pass<'_, Self>,
        cache: &gpu::KvCache,
        layer: usize,
        shape: AttentionShape,
        _: &Buffer,
        out: &mut LinearInput,
    ) -> Result<(), ModelError> {
        let sizes = attention_sizes(shape);
        self.reserve_input(out, pass.plan.rows().len(), sizes.width(), None)?;
        let DevicePlan { rotated, chunks, attended, .. } = pass.on_device;
        let (plain, packed) = if self.packs() { (attended, Some(&out.rows)) } else { (&out.rows, None) };
        self.device.attend(rows_of(pass), sizes, rotated, cache, layer, chunks, plain, packed);
        Ok(())
    }

    fn project_vocabulary(
        &self,
        pass: Pass<'_, Self>,
        head: VocabularyHead<'_, Self>,
        scratch: &mut WantedRows,
        logits: &mut Logits,
    ) -> Result<(), ModelError> {
        scratch.project(self, pass.plan, head, logits)
    }
}

fn attention_sizes(shape: AttentionShape) -> AttentionSizes {
    let AttentionShape { n_heads, n_kv_heads, head_dim, scale } = shape;
    AttentionSizes { n_heads, n_kv_heads, head_dim, scale }
}

fn rows_of<'a>(pass: Pass<'a, Gpu>) -> PassRows<'a> {
    let (n_rows, n_committed) = (pass.plan.rows().len(), pass.plan.n_committed());
    PassRows { plan: &pass.on_device.buffer, n_rows, n_committed }
}

impl From<GpuError> for ModelError {
    fn from(error: GpuError) -> Self {
        Self::Gpu(error)
    }
}
