//! AVX-512 with byte dot products (VNNI): a vector is four inputs of all 16 rows of a tile.

use std::arch::x86_64::*;

use super::{BLOCK_MIN, RowsView, SUPER_HALF, SUPER_HALF_MIN, SUPER_MIN};
use crate::packed::{SUPER, high_bits_at};
use crate::{BLOCK, TILE};

/// Bytes between the weights in use and those that are fetched.
const AHEAD: usize = 8192;

/// # Safety
/// The processor must have AVX-512 F, BW, VL and VNNI, FMA and F16C. `START` is what
/// sums start from, if below the largest number.
/// `tile` must hold the bytes of the format for
/// `rows.width / 32` blocks, `rows` must hold `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
pub(super) unsafe fn tile_rows<const BITS: usize, const LAYOUT: u8, const START: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // Whether both halves of a block have scales of their own.
    let has_halves = LAYOUT == SUPER_HALF || LAYOUT == SUPER_HALF_MIN;
    let n_blocks = rows.width / BLOCK;
    let mut at = tile.as_ptr();
    let mut results = [_mm512_setzero_ps(); N];
    let (mut d, mut d_min) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    let low = _mm512_set1_epi8(15);
    for block in 0..n_blocks {
        // SAFETY: the reads follow the layout of the tile block by block, and end with it; reads
        // of activations are within rows 0 to N - 1 of `rows`.
        unsafe {
            if LAYOUT >= SUPER_MIN && block.is_multiple_of(SUPER) {
                d = halves(at);
                at = at.add(2 * TILE);
                if LAYOUT == SUPER_MIN || LAYOUT == SUPER_HALF_MIN {
                    d_min = halves(at);
                    at = at.add(2 * TILE);
                }
            }
            let (scale, scale_or_offset) = match LAYOUT {
                BLOCK_MIN => (halves(at), halves(at.add(2 * TILE))),
                SUPER_MIN => {
                    let offset = _mm512_mul_ps(d_min, bytes(at.add(TILE)));
                    (_mm512_mul_ps(d, bytes(at)), _mm512_sub_ps(_mm512_set1_ps(-0.0), offset))
                }
                SUPER_HALF => {
                    (_mm512_mul_ps(d, signed_bytes(at)), _mm512_mul_ps(d, signed_bytes(at.add(TILE))))
                }
                _ => (halves(at), _mm512_setzero_ps()),
            };
            let mut offsets = [_mm512_setzero_ps(); 2];
            let (scale, scale_or_offset) = if LAYOUT == SUPER_HALF_MIN {
                let halves = [at, at.add(TILE)].map(|at| _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())));
                let of = |half, d, low: i32| {
                    _mm512_mul_ps(
                        d,
                        _mm512_cvtepi32_ps(if low == 0 {
                            _mm512_and_si512(half, _mm512_set1_epi32(15))
                        } else {
                            _mm512_srli_epi32::<4>(half)
                        }),
                    )
                };
                let minus = _mm512_set1_ps(-0.0);
                offsets = [
                    _mm512_sub_ps(minus, of(halves[0], d_min, 4)),
                    _mm512_sub_ps(minus, of(halves[1], d_min, 4)),
                ];
                (of(halves[0], d, 0), of(halves[1], d, 0))
            } else {
                (scale, scale_or_offset)
            };
            at = at.add(if LAYOUT == BLOCK_MIN { 4 * TILE } else { 2 * TILE });

            // The stream of weights is too short between tiles for the processor to run ahead itself.
            let n_bytes = TILE * BLOCK * BITS / 8;
            for line in 0..n_bytes.div_ceil(64) + 1 {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line * 64).cast());
            }
            let mut weights = [_mm512_setzero_si512(); 8];
            if BITS == 8 {
                for (group, weights) in weights.iter_mut().enumerate() {
                    *weights = _mm512_loadu_si512(at.add(group * 64).cast());
                }
            } else if BITS < 4 {
                let pair = _mm512_set1_epi8(3);
                for (group, weights) in weights.iter_mut().enumerate() {
                    let four = _mm512_loadu_si512(at.add(group % 2 * 64).cast());
                    let shifted = _mm512_srl_epi16(four, _mm_cvtsi32_si128(group as i32 / 2 * 2));
                    *weights = _mm512_and_si512(shifted, pair);
                    if BITS == 3 {
                        let bits = _mm512_loadu_si512(at.add(128).cast());
                        let bits = match group {
                            0..2 => _mm512_sll_epi16(bits, _mm_cvtsi32_si128(2 - group as i32)),
                            _ => _mm512_srl_epi16(bits, _mm_cvtsi32_si128(group as i32 - 2)),
                        };
                        *weights = _mm512_or_si512(*weights, _mm512_and_si512(bits, _mm512_set1_epi8(4)));
                    }
                }
            } else {
                for group in 0..4 {
                    let both = _mm512_loadu_si512(at.add(group * 64).cast());
                    weights[group] = both;
                    weights[group + 4] = _mm512_srli_epi16::<4>(both);
                }
                if BITS == 4 {
                    for weights in &mut weights {
                        *weights = _mm512_and_si512(*weights, low);
                    }
                } else {
                    let high = _mm512_set1_epi8((1 << BITS) - 1);
                    for (group, weights) in weights.iter_mut().enumerate() {
                        let (vector, place) = high_bits_at(BITS, group);
                        let bits = _mm512_loadu_si512(at.add(256 + vector * 64).cast());
                        // Shifts of 16 bits: what comes from the neighbour is masked away.
                        let bits = match place {
                            0..4 => _mm512_sll_epi16(bits, _mm_cvtsi32_si128(4 - place as i32)),
                            _ => _mm512_srl_epi16(bits, _mm_cvtsi32_si128(place as i32 - 4)),
                        };
                        // The low four bits of one, the others of the other.
                        let both = _mm512_ternarylogic_epi32::<0xca>(low, *weights, bits);
                        *weights = _mm512_and_si512(both, high);
                    }
                }
            }
            at = at.add(TILE * BLOCK * BITS / 8);

            for_each_row!(N, ROW, {
                let activations = rows.codes.as_ptr().add(ROW * rows.width + block * BLOCK).cast::<i32>();
                let statistics = rows.blocks.as_ptr().add(ROW * n_blocks + block);
                let start = |idx: usize| _mm512_set1_epi32((*statistics).starts[idx]);
                let four = |group: usize| _mm512_set1_epi32(activations.add(group).read_unaligned());
                let mut sums = [_mm512_setzero_si512(); 2];
                if LAYOUT == SUPER_HALF {
                    sums = [start(START), start(START + 1)];
                } else if START < usize::MAX {
                    sums[0] = start(START);
                }
                // With few rows two chains hide the latency of the products; with more, rows do.
                let second = usize::from(has_halves || N < 4);
                for group in 0..4 {
                    sums[0] = _mm512_dpbusd_epi32(sums[0], weights[group], four(group));
                    if second == 1 {
                        sums[1] = _mm512_dpbusd_epi32(sums[1], weights[group + 4], four(group + 4));
                    }
                }
                if second == 0 {
                    for group in 4..8 {
                        sums[0] = _mm512_dpbusd_epi32(sums[0], weights[group], four(group));
                    }
                }
                let activation_scale = _mm512_set1_ps((*statistics).scale);
                let scaled = |sum| _mm512_mul_ps(_mm512_cvtepi32_ps(sum), activation_scale);
                results[ROW] = if has_halves {
                    let first = _mm512_fmadd_ps(scaled(sums[0]), scale, results[ROW]);
                    _mm512_fmadd_ps(scaled(sums[1]), scale_or_offset, first)
                } else {
                    let sum = if second == 1 { _mm512_add_epi32(sums[0], sums[1]) } else { sums[0] };
                    _mm512_fmadd_ps(scaled(sum), scale, results[ROW])
                };
                if LAYOUT == SUPER_HALF_MIN {
                    for half in 0..2 {
                        let scaled_sum = _mm512_set1_ps((*statistics).scaled_half_sums[half]);
                        results[ROW] = _mm512_fmadd_ps(scaled_sum, offsets[half], results[ROW]);
                    }
                } else if LAYOUT == BLOCK_MIN || LAYOUT == SUPER_MIN {
                    let scaled_sum = _mm512_set1_ps((*statistics).scaled_sum);
                    results[ROW] = _mm512_fmadd_ps(scaled_sum, scale_or_offset, results[ROW]);
                }
            });
        }
    }
    for (result, out) in results.iter().zip(out) {
        // SAFETY: `out` is 16 values long.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *result) }
    }
}

/// 16 half-precision numbers.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller has 32 bytes at `at`.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// 16 unsigned bytes as numbers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller has 16 bytes at `at`.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// 16 signed bytes as numbers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn signed_bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller has 16 bytes at `at`.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
}
