//! What units of a cube have, taken together.

use cubecl::prelude::*;

use super::{AttentionConfig, SHARE};

/// Sums, or largest, of the numbers that units have of each row, `[rows, n_units]`, in an order that is always the same:
/// 16 neighbours first, then 16 of these. What is left is for `reduction`.
#[cube]
pub(super) fn reduce(
    numbers: &SharedMemory<f32>,
    reduced: &mut SharedMemory<f32>,
    #[comptime] config: AttentionConfig,
    #[comptime] is_largest: bool,
) {
    let n_shares = comptime!(config.n_units / SHARE);
    sync_cube();
    let mut i = UNIT_POS;
    while i < comptime!(config.n_rows * n_shares) {
        let mut so_far = numbers[(i * SHARE) as usize];
        #[unroll]
        for j in 1..SHARE {
            let number = numbers[(i * SHARE + j) as usize];
            so_far = if comptime!(is_largest) { f32::max(so_far, number) } else { so_far + number };
        }
        reduced[i as usize] = so_far;
        i += config.n_units;
    }
    sync_cube();
    if comptime!(n_shares > SHARE) {
        let n_groups = comptime!(n_shares / SHARE);
        let shares = comptime!(config.n_rows * n_shares);
        if UNIT_POS < comptime!(config.n_rows * n_groups) {
            let mut so_far = reduced[(UNIT_POS * SHARE) as usize];
            #[unroll]
            for j in 1..SHARE {
                let number = reduced[(UNIT_POS * SHARE + j) as usize];
                so_far = if comptime!(is_largest) { f32::max(so_far, number) } else { so_far + number };
            }
            reduced[(shares + UNIT_POS) as usize] = so_far;
        }
        sync_cube();
    }
}

/// What `reduce` found for a row. Every unit gets it.
#[cube]
pub(super) fn reduction(
    reduced: &SharedMemory<f32>,
    #[comptime] row: u32,
    #[comptime] config: AttentionConfig,
    #[comptime] is_largest: bool,
) -> f32 {
    let start = comptime!(config.reduced_at(row));
    let mut so_far = reduced[comptime!(start as usize)];
    #[unroll]
    for i in 1..comptime!(config.n_last()) {
        let number = reduced[comptime!((start + i) as usize)];
        so_far = if comptime!(is_largest) { f32::max(so_far, number) } else { so_far + number };
    }
    so_far
}
