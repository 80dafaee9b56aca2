//! Linear layers over packed weights.
//!
//! A cube computes a tile of 16 outputs for up to eight rows of activations: 16 units beside each other take an output
//! each, and [`N_SPLITS`] of these rows of units share the inputs, block by block in turns. Their sums meet in shared
//! memory and are added in one order. So the order of every sum is that of the inputs alone: it is the same for any
//! number of rows, and for any size of planes.

use cubecl::prelude::*;

use crate::packed::{BLOCK, TILE, WeightLayout, block_scales, dense_weight, group_codes};
use crate::rows::gated;

type Four = Const<4>;

/// Units that share the inputs of an output.
pub(crate) const N_SPLITS: u32 = 16;
/// Rows of activations that share the loads of weights at most.
pub(crate) const MAX_ROWS: u32 = 8;

/// What a product does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProductConfig {
    pub(crate) layout: WeightLayout,
    /// Rows of activations per cube.
    pub(crate) n_rows: u32,
    pub(crate) has_bias: bool,
    /// Adds the delta of a layer, to rows that have one.
    pub(crate) has_delta: bool,
}

/// Adds to an output of a row what a delta makes of it, `inner[row - first_row, :] . b[output, :]`, if it is one of the rows
/// from `first_row` on. Others stay as they are, to the bit.
#[cube]
pub(crate) fn with_delta(
    value: f32,
    b: &Array<f32>,
    inner: &Array<f32>,
    row: u32,
    output: u32,
    rank: u32,
    first_row: u32,
) -> f32 {
    let mut value = value;
    if row >= first_row {
        let (of_row, of_output) = ((row - first_row) * rank, output * rank);
        let mut sum = 0.0f32;
        for r in 0..rank {
            sum = fma(inner[(of_row + r) as usize], b[(of_output + r) as usize], sum);
        }
        value += sum;
    }
    value
}

/// `out[row, o] = sum of W[o, i] x[row, i] (+ bias[o]) (+ delta)` for `n_rows` rows. `first_x` and `first_out` are the first
/// rows of either; `first_output` is that of the part of the matrix that `words` holds.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn product(
    words: &Array<u32>,
    x: &Array<f32>,
    fours: &Array<Vector<f32, Four>>,
    bias: &Array<f32>,
    b: &Array<f32>,
    inner: &Array<f32>,
    out: &mut Array<f32>,
    n_in: u32,
    tile_words: u32,
    n_out: u32,
    first_output: u32,
    width_out: u32,
    n_rows: u32,
    first_x: u32,
    first_out: u32,
    rank: u32,
    first_delta: u32,
    #[comptime] config: ProductConfig,
) {
    let mut sums = Array::<f32>::new(comptime!(config.n_rows as usize));
    sum_products(words, x, fours, CUBE_POS_X * tile_words, n_in, first_x, n_rows, &mut sums, config);
    let (row, sum) = finish(&sums, n_rows, config);
    let output = CUBE_POS_X * TILE + UNIT_POS_X;
    if row < n_rows && output < n_out {
        let mut sum = sum;
        if comptime!(config.has_bias) {
            sum += bias[(first_output + output) as usize];
        }
        if comptime!(config.has_delta) {
            sum = with_delta(sum, b, inner, row, first_output + output, rank, first_delta);
        }
        out[((first_out + row) * width_out + first_output + output) as usize] = sum;
    }
}

/// `out = silu(gate x) * (up x)` for `n_rows` rows; the deltas of both, if there are any, have one rank.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn swiglu_product(
    gate: &Array<u32>,
    up: &Array<u32>,
    x: &Array<f32>,
    fours: &Array<Vector<f32, Four>>,
    b_of_gate: &Array<f32>,
    inner_of_gate: &Array<f32>,
    b_of_up: &Array<f32>,
    inner_of_up: &Array<f32>,
    out: &mut Array<f32>,
    n_in: u32,
    tile_words: u32,
    n_out: u32,
    n_rows: u32,
    rank: u32,
    first_delta: u32,
    #[comptime] config: ProductConfig,
) {
    let tile = CUBE_POS_X * tile_words;
    let mut of_gate = Array::<f32>::new(comptime!(config.n_rows as usize));
    let mut of_up = Array::<f32>::new(comptime!(config.n_rows as usize));
    sum_products(gate, x, fours, tile, n_in, 0u32, n_rows, &mut of_gate, config);
    sum_products(up, x, fours, tile, n_in, 0u32, n_rows, &mut of_up, config);
    let (row, of_gate) = finish(&of_gate, n_rows, config);
    let (_, of_up) = finish(&of_up, n_rows, config);
    let output = CUBE_POS_X * TILE + UNIT_POS_X;
    if row < n_rows && output < n_out {
        let (mut of_gate, mut of_up) = (of_gate, of_up);
        if comptime!(config.has_delta) {
            of_gate = with_delta(of_gate, b_of_gate, inner_of_gate, row, output, rank, first_delta);
            of_up = with_delta(of_up, b_of_up, inner_of_up, row, output, rank, first_delta);
        }
        out[(row * n_out + output) as usize] = gated(of_gate, of_up);
    }
}

/// Leaves in `sums`, for each row of the cube, what this unit's share of the inputs makes of its output of `tile`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn sum_products(
    words: &Array<u32>,
    x: &Array<f32>,
    fours: &Array<Vector<f32, Four>>,
    tile: u32,
    n_in: u32,
    first_x: u32,
    n_rows: u32,
    sums: &mut Array<f32>,
    #[comptime] config: ProductConfig,
) {
    let rows = comptime!(config.n_rows);
    let lane = UNIT_POS_X;
    let split = UNIT_POS_Y;
    let first_row = CUBE_POS_Y * rows;
    // Where each row begins; rows that are none repeat the last.
    let mut starts = Array::<u32>::new(comptime!(rows as usize));
    #[unroll]
    for r in 0..rows {
        sums[r as usize] = 0.0f32;
        starts[r as usize] = (first_x + u32::min(first_row + r, n_rows - 1u32)) * n_in;
    }
    let n_blocks = n_in / BLOCK;
    let mut block = split;
    while block < n_blocks {
        let first_input = block * BLOCK;
        match comptime!(config.layout) {
            WeightLayout::Quantized { bits, centre, scales } => {
                let of_block = block_scales(words, tile, block, lane, bits, scales, false);
                for group in 0..comptime!(BLOCK / 4) {
                    let codes = group_codes(words, of_block.codes, lane, group, bits);
                    let is_first = group < comptime!(BLOCK / 8);
                    let scale = select(is_first, of_block.scale, of_block.second_scale);
                    let offset = select(is_first, of_block.offset, of_block.second_offset);
                    let mut inputs = Array::<Vector<f32, Four>>::new(comptime!(rows as usize));
                    #[unroll]
                    for r in 0..rows {
                        inputs[r as usize] =
                            fours[((starts[r as usize] + first_input) / 4u32 + group) as usize];
                    }
                    #[unroll]
                    for j in 0..4u32 {
                        let code = (codes >> comptime!(8 * j)) & 255u32;
                        let centred = f32::cast_from(code) - comptime!(centre as f32);
                        let weight = fma(scale, centred, offset);
                        #[unroll]
                        for r in 0..rows {
                            let value = inputs[r as usize][comptime!(j as usize)];
                            sums[r as usize] = fma(weight, value, sums[r as usize]);
                        }
                    }
                }
            }
            layout => {
                for i in 0..BLOCK {
                    let weight = dense_weight(words, tile, first_input + i, lane, layout);
                    #[unroll]
                    for r in 0..rows {
                        let value = x[(starts[r as usize] + first_input + i) as usize];
                        sums[r as usize] = fma(weight, value, sums[r as usize]);
                    }
                }
            }
        }
        block += N_SPLITS;
    }
    // Rows of numbers need not be whole blocks.
    if split == 0u32 {
        match comptime!(config.layout) {
            WeightLayout::Quantized { .. } => {}
            layout => {
                for input in n_blocks * BLOCK..n_in {
                    let weight = dense_weight(words, tile, input, lane, layout);
                    #[unroll]
                    for r in 0..rows {
                        sums[r as usize] =
                            fma(weight, x[(starts[r as usize] + input) as usize], sums[r as usize]);
                    }
                }
            }
        }
    }
}

/// The row of this row of units, and the sum of its output there over all shares, in one order. Rows that are none
/// are behind the last.
#[cube]
fn finish(sums: &Array<f32>, n_rows: u32, #[comptime] config: ProductConfig) -> (u32, f32) {
    let rows = comptime!(config.n_rows);
    let mut shared = SharedMemory::<f32>::new(comptime!((N_SPLITS * TILE * config.n_rows) as usize));
    #[unroll]
    for r in 0..rows {
        shared[((UNIT_POS_Y * rows + r) * TILE + UNIT_POS_X) as usize] = sums[r as usize];
    }
    sync_cube();
    // Each row of units adds the sums of one row of activations.
    let mut sum = 0.0f32;
    if UNIT_POS_Y < rows {
        #[unroll]
        for part in 0..N_SPLITS {
            sum += shared[((part * rows + UNIT_POS_Y) * TILE + UNIT_POS_X) as usize];
        }
    }
    (select(UNIT_POS_Y < rows, CUBE_POS_Y * rows + UNIT_POS_Y, n_rows), sum)
}
