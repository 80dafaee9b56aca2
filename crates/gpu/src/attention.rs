//! Grouped-query attention over cached rows and the ancestors of a row.
//!
//! A cube takes a head of some rows and a chunk of what they see. Units beside each other share the key of a slot, so that
//! memory is read in whole lines; then each has a few dimensions of the values of some slots of the chunk, every so
//! manieth. Rows share what is loaded; where they see different slots, behind those that are committed, each loads its own.
//! What chunks found is merged in their order (online softmax: arXiv 1805.02867; a cube for each chunk: Flash-Decoding).
//!
//! What a row sees is counted in the order of its positions, wherever it stands in the pass, and chunks begin at
//! multiples of their length in that order. So sums run in one order, whichever rows are beside it.

mod chunks;
mod reductions;

use cubecl::prelude::*;

use chunks::pack_head;
pub(crate) use chunks::{MergeConfig, merge};
use reductions::{reduce, reduction};

use crate::plan;

/// Less than any score.
const LOWEST: f32 = -3.0e38;
/// Units whose numbers are reduced first.
const SHARE: u32 = 16;

/// How a cube works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttentionConfig {
    /// Units of a cube, and slots of a chunk. A power of two, at least 128 and at least the vectors of a key.
    pub(crate) n_units: u32,
    /// Rows of a cube.
    pub(crate) n_rows: u32,
    pub(crate) head_dim: u32,
    /// Numbers of a key or a value that are loaded together; divides the former.
    pub(crate) n_together: u32,
    /// Units that share a key: 1, or as many as [`lanes`] says.
    pub(crate) n_lanes: u32,
    /// Loads that a unit asks of memory before it needs the first: vectors of keys, and slots whose values. No sum's
    /// order depends on it, and the program grows with it. A power of two.
    pub(crate) n_at_once: u32,
    /// Keeps compilers, by a barrier of the plane, from moving these loads to where they are needed, one wait after the other.
    pub(crate) holds_loads: bool,
    /// Packs the rows that come out; a head is whole blocks.
    pub(crate) packs: bool,
}

/// The most units that share a key, beside each other in a plane.
pub(crate) const MAX_LANES: u32 = 8;

/// Of these, as many as can share keys of so many vectors.
pub(crate) const fn lanes(n_vectors: u32) -> u32 {
    let largest = n_vectors & n_vectors.wrapping_neg();
    if largest < MAX_LANES { largest } else { MAX_LANES }
}

impl AttentionConfig {
    /// Vectors of a key, or of a value.
    const fn n_vectors(self) -> u32 {
        self.head_dim / self.n_together
    }

    /// Vectors of a key that a unit has.
    const fn vectors_of_lane(self) -> u32 {
        self.n_vectors() / self.n_lanes
    }

    /// Of these, those that are asked of memory at once: a power of two that divides how many there are.
    const fn vectors_at_once(self) -> u32 {
        let largest = self.vectors_of_lane() & self.vectors_of_lane().wrapping_neg();
        if largest < self.n_at_once { largest } else { self.n_at_once }
    }

    /// Slots whose keys a unit asks of memory at once.
    const fn slots_at_once(self) -> u32 {
        if self.vectors_at_once() < self.vectors_of_lane() {
            1
        } else {
            self.n_at_once / self.vectors_at_once()
        }
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

    /// Chunks of so many slots.
    pub(crate) const fn n_chunks(self, n_slots: usize) -> usize {
        n_slots.div_ceil(self.n_units as usize)
    }

    /// Dimensions that a unit finishes, at most.
    const fn dims_of_unit(self) -> u32 {
        self.head_dim.div_ceil(self.n_units)
    }
}

/// Words that a chunk leaves of a row and a head: its values for each dimension, the largest score, and the sum of the
/// weights.
pub(crate) const fn part_words(head_dim: u32) -> u32 {
    head_dim + 2
}

/// The slots of a chunk, and where a head has its numbers.
#[derive(CubeType)]
struct Chunk {
    /// `[rows, n_units]`
    slots: SharedMemory<u32>,
    /// Which of them are the same for all rows.
    is_shared: SharedMemory<u32>,
    /// Vectors of a slot in front of those of the head.
    first_vector: u32,
    /// Vectors of a slot.
    slot_vectors: u32,
}

/// What a chunk makes of `softmax(scale q Kᵀ) V` over the slots that each row sees. Keys and values are only read, which is
/// not said: compilers move loads of what never changes past any barrier. Where there is one chunk, that is
/// `out`, `[n_rows, n_heads * head_dim]`, or packed; else its part, `[n_rows, n_heads, n_chunks, head_dim + 2]`. `keys` and
/// `values` are counted in vectors.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend<N: Float, S: Size>(
    queries: &Array<f32>,
    keys: &mut Array<Vector<N, S>>,
    values: &mut Array<Vector<N, S>>,
    plan: &Array<u32>,
    parts: &mut Array<f32>,
    out: &mut Array<f32>,
    packed: &mut Array<u32>,
    n_rows: u32,
    n_heads: u32,
    n_chunks: u32,
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
    let head = CUBE_POS_X;
    let unit = UNIT_POS;
    let first_row = CUBE_POS_Y * rows;
    let start = CUBE_POS_Z * n_units;

    let mut query = SharedMemory::<Vector<f32, S>>::new(comptime!((rows * n_vectors) as usize));
    // `[rows, n_units]`, of the chunk.
    let mut weights = SharedMemory::<f32>::new(comptime!((rows * n_units) as usize));
    let mut chunk = Chunk {
        slots: SharedMemory::<u32>::new(comptime!((rows * n_units) as usize)),
        is_shared: SharedMemory::<u32>::new(comptime!(n_units as usize)),
        first_vector: head / heads_per_kv * n_vectors,
        slot_vectors: kv_width / n_together,
    };
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
    }
    // Chunks that no row sees have nothing to say.
    if start < n_most {
        let n = u32::min(n_most - start, n_units);
        #[unroll]
        for r in 0..rows {
            let row = u32::min(first_row + r, n_rows - 1u32);
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
        // The slot of each row; a row that sees none here goes along with another.
        let at = start + unit;
        let mut slot = Array::<u32>::new(comptime!(rows as usize));
        let mut any = 0u32;
        #[unroll]
        for r in 0..rows {
            if at < n_seen[r as usize] {
                any = if at < n_committed {
                    at
                } else {
                    plan[(list_starts[r as usize] + at - n_committed) as usize]
                };
            }
            slot[r as usize] = any;
        }
        let mut are_one = true;
        let mut is_seen = Array::<bool>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            let has_one = at < n_seen[r as usize];
            if !has_one {
                slot[r as usize] = any;
            }
            are_one = are_one && slot[r as usize] == any;
            let is_hidden = at >= hidden_starts[r as usize] && at < hidden_ends[r as usize];
            is_seen[r as usize] = has_one && !is_hidden;
            chunk.slots[(comptime!(r * n_units) + unit) as usize] = slot[r as usize];
            weights[(comptime!(r * n_units) + unit) as usize] = f32::new(LOWEST);
        }
        chunk.is_shared[unit as usize] = u32::cast_from(are_one);
        sync_cube();
        score(&query, keys, &chunk, &mut weights, n, config);
        sync_cube();
        let mut scores = Array::<f32>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            let at = (comptime!(r * n_units) + unit) as usize;
            scores[r as usize] = select(is_seen[r as usize], weights[at], f32::new(LOWEST));
            weights[at] = scores[r as usize];
        }
        reduce(&weights, &mut reduced, config, true);
        let mut largest = Array::<f32>::new(comptime!(rows as usize));
        #[unroll]
        for r in 0..rows {
            largest[r as usize] = reduction(&reduced, r, config, true);
            let weight = f32::exp(scores[r as usize] - largest[r as usize]);
            weights[(comptime!(r * n_units) + unit) as usize] =
                select(is_seen[r as usize], weight, 0.0f32.runtime());
        }
        reduce(&weights, &mut reduced, config, false);
        // Dimensions of each unit, `[rows, n_together]`, over the slots of its part; then all of them together.
        let mut shares = SharedMemory::<f32>::new(comptime!((rows * config.n_parts() * head_dim) as usize));
        weigh(values, &weights, &chunk, &mut shares, n, config);
        sync_cube();
        let mut finished = SharedMemory::<f32>::new(comptime!(head_dim as usize));
        #[unroll]
        for r in 0..rows {
            let row = first_row + r;
            let of_head = row * n_heads + head;
            let total = reduction(&reduced, r, config, false);
            let mut dim = unit;
            #[unroll]
            for _ in 0..comptime!(config.dims_of_unit()) {
                if dim < head_dim {
                    let mut sum = 0.0f32;
                    #[unroll]
                    for p in 0..comptime!(config.n_parts()) {
                        let share = comptime!((r * config.n_parts() + p) * head_dim) + dim;
                        sum += shares[share as usize];
                    }
                    if n_chunks == 1u32 {
                        let value = sum / total;
                        if comptime!(config.packs) {
                            finished[dim as usize] = value;
                        } else if row < n_rows {
                            out[(of_head * head_dim + dim) as usize] = value;
                        }
                    } else if row < n_rows {
                        let part = (of_head * n_chunks + CUBE_POS_Z) * comptime!(part_words(head_dim));
                        parts[(part + dim) as usize] = sum;
                        if dim == 0u32 {
                            parts[(part + head_dim) as usize] = largest[r as usize];
                            parts[(part + comptime!(head_dim + 1)) as usize] = total;
                        }
                    }
                }
                dim += n_units;
            }
            if comptime!(config.packs) && n_chunks == 1u32 {
                pack_head(&finished, packed, of_head, row < n_rows, head_dim);
            }
        }
    }
}

/// Writes to `weights` what the query of each row makes of the keys of the first `n` slots, `n` at least 1.
#[cube]
fn score<N: Float, S: Size>(
    query: &SharedMemory<Vector<f32, S>>,
    keys: &Array<Vector<N, S>>,
    chunk: &Chunk,
    weights: &mut SharedMemory<f32>,
    n: u32,
    #[comptime] config: AttentionConfig,
) {
    let rows = comptime!(config.n_rows);
    let n_units = comptime!(config.n_units);
    let n_lanes = comptime!(config.n_lanes);
    let at_once = comptime!(config.vectors_at_once());
    let n_slots = comptime!(config.slots_at_once());
    let lane = UNIT_POS % n_lanes;
    let mut i = UNIT_POS / n_lanes;
    // As often for all units: those of a plane talk to each other.
    for _ in 0..n.div_ceil(comptime!(n_slots * n_units / n_lanes)) {
        let mut scores = Array::<f32>::new(comptime!((n_slots * rows) as usize));
        #[unroll]
        for s in 0..comptime!(n_slots * rows) {
            scores[s as usize] = 0.0f32;
        }
        let mut are_shared = true;
        #[unroll]
        for j in 0..n_slots {
            let at = u32::min(i + comptime!(j * n_units / n_lanes), comptime!(n_units - 1));
            are_shared = are_shared && chunk.is_shared[at as usize] == 1u32;
        }
        for v in 0..comptime!(config.vectors_of_lane() / at_once) {
            let first = v * at_once * n_lanes + lane;
            let mut numbers = Array::<Vector<N, S>>::new(comptime!((n_slots * at_once) as usize));
            #[unroll]
            for r in 0..rows {
                // Those of the first row are there.
                if comptime!(r == 0) || !are_shared {
                    #[unroll]
                    for j in 0..n_slots {
                        let at = u32::min(i + comptime!(j * n_units / n_lanes), comptime!(n_units - 1));
                        let slot = chunk.slots[(comptime!(r * n_units) + at) as usize];
                        let key = slot * chunk.slot_vectors + chunk.first_vector + first;
                        #[unroll]
                        for k in 0..at_once {
                            numbers[comptime!((j * at_once + k) as usize)] =
                                keys[(key + comptime!(k * n_lanes)) as usize];
                        }
                    }
                }
                if comptime!(r == 0 && config.holds_loads) {
                    sync_plane();
                }
                #[unroll]
                for k in 0..at_once {
                    let of_query = query[(comptime!(r * config.n_vectors() + k * n_lanes) + first) as usize];
                    #[unroll]
                    for j in 0..n_slots {
                        let to = comptime!((r * n_slots + j) as usize);
                        #[unroll]
                        for d in 0..comptime!(config.n_together as usize) {
                            let number = f32::cast_from(numbers[comptime!((j * at_once + k) as usize)][d]);
                            scores[to] = fma(of_query[d], number, scores[to]);
                        }
                    }
                }
            }
        }
        #[unroll]
        for r in 0..rows {
            #[unroll]
            for j in 0..n_slots {
                let mut sum = scores[comptime!((r * n_slots + j) as usize)];
                if comptime!(n_lanes > 1) {
                    sum += plane_shuffle_xor(sum, 1u32);
                }
                if comptime!(n_lanes > 2) {
                    sum += plane_shuffle_xor(sum, 2u32);
                }
                if comptime!(n_lanes > 4) {
                    sum += plane_shuffle_xor(sum, 4u32);
                }
                let at = i + comptime!(j * n_units / n_lanes);
                if lane == 0u32 && at < n {
                    weights[(comptime!(r * n_units) + at) as usize] = sum;
                }
            }
        }
        i += comptime!(n_slots * n_units / n_lanes);
    }
}

/// Writes to `shares`, `[rows, n_parts, head_dim]`, the values of the first `n` slots by their weights, each part of the
/// slots for itself.
#[cube]
fn weigh<N: Float, S: Size>(
    values: &Array<Vector<N, S>>,
    weights: &SharedMemory<f32>,
    chunk: &Chunk,
    shares: &mut SharedMemory<f32>,
    n: u32,
    #[comptime] config: AttentionConfig,
) {
    let rows = comptime!(config.n_rows);
    let n_units = comptime!(config.n_units);
    let n_together = comptime!(config.n_together);
    let n_parts = comptime!(config.n_parts());
    let n_at_once = comptime!(config.n_at_once);
    // Units that are left over have no part, and go along.
    let wanted_part = UNIT_POS / comptime!(config.n_vectors());
    let part = u32::min(wanted_part, comptime!(n_parts - 1));
    let vector = UNIT_POS % comptime!(config.n_vectors());
    let mut sums = Array::<f32>::new(comptime!((rows * n_together) as usize));
    #[unroll]
    for i in 0..comptime!(rows * n_together) {
        sums[i as usize] = 0.0f32;
    }
    let mut i = part;
    // As often for all units, which wait for each other.
    for _ in 0..n.div_ceil(comptime!(n_at_once * n_parts)) {
        let mut numbers = Array::<Vector<N, S>>::new(comptime!(n_at_once as usize));
        let mut are_shared = true;
        #[unroll]
        for j in 0..n_at_once {
            let at = u32::min(i + comptime!(j * n_parts), comptime!(n_units - 1));
            are_shared = are_shared && chunk.is_shared[at as usize] == 1u32;
        }
        #[unroll]
        for r in 0..rows {
            // Those of the first row are there.
            if comptime!(r == 0) || !are_shared {
                #[unroll]
                for j in 0..n_at_once {
                    let at = u32::min(i + comptime!(j * n_parts), comptime!(n_units - 1));
                    let slot = chunk.slots[(comptime!(r * n_units) + at) as usize];
                    numbers[j as usize] =
                        values[(slot * chunk.slot_vectors + chunk.first_vector + vector) as usize];
                }
            }
            if comptime!(r == 0 && config.holds_loads) {
                sync_plane();
            }
            #[unroll]
            for j in 0..n_at_once {
                // Those behind the last slot weigh nothing.
                let wanted = i + comptime!(j * n_parts);
                let at = u32::min(wanted, comptime!(n_units - 1));
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
    if wanted_part == part {
        #[unroll]
        for r in 0..rows {
            #[unroll]
            for d in 0..n_together {
                let to = comptime!(r * n_parts * config.head_dim + d)
                    + part * config.head_dim
                    + vector * n_together;
                shares[to as usize] = sums[comptime!((r * n_together + d) as usize)];
            }
        }
    }
}
