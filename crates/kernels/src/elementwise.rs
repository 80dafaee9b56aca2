//! RMSNorm, SwiGLU and low-rank deltas: plain Rust that the compiler turns into vectors on each tier.

use crate::activations::round;
use crate::{Tier, dot};

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

/// `gate = silu(gate) * up`, where `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(tier: Tier, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni | Tier::Avx2 => {
            // SAFETY: both tiers are detected together with AVX2.
            unsafe { swiglu_avx2(gate, up) }
        }
        Tier::Portable => swiglu_portable(gate, up),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn swiglu_avx2(gate: &mut [f32], up: &[f32]) {
    swiglu_portable(gate, up);
}

#[inline(always)]
fn swiglu_portable(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `out = input / sqrt(mean(input²) + epsilon) * weight` for one row.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(tier: Tier, input: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(input.len() == weight.len() && input.len() == out.len());
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni | Tier::Avx2 => {
            // SAFETY: both tiers are detected together with AVX2.
            unsafe { rms_norm_avx2(input, weight, epsilon, out) }
        }
        Tier::Portable => rms_norm_portable(input, weight, epsilon, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn rms_norm_avx2(input: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    rms_norm_portable(input, weight, epsilon, out);
}

#[inline(always)]
fn rms_norm_portable(input: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean_square = dot(input, input) / input.len() as f32;
    let scale = 1.0 / (mean_square + epsilon).sqrt();
    for ((out, value), weight) in out.iter_mut().zip(input).zip(weight) {
        *out = value * scale * weight;
    }
}

/// `out += (input A) B` for one row. `a_transposed` is `[rank, n_in]`, `b` is `[rank, n_out]`.
///
/// # Panics
/// When the sizes do not fit each other.
pub fn add_low_rank(
    tier: Tier,
    input: &[f32],
    a_transposed: &[f32],
    b: &[f32],
    rank: usize,
    out: &mut [f32],
) {
    assert!(a_transposed.len() == rank * input.len() && b.len() == rank * out.len());
    match tier {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512Vnni | Tier::Avx2 => {
            // SAFETY: both tiers are detected together with AVX2.
            unsafe { add_low_rank_avx2(input, a_transposed, b, out) }
        }
        Tier::Portable => add_low_rank_portable(input, a_transposed, b, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn add_low_rank_avx2(input: &[f32], a_transposed: &[f32], b: &[f32], out: &mut [f32]) {
    add_low_rank_portable(input, a_transposed, b, out);
}

#[inline(always)]
fn add_low_rank_portable(input: &[f32], a_transposed: &[f32], b: &[f32], out: &mut [f32]) {
    for (a_row, b_row) in a_transposed.chunks_exact(input.len()).zip(b.chunks_exact(out.len())) {
        let scale = dot(input, a_row);
        out.iter_mut().zip(b_row).for_each(|(value, b)| *value += scale * b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
