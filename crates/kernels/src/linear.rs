//! Quantized linear layers: packed weights times quantized rows.
//!
//! For each row, output and block: `sum = Σ (code - centre) * activation code` in integers, then
//! `out += activation scale * (scale * sum + offset * Σ activation code)` in f32, block after
//! block. Each product and each sum is rounded on its own (no fused operations), so that all
//! tiers give the same bits.

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

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::{PackedMatrix, Pool, QuantizedFormat, QuantizedRows, TILE, Tier};

/// Rows that share one pass over the weights of a tile.
const MAX_ROWS: usize = 8;
/// Pieces that the work is cut into for each thread, so that a late thread delays nobody long.
const PIECES_PER_THREAD: usize = 4;

/// What a tile kernel needs of the activations: pointers to the first of its rows.
#[derive(Clone, Copy)]
struct RowsView<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    half_sums: &'a [i32],
    width: usize,
}

/// `out = rows Wᵀ`: `[n_rows, n_in]` times `[n_out, n_in]` gives `[n_rows, n_out]`.
///
/// # Panics
/// When the sizes do not fit each other.
pub fn linear(pool: &Pool, tier: Tier, matrix: &PackedMatrix, rows: &QuantizedRows, out: &mut [f32]) {
    let (n_out, n_rows) = (matrix.n_out, rows.n_rows);
    assert_eq!(rows.width, matrix.n_in, "the width of the activations");
    assert_eq!(out.len(), n_rows * n_out, "the size of the output");
    let n_tiles = n_out.div_ceil(TILE);
    let n_pieces = n_tiles.min(pool.n_threads() * PIECES_PER_THREAD);
    let out = OutPointer(out.as_mut_ptr());
    pool.run(n_pieces, &|piece| {
        let tiles = piece * n_tiles / n_pieces..(piece + 1) * n_tiles / n_pieces;
        for tile_idx in tiles {
            let tile = matrix.tile(tile_idx);
            let n_valid = TILE.min(n_out - tile_idx * TILE);
            for first in (0..n_rows).step_by(MAX_ROWS) {
                let n = MAX_ROWS.min(n_rows - first);
                let mut results = [[0.0f32; TILE]; MAX_ROWS];
                tile_rows(tier, matrix.format, tile, rows.view(first, n), &mut results[..n]);
                for (idx, result) in results[..n].iter().enumerate() {
                    let start = (first + idx) * n_out + tile_idx * TILE;
                    // SAFETY: `start + n_valid` is within row `first + idx` of `out`, whose size
                    // was checked above, and no other task writes the outputs of this tile.
                    let target = unsafe { std::slice::from_raw_parts_mut(out.at(start), n_valid) };
                    target.copy_from_slice(&result[..n_valid]);
                }
            }
        }
    });
}

/// Lets tasks write to disjoint parts of one output.
struct OutPointer(*mut f32);

// SAFETY: the pointer is only used through `at`, by tasks that write disjoint ranges.
unsafe impl Sync for OutPointer {}

impl OutPointer {
    fn at(&self, idx: usize) -> *mut f32 {
        self.0.wrapping_add(idx)
    }
}

impl QuantizedRows {
    fn view(&self, first: usize, n: usize) -> RowsView<'_> {
        let (codes, scales, sums) = (self.width, self.width / 32, self.width / 16);
        RowsView {
            codes: &self.codes[first * codes..(first + n) * codes],
            scales: &self.scales[first * scales..(first + n) * scales],
            half_sums: &self.half_sums[first * sums..(first + n) * sums],
            width: self.width,
        }
    }
}

// Scale layouts as constants that kernels are specialised on.
const BLOCK_SCALE: u8 = 0;
const BLOCK_MIN: u8 = 1;
const SUPER_MIN: u8 = 2;
const SUPER_HALF: u8 = 3;

/// Calls a kernel that is specialised on bits, layout and centre of a format and on the number
/// of rows.
macro_rules! specialised {
    ($module:ident, $format:expr, $n_rows:expr, $arguments:tt) => {
        match $format {
            QuantizedFormat::Q4_0 => specialised!(@rows $module, $n_rows, 4, BLOCK_SCALE, 8, $arguments),
            QuantizedFormat::Q4_1 => specialised!(@rows $module, $n_rows, 4, BLOCK_MIN, 0, $arguments),
            QuantizedFormat::Q5_0 => specialised!(@rows $module, $n_rows, 5, BLOCK_SCALE, 16, $arguments),
            QuantizedFormat::Q5_1 => specialised!(@rows $module, $n_rows, 5, BLOCK_MIN, 0, $arguments),
            QuantizedFormat::Q8_0 => specialised!(@rows $module, $n_rows, 8, BLOCK_SCALE, 128, $arguments),
            QuantizedFormat::Q4_K => specialised!(@rows $module, $n_rows, 4, SUPER_MIN, 0, $arguments),
            QuantizedFormat::Q5_K => specialised!(@rows $module, $n_rows, 5, SUPER_MIN, 0, $arguments),
            QuantizedFormat::Q6_K => specialised!(@rows $module, $n_rows, 6, SUPER_HALF, 32, $arguments),
        }
    };
    (@rows $module:ident, $n_rows:expr, $bits:literal, $layout:ident, $centre:literal, ($tile:expr, $rows:expr, $out:expr)) => {
        match $n_rows {
            1 => $module::tile_rows::<$bits, $layout, $centre, 1>($tile, $rows, $out),
            2 => $module::tile_rows::<$bits, $layout, $centre, 2>($tile, $rows, $out),
            3 => $module::tile_rows::<$bits, $layout, $centre, 3>($tile, $rows, $out),
            4 => $module::tile_rows::<$bits, $layout, $centre, 4>($tile, $rows, $out),
            5 => $module::tile_rows::<$bits, $layout, $centre, 5>($tile, $rows, $out),
            6 => $module::tile_rows::<$bits, $layout, $centre, 6>($tile, $rows, $out),
            7 => $module::tile_rows::<$bits, $layout, $centre, 7>($tile, $rows, $out),
            _ => $module::tile_rows::<$bits, $layout, $centre, 8>($tile, $rows, $out),
        }
    };
}

/// One tile for up to eight rows.
fn tile_rows(tier: Tier, format: QuantizedFormat, tile: &[u8], rows: RowsView<'_>, out: &mut [[f32; TILE]]) {
    debug_assert!((1..=MAX_ROWS).contains(&out.len()));
    debug_assert_eq!(tile.len(), format.tile_bytes(rows.width / 32));
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni => {
            // SAFETY: the tier is only chosen where the processor has its instructions; `tile` has
            // the bytes of the format for the width of the rows.
            unsafe { specialised!(avx512, format, out.len(), (tile, rows, out)) }
        }
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => {
            // SAFETY: as above.
            unsafe { specialised!(avx2, format, out.len(), (tile, rows, out)) }
        }
        Tier::Portable => portable::tile_rows(format, tile, rows, out),
    }
}
