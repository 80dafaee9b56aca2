//! AVX2 with byte dot products.

use super::RowsView;
use super::avx2::Avx2;
use super::quantized;
use crate::TILE;

/// # Safety
/// The processor must have AVX2, AVX-VNNI, FMA and F16C. See [`quantized::tile_rows`].
#[target_feature(enable = "avx2,avxvnni,fma,f16c")]
pub(super) unsafe fn tile_rows<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    rows: RowsView<'_>,
    out: &mut [[f32; TILE]],
) {
    // SAFETY: this function enables what the vectors need; the rest is the caller's promise.
    unsafe { quantized::tile_rows::<Avx2<true>, FORMAT, N>(tile, rows, out) }
}
