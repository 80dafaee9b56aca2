//! Linear layers over quantized weights on matrix units (NVIDIA's tensor cores), where eight rows of activations cost
//! little more than one.
//!
//! Codes are small whole numbers, which bfloat16 has exactly; an activation is the sum of two of them: cut off
//! after eight bits, and the rest rounded to eight. A product of 16 outputs, eight rows and 16 inputs is one instruction (`mma.m16n8k16` of the PTX ISA), which adds
//! in single precision; scales are applied to the sums of a block as they are elsewhere. Planes share the inputs, block
//! by block in turns, and their sums meet in shared memory in one order. So the order of every sum is that of the inputs
//! alone: other rows, and how many there are, change nothing.
//!
//! Of the 32 lanes of a plane, four beside each other hold inputs of one output (or row): lane `4 i + j` has groups `j`
//! and `j + 4` of a block, four inputs each, of the outputs `2 i` and `2 i + 1`. Which inputs stand where in an instruction
//! is free as long as weights and activations agree: here an input stands beside the second next.

use cubecl::prelude::*;
use half::bf16;

use crate::packed::{BLOCK, ScaleLayout, TILE, WeightLayout, block_scales, group_codes};

/// Planes that share the inputs of an output.
pub(crate) const N_PLANES: u32 = 16;
/// Lanes of a plane.
pub(crate) const N_LANES: u32 = 32;
/// Rows of an instruction.
pub(crate) const ROW_TILE: u32 = 8;

/// Of these at most as many share the loads of weights.
pub(crate) const MAX_ROW_TILES: u32 = 4;

type Two = Const<2>;

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixUnitConfig {
    pub(crate) layout: WeightLayout,
    /// Tiles of 16 outputs of a cube.
    pub(crate) n_tiles: u32,
    /// Tiles of eight rows of a cube.
    pub(crate) n_row_tiles: u32,
    pub(crate) has_bias: bool,
    /// Adds to what is there.
    pub(crate) accumulates: bool,
}

impl MatrixUnitConfig {
    /// Numbers that planes share.
    const fn n_shared(self) -> usize {
        (N_PLANES * TILE * self.n_tiles * ROW_TILE * self.n_row_tiles) as usize
    }

    /// Blocks that a plane asks of memory at once: as many as registers allow.
    const fn n_blocks(self) -> u32 {
        match self.n_row_tiles {
            1 => 4,
            2 => 2,
            _ => 1,
        }
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
}

/// What `linear` does, for quantized weights; `x` is counted in fours. What is only read is not said to be so:
/// compilers would move loads of it to where they are needed, one wait after the other (see `add_blocks`).
#[cube(launch_unchecked)]
pub(crate) fn product_on_matrix_units(
    words: &mut Array<u32>,
    x: &mut Array<Vector<f32, Const<4>>>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    sizes: ProductSizes,
    #[comptime] config: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(config.n_shared()));
    finish_product(words, x, bias, out, &mut shared, sizes, CUBE_POS_X, config);
}

/// Three products of the same rows in one launch: cubes of the first matrix, then of the second, then of the third.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn three_products_on_matrix_units(
    words_0: &mut Array<u32>,
    words_1: &mut Array<u32>,
    words_2: &mut Array<u32>,
    x: &mut Array<Vector<f32, Const<4>>>,
    bias_0: &Array<f32>,
    bias_1: &Array<f32>,
    bias_2: &Array<f32>,
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
    let n_outputs = comptime!(TILE * config_0.n_tiles);
    let cubes_0 = sizes_0.n_out.div_ceil(n_outputs);
    let cubes_1 = cubes_0 + sizes_1.n_out.div_ceil(n_outputs);
    if CUBE_POS_X < cubes_0 {
        finish_product(words_0, x, bias_0, out_0, &mut shared, sizes_0, CUBE_POS_X, config_0);
    } else if CUBE_POS_X < cubes_1 {
        finish_product(words_1, x, bias_1, out_1, &mut shared, sizes_1, CUBE_POS_X - cubes_0, config_1);
    } else {
        finish_product(words_2, x, bias_2, out_2, &mut shared, sizes_2, CUBE_POS_X - cubes_1, config_2);
    }
}

/// `out = silu(gate x) * (up x)` in one launch.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn swiglu_on_matrix_units(
    gate: &mut Array<u32>,
    up: &mut Array<u32>,
    x: &mut Array<Vector<f32, Const<4>>>,
    out: &mut Array<f32>,
    gate_sizes: ProductSizes,
    up_sizes: ProductSizes,
    #[comptime] gate_config: MatrixUnitConfig,
    #[comptime] up_config: MatrixUnitConfig,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(gate_config.n_shared()));
    let n_outputs = comptime!(TILE * gate_config.n_tiles);
    let n_numbers = comptime!(n_outputs * ROW_TILE * gate_config.n_row_tiles);
    let n_of_unit = comptime!(n_numbers.div_ceil(N_PLANES * N_LANES));
    let unit = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    let mut gates = Array::<f32>::new(comptime!(n_of_unit as usize));
    share_product(gate, x, &mut shared, gate_sizes, CUBE_POS_X, gate_config);
    #[unroll]
    for i in 0..n_of_unit {
        let at = unit + comptime!(i * N_PLANES * N_LANES);
        gates[i as usize] = sum_of_planes(&shared, u32::min(at, n_numbers - 1u32), gate_config);
    }
    sync_cube();
    share_product(up, x, &mut shared, up_sizes, CUBE_POS_X, up_config);
    #[unroll]
    for i in 0..n_of_unit {
        let at = unit + comptime!(i * N_PLANES * N_LANES);
        let row = CUBE_POS_Y * comptime!(ROW_TILE * gate_config.n_row_tiles) + at / n_outputs;
        let output = CUBE_POS_X * n_outputs + at % n_outputs;
        if at < n_numbers && row < gate_sizes.n_rows && output < gate_sizes.n_out {
            let value = gates[i as usize];
            let to = row * gate_sizes.width_out + output;
            let up_value = sum_of_planes(&shared, at, up_config);
            out[to as usize] = value / (1.0f32 + f32::exp(-value)) * up_value;
        }
    }
}

/// A product, from where `share_product` leaves it.
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish_product(
    words: &Array<u32>,
    x: &Array<Vector<f32, Const<4>>>,
    bias: &Array<f32>,
    out: &mut Array<f32>,
    shared: &mut SharedMemory<f32>,
    sizes: ProductSizes,
    cube: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    share_product(words, x, shared, sizes, cube, config);
    let n_outputs = comptime!(TILE * config.n_tiles);
    let mut at = UNIT_POS_Y * N_LANES + UNIT_POS_X;
    while at < comptime!(n_outputs * ROW_TILE * config.n_row_tiles) {
        let row = CUBE_POS_Y * comptime!(ROW_TILE * config.n_row_tiles) + at / n_outputs;
        let output = cube * n_outputs + at % n_outputs;
        if row < sizes.n_rows && output < sizes.n_out {
            let mut sum = sum_of_planes(shared, at, config);
            if comptime!(config.has_bias) {
                sum += bias[(sizes.first_output + output) as usize];
            }
            let to = ((sizes.first_out + row) * sizes.width_out + sizes.first_output + output) as usize;
            if comptime!(config.accumulates) {
                out[to] += sum;
            } else {
                out[to] = sum;
            }
        }
        at += comptime!(N_PLANES * N_LANES);
    }
}

/// The sum of what the planes have of a number, in their order.
#[cube]
fn sum_of_planes(shared: &SharedMemory<f32>, at: u32, #[comptime] config: MatrixUnitConfig) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for plane in 0..N_PLANES {
        sum += shared[(comptime!(plane * config.n_shared() as u32 / N_PLANES) + at) as usize];
    }
    sum
}

/// What each plane has of the outputs of a cube, `[N_PLANES, rows, outputs]`, for all of them.
#[cube]
fn share_product(
    words: &Array<u32>,
    x: &Array<Vector<f32, Const<4>>>,
    shared: &mut SharedMemory<f32>,
    sizes: ProductSizes,
    cube: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let n_tiles = comptime!(config.n_tiles);
    let n_row_tiles = comptime!(config.n_row_tiles);
    let lane = UNIT_POS_X;
    let plane = UNIT_POS_Y;
    let first_row = CUBE_POS_Y * comptime!(ROW_TILE * n_row_tiles);
    let mut sums = Array::<f32>::new(comptime!((4 * n_tiles * n_row_tiles) as usize));
    #[unroll]
    for i in 0..comptime!(4 * n_tiles * n_row_tiles) {
        sums[i as usize] = 0.0f32;
    }
    // Where each row begins; rows that are none repeat the last.
    let mut starts = Array::<u32>::new(comptime!(n_row_tiles as usize));
    #[unroll]
    for r in 0..n_row_tiles {
        let row = first_row + comptime!(ROW_TILE * r) + lane / 4u32;
        let row = sizes.first_x + u32::min(row, sizes.n_rows - 1u32);
        starts[r as usize] = row * (sizes.n_in / 4u32) + lane % 4u32;
    }
    let last_tile = (sizes.n_out - 1u32) / TILE;
    let mut tiles = Array::<u32>::new(comptime!(n_tiles as usize));
    #[unroll]
    for t in 0..n_tiles {
        tiles[t as usize] = u32::min(cube * n_tiles + t, last_tile) * sizes.tile_words;
    }
    let n_blocks = sizes.n_in / BLOCK;
    let mut block = plane;
    while block < n_blocks {
        add_blocks(words, x, &mut sums, &starts, &tiles, block, n_blocks, lane, config);
        block += comptime!(config.n_blocks() * N_PLANES);
    }
    let n_outputs = comptime!(TILE * n_tiles);
    let n_columns = comptime!(ROW_TILE * n_row_tiles);
    #[unroll]
    for t in 0..n_tiles {
        #[unroll]
        for r in 0..n_row_tiles {
            #[unroll]
            for i in 0..4u32 {
                let output = comptime!(TILE * t + i / 2) + lane / 4u32 * 2u32;
                let row = comptime!(ROW_TILE * r + i % 2) + lane % 4u32 * 2u32;
                shared[((plane * n_columns + row) * n_outputs + output) as usize] =
                    sums[comptime!(((t * n_row_tiles + r) * 4 + i) as usize)];
            }
        }
    }
    sync_cube();
}

/// Adds the products of some blocks of inputs, every [`N_PLANES`]th from `block` on, to `sums`, `[n_tiles,
/// n_row_tiles, 4]`. All that they need is asked of memory before anything is computed, and the barrier keeps it
/// there.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_blocks(
    words: &Array<u32>,
    x: &Array<Vector<f32, Const<4>>>,
    sums: &mut Array<f32>,
    starts: &Array<u32>,
    tiles: &Array<u32>,
    block: u32,
    n_blocks: u32,
    lane: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let (bits, centre, scales) = comptime!(match config.layout {
        WeightLayout::Quantized { bits, centre, scales } => (bits, centre, scales),
        _ => unreachable!("quantized weights"),
    });
    let n_tiles = comptime!(config.n_tiles);
    let n_row_tiles = comptime!(config.n_row_tiles);
    let n_turns = comptime!(config.n_blocks());
    let has_offset = comptime!(!matches!(scales, ScaleLayout::Block | ScaleLayout::SuperHalf));
    let has_halves = comptime!(matches!(scales, ScaleLayout::SuperHalf | ScaleLayout::SuperHalfMin));
    let output = lane / 4u32 * 2u32;

    // Activations `[n_turns, n_row_tiles, 2 halves]`; codes `[n_turns, n_tiles, 2 halves, 2 outputs]`; scales and
    // offsets `[n_turns, n_tiles, 2 outputs, 2 halves]`.
    let mut activations =
        Array::<Vector<f32, Const<4>>>::new(comptime!((n_turns * n_row_tiles * 2) as usize));
    let mut codes = Array::<u32>::new(comptime!((n_turns * n_tiles * 4) as usize));
    let mut scale = Array::<f32>::new(comptime!((n_turns * n_tiles * 4) as usize));
    let mut offset = Array::<f32>::new(comptime!((n_turns * n_tiles * 4) as usize));
    #[unroll]
    for turn in 0..n_turns {
        let wanted = block + comptime!(turn * N_PLANES);
        // Behind the last block it comes again, with scales of zero.
        let block = u32::min(wanted, n_blocks - 1u32);
        let is_one = wanted < n_blocks;
        #[unroll]
        for t in 0..n_tiles {
            let tile = tiles[t as usize];
            #[unroll]
            for second in 0..2u32 {
                let row = output | second;
                let of_block = block_scales(words, tile, block, row, bits, scales, true);
                let at = comptime!((((turn * n_tiles + t) * 2 + second) * 2) as usize);
                scale[at] = select(is_one, of_block.scale, 0.0f32.runtime());
                scale[comptime!(at + 1)] = select(is_one, of_block.second_scale, 0.0f32.runtime());
                offset[at] = select(is_one, of_block.offset, 0.0f32.runtime());
                offset[comptime!(at + 1)] = select(is_one, of_block.second_offset, 0.0f32.runtime());
                #[unroll]
                for half in 0..2u32 {
                    let group = lane % 4u32 + comptime!(4 * half);
                    codes[comptime!((((turn * n_tiles + t) * 2 + half) * 2 + second) as usize)] =
                        group_codes(words, of_block.codes, row, group, bits);
                }
            }
        }
        #[unroll]
        for r in 0..n_row_tiles {
            #[unroll]
            for half in 0..2u32 {
                activations[comptime!(((turn * n_row_tiles + r) * 2 + half) as usize)] =
                    x[(starts[r as usize] + block * 8u32 + comptime!(4 * half)) as usize];
            }
        }
    }

    sync_plane();
    let instruction = cmma::MmaDefinition::<bf16, bf16, f32>::new(16usize, 8usize, 16usize);
    let mut ones = Array::<Vector<bf16, Two>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        ones[i] = Vector::<bf16, Two>::new(bf16::new(1.0f32));
    }
    #[unroll]
    for turn in 0..n_turns {
        // `[n_row_tiles, 2 halves, 2]`, as their upper and their lower part.
        let mut upper = Array::<Vector<bf16, Two>>::new(comptime!((4 * n_row_tiles) as usize));
        let mut lower = Array::<Vector<bf16, Two>>::new(comptime!((4 * n_row_tiles) as usize));
        // Sums of the rows over a half, as an instruction has them.
        let mut totals = Array::<f32>::new(comptime!((4 * n_row_tiles) as usize));
        #[unroll]
        for i in 0..comptime!(2 * n_row_tiles) {
            let values = activations[comptime!((turn * n_row_tiles * 2 + i) as usize)];
            #[unroll]
            for pair in 0..2u32 {
                let first = values[comptime!(pair as usize)];
                let second = values[comptime!((pair + 2) as usize)];
                let first_bits = u32::reinterpret(first);
                let second_bits = u32::reinterpret(second) & 0xffff_0000u32;
                let at = comptime!((i * 2 + pair) as usize);
                let cut = (first_bits >> 16u32) | second_bits;
                upper[at] = Vector::<bf16, Two>::reinterpret(cut);
                let first_cut = first_bits & 0xffff_0000u32;
                let mut rest = Vector::<f32, Two>::empty();
                rest[0usize] = first - f32::reinterpret(first_cut);
                rest[1usize] = second - f32::reinterpret(second_bits);
                lower[at] = Vector::<bf16, Two>::cast_from(rest);
            }
        }
        if comptime!(has_offset) {
            #[unroll]
            for r in 0..n_row_tiles {
                let mut of_row = Array::<Vector<f32, Two>>::new(2usize);
                clear(&mut of_row);
                #[unroll]
                for half in 0..2u32 {
                    let start = comptime!((r * 2 + half) * 2);
                    multiply(&instruction, &ones, &upper, &lower, start, &mut of_row);
                    if comptime!(has_halves || half == 1) {
                        totals[comptime!((r * 4 + half * 2) as usize)] = of_row[0usize][0usize];
                        totals[comptime!((r * 4 + half * 2 + 1) as usize)] = of_row[0usize][1usize];
                        clear(&mut of_row);
                    }
                }
            }
        }
        #[unroll]
        for t in 0..n_tiles {
            let of_tile = comptime!((turn * n_tiles + t) * 4);
            let mut weights = Array::<Vector<bf16, Two>>::new(8usize);
            #[unroll]
            for i in 0..4u32 {
                let four = codes[comptime!((of_tile + i) as usize)];
                let at = comptime!((4 * (i / 2) + i % 2) as usize);
                weights[at] = centred(four & 0x00ff_00ffu32, bits, centre);
                weights[comptime!(at + 2)] = centred((four >> 8u32) & 0x00ff_00ffu32, bits, centre);
            }
            #[unroll]
            for r in 0..n_row_tiles {
                let mut products = Array::<Vector<f32, Two>>::new(2usize);
                clear(&mut products);
                #[unroll]
                for half in 0..2u32 {
                    let mut of_half = Array::<Vector<bf16, Two>>::new(4usize);
                    #[unroll]
                    for i in 0..4u32 {
                        of_half[i as usize] = weights[comptime!((4 * half + i) as usize)];
                    }
                    let start = comptime!((r * 2 + half) * 2);
                    multiply(&instruction, &of_half, &upper, &lower, start, &mut products);
                    if comptime!(has_halves || half == 1) {
                        #[unroll]
                        for i in 0..4u32 {
                            let product = products[comptime!((i / 2) as usize)][comptime!((i % 2) as usize)];
                            let scale_at = comptime!((of_tile + 2 * (i / 2) + half) as usize);
                            let at = comptime!(((t * n_row_tiles + r) * 4 + i) as usize);
                            sums[at] = fma(scale[scale_at], product, sums[at]);
                            if comptime!(has_offset) {
                                let total = totals[comptime!((r * 4 + half * 2 + i % 2) as usize)];
                                sums[at] = fma(offset[scale_at], total, sums[at]);
                            }
                        }
                        clear(&mut products);
                    }
                }
            }
        }
    }
}

#[cube]
fn clear(sums: &mut Array<Vector<f32, Two>>) {
    sums[0usize] = Vector::<f32, Two>::new(0.0f32);
    sums[1usize] = Vector::<f32, Two>::new(0.0f32);
}

/// Adds the products of weights with both parts of activations, the pairs from `start` on.
#[cube]
fn multiply(
    instruction: &cmma::MmaDefinition<bf16, bf16, f32>,
    weights: &Array<Vector<bf16, Two>>,
    upper: &Array<Vector<bf16, Two>>,
    lower: &Array<Vector<bf16, Two>>,
    #[comptime] start: u32,
    sums: &mut Array<Vector<f32, Two>>,
) {
    let mut activations = Array::<Vector<bf16, Two>>::new(2usize);
    activations[0usize] = lower[comptime!(start as usize)];
    activations[1usize] = lower[comptime!((start + 1) as usize)];
    instruction.execute_inplace(weights, &activations, sums);
    activations[0usize] = upper[comptime!(start as usize)];
    activations[1usize] = upper[comptime!((start + 1) as usize)];
    instruction.execute_inplace(weights, &activations, sums);
}

/// Two codes, in the lower halves' low bytes, minus the code of zero, exactly: as bits behind 128 they are numbers
/// already, up to 127. What an eighth bit adds is left off what is subtracted.
#[cube]
fn centred(codes: u32, #[comptime] bits: u32, #[comptime] centre: u32) -> Vector<bf16, Two> {
    let base = comptime!(0x4300_4300u32);
    if comptime!(bits == 8) {
        // 256, or 128 where the eighth bit is set: the code of zero is 128.
        let whole = (codes & 0x007f_007fu32) | base;
        let subtracted = 0x4380_4380u32 - (codes & 0x0080_0080u32);
        Vector::<bf16, Two>::reinterpret(whole) - Vector::<bf16, Two>::reinterpret(subtracted)
    } else {
        let whole = codes | base;
        let subtracted = Vector::<bf16, Two>::new(bf16::new(comptime!((128 + centre) as f32)));
        Vector::<bf16, Two>::reinterpret(whole) - subtracted
    }
}
