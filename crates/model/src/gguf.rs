//! The GGUF container, version 2 and 3, little endian.
//!
//! A header is untrusted: every length is checked against a limit and against the bytes that are
//! left before it is used, and nothing is allocated in proportion to a length that the file only
//! claims. Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod file;
mod writer;

use std::collections::BTreeMap;
use std::ops::Range;

pub use file::GgufFile;
pub use writer::{MetadataValue, TensorDescription, write_header, write_padding};

/// Largest number of metadata entries, and of tensors.
pub const MAX_ENTRIES: u64 = 65_536;
/// Largest key or tensor name in bytes.
pub const MAX_NAME_BYTES: u64 = 65_535;
/// Largest string value in bytes.
pub const MAX_STRING_BYTES: u64 = 64 << 20;
/// Largest number of elements in an array.
pub const MAX_ARRAY_LEN: u64 = 16 << 20;
/// Deepest nesting of arrays.
pub const MAX_ARRAY_DEPTH: usize = 2;
/// Largest number of dimensions of a tensor.
pub const MAX_DIMENSIONS: u32 = 4;
/// Largest alignment of tensor data in bytes.
pub const MAX_ALIGNMENT: u32 = 1 << 20;
const DEFAULT_ALIGNMENT: u32 = 32;
/// Largest header in bytes: what comes before the tensors.
pub const MAX_HEADER_BYTES: u64 = 128 << 20;

/// What is wrong with a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum GgufError {
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("not a GGUF file: it starts with {got:02x?}")]
    Magic { got: Vec<u8> },
    #[error("GGUF version {got} is not supported, 2 and 3 are")]
    Version { got: u32 },
    #[error("the file ends at byte {file_bytes}, inside {what}")]
    Truncated { what: &'static str, file_bytes: usize },
    #[error("{what} must be at most {limit}. Given: {got}")]
    TooLarge { what: &'static str, limit: u64, got: u64 },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("`{name}` appears twice")]
    Duplicate { name: String },
    #[error("`{key}` has the unknown value type {got}")]
    ValueType { key: String, got: u32 },
    #[error("`{key}` holds {got}, which is neither 0 nor 1, as a boolean")]
    Bool { key: String, got: u8 },
    #[error("`general.alignment` must be a u32, a power of two from 8 to {MAX_ALIGNMENT}. Given: {got}")]
    Alignment { got: String },
    #[error("tensor `{tensor}` must have 1 to {MAX_DIMENSIONS} dimensions. Given: {got}")]
    Dimensions { tensor: String, got: u32 },
    #[error("tensor `{tensor}` has a dimension of {got}")]
    Dimension { tensor: String, got: u64 },
    #[error("tensor `{tensor}` has the unsupported type {got}")]
    TensorType { tensor: String, got: u32 },
    #[error("rows of tensor `{tensor}` hold {got} values, not a multiple of the block of {block}")]
    Block { tensor: String, block: usize, got: u64 },
    #[error("tensor `{tensor}` is larger than can be addressed")]
    TensorOverflow { tensor: String },
    #[error("tensor `{tensor}` starts at {offset}, which is not a multiple of {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u32 },
    #[error("tensor `{tensor}` ends at byte {end}, the file at {file_bytes}")]
    OutsideFile { tensor: String, end: u64, file_bytes: u64 },
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
    #[error("the metadata lack `{key}`")]
    MissingKey { key: String },
    #[error("`{key}` must be {expected}")]
    WrongType { key: String, expected: &'static str },
    #[error("`{key}` must be {range}. Given: {got}")]
    OutOfRange { key: String, range: &'static str, got: String },
}

/// Type of the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // The names are ggml's.
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl TensorType {
    /// All types.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Its number in files.
    pub(crate) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|tensor_type| tensor_type.id() == id)
    }

    /// Values per block, and bytes per block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Type of its values.
    pub tensor_type: TensorType,
    /// Dimensions, outermost first: `[rows, columns]` for a matrix. (The file has them reversed.)
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// A metadata value. Strings and arrays stay in the file; only their place is kept.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64, ValueType),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array { element: ValueType, len: usize, bytes: Range<usize> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64].get(id as usize).copied()
    }

    /// Bytes of a value of fixed size.
    fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }
}

/// A checked header.
#[derive(Clone, Debug)]
pub struct GgufHeader {
    values: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorEntry>,
    /// Where the metadata and the descriptions of tensors lie.
    value_bytes: Range<usize>,
    tensor_bytes: Range<usize>,
    alignment: u32,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let truncated = GgufError::Truncated { what, file_bytes: self.bytes.len() };
        let Ok(n) = usize::try_from(n) else { return Err(truncated) };
        let end = self.at.checked_add(n);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else { return Err(truncated) };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn bounded(&mut self, what: &'static str, limit: u64) -> Result<u64, GgufError> {
        let got = self.u64(what)?;
        if got > limit { Err(GgufError::TooLarge { what, limit, got }) } else { Ok(got) }
    }

    fn string(&mut self, what: &'static str, limit: u64) -> Result<Range<usize>, GgufError> {
        let len = self.bounded(what, limit)?;
        let start = self.at;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what })?;
        Ok(start..self.at)
    }

    fn name(&mut self, what: &'static str) -> Result<String, GgufError> {
        let range = self.string(what, MAX_NAME_BYTES)?;
        Ok(text(self.bytes, &range).to_owned())
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, GgufError> {
        let id = self.u32("a value type")?;
        ValueType::from_id(id).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), got: id })
    }

    fn value(&mut self, key: &str, value_type: ValueType) -> Result<Value, GgufError> {
        let what = "a metadata value";
        Ok(match value_type {
            ValueType::U8 => Value::Unsigned(self.array::<1>(what)?[0].into(), value_type),
            ValueType::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into(), value_type),
            ValueType::U32 => Value::Unsigned(self.u32(what)?.into(), value_type),
            ValueType::U64 => Value::Unsigned(self.u64(what)?, value_type),
            ValueType::I8 => Value::Signed(i8::from_le_bytes(self.array(what)?).into()),
            ValueType::I16 => Value::Signed(i16::from_le_bytes(self.array(what)?).into()),
            ValueType::I32 => Value::Signed(i32::from_le_bytes(self.array(what)?).into()),
            ValueType::I64 => Value::Signed(i64::from_le_bytes(self.array(what)?)),
            ValueType::F32 => Value::Float(f32::from_le_bytes(self.array(what)?).into()),
            ValueType::F64 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            ValueType::Bool => match self.array::<1>(what)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                got => return Err(GgufError::Bool { key: key.to_owned(), got }),
            },
            ValueType::String => Value::String(self.string("a metadata string", MAX_STRING_BYTES)?),
            ValueType::Array => self.array_value(key, 1)?,
        })
    }

    fn array_value(&mut self, key: &str, depth: usize) -> Result<Value, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            let limit = MAX_ARRAY_DEPTH as u64;
            return Err(GgufError::TooLarge { what: "nesting of arrays", limit, got: depth as u64 });
        }
        let element = self.value_type(key)?;
        let len = self.bounded("the length of an array", MAX_ARRAY_LEN)?;
        let start = self.at;
        match element.size() {
            Some(size) => {
                self.take(len * size as u64, "an array")?;
            }
            None if element == ValueType::String => {
                for _ in 0..len {
                    self.string("a string of an array", MAX_STRING_BYTES)?;
                }
            }
            None => {
                for _ in 0..len {
                    self.array_value(key, depth + 1)?;
                }
            }
        }
        Ok(Value::Array { element, len: len as usize, bytes: start..self.at })
    }
}

/// The string at `range`, which was found to be UTF-8 when the header was read.
fn text<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&bytes[range.clone()]).unwrap_or_default()
}

impl GgufHeader {
    /// Reads and checks the header of the file `bytes`.
    ///
    /// # Errors
    /// [`GgufError`] for anything that is not a whole, consistent GGUF file.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        Self::parse_beginning(bytes, bytes.len() as u64)
    }

    /// The same for the beginning of a file of `file_bytes` bytes.
    fn parse_beginning(bytes: &[u8], file_bytes: u64) -> Result<Self, GgufError> {
        let mut reader = Reader { bytes, at: 0 };
        let magic = reader.take(4, "the magic number")?;
        if magic != b"GGUF" {
            return Err(GgufError::Magic { got: magic.to_vec() });
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { got: version });
        }
        let n_tensors = reader.bounded("the number of tensors", MAX_ENTRIES)?;
        let n_values = reader.bounded("the number of metadata entries", MAX_ENTRIES)?;

        let mut values = BTreeMap::new();
        let first_value = reader.at;
        for _ in 0..n_values {
            let key = reader.name("a metadata key")?;
            let value_type = reader.value_type(&key)?;
            let value = reader.value(&key, value_type)?;
            if values.contains_key(&key) {
                return Err(GgufError::Duplicate { name: key });
            }
            values.insert(key, value);
        }
        let alignment = alignment(values.get("general.alignment"))?;

        let value_bytes = first_value..reader.at;
        let mut entries = Vec::new();
        for _ in 0..n_tensors {
            entries.push(TensorHeader::read(&mut reader)?);
        }
        let tensor_bytes = value_bytes.end..reader.at;
        let data_start = (reader.at as u64).next_multiple_of(alignment.into());
        let tensors = place_tensors(entries, data_start, alignment, file_bytes)?;
        Ok(Self { values, tensors, value_bytes, tensor_bytes, alignment })
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors
    }
}

struct TensorHeader {
    name: String,
    tensor_type: TensorType,
    shape: Vec<usize>,
    offset: u64,
    n_bytes: u64,
}

impl TensorHeader {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let tensor = reader.name("a tensor name")?;
        let n_dimensions = reader.u32("the dimensions of a tensor")?;
        if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
            return Err(GgufError::Dimensions { tensor, got: n_dimensions });
        }
        let mut dimensions = Vec::new();
        for _ in 0..n_dimensions {
            let got = reader.u64("the dimensions of a tensor")?;
            if got == 0 || got > isize::MAX as u64 {
                return Err(GgufError::Dimension { tensor, got });
            }
            dimensions.push(got);
        }
        let id = reader.u32("a tensor type")?;
        let Some(tensor_type) = TensorType::from_id(id) else {
            return Err(GgufError::TensorType { tensor, got: id });
        };
        let (block, block_bytes) = tensor_type.block();
        let columns = dimensions[0];
        if !columns.is_multiple_of(block as u64) {
            return Err(GgufError::Block { tensor, block, got: columns });
        }
        let n_values = dimensions.iter().try_fold(1u64, |product, &dimension| product.checked_mul(dimension));
        let n_bytes = n_values.and_then(|n| (n / block as u64).checked_mul(block_bytes as u64));
        let Some(n_bytes) = n_bytes else { return Err(GgufError::TensorOverflow { tensor }) };
        let offset = reader.u64("a tensor offset")?;
        let shape = dimensions.iter().rev().map(|&dimension| dimension as usize).collect();
        Ok(Self { name: tensor, tensor_type, shape, offset, n_bytes })
    }
}

fn alignment(value: Option<&Value>) -> Result<u32, GgufError> {
    match value {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::Unsigned(got, ValueType::U32))
            if got.is_power_of_two() && (8..=MAX_ALIGNMENT.into()).contains(&got) =>
        {
            Ok(got as u32)
        }
        Some(value) => Err(GgufError::Alignment { got: format!("{value:?}") }),
    }
}

fn place_tensors(
    headers: Vec<TensorHeader>,
    data_start: u64,
    alignment: u32,
    file_bytes: u64,
) -> Result<BTreeMap<String, TensorEntry>, GgufError> {
    let mut tensors = BTreeMap::new();
    for TensorHeader { name: tensor, tensor_type, shape, offset, n_bytes } in headers {
        if !offset.is_multiple_of(alignment.into()) {
            return Err(GgufError::Misaligned { tensor, offset, alignment });
        }
        let start = data_start.checked_add(offset);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(n_bytes)?))) else {
            return Err(GgufError::TensorOverflow { tensor });
        };
        if end > file_bytes {
            return Err(GgufError::OutsideFile { tensor, end, file_bytes });
        }
        if tensors.contains_key(&tensor) {
            return Err(GgufError::Duplicate { name: tensor });
        }
        tensors.insert(tensor, TensorEntry { tensor_type, shape, bytes: start as usize..end as usize });
    }
    let mut by_start: Vec<(&String, &TensorEntry)> = tensors.iter().collect();
    by_start.sort_by_key(|(_, entry)| entry.bytes.start);
    for pair in by_start.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if a.bytes.end > b.bytes.start {
            return Err(GgufError::Overlap { first: (*first).clone(), second: (*second).clone() });
        }
    }
    Ok(tensors)
}
