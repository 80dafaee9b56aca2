//! AVX2, without and with byte dot products (AVX-VNNI): a vector is four inputs of eight rows, half a
//! tile.

use std::arch::x86_64::*;

use super::RowsView;
use super::quantized::{self, TileVectors};
use crate::TILE;
use crate::lanes::{Avx2Lanes, inlined};

/// # Safety
/// The processor must have AVX2, FMA and F16C. See [`quantized::tile_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile_rows<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: this function enables what the vectors need; the rest is the caller's promise.
    unsafe { quantized::tile_rows::<Avx2<false>, FORMAT, N>(tile, rows, out) }
}

pub(super) struct Avx2<const HAS_DOT_PRODUCTS: bool>;

// SAFETY: every load is of as many bytes as the trait says, and nothing is stored.
unsafe impl<const HAS_DOT_PRODUCTS: bool> TileVectors for Avx2<HAS_DOT_PRODUCTS> {
    type Floats = Avx2Lanes;
    type Sums = __m256i;
    type Codes = __m256i;
    type Activations = *const i8;
    const CENTRES_BYTES: bool = !HAS_DOT_PRODUCTS;

    inlined! {
        fn unsigned_bytes(at: *const u8) -> Avx2Lanes {
            Self::to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
        }

        fn signed_bytes(at: *const u8) -> Avx2Lanes {
            Self::to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
        }

        fn nibbles(at: *const u8) -> [Avx2Lanes; 2] {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            [Self::to_floats(low), Self::to_floats(_mm256_srli_epi32::<4>(bytes))]
        }

        fn codes(at: *const u8) -> __m256i {
            _mm256_loadu_si256(at.cast())
        }

        fn byte_codes(at: *const u8) -> __m256i {
            match HAS_DOT_PRODUCTS {
                true => Self::codes(at),
                false => _mm256_xor_si256(Self::codes(at), _mm256_set1_epi8(-128)),
            }
        }

        fn and(codes: __m256i, mask: u8) -> __m256i {
            _mm256_and_si256(codes, _mm256_set1_epi8(mask as i8))
        }

        fn or(a: __m256i, b: __m256i) -> __m256i {
            _mm256_or_si256(a, b)
        }

        fn shift_left(codes: __m256i, by: usize) -> __m256i {
            _mm256_sll_epi16(codes, _mm_cvtsi32_si128(by as i32))
        }

        fn shift_right(codes: __m256i, by: usize) -> __m256i {
            _mm256_srl_epi16(codes, _mm_cvtsi32_si128(by as i32))
        }

        fn join(low: __m256i, high: __m256i, mask: u8) -> __m256i {
            Self::or(Self::and(low, 15), Self::and(high, mask & !15))
        }

        fn activations(at: *const i8) -> *const i8 {
            at
        }

        fn splat(sum: i32) -> __m256i {
            _mm256_set1_epi32(sum)
        }

        fn add(a: __m256i, b: __m256i) -> __m256i {
            _mm256_add_epi32(a, b)
        }

        fn to_floats(sums: __m256i) -> Avx2Lanes {
            Avx2Lanes(_mm256_cvtepi32_ps(sums))
        }

        fn dot[BITS: usize](
            sums: __m256i,
            codes: [__m256i; 4],
            activations: *const i8,
            half: usize
        ) -> __m256i {
            let four = activations.cast::<i32>().add(4 * half);
            let mut sums = sums;
            if HAS_DOT_PRODUCTS {
                for group in 0..4 {
                    let four = _mm256_set1_epi32(four.add(group).read_unaligned());
                    sums = _mm256_dpbusd_avx_epi32(sums, codes[group], four);
                }
                return sums;
            }
            // Products are added up in 16 bits for as long as they fit: four groups of five bits are
            // 4 * 2 * 31 * 127 at most, two groups of six 2 * 2 * 63 * 127, one group of eight 2 * 128 * 127.
            let n_together = const {
                match BITS {
                    8 => 1,
                    6 => 2,
                    _ => 4,
                }
            };
            let mut products = _mm256_setzero_si256();
            for group in 0..4 {
                let (codes, four) = (codes[group], _mm256_set1_epi32(four.add(group).read_unaligned()));
                let pairs = match BITS {
                    8 => _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(four, codes)),
                    _ => _mm256_maddubs_epi16(codes, four),
                };
                products = if group % n_together == 0 { pairs } else { _mm256_add_epi16(products, pairs) };
                if group % n_together == n_together - 1 {
                    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
                }
            }
            sums
        }
    }
}
