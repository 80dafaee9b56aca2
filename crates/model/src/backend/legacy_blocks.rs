//! Q4_1, Q5_0 and Q5_1 as 8-bit codes.
//!
//! candle computes these three types without vector instructions. Their codes fit 8 bits, so each
//! is written exactly as Q8_0 blocks with the same scales, plus one offset per block where the
//! type has a minimum: `w = scale * (code - centre) + (min + scale * centre)`. Centred codes keep
//! the error of quantized activations as small as the weights are.

use half::f16;

use crate::gguf::TensorType;

/// Values in a block.
pub(crate) const BLOCK: usize = 32;

/// The same weights in other clothes.
pub(crate) struct EightBit {
    /// Q8_0 blocks: an f16 scale and 32 signed bytes each.
    pub(crate) q8_0: Vec<u8>,
    /// An offset per block.
    pub(crate) offsets: Option<Vec<f32>>,
}

/// `None` for types that are not one of the three.
pub(crate) fn to_eight_bit(tensor_type: TensorType, bytes: &[u8]) -> Option<EightBit> {
    let (has_min, has_high_bits) = match tensor_type {
        TensorType::Q4_1 => (true, false),
        TensorType::Q5_0 => (false, true),
        TensorType::Q5_1 => (true, true),
        _ => return None,
    };
    let block_bytes = tensor_type.block().1;
    let n_blocks = bytes.len() / block_bytes;
    let mut q8_0 = Vec::with_capacity(n_blocks * 34);
    let mut offsets = Vec::with_capacity(if has_min { n_blocks } else { 0 });
    let centre = if has_high_bits { 16 } else { 8 };
    for block in bytes.chunks_exact(block_bytes) {
        let (scale, rest) = block.split_at(2);
        q8_0.extend_from_slice(scale);
        let rest = match has_min {
            true => {
                let number = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                offsets.push(number(rest) + number(scale) * f32::from(centre));
                &rest[2..]
            }
            false => rest,
        };
        let (high_bits, nibbles) = match has_high_bits {
            true => (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), &rest[4..]),
            false => (0, rest),
        };
        // Low nibbles are values 0 to 15, high nibbles 16 to 31; bit i of the mask is value i's.
        let code = |i: usize| {
            let nibble = if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 };
            nibble | ((high_bits >> i & 1) as u8) << 4
        };
        q8_0.extend((0..BLOCK).map(|i| code(i).wrapping_sub(centre)));
    }
    Some(EightBit { q8_0, offsets: has_min.then_some(offsets) })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::CpuStorage;
    use candle_core::quantized::GgmlDType;

    use super::*;

    fn dequantized(dtype: GgmlDType, bytes: &[u8], n: usize) -> Vec<f32> {
        match dtype.from_data(Cow::Borrowed(bytes)).dequantize(n).expect("dequantizes") {
            CpuStorage::F32(values) => values,
            _ => panic!("not f32"),
        }
    }

    #[test]
    fn the_values_are_exactly_those_of_the_file() {
        let cases = [
            (TensorType::Q4_1, GgmlDType::Q4_1),
            (TensorType::Q5_0, GgmlDType::Q5_0),
            (TensorType::Q5_1, GgmlDType::Q5_1),
        ];
        for (tensor_type, dtype) in cases {
            let n_blocks = 64;
            let mut state = 1u32;
            let mut bytes = Vec::new();
            for _ in 0..n_blocks {
                let start = bytes.len();
                for _ in 0..tensor_type.block().1 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    bytes.push((state >> 24) as u8);
                }
                // Scale and minimum must be finite: positive, with a small exponent.
                bytes[start + 1] &= 0x3f;
                if tensor_type != TensorType::Q5_0 {
                    bytes[start + 3] &= 0xbf;
                }
            }
            let expected = dequantized(dtype, &bytes, n_blocks * BLOCK);
            let eight_bit = to_eight_bit(tensor_type, &bytes).expect("one of the three");
            let codes = dequantized(GgmlDType::Q8_0, &eight_bit.q8_0, n_blocks * BLOCK);
            for (idx, (expected, scaled)) in expected.iter().zip(codes).enumerate() {
                let offset = eight_bit.offsets.as_ref().map_or(0.0, |offsets| offsets[idx / BLOCK]);
                // One rounding of an f32 sum is all that may differ.
                let tolerance = f32::EPSILON * (scaled.abs() + offset.abs());
                assert!((scaled + offset - expected).abs() <= tolerance, "{tensor_type:?} value {idx}");
            }
        }
    }
}
