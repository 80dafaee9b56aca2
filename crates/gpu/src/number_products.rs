//! Products on matrix units with weights that are 16-bit numbers rather than codes.
//!
//! Bytes of packed rows are whole numbers that either format has exactly, so that weights stay as the file has them and
//! products are exact; an instruction (`mma.m16n8k16` of the PTX ISA) adds them up in single precision. Which inputs
//! are multiplied together is told apart by lanes alone, so that they can be the four beside each other that a lane has of
//! the rows.

use ::half::{bf16, f16};
use cubecl::prelude::*;

use crate::matrix_units::MatrixUnitConfig;
use crate::packed::{BLOCK, TILE};
use crate::tiles::NumberFormat;

type Two = Const<2>;
type Four = Const<4>;

/// Pairs of words that a lane loads of a block: two outputs of eight inputs.
pub(crate) const N_PAIRS: u32 = 4;
/// Words from an input of a tile to the next.
const INPUT_WORDS: u32 = TILE / 2;

/// `load_tile` for numbers. Pairs `2 h` and `2 h + 1` are of the four inputs that the lane has in half `h`
/// of the block; each word is of one input.
#[cube]
pub(crate) fn load_numbers(
    words: &Array<u32>,
    tile: u32,
    block: u32,
    lane: u32,
    pairs: &mut Array<Vector<u32, Two>>,
    #[comptime] t: u32,
    #[comptime] config: MatrixUnitConfig,
) {
    let input = block * BLOCK + lane % 4u32 * 4u32;
    let first = (tile + input * INPUT_WORDS + lane / 4u32) as usize;
    #[unroll]
    for turn in 0..comptime!(config.n_turns) {
        let at = comptime!((turn * config.all_tiles() + t) * N_PAIRS);
        #[unroll]
        for i in 0..N_PAIRS {
            let input = comptime!(turn * config.n_planes * BLOCK + i / 2 * (BLOCK / 2) + i % 2 * 2);
            let further = comptime!((input * INPUT_WORDS) as usize);
            let mut pair = Vector::<u32, Two>::empty();
            pair[0usize] = words[first + further];
            pair[1usize] = words[first + comptime!(further + INPUT_WORDS as usize)];
            pairs[comptime!((at + i) as usize)] = pair;
        }
    }
}

/// Adds to `sums`, four from `first_sum` on, the products of the `of_turn`th tile with a tile of rows; `steps` are the scales
/// of the lane's two rows.
#[cube]
pub(crate) fn add_numbers(
    pairs: &Array<Vector<u32, Two>>,
    activations: Vector<u32, Four>,
    steps: &Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] of_turn: u32,
    #[comptime] first_step: u32,
    #[comptime] first_sum: u32,
    #[comptime] format: NumberFormat,
) {
    let mut upper = Array::<Vector<f32, Two>>::new(2usize);
    let mut lower = Array::<Vector<f32, Two>>::new(2usize);
    #[unroll]
    for output in 0..2usize {
        upper[output] = Vector::<f32, Two>::new(0.0f32);
        lower[output] = Vector::<f32, Two>::new(0.0f32);
    }
    #[unroll]
    for half in 0..2u32 {
        let first = comptime!((of_turn * N_PAIRS + 2 * half) as usize);
        let of_upper = activations[comptime!(half as usize)];
        let of_lower = activations[comptime!((2 + half) as usize)];
        match comptime!(format) {
            NumberFormat::F16 => {
                multiply::<f16>(pairs, of_upper, &mut upper, first, format);
                multiply::<f16>(pairs, of_lower, &mut lower, first, format);
            }
            NumberFormat::BF16 => {
                multiply::<bf16>(pairs, of_upper, &mut upper, first, format);
                multiply::<bf16>(pairs, of_lower, &mut lower, first, format);
            }
        }
    }
    #[unroll]
    for i in 0..4usize {
        let (output, column) = comptime!((i / 2, i % 2));
        let product = fma(256.0f32.runtime(), upper[output][column], lower[output][column]);
        let to = comptime!(first_sum as usize + i);
        sums[to] = fma(steps[comptime!(first_step as usize + column)], product, sums[to]);
    }
}

/// Adds the products of the weights in two pairs from `first` on with four bytes of each row.
#[cube]
fn multiply<N: Float>(
    pairs: &Array<Vector<u32, Two>>,
    bytes: u32,
    products: &mut Array<Vector<f32, Two>>,
    #[comptime] first: usize,
    #[comptime] format: NumberFormat,
) {
    let instruction = cmma::MmaDefinition::<N, N, f32>::new(16usize, 8usize, 16usize);
    let mut weights = Array::<Vector<N, Two>>::new(4usize);
    let mut rows = Array::<Vector<N, Two>>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        let pair = pairs[comptime!(first + i)];
        let (a, b) = (pair[0usize], pair[1usize]);
        let of_first = (a & 0xffffu32) | (b << 16u32);
        let of_second = (a >> 16u32) | (b & 0xffff_0000u32);
        weights[comptime!(2 * i)] = Vector::<N, Two>::reinterpret(of_first);
        weights[comptime!(2 * i + 1)] = Vector::<N, Two>::reinterpret(of_second);
        rows[i] = numbers_of::<N>(bytes >> comptime!(16 * i as u32), format);
    }
    instruction.execute_inplace(&weights, &rows, products);
}

/// The lower two signed bytes of a word. The bits of a byte, behind those of a power of two that is large enough, are that
/// power and the byte, from which the power is taken: exact.
#[cube]
fn numbers_of<N: Float>(bytes: u32, #[comptime] format: NumberFormat) -> Vector<N, Two> {
    let apart = (bytes & 0xffu32) | ((bytes & 0xff00u32) << 8u32);
    match comptime!(format) {
        NumberFormat::F16 => {
            // 1024 and the byte, whose sign stands for 128 more or less.
            let sum = Vector::<N, Two>::reinterpret((apart ^ 0x0080_0080u32) | 0x6400_6400u32);
            sum - Vector::<N, Two>::new(N::new(1152.0))
        }
        NumberFormat::BF16 => {
            // Seven bits behind 128, less 128 or, by the sign, 256.
            let sum = Vector::<N, Two>::reinterpret((apart & 0x007f_007fu32) | 0x4300_4300u32);
            sum - Vector::<N, Two>::reinterpret((apart & 0x0080_0080u32) | 0x4300_4300u32)
        }
    }
}
