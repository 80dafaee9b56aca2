//! Activations as signed bytes, one scale per 32 values.

use crate::{BLOCK, Pool, SharedSlice, Tier, per_tier};

/// Quantized rows `[n_rows, width]`: `value ≈ scale * code`, with codes from -127 to 127.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    pub(crate) width: usize,
    pub(crate) n_rows: usize,
    /// `[n_rows, width]`
    pub(crate) codes: Vec<i8>,
    /// `[n_rows, width / 32]`
    pub(crate) blocks: Vec<BlockStatistics>,
}

/// What a product needs of 32 codes besides the codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct BlockStatistics {
    pub(crate) scale: f32,
    /// `scale` times the sum of the codes: what an offset of the weights is multiplied by.
    pub(crate) scaled_sum: f32,
    /// What sums of products start from when the weights' codes are centred: the negated sum of the codes
    /// times 8, times 16 and times 128, and those of both halves times 32 and times 4.
    pub(crate) starts: [i32; 7],
    /// `scale` times the sums of the codes of both halves.
    pub(crate) scaled_half_sums: [f32; 2],
}

/// Indices of [`BlockStatistics::starts`].
pub(crate) const START_8: usize = 0;
pub(crate) const START_16: usize = 1;
pub(crate) const START_128: usize = 2;
pub(crate) const START_32: usize = 3;
pub(crate) const START_4: usize = 5;

impl QuantizedRows {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Makes room for `[n_rows, width]`: none where the width is not a multiple of 32.
    pub(crate) fn resize(&mut self, n_rows: usize, width: usize) {
        self.width = width;
        self.n_rows = n_rows;
        let n_blocks = if width.is_multiple_of(BLOCK) { n_rows * width / BLOCK } else { 0 };
        self.codes.resize(n_blocks * BLOCK, 0);
        self.blocks.resize(n_blocks, BlockStatistics::default());
    }

    /// Quantizes `values`, `[n_rows, width]`, into the buffers of `self`. Rows whose width is not a multiple
    /// of 32 have no codes.
    ///
    /// # Panics
    /// When the length of `values` is not a multiple of `width`.
    pub fn quantize(&mut self, pool: &Pool, tier: Tier, values: &[f32], width: usize) {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole rows");
        let n_rows = values.len() / width;
        self.resize(n_rows, width);
        let writer = self.writer();
        pool.run_if(values.len() >= MIN_PARALLEL_VALUES, n_rows, &|row| {
            // SAFETY: each row is written by the one task that has its number.
            unsafe { writer.write(tier, row, 0, &values[row * width..(row + 1) * width]) };
        });
    }

    /// Lets tasks write disjoint parts.
    pub(crate) fn writer(&mut self) -> RowsWriter<'_> {
        RowsWriter {
            width: self.width,
            codes: SharedSlice::new(&mut self.codes),
            blocks: SharedSlice::new(&mut self.blocks),
        }
    }
}

/// Values below which threads cost more than they bring.
pub(crate) const MIN_PARALLEL_VALUES: usize = 8192;

/// Quantized rows that several threads fill.
pub(crate) struct RowsWriter<'a> {
    width: usize,
    codes: SharedSlice<'a, i8>,
    blocks: SharedSlice<'a, BlockStatistics>,
}

impl RowsWriter<'_> {
    /// Quantizes blocks of a row, from block `first_block` on, where the rows have codes.
    ///
    /// # Safety
    /// No other thread may write the same blocks.
    pub(crate) unsafe fn write(&self, tier: Tier, row: usize, first_block: usize, values: &[f32]) {
        if !self.width.is_multiple_of(BLOCK) {
            return;
        }
        let n_blocks = self.width / BLOCK;
        assert!(values.len().is_multiple_of(BLOCK) && first_block + values.len() / BLOCK <= n_blocks);
        // SAFETY: the ranges are within row `row`, and the caller promises that they are ours.
        let (codes, blocks) = unsafe {
            (
                self.codes.range_mut(row * self.width + first_block * BLOCK, values.len()),
                self.blocks.range_mut(row * n_blocks + first_block, values.len() / BLOCK),
            )
        };
        quantize(tier, values, codes, blocks);
    }
}

/// Adding this rounds to the nearest integer, ties to even, and leaves the integer in the low bits.
pub(crate) const ROUNDING: f32 = 12_582_912.0;

/// Blocks whose values are all smaller are zeros: what 127 is divided by must not be so small that the quotient is
/// no number.
const SMALLEST_BLOCK: f32 = 1e-30;

/// `value` rounded to the nearest integer, for values well below 2^22.
#[inline(always)]
pub(crate) fn round(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

per_tier! {
    fn quantize(values: &[f32], codes: &mut [i8], blocks: &mut [BlockStatistics]) {
        let chunks = values.chunks_exact(BLOCK).zip(codes.chunks_exact_mut(BLOCK));
        for ((values, codes), block) in chunks.zip(blocks) {
            // Sizes of numbers are ordered as their bits are, and what is no number comes last.
            let mut lanes = [0u32; 16];
            for chunk in values.chunks_exact(16) {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane = (*lane).max(value.abs().to_bits());
                }
            }
            let max = f32::from_bits(lanes.into_iter().fold(0, u32::max));
            let (scale, inverse) = if max < SMALLEST_BLOCK {
                (0.0, 0.0)
            } else if max.is_finite() {
                (max / 127.0, 127.0 / max)
            } else {
                // A scale that makes every product no number, whatever the codes are.
                (f32::NAN, 0.0)
            };
            let mut sums = [0i32; 2];
            for (sum, (codes, values)) in
                sums.iter_mut().zip(codes.chunks_exact_mut(16).zip(values.chunks_exact(16)))
            {
                let mut rounded = [0i32; 16];
                for lane in 0..16 {
                    rounded[lane] = round(values[lane] * inverse).clamp(-127, 127);
                }
                for lane in 0..16 {
                    codes[lane] = rounded[lane] as i8;
                }
                *sum = rounded.iter().sum();
            }
            let sum = sums[0] + sums[1];
            *block = BlockStatistics {
                scale,
                scaled_sum: scale * sum as f32,
                starts: [-sum * 8, -sum * 16, -sum * 128, -sums[0] * 32, -sums[1] * 32, -sums[0] * 4, -sums[1] * 4],
                scaled_half_sums: [scale * sums[0] as f32, scale * sums[1] as f32],
            };
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
                let scale = rows.blocks[idx / BLOCK].scale;
                assert!((f32::from(rows.codes[idx]) * scale - value).abs() <= scale * 0.5001);
            }
            let sum_of = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
            let block = rows.blocks[0];
            let [first_half, second_half] = [sum_of(&rows.codes[..16]), sum_of(&rows.codes[16..32])];
            let all = first_half + second_half;
            let halves = [-32 * first_half, -32 * second_half, -4 * first_half, -4 * second_half];
            assert_eq!(block.starts[..3], [-8 * all, -16 * all, -128 * all]);
            assert_eq!(block.starts[3..], halves);
            assert_eq!(block.scaled_sum, block.scale * all as f32);
            if let Some(first) = &first {
                assert_eq!((&first.codes, &first.blocks), (&rows.codes, &rows.blocks));
            }
            first = Some(rows);
        }
    }

    /// Zeros, numbers that are hardly any, the largest, and what is no number: the same on every tier.
    #[test]
    fn unusual_blocks_are_the_same_on_every_tier() {
        let with = |value: f32| {
            let mut block = [0.5f32; 32];
            block[17] = value;
            block
        };
        for tier in Tier::available() {
            let quantized = |values: &[f32]| {
                let mut rows = QuantizedRows::default();
                rows.quantize(&Pool::new(1), tier, values, 32);
                rows
            };
            for tiny in [0.0, -0.0, 1e-45, f32::MIN_POSITIVE, 3.6e-37, -1e-31] {
                let rows = quantized(&[tiny; 32]);
                assert_eq!((rows.blocks[0], &rows.codes[..]), (BlockStatistics::default(), &[0i8; 32][..]));
            }
            for large in [1e-29, f32::MAX, f32::MIN] {
                let rows = quantized(&[large; 32]);
                assert!(
                    rows.codes.iter().all(|&code| f32::from(code) == 127.0f32.copysign(large)),
                    "{tier:?}"
                );
                assert_eq!(rows.blocks[0].scale, large.abs() / 127.0);
            }
            for nothing in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let rows = quantized(&with(nothing));
                let block = rows.blocks[0];
                assert!(block.scale.is_nan() && block.scaled_sum.is_nan(), "{tier:?} {nothing}");
                assert!(block.scaled_half_sums.iter().all(|sum| sum.is_nan()));
                assert!(rows.codes.iter().all(|&code| code >= -127), "whose sums overflow nowhere");
            }
        }
    }
}
