//! AVX2: a tile is two halves of eight rows; a vector is four inputs of eight rows.

use std::arch::x86_64::*;

use super::{BLOCK_MIN, RowsView, SUPER_HALF, SUPER_HALF_MIN, SUPER_MIN};
use crate::packed::{SUPER, high_bits_at};
use crate::{BLOCK, TILE};

/// Rows of a tile in a vector.
const LANES: usize = 8;

/// # Safety
/// The processor must have AVX2, FMA and F16C. `START` is what sums
/// start from, if below the largest number. `tile` must hold the bytes of the format for
/// `rows.width / 32` blocks, `rows` must hold `N` rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_rows<const BITS: usize, const LAYOUT: u8, const START: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: what the caller promises is what each half needs.
    unsafe {
        half_tile_rows::<BITS, LAYOUT, START, N, 0>(tile, rows, out);
        half_tile_rows::<BITS, LAYOUT, START, N, 1>(tile, rows, out);
    }
}

/// # Safety
/// See [`tile_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_tile_rows<
    const BITS: usize,
    const LAYOUT: u8,
    const START: usize,
    const N: usize,
    const HALF: usize,
>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // Whether both halves of a block have scales of their own.
    let has_halves = LAYOUT == SUPER_HALF || LAYOUT == SUPER_HALF_MIN;
    let n_blocks = rows.width / BLOCK;
    let mut at = tile.as_ptr();
    let mut results = [_mm256_setzero_ps(); N];
    let (mut d, mut d_min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let low = _mm256_set1_epi8(15);
    let ones = _mm256_set1_epi16(1);
    for block in 0..n_blocks {
        // SAFETY: the reads follow the layout of the tile block by block, and end with it; reads
        // of activations are within rows 0 to N - 1 of `rows`.
        unsafe {
            if LAYOUT >= SUPER_MIN && block.is_multiple_of(SUPER) {
                d = halves(at.add(2 * LANES * HALF));
                at = at.add(2 * TILE);
                if LAYOUT == SUPER_MIN || LAYOUT == SUPER_HALF_MIN {
                    d_min = halves(at.add(2 * LANES * HALF));
                    at = at.add(2 * TILE);
                }
            }
            let second = at.add(TILE + LANES * HALF);
            let (scale, scale_or_offset) = match LAYOUT {
                BLOCK_MIN => (halves(at.add(2 * LANES * HALF)), halves(at.add(2 * TILE + 2 * LANES * HALF))),
                SUPER_MIN => {
                    let offset = _mm256_mul_ps(d_min, bytes(second));
                    let scale = _mm256_mul_ps(d, bytes(at.add(LANES * HALF)));
                    (scale, _mm256_sub_ps(_mm256_set1_ps(-0.0), offset))
                }
                SUPER_HALF => {
                    let scale = _mm256_mul_ps(d, signed_bytes(at.add(LANES * HALF)));
                    (scale, _mm256_mul_ps(d, signed_bytes(second)))
                }
                _ => (halves(at.add(2 * LANES * HALF)), _mm256_setzero_ps()),
            };
            let mut offsets = [_mm256_setzero_ps(); 2];
            let (scale, scale_or_offset) = if LAYOUT == SUPER_HALF_MIN {
                let halves = [at.add(LANES * HALF), at.add(TILE + LANES * HALF)]
                    .map(|at| _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())));
                let of = |half, d, low: i32| {
                    _mm256_mul_ps(
                        d,
                        _mm256_cvtepi32_ps(if low == 0 {
                            _mm256_and_si256(half, _mm256_set1_epi32(15))
                        } else {
                            _mm256_srli_epi32::<4>(half)
                        }),
                    )
                };
                let minus = _mm256_set1_ps(-0.0);
                offsets = [
                    _mm256_sub_ps(minus, of(halves[0], d_min, 4)),
                    _mm256_sub_ps(minus, of(halves[1], d_min, 4)),
                ];
                (of(halves[0], d, 0), of(halves[1], d, 0))
            } else {
                (scale, scale_or_offset)
            };
            at = at.add(if LAYOUT == BLOCK_MIN { 4 * TILE } else { 2 * TILE });

            let mut weights = [_mm256_setzero_si256(); 8];
            if BITS == 8 {
                for (group, weights) in weights.iter_mut().enumerate() {
                    let codes = _mm256_loadu_si256(at.add(group * 64 + 32 * HALF).cast());
                    // Signed, hence centred: `dot` multiplies signed weights.
                    *weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                }
            } else if BITS < 4 {
                let pair = _mm256_set1_epi8(3);
                for (group, weights) in weights.iter_mut().enumerate() {
                    let four = _mm256_loadu_si256(at.add(group % 2 * 64 + 32 * HALF).cast());
                    let shifted = _mm256_srl_epi16(four, _mm_cvtsi32_si128(group as i32 / 2 * 2));
                    *weights = _mm256_and_si256(shifted, pair);
                    if BITS == 3 {
                        let bits = _mm256_loadu_si256(at.add(128 + 32 * HALF).cast());
                        let bits = match group {
                            0..2 => _mm256_sll_epi16(bits, _mm_cvtsi32_si128(2 - group as i32)),
                            _ => _mm256_srl_epi16(bits, _mm_cvtsi32_si128(group as i32 - 2)),
                        };
                        *weights = _mm256_or_si256(*weights, _mm256_and_si256(bits, _mm256_set1_epi8(4)));
                    }
                }
            } else {
                for group in 0..4 {
                    let both = _mm256_loadu_si256(at.add(group * 64 + 32 * HALF).cast());
                    weights[group] = _mm256_and_si256(both, low);
                    weights[group + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                }
                if BITS > 4 {
                    for (group, weights) in weights.iter_mut().enumerate() {
                        let (vector, place) = high_bits_at(BITS, group);
                        let bits = _mm256_loadu_si256(at.add(256 + vector * 64 + 32 * HALF).cast());
                        let bits = match place {
                            0..4 => _mm256_sll_epi16(bits, _mm_cvtsi32_si128(4 - place as i32)),
                            _ => _mm256_srl_epi16(bits, _mm_cvtsi32_si128(place as i32 - 4)),
                        };
                        let wanted = _mm256_set1_epi8(((1 << BITS) - 16) as i8);
                        *weights = _mm256_or_si256(*weights, _mm256_and_si256(bits, wanted));
                    }
                }
            }
            at = at.add(TILE * BLOCK * BITS / 8);

            for_each_row!(N, ROW, {
                let activations = rows.codes.as_ptr().add(ROW * rows.width + block * BLOCK).cast::<i32>();
                let statistics = rows.blocks.as_ptr().add(ROW * n_blocks + block);
                let start = |idx: usize| _mm256_set1_epi32((*statistics).starts[idx]);
                let mut sums = [_mm256_setzero_si256(); 2];
                if LAYOUT == SUPER_HALF {
                    sums = [start(START), start(START + 1)];
                } else if START < usize::MAX && BITS < 8 {
                    sums[0] = start(START);
                }
                for (group, weights) in weights.iter().enumerate() {
                    let four = _mm256_set1_epi32(activations.add(group).read_unaligned());
                    // Pairs fit 16 bits: at most 2 * 63 * 127, or 2 * 128 * 127 for 8-bit weights.
                    let pairs = if BITS == 8 {
                        _mm256_maddubs_epi16(_mm256_abs_epi8(*weights), _mm256_sign_epi8(four, *weights))
                    } else {
                        _mm256_maddubs_epi16(*weights, four)
                    };
                    sums[group / 4] = _mm256_add_epi32(sums[group / 4], _mm256_madd_epi16(pairs, ones));
                }
                let activation_scale = _mm256_set1_ps((*statistics).scale);
                let scaled = |sum| _mm256_mul_ps(_mm256_cvtepi32_ps(sum), activation_scale);
                results[ROW] = if has_halves {
                    let first = _mm256_fmadd_ps(scaled(sums[0]), scale, results[ROW]);
                    _mm256_fmadd_ps(scaled(sums[1]), scale_or_offset, first)
                } else {
                    let sum = _mm256_add_epi32(sums[0], sums[1]);
                    _mm256_fmadd_ps(scaled(sum), scale, results[ROW])
                };
                if LAYOUT == SUPER_HALF_MIN {
                    for half in 0..2 {
                        let scaled_sum = _mm256_set1_ps((*statistics).scaled_half_sums[half]);
                        results[ROW] = _mm256_fmadd_ps(scaled_sum, offsets[half], results[ROW]);
                    }
                } else if LAYOUT == BLOCK_MIN || LAYOUT == SUPER_MIN {
                    let scaled_sum = _mm256_set1_ps((*statistics).scaled_sum);
                    results[ROW] = _mm256_fmadd_ps(scaled_sum, scale_or_offset, results[ROW]);
                }
            });
        }
    }
    for (result, out) in results.iter().zip(out) {
        // SAFETY: each half of `out` is eight values long.
        unsafe { _mm256_storeu_ps(out[LANES * HALF..].as_mut_ptr(), *result) }
    }
}

/// Eight half-precision numbers.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller has 16 bytes at `at`.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Eight unsigned bytes as numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller has 8 bytes at `at`.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// Eight signed bytes as numbers.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn signed_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller has 8 bytes at `at`.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
}
