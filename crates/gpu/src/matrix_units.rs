//! Linear layers over weights in at most 16 bits on matrix units (NVIDIA's tensor cores), where eight rows of activations
//! cost little more than one.
//!
//! Quantized weights are signed bytes (numbers: [`crate::number_products`]), activations two of them
//! ([`crate::packed_rows`]). A product of 16 outputs, eight rows and 32 inputs is one instruction (`mma.m16n8k32` of the
//! PTX ISA) for each of these two, in whole numbers and so exact; scales are applied to the sums of a block as they are
//! elsewhere. Planes share the inputs, block by block in turns, and their sums meet in shared memory in one order. So the
//! order of every sum is that of the inputs alone: other rows, and how many there are, change nothing.
//!
//! A norm of the activations is a factor of each row, and comes last: planes add up the squares on their way.

use cubecl::prelude::*;

use crate::block_products::share_products;
use crate::linear::with_delta;
use crate::packed::{BLOCK, TILE};
use crate::packed_rows::{pack_group, squares_of};
use crate::rows::gated;
use crate::tiles::TileLayout;

/// Lanes of a plane.
pub(crate) const N_LANES: u32 = 32;
/// Rows of an instruction.
pub(crate) const ROW_TILE: u32 = 8;

type Two = Const<2>;
type Four = Const<4>;

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixUnitConfig {
    pub(crate) layout: TileLayout,
    /// Matrices that are multiplied side by side: one or two.
    pub(crate) n_matrices: u32,
    /// Tiles of 16 outputs that a cube has of each.
    pub(crate) n_tiles: u32,
    /// Tiles of eight rows of a cube.
    pub(crate) n_row_tiles: u32,
    /// Planes that share the inputs of an output, a multiple of the blocks of a super-block. The order of sums depends
    /// on it, so that it is the same for any number of rows.
    pub(crate) n_planes: u32,
    /// Blocks that a plane asks of memory at once.
    pub(crate) n_turns: u32,
    /// Whether rows are divided by the root of the mean of their squares.
    pub(crate) is_normed: bool,
    pub(crate) has_bias: bool,
    /// Adds the delta of a layer, to rows that have one.
    pub(crate) has_delta: bool,
}

impl MatrixUnitConfig {
    /// Rows of a cube.
    pub(crate) const fn n_columns(self) -> u32 {
        ROW_TILE * self.n_row_tiles
    }

    /// Outputs of a cube, of all matrices.
    pub(crate) const fn n_outputs(self) -> u32 {
        TILE * self.all_tiles()
    }

    /// Numbers that planes share.
    pub(crate) const fn n_shared(self) -> usize {
        (self.n_planes * self.n_outputs() * self.n_columns()) as usize
    }

    pub(crate) const fn n_squares(self) -> usize {
        (self.n_planes * self.n_columns()) as usize
    }

    pub(crate) const fn sums(self) -> u32 {
        4 * self.all_tiles() * self.n_row_tiles
    }

    pub(crate) const fn in_one_turn(self) -> Self {
        Self { n_turns: 1, ..self }
    }

    /// Tiles of weights of a cube.
    pub(crate) const fn all_tiles(self) -> u32 {
        self.n_tiles * self.n_matrices
    }
}

/// Sizes of a product.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct ProductSizes {
    pub(crate) n_in: u32,
    pub(crate) tile_words: u32,
    /// Outputs of the part of the matrix that is at hand, and which is its first.
    pub(crate) n_out: u32,
    pub(crate) first_output: u32,
    /// Outputs of the whole matrix.
    pub(crate) width_out: u32,
    pub(crate) n_rows: u32,
    /// The first rows of the input and of the output.
    pub(crate) first_x: u32,
    pub(crate) first_out: u32,
    /// Of the norm.
    pub(crate) epsilon: f32,
    /// Of the delta, and the first row that it is added to.
    pub(crate) rank: u32,
    pub(crate) first_delta: u32,
}

/// What `linear` does, for packed rows. `words` and `pairs` are one buffer, and so are the three of
/// `x`. What is only read is not said to be so:
/// compilers would move loads of it to where they are needed, one wait after the other (see `load_blocks`).
#[cube(launch_unchecked, address_type = "u64")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product_on_matrix_units(
    words: &mut Array<u32>,
    pairs: &mut Array<Vector<u32, Two>>,
    x: &mut Array<u32>,
    x_pairs: &mut Array<Vector<u32, Two>>,
    x_fours: &mut Array<Vector<u32, Four>>,
    bias: &Array<f32>,
    b: &Array<f32>,
    inner: &Array<f32>,
    out: &mut Array<f32>,
    sizes: ProductSizes,
    #[comptime] config: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(config.n_shared()));
    let mut squares = SharedMemory::<f32>::new(comptime!(config.n_squares()));
    let cube = CUBE_POS_X;
    share_products(
        words,
        pairs,
        words,
        pairs,
        x,
        x_pairs,
        x_fours,
        &mut shared,
        &mut squares,
        sizes,
        cube,
        config,
    );
    finish_product(&shared, &squares, bias, b, inner, out, sizes, cube, config);
}

/// Three products of the same rows in one launch: cubes of the first matrix, then of the second, then of the third.
#[cube(launch_unchecked, address_type = "u64")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn three_products_on_matrix_units(
    words_0: &mut Array<u32>,
    pairs_0: &mut Array<Vector<u32, Two>>,
    words_1: &mut Array<u32>,
    pairs_1: &mut Array<Vector<u32, Two>>,
    words_2: &mut Array<u32>,
    pairs_2: &mut Array<Vector<u32, Two>>,
    x: &mut Array<u32>,
    x_pairs: &mut Array<Vector<u32, Two>>,
    x_fours: &mut Array<Vector<u32, Four>>,
    bias_0: &Array<f32>,
    bias_1: &Array<f32>,
    bias_2: &Array<f32>,
    b_0: &Array<f32>,
    b_1: &Array<f32>,
    b_2: &Array<f32>,
    inner_0: &Array<f32>,
    inner_1: &Array<f32>,
    inner_2: &Array<f32>,
    out_0: &mut Array<f32>,
    out_1: &mut Array<f32>,
    out_2: &mut Array<f32>,
    sizes_0: ProductSizes,
    sizes_1: ProductSizes,
    sizes_2: ProductSizes,
    #[comptime] config_0: MatrixUnitConfig,
    #[comptime] config_1: MatrixUnitConfig,
    #[comptime] config_2: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(config_0.n_shared()));
    let mut squares = SharedMemory::<f32>::new(comptime!(config_0.n_squares()));
    let n_outputs = comptime!(TILE * config_0.n_tiles);
    let cubes_0 = sizes_0.n_out.div_ceil(n_outputs);
    let cubes_1 = cubes_0 + sizes_1.n_out.div_ceil(n_outputs);
    let cube = CUBE_POS_X;
    if cube < cubes_0 {
        share_products(
            words_0,
            pairs_0,
            words_0,
            pairs_0,
            x,
            x_pairs,
            x_fours,
            &mut shared,
            &mut squares,
            sizes_0,
            cube,
            config_0,
        );
        finish_product(&shared, &squares, bias_0, b_0, inner_0, out_0, sizes_0, cube, config_0);
    } else if cube < cubes_1 {
        let cube = cube - cubes_0;
        share_products(
            words_1,
            pairs_1,
            words_1,
            pairs_1,
            x,
            x_pairs,
            x_fours,
            &mut shared,
            &mut squares,
            sizes_1,
            cube,
            config_1,
        );
        finish_product(&shared, &squares, bias_1, b_1, inner_1, out_1, sizes_1, cube, config_1);
    } else {
        let cube = cube - cubes_1;
        share_products(
            words_2,
            pairs_2,
            words_2,
            pairs_2,
            x,
            x_pairs,
            x_fours,
            &mut shared,
            &mut squares,
            sizes_2,
            cube,
            config_2,
        );
        finish_product(&shared, &squares, bias_2, b_2, inner_2, out_2, sizes_2, cube, config_2);
    }
}

/// `out = silu(gate x) * (up x)`, packed. A cube has a block of it. The deltas of both, if there are any, have one rank.
#[cube(launch_unchecked, address_type = "u64")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn swiglu_on_matrix_units(
    gate: &mut Array<u32>,
    gate_pairs: &mut Array<Vector<u32, Two>>,
    up: &mut Array<u32>,
    up_pairs: &mut Array<Vector<u32, Two>>,
    x: &mut Array<u32>,
    x_pairs: &mut Array<Vector<u32, Two>>,
    x_fours: &mut Array<Vector<u32, Four>>,
    b_of_gate: &Array<f32>,
    inner_of_gate: &Array<f32>,
    b_of_up: &Array<f32>,
    inner_of_up: &Array<f32>,
    out: &mut Array<u32>,
    sizes: ProductSizes,
    #[comptime] config: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(config.n_shared()));
    let mut squares = SharedMemory::<f32>::new(comptime!(config.n_squares()));
    let mut finished = SharedMemory::<f32>::new(comptime!((BLOCK * config.n_columns()) as usize));
    let cube = CUBE_POS_X;
    share_products(
        gate,
        gate_pairs,
        up,
        up_pairs,
        x,
        x_pairs,
        x_fours,
        &mut shared,
        &mut squares,
        sizes,
        cube,
        config,
    );
    let mut at = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    while at < comptime!(BLOCK * config.n_columns()) {
        let (row, output) = (at / BLOCK, at % BLOCK);
        let factor = factor_of(&squares, row, sizes, config);
        let mut of_gate = sum_of_planes(&shared, row, output, config) * factor;
        let mut of_up = sum_of_planes(&shared, row, BLOCK + output, config) * factor;
        if comptime!(config.has_delta) {
            let ProductSizes { n_rows, rank, first_delta, .. } = sizes;
            let row = CUBE_POS_Y * comptime!(config.n_columns()) + row;
            let output = cube * BLOCK + output;
            if row < n_rows {
                of_gate = with_delta(of_gate, b_of_gate, inner_of_gate, row, output, rank, first_delta);
                of_up = with_delta(of_up, b_of_up, inner_of_up, row, output, rank, first_delta);
            }
        }
        finished[at as usize] = gated(of_gate, of_up);
        at += comptime!(config.n_planes * N_LANES);
    }
    sync_cube();
    pack_finished(&finished, out, sizes, cube, config);
}

/// `hidden += W x + bias`, and packs `hidden * gain`. A cube has a block of it.
#[cube(launch_unchecked, address_type = "u64")]
#[allow(clippy::too_many_arguments)]
pub(crate) fn residual_on_matrix_units(
    words: &mut Array<u32>,
    pairs: &mut Array<Vector<u32, Two>>,
    x: &mut Array<u32>,
    x_pairs: &mut Array<Vector<u32, Two>>,
    x_fours: &mut Array<Vector<u32, Four>>,
    bias: &Array<f32>,
    b: &Array<f32>,
    inner: &Array<f32>,
    hidden: &mut Array<f32>,
    gain: &Array<f32>,
    out: &mut Array<u32>,
    sizes: ProductSizes,
    #[comptime] config: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(config.n_shared()));
    let mut squares = SharedMemory::<f32>::new(comptime!(config.n_squares()));
    let mut finished = SharedMemory::<f32>::new(comptime!((BLOCK * config.n_columns()) as usize));
    let cube = CUBE_POS_X;
    share_products(
        words,
        pairs,
        words,
        pairs,
        x,
        x_pairs,
        x_fours,
        &mut shared,
        &mut squares,
        sizes,
        cube,
        config,
    );
    let first_row = CUBE_POS_Y * comptime!(config.n_columns());
    let mut at = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    while at < comptime!(BLOCK * config.n_columns()) {
        let (row, output) = (at / BLOCK, at % BLOCK);
        if first_row + row < sizes.n_rows {
            let column = cube * BLOCK + output;
            let to = ((first_row + row) * sizes.n_out + column) as usize;
            let mut value = sum_of_planes(&shared, row, output, config);
            if comptime!(config.is_normed) {
                value *= factor_of(&squares, row, sizes, config);
            }
            if comptime!(config.has_bias) {
                value += bias[column as usize];
            }
            if comptime!(config.has_delta) {
                let row = first_row + row;
                value = with_delta(value, b, inner, row, column, sizes.rank, sizes.first_delta);
            }
            value += hidden[to];
            hidden[to] = value;
            finished[at as usize] = value;
        }
        at += comptime!(config.n_planes * N_LANES);
    }
    sync_cube();
    let unit = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    if unit < comptime!(BLOCK / 4 * config.n_columns()) {
        let (row, group) = (unit / comptime!(BLOCK / 4), unit % comptime!(BLOCK / 4));
        let mut values = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            values[i as usize] = finished[(row * BLOCK + group * 4u32 + i) as usize];
        }
        let of_squares = squares_of(&values);
        #[unroll]
        for i in 0..4u32 {
            values[i as usize] *= gain[(cube * BLOCK + group * 4u32 + i) as usize];
        }
        let record = (first_row + row) * (sizes.n_out / BLOCK) + cube;
        pack_group(&values, of_squares, out, record, group, first_row + row < sizes.n_rows);
    }
}

/// Packs a block of each row.
#[cube]
fn pack_finished(
    finished: &SharedMemory<f32>,
    out: &mut Array<u32>,
    sizes: ProductSizes,
    cube: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let unit = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    if unit < comptime!(BLOCK / 4 * config.n_columns()) {
        let (of_cube, group) = (unit / comptime!(BLOCK / 4), unit % comptime!(BLOCK / 4));
        let row = CUBE_POS_Y * comptime!(config.n_columns()) + of_cube;
        let mut values = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            values[i as usize] = finished[(of_cube * BLOCK + group * 4u32 + i) as usize];
        }
        let record = row * (sizes.n_out / BLOCK) + cube;
        pack_group(&values, 0.0f32, out, record, group, row < sizes.n_rows);
    }
}

/// A product, from where `share_products` leaves it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish_product(
    shared: &SharedMemory<f32>,
    squares: &SharedMemory<f32>,
    bias: &Array<f32>,
    b: &Array<f32>,
    inner: &Array<f32>,
    out: &mut Array<f32>,
    sizes: ProductSizes,
    cube: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_outputs = comptime!(config.n_outputs());
    let mut at = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    while at < comptime!(n_outputs * config.n_columns()) {
        let of_cube = at / n_outputs;
        let row = CUBE_POS_Y * comptime!(config.n_columns()) + of_cube;
        let output = cube * n_outputs + at % n_outputs;
        if row < sizes.n_rows && output < sizes.n_out {
            let mut sum = sum_of_planes(shared, of_cube, at % n_outputs, config);
            if comptime!(config.is_normed) {
                sum *= factor_of(squares, of_cube, sizes, config);
            }
            let mut value = sum;
            if comptime!(config.has_bias) {
                value = sum + bias[(sizes.first_output + output) as usize];
            }
            let column = sizes.first_output + output;
            if comptime!(config.has_delta) {
                value = with_delta(value, b, inner, row, column, sizes.rank, sizes.first_delta);
            }
            out[((sizes.first_out + row) * sizes.width_out + column) as usize] = value;
        }
        at += comptime!(config.n_planes * N_LANES);
    }
}

/// The sum of what the planes have of a number, in their order.
#[cube]
fn sum_of_planes(
    shared: &SharedMemory<f32>,
    row: u32,
    output: u32,
    #[comptime] config: MatrixUnitConfig,
) -> f32 {
    let at = row * comptime!(config.n_outputs()) + output;
    let mut sum = 0.0f32;
    #[unroll]
    for plane in 0..comptime!(config.n_planes) {
        sum += shared[(comptime!(plane * config.n_outputs() * config.n_columns()) + at) as usize];
    }
    sum
}

/// What the norm multiplies a row of the cube by: one over the root of the mean of its squares.
#[cube]
fn factor_of(
    squares: &SharedMemory<f32>,
    row: u32,
    sizes: ProductSizes,
    #[comptime] config: MatrixUnitConfig,
) -> f32 {
    if comptime!(config.is_normed) {
        let mut sum = 0.0f32;
        #[unroll]
        for plane in 0..comptime!(config.n_planes) {
            sum += squares[(comptime!(plane * config.n_columns()) + row) as usize];
        }
        1.0f32 / f32::sqrt(sum / f32::cast_from(sizes.n_in) + sizes.epsilon)
    } else {
        1.0f32.runtime()
    }
}
