//! AVX-512 with byte dot products (VNNI): a vector is four inputs of all 16 rows of a tile.

use std::arch::x86_64::*;

use super::{BLOCK_MIN, RowsView, SUPER_HALF, SUPER_MIN};
use crate::packed::SUPER;
use crate::{BLOCK, TILE};

/// # Safety
/// The processor must have AVX-512 F, BW, VL and VNNI. `tile` must hold the bytes of the format for
/// `rows.width / 32` blocks, `rows` must hold `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(super) unsafe fn tile_rows<const BITS: usize, const LAYOUT: u8, const CENTRE: i32, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    let n_blocks = rows.width / BLOCK;
    let mut at = tile.as_ptr();
    let mut results = [_mm512_setzero_ps(); N];
    let (mut d, mut d_min) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    let low = _mm512_set1_epi8(15);
    for block in 0..n_blocks {
        // SAFETY: the reads follow the layout of the tile block by block, and end with it; reads
        // of activations are within rows 0 to N - 1 of `rows`.
        unsafe {
            if (LAYOUT == SUPER_MIN || LAYOUT == SUPER_HALF) && block.is_multiple_of(SUPER) {
                d = halves(at);
                at = at.add(2 * TILE);
                if LAYOUT == SUPER_MIN {
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
            at = at.add(if LAYOUT == BLOCK_MIN { 4 * TILE } else { 2 * TILE });

            let mut weights = [_mm512_setzero_si512(); 8];
            if BITS == 8 {
                for (group, weights) in weights.iter_mut().enumerate() {
                    *weights = _mm512_loadu_si512(at.add(group * 64).cast());
                }
            } else {
                for group in 0..4 {
                    let both = _mm512_loadu_si512(at.add(group * 64).cast());
                    weights[group] = _mm512_and_si512(both, low);
                    weights[group + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
                for bit in 4..BITS {
                    let plane = at.add(256 + (bit - 4) * 64).cast::<u64>();
                    let value = _mm512_set1_epi8(1 << bit);
                    for (group, weights) in weights.iter_mut().enumerate() {
                        let mask = plane.add(group).read_unaligned();
                        *weights = _mm512_mask_add_epi8(*weights, mask, *weights, value);
                    }
                }
            }
            at = at.add(TILE * BLOCK * BITS / 8);

            for_each_row!(N, ROW, {
                let activations = rows.codes.as_ptr().add(ROW * rows.width + block * BLOCK).cast::<i32>();
                let half_sums = rows.half_sums.as_ptr().add((ROW * n_blocks + block) * 2);
                let mut sums =
                    [_mm512_set1_epi32(-CENTRE * *half_sums), _mm512_set1_epi32(-CENTRE * *half_sums.add(1))];
                for group in 0..4 {
                    let four = _mm512_set1_epi32(activations.add(group).read_unaligned());
                    sums[0] = _mm512_dpbusd_epi32(sums[0], weights[group], four);
                    let four = _mm512_set1_epi32(activations.add(group + 4).read_unaligned());
                    sums[1] = _mm512_dpbusd_epi32(sums[1], weights[group + 4], four);
                }
                let term = if LAYOUT == SUPER_HALF {
                    let first = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums[0]));
                    let second = _mm512_mul_ps(scale_or_offset, _mm512_cvtepi32_ps(sums[1]));
                    _mm512_add_ps(first, second)
                } else {
                    let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]));
                    let term = _mm512_mul_ps(scale, sum);
                    if LAYOUT == BLOCK_MIN || LAYOUT == SUPER_MIN {
                        let activation_sum = _mm512_set1_ps((*half_sums + *half_sums.add(1)) as f32);
                        _mm512_add_ps(term, _mm512_mul_ps(scale_or_offset, activation_sum))
                    } else {
                        term
                    }
                };
                let activation_scale = _mm512_set1_ps(*rows.scales.as_ptr().add(ROW * n_blocks + block));
                results[ROW] = _mm512_add_ps(results[ROW], _mm512_mul_ps(activation_scale, term));
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
