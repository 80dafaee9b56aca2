//! Grouped-query attention over cached rows and the ancestors of a row.
//!
//! A cube takes a head of a row, and goes through what the row sees in chunks: each unit has the score of a slot, then a
//! dimension of the values over a share of the chunk. What a row sees is counted in the order of its positions, wherever
//! it stands in the pass, so that sums run in one order (online softmax: arXiv 1805.02867).

use cubecl::prelude::*;

use crate::plan;

/// Less than any score.
const LOWEST: f32 = -3.0e38;
/// Units whose numbers are reduced first.
const SHARE: u32 = 16;
/// Slots whose values are asked of memory at once.
const AT_ONCE: u32 = 32;
/// Vectors of a key that are asked of memory at once, where it has as many.
const KEYS_AT_ONCE: u32 = 8;

/// How a cube works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttentionConfig {
    /// Units of a cube, and slots that are looked at together. A power of two, at least 128.
    pub(crate) n_units: u32,
    pub(crate) head_dim: u32,
    /// Numbers of a key that are loaded together; divides the former.
    pub(crate) n_together: u32,
}

impl AttentionConfig {
    /// Units that have a dimension of the values each; the others have other slots.
    const fn dim_units(self) -> u32 {
        let wanted = if self.head_dim <= 128 { 128 } else { self.n_units };
        if wanted < self.n_units { wanted } else { self.n_units }
    }
}

/// `out[row] = softmax(scale q Kᵀ) V` over the slots that each row sees; `[n_rows, n_heads * head_dim]`. `keys` are
/// counted in vectors.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<N: Float, S: Size>(
    queries: &Array<f32>,
    keys: &Array<Vector<N, S>>,
    values: &Array<N>,
    plan: &Array<u32>,
    out: &mut Array<f32>,
    n_heads: u32,
    kv_width: u32,
    heads_per_kv: u32,
    n_committed: u32,
    scale: f32,
    #[comptime] config: AttentionConfig,
) {
    let n_units = comptime!(config.n_units);
    let head_dim = comptime!(config.head_dim);
    let n_together = comptime!(config.n_together);
    let dim_units = comptime!(config.dim_units());
    let n_vectors = comptime!(head_dim / n_together);
    let keys_at_once = comptime!(if n_vectors % KEYS_AT_ONCE == 0 { KEYS_AT_ONCE } else { 1 });
    let head = CUBE_POS_X;
    let row = CUBE_POS_Y;
    let unit = UNIT_POS;
    let of_row = row * plan::ROW_WORDS;
    let hidden_start = plan[(of_row + plan::HIDDEN_START) as usize];
    let hidden_end = plan[(of_row + plan::HIDDEN_END) as usize];
    let list_start = plan[(of_row + plan::LIST_START) as usize];
    let n_seen = n_committed + plan[(of_row + plan::LIST_LEN) as usize];
    let first_column = head / heads_per_kv * head_dim;
    let first = (row * n_heads + head) * head_dim;

    let mut query = SharedMemory::<f32>::new(comptime!(head_dim as usize));
    let mut weights = SharedMemory::<f32>::new(comptime!(n_units as usize));
    let mut slots = SharedMemory::<u32>::new(comptime!(n_units as usize));
    let mut reduced = SharedMemory::<f32>::new(comptime!((n_units / SHARE) as usize));
    let mut i = unit;
    while i < head_dim {
        query[i as usize] = queries[(first + i) as usize] * scale;
        i += n_units;
    }
    // Dimensions of this unit, over the slots of its part of a chunk.
    let n_dims = comptime!(head_dim.div_ceil(dim_units));
    let n_slots = comptime!(dim_units);
    let part = unit / dim_units;
    let dim_unit = unit % dim_units;
    let mut sums = Array::<f32>::new(comptime!(n_dims as usize));
    #[unroll]
    for d in 0..n_dims {
        sums[d as usize] = 0.0f32;
    }
    let mut largest = f32::new(LOWEST);
    let mut total = 0.0f32;
    let mut start = 0u32;
    while start < n_seen {
        // Those before must be done with what is shared.
        sync_cube();
        let at = start + unit;
        let mut slot = 0u32;
        let mut score = f32::new(LOWEST);
        let is_seen = at < n_seen && (at < hidden_start || at >= hidden_end);
        if is_seen {
            slot = if at < n_committed { at } else { plan[(list_start + at - n_committed) as usize] };
            let key = (slot * kv_width + first_column) / n_together;
            score = 0.0f32;
            for i in 0..comptime!(head_dim / (n_together * keys_at_once)) {
                let mut numbers = Array::<Vector<N, S>>::new(comptime!(keys_at_once as usize));
                #[unroll]
                for j in 0..keys_at_once {
                    numbers[j as usize] = keys[(key + i * keys_at_once + j) as usize];
                }
                #[unroll]
                for j in 0..comptime!(keys_at_once * n_together) {
                    let number =
                        numbers[comptime!((j / n_together) as usize)][comptime!((j % n_together) as usize)];
                    let at = i * comptime!(keys_at_once * n_together) + j;
                    score = fma(query[at as usize], f32::cast_from(number), score);
                }
            }
        }
        weights[unit as usize] = score;
        slots[unit as usize] = slot;
        let new_largest = f32::max(largest, reduce(&weights, &mut reduced, n_units, true));
        let weight = if is_seen { f32::exp(score - new_largest) } else { 0.0f32.runtime() };
        weights[unit as usize] = weight;
        let correction = f32::exp(largest - new_largest);
        largest = new_largest;
        total = total * correction + reduce(&weights, &mut reduced, n_units, false);
        // Behind the last slot weights are zero, and slots the first.
        let n = u32::min(n_seen - start, n_units);
        let first_slot = part * n_slots;
        let last_slot = u32::min(first_slot + n_slots, n.div_ceil(AT_ONCE) * AT_ONCE);
        #[unroll]
        for d in 0..n_dims {
            let dim = dim_unit + comptime!(d * dim_units);
            if dim < head_dim {
                let mut sum = sums[d as usize] * correction;
                let mut i = first_slot;
                while i < last_slot {
                    let mut numbers = Array::<N>::new(comptime!(AT_ONCE as usize));
                    #[unroll]
                    for j in 0..AT_ONCE {
                        let at = slots[(i + j) as usize] * kv_width + first_column + dim;
                        numbers[j as usize] = values[at as usize];
                    }
                    #[unroll]
                    for j in 0..AT_ONCE {
                        sum = fma(weights[(i + j) as usize], f32::cast_from(numbers[j as usize]), sum);
                    }
                    i += AT_ONCE;
                }
                sums[d as usize] = sum;
            }
        }
        start += n_units;
    }
    // The parts of a dimension, in order.
    let n_parts = comptime!(n_units / dim_units);
    #[unroll]
    for d in 0..n_dims {
        sync_cube();
        weights[unit as usize] = sums[d as usize];
        sync_cube();
        let dim = dim_unit + comptime!(d * dim_units);
        if part == 0u32 && dim < head_dim {
            let mut sum = 0.0f32;
            #[unroll]
            for p in 0..n_parts {
                sum += weights[(comptime!(p * dim_units) + dim_unit) as usize];
            }
            out[(first + dim) as usize] = sum / total;
        }
    }
}

/// The sum, or the largest, of a number of each unit, in an order that is always the same: 16 neighbours first. Every
/// unit gets it.
#[cube]
fn reduce(
    numbers: &SharedMemory<f32>,
    reduced: &mut SharedMemory<f32>,
    #[comptime] n_units: u32,
    #[comptime] is_largest: bool,
) -> f32 {
    let n_shares = comptime!(n_units / SHARE);
    sync_cube();
    if UNIT_POS < n_shares {
        let mut so_far = numbers[(UNIT_POS * SHARE) as usize];
        #[unroll]
        for i in 1..SHARE {
            let number = numbers[(UNIT_POS * SHARE + i) as usize];
            so_far = if comptime!(is_largest) { f32::max(so_far, number) } else { so_far + number };
        }
        reduced[UNIT_POS as usize] = so_far;
    }
    sync_cube();
    let mut so_far = reduced[0];
    for i in 1..n_shares {
        let number = reduced[i as usize];
        so_far = if comptime!(is_largest) { f32::max(so_far, number) } else { so_far + number };
    }
    so_far
}
