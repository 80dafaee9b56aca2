//! Packed weights: the codes of a GGUF file, interleaved over 16 output rows.
//!
//! A *tile* holds 16 output rows, a *block* 32 inputs. Inside a block, byte `4 r + j` of code
//! group `g` belongs to row `r` and input `4 g + j`, so that one vector of 64 bytes meets four
//! inputs of all 16 rows. Codes of 4 bits share bytes: group `g` in the low and group `g + 4` in the
//! high nibble of vector `g`. The fifth bit of longer codes follows in a vector of its own, bit `g` of
//! each byte for group `g`; fifth and sixth bit in two vectors, four groups each. Scales stay in the precision of the file, so that the values are exactly those of
//! the format and no more bits are read than the file holds (Q4_K and Q5_K: 1/8 bit more).
//!
//! Codes of 2 and 3 bits share bytes by fours: group `g` at bit `2 (g / 2)` of vector `g % 2`, and the third
//! bit in a vector of its own.
//!
//! Value = `scale * (code - centre) + offset`, with scale and offset per block (Q6_K: scale per
//! half block).

use half::f16;

/// Inputs in a block.
pub const BLOCK: usize = 32;
/// Output rows in a tile.
pub const TILE: usize = 16;
/// Blocks of 32 in a super-block of the K formats.
pub(crate) const SUPER: usize = 8;

/// Bytes of the file that are packed between two reports.
const PART_BYTES: usize = 8 << 20;

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
pub(crate) enum ScaleLayout {
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

    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::Q2_K => 2,
            Self::Q3_K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Q6_K => 6,
            Self::Q8_0 => 8,
        }
    }

    pub(crate) const fn centre(self) -> i32 {
        match self {
            Self::Q3_K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q8_0 => 128,
            Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    pub(crate) const fn scale_layout(self) -> ScaleLayout {
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

/// Weights `[n_out, n_in]` of a linear layer, packed.
#[derive(Clone)]
pub struct PackedMatrix {
    pub(crate) format: QuantizedFormat,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix {:?} [{}, {}]", self.format, self.n_out, self.n_in)
    }
}

/// One block of one row: codes, and its scales as the layout wants them.
struct RowBlock {
    codes: [u8; BLOCK],
    /// f16 bits or bytes: the first and the second entry of the block's scales.
    scales: [u16; 2],
    /// f16 bits: the entries of the super-block.
    supers: [u16; 2],
}

impl PackedMatrix {
    /// Packs `file_bytes`, the rows of a tensor as they are in the file.
    ///
    /// # Panics
    /// When the bytes are not those of `n_out` rows of `n_in` values, whole blocks each.
    pub fn pack(
        format: QuantizedFormat,
        n_out: usize,
        n_in: usize,
        file_bytes: &[u8],
        pool: &crate::Pool,
    ) -> Self {
        Self::pack_in_parts(format, n_out, n_in, file_bytes, pool, &mut |_| ())
    }

    /// [`pack`](Self::pack), telling `on_packed` which bytes are not needed any more, part by part.
    ///
    /// # Panics
    /// When the bytes are not those of `n_out` rows of `n_in` values, whole blocks each.
    pub fn pack_in_parts(
        format: QuantizedFormat,
        n_out: usize,
        n_in: usize,
        file_bytes: &[u8],
        pool: &crate::Pool,
        on_packed: &mut dyn FnMut(std::ops::Range<usize>),
    ) -> Self {
        let (file_block, file_block_bytes) = format.file_block();
        assert!(n_in > 0 && n_in.is_multiple_of(file_block), "rows are whole blocks");
        let row_bytes = n_in / file_block * file_block_bytes;
        assert_eq!(file_bytes.len(), n_out * row_bytes, "the bytes of the tensor");
        let n_blocks = n_in / BLOCK;
        let tile_bytes = format.tile_bytes(n_blocks);
        let n_tiles = n_out.div_ceil(TILE);
        let mut bytes = vec![0u8; n_tiles * tile_bytes];
        let shared = crate::SharedSlice::new(&mut bytes);
        let n_tiles_per_part = (PART_BYTES / (TILE * row_bytes)).max(1);
        for first in (0..n_tiles).step_by(n_tiles_per_part) {
            let n = n_tiles_per_part.min(n_tiles - first);
            pool.run(n, &|idx| {
                let tile_idx = first + idx;
                // SAFETY: each tile belongs to one task.
                let tile = unsafe { shared.range_mut(tile_idx * tile_bytes, tile_bytes) };
                for row in 0..TILE.min(n_out - tile_idx * TILE) {
                    let start = (tile_idx * TILE + row) * row_bytes;
                    let row_file = &file_bytes[start..start + row_bytes];
                    for block in 0..n_blocks {
                        write_block(format, tile, row, block, &read_block(format, row_file, block));
                    }
                }
            });
            let end = ((first + n) * TILE).min(n_out) * row_bytes;
            on_packed(first * TILE * row_bytes..end);
        }
        Self { format, n_out, n_in, bytes }
    }

    /// Packs `values`, `[n_out, n_in]`, as Q8_0: eight bits, and a scale per 32.
    ///
    /// # Panics
    /// When `n_in` is not a multiple of 32, or the values are not `n_out` rows of it.
    pub fn quantize(n_out: usize, n_in: usize, values: &[f32], pool: &crate::Pool) -> Self {
        assert_eq!(values.len(), n_out * n_in, "the size of the matrix");
        let mut bytes = Vec::with_capacity(values.len() / BLOCK * QuantizedFormat::Q8_0.file_block().1);
        for block in values.chunks(BLOCK) {
            let max = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            let scale = f16::from_f32(max / 127.0);
            let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
            bytes.extend(scale.to_le_bytes());
            bytes
                .extend(block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
        }
        Self::pack(QuantizedFormat::Q8_0, n_out, n_in, &bytes, pool)
    }

    /// Number of output rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Size in memory.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(TILE)
    }

    pub(crate) fn tile(&self, tile_idx: usize) -> &[u8] {
        let tile_bytes = self.format.tile_bytes(self.n_in / BLOCK);
        &self.bytes[tile_idx * tile_bytes..(tile_idx + 1) * tile_bytes]
    }

    /// Writes the values of output row `row` to `out`, `[n_in]`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let tile = self.tile(row / TILE);
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let place = BlockPlace::of(self.format, block);
            let scales = place.scales(self.format, tile, row % TILE);
            let codes = &tile[place.codes..place.codes + self.format.code_bytes()];
            for (input, value) in out.iter_mut().enumerate() {
                let code =
                    i32::from(code(self.format.bits(), codes, row % TILE, input)) - self.format.centre();
                *value = scales.scale[input / 16] * code as f32 + scales.offset[input / 16];
            }
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
    let bits = format.bits();
    let codes = &mut tile[place.codes..place.codes + format.code_bytes()];
    for (input, &code) in content.codes.iter().enumerate() {
        let (group, at) = (input / 4, 4 * row + input % 4);
        if bits == 8 {
            codes[group * 64 + at] = code;
            continue;
        }
        if bits < 4 {
            codes[group % 2 * 64 + at] |= (code & 3) << (group / 2 * 2);
            if bits == 3 {
                codes[128 + at] |= code >> 2 << group;
            }
            continue;
        }
        let nibble = if group < 4 { code & 15 } else { (code & 15) << 4 };
        codes[group % 4 * 64 + at] |= nibble;
        if bits > 4 {
            let (vector, shift) = high_bits_at(bits, group);
            codes[256 + vector * 64 + at] |= code >> 4 << shift;
        }
    }
}

/// Reads block `block` of 32 values of a row in the layout of the file. The layouts are ggml's
/// (ggml-common.h and ggml-quants.c of llama.cpp).
fn read_block(format: QuantizedFormat, row: &[u8], block: usize) -> RowBlock {
    let (file_block, file_block_bytes) = format.file_block();
    let start = block * BLOCK / file_block * file_block_bytes;
    let file = &row[start..start + file_block_bytes];
    let u16_at = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let within = block % SUPER;
    let mut codes = [0u8; BLOCK];
    // Low nibbles are values 0 to 15, high nibbles 16 to 31.
    let nibble = |nibbles: &[u8], i: usize| if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 };
    let (scales, supers) = match format {
        QuantizedFormat::Q4_0 => {
            codes = std::array::from_fn(|i| nibble(&file[2..], i));
            ([u16_at(0), 0], [0, 0])
        }
        QuantizedFormat::Q4_1 => {
            codes = std::array::from_fn(|i| nibble(&file[4..], i));
            ([u16_at(0), u16_at(2)], [0, 0])
        }
        QuantizedFormat::Q5_0 | QuantizedFormat::Q5_1 => {
            let at = if format == QuantizedFormat::Q5_0 { 2 } else { 4 };
            let high = u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
            codes = std::array::from_fn(|i| nibble(&file[at + 4..], i) | ((high >> i & 1) as u8) << 4);
            ([u16_at(0), if at == 4 { u16_at(2) } else { 0 }], [0, 0])
        }
        QuantizedFormat::Q8_0 => {
            codes.iter_mut().zip(&file[2..]).for_each(|(code, &byte)| *code = byte ^ 0x80);
            ([u16_at(0), 0], [0, 0])
        }
        QuantizedFormat::Q4_K | QuantizedFormat::Q5_K => {
            let packed = &file[4..16];
            // Twelve bytes hold eight scales and eight minima of six bits.
            let (scale, min) = match within {
                0..=3 => (packed[within] & 63, packed[within + 4] & 63),
                _ => (
                    packed[within + 4] & 15 | packed[within - 4] >> 6 << 4,
                    packed[within + 4] >> 4 | packed[within] >> 6 << 4,
                ),
            };
            let nibbles_at = if format == QuantizedFormat::Q4_K { 16 } else { 48 };
            let nibbles = &file[nibbles_at + within / 2 * 32..][..32];
            for (i, code) in codes.iter_mut().enumerate() {
                *code = if within.is_multiple_of(2) { nibbles[i] & 15 } else { nibbles[i] >> 4 };
                if format == QuantizedFormat::Q5_K {
                    *code |= (file[16 + i] >> within & 1) << 4;
                }
            }
            ([scale.into(), min.into()], [u16_at(0), u16_at(2)])
        }
        QuantizedFormat::Q2_K => {
            let (halves, pairs) = (&file[within * 2..], &file[16 + within / 4 * 32..]);
            codes = std::array::from_fn(|i| pairs[i] >> (within % 4 * 2) & 3);
            ([halves[0].into(), halves[1].into()], [u16_at(80), u16_at(82)])
        }
        QuantizedFormat::Q3_K => {
            let pairs = &file[32 + within / 4 * 32..];
            codes = std::array::from_fn(|i| pairs[i] >> (within % 4 * 2) & 3 | (file[i] >> within & 1) << 2);
            // Twelve bytes hold sixteen scales of six bits: the low four bits of the first eight in low
            // nibbles, of the others in high ones, then the high two bits, four to a byte.
            let packed = &file[96..108];
            let scale = |half: usize| {
                let low = if half < 8 { packed[half] & 15 } else { packed[half - 8] >> 4 };
                let high = packed[8 + half % 4] >> (half / 4 * 2) & 3;
                u16::from((low | high << 4).wrapping_sub(32))
            };
            ([scale(within * 2), scale(within * 2 + 1)], [u16_at(108), 0])
        }
        QuantizedFormat::Q6_K => {
            // Two halves of 128 values; in each, four groups of 32 share low nibbles and high pairs.
            let (half, group) = (within / 4, within % 4);
            let low = &file[half * 64 + group % 2 * 32..][..32];
            let high = &file[128 + half * 32..][..32];
            for (i, code) in codes.iter_mut().enumerate() {
                let nibble = if group < 2 { low[i] & 15 } else { low[i] >> 4 };
                *code = nibble | (high[i] >> (2 * group) & 3) << 4;
            }
            let scales = &file[192 + within * 2..][..2];
            ([scales[0].into(), scales[1].into()], [u16_at(208), 0])
        }
    };
    RowBlock { codes, scales, supers }
}
