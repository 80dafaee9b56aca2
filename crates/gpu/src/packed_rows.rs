//! Rows of activations as matrix units take them: whole numbers of 16 bits, with a scale for each block of 32.
//!
//! A number is `scale * (256 upper + lower)`, both signed bytes, and the largest of a block is ±32512. So products with
//! codes of weights are sums of whole numbers, which are exact in any order, and what is lost is half a step of 1 in
//! 65024 of the block's largest number.
//!
//! A block has [`RECORD_WORDS`] words. Of its eight groups of four numbers, group `j` has its upper bytes in word
//! `4 (j % 4) + j / 4` and its lower bytes two words behind, which is how lanes of an instruction want them. Then come
//! the scale, the sum of all whole numbers, that of the first half of them, and the sum of the squares of the
//! numbers before their gain: a norm is a factor that products are given at their end.

use cubecl::prelude::*;

use crate::packed::BLOCK;

/// Words of a block of a row.
pub(crate) const RECORD_WORDS: u32 = 20;
/// Words in it before its scale.
pub(crate) const CODE_WORDS: u32 = 16;
/// Units of a cube that packs rows.
pub(crate) const PACK_UNITS: u32 = 128;
/// Of whole numbers.
const LARGEST: f32 = 32512.0;
/// Scales of less are none: their inverse would not be finite.
const SMALLEST: f32 = 1.0e-30;

/// Words of `n_rows` packed rows of `width` numbers.
pub(crate) fn packed_words(n_rows: usize, width: usize) -> usize {
    n_rows * width / BLOCK as usize * RECORD_WORDS as usize
}

/// Packs group `group` of the block that is number `record`, if it `is_one`; `squares` is the sum of its numbers'
/// squares. Eight lanes beside each other have the groups of a block, and all lanes of a plane come here together.
#[cube]
pub(crate) fn pack_group(
    values: &Array<f32>,
    squares: f32,
    out: &mut Array<u32>,
    record: u32,
    group: u32,
    is_one: bool,
) {
    // By their bits, so that a number that is none is larger than any.
    let mut bits = 0u32;
    #[unroll]
    for i in 0..4usize {
        bits = u32::max(bits, u32::reinterpret(values[i]) & 0x7fff_ffffu32);
    }
    bits = u32::max(bits, plane_shuffle_xor(bits, 1u32));
    bits = u32::max(bits, plane_shuffle_xor(bits, 2u32));
    bits = u32::max(bits, plane_shuffle_xor(bits, 4u32));
    let largest = f32::reinterpret(bits);
    let inverse = select(largest > SMALLEST, LARGEST / largest, 0.0f32.runtime());
    let mut upper = 0u32;
    let mut lower = 0u32;
    let mut sum = 0i32;
    #[unroll]
    for i in 0..4u32 {
        let code = i32::cast_from(f32::round(values[comptime!(i as usize)] * inverse));
        let of_upper = (code + 128i32) >> 8i32;
        sum += code;
        upper |= (u32::reinterpret(of_upper) & 255u32) << comptime!(8 * i);
        lower |= (u32::reinterpret(code) & 255u32) << comptime!(8 * i);
    }
    sum += plane_shuffle_xor(sum, 1u32);
    sum += plane_shuffle_xor(sum, 2u32);
    let total = sum + plane_shuffle_xor(sum, 4u32);
    let mut squares = squares;
    squares += plane_shuffle_xor(squares, 1u32);
    squares += plane_shuffle_xor(squares, 2u32);
    squares += plane_shuffle_xor(squares, 4u32);
    if is_one {
        let start = record * RECORD_WORDS;
        let at = start + group % 4u32 * 4u32 + group / 4u32;
        out[at as usize] = upper;
        out[(at + 2u32) as usize] = lower;
        if group == 0u32 {
            let at = start + CODE_WORDS;
            out[at as usize] = u32::reinterpret(largest / LARGEST);
            out[(at + 1u32) as usize] = u32::reinterpret(total);
            out[(at + 2u32) as usize] = u32::reinterpret(sum);
            out[(at + 3u32) as usize] = u32::reinterpret(squares);
        }
    }
}

/// How rows are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PackConfig {
    /// Adds the residual to the rows first, and keeps the sum.
    pub(crate) has_residual: bool,
    /// Takes the rows that `selection` names from `first_selected` on, and leaves the rows as they are.
    pub(crate) selects: bool,
    /// Multiplies what is packed by `gain`.
    pub(crate) has_gain: bool,
}

/// `rows += residual`, then packs `rows * gain` with the squares of the rows. A unit takes four numbers; `n_groups` is
/// how many a row has.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn pack_rows(
    residual: &Array<Vector<f32, Const<4>>>,
    rows: &mut Array<Vector<f32, Const<4>>>,
    gain: &Array<Vector<f32, Const<4>>>,
    selection: &Array<u32>,
    out: &mut Array<u32>,
    n_groups: u32,
    first_selected: u32,
    #[comptime] config: PackConfig,
) {
    let row = if comptime!(config.selects) {
        selection[(first_selected + CUBE_POS_Y) as usize]
    } else {
        CUBE_POS_Y
    };
    let wanted = CUBE_POS_X * PACK_UNITS + UNIT_POS;
    let is_one = wanted < n_groups;
    let i = u32::min(wanted, n_groups - 1u32);
    let at = (row * n_groups + i) as usize;
    let mut value = rows[at];
    if comptime!(config.has_residual) {
        value += residual[at];
        if !config.selects && is_one {
            rows[at] = value;
        }
    }
    let mut values = Array::<f32>::new(4usize);
    #[unroll]
    for j in 0..4usize {
        values[j] = value[j];
    }
    let squares = squares_of(&values);
    if comptime!(config.has_gain) {
        let factors = gain[i as usize];
        #[unroll]
        for j in 0..4usize {
            values[j] *= factors[j];
        }
    }
    let record = CUBE_POS_Y * (n_groups / 8u32) + i / 8u32;
    pack_group(&values, squares, out, record, i % 8u32, is_one);
}

/// The sum of the squares of four numbers.
#[cube]
pub(crate) fn squares_of(values: &Array<f32>) -> f32 {
    let mut squares = values[0] * values[0];
    #[unroll]
    for i in 1..4usize {
        squares = fma(values[i], values[i], squares);
    }
    squares
}
