//! Quantized weights: codes interleaved over 16 output rows.
//!
//! Inside a block of 32 inputs, byte `4 r + j` of code
//! group `g` belongs to row `r` and input `4 g + j`, so that one vector of 64 bytes meets four
//! inputs of all 16 rows. Codes of 4 bits share bytes: group `g` in the low and group `g + 4` in the
//! high nibble of vector `g`. The fifth bit of longer codes follows in a vector of its own, bit `g` of
//! each byte for group `g`; fifth and sixth bit in two vectors, four groups each. Scales stay in the precision of
//! the file, so that the values are exactly those of the format and no more bits are read than the file holds
//! (Q4_K and Q5_K: 1/8 bit more).
//!
//! Codes of 2 and 3 bits share bytes by fours: group `g` at bit `2 (g / 2)` of vector `g % 2`, and the third
//! bit in a vector of its own.
//!
//! Value = `scale * (code - centre) + offset`, with scale and offset per block (Q6_K: scale per
//! half block).

use half::f16;

use super::file_block::{RowBlock, read_block};
use super::{BLOCK, TILE};

/// Blocks of 32 in a super-block of the K formats.
pub(crate) const SUPER: usize = 8;

/// A quantized format of GGUF files that can be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)] // The names are ggml's.
pub enum QuantizedFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// How the scales of a format are laid out in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleLayout {
    /// Per block: f16 scale of each row.
    Block,
    /// Per block: f16 scale, then f16 minimum of each row.
    BlockMin,
    /// Per super-block: f16 `d`, then f16 `dmin` of each row; per block: u8 scale, then u8 minimum.
    /// Scale = d * u8, offset = -dmin * u8.
    Super,
    /// Per super-block: f16 `d` of each row; per block: i8 scale of each row for the first half,
    /// then for the second.
    SuperHalf,
    /// Per super-block: f16 `d`, then f16 `dmin` of each row; per block: a byte of each row for the first
    /// half, then for the second, with the scale in the low and the minimum in the high four bits.
    SuperHalfMin,
}

impl QuantizedFormat {
    /// All formats, in the order of their declaration: kernels are specialised on the index.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Q2_K => 2,
            Self::Q3_K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Q6_K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// The code of zero.
    pub const fn centre(self) -> i32 {
        match self {
            Self::Q3_K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q8_0 => 128,
            Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    /// Where the scales are in a tile.
    pub const fn scale_layout(self) -> ScaleLayout {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => ScaleLayout::Block,
            Self::Q4_1 | Self::Q5_1 => ScaleLayout::BlockMin,
            Self::Q4_K | Self::Q5_K => ScaleLayout::Super,
            Self::Q3_K | Self::Q6_K => ScaleLayout::SuperHalf,
            Self::Q2_K => ScaleLayout::SuperHalfMin,
        }
    }

    pub(crate) const fn has_offset(self) -> bool {
        matches!(self.scale_layout(), ScaleLayout::BlockMin | ScaleLayout::Super | ScaleLayout::SuperHalfMin)
    }

    pub(crate) const fn has_half_scales(self) -> bool {
        matches!(self.scale_layout(), ScaleLayout::SuperHalf | ScaleLayout::SuperHalfMin)
    }

    /// Values per block of the file, and its bytes.
    pub fn file_block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of the codes of a block in a tile.
    pub(crate) const fn code_bytes(self) -> usize {
        TILE * BLOCK * self.bits() / 8
    }

    /// Bytes before the blocks of a super-block in a tile.
    pub(crate) const fn super_bytes(self) -> usize {
        match self.scale_layout() {
            ScaleLayout::Block | ScaleLayout::BlockMin => 0,
            ScaleLayout::Super | ScaleLayout::SuperHalfMin => 2 * 2 * TILE,
            ScaleLayout::SuperHalf => 2 * TILE,
        }
    }

    /// Bytes of the scales of a block in a tile.
    pub(crate) const fn scale_bytes(self) -> usize {
        match self.scale_layout() {
            ScaleLayout::Block => 2 * TILE,
            ScaleLayout::BlockMin => 2 * 2 * TILE,
            ScaleLayout::Super | ScaleLayout::SuperHalf | ScaleLayout::SuperHalfMin => 2 * TILE,
        }
    }

    /// Bytes of a tile of `n_blocks` blocks.
    pub(crate) const fn tile_bytes(self, n_blocks: usize) -> usize {
        n_blocks * (self.scale_bytes() + self.code_bytes()) + n_blocks.div_ceil(SUPER) * self.super_bytes()
    }
}

/// Packs the bytes of one row of the file as row `row` of a tile. Whether all of its scales are numbers.
pub(super) fn pack_row(
    format: QuantizedFormat,
    file_row: &[u8],
    n_in: usize,
    row: usize,
    tile: &mut [u8],
) -> bool {
    let mut is_finite = true;
    for block in 0..n_in / BLOCK {
        let content = read_block(format, file_row, block);
        // Of formats with super-blocks only these have scales that are half-precision numbers.
        let halves = if format.super_bytes() > 0 { content.supers } else { content.scales };
        is_finite &= halves.iter().all(|&bits| f16::from_bits(bits).is_finite());
        write_block(format, tile, row, block, &content);
    }
    is_finite
}

/// Writes the values of row `row` of a tile to `out`, `[n_in]`.
pub(super) fn dequantize_row(format: QuantizedFormat, tile: &[u8], row: usize, out: &mut [f32]) {
    for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let place = BlockPlace::of(format, block);
        let scales = place.scales(format, tile, row);
        let codes = &tile[place.codes..place.codes + format.code_bytes()];
        for (input, value) in out.iter_mut().enumerate() {
            let code = i32::from(code(format.bits(), codes, row, input)) - format.centre();
            *value = scales.scale[input / 16] * code as f32 + scales.offset[input / 16];
        }
    }
}

/// Scale and offset of each half block, of one row.
pub(crate) struct BlockScales {
    pub(crate) scale: [f32; 2],
    pub(crate) offset: [f32; 2],
}

/// Where the parts of a block are in its tile.
#[derive(Clone, Copy)]
pub(crate) struct BlockPlace {
    pub(crate) supers: usize,
    pub(crate) scales: usize,
    pub(crate) codes: usize,
}

impl BlockPlace {
    #[inline(always)]
    pub(crate) const fn of(format: QuantizedFormat, block: usize) -> Self {
        let block_bytes = format.scale_bytes() + format.code_bytes();
        let super_bytes = format.super_bytes() + SUPER * block_bytes;
        let (super_idx, within) = (block / SUPER, block % SUPER);
        let supers = super_idx * super_bytes;
        let scales = supers + format.super_bytes() + within * block_bytes;
        Self { supers, scales, codes: scales + format.scale_bytes() }
    }

    #[inline(always)]
    pub(crate) fn scales(&self, format: QuantizedFormat, tile: &[u8], row: usize) -> BlockScales {
        let half_at = |start: usize| {
            let at = start + 2 * row;
            f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32()
        };
        let byte_at = |start: usize| tile[start + row];
        match format.scale_layout() {
            ScaleLayout::Block => BlockScales { scale: [half_at(self.scales); 2], offset: [0.0; 2] },
            ScaleLayout::BlockMin => {
                BlockScales { scale: [half_at(self.scales); 2], offset: [half_at(self.scales + 2 * TILE); 2] }
            }
            ScaleLayout::Super => BlockScales {
                scale: [half_at(self.supers) * f32::from(byte_at(self.scales)); 2],
                offset: [-(half_at(self.supers + 2 * TILE) * f32::from(byte_at(self.scales + TILE))); 2],
            },
            ScaleLayout::SuperHalf => {
                let d = half_at(self.supers);
                let scale = |start: usize| d * f32::from(byte_at(start) as i8);
                BlockScales { scale: [scale(self.scales), scale(self.scales + TILE)], offset: [0.0; 2] }
            }
            ScaleLayout::SuperHalfMin => {
                let (d, d_min) = (half_at(self.supers), half_at(self.supers + 2 * TILE));
                let halves = [byte_at(self.scales), byte_at(self.scales + TILE)];
                BlockScales {
                    scale: halves.map(|byte| d * f32::from(byte & 15)),
                    offset: halves.map(|byte| -(d_min * f32::from(byte >> 4))),
                }
            }
        }
    }
}

/// The code of `input` of `row` in the codes of a block.
#[inline(always)]
pub(crate) fn code(bits: usize, codes: &[u8], row: usize, input: usize) -> u8 {
    let (group, at) = (input / 4, 4 * row + input % 4);
    if bits == 8 {
        return codes[group * 64 + at];
    }
    if bits < 4 {
        let pair = codes[group % 2 * 64 + at] >> (group / 2 * 2) & 3;
        return if bits == 2 { pair } else { pair | (codes[128 + at] >> group & 1) << 2 };
    }
    let byte = codes[group % 4 * 64 + at];
    let nibble = if group < 4 { byte & 15 } else { byte >> 4 };
    if bits == 4 {
        return nibble;
    }
    let (vector, shift) = high_bits_at(bits, group);
    nibble | (codes[256 + vector * 64 + at] >> shift & ((1 << (bits - 4)) - 1)) << 4
}

/// The vector that holds the bits of a group above the fourth, and the lowest of them in each byte.
#[inline(always)]
pub(crate) const fn high_bits_at(bits: usize, group: usize) -> (usize, usize) {
    let groups_per_vector = 8 / (bits - 4);
    (group / groups_per_vector, group % groups_per_vector * (bits - 4))
}

fn write_block(format: QuantizedFormat, tile: &mut [u8], row: usize, block: usize, content: &RowBlock) {
    let place = BlockPlace::of(format, block);
    let mut half = |start: usize, bits: u16| {
        tile[start + 2 * row..start + 2 * row + 2].copy_from_slice(&bits.to_le_bytes());
    };
    match format.scale_layout() {
        ScaleLayout::Block => half(place.scales, content.scales[0]),
        ScaleLayout::BlockMin => {
            half(place.scales, content.scales[0]);
            half(place.scales + 2 * TILE, content.scales[1]);
        }
        ScaleLayout::Super | ScaleLayout::SuperHalfMin => {
            half(place.supers, content.supers[0]);
            half(place.supers + 2 * TILE, content.supers[1]);
        }
        ScaleLayout::SuperHalf => half(place.supers, content.supers[0]),
    }
    if format.super_bytes() > 0 {
        tile[place.scales + row] = content.scales[0] as u8;
        tile[place.scales + TILE + row] = content.scales[1] as u8;
    }
    let codes = &mut tile[place.codes..place.codes + format.code_bytes()];
    // A group is four codes, a byte each: shifts move all four, which never reach into their neighbour.
    let groups: [u32; BLOCK / 4] = std::array::from_fn(|group| {
        let codes = &content.codes[4 * group..4 * group + 4];
        u32::from_le_bytes([codes[0], codes[1], codes[2], codes[3]])
    });
    let low = |group: usize, n_bits: usize| groups[group] & (0x0101_0101 * ((1 << n_bits) - 1));
    let high = |group: usize, from: usize, n_bits: usize| {
        groups[group] >> from & (0x0101_0101 * ((1 << n_bits) - 1))
    };
    let mut write = |vector: usize, word: u32| {
        let at = vector * 4 * TILE + 4 * row;
        codes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    };
    match format.bits() {
        8 => (0..8).for_each(|group| write(group, groups[group])),
        2 | 3 => {
            for vector in 0..2 {
                write(vector, (0..4).fold(0, |word, i| word | low(2 * i + vector, 2) << (2 * i)));
            }
            if format.bits() == 3 {
                write(2, (0..8).fold(0, |word, group| word | high(group, 2, 1) << group));
            }
        }
        bits => {
            (0..4).for_each(|group| write(group, low(group, 4) | low(group + 4, 4) << 4));
            // The bits above the fourth.
            let n_bits = bits - 4;
            for vector in 0..n_bits {
                let groups = (0..8).filter(|&group| high_bits_at(bits, group).0 == vector);
                let add = |word, group| word | high(group, 4, n_bits) << high_bits_at(bits, group).1;
                write(4 + vector, groups.fold(0, add));
            }
        }
    }
}
