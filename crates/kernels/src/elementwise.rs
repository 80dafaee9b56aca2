//! RMSNorm, SwiGLU and low-rank deltas: plain Rust that the compiler turns into vectors on each tier.

use crate::activations::round;
use crate::attention::fold;
use crate::per_tier;

/// eˣ to within 2 units in the last place, from 88 down to where it is 0. Range reduction to
/// half of ln 2 either way and a polynomial, after Cephes' `expf`; without branches, so that it
/// vectorises, and without fused operations, so that every tier gives the same bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Two constants that add up to ln 2; the first has few bits, so that its products are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let power = round(clamped * std::f32::consts::LOG2_E);
    let n = power as f32;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let value = p * (r * r) + r + 1.0;
    let scaled = value * f32::from_bits(((power + 127) << 23) as u32);
    if x < -87.0 { 0.0 } else { scaled }
}

per_tier! {
    /// `gate = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn swiglu(gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// `1 / sqrt(mean(input²) + epsilon)`
#[inline(always)]
fn inverse_root_mean_square(input: &[f32], epsilon: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, tail) = input.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = chunk[lane].mul_add(chunk[lane], lanes[lane]);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(tail) {
        *lane = value.mul_add(*value, *lane);
    }
    let mean_square = fold(lanes, |a, b| a + b) / input.len() as f32;
    1.0 / (mean_square + epsilon).sqrt()
}

per_tier! {
    /// `out = input / sqrt(mean(input²) + epsilon) * weight` for one row.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rms_norm(input: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(input.len() == weight.len() && input.len() == out.len());
        let scale = inverse_root_mean_square(input, epsilon);
        for ((out, value), weight) in out.iter_mut().zip(input).zip(weight) {
            *out = value * scale * weight;
        }
    }
}

per_tier! {
    /// The same for each head of `values` (`[heads, weight.len()]`), in place.
    ///
    /// # Panics
    /// When there is no weight.
    pub fn rms_norm_heads(weight: &[f32], epsilon: f32, values: &mut [f32]) {
        for head in values.chunks_exact_mut(weight.len()) {
            let scale = inverse_root_mean_square(head, epsilon);
            head.iter_mut().zip(weight).for_each(|(value, weight)| *value = *value * scale * weight);
        }
    }
}

per_tier! {
    /// `out += input`
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_rows(input: &[f32], out: &mut [f32]) {
        assert_eq!(input.len(), out.len());
        out.iter_mut().zip(input).for_each(|(sum, value)| *sum += value);
    }
}

per_tier! {
    /// Rotates the pairs of each head in `values` (`[heads, head_dim]`) by the angles whose cosines and
    /// sines are given, one for each pair. Pairs are `(i, i + pairs)` when `is_half`, else
    /// `(2 i, 2 i + 1)`; dimensions behind the pairs stay.
    ///
    /// # Panics
    /// When there are more pairs than a head has.
    pub fn rotate(is_half: bool, head_dim: usize, cos: &[f32], sin: &[f32], values: &mut [f32]) {
        let n_pairs = cos.len();
        assert!(sin.len() == n_pairs && 2 * n_pairs <= head_dim);
        for head in values.chunks_exact_mut(head_dim) {
            if is_half {
                let (first, second) = head.split_at_mut(n_pairs);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            } else {
                for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, b * cos + a * sin];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error <= 2.5 * f64::from(f32::EPSILON), "exp({x}): relative error {error}");
        }
        assert_eq!((exp(0.0), exp(-1e9), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(1e9).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_tier_gives_the_same_bits_near_the_definition() {
        let input: Vec<f32> = (0..131).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let other: Vec<f32> = (0..131).map(|i| (i as f32 * 0.11).cos()).collect();
        let mean: f64 = input.iter().map(|x| f64::from(x * x)).sum::<f64>() / 131.0;
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for tier in Tier::available() {
            let (mut gate, mut normed) = (input.clone(), vec![0.0; 131]);
            swiglu(tier, &mut gate, &other);
            rms_norm(tier, &input, &other, 1e-5, &mut normed);
            let mut heads = [input.clone(), input.clone()].concat();
            rms_norm_heads(tier, &other, 1e-5, &mut heads);
            assert_eq!(heads, [normed.clone(), normed.clone()].concat(), "a head is a row");
            for (idx, (&x, &w)) in input.iter().zip(&other).enumerate() {
                let (x, w) = (f64::from(x), f64::from(w));
                assert!((f64::from(gate[idx]) - x / (1.0 + (-x).exp()) * w).abs() < 1e-5);
                assert!((f64::from(normed[idx]) - x / (mean + 1e-5).sqrt() * w).abs() < 1e-5);
            }
            let results = (gate, normed);
            assert!(first.as_ref().is_none_or(|first| *first == results), "{tier:?}");
            first = Some(results);
        }
    }
}
