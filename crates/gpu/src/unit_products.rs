//! Linear layers on matrix units: how they are cut, and launched.

use cubecl::prelude::*;

use crate::device::{Buffer, Device, on_client};
use crate::matrix_units::{
    MatrixUnitConfig, N_LANES, ProductSizesLaunch, ROW_TILE, product_on_matrix_units,
    residual_on_matrix_units, swiglu_on_matrix_units, three_products_on_matrix_units,
};
use crate::packed::{BLOCK, TILE};
use crate::packed_rows::{PACK_UNITS, PackConfig, pack_rows, packed_words};
use crate::products::{Activations, Delta, GatedLayer, LinearLayer, Matrix, ProductExtent, RowRange};
use crate::tiles::TileLayout;

/// A matrix of so many outputs keeps a device busy with cubes of 64 outputs; others are cut smaller.
const WIDE_OUTPUTS: usize = 8192;
/// Launches of fewer outputs have one cube for a multiprocessor, or less.
const NARROW_OUTPUTS: usize = 6144;
/// Shared memory that planes leave their sums in, at most: small cards have not much more for a cube.
const MAX_SHARED_BYTES: usize = 64 << 10;
/// Tiles of eight rows that share the loads of weights, at most.
const MAX_ROW_TILES: u32 = 4;

/// [`crate::matrix_units::ProductSizes`] on the host.
#[derive(Clone, Copy)]
struct ProductSizes {
    n_in: usize,
    tile_words: usize,
    n_out: usize,
    first_output: usize,
    width_out: usize,
    n_rows: usize,
    first_x: usize,
    first_out: usize,
    epsilon: f32,
    rank: usize,
    first_delta: usize,
}

impl ProductSizes {
    fn of(matrix: &Matrix, delta: Delta<'_>, rows: RowRange, epsilon: Option<f32>) -> Self {
        Self {
            n_in: matrix.n_in,
            tile_words: matrix.tile_words,
            n_out: matrix.n_out,
            first_output: 0,
            width_out: matrix.n_out,
            n_rows: rows.n,
            first_x: rows.first,
            first_out: 0,
            epsilon: epsilon.unwrap_or(0.0),
            rank: delta.rank,
            first_delta: delta.first_row,
        }
    }

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
            self.epsilon,
            self.rank as u32,
            self.first_delta as u32,
        )
    }
}

impl MatrixUnitConfig {
    /// # Panics
    /// When the matrix does not take packed rows.
    fn new(layer: GatedLayer<'_>, n_rows: usize, epsilon: Option<f32>, has_bias: bool) -> Self {
        let GatedLayer { matrix, delta } = layer;
        let layout = TileLayout::of(matrix.layout).expect("a matrix that takes packed rows");
        let n_row_tiles = (n_rows as u32).div_ceil(ROW_TILE).next_power_of_two().min(MAX_ROW_TILES);
        Self {
            layout,
            n_matrices: 1,
            n_tiles: 2,
            n_row_tiles,
            n_planes: 8,
            n_turns: 1,
            is_normed: epsilon.is_some(),
            has_bias,
            has_delta: delta.is_some(),
        }
    }

    /// For matrices of so many outputs: what is said of a matrix must be the same in all launches that it is part of, since
    /// the order of sums depends on the planes. Many cubes of few planes keep a device busy where there are enough outputs for
    /// them; where there are not, a cube has as many planes as it can. What is on its way at once is what registers
    /// allow. All of this was found by trying, on an H200.
    fn of_outputs(mut self, n_outputs: usize) -> Self {
        self.n_planes = match self.layout {
            _ if n_outputs >= NARROW_OUTPUTS => 8,
            TileLayout::Codes(_) => 32,
            // Numbers take more registers.
            TileLayout::Numbers(_) => 16,
        };
        let tiles = self.n_tiles * self.n_matrices;
        let of_row_tile = (self.n_planes * tiles * TILE * ROW_TILE * 4) as usize;
        let most = if tiles > 2 { MAX_ROW_TILES / 2 } else { MAX_ROW_TILES };
        self.n_row_tiles = self.n_row_tiles.min(most).min((MAX_SHARED_BYTES / of_row_tile).max(1) as u32);
        let has_room = self.n_row_tiles == 1 && tiles == 2 && matches!(self.layout, TileLayout::Codes(_));
        self.n_turns = if has_room { 2 } else { 1 };
        self
    }

    fn dim(self) -> CubeDim {
        CubeDim::new_2d(N_LANES, self.n_planes)
    }

    /// Cubes beside each other for so many outputs.
    fn n_cubes(self, n_outputs: usize) -> u32 {
        (n_outputs as u32).div_ceil(TILE * self.n_tiles)
    }

    fn cubes(self, n_beside: u32, n_rows: usize) -> CubeCount {
        CubeCount::Static(n_beside, (n_rows as u32).div_ceil(self.n_columns()), 1)
    }
}

impl Device {
    /// Words that a buffer of packed rows needs.
    pub fn packed_words(&self, n_rows: usize, width: usize) -> usize {
        packed_words(n_rows, width)
    }

    /// `rows += residual`, then packs `rows * gain` for `n_rows` rows of `width` numbers, which are whole blocks of 32.
    /// With a selection, a buffer and where in it the rows begin, these rows are taken instead, and `rows` stays.
    ///
    /// # Panics
    /// When a buffer is too small, or the device packs no rows.
    #[allow(clippy::too_many_arguments)]
    pub fn pack(
        &self,
        residual: Option<&Buffer>,
        rows: &Buffer,
        gain: Option<&Buffer>,
        selection: Option<(&Buffer, usize)>,
        n_rows: usize,
        width: usize,
        out: &Buffer,
    ) {
        assert!(self.packs_rows() && width.is_multiple_of(BLOCK as usize), "whole blocks");
        assert!(out.len() >= packed_words(n_rows, width), "rows of the output");
        assert!(selection.is_some() || rows.len() >= n_rows * width, "rows");
        assert!(selection.is_none_or(|(names, first)| names.len() >= first + n_rows), "the selection");
        assert!(gain.is_none_or(|gain| gain.len() == width), "a gain for each number");
        assert!(
            residual.is_none_or(|residual| selection.is_some() || residual.len() >= n_rows * width),
            "a residual for each row"
        );
        if n_rows == 0 {
            return;
        }
        let config = PackConfig {
            has_residual: residual.is_some(),
            selects: selection.is_some(),
            has_gain: gain.is_some(),
        };
        let (names, first) = selection.unwrap_or((rows, 0));
        let n_groups = width as u32 / 4;
        // SAFETY: the sizes were checked above; the caller's selection names rows.
        unsafe {
            on_client!(self, client, R => pack_rows::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_groups.div_ceil(PACK_UNITS), n_rows as u32, 1),
                CubeDim::new_1d(PACK_UNITS),
                residual.unwrap_or(rows).array_of_fours(),
                rows.array_of_fours(),
                gain.unwrap_or(rows).array_of_fours(),
                names.array(),
                out.array(),
                n_groups,
                first as u32,
                config,
            ));
        }
    }

    /// [`product`](Self::product), which has checked the sizes, on packed rows.
    pub(crate) fn product_on_matrix_units(
        &self,
        layer: LinearLayer<'_>,
        x: &Buffer,
        epsilon: Option<f32>,
        rows: RowRange,
        extent: ProductExtent,
    ) {
        let LinearLayer { matrix, bias, out, .. } = layer;
        let delta = layer.delta_or_none();
        let n_outputs = extent.n_outputs.min(matrix.n_out);
        let mut config = MatrixUnitConfig::new(layer.into(), rows.n, epsilon, bias.is_some());
        if n_outputs >= WIDE_OUTPUTS && config.n_row_tiles < MAX_ROW_TILES {
            config.n_tiles *= 2;
        }
        let config = config.of_outputs(matrix.n_out);
        for (first_output, n_out, words) in matrix.parts_of(n_outputs) {
            let sizes = ProductSizes {
                n_out,
                first_output,
                first_out: extent.first_row,
                ..ProductSizes::of(matrix, delta, rows, epsilon)
            };
            // SAFETY: the sizes were checked, and the matrix has as many words as its tiles, which are whole pairs.
            unsafe {
                on_client!(self, client, R => product_on_matrix_units::launch_unchecked::<R>(
                    client,
                    config.cubes(config.n_cubes(n_out), rows.n),
                    config.dim(),
                    words.array(),
                    words.array_of_twos(),
                    x.array(),
                    x.array_of_twos(),
                    x.array_of_fours(),
                    bias.unwrap_or(words).array(),
                    delta.b.array(),
                    delta.inner.array(),
                    out.array(),
                    sizes.arguments(),
                    config,
                ));
            }
        }
    }

    /// [`products`](Self::products), which has checked the sizes, on packed rows; each matrix is of one part.
    pub(crate) fn three_products_on_matrix_units(
        &self,
        layers: [LinearLayer<'_>; 3],
        x: &Buffer,
        epsilon: Option<f32>,
        rows: RowRange,
    ) {
        // A model has these three in one launch always, or never: all their outputs may decide how they are cut.
        let n_outputs = layers.iter().map(|layer| layer.matrix.n_out).sum();
        let configs = layers.map(|layer| {
            MatrixUnitConfig::new(layer.into(), rows.n, epsilon, layer.bias.is_some()).of_outputs(n_outputs)
        });
        let deltas = layers.map(LinearLayer::delta_or_none);
        let [b_0, b_1, b_2] = deltas.map(|delta| delta.b);
        let [inner_0, inner_1, inner_2] = deltas.map(|delta| delta.inner);
        let [words_0, words_1, words_2] = layers.map(|layer| &layer.matrix.parts[0]);
        let [bias_0, bias_1, bias_2] = layers.map(|layer| layer.bias.unwrap_or(&layer.matrix.parts[0]));
        let [sizes_0, sizes_1, sizes_2] =
            layers.map(|layer| ProductSizes::of(layer.matrix, layer.delta_or_none(), rows, epsilon));
        let [a, b, c] = layers;
        let n_cubes = layers.iter().map(|layer| configs[0].n_cubes(layer.matrix.n_out)).sum();
        // SAFETY: the sizes were checked; for the rest see `product_on_matrix_units`.
        unsafe {
            on_client!(self, client, R => three_products_on_matrix_units::launch_unchecked::<R>(
                client,
                configs[0].cubes(n_cubes, rows.n),
                configs[0].dim(),
                words_0.array(),
                words_0.array_of_twos(),
                words_1.array(),
                words_1.array_of_twos(),
                words_2.array(),
                words_2.array_of_twos(),
                x.array(),
                x.array_of_twos(),
                x.array_of_fours(),
                bias_0.array(),
                bias_1.array(),
                bias_2.array(),
                b_0.array(),
                b_1.array(),
                b_2.array(),
                inner_0.array(),
                inner_1.array(),
                inner_2.array(),
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

    /// [`swiglu_products`](Self::swiglu_products) of packed rows.
    pub(crate) fn swiglu_on_matrix_units(
        &self,
        [gate, up]: [GatedLayer<'_>; 2],
        rows: &Buffer,
        epsilon: Option<f32>,
        n_rows: usize,
        out: &Buffer,
    ) -> bool {
        let matrix = gate.matrix;
        if !packs_into_blocks(matrix) {
            return false;
        }
        assert!(out.len() >= packed_words(n_rows, matrix.n_out), "rows of the output");
        let mut config = MatrixUnitConfig::new(gate, n_rows, epsilon, false);
        config.n_matrices = 2;
        let config = config.of_outputs(matrix.n_out);
        let [gate_words, up_words] = [gate, up].map(|layer| &layer.matrix.parts[0]);
        let [of_gate, of_up] = [gate, up].map(GatedLayer::delta_or_none);
        let all = RowRange { first: 0, n: n_rows };
        // SAFETY: the sizes were checked above; for the rest see `product_on_matrix_units`.
        unsafe {
            on_client!(self, client, R => swiglu_on_matrix_units::launch_unchecked::<R>(
                client,
                config.cubes(config.n_cubes(matrix.n_out), n_rows),
                config.dim(),
                gate_words.array(),
                gate_words.array_of_twos(),
                up_words.array(),
                up_words.array_of_twos(),
                rows.array(),
                rows.array_of_twos(),
                rows.array_of_fours(),
                of_gate.b.array(),
                of_gate.inner.array(),
                of_up.b.array(),
                of_up.inner.array(),
                out.array(),
                ProductSizes::of(matrix, of_gate, all, epsilon).arguments(),
                config,
            ));
        }
        true
    }

    /// `hidden += W x + bias + delta` for `n_rows` rows, and packs `hidden * gain` into `out`, in one launch where the device can:
    /// says whether it did.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn residual_product(
        &self,
        layer: LinearLayer<'_>,
        x: Activations<'_>,
        n_rows: usize,
        gain: &Buffer,
        out: &Buffer,
    ) -> bool {
        let LinearLayer { matrix, bias, out: hidden, .. } = layer;
        let Activations::Packed { rows, epsilon } = x else { return false };
        if n_rows == 0 || !packs_into_blocks(matrix) {
            return false;
        }
        let all = RowRange { first: 0, n: n_rows };
        layer.check(x, all, 0);
        let delta = layer.delta_or_none();
        assert!(gain.len() == matrix.n_out, "a gain for each output");
        assert!(out.len() >= packed_words(n_rows, matrix.n_out), "rows of the output");
        let config =
            MatrixUnitConfig::new(layer.into(), n_rows, epsilon, bias.is_some()).of_outputs(matrix.n_out);
        let words = &matrix.parts[0];
        // SAFETY: the sizes were checked above; for the rest see `product_on_matrix_units`.
        unsafe {
            on_client!(self, client, R => residual_on_matrix_units::launch_unchecked::<R>(
                client,
                config.cubes(config.n_cubes(matrix.n_out), n_rows),
                config.dim(),
                words.array(),
                words.array_of_twos(),
                rows.array(),
                rows.array_of_twos(),
                rows.array_of_fours(),
                bias.unwrap_or(words).array(),
                delta.b.array(),
                delta.inner.array(),
                hidden.array(),
                gain.array(),
                out.array(),
                ProductSizes::of(matrix, delta, all, epsilon).arguments(),
                config,
            ));
        }
        true
    }
}

/// Whether a matrix is of one part that takes packed rows, and gives whole blocks.
fn packs_into_blocks(matrix: &Matrix) -> bool {
    matrix.takes_packed_rows() && matrix.parts.len() == 1 && matrix.n_out.is_multiple_of(BLOCK as usize)
}
