//! What the chunks of a row found, merged in their order.

use cubecl::prelude::*;

use super::{LOWEST, part_words};
use crate::packed::BLOCK;
use crate::packed_rows::pack_group;
use crate::plan;

/// Chunks whose parts are asked of memory at once.
const PARTS_AT_ONCE: u32 = 8;

/// How chunks are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MergeConfig {
    /// Slots of a chunk.
    pub(crate) n_slots: u32,
    pub(crate) head_dim: u32,
    /// Packs the rows that come out; a head is whole blocks.
    pub(crate) packs: bool,
}

/// `out`, or `packed`, of what the chunks found: a cube for a row and a head, a unit for each dimension and more, so that
/// planes are whole.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn merge(
    parts: &Array<f32>,
    plan: &Array<u32>,
    out: &mut Array<f32>,
    packed: &mut Array<u32>,
    n_heads: u32,
    n_chunks: u32,
    n_committed: u32,
    #[comptime] config: MergeConfig,
) {
    let head_dim = comptime!(config.head_dim);
    let row = CUBE_POS_Y;
    let of_head = row * n_heads + CUBE_POS_X;
    let n_seen = n_committed + plan[(row * plan::ROW_WORDS + plan::LIST_LEN) as usize];
    let n = n_seen.div_ceil(config.n_slots);
    let dim = u32::min(UNIT_POS, comptime!(head_dim - 1));
    let mut largest = f32::new(LOWEST);
    let mut total = 0.0f32;
    let mut sum = 0.0f32;
    let mut chunk = 0u32;
    while chunk < n {
        let mut sums = Array::<f32>::new(comptime!(PARTS_AT_ONCE as usize));
        let mut largests = Array::<f32>::new(comptime!(PARTS_AT_ONCE as usize));
        let mut totals = Array::<f32>::new(comptime!(PARTS_AT_ONCE as usize));
        #[unroll]
        for j in 0..PARTS_AT_ONCE {
            let wanted = u32::min(chunk + j, n - 1u32);
            let part = (of_head * n_chunks + wanted) * comptime!(part_words(head_dim));
            sums[j as usize] = parts[(part + dim) as usize];
            largests[j as usize] = parts[(part + head_dim) as usize];
            totals[j as usize] = parts[(part + comptime!(head_dim + 1)) as usize];
        }
        #[unroll]
        for j in 0..PARTS_AT_ONCE {
            if chunk + j < n {
                let of_chunk = largests[j as usize];
                let new = f32::max(largest, of_chunk);
                // Exactly 1 for the larger, so that one chunk alone is what it would be without others.
                let before = select(largest == new, 1.0f32.runtime(), f32::exp(largest - new));
                let here = select(of_chunk == new, 1.0f32.runtime(), f32::exp(of_chunk - new));
                total = fma(totals[j as usize], here, total * before);
                sum = fma(sums[j as usize], here, sum * before);
                largest = new;
            }
        }
        chunk += PARTS_AT_ONCE;
    }
    let value = sum / total;
    if comptime!(config.packs) {
        let mut finished = SharedMemory::<f32>::new(comptime!(head_dim as usize));
        if UNIT_POS < head_dim {
            finished[dim as usize] = value;
        }
        pack_head(&finished, packed, of_head, true, head_dim);
    } else if UNIT_POS < head_dim {
        out[(of_head * head_dim + dim) as usize] = value;
    }
}

/// Packs the numbers of a head of a row, `of_head`, if it `is_one`.
#[cube]
pub(super) fn pack_head(
    finished: &SharedMemory<f32>,
    packed: &mut Array<u32>,
    of_head: u32,
    is_one: bool,
    #[comptime] head_dim: u32,
) {
    sync_cube();
    let n_groups = comptime!(head_dim / 4);
    // Whole planes, whose last lanes may have none.
    if UNIT_POS < comptime!(n_groups.next_multiple_of(32)) {
        let group = u32::min(UNIT_POS, n_groups - 1u32);
        let mut numbers = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            numbers[i as usize] = finished[(group * 4u32 + i) as usize];
        }
        let record = of_head * comptime!(head_dim / BLOCK) + group / 8u32;
        pack_group(&numbers, 0.0f32, packed, record, group % 8u32, is_one && UNIT_POS < n_groups);
    }
    sync_cube();
}
