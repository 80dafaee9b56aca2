//! Blocks of quantized weights as they are in GGUF files.

use super::quantized::SUPER;
use super::{BLOCK, QuantizedFormat};

/// One block of one row: codes, and its scales as the layout wants them.
pub(super) struct RowBlock {
    pub(super) codes: [u8; BLOCK],
    /// f16 bits or bytes: the first and the second entry of the block's scales.
    pub(super) scales: [u16; 2],
    /// f16 bits: the entries of the super-block.
    pub(super) supers: [u16; 2],
}

/// Reads block `block` of 32 values of a row in the layout of the file. The layouts are ggml's
/// (ggml-common.h and ggml-quants.c of llama.cpp).
pub(super) fn read_block(format: QuantizedFormat, row: &[u8], block: usize) -> RowBlock {
    let (file_block, file_block_bytes) = format.file_block();
    let start = block * BLOCK / file_block * file_block_bytes;
    let file = &row[start..start + file_block_bytes];
    let u16_at = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let within = block % SUPER;
    let mut codes = [0u8; BLOCK];
    // Low nibbles are values 0 to 15, high nibbles 16 to 31.
    let nibble = |nibbles: &[u8], i: usize| if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 };
    let (scales, supers) = match format {
        QuantizedFormat::Q4_0 => {
            codes = std::array::from_fn(|i| nibble(&file[2..], i));
            ([u16_at(0), 0], [0, 0])
        }
        QuantizedFormat::Q4_1 => {
            codes = std::array::from_fn(|i| nibble(&file[4..], i));
            ([u16_at(0), u16_at(2)], [0, 0])
        }
        QuantizedFormat::Q5_0 | QuantizedFormat::Q5_1 => {
            let at = if format == QuantizedFormat::Q5_0 { 2 } else { 4 };
            let high = u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
            codes = std::array::from_fn(|i| nibble(&file[at + 4..], i) | ((high >> i & 1) as u8) << 4);
            ([u16_at(0), if at == 4 { u16_at(2) } else { 0 }], [0, 0])
        }
        QuantizedFormat::Q8_0 => {
            codes.iter_mut().zip(&file[2..]).for_each(|(code, &byte)| *code = byte ^ 0x80);
            ([u16_at(0), 0], [0, 0])
        }
        QuantizedFormat::Q4_K | QuantizedFormat::Q5_K => {
            let packed = &file[4..16];
            // Twelve bytes hold eight scales and eight minima of six bits.
            let (scale, min) = match within {
                0..=3 => (packed[within] & 63, packed[within + 4] & 63),
                _ => (
                    packed[within + 4] & 15 | packed[within - 4] >> 6 << 4,
                    packed[within + 4] >> 4 | packed[within] >> 6 << 4,
                ),
            };
            let nibbles_at = if format == QuantizedFormat::Q4_K { 16 } else { 48 };
            let nibbles = &file[nibbles_at + within / 2 * 32..][..32];
            for (i, code) in codes.iter_mut().enumerate() {
                *code = if within.is_multiple_of(2) { nibbles[i] & 15 } else { nibbles[i] >> 4 };
                if format == QuantizedFormat::Q5_K {
                    *code |= (file[16 + i] >> within & 1) << 4;
                }
            }
            ([scale.into(), min.into()], [u16_at(0), u16_at(2)])
        }
        QuantizedFormat::Q2_K => {
            let (halves, pairs) = (&file[within * 2..], &file[16 + within / 4 * 32..]);
            codes = std::array::from_fn(|i| pairs[i] >> (within % 4 * 2) & 3);
            ([halves[0].into(), halves[1].into()], [u16_at(80), u16_at(82)])
        }
        QuantizedFormat::Q3_K => {
            let pairs = &file[32 + within / 4 * 32..];
            codes = std::array::from_fn(|i| pairs[i] >> (within % 4 * 2) & 3 | (file[i] >> within & 1) << 2);
            // Twelve bytes hold sixteen scales of six bits: the low four bits of the first eight in low
            // nibbles, of the others in high ones, then the high two bits, four to a byte.
            let packed = &file[96..108];
            let scale = |half: usize| {
                let low = if half < 8 { packed[half] & 15 } else { packed[half - 8] >> 4 };
                let high = packed[8 + half % 4] >> (half / 4 * 2) & 3;
                u16::from((low | high << 4).wrapping_sub(32))
            };
            ([scale(within * 2), scale(within * 2 + 1)], [u16_at(108), 0])
        }
        QuantizedFormat::Q6_K => {
            // Two halves of 128 values; in each, four groups of 32 share low nibbles and high pairs.
            let (half, group) = (within / 4, within % 4);
            let low = &file[half * 64 + group % 2 * 32..][..32];
            let high = &file[128 + half * 32..][..32];
            for (i, code) in codes.iter_mut().enumerate() {
                let nibble = if group < 2 { low[i] & 15 } else { low[i] >> 4 };
                *code = nibble | (high[i] >> (2 * group) & 3) << 4;
            }
            let scales = &file[192 + within * 2..][..2];
            ([scales[0].into(), scales[1].into()], [u16_at(208), 0])
        }
    };
    RowBlock { codes, scales, supers }
}
