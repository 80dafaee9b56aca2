//! The product of a tile of weights with up to eight rows, written once over the vectors of a tier.

use super::RowsView;
use crate::activations::{START_4, START_8, START_16, START_32, START_128};
use crate::lanes::{AHEAD, Lanes};
use crate::packed::quantized::{SUPER, ScaleLayout, high_bits_at};
use crate::{BLOCK, QuantizedFormat, TILE};

/// Runs the body for rows 0 to `n - 1`, written out: with an index that the compiler knows, the
/// running sums of a tile stay in registers. In a loop they went through memory, which cost more
/// than the products.
macro_rules! for_each_row {
    ($n:ident, $row:ident, $body:block) => {
        for_each_row!(@ $n, $row, $body, 0, 1, 2, 3, 4, 5, 6, 7)
    };
    (@ $n:ident, $row:ident, $body:block, $($idx:literal),*) => {
        $(if $n > $idx {
            const $row: usize = $idx;
            $body
        })*
    };
}

/// What a tier multiplies bytes with.
///
/// # Safety
/// As of [`Lanes`]: the methods may only be called where the processor has the instructions, in functions
/// that enable them. Pointers must be valid for what the name says, for as many rows as `Floats` has lanes.
pub(super) unsafe trait TileVectors {
    /// A number for each of the rows that share a vector; how many these are divides a tile.
    type Floats: Lanes;
    /// An integer for each of these rows.
    type Sums: Copy;
    /// Four codes of each of these rows.
    type Codes: Copy;
    /// The 32 activations of a block.
    type Activations: Copy;
    /// Whether codes of eight bits are centred and multiplied as signed numbers. Otherwise sums start from
    /// what the centre contributes, as they do for shorter codes.
    const CENTRES_BYTES: bool;

    unsafe fn unsigned_bytes(at: *const u8) -> Self::Floats;
    unsafe fn signed_bytes(at: *const u8) -> Self::Floats;
    /// Of each byte the low four bits, and the high four.
    unsafe fn nibbles(at: *const u8) -> [Self::Floats; 2];

    unsafe fn codes(at: *const u8) -> Self::Codes;
    /// Codes of eight bits, centred where the tier wants them so.
    unsafe fn byte_codes(at: *const u8) -> Self::Codes;
    unsafe fn and(codes: Self::Codes, mask: u8) -> Self::Codes;
    unsafe fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes;
    /// Moves bits up by `by`. Low bits may come from a neighbouring byte.
    unsafe fn shift_left(codes: Self::Codes, by: usize) -> Self::Codes;
    /// Moves bits down by `by`. High bits may come from a neighbouring byte.
    unsafe fn shift_right(codes: Self::Codes, by: usize) -> Self::Codes;
    /// The low four bits of `low` and the others of `high`, those within `mask`.
    unsafe fn join(low: Self::Codes, high: Self::Codes, mask: u8) -> Self::Codes;

    unsafe fn activations(at: *const i8) -> Self::Activations;
    unsafe fn splat(sum: i32) -> Self::Sums;
    unsafe fn add(a: Self::Sums, b: Self::Sums) -> Self::Sums;
    unsafe fn to_floats(sums: Self::Sums) -> Self::Floats;
    /// `sums` plus the products of half a block, four groups of codes of at most `BITS` bits. Those of eight
    /// bits are [`byte_codes`](Self::byte_codes).
    unsafe fn dot<const BITS: usize>(
        sums: Self::Sums,
        codes: [Self::Codes; 4],
        activations: Self::Activations,
        half: usize,
    ) -> Self::Sums;
}

/// Adds the outputs of a tile for `N` rows to `out`. `FORMAT` is an index of [`QuantizedFormat::ALL`].
///
/// # Safety
/// See [`TileVectors`]. `tile` must hold the bytes of the format for `rows.width / 32` blocks, `rows` and
/// `out` must hold `N` rows.
#[inline(always)]
pub(super) unsafe fn tile_rows<V: TileVectors, const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    let format = const { QuantizedFormat::ALL[FORMAT] };
    let n_blocks = rows.width / BLOCK;
    let block_bytes = format.scale_bytes() + format.code_bytes();
    let mut at = tile.as_ptr();
    for first in (0..n_blocks).step_by(SUPER) {
        let blocks = first..n_blocks.min(first + SUPER);
        // A vector may hold fewer rows than a tile has. The parts take turns at a few blocks, which stay in
        // the fastest cache meanwhile.
        for first_lane in (0..TILE).step_by(V::Floats::N) {
            // SAFETY: the reads follow the layout of the tile, block by block, and end with it; reads of
            // activations are within rows 0 to N - 1 of `rows`; the lanes are within those of `out`.
            unsafe {
                let mut results = [V::Floats::splat(0.0); N];
                for row in 0..N {
                    results[row] = V::Floats::load(out[row].as_ptr().add(first_lane));
                }
                let mut supers = [V::Floats::splat(0.0); 2];
                if format.super_bytes() > 0 {
                    supers[0] = V::Floats::load_f16(at.add(2 * first_lane));
                }
                if format.super_bytes() > 2 * TILE {
                    supers[1] = V::Floats::load_f16(at.add(2 * (TILE + first_lane)));
                }
                let mut at = at.add(format.super_bytes());
                for block in blocks.clone() {
                    if first_lane == 0 {
                        for line in 0..format.code_bytes().div_ceil(64) + 1 {
                            V::Floats::prefetch(at.wrapping_add(AHEAD + line * 64));
                        }
                    }
                    let Scales { scale, offset } = scales::<V, FORMAT>(supers, at, first_lane);
                    let codes = codes::<V, FORMAT>(at.add(format.scale_bytes() + 4 * first_lane));
                    for_each_row!(N, ROW, {
                        let statistics = &*rows.blocks.as_ptr().add(ROW * n_blocks + block);
                        let mut sums = [V::splat(0); 2];
                        if let Some(start) = start::<V>(format) {
                            sums[0] = V::splat(statistics.starts[start]);
                            if format.has_half_scales() {
                                sums[1] = V::splat(statistics.starts[start + 1]);
                            }
                        }
                        // With few rows two chains hide the latency of the products; with more, rows do.
                        let has_two_chains = format.has_half_scales() || N < 4;
                        let activations = rows.codes.as_ptr().add(ROW * rows.width + block * BLOCK);
                        let activations = V::activations(activations);
                        for half in 0..2 {
                            let chain = if has_two_chains { half } else { 0 };
                            sums[chain] = dot::<V, FORMAT>(sums[chain], codes[half], activations, half);
                        }
                        let activation_scale = V::Floats::splat(statistics.scale);
                        if format.has_half_scales() {
                            for half in 0..2 {
                                let sum = V::to_floats(sums[half]).mul(activation_scale);
                                results[ROW] = sum.mul_add(scale[half], results[ROW]);
                            }
                        } else {
                            let sum = if has_two_chains { V::add(sums[0], sums[1]) } else { sums[0] };
                            let sum = V::to_floats(sum).mul(activation_scale);
                            results[ROW] = sum.mul_add(scale[0], results[ROW]);
                        }
                        if format.has_offset() && format.has_half_scales() {
                            for half in 0..2 {
                                let sum = V::Floats::splat(statistics.scaled_half_sums[half]);
                                results[ROW] = sum.mul_add(offset[half], results[ROW]);
                            }
                        } else if format.has_offset() {
                            let sum = V::Floats::splat(statistics.scaled_sum);
                            results[ROW] = sum.mul_add(offset[0], results[ROW]);
                        }
                    });
                    at = at.add(block_bytes);
                }
                for row in 0..N {
                    results[row].store(out[row].as_mut_ptr().add(first_lane));
                }
            }
        }
        at = at.wrapping_add(format.super_bytes() + blocks.len() * block_bytes);
    }
}

/// Scale and offset of both halves of a block; those of the second are unused where they are the first's.
struct Scales<F> {
    scale: [F; 2],
    offset: [F; 2],
}

/// # Safety
/// See [`tile_rows`]; `at` is the start of a block.
#[inline(always)]
unsafe fn scales<V: TileVectors, const FORMAT: usize>(
    supers: [V::Floats; 2],
    at: *const u8,
    first_lane: usize,
) -> Scales<V::Floats> {
    let [d, d_min] = supers;
    // SAFETY: the caller's promise.
    unsafe {
        let zero = V::Floats::splat(0.0);
        let (bytes, halves) = (at.add(first_lane), at.add(2 * first_lane));
        match const { QuantizedFormat::ALL[FORMAT].scale_layout() } {
            ScaleLayout::Block => Scales { scale: [V::Floats::load_f16(halves), zero], offset: [zero; 2] },
            ScaleLayout::BlockMin => Scales {
                scale: [V::Floats::load_f16(halves), zero],
                offset: [V::Floats::load_f16(halves.add(2 * TILE)), zero],
            },
            ScaleLayout::Super => Scales {
                scale: [d.mul(V::unsigned_bytes(bytes)), zero],
                offset: [d_min.mul(V::unsigned_bytes(bytes.add(TILE))).negate(), zero],
            },
            ScaleLayout::SuperHalf => Scales {
                scale: [d.mul(V::signed_bytes(bytes)), d.mul(V::signed_bytes(bytes.add(TILE)))],
                offset: [zero; 2],
            },
            ScaleLayout::SuperHalfMin => {
                let [first, second] = [V::nibbles(bytes), V::nibbles(bytes.add(TILE))];
                Scales {
                    scale: [d.mul(first[0]), d.mul(second[0])],
                    offset: [d_min.mul(first[1]).negate(), d_min.mul(second[1]).negate()],
                }
            }
        }
    }
}

/// The codes of both halves of a block, group by group.
///
/// # Safety
/// See [`tile_rows`]; `at` is the start of the block's codes for the lanes in question.
#[inline(always)]
unsafe fn codes<V: TileVectors, const FORMAT: usize>(at: *const u8) -> [[V::Codes; 4]; 2] {
    let bits = const { QuantizedFormat::ALL[FORMAT].bits() };
    // SAFETY: the caller's promise.
    unsafe {
        let mut codes = [V::codes(at); 8];
        if bits == 8 {
            for group in 0..8 {
                codes[group] = V::byte_codes(at.add(group * 64));
            }
        } else if bits < 4 {
            for group in 0..8 {
                let pairs = V::shift_right(V::codes(at.add(group % 2 * 64)), group / 2 * 2);
                codes[group] = V::and(pairs, 3);
                if bits == 3 {
                    let third = V::codes(at.add(128));
                    let third = match group {
                        0..2 => V::shift_left(third, 2 - group),
                        _ => V::shift_right(third, group - 2),
                    };
                    codes[group] = V::or(codes[group], V::and(third, 4));
                }
            }
        } else {
            for group in 0..4 {
                let both = V::codes(at.add(group * 64));
                codes[group] = both;
                codes[group + 4] = V::shift_right(both, 4);
            }
            for group in 0..8 {
                if bits == 4 {
                    codes[group] = V::and(codes[group], 15);
                } else {
                    let (vector, place) = high_bits_at(bits, group);
                    let high = V::codes(at.add(256 + vector * 64));
                    let high = match place {
                        0..4 => V::shift_left(high, 4 - place),
                        _ => V::shift_right(high, place - 4),
                    };
                    codes[group] = V::join(codes[group], high, (1 << bits) - 1);
                }
            }
        }
        let [a, b, c, d, e, f, g, h] = codes;
        [[a, b, c, d], [e, f, g, h]]
    }
}

/// # Safety
/// See [`tile_rows`].
#[inline(always)]
unsafe fn dot<V: TileVectors, const FORMAT: usize>(
    sums: V::Sums,
    codes: [V::Codes; 4],
    activations: V::Activations,
    half: usize,
) -> V::Sums {
    // SAFETY: the caller's promise.
    unsafe {
        match const { QuantizedFormat::ALL[FORMAT].bits() } {
            8 => V::dot::<8>(sums, codes, activations, half),
            6 => V::dot::<6>(sums, codes, activations, half),
            _ => V::dot::<5>(sums, codes, activations, half),
        }
    }
}

/// Where in the statistics of a block stands what its sums start from; of formats with scales for both
/// halves, that of the first.
#[inline(always)]
fn start<V: TileVectors>(format: QuantizedFormat) -> Option<usize> {
    match format.centre() {
        4 => Some(START_4),
        8 => Some(START_8),
        16 => Some(START_16),
        32 => Some(START_32),
        128 if !V::CENTRES_BYTES => Some(START_128),
        _ => None,
    }
}
