//! Plain Rust: what every other tier must equal, bit for bit.

use super::RowsView;
use crate::packed::quantized::{BlockPlace, code};
use crate::{BLOCK, QuantizedFormat, TILE};

pub(super) fn tile_rows(format: QuantizedFormat, tile: &[u8], rows: RowsView<'_>, out: &mut [[f32; TILE]]) {
    out.iter_mut().for_each(|out| out.fill(0.0));
    let n_blocks = rows.width / BLOCK;
    let mut values = [[0i32; TILE]; BLOCK];
    for block in 0..n_blocks {
        let place = BlockPlace::of(format, block);
        let codes = &tile[place.codes..place.codes + format.code_bytes()];
        for (input, values) in values.iter_mut().enumerate() {
            for (lane, value) in values.iter_mut().enumerate() {
                *value = i32::from(code(format.bits(), codes, lane, input)) - format.centre();
            }
        }
        for (row, out) in out.iter_mut().enumerate() {
            let activations = &rows.codes[row * rows.width + block * BLOCK..][..BLOCK];
            let mut sums = [[0i32; TILE]; 2];
            for (input, (values, &activation)) in values.iter().zip(activations).enumerate() {
                for (sum, value) in sums[input / 16].iter_mut().zip(values) {
                    *sum += value * i32::from(activation);
                }
            }
            let statistics = rows.blocks[row * n_blocks + block];
            for (lane, out) in out.iter_mut().enumerate() {
                let scales = place.scales(format, tile, lane);
                let scaled = |sum: i32| sum as f32 * statistics.scale;
                *out = if format.has_half_scales() {
                    let first = scaled(sums[0][lane]).mul_add(scales.scale[0], *out);
                    scaled(sums[1][lane]).mul_add(scales.scale[1], first)
                } else {
                    scaled(sums[0][lane] + sums[1][lane]).mul_add(scales.scale[0], *out)
                };
                if format.has_offset() && format.has_half_scales() {
                    let [first, second] = statistics.scaled_half_sums;
                    *out = second.mul_add(scales.offset[1], first.mul_add(scales.offset[0], *out));
                } else if format.has_offset() {
                    *out = statistics.scaled_sum.mul_add(scales.offset[0], *out);
                }
            }
        }
    }
}
