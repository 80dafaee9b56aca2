//! Tokenizers against the vectors that llama.cpp publishes with its vocabulary files (`make vocabularies` fetches
//! them): the tokens of awkward texts, for every kind of split.

use std::path::PathBuf;

use model::gguf::GgufFile;
use model::{Tokenizer, TokenizerKind};

fn folder() -> PathBuf {
    match std::env::var_os("SATEEN_VOCABULARIES") {
        Some(folder) => folder.into(),
        None => {
            let folders = directories::ProjectDirs::from("", "", "sateen").expect("a home folder");
            folders.cache_dir().join("vocabularies")
        }
    }
}

fn check(name: &str, kind: TokenizerKind) {
    let read = |ending: &str| {
        let path = folder().join(format!("ggml-vocab-{name}.gguf{ending}"));
        std::fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}: run `make vocabularies` once", path.display()))
    };
    let path = folder().join(format!("ggml-vocab-{name}.gguf"));
    let file = GgufFile::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let n_tokens = file.strings("tokenizer.ggml.tokens").expect("tokens").len();
    let tokenizer = Tokenizer::from_gguf(&file, n_tokens).expect("a tokenizer");
    assert_eq!(tokenizer.kind(), kind);
    let (inputs, outputs) = (read(".inp"), read(".out"));
    let inputs = std::str::from_utf8(&inputs).expect("UTF-8");
    let outputs: Vec<&str> = std::str::from_utf8(&outputs).expect("UTF-8").lines().collect();
    let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    assert!(inputs.len() >= outputs.len() && outputs.len() > 30, "{} and {}", inputs.len(), outputs.len());
    let mut n_wrong = 0;
    for (text, expected) in inputs.iter().zip(&outputs) {
        let expected: Vec<u32> =
            expected.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        let got = tokenizer.encode(text).expect("encodes");
        if got != expected {
            println!("{name}: {text:?}\n  expected {expected:?}\n  got      {got:?}");
            n_wrong += 1;
        }
        assert_eq!(tokenizer.decode(&got).trim_start(), text.trim_start(), "{name}: the way back");
    }
    assert_eq!(n_wrong, 0, "{name}: of {} texts", outputs.len());
}

#[test]
fn qwen2() {
    check("qwen2", TokenizerKind::ByteLevelQwen2);
}

#[test]
fn qwen35() {
    check("qwen35", TokenizerKind::ByteLevelQwen35);
}

#[test]
fn llama_bpe() {
    check("llama-bpe", TokenizerKind::ByteLevelLlama3);
}

#[test]
fn deepseek_coder() {
    check("deepseek-coder", TokenizerKind::ByteLevelDeepSeekCoder);
}

#[test]
fn starcoder() {
    check("starcoder", TokenizerKind::ByteLevelStarCoder);
}

#[test]
fn refact() {
    check("refact", TokenizerKind::ByteLevelStarCoder);
}

#[test]
fn sentence_piece() {
    check("llama-spm", TokenizerKind::SentencePiece);
}
