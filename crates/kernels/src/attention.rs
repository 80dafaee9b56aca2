//! Grouped-query attention over cached rows and the ancestors of a row.

use crate::{Pool, Tier, exp};

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key-value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSlices<'a> {
    /// `[n_rows, n_heads * head_dim]`
    pub queries: &'a [f32],
    /// `[slots, n_kv_heads * head_dim]`
    pub keys: &'a [f32],
    /// `[slots, n_kv_heads * head_dim]`
    pub values: &'a [f32],
    /// Every row sees the slots below this one.
    pub n_committed: usize,
    /// Slots that each row sees besides, in order, its own last.
    pub visible: &'a [Vec<usize>],
}

/// Multiplications below which threads cost more than they bring.
const MIN_PARALLEL_WORK: usize = 1 << 16;

/// `out[row] = softmax(q Kᵀ / sqrt(head_dim)) V` over the slots that `row` sees. Query heads share
/// key-value heads in order; `out` is `[n_rows, n_heads * head_dim]`.
///
/// # Panics
/// When the sizes do not fit each other, or a slot is outside the cache.
pub fn attend(pool: &Pool, tier: Tier, shape: AttentionShape, slices: AttentionSlices<'_>, out: &mut [f32]) {
    let group_width = shape.n_heads / shape.n_kv_heads * shape.head_dim;
    assert_eq!(out.len(), slices.visible.len() * shape.n_kv_heads * group_width, "the size of the output");
    let groups: Vec<std::sync::Mutex<&mut [f32]>> =
        out.chunks_exact_mut(group_width).map(std::sync::Mutex::new).collect();
    let attend_group = |group_idx: usize| {
        // Each group is claimed once, so the lock is never waited for.
        let mut out = groups[group_idx].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni | Tier::Avx2 => {
                // SAFETY: both tiers are detected together with AVX2.
                unsafe { attend_group_avx2(shape, slices, group_idx, &mut out) }
            }
            Tier::Portable => attend_group_portable(shape, slices, group_idx, &mut out),
        }
    };
    let n_slots = slices.n_committed + slices.visible.len();
    if slices.queries.len() * n_slots < MIN_PARALLEL_WORK {
        (0..groups.len()).for_each(attend_group);
    } else {
        pool.run(groups.len(), &attend_group);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn attend_group_avx2(
    shape: AttentionShape,
    slices: AttentionSlices<'_>,
    group_idx: usize,
    out: &mut [f32],
) {
    attend_group_portable(shape, slices, group_idx, out);
}

/// One row and key-value head, with the query heads that share it.
#[inline(always)]
fn attend_group_portable(
    shape: AttentionShape,
    slices: AttentionSlices<'_>,
    group_idx: usize,
    out: &mut [f32],
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim } = shape;
    let AttentionSlices { queries, keys, values, n_committed, visible } = slices;
    let (row, kv_head) = (group_idx / n_kv_heads, group_idx % n_kv_heads);
    let n_sharing = n_heads / n_kv_heads;
    let head = |slot: usize| {
        let start = (slot * n_kv_heads + kv_head) * head_dim;
        start..start + head_dim
    };
    let visible = &visible[row];
    let slots = || (0..n_committed).chain(visible.iter().copied());
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut weights = vec![0.0f32; n_committed + visible.len()];
    for (sharing_idx, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let start = (row * n_heads + kv_head * n_sharing + sharing_idx) * head_dim;
        let query = &queries[start..start + head_dim];
        for (weight, slot) in weights.iter_mut().zip(slots()) {
            *weight = dot(query, &keys[head(slot)]) * scale;
        }
        // Separate loops in lanes: each becomes vectors, where one loop over all would not.
        let max = fold_lanes(&weights, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        weights.iter_mut().for_each(|weight| *weight = exp(*weight - max));
        let sum = fold_lanes(&weights, 0.0, |a, b| a + b);
        let inverse = 1.0 / sum;
        out.fill(0.0);
        // Four slots at a time, by their place in the list, so that the order is every row's own.
        let mut four = [(0.0f32, 0..0), (0.0, 0..0), (0.0, 0..0), (0.0, 0..0)];
        let mut n_held = 0;
        for (weight, slot) in weights.iter().zip(slots()) {
            four[n_held] = (weight * inverse, head(slot));
            n_held += 1;
            if n_held == 4 {
                let [a, b, c, d] = &four;
                let (v, w, x, y) =
                    (&values[a.1.clone()], &values[b.1.clone()], &values[c.1.clone()], &values[d.1.clone()]);
                for (i, sum) in out.iter_mut().enumerate() {
                    *sum += (a.0 * v[i] + b.0 * w[i]) + (c.0 * x[i] + d.0 * y[i]);
                }
                n_held = 0;
            }
        }
        for (weight, range) in &four[..n_held] {
            out.iter_mut().zip(&values[range.clone()]).for_each(|(sum, value)| *sum += weight * value);
        }
    }
}

/// Sums in 16 lanes and then over the lanes in pairs, whatever the machine.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    fold_lanes(&lanes, 0.0, |a, b| a + b) + tail
}

/// Folds values by their place in 16 lanes, then the lanes in pairs.
#[inline(always)]
fn fold_lanes(values: &[f32], start: f32, fold: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let chunks = values.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = fold(lanes[lane], chunk[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane = fold(*lane, value);
    }
    let eight: [f32; 8] = std::array::from_fn(|i| fold(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| fold(eight[i], eight[i + 4]));
    fold(fold(four[0], four[2]), fold(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In f64, straight from the definition.
    fn reference(shape: AttentionShape, slices: AttentionSlices<'_>) -> Vec<f64> {
        let AttentionShape { n_heads, n_kv_heads, head_dim } = shape;
        let mut out = Vec::new();
        for (row, visible) in slices.visible.iter().enumerate() {
            let slots: Vec<usize> = (0..slices.n_committed).chain(visible.iter().copied()).collect();
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let at = |slice: &[f32], slot: usize, i: usize| {
                    f64::from(slice[(slot * n_kv_heads + kv_head) * head_dim + i])
                };
                let query = |i: usize| f64::from(slices.queries[(row * n_heads + head) * head_dim + i]);
                let score = |&slot: &usize| {
                    let dot: f64 = (0..head_dim).map(|i| query(i) * at(slices.keys, slot, i)).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = slots.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    let weighted =
                        slots.iter().zip(&weights).map(|(&slot, w)| w * at(slices.values, slot, i));
                    out.push(weighted.sum::<f64>() / total);
                }
            }
        }
        out
    }

    #[test]
    fn attention_is_what_it_says_on_every_tier_and_alone() {
        for (n_heads, n_kv_heads, head_dim) in [(9, 3, 64), (4, 4, 16), (14, 2, 64), (2, 1, 24)] {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim };
            let mut state = 7u32;
            let mut random = |n: usize| -> Vec<f32> {
                let mut next = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                };
                (0..n).map(|_| next()).collect()
            };
            let visible = [vec![37], vec![37, 38], vec![37, 39], vec![37, 38, 40]];
            let (queries, keys) = (random(4 * n_heads * head_dim), random(41 * n_kv_heads * head_dim));
            let values = random(41 * n_kv_heads * head_dim);
            let slices = AttentionSlices {
                queries: &queries,
                keys: &keys,
                values: &values,
                n_committed: 37,
                visible: &visible,
            };
            let expected = reference(shape, slices);
            let mut first: Option<Vec<f32>> = None;
            for (tier, n_threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]) {
                let pool = Pool::new(n_threads);
                let mut out = vec![0.0; queries.len()];
                attend(&pool, tier, shape, slices, &mut out);
                for (got, expected) in out.iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-5);
                }
                // One row alone gives the same bits.
                let width = n_heads * head_dim;
                let alone = AttentionSlices {
                    queries: &queries[2 * width..3 * width],
                    visible: &visible[2..3],
                    ..slices
                };
                let mut row = vec![0.0; width];
                attend(&pool, tier, shape, alone, &mut row);
                assert_eq!(row, out[2 * width..3 * width]);
                assert!(first.as_ref().is_none_or(|first| *first == out), "{tier:?} differs");
                first = Some(out);
            }
        }
    }
}
