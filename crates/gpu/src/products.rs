//! Linear layers: matrices on a device, and products with rows of activations.

use cubecl::prelude::*;

use crate::GpuError;
use crate::device::{Buffer, Device, on_client};
use crate::linear::{MAX_ROWS, N_SPLITS, ProductConfig, product};
use crate::matrix_units::{
    MAX_ROW_TILES, MatrixUnitConfig, N_LANES, N_PLANES, ProductSizesLaunch, ROW_TILE,
    product_on_matrix_units, swiglu_on_matrix_units, three_products_on_matrix_units,
};
use crate::packed::{TILE, WeightLayout};

/// A matrix of so many outputs keeps a device busy with cubes of 64 outputs; others are cut smaller.
const WIDE_OUTPUTS: usize = 8192;

/// Weights `[n_out, n_in]` on a device, in as many parts as its buffers need.
#[derive(Debug)]
pub struct Matrix {
    pub(crate) layout: WeightLayout,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    pub(crate) tile_words: usize,
    pub(crate) parts: Vec<Buffer>,
    pub(crate) tiles_per_part: usize,
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
    /// Its parts that have some of the first `n_outputs`: the first of a part, how many, and the part.
    fn parts_of(&self, n_outputs: usize) -> impl Iterator<Item = (usize, usize, &Buffer)> {
        let of_part = self.tiles_per_part * TILE as usize;
        let starts = (0..n_outputs).step_by(of_part);
        starts.zip(&self.parts).map(move |(first, part)| (first, of_part.min(n_outputs - first), part))
    }

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
        for (first_output, n_out, words) in matrix.parts_of(n_outputs) {
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
        for (first_output, n_out, words) in matrix.parts_of(n_outputs) {
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
}
