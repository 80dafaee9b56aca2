//! Tokenizers, built from the metadata of a weight file.
//!
//! Text from a user never becomes a special token: special tokens are reachable by name only
//! ([`Tokenizer::special`]), not by spelling them out in a text.

use std::collections::HashMap;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::gguf::{GgufError, GgufFile};

/// The split of Qwen2 and Qwen2.5, as published with the models.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Qwen3.5: marks belong to letters.
const QWEN35_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Llama 3: digits by threes.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Those of DeepSeek-Coder, one after the other.
const DEEPSEEK_CODER_SPLITS: [&str; 4] =
    [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u{800}-一가-\u{d7ff}]+"];
/// Bounds on what building a SentencePiece tokenizer takes: a hundred times what the largest vocabularies in use
/// need, and less than a second.
const MAX_PIECE_WORK: usize = 1 << 28;
const MAX_MERGE_BYTES: usize = 256 << 20;
/// Bytes of a merge beside its texts.
const MERGE_BYTES: usize = 80;
/// SentencePiece writes spaces as this character.
const SPM_SPACE: char = '\u{2581}';

// Values of `tokenizer.ggml.token_type`.
const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;
const TYPE_UNUSED: i32 = 5;
const TYPE_BYTE: i32 = 6;

/// Why a tokenizer cannot be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // The messages say what the fields are.
pub enum TokenizerError {
    #[error(transparent)]
    Metadata(#[from] GgufError),
    #[error("{what} must be at most {limit}. Given: {got}")]
    TooLarge { what: &'static str, limit: usize, got: usize },
    #[error("the tokenizer `{model}` with split `{pre}` is not supported")]
    Unsupported { model: String, pre: String },
    #[error("the vocabulary must hold {expected} tokens, like the embedding table. Given: {got}")]
    VocabularySize { expected: usize, got: usize },
    #[error("`{key}` must hold one entry per token, {expected}. Given: {got}")]
    EntryCount { key: &'static str, expected: usize, got: usize },
    #[error("the token `{token}` appears twice")]
    DuplicateToken { token: String },
    #[error("merge {idx}, `{merge}`, is not a pair of tokens that make a token")]
    Merge { idx: usize, merge: String },
    #[error("`{key}` must be below {vocabulary}. Given: {got}")]
    SpecialId { key: &'static str, vocabulary: usize, got: usize },
    #[error("the vocabulary lacks tokens for single bytes")]
    NoByteTokens,
    #[error("the tokenizer library failed: {0}")]
    Library(String),
}

/// The kinds of byte-pair encoding in use: what text is split into before pairs are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// Bytes as characters, split with the pattern of Qwen2.
    ByteLevelQwen2,
    /// The same with the pattern of Qwen3.5.
    ByteLevelQwen35,
    /// The same with the pattern of Llama 3; a piece that is a token as it is stays one.
    ByteLevelLlama3,
    /// The same with the patterns of DeepSeek-Coder.
    ByteLevelDeepSeekCoder,
    /// Bytes as characters, single digits, then the split of GPT-2 (StarCoder, SmolLM).
    ByteLevelStarCoder,
    /// SentencePiece pieces with byte fallback (Llama 2, Code Llama).
    SentencePiece,
}

/// Tokens of infilling prompts that a file may name, whatever they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InfillToken {
    /// Before the text before the cursor.
    Prefix,
    /// Before the text after the cursor.
    Suffix,
    /// Before what the model writes.
    Middle,
    /// Before the name of a repository.
    Repository,
    /// Before the name of a file.
    File,
}

impl InfillToken {
    /// Their keys, the newer ones first.
    const KEYS: [(Self, &'static [&'static str]); 5] = [
        (Self::Prefix, &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"]),
        (Self::Suffix, &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"]),
        (Self::Middle, &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"]),
        (Self::Repository, &["tokenizer.ggml.fim_rep_token_id"]),
        (Self::File, &["tokenizer.ggml.fim_sep_token_id"]),
    ];
}

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    kind: TokenizerKind,
    bpe: tokenizers::Tokenizer,
    /// What the tokens spell, one behind the other; nothing for special tokens.
    bytes: Vec<u8>,
    /// Where each of them ends in `bytes`.
    ends: Vec<u32>,
    special: HashMap<String, u32>,
    infill: HashMap<InfillToken, u32>,
    ends_text: Vec<bool>,
    eos: Option<u32>,
    bos: Option<u32>,
    add_bos: bool,
    add_space_prefix: bool,
}

impl Tokenizer {
    /// Builds the tokenizer of `file`, whose embedding table has `n_embeddings` rows.
    ///
    /// # Errors
    /// [`TokenizerError`].
    pub fn from_gguf(file: &GgufFile, n_embeddings: usize) -> Result<Self, TokenizerError> {
        let model = file.string("tokenizer.ggml.model")?;
        let pre = if file.has("tokenizer.ggml.pre") { file.string("tokenizer.ggml.pre")? } else { "default" };
        let kind = match (model, pre) {
            ("gpt2", "qwen2" | "deepseek-r1-qwen") => TokenizerKind::ByteLevelQwen2,
            ("gpt2", "qwen35") => TokenizerKind::ByteLevelQwen35,
            ("gpt2", "llama-bpe" | "llama3" | "llama-v3") => TokenizerKind::ByteLevelLlama3,
            ("gpt2", "deepseek-coder") => TokenizerKind::ByteLevelDeepSeekCoder,
            ("gpt2", "smollm" | "starcoder" | "refact" | "codeshell" | "command-r") => {
                TokenizerKind::ByteLevelStarCoder
            }
            ("llama", _) => TokenizerKind::SentencePiece,
            _ => {
                let (model, pre) = (model.to_owned(), pre.to_owned());
                return Err(TokenizerError::Unsupported { model, pre });
            }
        };
        let tokens = file.strings("tokenizer.ggml.tokens")?;
        if tokens.len() != n_embeddings {
            return Err(TokenizerError::VocabularySize { expected: n_embeddings, got: tokens.len() });
        }
        let types = file.integers("tokenizer.ggml.token_type")?;
        if types.len() != tokens.len() {
            let (key, expected, got) = ("tokenizer.ggml.token_type", tokens.len(), types.len());
            return Err(TokenizerError::EntryCount { key, expected, got });
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if ids.insert(*token, id as u32).is_some() {
                return Err(TokenizerError::DuplicateToken { token: (*token).to_owned() });
            }
        }
        let bpe = match kind {
            TokenizerKind::SentencePiece => sentence_piece(file, &tokens, &types, &ids)?,
            _ => byte_level(file, kind, &ids)?,
        };

        let is_special = |id: usize| matches!(types[id], TYPE_UNKNOWN | TYPE_CONTROL | TYPE_UNUSED);
        let spelled = tokens.iter().enumerate().map(|(id, token)| match kind {
            _ if is_special(id) || infilling_name(token) => Box::default(),
            TokenizerKind::SentencePiece if types[id] == TYPE_BYTE => byte_piece(token),
            TokenizerKind::SentencePiece => token.replace(SPM_SPACE, " ").into_bytes().into(),
            _ if types[id] == TYPE_USER_DEFINED => token.as_bytes().into(),
            _ => byte_level_bytes(token),
        });
        // Together: a box for each would take three times the memory.
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(tokens.len()));
        for token in spelled {
            bytes.extend_from_slice(&token);
            ends.push(bytes.len() as u32);
        }
        bytes.shrink_to_fit();
        let special: HashMap<String, u32> = (0..tokens.len())
            .filter(|&id| matches!(types[id], TYPE_CONTROL | TYPE_USER_DEFINED) || infilling_name(tokens[id]))
            .map(|id| (tokens[id].to_owned(), id as u32))
            .collect();

        let special_id = |key: &'static str| -> Result<Option<u32>, TokenizerError> {
            if !file.has(key) {
                return Ok(None);
            }
            let got = file.count(key)?;
            match got < tokens.len() {
                true => Ok(Some(got as u32)),
                false => Err(TokenizerError::SpecialId { key, vocabulary: tokens.len(), got }),
            }
        };
        let flag = |key: &str, default: bool| if file.has(key) { file.bool(key) } else { Ok(default) };
        let is_sentence_piece = kind == TokenizerKind::SentencePiece;
        let mut infill = HashMap::new();
        for (token, keys) in InfillToken::KEYS {
            for &key in keys {
                if let Some(id) = special_id(key)? {
                    infill.entry(token).or_insert(id);
                }
            }
        }
        // No control token is ever part of code, so each of them ends a completion.
        let mut ends_text: Vec<bool> =
            (0..tokens.len()).map(|id| types[id] == TYPE_CONTROL || infilling_name(tokens[id])).collect();
        let eos = special_id("tokenizer.ggml.eos_token_id")?;
        if let Some(eos) = eos {
            ends_text[eos as usize] = true;
        }
        infill.values().for_each(|&mark| ends_text[mark as usize] = true);
        Ok(Self {
            kind,
            bpe,
            bytes,
            ends,
            special,
            infill,
            ends_text,
            eos,
            bos: special_id("tokenizer.ggml.bos_token_id")?,
            add_bos: flag("tokenizer.ggml.add_bos_token", is_sentence_piece)?,
            add_space_prefix: flag("tokenizer.ggml.add_space_prefix", is_sentence_piece)?,
        })
    }

    /// Which byte-pair encoding this is.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// Tokens of a text that starts a sequence (SentencePiece puts a space before it). Special
    /// tokens spelled out in `text` become ordinary tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Library`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, self.add_space_prefix)
    }

    /// Tokens of a text that stands inside a sequence: no space is put before it.
    ///
    /// # Errors
    /// [`TokenizerError::Library`].
    pub fn encode_inside(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, space_prefix: bool) -> Result<Vec<u32>, TokenizerError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let encoding = match self.kind {
            TokenizerKind::SentencePiece => {
                let mut pieces = String::with_capacity(text.len() + 8);
                if space_prefix {
                    pieces.push(SPM_SPACE);
                }
                pieces.extend(text.chars().map(|c| if c == ' ' { SPM_SPACE } else { c }));
                self.bpe.encode_fast(pieces, false)
            }
            _ => self.bpe.encode_fast(text, false),
        };
        Ok(encoding.map_err(|error| TokenizerError::Library(error.to_string()))?.get_ids().to_vec())
    }

    /// What `token` spells. It may be part of a character, and is empty for special tokens.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let start = token.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }

    /// What `tokens` spell; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| self.bytes(token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The special token with this name.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.special.get(name).copied()
    }

    /// The token that the file itself names for this place of an infilling prompt.
    pub fn infill_token(&self, token: InfillToken) -> Option<u32> {
        self.infill.get(&token).copied()
    }

    /// Whether `token` ends a completion.
    pub fn ends_text(&self, token: u32) -> bool {
        self.ends_text.get(token as usize).copied().unwrap_or(false)
    }

    /// The token that a model of code writes behind a text that is whole. What the file calls the end of a sequence is, of
    /// models that also chat, the end of what one of those in a conversation says.
    pub fn end_of_text(&self) -> Option<u32> {
        self.special("<|endoftext|>").or(self.eos)
    }

    /// The token that starts every sequence, for models that want one.
    pub fn start_of_sequence(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.ends.len()
    }
}

/// Converters disagree on the type of Code Llama's infilling tokens, so these go by name.
fn infilling_name(token: &str) -> bool {
    ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"].contains(&token)
}

fn library(error: impl ToString) -> TokenizerError {
    TokenizerError::Library(error.to_string())
}

fn byte_level(
    file: &GgufFile,
    kind: TokenizerKind,
    ids: &HashMap<&str, u32>,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut merges: Merges = Vec::new();
    for (idx, merge) in file.strings("tokenizer.ggml.merges")?.into_iter().enumerate() {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            [*left, *right, &format!("{left}{right}")].iter().all(|token| ids.contains_key(token))
        });
        let Some((left, right)) = pair else {
            return Err(TokenizerError::Merge { idx, merge: merge.to_owned() });
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    // SmolLM2 lacks tokens for bytes that its training text never had; without ASCII no code works.
    let printable = (b'!'..=b'~').map(char::from).chain("ĠĊĉ".chars());
    if !printable.into_iter().all(|c| ids.contains_key(c.to_string().as_str())) {
        return Err(TokenizerError::NoByteTokens);
    }
    let vocabulary: Vocab = ids.iter().map(|(token, &id)| ((*token).to_owned(), id)).collect();
    let keeps_tokens = kind == TokenizerKind::ByteLevelLlama3;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(keeps_tokens);
    let bpe = bpe.build().map_err(library)?;
    let isolate = |pattern: &str| -> Result<PreTokenizerWrapper, TokenizerError> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(library)?.into())
    };
    let bytes = |splits: bool| ByteLevel::new(false, true, splits).into();
    let split: Vec<PreTokenizerWrapper> = match kind {
        TokenizerKind::ByteLevelQwen2 => vec![isolate(QWEN2_SPLIT)?, bytes(false)],
        TokenizerKind::ByteLevelQwen35 => vec![isolate(QWEN35_SPLIT)?, bytes(false)],
        TokenizerKind::ByteLevelLlama3 => vec![isolate(LLAMA3_SPLIT)?, bytes(false)],
        TokenizerKind::ByteLevelDeepSeekCoder => {
            let mut splits = DEEPSEEK_CODER_SPLITS.map(isolate).into_iter().collect::<Result<Vec<_>, _>>()?;
            splits.extend([Digits::new(true).into(), bytes(false)]);
            splits
        }
        TokenizerKind::ByteLevelStarCoder | TokenizerKind::SentencePiece => {
            vec![Digits::new(true).into(), bytes(true)]
        }
    };
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(split)));
    Ok(tokenizer)
}

/// SentencePiece merges the neighbours whose union has the best score; a union's rank is
/// therefore that of its score among all pieces.
fn sentence_piece(
    file: &GgufFile,
    tokens: &[&str],
    types: &[i32],
    ids: &HashMap<&str, u32>,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let scores = file.floats("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let (key, expected, got) = ("tokenizer.ggml.scores", tokens.len(), scores.len());
        return Err(TokenizerError::EntryCount { key, expected, got });
    }
    let is_text = |id: u32| types[id as usize] == TYPE_NORMAL && !infilling_name(tokens[id as usize]);
    // Every place where a piece can be cut is looked at, and every pair that is found is kept: the one is
    // bounded before, the other on the way.
    let n_looks: usize = tokens.iter().map(|piece| piece.len().saturating_mul(piece.len())).sum();
    if n_looks > MAX_PIECE_WORK {
        let (what, limit) = ("the squared lengths of the pieces", MAX_PIECE_WORK);
        return Err(TokenizerError::TooLarge { what, limit, got: n_looks });
    }
    let mut n_bytes = 0;
    let mut merges = Vec::new();
    for (id, piece) in tokens.iter().enumerate().filter(|&(id, _)| is_text(id as u32)) {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right))
                && is_text(l)
                && is_text(r)
            {
                n_bytes += MERGE_BYTES + piece.len();
                if n_bytes > MAX_MERGE_BYTES {
                    let (what, limit) = ("the bytes of all merges", MAX_MERGE_BYTES);
                    return Err(TokenizerError::TooLarge { what, limit, got: n_bytes });
                }
                merges.push((scores[id], id, l, (left.to_owned(), right.to_owned())));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let merges: Merges = merges.into_iter().map(|(_, _, _, pair)| pair).collect();
    let has_bytes = (0..=255u8).all(|byte| ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    if !has_bytes {
        return Err(TokenizerError::NoByteTokens);
    }
    let vocabulary: Vocab = ids.iter().map(|(token, &id)| ((*token).to_owned(), id)).collect();
    let unknown = types.iter().position(|&t| t == TYPE_UNKNOWN).map(|id| tokens[id].to_owned());
    let mut builder = BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown);
    }
    Ok(tokenizers::Tokenizer::new(builder.build().map_err(library)?))
}

/// `<0x0A>` to one byte.
fn byte_piece(token: &str) -> Box<[u8]> {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => Box::new([byte]),
        None => Box::default(),
    }
}

/// Bytes behind the characters of a byte-level token (GPT-2's table: printable Latin-1 stands for
/// itself, the other bytes in order for U+0100 and up).
fn byte_level_bytes(token: &str) -> Box<[u8]> {
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let byte_of = |c: char| match c as u32 {
        code if code <= 0xff && printable(&code) => Some(code as u8),
        code => {
            let shifted = code.checked_sub(0x100)? as usize;
            (0..=255).filter(|byte| !printable(byte)).nth(shifted).map(|byte| byte as u8)
        }
    };
    let bytes: Option<Box<[u8]>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.as_bytes().into())
}

/// Decodes tokens as they come and never emits part of a character.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    incomplete: Vec<u8>,
}

impl StreamDecoder {
    /// The text that `bytes` complete. Bytes that cannot be UTF-8 become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.incomplete.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.incomplete) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.incomplete.clear();
                    return text;
                }
                Err(error) => {
                    let valid = self.incomplete[..error.valid_up_to()].to_vec();
                    text.push_str(&String::from_utf8_lossy(&valid));
                    match error.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.incomplete.drain(..error.valid_up_to() + len);
                        }
                        None => {
                            self.incomplete.drain(..error.valid_up_to());
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// What is left of a character that never became whole.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.incomplete).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole() {
        let text = "a\r\n\té中🦀z";
        let mut decoder = StreamDecoder::default();
        let pieces: Vec<String> = text.bytes().map(|byte| decoder.push(&[byte])).collect();
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 1), "{pieces:?}");
        assert_eq!(pieces.concat(), text);
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        let mut decoder = StreamDecoder::default();
        assert_eq!(decoder.push(b"a\xffb\xf0\x9f"), "a\u{fffd}b");
        assert_eq!(decoder.push(b"x"), "\u{fffd}x");
        assert_eq!(decoder.push(b"\xe4\xb8"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
    }

    #[test]
    fn byte_level_characters_are_bytes() {
        assert_eq!(&*byte_level_bytes("Ġa"), b" a");
        assert_eq!(&*byte_level_bytes("ĊĉčÄ"), b"\n\t\r\xc4");
    }
}
