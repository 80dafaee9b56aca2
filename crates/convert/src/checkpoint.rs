//! The tensors of a checkpoint: where they lie, and some of their rows as numbers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::ConvertError;

/// Bytes of the number in front of a header.
const LENGTH_BYTES: usize = 8;
/// Longest header; the format's own bound.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    path: PathBuf,
    offset: u64,
    dtype: Dtype,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
}

impl Stored {
    /// Numbers of a row; a vector is one row.
    pub(crate) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// Which tensors there are.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Stored>,
}

impl Checkpoint {
    /// Reads the headers of all safetensors files of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, ConvertError> {
        let entries = std::fs::read_dir(folder).map_err(ConvertError::io(folder))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        let mut tensors = BTreeMap::new();
        for path in &paths {
            for (name, stored) in read_header(path)? {
                if tensors.insert(name.clone(), stored).is_some() {
                    return Err(ConvertError::unreadable(path, format!("`{name}` is in another file too")));
                }
            }
        }
        if tensors.is_empty() {
            return Err(ConvertError::NoWeights { folder: folder.to_owned() });
        }
        Ok(Self { tensors })
    }

    /// The tensor of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// `n` rows of a tensor from `first` on, as numbers.
    pub(crate) fn rows(
        &self,
        name: &str,
        stored: &Stored,
        first: usize,
        n: usize,
    ) -> Result<Vec<f32>, ConvertError> {
        let size = stored.dtype.bitsize() / 8;
        let row_bytes = stored.width() * size;
        let mut bytes = vec![0; n * row_bytes];
        let mut file = File::open(&stored.path).map_err(ConvertError::io(&stored.path))?;
        let start = stored.offset + (first * row_bytes) as u64;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(ConvertError::io(&stored.path))?;
        let values: Vec<f32> = match stored.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        };
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(ConvertError::NotFinite { tensor: name.to_owned() }),
        }
    }
}

/// The tensors of one file.
fn read_header(path: &Path) -> Result<Vec<(String, Stored)>, ConvertError> {
    let mut file = File::open(path).map_err(ConvertError::io(path))?;
    let file_bytes = file.metadata().map_err(ConvertError::io(path))?.len();
    let mut length = [0; LENGTH_BYTES];
    file.read_exact(&mut length).map_err(ConvertError::io(path))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(file_bytes) {
        return Err(ConvertError::unreadable(path, format!("a header of {header_bytes} bytes")));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(ConvertError::io(path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| ConvertError::unreadable(path, error))?;
    let data_start = LENGTH_BYTES as u64 + header_bytes;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let what = format!("the tensor `{name}` of type {:?}", info.dtype);
            return Err(ConvertError::Unsupported { what });
        }
        let (start, end) = info.data_offsets;
        let (offset, end) = (data_start + start as u64, data_start + end as u64);
        if end > file_bytes {
            return Err(ConvertError::unreadable(path, format!("it ends within `{name}`")));
        }
        let stored = Stored { path: path.to_owned(), offset, dtype: info.dtype, shape: info.shape.clone() };
        tensors.push((name, stored));
    }
    Ok(tensors)
}
