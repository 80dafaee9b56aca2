//! Tiles of weights as the lanes of an instruction of matrix units take them.
//!
//! Of the 32 lanes of a plane, lane `4 i + j` has the groups `j` and `j + 4` of a block, four inputs each, of the
//! outputs `2 i` and `2 i + 1`. What it needs of a block is asked of memory first, all of it (`load_tile`), and
//! decoded later, so that a kernel can have much on its way at once. That is quantized weights; numbers have
//! [`crate::number_products`].

use ::half::f16;
use cubecl::prelude::*;

use crate::matrix_units::MatrixUnitConfig;
use crate::number_products::N_PAIRS;
use crate::packed::{ScaleLayout, TILE, WeightLayout, block_start, scale_words, words_of_blocks};

type Pair = Vector<u32, Const<2>>;

/// How the weights of a matrix are laid out that matrix units take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TileLayout {
    Codes(CodeLayout),
    Numbers(NumberFormat),
}

/// Weights that are 16-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum NumberFormat {
    F16,
    BF16,
}

/// Quantized weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CodeLayout {
    pub(crate) bits: u32,
    /// The code of zero.
    pub(crate) centre: u32,
    pub(crate) scales: ScaleLayout,
}

impl TileLayout {
    /// None for weights that matrix units do not take.
    pub(crate) fn of(layout: WeightLayout) -> Option<Self> {
        match layout {
            WeightLayout::Quantized { bits, centre, scales } => {
                Some(Self::Codes(CodeLayout { bits, centre, scales }))
            }
            WeightLayout::F16 => Some(Self::Numbers(NumberFormat::F16)),
            WeightLayout::BF16 => Some(Self::Numbers(NumberFormat::BF16)),
            WeightLayout::F32 => None,
        }
    }

    /// Pairs of words with weights that a lane loads of a block.
    pub(crate) const fn n_pairs(self) -> u32 {
        match self {
            Self::Codes(layout) => layout.n_code_pairs(),
            Self::Numbers(_) => N_PAIRS,
        }
    }

    /// Words with scales that it loads.
    pub(crate) const fn n_scale_words(self) -> u32 {
        match self {
            Self::Codes(layout) => layout.n_scale_words(),
            Self::Numbers(_) => 0,
        }
    }

    /// [`CodeLayout::has_halves`].
    pub(crate) const fn has_halves(self) -> bool {
        match self {
            Self::Codes(layout) => layout.has_halves(),
            Self::Numbers(_) => false,
        }
    }

    /// [`CodeLayout::has_offset`].
    pub(crate) const fn has_offset(self) -> bool {
        match self {
            Self::Codes(layout) => layout.has_offset(),
            Self::Numbers(_) => false,
        }
    }
}

impl CodeLayout {
    /// Pairs of words with codes that a lane loads of a block.
    pub(crate) const fn n_code_pairs(self) -> u32 {
        match self.bits {
            2 | 4 => 1,
            3 | 5 | 8 => 2,
            _ => 3,
        }
    }

    /// Where the `i`th pair behind the first is, in groups: of codes of eight bits the second half's, of others the
    /// upper bits'.
    const fn high_group(self, i: u32) -> u32 {
        match self.bits {
            3 => 2,
            _ => 3 + i,
        }
    }

    /// Words with scales that it loads.
    pub(crate) const fn n_scale_words(self) -> u32 {
        match self.scales {
            ScaleLayout::Block => 1,
            ScaleLayout::BlockMin => 2,
            ScaleLayout::SuperHalf => 3,
            ScaleLayout::Super | ScaleLayout::SuperHalfMin => 4,
        }
    }

    /// The code of zero as a signed byte. Codes of eight bits are made signed by their highest.
    pub(crate) const fn signed_centre(self) -> u32 {
        if self.bits == 8 { self.centre - 128 } else { self.centre }
    }

    /// Whether both halves of a block have scales of their own.
    pub(crate) const fn has_halves(self) -> bool {
        matches!(self.scales, ScaleLayout::SuperHalf | ScaleLayout::SuperHalfMin)
    }

    /// Whether weights have an offset besides their scale.
    pub(crate) const fn has_offset(self) -> bool {
        !matches!(self.scales, ScaleLayout::Block | ScaleLayout::SuperHalf)
    }
}

/// Asks for what a lane needs of block `block` of the tile that begins at word `tile`, and of every `n_planes`th behind
/// it, of as many turns as `config` says: pairs with codes to `codes`, words with scales to `scales`, as tile `t` of the
/// `config`'s. `pairs` is `words`, counted in twos. Other turns are so many words further, which is part of an
/// instruction.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(crate) fn load_tile(
    words: &Array<u32>,
    pairs: &Array<Pair>,
    tile: u32,
    block: u32,
    lane: u32,
    codes: &mut Array<Pair>,
    scales: &mut Array<u32>,
    #[comptime] t: u32,
    #[comptime] layout: CodeLayout,
    #[comptime] config: MatrixUnitConfig,
) {
    let outputs = lane / 4u32;
    let group = lane % 4u32;
    let start = block_start(tile, block, layout.bits, layout.scales);
    let low = if comptime!(layout.bits < 4) { group % 2u32 } else { group };
    let first_pair = (start.at + comptime!(scale_words(layout.scales))) / 2u32 + outputs;
    let low_pair = (first_pair + low * comptime!(TILE / 2)) as usize;
    let high_pair = first_pair as usize;
    // Numbers in half precision of both outputs share a word, bytes those of four.
    let has_bytes = comptime!(layout.n_scale_words() > 2);
    let halves = (if comptime!(has_bytes) { start.supers } else { start.at } + outputs) as usize;
    let bytes = (start.at + outputs / 2u32) as usize;
    #[unroll]
    for turn in 0..comptime!(config.n_turns) {
        let of_turn = comptime!(turn * config.all_tiles() + t);
        let codes_at = comptime!((of_turn * layout.n_code_pairs()) as usize);
        let scales_at = comptime!((of_turn * layout.n_scale_words()) as usize);
        let further =
            comptime!((turn * words_of_blocks(config.n_planes, layout.bits, layout.scales)) as usize);
        codes[codes_at] = pairs[low_pair + comptime!(further / 2)];
        #[unroll]
        for i in 1..comptime!(layout.n_code_pairs()) {
            let group = comptime!((layout.high_group(i) * TILE / 2) as usize + further / 2);
            // Codes of eight bits have a word for each group.
            let pair = if comptime!(layout.bits == 8) { low_pair } else { high_pair };
            codes[comptime!(codes_at + i as usize)] = pairs[pair + group];
        }
        scales[scales_at] = words[halves + further];
        if comptime!(layout.has_offset()) {
            scales[comptime!(scales_at + 1)] = words[halves + comptime!(further + TILE as usize / 2)];
        }
        if comptime!(has_bytes) {
            let first = comptime!(scales_at + layout.n_scale_words() as usize - 2);
            scales[first] = words[bytes + further];
            scales[comptime!(first + 1)] = words[bytes + comptime!(further + TILE as usize / 4)];
        }
    }
}

/// Four codes of `second` of the lane's two outputs, of the group that it has in a `half` of the block, a signed byte
/// each.
#[cube]
pub(crate) fn decode_codes(
    codes: &Array<Pair>,
    lane: u32,
    #[comptime] of_turn: u32,
    #[comptime] half: u32,
    #[comptime] second: u32,
    #[comptime] layout: CodeLayout,
) -> u32 {
    let group = lane % 4u32;
    let at = comptime!((of_turn * layout.n_code_pairs()) as usize);
    let second = comptime!(second as usize);
    let low = codes[at][second];
    // A shift, but one that compilers do not take apart byte by byte.
    let nibbles = if comptime!(half == 1) { u32::mul_hi(low, 1u32 << 28u32) } else { low } & 0x0f0f_0f0fu32;
    match comptime!(layout.bits) {
        2 | 3 => {
            let twos = (low >> (group / 2u32 * 2u32 + comptime!(4 * half))) & 0x0303_0303u32;
            if comptime!(layout.bits == 3) {
                let third = codes[comptime!(at + 1)][second] >> (group + comptime!(4 * half));
                twos | ((third & 0x0101_0101u32) << 2u32)
            } else {
                twos
            }
        }
        4 => nibbles,
        5 => {
            let fifth = codes[comptime!(at + 1)][second] >> (group + comptime!(4 * half));
            nibbles | ((fifth & 0x0101_0101u32) << 4u32)
        }
        6 => {
            let high = codes[comptime!(at + 1 + half as usize)][second] >> (group * 2u32);
            nibbles | ((high & 0x0303_0303u32) << 4u32)
        }
        _ => codes[comptime!(at + half as usize)][second] ^ 0x8080_8080u32,
    }
}

/// Scale and offset of `second` of the lane's two outputs in a `half` of the block.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct HalfScale {
    pub(crate) scale: f32,
    pub(crate) offset: f32,
}

/// Decodes what `load_tile` left as the `of_turn`th tile.
#[cube]
pub(crate) fn decode_scales(
    scales: &Array<u32>,
    lane: u32,
    #[comptime] of_turn: u32,
    #[comptime] half: u32,
    #[comptime] second: u32,
    #[comptime] layout: CodeLayout,
) -> HalfScale {
    let at = comptime!((of_turn * layout.n_scale_words()) as usize);
    let d = half_of(scales[at], second);
    let bytes = comptime!((at + layout.n_scale_words() as usize).saturating_sub(2));
    match comptime!(layout.scales) {
        ScaleLayout::Block => HalfScale { scale: d, offset: 0.0f32 },
        ScaleLayout::BlockMin => HalfScale { scale: d, offset: half_of(scales[comptime!(at + 1)], second) },
        ScaleLayout::Super => {
            let min = half_of(scales[comptime!(at + 1)], second);
            let scale = d * f32::cast_from(byte_of(scales[bytes], lane, second));
            let offset = -(min * f32::cast_from(byte_of(scales[comptime!(bytes + 1)], lane, second)));
            HalfScale { scale, offset }
        }
        ScaleLayout::SuperHalf => {
            let byte = byte_of(scales[comptime!(bytes + half as usize)], lane, second);
            let signed = (i32::cast_from(byte) ^ 128i32) - 128i32;
            HalfScale { scale: d * f32::cast_from(signed), offset: 0.0f32 }
        }
        ScaleLayout::SuperHalfMin => {
            let min = half_of(scales[comptime!(at + 1)], second);
            let byte = byte_of(scales[comptime!(bytes + half as usize)], lane, second);
            let scale = d * f32::cast_from(byte & 15u32);
            HalfScale { scale, offset: -(min * f32::cast_from(byte >> 4u32)) }
        }
    }
}

/// One of the two numbers in half precision of a word.
#[cube]
fn half_of(word: u32, #[comptime] second: u32) -> f32 {
    let short = u16::cast_from((word >> comptime!(16 * second)) & 0xffffu32);
    f32::cast_from(f16::reinterpret(short))
}

/// The byte of one of the lane's two outputs in a word of four.
#[cube]
fn byte_of(word: u32, lane: u32, #[comptime] second: u32) -> u32 {
    (word >> (lane / 4u32 % 2u32 * 16u32 + comptime!(8 * second))) & 255u32
}
