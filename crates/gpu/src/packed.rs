//! Packed weights as kernels read them: 16 output rows beside each other, so that neighbouring units read neighbouring
//! words.
//!
//! The bytes are those of the CPU's packed form, which keeps what a file has: codes, scales and minima in the file's
//! own precision. Decoding them is exact, also on devices that flush small numbers or have no half precision.

use ::half::f16;
use cubecl::prelude::*;

/// Output rows in a tile.
pub const TILE: u32 = 16;
/// Inputs in a block of quantized weights.
pub const BLOCK: u32 = 32;
/// Blocks in a super-block of the K formats.
const SUPER: u32 = 8;

/// How scales are laid out. All are of 16 rows, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleLayout {
    /// Per block: a scale in half precision.
    Block,
    /// Per block: a scale and an offset in half precision.
    BlockMin,
    /// Per super-block: two numbers in half precision; per block: a byte for each. Scale and negative offset are the
    /// products.
    Super,
    /// Per super-block: a number in half precision; per block: a signed byte for each half.
    SuperHalf,
    /// Per super-block: two numbers in half precision; per block: a byte for each half, with the scale in its low
    /// and the negative offset in its high four bits.
    SuperHalfMin,
}

/// How the weights of a matrix are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightLayout {
    /// Codes of `bits` bits: weight = scale * (code - centre) + offset.
    Quantized {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// The code of zero.
        centre: u32,
        /// Where scales are.
        scales: ScaleLayout,
    },
    /// Half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Single precision.
    F32,
}

impl WeightLayout {
    /// Words of 32 bits of a tile of `n_in` inputs.
    pub fn tile_words(self, n_in: usize) -> usize {
        let n_in = n_in as u32;
        let words = match self {
            Self::Quantized { bits, scales, .. } => {
                let n_blocks = n_in / BLOCK;
                n_blocks * (scale_words(scales) + code_words(bits))
                    + n_blocks.div_ceil(SUPER) * super_words(scales)
            }
            Self::F16 | Self::BF16 => n_in * TILE / 2,
            Self::F32 => n_in * TILE,
        };
        words as usize
    }
}

/// Words from a block to that `n` blocks further, which is in the same place of its super-block.
pub(crate) const fn words_of_blocks(n: u32, bits: u32, scales: ScaleLayout) -> u32 {
    n * (scale_words(scales) + code_words(bits)) + n / SUPER * super_words(scales)
}

const fn code_words(bits: u32) -> u32 {
    TILE * BLOCK * bits / 32
}

pub(crate) const fn scale_words(scales: ScaleLayout) -> u32 {
    match scales {
        ScaleLayout::BlockMin => TILE,
        _ => TILE / 2,
    }
}

const fn super_words(scales: ScaleLayout) -> u32 {
    match scales {
        ScaleLayout::Block | ScaleLayout::BlockMin => 0,
        ScaleLayout::SuperHalf => TILE / 2,
        ScaleLayout::Super | ScaleLayout::SuperHalfMin => TILE,
    }
}

/// A number in half precision, from its bits: exact, and without numbers that devices may flush.
#[cube]
pub(crate) fn half(bits: u32) -> f32 {
    let exponent = (bits >> 10u32) & 31u32;
    let mantissa = bits & 1023u32;
    let small = f32::cast_from(mantissa) * 5.960_464_5e-8;
    let usual = f32::reinterpret(((exponent + 112u32) << 23u32) | (mantissa << 13u32));
    let magnitude = select(exponent == 0u32, small, usual);
    select((bits & 0x8000u32) != 0u32, -magnitude, magnitude)
}

/// The `idx`th number in half precision behind word `start`. Where the device `has_half` precision and flushes
/// nothing, it converts it itself.
#[cube]
fn half_at(words: &Array<u32>, start: u32, idx: u32, #[comptime] has_half: bool) -> f32 {
    let bits = (words[(start + idx / 2u32) as usize] >> ((idx % 2u32) * 16u32)) & 0xffffu32;
    if comptime!(has_half) {
        let short = u16::cast_from(bits);
        f32::cast_from(f16::reinterpret(short))
    } else {
        half(bits)
    }
}

/// The `idx`th byte behind word `start`.
#[cube]
fn byte_at(words: &Array<u32>, start: u32, idx: u32) -> u32 {
    (words[(start + idx / 4u32) as usize] >> ((idx % 4u32) * 8u32)) & 255u32
}

/// A byte as the signed number that it is.
#[cube]
fn signed(byte: u32) -> f32 {
    f32::cast_from(byte) - select(byte > 127u32, f32::new(256.0), f32::new(0.0))
}

/// What turns the codes of a block of one row into weights.
#[derive(CubeType)]
pub(crate) struct BlockScales {
    /// Of the first and of the second half.
    pub(crate) scale: f32,
    pub(crate) second_scale: f32,
    pub(crate) offset: f32,
    pub(crate) second_offset: f32,
    /// The word where codes begin.
    pub(crate) codes: u32,
}

/// Where a block of a tile begins.
#[derive(CubeType)]
pub(crate) struct BlockStart {
    /// The word where the numbers of its super-block begin, if it has one.
    pub(crate) supers: u32,
    /// The word where its own scales begin.
    pub(crate) at: u32,
}

/// Where block `block` of the tile that begins at word `tile` is.
#[cube]
pub(crate) fn block_start(
    tile: u32,
    block: u32,
    #[comptime] bits: u32,
    #[comptime] scales: ScaleLayout,
) -> BlockStart {
    let super_words = comptime!(super_words(scales));
    let block_words = comptime!(scale_words(scales) + code_words(bits));
    let supers = tile + (block / SUPER) * comptime!(super_words + SUPER * block_words);
    let at = if comptime!(super_words > 0) {
        supers + super_words + (block % SUPER) * block_words
    } else {
        tile + block * block_words
    };
    BlockStart { supers, at }
}

/// The scales of block `block` of row `row` of the tile that begins at word `tile`.
#[cube]
pub(crate) fn block_scales(
    words: &Array<u32>,
    tile: u32,
    block: u32,
    row: u32,
    #[comptime] bits: u32,
    #[comptime] scales: ScaleLayout,
    #[comptime] has_half: bool,
) -> BlockScales {
    let start = block_start(tile, block, bits, scales);
    let (supers, at) = (start.supers, start.at);
    let codes = at + comptime!(scale_words(scales));
    match comptime!(scales) {
        ScaleLayout::Block => {
            let scale = half_at(words, at, row, has_half);
            BlockScales { scale, second_scale: scale, offset: 0.0f32, second_offset: 0.0f32, codes }
        }
        ScaleLayout::BlockMin => {
            let scale = half_at(words, at, row, has_half);
            let offset = half_at(words, at + TILE / 2u32, row, has_half);
            BlockScales { scale, second_scale: scale, offset, second_offset: offset, codes }
        }
        ScaleLayout::Super => {
            let scale = half_at(words, supers, row, has_half) * f32::cast_from(byte_at(words, at, row));
            let offset = -(half_at(words, supers + TILE / 2u32, row, has_half)
                * f32::cast_from(byte_at(words, at + TILE / 4u32, row)));
            BlockScales { scale, second_scale: scale, offset, second_offset: offset, codes }
        }
        ScaleLayout::SuperHalf => {
            let d = half_at(words, supers, row, has_half);
            BlockScales {
                scale: d * signed(byte_at(words, at, row)),
                second_scale: d * signed(byte_at(words, at + TILE / 4u32, row)),
                offset: 0.0f32,
                second_offset: 0.0f32,
                codes,
            }
        }
        ScaleLayout::SuperHalfMin => {
            let d = half_at(words, supers, row, has_half);
            let min = half_at(words, supers + TILE / 2u32, row, has_half);
            let first = byte_at(words, at, row);
            let second = byte_at(words, at + TILE / 4u32, row);
            BlockScales {
                scale: d * f32::cast_from(first & 15u32),
                second_scale: d * f32::cast_from(second & 15u32),
                offset: -(min * f32::cast_from(first >> 4u32)),
                second_offset: -(min * f32::cast_from(second >> 4u32)),
                codes,
            }
        }
    }
}

/// The codes of inputs `4 group` to `4 group + 3` of a row, a byte each. `codes` is the word where those of the block
/// begin.
#[cube]
pub(crate) fn group_codes(
    words: &Array<u32>,
    codes: u32,
    row: u32,
    group: u32,
    #[comptime] bits: u32,
) -> u32 {
    if comptime!(bits == 8) {
        words[(codes + group * TILE + row) as usize]
    } else if comptime!(bits < 4) {
        let low = words[(codes + group % 2u32 * TILE + row) as usize];
        let pairs = (low >> (group / 2u32 * 2u32)) & 0x0303_0303u32;
        if comptime!(bits == 2) {
            pairs
        } else {
            let third = words[(codes + comptime!(2 * TILE) + row) as usize];
            pairs | (((third >> group) & 0x0101_0101u32) << 2u32)
        }
    } else {
        let low = words[(codes + group % 4u32 * TILE + row) as usize];
        let nibbles = (low >> (group / 4u32 * 4u32)) & 0x0f0f_0f0fu32;
        if comptime!(bits == 4) {
            nibbles
        } else {
            // The bits above the fourth: eight or four groups share a word.
            let n_high = comptime!(bits - 4);
            let per_word = comptime!(8 / n_high);
            let word = words[(codes + (4u32 + group / per_word) * TILE + row) as usize];
            let mask = comptime!(if n_high == 1 { 0x0101_0101u32 } else { 0x0303_0303u32 });
            nibbles | (((word >> (group % per_word * n_high)) & mask) << 4u32)
        }
    }
}

/// The weight of input `input` of a row of 16 numbers beside each other; the tile begins at word `tile`.
#[cube]
pub(crate) fn dense_weight(
    words: &Array<u32>,
    tile: u32,
    input: u32,
    row: u32,
    #[comptime] layout: WeightLayout,
) -> f32 {
    let idx = input * TILE + row;
    if comptime!(layout == WeightLayout::F32) {
        f32::reinterpret(words[(tile + idx) as usize])
    } else {
        let bits = (words[(tile + idx / 2u32) as usize] >> ((idx % 2u32) * 16u32)) & 0xffffu32;
        if comptime!(layout == WeightLayout::F16) { half(bits) } else { f32::reinterpret(bits << 16u32) }
    }
}
