//! What is done to rows of activations between linear layers.

use cubecl::prelude::*;

use crate::packed::{BLOCK, TILE, WeightLayout, block_scales, dense_weight, group_codes};

/// Units of a cube that works on one row.
pub(crate) const ROW_UNITS: u32 = 256;
/// Numbers that a unit asks of memory at once.
const AT_ONCE: u32 = 4;
/// Units whose sums are added first.
const SHARE: u32 = 16;

/// The sum of a number of each unit, in an order that is always the same: 16 neighbours first. Every unit gets it.
#[cube]
fn sum_of_units(value: f32) -> f32 {
    let mut shared = SharedMemory::<f32>::new(comptime!(ROW_UNITS as usize));
    let mut sums = SharedMemory::<f32>::new(comptime!((ROW_UNITS / SHARE) as usize));
    shared[UNIT_POS as usize] = value;
    sync_cube();
    if UNIT_POS < comptime!(ROW_UNITS / SHARE) {
        let mut sum = 0.0f32;
        for i in 0..SHARE {
            sum += shared[(UNIT_POS * SHARE + i) as usize];
        }
        sums[UNIT_POS as usize] = sum;
    }
    sync_cube();
    let mut sum = 0.0f32;
    for i in 0..comptime!(ROW_UNITS / SHARE) {
        sum += sums[i as usize];
    }
    sum
}

/// How `normalise` works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NormConfig {
    /// Adds the residual to the hidden rows first, and keeps the sum.
    pub(crate) has_residual: bool,
    /// Takes the rows that `selection` names from `first_selected` on, and leaves the hidden rows as they are.
    pub(crate) selects: bool,
}

/// `hidden += residual`, then `out = hidden / sqrt(mean(hidden²) + epsilon) * weight`, a cube for each row.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn normalise(
    residual: &Array<f32>,
    hidden: &mut Array<f32>,
    weight: &Array<f32>,
    selection: &Array<u32>,
    out: &mut Array<f32>,
    width: u32,
    epsilon: f32,
    first_selected: u32,
    #[comptime] config: NormConfig,
) {
    let row = if comptime!(config.selects) {
        selection[(first_selected + CUBE_POS_X) as usize]
    } else {
        CUBE_POS_X
    };
    let start = row * width;
    let mut squares = 0.0f32;
    let mut values = Array::<f32>::new(comptime!(AT_ONCE as usize));
    let mut i = UNIT_POS;
    while i < width {
        // Asked of memory at once: what is written below would otherwise hold up the next.
        #[unroll]
        for j in 0..AT_ONCE {
            let at = (start + u32::min(i + comptime!(j * ROW_UNITS), width - 1u32)) as usize;
            let mut value = hidden[at];
            if comptime!(config.has_residual) {
                value += residual[at];
            }
            values[j as usize] = value;
        }
        #[unroll]
        for j in 0..AT_ONCE {
            let at = i + comptime!(j * ROW_UNITS);
            let value = values[j as usize];
            if at < width {
                if comptime!(config.has_residual && !config.selects) {
                    hidden[(start + at) as usize] = value;
                }
                squares = fma(value, value, squares);
            }
        }
        i += comptime!(AT_ONCE * ROW_UNITS);
    }
    let mean = sum_of_units(squares) / f32::cast_from(width);
    let factor = 1.0f32 / f32::sqrt(mean + epsilon);
    let mut i = UNIT_POS;
    while i < width {
        #[unroll]
        for j in 0..AT_ONCE {
            let at = u32::min(i + comptime!(j * ROW_UNITS), width - 1u32);
            let mut value = hidden[(start + at) as usize];
            if comptime!(config.selects && config.has_residual) {
                value += residual[(start + at) as usize];
            }
            values[j as usize] = value * factor * weight[at as usize];
        }
        #[unroll]
        for j in 0..AT_ONCE {
            let at = i + comptime!(j * ROW_UNITS);
            if at < width {
                out[(CUBE_POS_X * width + at) as usize] = values[j as usize];
            }
        }
        i += comptime!(AT_ONCE * ROW_UNITS);
    }
}

/// The norm of each head of `rows` for itself, in place: a cube for each head.
#[cube(launch_unchecked)]
pub(crate) fn normalise_heads(rows: &mut Array<f32>, weight: &Array<f32>, head_dim: u32, epsilon: f32) {
    let start = CUBE_POS_X * head_dim;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS;
    while i < head_dim {
        let value = rows[(start + i) as usize];
        squares = fma(value, value, squares);
        i += ROW_UNITS;
    }
    let mean = sum_of_units(squares) / f32::cast_from(head_dim);
    let factor = 1.0f32 / f32::sqrt(mean + epsilon);
    let mut i = UNIT_POS;
    while i < head_dim {
        rows[(start + i) as usize] = rows[(start + i) as usize] * factor * weight[i as usize];
        i += ROW_UNITS;
    }
}

/// `silu(gate) * up`.
#[cube]
pub(crate) fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0f32 + f32::exp(-gate)) * up
}

/// `gate = silu(gate) * up`.
#[cube(launch_unchecked)]
pub(crate) fn swiglu(gate: &mut Array<f32>, up: &Array<f32>, n: u32) {
    let i = ABSOLUTE_POS;
    if i < n as usize {
        gate[i] = gated(gate[i], up[i]);
    }
}

/// `rows *= factor`.
#[cube(launch_unchecked)]
pub(crate) fn scale(rows: &mut Array<f32>, factor: f32, n: u32) {
    let i = ABSOLUTE_POS;
    if i < n as usize {
        rows[i] *= factor;
    }
}

/// Units that read memory together.
pub(crate) const READ_UNITS: usize = 1 << 18;

/// Reads `n` vectors; `out` has a number for each of [`READ_UNITS`] units, so that none is left out.
#[cube(launch_unchecked)]
pub(crate) fn read_through(memory: &Array<Vector<f32, Const<4>>>, out: &mut Array<f32>, n: u32) {
    let n_units = comptime!(READ_UNITS as u32);
    let mut largest = 0.0f32;
    let mut i = ABSOLUTE_POS as u32;
    while i < n {
        #[unroll]
        for j in 0..AT_ONCE {
            let numbers = memory[u32::min(i + comptime!(j * n_units), n - 1u32) as usize];
            largest =
                f32::max(largest, numbers[0usize] + numbers[1usize] + numbers[2usize] + numbers[3usize]);
        }
        i += comptime!(AT_ONCE * n_units);
    }
    out[ABSOLUTE_POS] = largest;
}

/// Embeddings of the rows of a pass, a cube for each: of a token its row of the table, where this part of it has it;
/// of an adaptive token its row of `slots`. What a row is comes from the plan, see [`crate::plan`].
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn embed(
    words: &Array<u32>,
    slots: &Array<f32>,
    plan: &Array<u32>,
    out: &mut Array<f32>,
    width: u32,
    tile_words: u32,
    first_token: u32,
    n_tokens: u32,
    #[comptime] layout: WeightLayout,
) {
    let row = CUBE_POS_X;
    let input = plan[(row * crate::plan::ROW_WORDS) as usize];
    if input >= crate::plan::ADAPTIVE {
        let slot = input - crate::plan::ADAPTIVE;
        let mut i = UNIT_POS;
        while i < width {
            out[(row * width + i) as usize] = slots[(slot * width + i) as usize];
            i += ROW_UNITS;
        }
    } else if input >= first_token && input < first_token + n_tokens {
        let token = input - first_token;
        let tile = token / TILE * tile_words;
        let lane = token % TILE;
        match comptime!(layout) {
            WeightLayout::Quantized { bits, centre, scales } => {
                let mut block = UNIT_POS;
                while block < width / BLOCK {
                    let of_block = block_scales(words, tile, block, lane, bits, scales, false);
                    for group in 0..comptime!(BLOCK / 4) {
                        let codes = group_codes(words, of_block.codes, lane, group, bits);
                        let is_first = group < comptime!(BLOCK / 8);
                        let scale = select(is_first, of_block.scale, of_block.second_scale);
                        let offset = select(is_first, of_block.offset, of_block.second_offset);
                        #[unroll]
                        for j in 0..4u32 {
                            let code = (codes >> comptime!(8 * j)) & 255u32;
                            let centred = f32::cast_from(code) - comptime!(centre as f32);
                            let at = row * width + block * BLOCK + 4u32 * group + j;
                            out[at as usize] = fma(scale, centred, offset);
                        }
                    }
                    block += ROW_UNITS;
                }
            }
            layout => {
                let mut i = UNIT_POS;
                while i < width {
                    out[(row * width + i) as usize] = dense_weight(words, tile, i, lane, layout);
                    i += ROW_UNITS;
                }
            }
        }
    }
}
