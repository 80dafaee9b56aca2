//! The vocabulary of a checkpoint, as metadata of a GGUF file.
//!
//! `tokenizer.json` says how text is split in a language of its own, a GGUF file by the name of a tokenizer. Which name is
//! right is found by trying: the tokenizer of each name here splits a text, and must do it as the checkpoint's does.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use model::Tokenizer;
use model::gguf::{GgufFile, MetadataValue, write_header};
use serde::Deserialize;
use serde_json::Value;

use crate::ConvertError;
use crate::sentence_piece::SentencePieceModel;

/// Types of tokens in GGUF files.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Names of byte-level tokenizers, one for each way of splitting.
const PRE: [&str; 5] = ["qwen2", "llama-bpe", "deepseek-coder", "starcoder", "qwen35"];

/// What they differ on: digits, contractions, spaces and lines, punctuation, other scripts.
const SAMPLES: [&str; 6] = [
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # 3.14159, 2026\n",
    "for (int i = 0; i < 1234567; ++i) {\n\n\t\tx[i] += y[i]*0x1F;   \r\n}\n\n\n// it's, we'll, I'VE done\n",
    "  leading spaces, naïve café, Größe, Ελληνικά, русский текст, 12 345,67 €",
    "漢字とかな。한국어 텍스트 — “quotes”… ½ ² Ⅷ ١٢٣",
    "if a&&b||!c: x=>y?.z ?? \"s\\n\" :: <<EOF>>\n        deeper\n\n    back",
    "🦀🚀 emoji👩‍👩‍👧 and\u{a0}no-break  spaces\t\tand tabs ",
];

/// A token.
#[derive(Clone, Debug)]
struct Entry {
    text: String,
    kind: i32,
    score: f32,
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: BytePairs,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
}

#[derive(Deserialize)]
struct BytePairs {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, usize>,
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

impl Merge {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Pair(left, right) => format!("{left} {right}"),
        }
    }

    fn whole(&self) -> String {
        match self {
            Self::Text(text) => text.replacen(' ', "", 1),
            Self::Pair(left, right) => format!("{left}{right}"),
        }
    }
}

#[derive(Deserialize)]
struct AddedToken {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Metadata of the vocabulary, for an embedding table of `n_tokens` rows.
pub(crate) fn read(folder: &Path, n_tokens: usize) -> Result<Vec<(String, MetadataValue)>, ConvertError> {
    let json_path = folder.join("tokenizer.json");
    let json = json_path.exists().then(|| read_json::<TokenizerJson>(&json_path)).transpose()?;
    let sentence_piece = folder.join("tokenizer.model");
    let settings = Settings::read(folder)?;
    let mut vocabulary = match json {
        _ if sentence_piece.exists() => {
            let model = SentencePieceModel::read(&sentence_piece)?;
            let added = json.map_or_else(Vec::new, |json| json.added_tokens);
            of_sentence_piece(model, added, n_tokens)
        }
        Some(json) => {
            let kind = json.model.kind.clone().unwrap_or_else(|| "BPE".to_owned());
            if kind != "BPE" {
                return Err(ConvertError::Unsupported { what: format!("a tokenizer of the type `{kind}`") });
            }
            of_json(json, n_tokens)
        }
        None => return Err(ConvertError::NoVocabulary { folder: folder.to_owned() }),
    };
    for (id, content) in &settings.added {
        vocabulary.add(*id, content, CONTROL);
    }
    let has_json = json_path.exists();
    let mut metadata = vocabulary.metadata();
    settings.add_to(&mut metadata, n_tokens, vocabulary.is_sentence_piece);
    if !has_json {
        return Ok(metadata);
    }
    let names: &[&str] = if vocabulary.is_sentence_piece { &["default"] } else { &PRE };
    let reference = tokenizers::Tokenizer::from_file(&json_path)
        .map_err(|error| ConvertError::unreadable(&json_path, error))?;
    for name in names {
        metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
        metadata.push(string("tokenizer.ggml.pre", name));
        if splits_alike(&metadata, n_tokens, &reference)? {
            return Ok(metadata);
        }
    }
    Err(ConvertError::UnknownTokenizer { path: json_path })
}

fn string(key: &str, text: &str) -> (String, MetadataValue) {
    (key.to_owned(), MetadataValue::String(text.to_owned()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConvertError> {
    let text = std::fs::read(path).map_err(ConvertError::io(path))?;
    serde_json::from_slice(&text).map_err(|error| ConvertError::unreadable(path, error))
}

/// Whether the engine's tokenizer of this metadata splits the samples as `reference` does.
fn splits_alike(
    metadata: &[(String, MetadataValue)],
    n_tokens: usize,
    reference: &tokenizers::Tokenizer,
) -> Result<bool, ConvertError> {
    let io = |source| ConvertError::Io { path: PathBuf::from("a temporary file"), source };
    let mut file = tempfile::NamedTempFile::new().map_err(io)?;
    let mut writer = BufWriter::new(&mut file);
    write_header(&mut writer, metadata, &[]).and_then(|()| writer.flush()).map_err(io)?;
    drop(writer);
    let file = GgufFile::open(file.path()).map_err(model::ModelError::from)?;
    let tokenizer = Tokenizer::from_gguf(&file, n_tokens)?;
    for sample in SAMPLES {
        let wanted = reference
            .encode_fast(sample, false)
            .map_err(|error| ConvertError::unreadable(Path::new("tokenizer.json"), error))?;
        if tokenizer.encode(sample)? != wanted.get_ids() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tokens by their ids.
struct Vocabulary {
    /// One for each row of the embedding table; a token behind these is none.
    entries: Vec<Option<Entry>>,
    /// What they spell.
    texts: HashSet<String>,
    /// Of byte-level vocabularies.
    merges: Vec<String>,
    is_sentence_piece: bool,
    adds_space: bool,
}

impl Vocabulary {
    fn set(&mut self, id: usize, entry: Entry) {
        if let Some(place) = self.entries.get_mut(id) {
            self.texts.insert(entry.text.clone());
            *place = Some(entry);
        }
    }

    /// A token that was added to the vocabulary: of what is there already it says what kind it is.
    fn add(&mut self, id: usize, content: &str, kind: i32) {
        let is_known = self.texts.contains(content);
        let is_there = matches!(self.entries.get(id), Some(Some(entry)) if entry.text == content);
        if is_there || !is_known {
            self.set(id, Entry { text: content.to_owned(), kind, score: 0.0 });
        }
    }

    fn metadata(&self) -> Vec<(String, MetadataValue)> {
        // Rows of the embedding table that are nobody's.
        let unused = |id: usize| Entry { text: format!("[PAD{id}]"), kind: UNUSED, score: -1e6 };
        let entries = self.entries.iter().enumerate();
        let entries: Vec<Entry> =
            entries.map(|(id, entry)| entry.clone().unwrap_or_else(|| unused(id))).collect();
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let model = if self.is_sentence_piece { "llama" } else { "gpt2" };
        let mut metadata = vec![
            string("tokenizer.ggml.model", model),
            (key("token_type"), MetadataValue::I32s(entries.iter().map(|entry| entry.kind).collect())),
        ];
        if self.is_sentence_piece {
            let scores = entries.iter().map(|entry| entry.score).collect();
            metadata.push((key("scores"), MetadataValue::F32s(scores)));
            metadata.push((key("add_space_prefix"), MetadataValue::Bool(self.adds_space)));
            metadata.push(string("tokenizer.ggml.pre", "default"));
        } else {
            metadata.push((key("merges"), MetadataValue::Strings(self.merges.clone())));
        }
        let tokens = entries.into_iter().map(|entry| entry.text).collect();
        metadata.push((key("tokens"), MetadataValue::Strings(tokens)));
        metadata
    }
}

fn of_sentence_piece(model: SentencePieceModel, added: Vec<AddedToken>, n_tokens: usize) -> Vocabulary {
    let mut vocabulary = Vocabulary {
        entries: vec![None; n_tokens],
        texts: HashSet::new(),
        merges: Vec::new(),
        is_sentence_piece: true,
        adds_space: model.adds_space,
    };
    for (id, piece) in model.pieces.into_iter().enumerate() {
        vocabulary.set(id, Entry { text: piece.text, kind: piece.kind, score: piece.score });
    }
    for token in added {
        let is_known = matches!(vocabulary.entries.get(token.id), Some(Some(_)));
        if !is_known {
            vocabulary.add(token.id, &token.content, kind_of(&token));
        }
    }
    vocabulary
}

fn kind_of(token: &AddedToken) -> i32 {
    if token.special { CONTROL } else { USER_DEFINED }
}

fn of_json(json: TokenizerJson, n_tokens: usize) -> Vocabulary {
    let TokenizerJson { model, added_tokens, normalizer, pre_tokenizer } = json;
    let is_sentence_piece = model.byte_fallback || model.vocab.contains_key("<0x0A>");
    // The best score is that of the first merge; pieces are merged in the order of their scores.
    let mut order = HashMap::new();
    for merge in &model.merges {
        let next = order.len();
        order.entry(merge.whole()).or_insert(next);
    }
    // Either normalizer or pre-tokenizer puts a mark in front, in files of different ages.
    let prepends = |part: &Option<Value>| {
        let text = part.as_ref().map(Value::to_string).unwrap_or_default();
        text.contains("\"Prepend\"")
            || text.contains("\"prepend_scheme\":\"first\"")
            || text.contains("\"prepend_scheme\":\"always\"")
    };
    let adds_space = prepends(&normalizer) || prepends(&pre_tokenizer);
    let mut vocabulary = Vocabulary {
        entries: vec![None; n_tokens],
        texts: HashSet::new(),
        merges: model.merges.iter().map(Merge::text).collect(),
        is_sentence_piece,
        adds_space,
    };
    for (text, id) in model.vocab {
        let is_byte = is_sentence_piece && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = match text {
            _ if is_byte => BYTE,
            _ if is_sentence_piece && model.unk_token.as_ref() == Some(&text) => UNKNOWN,
            _ => NORMAL,
        };
        let score = order.get(&text).map_or(-1e6, |&place| -(place as f32));
        vocabulary.set(id, Entry { text, kind, score });
    }
    for token in &added_tokens {
        let is_unknown =
            matches!(vocabulary.entries.get(token.id), Some(Some(entry)) if entry.kind == UNKNOWN);
        if !is_unknown {
            vocabulary.add(token.id, &token.content, kind_of(token));
        }
    }
    vocabulary
}

/// The form of conversations: what `tokenizer_config.json` says, alone or as the one named `default` of several, else a file of
/// its own, as newer checkpoints have it.
fn chat_template(folder: &Path, told: &Value) -> Result<Option<String>, ConvertError> {
    let named = told.as_array().into_iter().flatten().find(|one| one["name"].as_str() == Some("default"));
    let told = named.map_or(told, |one| &one["template"]);
    if let Some(template) = told.as_str() {
        return Ok(Some(template.to_owned()));
    }
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(template) => Ok(Some(template)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConvertError::io(&path)(error)),
    }
}

/// What other files of the folder say of special tokens.
struct Settings {
    /// Ids of the tokens that start and end a text, as far as they are named.
    bos: Option<usize>,
    eos: Option<usize>,
    adds_bos: Option<bool>,
    chat_template: Option<String>,
    /// Tokens that only these files know.
    added: Vec<(usize, String)>,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, ConvertError> {
        let optional = |name: &str| -> Result<Value, ConvertError> {
            let path = folder.join(name);
            if path.exists() { read_json(&path) } else { Ok(Value::Null) }
        };
        let (config, generation) = (optional("config.json")?, optional("generation_config.json")?);
        let tokenizer = optional("tokenizer_config.json")?;
        let id = |key: &str| {
            [&config, &generation].into_iter().find_map(|file| match &file[key] {
                Value::Array(ids) => ids.first()?.as_u64(),
                other => other.as_u64(),
            })
        };
        let mut added: Vec<(usize, String)> = Vec::new();
        if let Value::Object(tokens) = optional("added_tokens.json")? {
            added.extend(tokens.into_iter().filter_map(|(text, id)| Some((id.as_u64()? as usize, text))));
        }
        if let Value::Object(tokens) = &tokenizer["added_tokens_decoder"] {
            let named = tokens.iter().filter(|(_, token)| token["special"].as_bool() == Some(true));
            added.extend(
                named.filter_map(|(id, token)| {
                    Some((id.parse().ok()?, token["content"].as_str()?.to_owned()))
                }),
            );
        }
        added.sort();
        Ok(Self {
            bos: id("bos_token_id").map(|id| id as usize),
            eos: id("eos_token_id").map(|id| id as usize),
            adds_bos: tokenizer["add_bos_token"].as_bool(),
            chat_template: chat_template(folder, &tokenizer["chat_template"])?,
            added,
        })
    }

    fn add_to(self, metadata: &mut Vec<(String, MetadataValue)>, n_tokens: usize, is_sentence_piece: bool) {
        let ids = [("tokenizer.ggml.bos_token_id", self.bos), ("tokenizer.ggml.eos_token_id", self.eos)];
        for (key, id) in ids {
            if let Some(id) = id.filter(|id| *id < n_tokens) {
                metadata.push((key.to_owned(), MetadataValue::U32(id as u32)));
            }
        }
        let adds_bos = MetadataValue::Bool(self.adds_bos.unwrap_or(is_sentence_piece));
        metadata.push(("tokenizer.ggml.add_bos_token".to_owned(), adds_bos));
        if let Some(template) = self.chat_template {
            metadata.push(string("tokenizer.chat_template", &template));
        }
    }
}
