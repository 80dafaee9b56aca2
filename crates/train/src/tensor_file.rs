//! Files of named tensors, one tensor in memory at a time.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use model::AdapterTensors;
use safetensors::View;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::TrainError;

/// A header is shorter than this; of a longer one nothing is allocated.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// The folder that a file is or would be in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A tensor and its name in a file.
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) numbers: Numbers,
}

/// How a tensor is written.
pub(crate) enum Numbers {
    /// As it is, f32.
    Single(Tensor),
    /// Bytes that were made of one.
    Bytes { dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8> },
}

impl NamedTensor {
    pub(crate) fn single(name: String, tensor: Tensor) -> Self {
        Self { name, numbers: Numbers::Single(tensor) }
    }
}

/// A matrix in eight bits, with a scale for each of its blocks. Blocks of 32 are packed by the engine to these very bits (Q8_0).
pub(crate) struct EightBits {
    shape: [usize; 2],
    /// Rows and columns of a block.
    block: [usize; 2],
    numbers: Vec<i8>,
    scales: Vec<half::f16>,
}

/// The scale of a block whose largest number is `largest`, as the engine rounds it; where half precision has few digits left,
/// never above what it should be. The largest is then always ±127, and what was written once is written again to the bit.
fn scale_of(largest: f32) -> half::f16 {
    let scale = half::f16::from_f32(largest / 127.0);
    match scale < half::f16::MIN_POSITIVE && 127.0 * scale.to_f32() > largest {
        true => half::f16::from_bits(scale.to_bits() - 1),
        false => scale,
    }
}

impl EightBits {
    /// `matrix`, `[n_rows, n_columns]`, in blocks of so many rows and columns.
    pub(crate) fn new(matrix: &Tensor, block: [usize; 2]) -> candle_core::Result<Self> {
        let shape = matrix.dims2()?;
        let values = matrix.flatten_all()?.to_vec1::<f32>()?;
        let mut packed = Self { shape: shape.into(), block, numbers: Vec::new(), scales: Vec::new() };
        let [n_down, n_across] = packed.n_blocks();
        let mut largest = vec![0.0f32; n_down * n_across];
        for (idx, value) in values.iter().enumerate() {
            let largest = &mut largest[packed.block_of(idx)];
            *largest = largest.max(value.abs());
        }
        packed.scales = largest.into_iter().map(scale_of).collect();
        let number = |(idx, value): (usize, &f32)| match packed.scales[packed.block_of(idx)].to_f32() {
            scale if scale > 0.0 => (value / scale).round().clamp(-127.0, 127.0) as i8,
            _ => 0,
        };
        packed.numbers = values.iter().enumerate().map(number).collect();
        Ok(packed)
    }

    fn n_blocks(&self) -> [usize; 2] {
        std::array::from_fn(|axis| self.shape[axis].div_ceil(self.block[axis]))
    }

    fn block_of(&self, idx: usize) -> usize {
        let [down, across] = self.block;
        let n_columns = self.shape[1];
        idx / n_columns / down * self.n_blocks()[1] + idx % n_columns / across
    }

    /// The numbers that these are, row by row.
    pub(crate) fn values(&self) -> Vec<f32> {
        let value = |(idx, &number)| f32::from(number) * self.scales[self.block_of(idx)].to_f32();
        self.numbers.iter().enumerate().map(value).collect()
    }

    /// As tensors of a file: the numbers, and their scales.
    pub(crate) fn named(&self, name: &str) -> [NamedTensor; 2] {
        let numbers = self.numbers.iter().map(|&number| number as u8).collect();
        let scales = self.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let named = |name, dtype, shape: [usize; 2], bytes| NamedTensor {
            name,
            numbers: Numbers::Bytes { dtype, shape: shape.to_vec(), bytes },
        };
        [
            named(name.to_owned(), Dtype::I8, self.shape, numbers),
            named(format!("{name}{}", AdapterTensors::SCALES), Dtype::F16, self.n_blocks(), scales),
        ]
    }
}

/// Its bytes are made when they are due, and what went wrong then is kept, for a view must give some.
struct OnDemand<'a> {
    of: &'a Numbers,
    failure: &'a Cell<Option<candle_core::Error>>,
}

impl View for OnDemand<'_> {
    fn dtype(&self) -> Dtype {
        match self.of {
            Numbers::Single(_) => Dtype::F32,
            Numbers::Bytes { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self.of {
            Numbers::Single(tensor) => tensor.dims(),
            Numbers::Bytes { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = match self.of {
            Numbers::Single(tensor) => tensor,
            Numbers::Bytes { bytes, .. } => return Cow::Borrowed(bytes),
        };
        match tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()) {
            Ok(values) => Cow::Owned(values.into_iter().flat_map(f32::to_le_bytes).collect()),
            Err(error) => {
                self.failure.set(Some(error));
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        match self.of {
            Numbers::Single(tensor) => 4 * tensor.elem_count(),
            Numbers::Bytes { bytes, .. } => bytes.len(),
        }
    }
}

/// Writes `tensors` to `path`, whole or not at all.
///
/// # Errors
/// [`TrainError::Io`], and those of the device.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[NamedTensor],
    metadata: HashMap<String, String>,
) -> Result<(), TrainError> {
    let part = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(TrainError::io(path))?;
    let failure = Cell::new(None);
    let views = tensors.iter().map(|of| (&of.name, OnDemand { of: &of.numbers, failure: &failure }));
    safetensors::serialize_to_file(views, Some(metadata), part.path()).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(error) => TrainError::io(path)(error),
        error => TrainError::unreadable(path, error),
    })?;
    if let Some(error) = failure.into_inner() {
        return Err(error.into());
    }
    part.as_file().sync_all().map_err(TrainError::io(path))?;
    part.persist(path).map_err(|error| TrainError::io(path)(error.error))?;
    Ok(())
}

/// A file of named tensors whose header has been read and agrees with its length.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

impl TensorFile {
    /// Opens the one at `path`; `None` when there is none.
    ///
    /// # Errors
    /// A file that is none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, TrainError> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io(path)(error)),
        };
        let n_bytes = file.metadata().map_err(TrainError::io(path))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(TrainError::io(path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES.min(n_bytes) {
            return Err(TrainError::unreadable(path, format!("its header would have {length} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(TrainError::io(path))?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| TrainError::unreadable(path, error))?;
        let start = 8 + length;
        let of_tensors = header.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        if start + of_tensors != n_bytes {
            let reason = format!("it holds {n_bytes} bytes, its header says {}", start + of_tensors);
            return Err(TrainError::unreadable(path, reason));
        }
        Ok(Some(Self { path: path.to_owned(), file, header, start }))
    }

    /// What its header notes under `key`; nothing where it has no such note.
    pub(crate) fn note(&self, key: &str) -> String {
        let notes = self.header.metadata().as_ref();
        notes.and_then(|notes| notes.get(key)).cloned().unwrap_or_default()
    }

    /// What is known of the tensor `name`, which must be f32 and of the shape of `like`.
    pub(crate) fn check(&self, name: &str, like: &Tensor) -> Result<&TensorInfo, TrainError> {
        let refuse = |what| Err(TrainError::unreadable(&self.path, format!("`{name}` {what}")));
        match self.header.info(name) {
            None => refuse("is missing"),
            Some(info) if info.dtype != Dtype::F32 || info.shape != like.dims() => {
                refuse("has another shape or type")
            }
            Some(info) => Ok(info),
        }
    }

    /// The tensor `name`, on the device and of the shape of `like`.
    pub(crate) fn read(&mut self, name: &str, like: &Tensor) -> Result<Tensor, TrainError> {
        let (start, end) = self.check(name, like)?.data_offsets;
        let mut bytes = vec![0; end - start];
        let read = self.file.seek(SeekFrom::Start(self.start + start as u64));
        read.and_then(|_| self.file.read_exact(&mut bytes)).map_err(TrainError::io(&self.path))?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        Ok(Tensor::from_vec(values, like.dims(), like.device())?)
    }
}
