//! Grouped-query attention over cached rows and the ancestors of a row.
//!
//! A cube takes a head of a row, and goes through what the row sees in chunks of [`CHUNK`] slots: each unit has the score
//! of a slot, then a dimension of the values. What a row sees is counted in the order of its positions, wherever it
//! stands in the pass, so that sums run in one order (online softmax: arXiv 1805.02867).

use cubecl::prelude::*;

use crate::plan;

/// Slots that are looked at together, and units of a cube.
pub(crate) const CHUNK: u32 = 128;
/// Less than any score.
const LOWEST: f32 = -3.0e38;

/// `out[row] = softmax(scale q Kᵀ) V` over the slots that each row sees; `[n_rows, n_heads * head_dim]`.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<N: Float>(
    queries: &Array<f32>,
    keys: &Array<N>,
    values: &Array<N>,
    plan: &Array<u32>,
    out: &mut Array<f32>,
    n_heads: u32,
    kv_width: u32,
    heads_per_kv: u32,
    n_committed: u32,
    scale: f32,
    #[comptime] head_dim: u32,
) {
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
    let mut weights = SharedMemory::<f32>::new(comptime!(CHUNK as usize));
    let mut slots = SharedMemory::<u32>::new(comptime!(CHUNK as usize));
    let mut i = unit;
    while i < head_dim {
        query[i as usize] = queries[(first + i) as usize] * scale;
        i += CHUNK;
    }
    // Dimensions of this unit.
    let n_dims = comptime!(head_dim.div_ceil(CHUNK));
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
            let key = slot * kv_width + first_column;
            score = 0.0f32;
            for i in 0..head_dim {
                score = fma(query[i as usize], f32::cast_from(keys[(key + i) as usize]), score);
            }
        }
        weights[unit as usize] = score;
        slots[unit as usize] = slot;
        sync_cube();
        let n = u32::min(n_seen - start, CHUNK);
        let mut new_largest = largest;
        for i in 0..n {
            new_largest = f32::max(new_largest, weights[i as usize]);
        }
        sync_cube();
        let weight = if is_seen { f32::exp(score - new_largest) } else { 0.0f32.runtime() };
        weights[unit as usize] = weight;
        sync_cube();
        let correction = f32::exp(largest - new_largest);
        largest = new_largest;
        total *= correction;
        for i in 0..n {
            total += weights[i as usize];
        }
        #[unroll]
        for d in 0..n_dims {
            let dim = unit + comptime!(d * CHUNK);
            if dim < head_dim {
                let mut sum = sums[d as usize] * correction;
                for i in 0..n {
                    let value = values[(slots[i as usize] * kv_width + first_column + dim) as usize];
                    sum = fma(weights[i as usize], f32::cast_from(value), sum);
                }
                sums[d as usize] = sum;
            }
        }
        start += CHUNK;
    }
    #[unroll]
    for d in 0..n_dims {
        let dim = unit + comptime!(d * CHUNK);
        if dim < head_dim {
            out[(first + dim) as usize] = sums[d as usize] / total;
        }
    }
}
