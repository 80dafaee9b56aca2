//! Grouped-query attention over cached rows and the ancestors of a row.

use std::cell::RefCell;
use std::ops::Range;

use crate::kv_cache::{CacheNumber, LayerNumbers, LayerRows, SLOTS};
#[cfg(target_arch = "aarch64")]
use crate::lanes::NeonLanes;
#[cfg(target_arch = "x86_64")]
use crate::lanes::{Avx2Lanes, Avx512Lanes};
use crate::lanes::{Lanes, PortableLanes, n_vectors};
use crate::tier::InstructionSet;
use crate::{CachedLayer, Pool, SharedSlice, Tier, exp};

/// Sizes of attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key-value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

impl AttentionShape {
    /// Heads whose scores are divided by the root of their width (arXiv 1706.03762, §3.2.1).
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self { n_heads, n_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSlices<'a> {
    /// `[n_rows, n_heads * head_dim]`
    pub queries: &'a [f32],
    /// Keys and values of the rows so far, those of the pass included.
    pub cached: CachedLayer<'a>,
    /// Every row sees the slots below this one.
    pub n_committed: usize,
    /// Slots that each row sees besides, in ascending order, its own last.
    pub visible: &'a [Vec<usize>],
    /// Slots below `n_committed` that each row does not see; where it is empty all rows see all of them.
    pub hidden: &'a [Range<usize>],
}

/// Multiplications below which threads cost more than they bring.
const MIN_PARALLEL_WORK: usize = 1 << 16;
/// Pairs of a row and a query head that share the loads of keys and values.
const MAX_PAIRS: usize = 8;

/// `out[row] = softmax(scale q Kᵀ) V` over the slots that `row` sees. Query heads share
/// key-value heads in order; `out` is `[n_rows, n_heads * head_dim]`.
///
/// # Panics
/// When the sizes do not fit each other, or a slot is outside the cache.
pub fn attend(pool: &Pool, tier: Tier, shape: AttentionShape, slices: &AttentionSlices<'_>, out: &mut [f32]) {
    match slices.cached.numbers {
        LayerNumbers::F32(cached) => attend_cached(pool, tier, shape, slices, cached, out),
        LayerNumbers::F16(cached) => attend_cached(pool, tier, shape, slices, cached, out),
    }
}

fn attend_cached<T: CacheNumber>(
    pool: &Pool,
    tier: Tier,
    shape: AttentionShape,
    slices: &AttentionSlices<'_>,
    cached: LayerRows<'_, T>,
    out: &mut [f32],
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "query heads share key-value heads evenly");
    let n_rows = slices.visible.len();
    assert!(out.len() == n_rows * n_heads * head_dim && slices.queries.len() == out.len());
    let n_slots = slices.visible.iter().filter_map(|slots| slots.last()).max().map_or(0, |last| last + 1);
    let AttentionSlices { hidden, n_committed, .. } = *slices;
    assert!(
        hidden.is_empty() || hidden.len() == n_rows && hidden.iter().all(|slots| slots.end <= n_committed)
    );
    assert!(n_slots * n_kv_heads * head_dim <= cached.values.len(), "slots outside the cache");
    let n_sharing = n_heads / n_kv_heads;
    // A row's heads are shared among the threads where there are fewer rows than threads.
    let is_narrow = n_rows * n_kv_heads < pool.n_threads();
    let heads_together = if is_narrow { n_sharing.min(2) } else { n_sharing.min(MAX_PAIRS) };
    let rows_together = (MAX_PAIRS / heads_together).min(n_rows.div_ceil(pool.n_threads())).max(1);
    let n_chunks = n_sharing.div_ceil(heads_together);
    let out = SharedSlice::new(out);
    let is_parallel = slices.queries.len() * n_slots >= MIN_PARALLEL_WORK;
    // Tasks of one key-value head come one after the other, while its keys are in the caches.
    let n_row_blocks = n_rows.div_ceil(rows_together);
    pool.run_if(is_parallel, n_kv_heads * n_chunks * n_row_blocks, &|task| {
        let (within, row_block) = (task / n_row_blocks, task % n_row_blocks);
        let (kv_head, chunk) = (within / n_chunks, within % n_chunks);
        let first_row = row_block * rows_together;
        let pairs = Pairs {
            first_row,
            first_head: kv_head * n_sharing + chunk * heads_together,
            n_heads: heads_together.min(n_sharing - chunk * heads_together),
            kv_head,
            n_slots,
        };
        let n = pairs.n_heads * rows_together.min(n_rows - first_row);
        SCRATCH.with_borrow_mut(|scratch| match n {
            1 => attend_pairs::<T, 1>(tier, shape, slices, cached, pairs, scratch, &out),
            2 => attend_pairs::<T, 2>(tier, shape, slices, cached, pairs, scratch, &out),
            3 => attend_pairs::<T, 3>(tier, shape, slices, cached, pairs, scratch, &out),
            4 => attend_pairs::<T, 4>(tier, shape, slices, cached, pairs, scratch, &out),
            5 => attend_pairs::<T, 5>(tier, shape, slices, cached, pairs, scratch, &out),
            6 => attend_pairs::<T, 6>(tier, shape, slices, cached, pairs, scratch, &out),
            7 => attend_pairs::<T, 7>(tier, shape, slices, cached, pairs, scratch, &out),
            _ => attend_pairs::<T, 8>(tier, shape, slices, cached, pairs, scratch, &out),
        });
    });
}

/// Buffers of one task, kept from pass to pass.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    query_lanes: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows with query heads that share a key-value head: pair `i` is row `first_row + i / n_heads` with
/// head `first_head + i % n_heads`.
#[derive(Clone, Copy)]
struct Pairs {
    first_row: usize,
    first_head: usize,
    n_heads: usize,
    kv_head: usize,
    /// Slots in use, those of the pass included.
    n_slots: usize,
}

impl Pairs {
    fn row(&self, pair: usize) -> usize {
        self.first_row + pair / self.n_heads
    }

    /// Where a pair starts in queries and output.
    fn start(&self, pair: usize, shape: AttentionShape) -> usize {
        (self.row(pair) * shape.n_heads + self.first_head + pair % self.n_heads) * shape.head_dim
    }
}

/// Scores that share a step of the softmax.
const LANES: usize = 16;
/// Dimensions of values that are summed in one run over the slots at most: four of the widest vectors.
const MAX_DIMS: usize = 64;

/// Attention of `N` pairs on `tier`.
fn attend_pairs<T: CacheNumber, const N: usize>(
    tier: Tier,
    shape: AttentionShape,
    slices: &AttentionSlices<'_>,
    cached: LayerRows<'_, T>,
    pairs: Pairs,
    scratch: &mut Scratch,
    out: &SharedSlice<'_, f32>,
) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn avx512<T: CacheNumber, const N: usize>(
        shape: AttentionShape,
        slices: &AttentionSlices<'_>,
        cached: LayerRows<'_, T>,
        pairs: Pairs,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        // SAFETY: this function enables what the lanes need.
        unsafe { attend_pairs_in::<Avx512Lanes, T, N>(shape, slices, cached, pairs, scratch, out) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<T: CacheNumber, const N: usize>(
        shape: AttentionShape,
        slices: &AttentionSlices<'_>,
        cached: LayerRows<'_, T>,
        pairs: Pairs,
        scratch: &mut Scratch,
        out: &SharedSlice<'_, f32>,
    ) {
        // SAFETY: this function enables what the lanes need.
        unsafe { attend_pairs_in::<Avx2Lanes, T, N>(shape, slices, cached, pairs, scratch, out) }
    }

    // SAFETY: a tier is only chosen where the processor has its instructions.
    unsafe {
        match tier.instructions() {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => avx512::<T, N>(shape, slices, cached, pairs, scratch, out),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni | InstructionSet::Avx2 => {
                avx2::<T, N>(shape, slices, cached, pairs, scratch, out);
            }
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDotprod => {
                attend_pairs_in::<NeonLanes, T, N>(shape, slices, cached, pairs, scratch, out)
            }
            InstructionSet::Portable => {
                attend_pairs_in::<PortableLanes, T, N>(shape, slices, cached, pairs, scratch, out);
            }
        }
    }
}

/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn attend_pairs_in<V: Lanes, T: CacheNumber, const N: usize>(
    shape: AttentionShape,
    slices: &AttentionSlices<'_>,
    cached: LayerRows<'_, T>,
    pairs: Pairs,
    scratch: &mut Scratch,
    out: &SharedSlice<'_, f32>,
) {
    let AttentionShape { n_kv_heads, head_dim, scale, .. } = shape;
    let &AttentionSlices { queries, n_committed, visible, hidden, .. } = slices;
    let Pairs { kv_head, n_slots, .. } = pairs;
    let visible: [&[usize]; N] = std::array::from_fn(|pair| visible[pairs.row(pair)].as_slice());
    let Scratch { scores, query_lanes } = scratch;
    // One row of scores for each pair, padded to whole blocks of slots.
    let stride = n_slots.next_multiple_of(SLOTS);
    scores.resize(scores.len().max(N * stride), 0.0);
    // Dimension by dimension, `[head_dim, N]`.
    let starts: [usize; N] = std::array::from_fn(|pair| pairs.start(pair, shape));
    query_lanes.resize(head_dim * N, 0.0);
    for (pair, start) in starts.into_iter().enumerate() {
        let lane = query_lanes.as_chunks_mut::<N>().0.iter_mut();
        lane.zip(&queries[start..start + head_dim]).for_each(|(lanes, query)| lanes[pair] = query * scale);
    }

    // A score is a sum over the dimensions in their order, whatever stands in the other lanes.
    for block in 0..stride / SLOTS {
        let start = (block * n_kv_heads + kv_head) * head_dim * SLOTS;
        let keys = cached.keys[start..start + head_dim * SLOTS].as_chunks::<SLOTS>().0;
        let queries = query_lanes.as_chunks::<N>().0;
        let mut first = 0;
        while first < SLOTS {
            let n_left = (SLOTS - first) / V::N;
            // SAFETY: the caller's promise; each arm takes no more slots than are left.
            first += V::N
                * unsafe {
                    let scores = scores[block * SLOTS + first..].as_mut_ptr();
                    match n_vectors::<V, N>(n_left) {
                        4 => score::<V, T, N, 4>(keys, queries, first, scores, stride),
                        2 => score::<V, T, N, 2>(keys, queries, first, scores, stride),
                        _ => score::<V, T, N, 1>(keys, queries, first, scores, stride),
                    }
                };
        }
    }

    let mut inverses = [0.0f32; N];
    for head in 0..N {
        let scores = &mut scores[head * stride..(head + 1) * stride];
        let visible = visible[head];
        if let Some(hidden) = hidden.get(pairs.row(head)) {
            // Their weight is zero, and adds nothing to any sum.
            scores[hidden.clone()].fill(f32::NEG_INFINITY);
        }
        // What the row sees of the pass closes up behind the committed slots, so that from here
        // on all depends on positions alone, not on where a row stands in the pass.
        for (idx, &slot) in visible.iter().enumerate() {
            scores[n_committed + idx] = scores[slot];
        }
        inverses[head] = 1.0 / exponentials(scores, n_committed + visible.len());
    }

    // A value is a sum over the positions in their order.
    let width = n_kv_heads * head_dim;
    let weights: [&[f32]; N] =
        std::array::from_fn(|pair| &scores[pair * stride..][..n_committed + visible[pair].len()]);
    let values = Values { weights, cached, n_committed, visible, width };
    let mut dim = 0;
    while dim < head_dim {
        let start = kv_head * head_dim + dim;
        let n_left = (head_dim - dim) / V::N;
        let n = if n_left > 0 { V::N * n_vectors::<V, N>(n_left) } else { head_dim - dim };
        let mut sums = [[0.0f32; MAX_DIMS]; N];
        // SAFETY: the caller's promise.
        unsafe {
            match n / V::N {
                4 => values.weigh::<V, 4>(start, &mut sums),
                2 => values.weigh::<V, 2>(start, &mut sums),
                1 => values.weigh::<V, 1>(start, &mut sums),
                _ => values.weigh_some(start, n, &mut sums),
            }
        }
        for pair in 0..N {
            // SAFETY: tasks differ in their rows, key-value head or chunk of heads, hence in their pairs.
            let out = unsafe { out.range_mut(starts[pair] + dim, n) };
            for (out, sum) in out.iter_mut().zip(&sums[pair]) {
                *out = sum * inverses[pair];
            }
        }
        dim += n;
    }
}

/// Scores of `N` pairs with `L` vectors of slots from `first` on, at `scores` for the first pair and in steps
/// of `stride` for the others. Returns `L`.
///
/// # Safety
/// See [`Lanes`]. There must be so many slots, in the block of keys `[head_dim, SLOTS]` and behind `scores`.
#[inline(always)]
unsafe fn score<V: Lanes, T: CacheNumber, const N: usize, const L: usize>(
    keys: &[[T; SLOTS]],
    queries: &[[f32; N]],
    first: usize,
    scores: *mut f32,
    stride: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::splat(0.0); L]; N];
        for (keys, queries) in keys.iter().zip(queries) {
            let mut vectors = [V::splat(0.0); L];
            for part in 0..L {
                vectors[part] = T::load(keys.as_ptr().add(first + part * V::N));
            }
            for pair in 0..N {
                let query = V::splat(queries[pair]);
                for part in 0..L {
                    sums[pair][part] = query.mul_add(vectors[part], sums[pair][part]);
                }
            }
        }
        for pair in 0..N {
            for part in 0..L {
                sums[pair][part].store(scores.add(pair * stride + part * V::N));
            }
        }
    }
    L
}

/// Replaces the first `n` scores by the exponentials of their distances to the largest, and returns the sum
/// of those. Sums run in lanes by position.
#[inline(always)]
fn exponentials(scores: &mut [f32], n: usize) -> f32 {
    scores[n..].fill(f32::NEG_INFINITY);
    let scores = scores[..n.next_multiple_of(LANES)].as_chunks_mut::<LANES>().0;
    let mut max = [f32::NEG_INFINITY; LANES];
    for scores in scores.iter() {
        for lane in 0..LANES {
            max[lane] = if scores[lane] > max[lane] { scores[lane] } else { max[lane] };
        }
    }
    let max = fold(max, |a, b| if b > a { b } else { a });
    let mut sums = [0.0f32; LANES];
    for scores in scores.iter_mut() {
        for lane in 0..LANES {
            scores[lane] = exp(scores[lane] - max);
            sums[lane] += scores[lane];
        }
    }
    fold(sums, |a, b| a + b)
}

/// The values that pairs see, and their weights on them.
struct Values<'a, T, const N: usize> {
    weights: [&'a [f32]; N],
    cached: LayerRows<'a, T>,
    n_committed: usize,
    visible: [&'a [usize]; N],
    width: usize,
}

impl<T: CacheNumber, const N: usize> Values<'_, T, N> {
    /// Weighted sums of the `L` vectors of dimensions from `start` on.
    ///
    /// # Safety
    /// See [`Lanes`].
    #[inline(always)]
    unsafe fn weigh<V: Lanes, const L: usize>(&self, start: usize, out: &mut [[f32; MAX_DIMS]; N]) {
        let Self { weights, cached, n_committed, visible, width } = *self;
        assert!(L * V::N <= MAX_DIMS);
        for visible in visible {
            let last = visible.last().copied().unwrap_or(0).max(n_committed.saturating_sub(1));
            assert!(last * width + start + L * V::N <= cached.values.len(), "slots outside the cache");
        }
        // Closures would not be inlined into the instructions of the caller, hence the plain loops.
        // SAFETY: the caller's promise; visible slots ascend, so that none is beyond the last, which was
        // checked; each pair has a weight for each position that it sees; the vectors fit the output, as was checked.
        unsafe {
            let mut sums = [[V::splat(0.0); L]; N];
            let mut values = [V::splat(0.0); L];
            for position in 0..n_committed {
                let from = cached.values.as_ptr().add(position * width + start);
                for part in 0..L {
                    values[part] = T::load(from.add(part * V::N));
                }
                for pair in 0..N {
                    let weight = V::splat(*weights[pair].get_unchecked(position));
                    for part in 0..L {
                        sums[pair][part] = weight.mul_add(values[part], sums[pair][part]);
                    }
                }
            }
            for pair in 0..N {
                for (idx, &slot) in visible[pair].iter().enumerate() {
                    let from = cached.values.as_ptr().add(slot * width + start);
                    let weight = V::splat(*weights[pair].get_unchecked(n_committed + idx));
                    for part in 0..L {
                        sums[pair][part] = weight.mul_add(T::load(from.add(part * V::N)), sums[pair][part]);
                    }
                }
                for part in 0..L {
                    sums[pair][part].store(out[pair].as_mut_ptr().add(part * V::N));
                }
            }
        }
    }

    /// Weighted sums of `n` dimensions, less than a vector.
    #[inline(always)]
    fn weigh_some(&self, start: usize, n: usize, out: &mut [[f32; MAX_DIMS]; N]) {
        for (sums, (weights, visible)) in out.iter_mut().zip(self.weights.iter().zip(self.visible)) {
            let slots = (0..self.n_committed).chain(visible.iter().copied());
            for (weight, slot) in weights.iter().zip(slots) {
                let values = &self.cached.values[slot * self.width + start..][..n];
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = weight.mul_add(value.value(), *sum);
                }
            }
        }
    }
}

/// Folds lanes in pairs, whatever the machine.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; 16], fold: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| fold(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| fold(eight[i], eight[i + 4]));
    fold(fold(four[0], four[2]), fold(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheType, KvCache};

    /// In f64, straight from the definition. Keys and values are `[slots, n_kv_heads * head_dim]`.
    fn reference(
        shape: AttentionShape,
        slices: &AttentionSlices<'_>,
        keys: &[f32],
        values: &[f32],
    ) -> Vec<f64> {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
        let mut out = Vec::new();
        for (row, visible) in slices.visible.iter().enumerate() {
            let is_seen = |slot: &usize| slices.hidden.get(row).is_none_or(|hidden| !hidden.contains(slot));
            let slots: Vec<usize> =
                (0..slices.n_committed).filter(is_seen).chain(visible.iter().copied()).collect();
            for head in 0..n_heads {
                let kv_head = head / (n_heads / n_kv_heads);
                let at = |slice: &[f32], slot: usize, i: usize| {
                    f64::from(slice[(slot * n_kv_heads + kv_head) * head_dim + i])
                };
                let query = |i: usize| f64::from(slices.queries[(row * n_heads + head) * head_dim + i]);
                let score = |&slot: &usize| {
                    let dot: f64 = (0..head_dim).map(|i| query(i) * at(keys, slot, i)).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = slots.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    let weighted = slots.iter().zip(&weights).map(|(&slot, w)| w * at(values, slot, i));
                    out.push(weighted.sum::<f64>() / total);
                }
            }
        }
        out
    }

    fn randoms() -> impl FnMut(usize) -> Vec<f32> {
        let mut state = 7u32;
        move |n: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..n).map(|_| next()).collect()
        }
    }

    #[test]
    fn attention_is_what_it_says_on_every_tier_and_alone() {
        for cache_type in [CacheType::F32, CacheType::F16] {
            attention_is_what_it_says(cache_type);
        }
    }

    fn attention_is_what_it_says(cache_type: CacheType) {
        for (n_heads, n_kv_heads, head_dim) in
            [(9, 3, 64), (4, 4, 16), (14, 2, 64), (2, 1, 24), (12, 1, 128), (3, 3, 80)]
        {
            let shape = AttentionShape::new(n_heads, n_kv_heads, head_dim);
            let mut random = randoms();
            let visible = [vec![37], vec![37, 38], vec![37, 39], vec![37, 38, 40]];
            let (queries, keys) = (random(4 * n_heads * head_dim), random(41 * n_kv_heads * head_dim));
            let values = random(41 * n_kv_heads * head_dim);
            // The definition on what the cache can hold.
            let held = |numbers: Vec<f32>| match cache_type {
                CacheType::F32 => numbers,
                CacheType::F16 => numbers.into_iter().map(|n| half::f16::from_f32(n).to_f32()).collect(),
            };
            let (keys, values) = (held(keys), held(values));
            let mut cache = KvCache::new(1, 41, shape, cache_type).expect("memory");
            cache.store(0, 0, &keys, &values);
            let slices = AttentionSlices {
                queries: &queries,
                cached: cache.layer(0),
                n_committed: 37,
                visible: &visible,
                hidden: &[0..0, 17..30, 16..18, 3..37],
            };
            let expected = reference(shape, &slices, &keys, &values);
            let mut first: Option<Vec<f32>> = None;
            for (tier, n_threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 5)]) {
                let pool = Pool::new(n_threads);
                let mut out = vec![0.0; queries.len()];
                attend(&pool, tier, shape, &slices, &mut out);
                for (got, expected) in out.iter().zip(&expected) {
                    assert!((f64::from(*got) - expected).abs() < 1e-5);
                }
                // One row alone gives the same bits.
                let width = n_heads * head_dim;
                let alone = AttentionSlices {
                    queries: &queries[2 * width..3 * width],
                    visible: &visible[2..3],
                    hidden: std::slice::from_ref(&slices.hidden[2]),
                    ..slices
                };
                let mut row = vec![0.0; width];
                attend(&pool, tier, shape, &alone, &mut row);
                assert_eq!(row, out[2 * width..3 * width]);
                assert!(first.as_ref().is_none_or(|first| *first == out), "{tier:?} differs");
                first = Some(out);
            }
        }
    }

    /// Where the rows that it sees stand in the pass makes no difference to a row: committed,
    /// in a chain, or scattered in a tree.
    #[test]
    fn only_positions_matter() {
        for cache_type in [CacheType::F32, CacheType::F16] {
            only_positions_matter_in(cache_type);
        }
    }

    fn only_positions_matter_in(cache_type: CacheType) {
        let shape = AttentionShape::new(6, 2, 64);
        let (mut random, width, n) = (randoms(), 128, 29);
        let (query, keys, values) = (random(384), random(n * width), random(n * width));
        let pool = Pool::new(2);
        let run = |n_committed: usize, slots: &[usize]| {
            let mut cache = KvCache::new(1, 64, shape, cache_type).expect("memory");
            cache.store(0, 0, &keys[..n_committed * width], &values[..n_committed * width]);
            for (idx, &slot) in slots.iter().enumerate() {
                let at = (n_committed + idx) * width..(n_committed + idx + 1) * width;
                cache.store(0, slot, &keys[at.clone()], &values[at]);
            }
            // The row under test is the last of the pass.
            let n_rows = slots.last().map_or(1, |last| last - n_committed + 1);
            let mut visible = vec![vec![n_committed]; n_rows];
            visible[n_rows - 1] = slots.to_vec();
            let queries = [vec![0.0; (n_rows - 1) * 384], query.clone()].concat();
            let slices = AttentionSlices {
                queries: &queries,
                cached: cache.layer(0),
                n_committed,
                visible: &visible,
                hidden: &[],
            };
            let mut out = vec![0.0; queries.len()];
            attend(&pool, Tier::detect(), shape, &slices, &mut out);
            out[(n_rows - 1) * 384..].to_vec()
        };
        let ordinary = run(28, &[28]);
        assert_eq!(run(20, &(20..29).collect::<Vec<_>>()), ordinary);
        assert_eq!(run(20, &[20, 22, 25, 27, 31, 32, 40, 41, 47]), ordinary);
        assert_eq!(run(0, &(0..29).map(|i| 2 * i).collect::<Vec<_>>()), ordinary);
    }
}
