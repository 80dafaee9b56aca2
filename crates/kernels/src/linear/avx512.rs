//! AVX-512 with byte dot products (VNNI): a vector is four inputs of all 16 rows of a tile.

use std::arch::x86_64::*;

use super::RowsView;
use super::quantized::{self, TileVectors};
use crate::TILE;
use crate::lanes::{Avx512Lanes, inlined};

/// # Safety
/// The processor must have AVX-512 F, BW, VL and VNNI, FMA and F16C. See [`quantized::tile_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
pub(super) unsafe fn tile_rows<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: this function enables what the vectors need; the rest is the caller's promise.
    unsafe { quantized::tile_rows::<Avx512, FORMAT, N>(tile, rows, out) }
}

struct Avx512;

// SAFETY: every load is of as many bytes as the trait says, and nothing is stored.
unsafe impl TileVectors for Avx512 {
    type Floats = Avx512Lanes;
    type Sums = __m512i;
    type Codes = __m512i;
    type Activations = *const i8;
    const CENTRES_BYTES: bool = false;

    inlined! {
        fn unsigned_bytes(at: *const u8) -> Avx512Lanes {
            Self::to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
        }

        fn signed_bytes(at: *const u8) -> Avx512Lanes {
            Self::to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
        }

        fn nibbles(at: *const u8) -> [Avx512Lanes; 2] {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            [Self::to_floats(low), Self::to_floats(_mm512_srli_epi32::<4>(bytes))]
        }

        fn codes(at: *const u8) -> __m512i {
            _mm512_loadu_si512(at.cast())
        }

        fn byte_codes(at: *const u8) -> __m512i {
            Self::codes(at)
        }

        fn and(codes: __m512i, mask: u8) -> __m512i {
            _mm512_and_si512(codes, _mm512_set1_epi8(mask as i8))
        }

        fn or(a: __m512i, b: __m512i) -> __m512i {
            _mm512_or_si512(a, b)
        }

        fn shift_left(codes: __m512i, by: usize) -> __m512i {
            _mm512_sll_epi16(codes, _mm_cvtsi32_si128(by as i32))
        }

        fn shift_right(codes: __m512i, by: usize) -> __m512i {
            _mm512_srl_epi16(codes, _mm_cvtsi32_si128(by as i32))
        }

        fn join(low: __m512i, high: __m512i, mask: u8) -> __m512i {
            // Where a bit of the first is set that of the second, else that of the third.
            let both = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(15), low, high);
            Self::and(both, mask)
        }

        fn activations(at: *const i8) -> *const i8 {
            at
        }

        fn splat(sum: i32) -> __m512i {
            _mm512_set1_epi32(sum)
        }

        fn add(a: __m512i, b: __m512i) -> __m512i {
            _mm512_add_epi32(a, b)
        }

        fn to_floats(sums: __m512i) -> Avx512Lanes {
            Avx512Lanes(_mm512_cvtepi32_ps(sums))
        }

        fn dot[BITS: usize](
            sums: __m512i,
            codes: [__m512i; 4],
            activations: *const i8,
            half: usize
        ) -> __m512i {
            let mut sums = sums;
            for group in 0..4 {
                let four = activations.cast::<i32>().add(4 * half + group).read_unaligned();
                sums = _mm512_dpbusd_epi32(sums, codes[group], _mm512_set1_epi32(four));
            }
            sums
        }
    }
}
