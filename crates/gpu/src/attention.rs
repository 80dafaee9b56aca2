//! Grouped-query attention over cached rows and the ancestors of a row.
//!
//! A cube takes a head of some rows, and goes through what they see in chunks: each unit has the scores of a slot, then a
//! few dimensions of the values of some slots of the chunk, every so manieth. Rows share what is loaded; where they see
//! different slots, behind those that are committed, each loads its own. What a row sees is counted in the order of its
//! positions, wherever it stands in the pass, so that sums run in one order, whichever rows are beside it (online
//! softmax: arXiv 1805.02867).

use cubecl::prelude::*;

use crate::packed::BLOCK;
use crate::packed_rows::pack_group;
use crate::plan;

/// Less than any score.
const LOWEST: f32 = -3.0e38;
/// Units whose numbers are reduced first.
const SHARE: u32 = 16;

/// How a cube works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttentionConfig {
    /// Units of a cube, and slots that are looked at together. A power of two, at least 128 and at least the vectors of
    /// a key.
    pub(crate) n_units: u32,
    /// Rows of a cube.
    pub(crate) n_rows: u32,
    pub(crate) head_dim: u32,
    /// Numbers of a key or a value that are loaded together; divides the former.
    pub(crate) n_together: u32,
    /// Loads that a unit asks of memory before it needs the first: slots whose values, and at most so many vectors of a
    /// key. No sum's order depends on it, and the program grows with it.
    pub(crate) n_at_once: u32,
    /// Packs the rows that come out; a head is whole blocks.
    pub(crate) packs: bool,
}

impl AttentionConfig {
    /// Vectors of a key, or of a value.
    const fn n_vectors(self) -> u32 {
        self.head_dim / self.n_together
    }

    /// Vectors of a key that are asked of memory at once: a power of two that divides how many there are.
    const fn keys_at_once(self) -> u32 {
        let largest = self.n_vectors() & self.n_vectors().wrapping_neg();
        if largest < self.n_at_once { largest } else { self.n_at_once }
    }

    /// Numbers of a row that a reduction leaves for every unit to reduce.
    const fn n_last(self) -> u32 {
        let n_shares = self.n_units / SHARE;
        if n_shares > SHARE { n_shares / SHARE } else { n_shares }
    }

    /// Where those of a row are.
    const fn reduced_at(self, row: u32) -> u32 {
        let n_shares = self.n_units / SHARE;
        let before = if n_shares > SHARE { self.n_rows * n_shares } else { 0 };
        before + row * self.n_last()
    }

    /// Numbers that reductions leave.
    const fn n_reduced(self) -> u32 {
        self.n_rows * self.n_units / SHARE + self.reduced_at(self.n_rows)
    }

    /// Units that have the same dimensions of the values, of other slots.
    const fn n_parts(self) -> u32 {
        self.n_units / self.n_vectors()
    }
}

/// `out[row] = softmax(scale q Kᵀ) V` over the slots that each row sees; `[n_rows, n_heads * head_dim]`, or packed. `keys`
/// and `values` are counted in vectors.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<N: Float, S: Size>(
    queries: &Array<f32>,
    keys: &Array<Vector<N, S>>,
    values: &Array<Vector<N, S>>,
    plan: &Array<u32>,
    out: &mut Array<f32>,
    packed: &mut Array<u32>,
    n_rows: u32,
    n_heads: u32,
    kv_width: u32,
    heads_per_kv: u32,
    n_committed: u32,
    scale: f32,
    #[comptime] config: AttentionConfig,
) {
    let rows = comptime!(config.n_rows);
    let n_units = comptime!(config.n_units);
    let head_dim = comptime!(config.head_dim);
    let n_together = comptime!(config.n_together);
    let n_vectors = comptime!(config.n_vectors());
    let n_parts = comptime!(config.n_parts());
    let n_at_once = comptime!(config.n_at_once);
    let head = CUBE_POS_X;
    let unit = UNIT_POS;
    let first_column = head / heads_per_kv * head_dim;
    let first_row = CUBE_POS_Y * rows;

    let mut query = SharedMemory::<Vector<f32, S>>::new(comptime!((rows * n_vectors) as usize));
    // `[rows, n_units]`: of a chunk.
    let mut weights = SharedMemory::<f32>::new(comptime!((rows * n_units) as usize));
    let mut slots = SharedMemory::<u32>::new(comptime!((rows * n_units) as usize));
    let mut is_shared = SharedMemory::<u32>::new(comptime!(n_units as usize));
    let mut reduced = SharedMemory::<f32>::new(comptime!(config.n_reduced() as usize));
    // What each row sees. Rows that are none repeat the last.
    let mut hidden_starts = Array::<u32>::new(comptime!(rows as usize));
    let mut hidden_ends = Array::<u32>::new(comptime!(rows as usize));
    let mut list_starts = Array::<u32>::new(comptime!(rows as usize));
    let mut n_seen = Array::<u32>::new(comptime!(rows as usize));
    let mut n_most = 0u32;
    #[unroll]
    for r in 0..rows {
        let row = u32::min(first_row + r, n_rows - 1u32);
        let of_row = row * plan::ROW_WORDS;
        hidden_starts[r as usize] = plan[(of_row + plan::HIDDEN_START) as usize];
        hidden_ends[r as usize] = plan[(of_row + plan::HIDDEN_END) as usize];
        list_starts[r as usize] = plan[(of_row + plan::LIST_START) as usize];
        let n = n_committed + plan[(of_row + plan::LIST_LEN) as usize];
        n_seen[r as usize] = n;
        n_most = u32::max(n_most, n);
        let mut i = unit;
        while i < n_vectors {
            let mut numbers = Vector::<f32, S>::empty();
            #[unroll]
            for d in 0..n_together {
                let at = (row * n_heads + head) * head_dim + i * n_together + d;
                numbers[d as usize] = queries[at as usize] * scale;
            }
            query[(r * n_vectors + i) as usize] = numbers;
            i += n_units;
        }
    }
    // Dimensions of this unit, `[rows, n_together]`, over the slots of its part.
    let part = unit / n_vectors;
    let vector = unit % n_vectors;
    let mut sums = Array::<f32>::new(comptime!((rows * n_together) as usize));
    #[unroll]
    for i in 0..comptime!(rows * n_together) {
        sums[i as usize] = 0.0f32;
    }
    let mut largest = Array::<f32>::new(comptime!(rows as usize));
    let mut totals = Array::<f32>::new(comptime!(rows as usize));
    #[unroll]
    for r in 0..rows {
        largest[r as usize] = f32::new(LOWEST);
        totals[r as usize] = 0.0f32;
    }
    let mut start = 0u32;
    while start < n_most {
        // Those before must be done with what is shared.
        sync_cube();
        let at = start + unit;
        // The slot of each row; a row that sees none here goes along with another.
        let mut slot = Array::<u32>::new(comptime!(rows as usize));
        let mut any = 0u32;
        let mut is_seen_by_any = false;
        #[unroll]
        for r in 0..rows {
            let has_one = at < n_seen[r as usize];
            if has_one {
                any = if at < n_committed {
                    at
                } else {
                    plan[(list_starts[r as usize] + at - n_committed) as usize]
                };
                is_seen_by_any = true;
            }
            slot[r as usize] = any;
        }
        let mut are_one = true;
        #[unroll]
        for r in 0..rows {
            if at >= n_seen[r as usize] {
                slot[r as usize] = any;
            }
            are_one = are_one && slot[r as usize] == any;
        }
        let mut scores = Array::<f32>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            scores[r as usize] = 0.0f32;
        }
        if is_seen_by_any {
            if are_one {
                add_scores(&query, keys, any * kv_width + first_column, &mut scores, 0u32, rows, config);
            } else {
                #[unroll]
                for r in 0..rows {
                    let key = slot[r as usize] * kv_width + first_column;
                    add_scores(&query, keys, key, &mut scores, r, 1u32, config);
                }
            }
        }
        is_shared[unit as usize] = u32::cast_from(are_one);
        let mut is_seen = Array::<bool>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            let is_hidden = at >= hidden_starts[r as usize] && at < hidden_ends[r as usize];
            is_seen[r as usize] = at < n_seen[r as usize] && !is_hidden;
            let score = select(is_seen[r as usize], scores[r as usize], f32::new(LOWEST));
            scores[r as usize] = score;
            weights[(comptime!(r * n_units) + unit) as usize] = score;
            slots[(comptime!(r * n_units) + unit) as usize] = slot[r as usize];
        }
        reduce(&weights, &mut reduced, config, true);
        let mut corrections = Array::<f32>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            let new_largest = f32::max(largest[r as usize], reduction(&reduced, r, config, true));
            let weight = f32::exp(scores[r as usize] - new_largest);
            weights[(comptime!(r * n_units) + unit) as usize] =
                select(is_seen[r as usize], weight, 0.0f32.runtime());
            corrections[r as usize] = f32::exp(largest[r as usize] - new_largest);
            largest[r as usize] = new_largest;
        }
        reduce(&weights, &mut reduced, config, false);
        #[unroll]
        for r in 0..rows {
            let of_chunk = reduction(&reduced, r, config, false);
            totals[r as usize] = totals[r as usize] * corrections[r as usize] + of_chunk;
            #[unroll]
            for d in 0..n_together {
                sums[comptime!((r * n_together + d) as usize)] *= corrections[r as usize];
            }
        }
        let n = u32::min(n_most - start, n_units);
        let mut i = part;
        // Units that are left over have no part.
        while i < n && part < n_parts {
            let mut numbers = Array::<Vector<N, S>>::new(comptime!(n_at_once as usize));
            let mut are_shared = true;
            #[unroll]
            for j in 0..n_at_once {
                let at = u32::min(i + comptime!(j * n_parts), n_units - 1u32) as usize;
                let value = (slots[at] * kv_width + first_column) / n_together + vector;
                numbers[j as usize] = values[value as usize];
                are_shared = are_shared && is_shared[at] == 1u32;
            }
            #[unroll]
            for r in 0..rows {
                // Those of the first row are there.
                if comptime!(r > 0) && !are_shared {
                    #[unroll]
                    for j in 0..n_at_once {
                        let at = u32::min(i + comptime!(j * n_parts), n_units - 1u32);
                        let slot = slots[(comptime!(r * n_units) + at) as usize];
                        let value = (slot * kv_width + first_column) / n_together + vector;
                        numbers[j as usize] = values[value as usize];
                    }
                }
                #[unroll]
                for j in 0..n_at_once {
                    let wanted = i + comptime!(j * n_parts);
                    let at = u32::min(wanted, n_units - 1u32);
                    let weight = weights[(comptime!(r * n_units) + at) as usize];
                    let weight = select(wanted < n, weight, 0.0f32.runtime());
                    #[unroll]
                    for d in 0..n_together {
                        let number = f32::cast_from(numbers[j as usize][comptime!(d as usize)]);
                        let to = comptime!((r * n_together + d) as usize);
                        sums[to] = fma(weight, number, sums[to]);
                    }
                }
            }
            i += comptime!(n_at_once * n_parts);
        }
        start += n_units;
    }
    // The parts of a dimension, in order, a row after the other.
    let mut parts = SharedMemory::<f32>::new(comptime!((n_parts * head_dim) as usize));
    let mut finished = SharedMemory::<f32>::new(comptime!(head_dim as usize));
    #[unroll]
    for r in 0..rows {
        sync_cube();
        if part < n_parts {
            #[unroll]
            for d in 0..n_together {
                parts[(part * head_dim + vector * n_together + d) as usize] =
                    sums[comptime!((r * n_together + d) as usize)];
            }
        }
        sync_cube();
        let is_row = first_row + r < n_rows;
        let first = ((first_row + r) * n_heads + head) * head_dim;
        let mut dim = unit;
        while dim < head_dim {
            let mut sum = 0.0f32;
            #[unroll]
            for p in 0..n_parts {
                sum += parts[(comptime!(p * head_dim) + dim) as usize];
            }
            let value = sum / totals[r as usize];
            if comptime!(config.packs) {
                finished[dim as usize] = value;
            } else if is_row {
                out[(first + dim) as usize] = value;
            }
            dim += n_units;
        }
        if comptime!(config.packs) {
            sync_cube();
            let n_groups = comptime!(head_dim / 4);
            // Whole planes, whose last lanes may have none.
            if unit < comptime!(n_groups.next_multiple_of(32)) {
                let group = u32::min(unit, n_groups - 1u32);
                let mut numbers = Array::<f32>::new(4usize);
                #[unroll]
                for i in 0..4u32 {
                    numbers[i as usize] = finished[(group * 4u32 + i) as usize];
                }
                let record = first / BLOCK + group / 8u32;
                pack_group(&numbers, 0.0f32, packed, record, group % 8u32, is_row && unit < n_groups);
            }
        }
    }
}

/// Adds to the scores of `n` rows from `first` on what their queries make of the key that begins at number `key`.
#[cube]
fn add_scores<N: Float, S: Size>(
    query: &SharedMemory<Vector<f32, S>>,
    keys: &Array<Vector<N, S>>,
    key: u32,
    scores: &mut Array<f32>,
    #[comptime] first: u32,
    #[comptime] n: u32,
    #[comptime] config: AttentionConfig,
) {
    let n_vectors = comptime!(config.n_vectors());
    let at_once = comptime!(config.keys_at_once());
    let key = key / config.n_together;
    for i in 0..comptime!(n_vectors / at_once) {
        let mut numbers = Array::<Vector<N, S>>::new(comptime!(at_once as usize));
        #[unroll]
        for j in 0..at_once {
            numbers[j as usize] = keys[(key + i * at_once + j) as usize];
        }
        #[unroll]
        for j in 0..at_once {
            #[unroll]
            for r in first..comptime!(first + n) {
                let of_query = query[(comptime!(r * n_vectors) + i * at_once + j) as usize];
                #[unroll]
                for d in 0..comptime!(config.n_together as usize) {
                    let number = f32::cast_from(numbers[j as usize][d]);
                    scores[r as usize] = fma(of_query[d], number, scores[r as usize]);
                }
            }
        }
    }
}

/// Sums, or largest, of the numbers that units have of each row, `[rows, n_units]`, in an order that is always the same:
/// 16 neighbours first, then 16 of these. What is left is for `reduction`.
#[cube]
fn reduce(
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
fn reduction(
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
