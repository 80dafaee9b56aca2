//! From a checkpoint as it is published, a folder with `config.json`, safetensors and a tokenizer, to a GGUF file.
//!
//! [`convert()`] reads the folder's description first (`configuration`), its vocabulary (`vocabulary`) and which
//! tensors it has (`checkpoint`), and writes what a GGUF file says of them. Then tensors follow one after the other, a
//! few rows at a time (`quantize`): memory does not grow with the model. [`merge_sat()`] gives ids of a GGUF file's vocabulary
//! the embeddings of an adapter.

#![forbid(unsafe_code)]

mod checkpoint;
mod configuration;
mod error;
mod merge;
mod quantize;
mod sentence_piece;
mod vocabulary;

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use model::gguf::{GgufFile, MetadataValue, TensorDescription, write_header, write_padding};
use model::{Architecture, ModelError, Tokenizer};
use tempfile::NamedTempFile;

use checkpoint::Checkpoint;
use configuration::Configuration;
pub use error::ConvertError;
pub use merge::{MergeConfig, merge_sat};
pub use model::NativeSat;
pub use quantize::Mix;
use quantize::Quantizer;

/// What to make of a checkpoint.
#[derive(Clone, Debug)]
pub struct ConvertConfig {
    /// The folder with `config.json`.
    pub folder: PathBuf,
    /// The file to write; nothing may be there.
    pub out: PathBuf,
    /// Types of the weights.
    pub mix: Mix,
    /// A semantic adaptive token that the checkpoint was trained with.
    pub sat: Option<NativeSat>,
    /// Threads that quantize.
    pub n_threads: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertReport {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Tensors in it.
    pub n_tensors: usize,
    /// Tokens of the vocabulary.
    pub n_tokens: usize,
}

/// Converts. `progress` is told the share that is done and the tensor that is next, and may end it; then, and after an
/// error, nothing is left behind.
///
/// # Errors
/// [`ConvertError`].
pub fn convert(
    config: &ConvertConfig,
    progress: &mut dyn FnMut(f32, &str) -> ControlFlow<()>,
) -> Result<ConvertReport, ConvertError> {
    let ConvertConfig { folder, out, mix, sat, n_threads } = config;
    refuse_existing(out)?;
    let configuration = Configuration::read(folder)?;
    let checkpoint = Checkpoint::open(folder)?;
    let plan = configuration.tensors(&checkpoint, *mix)?;
    let vocabulary = vocabulary::read(folder, plan.n_tokens)?;
    let mut metadata = configuration.metadata();
    metadata.extend(vocabulary);
    metadata.push(("general.file_type".to_owned(), MetadataValue::U32(mix.file_type())));
    metadata.push(("general.quantization_version".to_owned(), MetadataValue::U32(2)));
    if let Some(sat) = sat {
        metadata.extend(sat.metadata());
    }

    let descriptions: Vec<TensorDescription> =
        plan.tensors.iter().map(|tensor| tensor.description.clone()).collect();
    let n_bytes: u64 = descriptions.iter().map(TensorDescription::n_bytes).sum();
    let quantizer = Quantizer { checkpoint: &checkpoint, n_threads: (*n_threads).max(1) };
    let file_bytes = write_whole(out, |writer| {
        let io = |source| ConvertError::Io { path: out.clone(), source };
        write_header(writer, &metadata, &descriptions).map_err(io)?;
        let mut n_done = 0;
        for tensor in &plan.tensors {
            write_padding(writer).map_err(io)?;
            quantizer.write(tensor, &mut |bytes: &[u8]| {
                writer.write_all(bytes).map_err(io)?;
                n_done += bytes.len() as u64;
                match progress(n_done as f32 / n_bytes as f32, &tensor.description.name) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(ConvertError::Cancelled),
                }
            })?;
        }
        Ok(())
    })?;
    Ok(ConvertReport { file_bytes, n_tensors: descriptions.len(), n_tokens: plan.n_tokens })
}

fn refuse_existing(out: &Path) -> Result<(), ConvertError> {
    match out.exists() {
        true => Err(ConvertError::Exists { path: out.to_owned() }),
        false => Ok(()),
    }
}

/// Has `write` write a model file, and puts it at `out` when the engine takes it; after an error nothing is left. Returns its
/// bytes.
fn write_whole(
    out: &Path,
    write: impl FnOnce(&mut BufWriter<NamedTempFile>) -> Result<(), ConvertError>,
) -> Result<u64, ConvertError> {
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let io = |source| ConvertError::Io { path: out.to_owned(), source };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sateen-");
    // As any file of the user's; temporary ones are for nobody else.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(parent).map_err(io)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary);
    write(&mut writer)?;
    let temporary = writer.into_inner().map_err(|error| io(error.into_error()))?;
    temporary.as_file().sync_all().map_err(io)?;
    check(temporary.path())?;
    let file_bytes = temporary.as_file().metadata().map_err(io)?.len();
    temporary.persist_noclobber(out).map_err(|error| io(error.error))?;
    Ok(file_bytes)
}

/// Whether the engine takes what was written.
fn check(path: &Path) -> Result<(), ConvertError> {
    let file = GgufFile::open(path).map_err(ModelError::from)?;
    let architecture = Architecture::from_gguf(&file)?;
    Tokenizer::from_gguf(&file, architecture.vocabulary)?;
    NativeSat::from_gguf(&file, &architecture)?;
    Ok(())
}
