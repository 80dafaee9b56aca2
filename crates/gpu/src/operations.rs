//! What a device can be asked for: kernels with checked sizes.

use cubecl::prelude::*;

use crate::GpuError;
use crate::device::{Buffer, Device, on_client};
use crate::linear::{MAX_ROWS, N_SPLITS, ProductConfig, product};
use crate::matrix_units::{
    MAX_ROW_TILES, MatrixUnitConfig, N_LANES, N_PLANES, ProductSizesLaunch, ROW_TILE,
    product_on_matrix_units, swiglu_on_matrix_units, three_products_on_matrix_units,
};
use crate::packed::{ScaleLayout, TILE, WeightLayout};
use crate::plan::ROW_WORDS;
use crate::rank::{N_RANKED, RANK_CHUNK, RANK_UNITS, rank};
use crate::rows::{
    NormConfig, READ_UNITS, ROW_UNITS, embed, normalise, normalise_heads, read_through, scale, swiglu,
};

/// A matrix of so many outputs keeps a device busy with cubes of 64 outputs; others are cut smaller.
const WIDE_OUTPUTS: usize = 8192;

/// Weights `[n_out, n_in]` on a device, in as many parts as its buffers need.
#[derive(Debug)]
pub struct Matrix {
    layout: WeightLayout,
    n_out: usize,
    n_in: usize,
    tile_words: usize,
    parts: Vec<Buffer>,
    tiles_per_part: usize,
}

impl Matrix {
    /// Number of outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Bytes on the device.
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len() * 4).sum()
    }
}

impl Matrix {
    /// Whether matrix units take it as it is.
    fn is_for_units(&self) -> bool {
        matches!(self.layout, WeightLayout::Quantized { .. }) && self.parts.len() == 1
    }

    fn sizes(&self, n_rows: usize) -> MatrixUnitSizes {
        MatrixUnitSizes {
            n_in: self.n_in,
            tile_words: self.tile_words,
            n_out: self.n_out,
            first_output: 0,
            width_out: self.n_out,
            n_rows,
            first_x: 0,
            first_out: 0,
        }
    }
}

/// [`crate::matrix_units::ProductSizes`] on the host.
#[derive(Clone, Copy)]
struct MatrixUnitSizes {
    n_in: usize,
    tile_words: usize,
    n_out: usize,
    first_output: usize,
    width_out: usize,
    n_rows: usize,
    first_x: usize,
    first_out: usize,
}

impl MatrixUnitSizes {
    fn arguments<R: Runtime>(self) -> ProductSizesLaunch<R> {
        ProductSizesLaunch::new(
            self.n_in as u32,
            self.tile_words as u32,
            self.n_out as u32,
            self.first_output as u32,
            self.width_out as u32,
            self.n_rows as u32,
            self.first_x as u32,
            self.first_out as u32,
        )
    }
}

impl MatrixUnitConfig {
    fn new(layout: WeightLayout, n_rows: usize, has_bias: bool) -> Self {
        let n_row_tiles = (n_rows as u32).div_ceil(ROW_TILE).next_power_of_two().min(MAX_ROW_TILES);
        Self { layout, n_tiles: 2, n_row_tiles, has_bias, accumulates: false }
    }

    /// Cubes beside each other for so many outputs.
    fn n_cubes(self, n_outputs: usize) -> u32 {
        (n_outputs as u32).div_ceil(TILE * self.n_tiles)
    }

    fn cubes(self, n_beside: u32, n_rows: usize) -> CubeCount {
        CubeCount::Static(n_beside, (n_rows as u32).div_ceil(ROW_TILE * self.n_row_tiles), 1)
    }
}

/// A linear layer, and where its outputs go, `[_, n_out]`.
#[derive(Clone, Copy, Debug)]
pub struct LinearLayer<'a> {
    /// Its weights.
    pub matrix: &'a Matrix,
    /// What is added to each output.
    pub bias: Option<&'a Buffer>,
    /// For the outputs of each row.
    pub out: &'a Buffer,
}

impl LinearLayer<'_> {
    fn check(&self, x: &Buffer, n_rows: usize) {
        let Self { matrix, bias, out } = self;
        assert!(n_rows * matrix.n_in <= x.len(), "rows of the input");
        assert!(n_rows * matrix.n_out <= out.len(), "rows of the output");
        assert!(bias.is_none_or(|bias| bias.len() == matrix.n_out), "a bias for each output");
    }
}

/// Which rows of a buffer.
#[derive(Clone, Copy, Debug)]
pub struct RowRange {
    /// The first of them.
    pub first: usize,
    /// How many.
    pub n: usize,
}

/// How much of a product is computed, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct ProductExtent {
    /// Outputs from the first on.
    pub n_outputs: usize,
    /// The row of the output buffer that the first of the rows goes to.
    pub first_row: usize,
    /// Whether they are added to what is there.
    pub accumulates: bool,
}

impl Default for ProductExtent {
    fn default() -> Self {
        Self { n_outputs: usize::MAX, first_row: 0, accumulates: false }
    }
}

impl Device {
    /// Brings packed weights to the device: tiles of 16 outputs, as [`WeightLayout`] says.
    ///
    /// # Errors
    /// [`GpuError`].
    ///
    /// # Panics
    /// When `bytes` are not those of the tiles.
    pub fn matrix(
        &self,
        layout: WeightLayout,
        n_out: usize,
        n_in: usize,
        bytes: &[u8],
    ) -> Result<Matrix, GpuError> {
        let tile_words = layout.tile_words(n_in);
        let n_tiles = n_out.div_ceil(TILE as usize);
        assert_eq!(bytes.len(), n_tiles * tile_words * 4, "the tiles of the matrix");
        let tiles_per_part = (self.max_buffer_bytes() / (tile_words * 4)).min(n_tiles).max(1);
        let parts = bytes.chunks(tiles_per_part * tile_words * 4).map(|part| self.upload(part));
        let parts = parts.collect::<Result<_, _>>()?;
        Ok(Matrix { layout, n_out, n_in, tile_words, parts, tiles_per_part })
    }

    /// `out = W x + bias` for the rows of `x` that `rows` names, `[_, n_in]` each; `out` is `[_, n_out]`. `extent` says which
    /// outputs, where they go, and whether they are added to what is there.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn product(
        &self,
        matrix: &Matrix,
        bias: Option<&Buffer>,
        x: &Buffer,
        rows: RowRange,
        out: &Buffer,
        extent: ProductExtent,
    ) {
        let Matrix { layout, n_in, tile_words, .. } = *matrix;
        let n_outputs = extent.n_outputs.min(matrix.n_out);
        assert!((rows.first + rows.n) * n_in <= x.len(), "rows of the input");
        assert!((extent.first_row + rows.n) * matrix.n_out <= out.len(), "rows of the output");
        assert!(bias.is_none_or(|bias| bias.len() == matrix.n_out), "a bias for each output");
        if rows.n == 0 {
            return;
        }
        if self.has_matrix_units() && matches!(layout, WeightLayout::Quantized { .. }) {
            return self.product_on_matrix_units(matrix, bias, x, rows, out, extent);
        }
        let n_rows = (rows.n as u32).next_power_of_two().min(MAX_ROWS);
        let config =
            ProductConfig { layout, n_rows, has_bias: bias.is_some(), accumulates: extent.accumulates };
        for (part, words) in matrix.parts.iter().enumerate() {
            let first_output = part * matrix.tiles_per_part * TILE as usize;
            if first_output >= n_outputs {
                break;
            }
            let n_out = (n_outputs - first_output).min(matrix.tiles_per_part * TILE as usize);
            let cubes =
                CubeCount::Static(n_out.div_ceil(TILE as usize) as u32, (rows.n as u32).div_ceil(n_rows), 1);
            let bias = bias.unwrap_or(words);
            // SAFETY: the sizes were checked above, and the matrix has as many words as its tiles.
            unsafe {
                on_client!(self, client, R => product::launch_unchecked::<R>(
                    client,
                    cubes,
                    CubeDim::new_2d(TILE, N_SPLITS),
                    words.array(),
                    x.array(),
                    bias.array(),
                    out.array(),
                    n_in as u32,
                    tile_words as u32,
                    n_out as u32,
                    first_output as u32,
                    matrix.n_out as u32,
                    rows.n as u32,
                    rows.first as u32,
                    extent.first_row as u32,
                    config,
                ));
            }
        }
    }

    fn product_on_matrix_units(
        &self,
        matrix: &Matrix,
        bias: Option<&Buffer>,
        x: &Buffer,
        rows: RowRange,
        out: &Buffer,
        extent: ProductExtent,
    ) {
        let n_outputs = extent.n_outputs.min(matrix.n_out);
        let mut config = MatrixUnitConfig::new(matrix.layout, rows.n, bias.is_some());
        config.accumulates = extent.accumulates;
        if n_outputs >= WIDE_OUTPUTS && config.n_row_tiles < MAX_ROW_TILES {
            config.n_tiles *= 2;
        }
        for (part, words) in matrix.parts.iter().enumerate() {
            let first_output = part * matrix.tiles_per_part * TILE as usize;
            if first_output >= n_outputs {
                break;
            }
            let n_out = (n_outputs - first_output).min(matrix.tiles_per_part * TILE as usize);
            let sizes = MatrixUnitSizes {
                n_out,
                first_output,
                first_x: rows.first,
                first_out: extent.first_row,
                ..matrix.sizes(rows.n)
            };
            let bias = bias.unwrap_or(words);
            // SAFETY: `product` checked the sizes, and the matrix has as many words as its tiles. Rows are whole
            // blocks, so fours of activations too.
            unsafe {
                on_client!(self, client, R => product_on_matrix_units::launch_unchecked::<R>(
                    client,
                    config.cubes(config.n_cubes(n_out), rows.n),
                    CubeDim::new_2d(N_LANES, N_PLANES),
                    words.array(),
                    x.array_of_fours(),
                    bias.array(),
                    out.array(),
                    sizes.arguments(),
                    config,
                ));
            }
        }
    }

    /// Products of the same `n_rows` rows of `x` from the first on: in one launch where the device can.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn products(&self, layers: &[LinearLayer<'_>], x: &Buffer, n_rows: usize) {
        let are_one_launch =
            self.has_matrix_units() && n_rows > 0 && layers.iter().all(|layer| layer.matrix.is_for_units());
        let &[a, b, c] = layers else {
            return self.product_each(layers, x, n_rows);
        };
        if !are_one_launch {
            return self.product_each(layers, x, n_rows);
        }
        let layers = [a, b, c];
        for layer in layers {
            layer.check(x, n_rows);
        }
        let configs = layers.map(|LinearLayer { matrix, bias, .. }| {
            MatrixUnitConfig::new(matrix.layout, n_rows, bias.is_some())
        });
        let [words_0, words_1, words_2] = layers.map(|layer| &layer.matrix.parts[0]);
        let [bias_0, bias_1, bias_2] = layers.map(|layer| layer.bias.unwrap_or(&layer.matrix.parts[0]));
        let [sizes_0, sizes_1, sizes_2] = layers.map(|layer| layer.matrix.sizes(n_rows));
        let n_cubes = layers.iter().map(|layer| configs[0].n_cubes(layer.matrix.n_out)).sum();
        // SAFETY: the sizes were checked above; for the rest see `product_on_matrix_units`.
        unsafe {
            on_client!(self, client, R => three_products_on_matrix_units::launch_unchecked::<R>(
                client,
                configs[0].cubes(n_cubes, n_rows),
                CubeDim::new_2d(N_LANES, N_PLANES),
                words_0.array(),
                words_1.array(),
                words_2.array(),
                x.array_of_fours(),
                bias_0.array(),
                bias_1.array(),
                bias_2.array(),
                a.out.array(),
                b.out.array(),
                c.out.array(),
                sizes_0.arguments(),
                sizes_1.arguments(),
                sizes_2.arguments(),
                configs[0],
                configs[1],
                configs[2],
            ));
        }
    }

    fn product_each(&self, layers: &[LinearLayer<'_>], x: &Buffer, n_rows: usize) {
        for LinearLayer { matrix, bias, out } in layers {
            let rows = RowRange { first: 0, n: n_rows };
            self.product(matrix, *bias, x, rows, out, ProductExtent::default());
        }
    }

    /// `out = silu(gate x) * (up x)` for `n_rows` rows in one launch, where the device can: says whether it did.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn swiglu_products(&self, [gate, up]: [&Matrix; 2], x: &Buffer, n_rows: usize, out: &Buffer) -> bool {
        if !self.has_matrix_units() || n_rows == 0 || !gate.is_for_units() || !up.is_for_units() {
            return false;
        }
        assert!(gate.n_out == up.n_out && gate.n_in == up.n_in, "matrices of one shape");
        LinearLayer { matrix: gate, bias: None, out }.check(x, n_rows);
        let [gate_config, up_config] =
            [gate, up].map(|matrix| MatrixUnitConfig::new(matrix.layout, n_rows, false));
        // SAFETY: the sizes were checked above; for the rest see `product_on_matrix_units`.
        unsafe {
            on_client!(self, client, R => swiglu_on_matrix_units::launch_unchecked::<R>(
                client,
                gate_config.cubes(gate_config.n_cubes(gate.n_out), n_rows),
                CubeDim::new_2d(N_LANES, N_PLANES),
                gate.parts[0].array(),
                up.parts[0].array(),
                x.array_of_fours(),
                out.array(),
                gate.sizes(n_rows).arguments(),
                up.sizes(n_rows).arguments(),
                gate_config,
                up_config,
            ));
        }
        true
    }

    /// Embeddings of the `n_rows` rows of a pass, `[n_rows, n_in]` of `table`; those of adaptive tokens come from
    /// `slots`. `plan` is as [`crate::ROW_WORDS`] says.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn embed(&self, table: &Matrix, slots: Option<&Buffer>, plan: &Buffer, n_rows: usize, out: &Buffer) {
        let Matrix { layout, n_in, tile_words, .. } = *table;
        assert!(plan.len() >= n_rows * ROW_WORDS as usize && out.len() >= n_rows * n_in, "rows of the pass");
        for (part, words) in table.parts.iter().enumerate() {
            let first = part * table.tiles_per_part * TILE as usize;
            let n_tokens = (table.n_out - first).min(table.tiles_per_part * TILE as usize);
            // SAFETY: the sizes were checked above; the caller's plan names tokens of the table and slots.
            unsafe {
                on_client!(self, client, R => embed::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(n_rows as u32, 1, 1),
                    CubeDim::new_1d(ROW_UNITS),
                    words.array(),
                    slots.unwrap_or(out).array(),
                    plan.array(),
                    out.array(),
                    n_in as u32,
                    tile_words as u32,
                    first as u32,
                    n_tokens as u32,
                    layout,
                ));
            }
        }
    }

    /// `hidden += residual`, then `out = rms_norm(hidden) * weight` for `n_rows` rows. With a selection, a buffer and
    /// where in it the rows begin, these rows are taken instead, and `hidden` stays.
    ///
    /// # Panics
    /// When a buffer is too small.
    #[allow(clippy::too_many_arguments)]
    pub fn normalise(
        &self,
        residual: Option<&Buffer>,
        hidden: &Buffer,
        weight: &Buffer,
        epsilon: f32,
        selection: Option<(&Buffer, usize)>,
        n_rows: usize,
        out: &Buffer,
    ) {
        let width = weight.len();
        assert!(out.len() >= n_rows * width, "rows of the output");
        assert!(selection.is_some() || hidden.len() >= n_rows * width, "hidden rows");
        assert!(selection.is_none_or(|(rows, first)| rows.len() >= first + n_rows), "the selection");
        assert!(
            residual.is_none_or(|residual| selection.is_some() || residual.len() >= n_rows * width),
            "a residual for each row"
        );
        let config = NormConfig { has_residual: residual.is_some(), selects: selection.is_some() };
        let (rows, first) = selection.unwrap_or((hidden, 0));
        // SAFETY: the sizes were checked above; the caller's selection names rows of `hidden`.
        unsafe {
            on_client!(self, client, R => normalise::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_rows as u32, 1, 1),
                CubeDim::new_1d(ROW_UNITS),
                residual.unwrap_or(hidden).array(),
                hidden.array(),
                weight.array(),
                rows.array(),
                out.array(),
                width as u32,
                epsilon,
                first as u32,
                config,
            ));
        }
    }

    /// The norm of each of `n_heads` heads for itself, in place; the weight has the width of a head.
    ///
    /// # Panics
    /// When the buffer is too small.
    pub fn normalise_heads(&self, rows: &Buffer, n_heads: usize, weight: &Buffer, epsilon: f32) {
        assert!(rows.len() >= n_heads * weight.len(), "heads of the rows");
        // SAFETY: the size was checked above.
        unsafe {
            on_client!(self, client, R => normalise_heads::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_heads as u32, 1, 1),
                CubeDim::new_1d(ROW_UNITS),
                rows.array(),
                weight.array(),
                weight.len() as u32,
                epsilon,
            ));
        }
    }

    /// `gate = silu(gate) * up` of the first `n` numbers.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn swiglu(&self, gate: &Buffer, up: &Buffer, n: usize) {
        assert!(gate.len() >= n && up.len() >= n, "numbers of both");
        // SAFETY: the sizes were checked above.
        unsafe {
            on_client!(self, client, R => swiglu::launch_unchecked::<R>(
                client,
                cubes_for(n),
                CubeDim::new_1d(ROW_UNITS),
                gate.array(),
                up.array(),
                n as u32,
            ));
        }
    }

    /// Multiplies the first `n` numbers.
    ///
    /// # Panics
    /// When the buffer is too small.
    pub fn scale(&self, rows: &Buffer, factor: f32, n: usize) {
        assert!(rows.len() >= n, "numbers");
        // SAFETY: the size was checked above.
        unsafe {
            on_client!(self, client, R => scale::launch_unchecked::<R>(
                client,
                cubes_for(n),
                CubeDim::new_1d(ROW_UNITS),
                rows.array(),
                factor,
                n as u32,
            ));
        }
    }

    /// The likeliest tokens of rows of `logits`, `[_, width]`, among the first `n`: their logits and their numbers into
    /// those of `ranking` from row `rows.first` on.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn rank(&self, logits: &Buffer, width: usize, n: usize, rows: RowRange, ranking: &Ranking) {
        let n_chunks = n.div_ceil(RANK_CHUNK as usize);
        let n_candidates = n_chunks * N_RANKED as usize;
        let last = rows.first + rows.n;
        assert!(n <= width && logits.len() >= last * width, "rows of logits");
        assert!(n_candidates <= RANK_CHUNK as usize, "one chunk has all candidates");
        assert!(ranking.candidates.len() >= last * n_candidates, "candidates of each chunk");
        assert!(ranking.logits.len() >= last * N_RANKED as usize, "places of each row");
        if rows.n == 0 {
            return;
        }
        let launch = |entries: &Buffer,
                      entry_tokens: &Buffer,
                      [largest, tokens]: [&Buffer; 2],
                      [width, n, n_chunks]: [usize; 3],
                      has_tokens: bool| {
            // SAFETY: the sizes were checked above.
            unsafe {
                on_client!(self, client, R => rank::launch_unchecked::<R>(
                    client,
                    CubeCount::Static(n_chunks as u32, rows.n as u32, 1),
                    CubeDim::new_1d(RANK_UNITS),
                    entries.array(),
                    entry_tokens.array(),
                    largest.array(),
                    tokens.array(),
                    width as u32,
                    n as u32,
                    rows.first as u32,
                    n_chunks as u32,
                    f32::INFINITY,
                    f32::NAN,
                    has_tokens,
                ));
            }
        };
        let Ranking { candidates, candidate_tokens, logits: ranked, tokens } = ranking;
        launch(logits, candidate_tokens, [candidates, candidate_tokens], [width, n, n_chunks], false);
        launch(candidates, candidate_tokens, [ranked, tokens], [n_candidates, n_candidates, 1], true);
    }

    /// Room to rank `n_rows` rows among `n` tokens.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn ranking(&self, n_rows: usize, n: usize) -> Result<Ranking, GpuError> {
        let n_candidates = n_rows * n.div_ceil(RANK_CHUNK as usize) * N_RANKED as usize;
        let n_ranked = n_rows * N_RANKED as usize;
        Ok(Ranking {
            candidates: self.empty(n_candidates)?,
            candidate_tokens: self.empty(n_candidates)?,
            logits: self.empty(n_ranked)?,
            tokens: self.empty(n_ranked)?,
        })
    }
}

/// The likeliest tokens of rows, and what it takes to find them.
#[derive(Debug)]
pub struct Ranking {
    candidates: Buffer,
    candidate_tokens: Buffer,
    /// `[n_rows, 8]`, largest first.
    pub logits: Buffer,
    /// The tokens of these.
    pub tokens: Buffer,
}

/// Cubes of [`ROW_UNITS`] units for `n` numbers.
pub(crate) fn cubes_for(n: usize) -> CubeCount {
    let n_cubes = n.div_ceil(ROW_UNITS as usize) as u32;
    // One dimension holds 65,535 of them.
    let height = n_cubes.div_ceil(32_768);
    CubeCount::Static(n_cubes.div_ceil(height), height, 1)
}

impl Buffer {
    /// For a kernel that counts in fours.
    fn array_of_fours<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the buffer has as many whole fours.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len() / 4) }
    }

    /// For a kernel.
    pub(crate) fn array<R: Runtime>(&self) -> ArrayArg<R> {
        // SAFETY: the buffer has as many numbers as it says.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len()) }
    }
}

/// How a device's speeds are measured: on how much, and how often before it is waited for.
#[derive(Clone, Copy)]
struct MeasuredWork {
    /// More than caches hold.
    read_bytes: usize,
    n_launches: usize,
}

impl Device {
    fn measured_work(&self) -> MeasuredWork {
        match self.info().is_software {
            true => MeasuredWork { read_bytes: 96 << 20, n_launches: 1 },
            false => MeasuredWork { read_bytes: 1 << 30, n_launches: 8 },
        }
    }

    /// Bytes per second of a kernel that reads memory that is in no cache, and does nothing else.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn read_bandwidth(&self) -> Result<f64, GpuError> {
        let MeasuredWork { read_bytes, n_launches } = self.measured_work();
        let memory = self.empty(read_bytes.min(self.max_buffer_bytes()) / 16 * 4)?;
        let out = self.empty(READ_UNITS)?;
        let seconds = self.shortest(&out, n_launches, || {
            let n = memory.len() / 4;
            // SAFETY: the buffer has as many vectors of four, and the output a number for each unit.
            unsafe {
                on_client!(self, client, R => read_through::launch_unchecked::<R>(
                    client,
                    CubeCount::Static((READ_UNITS / ROW_UNITS as usize) as u32, 1, 1),
                    CubeDim::new_1d(ROW_UNITS),
                    ArrayArg::from_raw_parts(memory.handle.clone(), n),
                    out.array(),
                    n as u32,
                ));
            }
        })?;
        Ok((4 * memory.len()) as f64 / seconds)
    }

    /// Multiply-adds per second of products with many rows on 4-bit weights that stay in caches.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn product_throughput(&self) -> Result<f64, GpuError> {
        let (n_out, n_in, n_rows) = (4096, 1024, 64);
        let layout = WeightLayout::Quantized { bits: 4, centre: 8, scales: ScaleLayout::Block };
        let n_bytes = 4 * layout.tile_words(n_in) * n_out / TILE as usize;
        let matrix = self.matrix(layout, n_out, n_in, &vec![0; n_bytes])?;
        let x = self.upload_f32(&vec![0.0; n_rows * n_in])?;
        let out = self.empty(n_rows * n_out)?;
        let seconds = self.shortest(&out, self.measured_work().n_launches, || {
            let rows = RowRange { first: 0, n: n_rows };
            self.product(&matrix, None, &x, rows, &out, ProductExtent::default());
        })?;
        Ok((n_out * n_in * n_rows) as f64 / seconds)
    }

    /// Seconds of a launch, the shortest of some, over so many of which one waits for `out`.
    fn shortest(&self, out: &Buffer, n_launches: usize, launch: impl Fn()) -> Result<f64, GpuError> {
        let mut shortest = f64::INFINITY;
        for _ in 0..5 {
            let started = std::time::Instant::now();
            for _ in 0..n_launches {
                launch();
            }
            self.read(&[(out, 1)])?;
            shortest = shortest.min(started.elapsed().as_secs_f64() / n_launches as f64);
        }
        Ok(shortest)
    }
}
