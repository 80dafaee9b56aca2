//! Files of named tensors, one tensor in memory at a time.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use safetensors::View;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::TrainError;

/// A header is shorter than this; of a longer one nothing is allocated.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// The folder that a file is or would be in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A tensor, its name, and whether it is written in half precision: elsewhere as it is, f32.
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) is_half: bool,
}

/// Its bytes are made when they are due, and what went wrong then is kept, for a view must give some.
struct OnDemand<'a> {
    of: &'a NamedTensor,
    failure: &'a Cell<Option<candle_core::Error>>,
}

impl NamedTensor {
    fn bytes(&self) -> candle_core::Result<Vec<u8>> {
        let values = self.tensor.flatten_all()?;
        Ok(match self.is_half {
            true => {
                let values = values.to_dtype(DType::F16)?.to_vec1::<half::f16>()?;
                values.into_iter().flat_map(half::f16::to_le_bytes).collect()
            }
            false => values.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
        })
    }
}

impl View for OnDemand<'_> {
    fn dtype(&self) -> Dtype {
        if self.of.is_half { Dtype::F16 } else { Dtype::F32 }
    }

    fn shape(&self) -> &[usize] {
        self.of.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.of.bytes().map_or_else(
            |error| {
                self.failure.set(Some(error));
                Cow::Owned(vec![0; self.data_len()])
            },
            Cow::Owned,
        )
    }

    fn data_len(&self) -> usize {
        self.of.tensor.elem_count() * if self.of.is_half { 2 } else { 4 }
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
    let views = tensors.iter().map(|of| (&of.name, OnDemand { of, failure: &failure }));
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
