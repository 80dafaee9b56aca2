//! The product of a tile of weights that are numbers with up to eight rows: a sum over the inputs in their
//! order, each step fused, so that all tiers give the same bits.

#[cfg(target_arch = "aarch64")]
use crate::lanes::NeonLanes;
use crate::lanes::{AHEAD, Lanes, PortableLanes, n_vectors};
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2Lanes, Avx512Lanes};
use crate::packed::DenseFormat;
use crate::tier::InstructionSet;
use crate::{TILE, Tier};

/// `specialised!` on a dense format.
macro_rules! dense_tile {
    ($function:ident, $format:expr, $arguments:tt) => {
        specialised!(($function), $format, DenseFormat [F16 BF16 F32], $arguments)
    };
}

/// Adds the outputs of a tile to the rows of `out`; `values` holds as many rows.
///
/// # Panics
/// When `out` is empty or holds more than eight rows, or the sizes do not fit each other.
pub(super) fn tile_rows(
    tier: Tier,
    format: DenseFormat,
    tile: &[u8],
    values: &[f32],
    out: &mut [[f32; TILE]],
) {
    assert!((1..=super::MAX_ROWS).contains(&out.len()));
    let width = tile.len() / (TILE * format.value_bytes());
    assert_eq!(values.len(), out.len() * width, "the size of the rows");
    match tier.instructions() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Vnni => {
            // SAFETY: the tier is only chosen where the processor has its instructions; the sizes were checked.
            unsafe { dense_tile!(avx512, format, (tile, values, out)) }
        }
        #[cfg(target_arch = "x86_64")]
        InstructionSet::AvxVnni | InstructionSet::Avx2 => {
            // SAFETY: as above.
            unsafe { dense_tile!(avx2, format, (tile, values, out)) }
        }
        #[cfg(target_arch = "aarch64")]
        InstructionSet::NeonDotprod => {
            // SAFETY: as above.
            unsafe { dense_tile!(neon, format, (tile, values, out)) }
        }
        InstructionSet::Portable => {
            // SAFETY: as above.
            unsafe { dense_tile!(portable, format, (tile, values, out)) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn avx512<const FORMAT: usize, const N: usize>(tile: &[u8], values: &[f32], out: &mut [[f32; TILE]]) {
    // SAFETY: this function enables what the vectors need; the rest is the caller's promise.
    unsafe { tile_rows_in::<Avx512Lanes, FORMAT, N>(tile, values, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const FORMAT: usize, const N: usize>(tile: &[u8], values: &[f32], out: &mut [[f32; TILE]]) {
    // SAFETY: as above.
    unsafe { tile_rows_in::<Avx2Lanes, FORMAT, N>(tile, values, out) }
}

#[cfg(target_arch = "aarch64")]
unsafe fn neon<const FORMAT: usize, const N: usize>(tile: &[u8], values: &[f32], out: &mut [[f32; TILE]]) {
    // SAFETY: NEON belongs to the architecture; the rest is the caller's promise.
    unsafe { tile_rows_in::<NeonLanes, FORMAT, N>(tile, values, out) }
}

unsafe fn portable<const FORMAT: usize, const N: usize>(
    tile: &[u8],
    values: &[f32],
    out: &mut [[f32; TILE]],
) {
    // SAFETY: plain Rust needs nothing; the rest is the caller's promise.
    unsafe { tile_rows_in::<PortableLanes, FORMAT, N>(tile, values, out) }
}

/// # Safety
/// See [`Lanes`]. `values` and `out` must hold `N` rows, each of the width of the tile.
#[inline(always)]
unsafe fn tile_rows_in<V: Lanes, const FORMAT: usize, const N: usize>(
    tile: &[u8],
    values: &[f32],
    out: &mut [[f32; TILE]],
) {
    let mut first = 0;
    while first < TILE {
        let n = n_vectors::<V, N>((TILE - first) / V::N);
        // SAFETY: the caller's promise; no more lanes than are left of the tile.
        unsafe {
            match n {
                4 => lanes_of_rows::<V, FORMAT, N, 4>(tile, first, values, out),
                2 => lanes_of_rows::<V, FORMAT, N, 2>(tile, first, values, out),
                _ => lanes_of_rows::<V, FORMAT, N, 1>(tile, first, values, out),
            }
        }
        first += n * V::N;
    }
}

/// `L` vectors of outputs from lane `first` on.
///
/// # Safety
/// See [`tile_rows_in`]. So many lanes must be left of the tile.
#[inline(always)]
unsafe fn lanes_of_rows<V: Lanes, const FORMAT: usize, const N: usize, const L: usize>(
    tile: &[u8],
    first: usize,
    values: &[f32],
    out: &mut [[f32; TILE]],
) {
    let format = const { DenseFormat::ALL[FORMAT] };
    let stride = TILE * format.value_bytes();
    let width = tile.len() / stride;
    // SAFETY: the caller's promise: each read is of an input below the width, of a row below `N` and of
    // lanes of the tile.
    unsafe {
        let mut sums = [[V::splat(0.0); L]; N];
        for row in 0..N {
            for part in 0..L {
                sums[row][part] = V::load(out[row].as_ptr().add(first + part * V::N));
            }
        }
        for input in 0..width {
            let at = tile.as_ptr().add(input * stride);
            if first == 0 {
                V::prefetch(at.wrapping_add(AHEAD));
            }
            let mut weights = [V::splat(0.0); L];
            for part in 0..L {
                let at = at.add((first + part * V::N) * format.value_bytes());
                weights[part] = match format {
                    DenseFormat::F16 => V::load_f16(at),
                    DenseFormat::BF16 => V::load_bf16(at),
                    DenseFormat::F32 => V::load(at.cast()),
                };
            }
            for row in 0..N {
                let value = V::splat(*values.get_unchecked(row * width + input));
                for part in 0..L {
                    sums[row][part] = value.mul_add(weights[part], sums[row][part]);
                }
            }
        }
        for row in 0..N {
            for part in 0..L {
                sums[row][part].store(out[row].as_mut_ptr().add(first + part * V::N));
            }
        }
    }
}
