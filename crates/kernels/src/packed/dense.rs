//! Weights that are numbers: input after input, the 16 values of a tile's rows beside each other.

use half::{bf16, f16};

use super::TILE;

/// A format of GGUF files that is not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are ggml's.
pub enum DenseFormat {
    F16,
    BF16,
    F32,
}

impl DenseFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::F16, Self::BF16, Self::F32];

    /// The value that `bytes` start with.
    fn value(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    /// Bytes of a value.
    pub(crate) const fn value_bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Packs the bytes of one row of the file as row `row` of a tile. Whether all of them are numbers.
pub(super) fn pack_row(format: DenseFormat, file_row: &[u8], row: usize, tile: &mut [u8]) -> bool {
    let n = format.value_bytes();
    let mut is_finite = true;
    for (values, value) in tile.chunks_exact_mut(TILE * n).zip(file_row.chunks_exact(n)) {
        values[row * n..(row + 1) * n].copy_from_slice(value);
        is_finite &= format.value(value).is_finite();
    }
    is_finite
}

/// Writes the values of row `row` of a tile to `out`, `[n_in]`.
pub(super) fn dequantize_row(format: DenseFormat, tile: &[u8], row: usize, out: &mut [f32]) {
    let n = format.value_bytes();
    for (value, values) in out.iter_mut().zip(tile.chunks_exact(TILE * n)) {
        *value = format.value(&values[row * n..]);
    }
}
