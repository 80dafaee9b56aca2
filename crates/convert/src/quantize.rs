//! Types of weights, and the way of rows into a file.

use std::num::NonZeroUsize;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use model::gguf::{TensorDescription, TensorType};

use crate::ConvertError;
use crate::checkpoint::{Checkpoint, Stored};

/// Numbers that a thread works on at a time.
const CHUNK_NUMBERS: usize = 1 << 20;

/// Which types the matrices of a file have. Vectors stay f32. The mixes and their names are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    /// Q5_K, with Q6_K where it matters most.
    Q5_K_M,
    /// Q4_K, with Q6_K where it matters most.
    Q4_K_M,
    /// Q4_0, and logits in Q6_K.
    Q4_0,
}

impl Mix {
    /// All of them, and their names.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::F32, "F32"),
        (Self::F16, "F16"),
        (Self::BF16, "BF16"),
        (Self::Q8_0, "Q8_0"),
        (Self::Q6_K, "Q6_K"),
        (Self::Q5_K_M, "Q5_K_M"),
        (Self::Q4_K_M, "Q4_K_M"),
        (Self::Q4_0, "Q4_0"),
    ];

    /// The mix of that name, in letters of either size.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(mix, _)| mix)
    }

    /// Its number in `general.file_type`.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The type of a matrix with rows of `n_in` numbers. `layer` is its layer, of how many.
    pub(crate) fn tensor_type(self, role: Role, layer: (usize, usize), n_in: usize) -> TensorType {
        let wanted = match (self, role) {
            (_, Role::Vector) | (Self::F32, _) => TensorType::F32,
            (Self::F16, _) => TensorType::F16,
            (Self::BF16, _) => TensorType::BF16,
            (Self::Q8_0, _) => TensorType::Q8_0,
            (_, Role::Logits) | (Self::Q6_K, _) => TensorType::Q6_K,
            (Self::Q5_K_M | Self::Q4_K_M, Role::Value | Role::Down) if matters_more(layer) => {
                TensorType::Q6_K
            }
            (Self::Q5_K_M, _) => TensorType::Q5_K,
            (Self::Q4_K_M, _) => TensorType::Q4_K,
            (Self::Q4_0, _) => TensorType::Q4_0,
        };
        // Where rows are not whole super-blocks, the nearest type without them, as llama.cpp has it.
        let fallback = match wanted {
            TensorType::Q4_K => TensorType::Q5_0,
            TensorType::Q5_K => TensorType::Q5_1,
            TensorType::Q6_K => TensorType::Q8_0,
            other => other,
        };
        let fits = |tensor_type: &TensorType| n_in.is_multiple_of(tensor_type.block().0);
        [wanted, fallback].into_iter().find(fits).unwrap_or(TensorType::F16)
    }
}

/// The layers whose values and down projections get more bits: the first and the last eighth, and a third of the rest.
fn matters_more((layer, n_layers): (usize, usize)) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// What a tensor is for, as far as its type depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Norms, biases.
    Vector,
    /// What makes logits.
    Logits,
    /// Projects values.
    Value,
    /// Projects down from the feed-forward layer.
    Down,
    /// Any other matrix.
    Matrix,
}

/// Where the values of a tensor come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A tensor of the checkpoint. Rows of heads of so many numbers change places, where there is a number: those that
    /// rotate together are half a head apart there, and beside each other here.
    Stored { name: String, stored: Stored, head_rows: Option<NonZeroUsize> },
    /// These numbers.
    Numbers(Vec<f32>),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    pub(crate) description: TensorDescription,
    pub(crate) source: Source,
}

/// Reads, quantizes, and hands on.
pub(crate) struct Quantizer<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) n_threads: usize,
}

impl Quantizer<'_> {
    /// Gives the bytes of a tensor to `write`, in order.
    pub(crate) fn write(
        &self,
        tensor: &PlannedTensor,
        write: &mut dyn FnMut(&[u8]) -> Result<(), ConvertError>,
    ) -> Result<(), ConvertError> {
        let tensor_type = tensor.description.tensor_type;
        let (name, stored, head_rows) = match &tensor.source {
            Source::Numbers(numbers) => {
                return write(&quantized(numbers.clone(), numbers.len(), tensor_type)?);
            }
            Source::Stored { name, stored, head_rows } => {
                (name, stored, head_rows.map_or(1, NonZeroUsize::get))
            }
        };
        let width = stored.width();
        // A permuted vector has a number for each row.
        let (n_rows, width) = match stored.shape.len() {
            1 if head_rows > 1 => (width, 1),
            _ => (stored.shape.iter().product::<usize>() / width, width),
        };
        let rows_at_once = (CHUNK_NUMBERS / width).max(1).next_multiple_of(head_rows);
        let chunk = |first: usize| -> Result<Vec<u8>, ConvertError> {
            let n = rows_at_once.min(n_rows - first);
            let rows = match stored.shape.len() {
                1 => self.checkpoint.rows(name, stored, 0, 1)?[first * width..(first + n) * width].to_vec(),
                _ => self.checkpoint.rows(name, stored, first, n)?,
            };
            quantized(interleaved(rows, width, head_rows), width, tensor_type)
        };
        let firsts: Vec<usize> = (0..n_rows).step_by(rows_at_once).collect();
        for firsts in firsts.chunks(self.n_threads) {
            let chunks: Vec<Result<Vec<u8>, ConvertError>> = std::thread::scope(|scope| {
                let threads: Vec<_> = firsts.iter().map(|&first| scope.spawn(move || chunk(first))).collect();
                let joined = threads.into_iter().map(|thread| match thread.join() {
                    Ok(chunk) => chunk,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                joined.collect()
            });
            for chunk in chunks {
                write(&chunk?)?;
            }
        }
        Ok(())
    }
}

/// In each head of `head_rows` rows, row `2 i` is what was row `i`, and row `2 i + 1` what was row `i + head_rows / 2`.
fn interleaved(rows: Vec<f32>, width: usize, head_rows: usize) -> Vec<f32> {
    if head_rows == 1 {
        return rows;
    }
    let heads = rows.chunks_exact(head_rows * width);
    let row_of = |head: &[f32], row: usize| head[row * width..(row + 1) * width].to_vec();
    heads
        .flat_map(|head| {
            (0..head_rows / 2).flat_map(move |i| [row_of(head, i), row_of(head, i + head_rows / 2)])
        })
        .flatten()
        .collect()
}

/// Rows of `width` numbers as bytes of a type.
pub(crate) fn quantized(
    rows: Vec<f32>,
    width: usize,
    tensor_type: TensorType,
) -> Result<Vec<u8>, ConvertError> {
    let dtype = match tensor_type {
        TensorType::F32 => return Ok(rows.iter().flat_map(|value| value.to_le_bytes()).collect()),
        // What is too large for it becomes its largest.
        TensorType::F16 => {
            let largest = half::f16::MAX.to_f32();
            let halves = rows.iter().map(|value| half::f16::from_f32(value.clamp(-largest, largest)));
            return Ok(halves.flat_map(half::f16::to_le_bytes).collect());
        }
        TensorType::BF16 => {
            return Ok(rows.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect());
        }
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2_K => GgmlDType::Q2K,
        TensorType::Q3_K => GgmlDType::Q3K,
        TensorType::Q4_K => GgmlDType::Q4K,
        TensorType::Q5_K => GgmlDType::Q5K,
        TensorType::Q6_K => GgmlDType::Q6K,
    };
    let n_rows = rows.len() / width;
    let tensor = Tensor::from_vec(rows, (n_rows, width), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, dtype)?.data()?.into_owned())
}
