//! Packed weights: the values of a GGUF tensor, interleaved over 16 output rows.
//!
//! A *tile* holds 16 output rows, a *block* 32 inputs of quantized ones. What is in a tile depends on the format:
//! see [`quantized`] and [`dense`].

mod dense;
mod file_block;
pub(crate) mod quantized;

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use half::f16;

pub use dense::DenseFormat;
pub use quantized::{QuantizedFormat, ScaleLayout};

use crate::KernelError;
use crate::zeroed::zeroed;

/// Inputs in a block.
pub const BLOCK: usize = 32;
/// Output rows in a tile.
pub const TILE: usize = 16;

/// Bytes of the file that a task reads and packs: they stay in the caches between the two.
const PART_BYTES: usize = 128 << 10;

thread_local! {
    /// What a task has read.
    static PART: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

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

    /// Bytes of `n_out` rows of `n_in` values in a file.
    fn file_bytes(self, n_out: usize, n_in: usize) -> Option<usize> {
        let (block, block_bytes) = self.file_block();
        (n_in / block).checked_mul(block_bytes)?.checked_mul(n_out)
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
    /// # Errors
    /// [`KernelError`].
    ///
    /// # Panics
    /// When the bytes are not those of `n_out` rows of `n_in` values, whole blocks each.
    pub fn pack(
        format: impl Into<WeightFormat>,
        n_out: usize,
        n_in: usize,
        file_bytes: &[u8],
        pool: &crate::Pool,
    ) -> Result<Self, KernelError> {
        let format = format.into();
        assert_eq!(Some(file_bytes.len()), format.file_bytes(n_out, n_in), "the bytes of the tensor");
        Self::pack_from(format, n_out, n_in, pool, &|at, part| {
            part.copy_from_slice(&file_bytes[at..at + part.len()]);
            Ok(())
        })
    }

    /// Packs the rows of a tensor that `read` gives part by part, to several threads at a time: it fills a buffer
    /// with the bytes from an offset on.
    ///
    /// # Errors
    /// Those of `read`, [`KernelError::NotFinite`] for a weight or a scale that is no number, and
    /// [`KernelError::OutOfMemory`].
    ///
    /// # Panics
    /// When the rows are not whole blocks.
    pub fn pack_from(
        format: impl Into<WeightFormat>,
        n_out: usize,
        n_in: usize,
        pool: &crate::Pool,
        read: &(dyn Fn(usize, &mut [u8]) -> std::io::Result<()> + Sync),
    ) -> Result<Self, KernelError> {
        let format = format.into();
        let (file_block, file_block_bytes) = format.file_block();
        assert!(n_in > 0 && n_in.is_multiple_of(file_block), "rows are whole blocks");
        let row_bytes = n_in / file_block * file_block_bytes;
        let tile_bytes = format.tile_bytes(n_in);
        let n_tiles = n_out.div_ceil(TILE);
        let mut bytes = zeroed::<u8>(n_tiles.saturating_mul(tile_bytes))?;
        let shared = crate::SharedSlice::new(&mut bytes);
        let n_tiles_per_task = (PART_BYTES / (TILE * row_bytes)).max(1);
        let failure = Mutex::new(None);
        pool.run(n_tiles.div_ceil(n_tiles_per_task), &|task| {
            let first = task * n_tiles_per_task;
            let n = n_tiles_per_task.min(n_tiles - first);
            let n_rows = (n * TILE).min(n_out - first * TILE);
            // SAFETY: each tile belongs to one task.
            let tiles = unsafe { shared.range_mut(first * tile_bytes, n * tile_bytes) };
            let packed = PART.with_borrow_mut(|part| {
                part.resize(n_rows * row_bytes, 0);
                read(first * TILE * row_bytes, part).map_err(KernelError::Read)?;
                let rows = part.chunks_exact(row_bytes).enumerate();
                let is_finite = rows.fold(true, |is_finite, (row, file_row)| {
                    let tile = &mut tiles[row / TILE * tile_bytes..][..tile_bytes];
                    is_finite
                        & match format {
                            WeightFormat::Quantized(format) => {
                                quantized::pack_row(format, file_row, n_in, row % TILE, tile)
                            }
                            WeightFormat::Dense(format) => {
                                dense::pack_row(format, file_row, row % TILE, tile)
                            }
                        }
                });
                if is_finite { Ok(()) } else { Err(KernelError::NotFinite) }
            });
            if let Err(error) = packed {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        Ok(Self { format, n_out, n_in, bytes })
    }

    /// Packs `values`, `[n_out, n_in]`, as Q8_0: eight bits, and a scale per 32. Where a row is no whole blocks
    /// of these, the values stay as they are.
    ///
    /// # Errors
    /// [`KernelError`].
    ///
    /// # Panics
    /// When the values are not `n_out` rows of `n_in`.
    pub fn quantize(
        n_out: usize,
        n_in: usize,
        values: &[f32],
        pool: &crate::Pool,
    ) -> Result<Self, KernelError> {
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

    /// Tile after tile: quantized formats as blocks of codes and scales, dense ones input after input.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What they were packed from.
    pub fn format(&self) -> WeightFormat {
        self.format
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
