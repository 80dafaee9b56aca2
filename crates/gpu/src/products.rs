//! Linear layers: matrices on a device, and products with rows of activations.

use cubecl::prelude::*;

use crate::GpuError;
use crate::device::{Buffer, Device, on_client};
use crate::linear::{MAX_ROWS, N_SPLITS, ProductConfig, product, swiglu_product};
use crate::packed::{BLOCK, TILE, WeightLayout};
use crate::packed_rows::packed_words;
use crate::tiles::TileLayout;

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
    pub(crate) fn parts_of(&self, n_outputs: usize) -> impl Iterator<Item = (usize, usize, &Buffer)> {
        let of_part = self.tiles_per_part * TILE as usize;
        let starts = (0..n_outputs).step_by(of_part);
        starts.zip(&self.parts).map(move |(first, part)| (first, of_part.min(n_outputs - first), part))
    }

    /// Whether it multiplies rows that [`Device::pack`] has packed.
    pub fn takes_packed_rows(&self) -> bool {
        TileLayout::of(self.layout).is_some() && self.n_in.is_multiple_of(BLOCK as usize)
    }
}

/// Rows of activations as linear layers read them, `n_in` numbers each.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    /// As they are.
    Plain(&'a Buffer),
    /// As [`Device::pack`] leaves them; with an epsilon, they are divided by the root of the mean of their squares.
    Packed {
        /// The rows.
        rows: &'a Buffer,
        /// Of a norm.
        epsilon: Option<f32>,
    },
}

impl Activations<'_> {
    /// Whether there are `n_rows` rows of `n_in` numbers.
    fn has(self, n_rows: usize, n_in: usize) -> bool {
        match self {
            Self::Plain(rows) => rows.len() >= n_rows * n_in,
            Self::Packed { rows, .. } => rows.len() >= packed_words(n_rows, n_in),
        }
    }
}

/// A linear layer, and where its outputs go, `[_, n_out]`.
#[derive(Clone, Copy, Debug)]
pub struct LinearLayer<'a> {
    /// Its weights.
    pub matrix: &'a Matrix,
    /// What is added to each output.
    pub bias: Option<&'a Buffer>,
    /// What is added to the outputs of some rows.
    pub delta: Option<Delta<'a>>,
    /// For the outputs of each row.
    pub out: &'a Buffer,
}

/// A low-rank change of a linear layer, whose first factor has been applied: outputs `inner Bᵀ` of the rows from
/// `first_row` on.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// `[n_out, rank]`
    pub b: &'a Buffer,
    /// `[_, rank]`: of these rows, from the first of them on.
    pub inner: &'a Buffer,
    /// Numbers between the factors.
    pub rank: usize,
    /// The first row that is changed.
    pub first_row: usize,
}

impl Delta<'_> {
    /// Whether it is one of `n_out` outputs, and there is enough of it for `n_rows` rows.
    pub(crate) fn fits(&self, n_out: usize, n_rows: usize) -> bool {
        let Self { b, inner, rank, first_row } = *self;
        b.len() == n_out * rank && inner.len() >= n_rows.saturating_sub(first_row) * rank
    }
}

impl<'a> LinearLayer<'a> {
    /// Checks all sizes of a product of these rows, whose outputs go to the rows from `first_out` on.
    pub(crate) fn check(&self, x: Activations<'_>, rows: RowRange, first_out: usize) {
        let Self { matrix, bias, delta, out } = self;
        assert!(x.has(rows.first + rows.n, matrix.n_in), "rows of the input");
        assert!((first_out + rows.n) * matrix.n_out <= out.len(), "rows of the output");
        assert!(bias.is_none_or(|bias| bias.len() == matrix.n_out), "a bias for each output");
        assert!(delta.is_none_or(|delta| delta.fits(matrix.n_out, rows.n)), "a delta of each output");
    }

    /// Its delta; where it has none, buffers that are not read.
    pub(crate) fn delta_or_none(self) -> Delta<'a> {
        delta_or_none(self.delta, self.matrix)
    }
}

/// A linear layer whose outputs go into a gate.
#[derive(Clone, Copy, Debug)]
pub struct GatedLayer<'a> {
    /// Its weights.
    pub matrix: &'a Matrix,
    /// What is added to the outputs of some rows.
    pub delta: Option<Delta<'a>>,
}

impl<'a> GatedLayer<'a> {
    /// As [`LinearLayer::delta_or_none`].
    pub(crate) fn delta_or_none(self) -> Delta<'a> {
        delta_or_none(self.delta, self.matrix)
    }
}

impl<'a> From<LinearLayer<'a>> for GatedLayer<'a> {
    fn from(layer: LinearLayer<'a>) -> Self {
        Self { matrix: layer.matrix, delta: layer.delta }
    }
}

/// What kernels get where there is no delta: nothing is read of it.
fn delta_or_none<'a>(delta: Option<Delta<'a>>, matrix: &'a Matrix) -> Delta<'a> {
    let none = &matrix.parts[0];
    delta.unwrap_or(Delta { b: none, inner: none, rank: 0, first_row: 0 })
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
}

impl Default for ProductExtent {
    fn default() -> Self {
        Self { n_outputs: usize::MAX, first_row: 0 }
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

    /// `out = W x + bias + delta` for the rows of `x` that `rows` names; `out` is `[_, n_out]`. `extent` says which
    /// outputs, and where they go.
    ///
    /// # Panics
    /// When a buffer is too small, or rows are packed that the matrix does not take.
    pub fn product(&self, layer: LinearLayer<'_>, x: Activations<'_>, rows: RowRange, extent: ProductExtent) {
        let LinearLayer { matrix, bias, delta, out } = layer;
        let Matrix { layout, n_in, tile_words, .. } = *matrix;
        layer.check(x, rows, extent.first_row);
        if rows.n == 0 {
            return;
        }
        let x = match x {
            Activations::Plain(x) => x,
            Activations::Packed { rows: x, epsilon } => {
                return self.product_on_matrix_units(layer, x, epsilon, rows, extent);
            }
        };
        let n_outputs = extent.n_outputs.min(matrix.n_out);
        let Delta { b, inner, rank, first_row: first_delta } = layer.delta_or_none();
        let n_rows = (rows.n as u32).next_power_of_two().min(MAX_ROWS);
        let config = ProductConfig { layout, n_rows, has_bias: bias.is_some(), has_delta: delta.is_some() };
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
                    x.array_of_fours(),
                    bias.array(),
                    b.array(),
                    inner.array(),
                    out.array(),
                    n_in as u32,
                    tile_words as u32,
                    n_out as u32,
                    first_output as u32,
                    matrix.n_out as u32,
                    rows.n as u32,
                    rows.first as u32,
                    extent.first_row as u32,
                    rank as u32,
                    first_delta as u32,
                    config,
                ));
            }
        }
    }

    /// Products of the same rows of `x`, whose outputs go to the first rows: in one launch where the device can.
    ///
    /// # Panics
    /// As [`product`](Self::product).
    pub fn products(&self, layers: &[LinearLayer<'_>], x: Activations<'_>, rows: RowRange) {
        if let (&[a, b, c], Activations::Packed { rows: x_rows, epsilon }) = (layers, x)
            && layers.iter().all(|layer| layer.matrix.parts.len() == 1)
            && rows.n > 0
        {
            layers.iter().for_each(|layer| layer.check(x, rows, 0));
            return self.three_products_on_matrix_units([a, b, c], x_rows, epsilon, rows);
        }
        for &layer in layers {
            self.product(layer, x, rows, ProductExtent::default());
        }
    }

    /// `out = silu(gate x) * (up x)` for `n_rows` rows in one launch, packed if those of `x` are, where the matrices are in one
    /// part each, packed rows whole blocks, and deltas of one shape: says whether it did.
    ///
    /// # Panics
    /// When a buffer is too small.
    pub fn swiglu_products(
        &self,
        [gate, up]: [GatedLayer<'_>; 2],
        x: Activations<'_>,
        n_rows: usize,
        out: &Buffer,
    ) -> bool {
        let Matrix { layout, n_in, n_out, tile_words, .. } = *gate.matrix;
        let of_up = up.matrix;
        let is_one_shape = layout == of_up.layout && n_out == of_up.n_out && n_in == of_up.n_in;
        let shape = |layer: GatedLayer<'_>| layer.delta.map(|delta| (delta.rank, delta.first_row));
        let ([gate_words], [up_words]) = (&gate.matrix.parts[..], &of_up.parts[..]) else { return false };
        if n_rows == 0 || !is_one_shape || shape(gate) != shape(up) {
            return false;
        }
        assert!(x.has(n_rows, n_in), "rows of the input");
        let deltas = [gate, up].map(|layer| layer.delta);
        let fits = deltas.iter().flatten().all(|delta| delta.fits(n_out, n_rows));
        assert!(fits, "a delta of each output");
        let x = match x {
            Activations::Plain(x) => x,
            Activations::Packed { rows, epsilon } => {
                return self.swiglu_on_matrix_units([gate, up], rows, epsilon, n_rows, out);
            }
        };
        assert!(out.len() >= n_rows * n_out, "rows of the output");
        let rows_of_cube = (n_rows as u32).next_power_of_two().min(MAX_ROWS);
        let has_delta = gate.delta.is_some();
        let config = ProductConfig { layout, n_rows: rows_of_cube, has_bias: false, has_delta };
        let n_tiles = n_out.div_ceil(TILE as usize) as u32;
        let [of_gate, of_up] = [gate, up].map(GatedLayer::delta_or_none);
        // SAFETY: the sizes were checked above, and the matrices have as many words as their tiles.
        unsafe {
            on_client!(self, client, R => swiglu_product::launch_unchecked::<R>(
                client,
                CubeCount::Static(n_tiles, (n_rows as u32).div_ceil(rows_of_cube), 1),
                CubeDim::new_2d(TILE, N_SPLITS),
                gate_words.array(),
                up_words.array(),
                x.array(),
                x.array_of_fours(),
                of_gate.b.array(),
                of_gate.inner.array(),
                of_up.b.array(),
                of_up.inner.array(),
                out.array(),
                n_in as u32,
                tile_words as u32,
                n_out as u32,
                n_rows as u32,
                of_gate.rank as u32,
                of_gate.first_row as u32,
                config,
            ));
        }
        true
    }
}
