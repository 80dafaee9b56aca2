//! Plain Rust for processors that no other tier is for, over arrays that the compiler turns into what vectors
//! there are.

use super::RowsView;
use super::quantized::{self, TileVectors};
use crate::TILE;
use crate::lanes::{PortableLanes, inlined};

/// # Safety
/// See [`quantized::tile_rows`].
pub(super) unsafe fn tile_rows<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: plain Rust needs no instructions; the rest is the caller's promise.
    unsafe { quantized::tile_rows::<Portable, FORMAT, N>(tile, rows, out) }
}

struct Portable;

// SAFETY: every load is of as many bytes as the trait says, and nothing is stored.
unsafe impl TileVectors for Portable {
    type Floats = PortableLanes;
    type Sums = [i32; TILE];
    type Codes = [u8; 4 * TILE];
    type Activations = *const i8;
    const CENTRES_BYTES: bool = false;

    inlined! {
        fn unsigned_bytes(at: *const u8) -> PortableLanes {
            PortableLanes(at.cast::<[u8; TILE]>().read_unaligned().map(f32::from))
        }

        fn signed_bytes(at: *const u8) -> PortableLanes {
            PortableLanes(at.cast::<[i8; TILE]>().read_unaligned().map(f32::from))
        }

        fn nibbles(at: *const u8) -> [PortableLanes; 2] {
            let bytes = at.cast::<[u8; TILE]>().read_unaligned();
            [PortableLanes(bytes.map(|byte| f32::from(byte & 15))), PortableLanes(bytes.map(|byte| f32::from(byte >> 4)))]
        }

        fn codes(at: *const u8) -> Self::Codes {
            at.cast::<Self::Codes>().read_unaligned()
        }

        fn byte_codes(at: *const u8) -> Self::Codes {
            Self::codes(at)
        }

        fn and(codes: Self::Codes, mask: u8) -> Self::Codes {
            codes.map(|code| code & mask)
        }

        fn or(a: Self::Codes, b: Self::Codes) -> Self::Codes {
            std::array::from_fn(|i| a[i] | b[i])
        }

        fn shift_left(codes: Self::Codes, by: usize) -> Self::Codes {
            codes.map(|code| code << by)
        }

        fn shift_right(codes: Self::Codes, by: usize) -> Self::Codes {
            codes.map(|code| code >> by)
        }

        fn join(low: Self::Codes, high: Self::Codes, mask: u8) -> Self::Codes {
            std::array::from_fn(|i| (low[i] & 15 | high[i] & !15) & mask)
        }

        fn activations(at: *const i8) -> *const i8 {
            at
        }

        fn splat(sum: i32) -> [i32; TILE] {
            [sum; TILE]
        }

        fn add(a: [i32; TILE], b: [i32; TILE]) -> [i32; TILE] {
            std::array::from_fn(|i| a[i] + b[i])
        }

        fn to_floats(sums: [i32; TILE]) -> PortableLanes {
            PortableLanes(sums.map(|sum| sum as f32))
        }

        fn dot[BITS: usize](
            sums: [i32; TILE],
            codes: [Self::Codes; 4],
            activations: *const i8,
            half: usize
        ) -> [i32; TILE] {
            let activations = activations.cast::<[i8; 16]>().add(half).read_unaligned();
            let mut sums = sums;
            for (codes, activations) in codes.iter().zip(activations.as_chunks::<4>().0) {
                // In sixteen bits and in pairs, for which any processor has an instruction.
                let four = activations.map(i16::from);
                let codes = codes.map(i16::from);
                let mut pairs = [0i32; 2 * TILE];
                for i in 0..2 * TILE {
                    let (first, second) = (four[i % 2 * 2], four[i % 2 * 2 + 1]);
                    pairs[i] = i32::from(codes[2 * i]) * i32::from(first)
                        + i32::from(codes[2 * i + 1]) * i32::from(second);
                }
                for lane in 0..TILE {
                    sums[lane] += pairs[2 * lane] + pairs[2 * lane + 1];
                }
            }
            sums
        }
    }
}
