//! An adapter made part of a model's vocabulary.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use model::gguf::GgufFile;
use model::{Architecture, ModelError, NativeSat, SatAdapter, SlotIds, Tokenizer, sha256_of_file};

use crate::quantize::quantized;
use crate::{ConvertError, ConvertReport, refuse_existing, write_whole};

/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// The tensor whose rows are the embeddings of the vocabulary.
const EMBEDDING: &str = "token_embd.weight";

/// What to merge.
#[derive(Clone, Debug)]
pub struct MergeConfig {
    /// The model, a GGUF file.
    pub model: PathBuf,
    /// An adapter that was trained for it, of embeddings alone (rank 0).
    pub adapter: PathBuf,
    /// The id of its first slot; the others have those behind it. No text may have any of them.
    pub token: u32,
    /// The file to write; nothing may be there.
    pub out: PathBuf,
}

/// Writes the model with the embeddings of the adapter's slots in rows of its vocabulary, in the type that the others have, and says in
/// its metadata which. Everything else is what it was, byte for byte, so texts are too. `progress` is as for
/// [`convert()`](crate::convert()).
///
/// An adapter with deltas cannot be merged: they apply to adaptive rows alone, and a weight is the same for all rows.
///
/// # Errors
/// [`ConvertError::OtherBase`], [`ConvertError::NotMergeable`] and [`ConvertError::TakenToken`]; what is wrong with a file.
pub fn merge_sat(
    config: &MergeConfig,
    progress: &mut dyn FnMut(f32, &str) -> ControlFlow<()>,
) -> Result<ConvertReport, ConvertError> {
    let MergeConfig { model, adapter: path, token, out } = config;
    refuse_existing(out)?;
    let of_model = |error: ModelError| ConvertError::unreadable(model, error);
    let file = GgufFile::open(model).map_err(|error| ConvertError::unreadable(model, error))?;
    let architecture = Architecture::from_gguf(&file).map_err(of_model)?;
    let tokenizer = Tokenizer::from_gguf(&file, architecture.vocabulary)?;
    let bytes = SatAdapter::read(path).map_err(ConvertError::Adapter)?;
    let got = sha256_of_file(model).map_err(of_model)?;
    if let Some(expected) = SatAdapter::base_of(&bytes).filter(|expected| *expected != got) {
        return Err(ConvertError::OtherBase { path: path.clone(), expected, got });
    }
    let adapter = SatAdapter::parse(&bytes, path, &architecture).map_err(ConvertError::Adapter)?;
    let refuse = |reason| Err(ConvertError::NotMergeable { path: path.clone(), reason });
    if adapter.has_deltas() {
        return refuse("its deltas apply to adaptive rows alone; train one of embeddings with `--rank 0`");
    }
    if adapter.has_markov_head() {
        return refuse("it has a Markov head, which a vocabulary has no place for");
    }
    if adapter.n_slots() > NativeSat::MAX_IDS {
        return refuse("a vocabulary can have at most 7 adaptive tokens");
    }
    if NativeSat::from_gguf(&file, &architecture).map_err(of_model)?.is_some() {
        return refuse("the model has adaptive tokens already");
    }
    let sat = NativeSat { token: *token, n_slots: adapter.n_slots(), ids: SlotIds::Consecutive };
    check_ids(sat, &architecture, &tokenizer)?;
    let entry = file.header().tensors().get(EMBEDDING);
    let entry = entry.ok_or_else(|| ConvertError::MissingTensor { tensor: EMBEDDING.to_owned() })?;
    let rows = quantized(adapter.embedding().to_vec(), architecture.hidden, entry.tensor_type)?;
    let row_bytes = rows.len() / sat.n_slots;
    let first = entry.bytes.start + sat.token as usize * row_bytes;

    let file_bytes = write_whole(out, |writer| {
        file.write_header_with(&sat.metadata(), writer).map_err(ConvertError::io(out))?;
        let data = file.data();
        let mut chunk = vec![0; CHUNK_BYTES.min(data.len())];
        for start in data.clone().step_by(CHUNK_BYTES) {
            let chunk = &mut chunk[..CHUNK_BYTES.min(data.end - start)];
            file.read_bytes(start, chunk).map_err(ConvertError::io(model))?;
            let (from, to) = (first.max(start), (first + rows.len()).min(start + chunk.len()));
            if from < to {
                chunk[from - start..to - start].copy_from_slice(&rows[from - first..to - first]);
            }
            writer.write_all(chunk).map_err(ConvertError::io(out))?;
            let share = (start + chunk.len() - data.start) as f32 / data.len() as f32;
            if progress(share, "the model").is_break() {
                return Err(ConvertError::Cancelled);
            }
        }
        Ok(())
    })?;
    let n_tensors = file.header().tensors().len();
    Ok(ConvertReport { file_bytes, n_tensors, n_tokens: architecture.vocabulary })
}

/// Whether all ids are of the vocabulary and of no text.
fn check_ids(sat: NativeSat, architecture: &Architecture, tokenizer: &Tokenizer) -> Result<(), ConvertError> {
    for token in sat.tokens() {
        let taken = |reason: String| Err(ConvertError::TakenToken { token, reason });
        if !(1..architecture.vocabulary).contains(&(token as usize)) {
            return taken(format!(
                "it has the ids 0 to {}, and the first is for texts",
                architecture.vocabulary - 1
            ));
        }
        let text = tokenizer.bytes(token);
        if !text.is_empty() {
            return taken(format!("texts have it, as {:?}", String::from_utf8_lossy(text)));
        }
        if tokenizer.ends_text(token) || tokenizer.start_of_sequence() == Some(token) {
            return taken("it begins or ends texts".to_owned());
        }
    }
    Ok(())
}
