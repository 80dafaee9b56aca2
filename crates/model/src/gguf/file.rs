//! A GGUF file that is open: its metadata by name, its tensors as they are asked for.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::writer::write_entry;
use super::{
    GgufError, GgufHeader, MAX_HEADER_BYTES, MAX_STRING_BYTES, MetadataValue, Reader, TensorEntry, Value,
    ValueType, text,
};

/// Bytes that are read in the hope that they hold the header; those of large vocabularies take some more.
const FIRST_READ_BYTES: u64 = 1 << 20;

/// A GGUF file with a checked header. Tensors are read when they are asked for: were the file mapped, cutting it
/// short meanwhile would end the process.
#[derive(Debug)]
pub struct GgufFile {
    file: File,
    /// The beginning of the file, which holds the header.
    beginning: Vec<u8>,
    header: GgufHeader,
}

/// Fills `part` with the bytes of `file` from `offset` on.
fn read_at(file: &File, offset: u64, part: &mut [u8]) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, part, offset);
    #[cfg(windows)]
    {
        let (mut offset, mut part) = (offset, part);
        while !part.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(file, part, offset)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => (offset, part) = (offset + n as u64, &mut part[n..]),
            }
        }
        Ok(())
    }
}

impl GgufFile {
    /// Opens the file at `path` and checks its header.
    ///
    /// # Errors
    /// [`GgufError`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        // Opening a pipe would wait for somebody to write.
        if !std::fs::metadata(path)?.is_file() {
            return Err(GgufError::NotAFile);
        }
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut n_bytes = FIRST_READ_BYTES.min(file_bytes);
        let mut beginning = Vec::new();
        loop {
            let n_known = beginning.len();
            beginning.resize(n_bytes as usize, 0);
            read_at(&file, n_known as u64, &mut beginning[n_known..])?;
            match GgufHeader::parse_beginning(&beginning, file_bytes) {
                // It goes on behind what was read.
                Err(GgufError::Truncated { .. }) if n_bytes < file_bytes => {
                    if n_bytes >= MAX_HEADER_BYTES {
                        let (what, limit) = ("the header", MAX_HEADER_BYTES);
                        return Err(GgufError::TooLarge { what, limit, got: file_bytes });
                    }
                    n_bytes = (4 * n_bytes).min(file_bytes).min(MAX_HEADER_BYTES);
                }
                Err(error) => return Err(error),
                Ok(header) => return Ok(Self { file, beginning, header }),
            }
        }
    }

    /// The checked header.
    pub fn header(&self) -> &GgufHeader {
        &self.header
    }

    /// Fills `part` with the bytes of a tensor from `offset` on.
    ///
    /// # Errors
    /// When the file cannot be read, or has become shorter than its header says.
    pub fn read_part(&self, entry: &TensorEntry, offset: usize, part: &mut [u8]) -> std::io::Result<()> {
        read_at(&self.file, (entry.bytes.start + offset) as u64, part)
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// As for [`read_part`](Self::read_part), and when there is no memory for it.
    pub fn read_tensor(&self, entry: &TensorEntry) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let refused = |_| std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        bytes.try_reserve_exact(entry.bytes.len()).map_err(refused)?;
        bytes.resize(entry.bytes.len(), 0);
        self.read_part(entry, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Where the bytes of its tensors lie, first to last.
    pub fn data(&self) -> Range<usize> {
        let GgufHeader { tensors, tensor_bytes, alignment, .. } = &self.header;
        let start = tensor_bytes.end.next_multiple_of(*alignment as usize);
        start..tensors.values().map(|entry| entry.bytes.end).max().unwrap_or(start)
    }

    /// Fills `part` with bytes of the file from `offset` on.
    ///
    /// # Errors
    /// As for [`read_part`](Self::read_part).
    pub fn read_bytes(&self, offset: usize, part: &mut [u8]) -> std::io::Result<()> {
        read_at(&self.file, offset as u64, part)
    }

    /// Writes the beginning of a file that has `more` metadata than this one. Behind it belongs what is in [`data`](Self::data)
    /// here, or other values of the same tensors.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_header_with(
        &self,
        more: &[(String, MetadataValue)],
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let GgufHeader { values, tensors, value_bytes, tensor_bytes, alignment } = &self.header;
        let mut header = self.beginning[..8].to_vec();
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend(((values.len() + more.len()) as u64).to_le_bytes());
        header.extend(&self.beginning[value_bytes.clone()]);
        more.iter().try_for_each(|(key, value)| write_entry(&mut header, key, value))?;
        header.extend(&self.beginning[tensor_bytes.clone()]);
        header.resize(header.len().next_multiple_of(*alignment as usize), 0);
        out.write_all(&header)
    }

    fn value(&self, key: &str) -> Result<&Value, GgufError> {
        self.header.values.get(key).ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// Whether the metadata hold `key`.
    pub fn has(&self, key: &str) -> bool {
        self.header.values.contains_key(key)
    }

    /// A string.
    ///
    /// # Errors
    /// When it is missing or of another type; likewise below.
    pub fn string(&self, key: &str) -> Result<&str, GgufError> {
        match self.value(key)? {
            Value::String(range) => Ok(text(&self.beginning, range)),
            _ => Err(wrong_type(key, "a string")),
        }
    }

    /// A count: a non-negative integer that fits 32 bits.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn count(&self, key: &str) -> Result<usize, GgufError> {
        match self.value(key)? {
            Value::Unsigned(value, _) if *value <= u32::MAX.into() => Ok(*value as usize),
            Value::Signed(value) if (0..=u32::MAX.into()).contains(value) => Ok(*value as usize),
            _ => Err(wrong_type(key, "an integer from 0 to 2^32 - 1")),
        }
    }

    /// A finite floating-point number.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn float(&self, key: &str) -> Result<f64, GgufError> {
        match self.value(key)? {
            Value::Float(value) if value.is_finite() => Ok(*value),
            _ => Err(wrong_type(key, "a finite floating-point number")),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        match self.value(key)? {
            Value::Bool(value) => Ok(*value),
            _ => Err(wrong_type(key, "a boolean")),
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn strings(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        let Value::Array { element: ValueType::String, len, bytes } = self.value(key)? else {
            return Err(wrong_type(key, "an array of strings"));
        };
        let mut reader = Reader { bytes: &self.beginning, at: bytes.start };
        (0..*len)
            .map(|_| {
                let range = reader.string("a string of an array", MAX_STRING_BYTES)?;
                Ok(text(&self.beginning, &range))
            })
            .collect()
    }

    /// An array of 32-bit integers.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn integers(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        match self.value(key)? {
            Value::Array { element: ValueType::I32 | ValueType::U32, bytes, .. } => {
                let four = |chunk: &[u8]| i32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                Ok(self.beginning[bytes.clone()].chunks_exact(4).map(four).collect())
            }
            _ => Err(wrong_type(key, "an array of 32-bit integers")),
        }
    }

    /// An array of 32-bit floating-point numbers.
    ///
    /// # Errors
    /// See [`Self::string`].
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        match self.value(key)? {
            Value::Array { element: ValueType::F32, bytes, .. } => {
                let four = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                Ok(self.beginning[bytes.clone()].chunks_exact(4).map(four).collect())
            }
            _ => Err(wrong_type(key, "an array of 32-bit floating-point numbers")),
        }
    }
}

fn wrong_type(key: &str, expected: &'static str) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), expected }
}
