//! Writing GGUF files, version 3.

use std::io::{Seek, Write};

use super::{DEFAULT_ALIGNMENT, TensorType};

/// A metadata entry's value.
#[derive(Clone, Debug, PartialEq)]
pub enum MetadataValue {
    /// A text.
    String(String),
    /// A number.
    U32(u32),
    /// A number.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// Texts.
    Strings(Vec<String>),
    /// Numbers.
    F32s(Vec<f32>),
    /// Numbers.
    I32s(Vec<i32>),
}

/// A tensor that a file is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDescription {
    /// Its name.
    pub name: String,
    /// Its shape, outermost first; the innermost is whole blocks of its type.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub tensor_type: TensorType,
}

impl TensorDescription {
    /// Bytes of its values.
    pub fn n_bytes(&self) -> u64 {
        let (block, block_bytes) = self.tensor_type.block();
        (self.shape.iter().product::<usize>() / block * block_bytes) as u64
    }
}

/// Writes what stands before the tensors' values, which follow in the same order, each behind [`write_padding`].
///
/// # Errors
/// Those of `out`.
pub fn write_header(
    out: &mut impl Write,
    metadata: &[(String, MetadataValue)],
    tensors: &[TensorDescription],
) -> std::io::Result<()> {
    out.write_all(b"GGUF")?;
    out.write_all(&3u32.to_le_bytes())?;
    out.write_all(&(tensors.len() as u64).to_le_bytes())?;
    out.write_all(&(metadata.len() as u64).to_le_bytes())?;
    for (key, value) in metadata {
        write_entry(out, key, value)?;
    }
    let mut offset = 0u64;
    for tensor in tensors {
        write_string(out, &tensor.name)?;
        out.write_all(&(tensor.shape.len() as u32).to_le_bytes())?;
        tensor.shape.iter().rev().try_for_each(|&n| out.write_all(&(n as u64).to_le_bytes()))?;
        out.write_all(&tensor.tensor_type.id().to_le_bytes())?;
        out.write_all(&offset.to_le_bytes())?;
        offset = (offset + tensor.n_bytes()).next_multiple_of(u64::from(DEFAULT_ALIGNMENT));
    }
    Ok(())
}

/// Writes zeros up to where a tensor may begin.
///
/// # Errors
/// Those of `out`.
pub fn write_padding(out: &mut (impl Write + Seek)) -> std::io::Result<()> {
    let position = out.stream_position()?;
    let aligned = position.next_multiple_of(u64::from(DEFAULT_ALIGNMENT));
    out.write_all(&vec![0; (aligned - position) as usize])
}

/// Writes an entry of the metadata.
pub(super) fn write_entry(out: &mut impl Write, key: &str, value: &MetadataValue) -> std::io::Result<()> {
    write_string(out, key)?;
    write_value(out, value)
}

fn write_string(out: &mut impl Write, text: &str) -> std::io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn write_value(out: &mut impl Write, value: &MetadataValue) -> std::io::Result<()> {
    // Numbers of the types are those of the format.
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.write_all(&kind.to_le_bytes())?;
        out.write_all(bytes)
    };
    let array = |element: u32, len: usize| {
        let kinds = [9, element].map(u32::to_le_bytes).concat();
        [kinds, (len as u64).to_le_bytes().to_vec()].concat()
    };
    match value {
        MetadataValue::U32(number) => scalar(4, &number.to_le_bytes()),
        MetadataValue::F32(number) => scalar(6, &number.to_le_bytes()),
        MetadataValue::Bool(is_so) => scalar(7, &[u8::from(*is_so)]),
        MetadataValue::String(text) => {
            out.write_all(&8u32.to_le_bytes())?;
            write_string(out, text)
        }
        MetadataValue::Strings(texts) => {
            out.write_all(&array(8, texts.len()))?;
            texts.iter().try_for_each(|text| write_string(out, text))
        }
        MetadataValue::F32s(numbers) => {
            out.write_all(&array(6, numbers.len()))?;
            numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
        }
        MetadataValue::I32s(numbers) => {
            out.write_all(&array(5, numbers.len()))?;
            numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
        }
    }
}
