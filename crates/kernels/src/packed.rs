//! Packed weights: the values of a GGUF tensor, interleaved over 16 output rows.
//!
//! A *tile* holds 16 output rows, a *block* 32 inputs of quantized ones. What is in a tile depends on the format:
//! see [`quantized`] and [`dense`].

mod dense;
mod file_block;
pub(crate) mod quantized;

pub use dense::DenseFormat;
use half::f16;
pub use quantized::QuantizedFormat;

/// Inputs in a block.
pub const BLOCK: usize = 32;
/// Output rows in a tile.
pub const TILE: usize = 16;

/// Bytes of the file that are packed between two reports.
const PART_BYTES: usize = 2 << 20;

/// A format of GGUF files that can be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Codes with scales.
    Quantized(QuantizedFormat),
    /// Numbers.
    Dense(DenseFormat),
}

impl From<QuantizedFormat> for WeightFormat {
    fn from(format: QuantizedFormat) -> Self {
        Self::Quantized(format)
    }
}

impl From<DenseFormat> for WeightFormat {
    fn from(format: DenseFormat) -> Self {
        Self::Dense(format)
    }
}

impl WeightFormat {
    /// Values per block of the file, and its bytes.
    pub fn file_block(self) -> (usize, usize) {
        match self {
            Self::Quantized(format) => format.file_block(),
            Self::Dense(format) => (1, format.value_bytes()),
        }
    }

    /// Bytes of a tile of `n_in` inputs.
    fn tile_bytes(self, n_in: usize) -> usize {
        match self {
            Self::Quantized(format) => format.tile_bytes(n_in / BLOCK),
            Self::Dense(format) => n_in * TILE * format.value_bytes(),
        }
    }
}

/// Weights `[n_out, n_in]` of a linear layer, packed.
#[derive(Clone)]
pub struct PackedMatrix {
    pub(crate) format: WeightFormat,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix {:?} [{}, {}]", self.format, self.n_out, self.n_in)
    }
}

impl PackedMatrix {
    /// Packs `file_bytes`, the rows of a tensor as they are in the file.
    ///
    /// # Panics
    /// When the bytes are not those of `n_out` rows of `n_in` values, whole blocks each.
    pub fn pack(
        format: impl Into<WeightFormat>,
        n_out: usize,
        n_in: usize,
        file_bytes: &[u8],
        pool: &crate::Pool,
    ) -> Self {
        Self::pack_in_parts(format, n_out, n_in, file_bytes, pool, &mut |_| ())
    }

    /// [`pack`](Self::pack), telling `on_packed` which bytes are not needed any more, part by part.
    ///
    /// # Panics
    /// When the bytes are not those of `n_out` rows of `n_in` values, whole blocks each.
    pub fn pack_in_parts(
        format: impl Into<WeightFormat>,
        n_out: usize,
        n_in: usize,
        file_bytes: &[u8],
        pool: &crate::Pool,
        on_packed: &mut dyn FnMut(std::ops::Range<usize>),
    ) -> Self {
        let format = format.into();
        let (file_block, file_block_bytes) = format.file_block();
        assert!(n_in > 0 && n_in.is_multiple_of(file_block), "rows are whole blocks");
        let row_bytes = n_in / file_block * file_block_bytes;
        assert_eq!(file_bytes.len(), n_out * row_bytes, "the bytes of the tensor");
        let tile_bytes = format.tile_bytes(n_in);
        let n_tiles = n_out.div_ceil(TILE);
        let mut bytes = vec![0u8; n_tiles * tile_bytes];
        let shared = crate::SharedSlice::new(&mut bytes);
        let n_tiles_per_part = (PART_BYTES / (TILE * row_bytes)).max(1);
        for first in (0..n_tiles).step_by(n_tiles_per_part) {
            let n = n_tiles_per_part.min(n_tiles - first);
            pool.run(n, &|idx| {
                let tile_idx = first + idx;
                // SAFETY: each tile belongs to one task.
                let tile = unsafe { shared.range_mut(tile_idx * tile_bytes, tile_bytes) };
                for row in 0..TILE.min(n_out - tile_idx * TILE) {
                    let start = (tile_idx * TILE + row) * row_bytes;
                    let file_row = &file_bytes[start..start + row_bytes];
                    match format {
                        WeightFormat::Quantized(format) => {
                            quantized::pack_row(format, file_row, n_in, row, tile);
                        }
                        WeightFormat::Dense(format) => dense::pack_row(format, file_row, row, tile),
                    }
                }
            });
            let end = ((first + n) * TILE).min(n_out) * row_bytes;
            on_packed(first * TILE * row_bytes..end);
        }
        Self { format, n_out, n_in, bytes }
    }

    /// Packs `values`, `[n_out, n_in]`, as Q8_0: eight bits, and a scale per 32. Where a row is no whole blocks
    /// of these, the values stay as they are.
    ///
    /// # Panics
    /// When the values are not `n_out` rows of `n_in`.
    pub fn quantize(n_out: usize, n_in: usize, values: &[f32], pool: &crate::Pool) -> Self {
        assert_eq!(values.len(), n_out * n_in, "the size of the matrix");
        if !n_in.is_multiple_of(BLOCK) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            return Self::pack(DenseFormat::F32, n_out, n_in, &bytes, pool);
        }
        let mut bytes = Vec::with_capacity(values.len() / BLOCK * QuantizedFormat::Q8_0.file_block().1);
        for block in values.chunks(BLOCK) {
            let max = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
            let scale = f16::from_f32(max / 127.0);
            let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
            bytes.extend(scale.to_le_bytes());
            bytes
                .extend(block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
        }
        Self::pack(QuantizedFormat::Q8_0, n_out, n_in, &bytes, pool)
    }

    /// Number of output rows.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Number of inputs.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Size in memory.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(TILE)
    }

    pub(crate) fn tile(&self, tile_idx: usize) -> &[u8] {
        let tile_bytes = self.format.tile_bytes(self.n_in);
        &self.bytes[tile_idx * tile_bytes..(tile_idx + 1) * tile_bytes]
    }

    /// Writes the values of output row `row` to `out`, `[n_in]`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let tile = self.tile(row / TILE);
        match self.format {
            WeightFormat::Quantized(format) => quantized::dequantize_row(format, tile, row % TILE, out),
            WeightFormat::Dense(format) => dense::dequantize_row(format, tile, row % TILE, out),
        }
    }
}
