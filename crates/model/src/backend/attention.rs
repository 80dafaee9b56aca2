//! Attention on the CPU, one row and key-value head at a time in a fixed order.

use rayon::prelude::*;
use speculate::RowPlan;

use super::AttentionShape;

/// Below this many multiplications threads cost more than they bring.
const MIN_PARALLEL_WORK: usize = 1 << 18;

/// `out[row] = softmax(q K^T / sqrt(head_dim)) V` over the rows that `row` sees.
///
/// `queries` and `out` are `[n_rows, n_heads * head_dim]`, `keys` and `values`
/// `[slots, n_kv_heads * head_dim]`. Query heads share key-value heads in order.
pub(crate) fn attend(
    shape: AttentionShape,
    plan: &RowPlan,
    keys: &[f32],
    values: &[f32],
    queries: &[f32],
    out: &mut [f32],
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim } = shape;
    let n_sharing = n_heads / n_kv_heads;
    let group_width = n_sharing * head_dim;
    let visible: Vec<Vec<usize>> = (0..plan.rows().len()).map(|row| plan.visible(row)).collect();

    let attend_group = |(group_idx, out): (usize, &mut [f32])| {
        let (row, kv_head) = (group_idx / n_kv_heads, group_idx % n_kv_heads);
        let head = |slot: usize| {
            let start = (slot * n_kv_heads + kv_head) * head_dim;
            start..start + head_dim
        };
        let slots: Vec<usize> =
            (0..plan.n_committed()).chain(visible[row].iter().map(|r| plan.n_committed() + r)).collect();
        let mut weights = vec![0.0f32; slots.len()];
        for (sharing_idx, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let start = (row * n_heads + kv_head * n_sharing + sharing_idx) * head_dim;
            let query = &queries[start..start + head_dim];
            softmax_scores(query, keys, &slots, head, &mut weights);
            out.fill(0.0);
            for (&slot, &weight) in slots.iter().zip(&weights) {
                out.iter_mut().zip(&values[head(slot)]).for_each(|(sum, value)| *sum += weight * value);
            }
        }
    };
    let work = plan.rows().len() * (plan.n_committed() + plan.rows().len()) * n_heads * head_dim;
    let groups = out.len() / group_width;
    if work < MIN_PARALLEL_WORK {
        out.chunks_exact_mut(group_width).enumerate().for_each(attend_group);
    } else {
        let min_len = groups.div_ceil(4 * rayon::current_num_threads());
        out.par_chunks_exact_mut(group_width).enumerate().with_min_len(min_len).for_each(attend_group);
    }
}

fn softmax_scores(
    query: &[f32],
    keys: &[f32],
    slots: &[usize],
    head: impl Fn(usize) -> std::ops::Range<usize>,
    weights: &mut [f32],
) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let mut max = f32::NEG_INFINITY;
    for (weight, &slot) in weights.iter_mut().zip(slots) {
        *weight = dot(query, &keys[head(slot)]) * scale;
        max = max.max(*weight);
    }
    let mut sum = 0.0;
    for weight in weights.iter_mut() {
        *weight = (*weight - max).exp();
        sum += *weight;
    }
    weights.iter_mut().for_each(|weight| *weight /= sum);
}

/// Sums in eight lanes and then over the lanes, whatever the machine.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}
