//! Activations as signed bytes, one scale per 32 values.

use std::sync::{Mutex, PoisonError};

use crate::{BLOCK, Pool, Tier};

/// Quantized rows `[n_rows, width]`: `value ≈ scale * code`, with codes from -127 to 127.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    pub(crate) width: usize,
    pub(crate) n_rows: usize,
    /// `[n_rows, width]`
    pub(crate) codes: Vec<i8>,
    /// `[n_rows, width / 32]`
    pub(crate) scales: Vec<f32>,
    /// Sums of the codes of each half block, `[n_rows, width / 16]`.
    pub(crate) half_sums: Vec<i32>,
}

impl QuantizedRows {
    /// Quantizes `values`, `[n_rows, width]`, into the buffers of `self`.
    ///
    /// # Panics
    /// When `width` is not a multiple of 32 or of the length of `values`.
    pub fn quantize(&mut self, pool: &Pool, tier: Tier, values: &[f32], width: usize) {
        assert!(width > 0 && width.is_multiple_of(BLOCK) && values.len().is_multiple_of(width));
        self.width = width;
        self.n_rows = values.len() / width;
        self.codes.resize(values.len(), 0);
        self.scales.resize(values.len() / BLOCK, 0.0);
        self.half_sums.resize(values.len() / 16, 0);
        let (scales_width, sums_width) = (width / BLOCK, width / 16);
        let outputs = self.codes.chunks_exact_mut(width).zip(self.scales.chunks_exact_mut(scales_width));
        let outputs = outputs.zip(self.half_sums.chunks_exact_mut(sums_width));
        let quantize_row = |values: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]| match tier
        {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni | Tier::Avx2 => {
                // SAFETY: both tiers are detected together with AVX2.
                unsafe { quantize_avx2(values, codes, scales, sums) }
            }
            Tier::Portable => quantize(values, codes, scales, sums),
        };
        if values.len() < MIN_PARALLEL_VALUES {
            for (values, ((codes, scales), sums)) in values.chunks_exact(width).zip(outputs) {
                quantize_row(values, codes, scales, sums);
            }
            return;
        }
        let rows: Vec<_> = values.chunks_exact(width).zip(outputs).map(Mutex::new).collect();
        pool.run(rows.len(), &|row| {
            // Each row is claimed once, so the lock is never waited for.
            let mut row = rows[row].lock().unwrap_or_else(PoisonError::into_inner);
            let (values, ((codes, scales), sums)) = &mut *row;
            quantize_row(values, codes, scales, sums);
        });
    }
}

/// Values below which threads cost more than they bring.
const MIN_PARALLEL_VALUES: usize = 8192;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn quantize_avx2(values: &[f32], codes: &mut [i8], scales: &mut [f32], half_sums: &mut [i32]) {
    quantize(values, codes, scales, half_sums);
}

/// Adding this rounds to the nearest integer, ties to even, and leaves the integer in the low bits.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// `value` rounded to the nearest integer, for values well below 2^22.
#[inline(always)]
pub(crate) fn round(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

#[inline(always)]
fn quantize(values: &[f32], codes: &mut [i8], scales: &mut [f32], half_sums: &mut [i32]) {
    let blocks = values.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK));
    for ((values, codes), (scale, half_sums)) in
        blocks.zip(scales.iter_mut().zip(half_sums.chunks_exact_mut(2)))
    {
        let mut lanes = [0.0f32; 8];
        for chunk in values.chunks_exact(8) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if value.abs() > *lane { value.abs() } else { *lane };
            }
        }
        let max = lanes.iter().fold(0.0f32, |max, &lane| if lane > max { lane } else { max });
        *scale = max / 127.0;
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = round(value * inverse) as i8;
        }
        for (sum, codes) in half_sums.iter_mut().zip(codes.chunks_exact(16)) {
            *sum = codes.iter().map(|&code| i32::from(code)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_near_their_values_on_every_tier() {
        let values: Vec<f32> =
            (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.037 * (1 + i / 32) as f32).collect();
        let mut first: Option<QuantizedRows> = None;
        for tier in Tier::available() {
            let mut rows = QuantizedRows::default();
            rows.quantize(&Pool::new(1), tier, &values, 128);
            for (idx, value) in values.iter().enumerate() {
                let scale = rows.scales[idx / BLOCK];
                assert!((f32::from(rows.codes[idx]) * scale - value).abs() <= scale * 0.5001);
            }
            let sum: i32 = rows.codes[..16].iter().map(|&code| i32::from(code)).sum();
            assert_eq!(rows.half_sums[0], sum);
            if let Some(first) = &first {
                assert_eq!((&first.codes, &first.scales), (&rows.codes, &rows.scales));
            }
            first = Some(rows);
        }
        let mut zeros = QuantizedRows::default();
        zeros.quantize(&Pool::new(1), Tier::Portable, &[0.0; 32], 32);
        assert_eq!((zeros.scales[0], zeros.codes[0]), (0.0, 0));
    }
}
