//! NEON with byte dot products: a vector is four inputs of four rows, a quarter of a tile.

use std::arch::aarch64::*;
use std::arch::asm;

use super::RowsView;
use super::quantized::{self, TileVectors};
use crate::TILE;
use crate::lanes::{NeonLanes, inlined};

/// # Safety
/// The processor must have NEON and its dot products. See [`quantized::tile_rows`].
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn tile_rows<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: this function enables what the vectors need; the rest is the caller's promise.
    unsafe { quantized::tile_rows::<Neon, FORMAT, N>(tile, rows, out) }
}

struct Neon;

/// `sums` plus the products of the codes with activations `4 * lane` to `4 * lane + 3`. The intrinsic is not
/// stable in Rust.
macro_rules! dot_of_lane {
    ($sums:ident, $codes:ident, $activations:ident, $lane:literal) => {{
        let mut sums = $sums;
        asm!(
            concat!("sdot {sums:v}.4s, {codes:v}.16b, {activations:v}.4b[", $lane, "]"),
            sums = inout(vreg) sums,
            codes = in(vreg) $codes,
            activations = in(vreg) $activations,
            options(pure, nomem, nostack, preserves_flags),
        );
        sums
    }};
}

// SAFETY: every load is of as many bytes as the trait says, and nothing is stored.
unsafe impl TileVectors for Neon {
    type Floats = NeonLanes;
    type Sums = int32x4_t;
    type Codes = uint8x16_t;
    type Activations = [int8x16_t; 2];
    const CENTRES_BYTES: bool = true;

    inlined! {
        fn unsigned_bytes(at: *const u8) -> NeonLanes {
            NeonLanes(vcvtq_f32_u32(four_bytes(at)))
        }

        fn signed_bytes(at: *const u8) -> NeonLanes {
            let bytes = vcreate_s8(u64::from(at.cast::<u32>().read_unaligned()));
            NeonLanes(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))))
        }

        fn nibbles(at: *const u8) -> [NeonLanes; 2] {
            let bytes = four_bytes(at);
            let (low, high) = (vandq_u32(bytes, vdupq_n_u32(15)), vshrq_n_u32::<4>(bytes));
            [NeonLanes(vcvtq_f32_u32(low)), NeonLanes(vcvtq_f32_u32(high))]
        }

        fn codes(at: *const u8) -> uint8x16_t {
            vld1q_u8(at)
        }

        fn byte_codes(at: *const u8) -> uint8x16_t {
            veorq_u8(vld1q_u8(at), vdupq_n_u8(0x80))
        }

        fn and(codes: uint8x16_t, mask: u8) -> uint8x16_t {
            vandq_u8(codes, vdupq_n_u8(mask))
        }

        fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
            vorrq_u8(a, b)
        }

        fn shift_left(codes: uint8x16_t, by: usize) -> uint8x16_t {
            vshlq_u8(codes, vdupq_n_s8(by as i8))
        }

        fn shift_right(codes: uint8x16_t, by: usize) -> uint8x16_t {
            vshlq_u8(codes, vdupq_n_s8(-(by as i8)))
        }

        fn join(low: uint8x16_t, high: uint8x16_t, mask: u8) -> uint8x16_t {
            Self::and(vbslq_u8(vdupq_n_u8(15), low, high), mask)
        }

        fn activations(at: *const i8) -> [int8x16_t; 2] {
            [vld1q_s8(at), vld1q_s8(at.add(16))]
        }

        fn splat(sum: i32) -> int32x4_t {
            vdupq_n_s32(sum)
        }

        fn add(a: int32x4_t, b: int32x4_t) -> int32x4_t {
            vaddq_s32(a, b)
        }

        fn to_floats(sums: int32x4_t) -> NeonLanes {
            NeonLanes(vcvtq_f32_s32(sums))
        }

        // All codes are signed numbers here: those of eight bits are centred, others have seven at most.
        fn dot[BITS: usize](
            sums: int32x4_t,
            codes: [uint8x16_t; 4],
            activations: [int8x16_t; 2],
            half: usize
        ) -> int32x4_t {
            let (sixteen, [a, b, c, d]) = (activations[half], codes);
            let sums = dot_of_lane!(sums, a, sixteen, 0);
            let sums = dot_of_lane!(sums, b, sixteen, 1);
            let sums = dot_of_lane!(sums, c, sixteen, 2);
            dot_of_lane!(sums, d, sixteen, 3)
        }
    }
}

/// Four unsigned bytes, each in 32 bits.
///
/// # Safety
/// Four bytes must be readable at `at`.
#[inline(always)]
unsafe fn four_bytes(at: *const u8) -> uint32x4_t {
    // SAFETY: the caller's promise; NEON belongs to every processor of this architecture.
    unsafe {
        let bytes = vcreate_u8(u64::from(at.cast::<u32>().read_unaligned()));
        vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
    }
}
