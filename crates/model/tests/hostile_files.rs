//! Files from strangers: every malformed one is refused with words, none brings the process down.

mod common;

use std::path::PathBuf;

use model::gguf::{GgufError, GgufFile, GgufHeader};
use model::{CacheType, Model, ModelConfig, ModelSummary};
use proptest::prelude::*;

fn tiny_path() -> PathBuf {
    concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf").into()
}

fn tiny() -> Vec<u8> {
    std::fs::read(tiny_path()).expect("the tiny model")
}

/// Builds GGUF files a field at a time.
#[derive(Clone, Default)]
struct Builder(Vec<u8>);

impl Builder {
    fn new(n_tensors: u64, n_values: u64) -> Self {
        Self::default().raw(b"GGUF").u32(3).u64(n_tensors).u64(n_values)
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }
    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }
    fn alignment(self, value: u32) -> Self {
        self.string("general.alignment").u32(4).u32(value)
    }
    fn tensor(self, name: &str, dimensions: &[u64], tensor_type: u32, offset: u64) -> Self {
        let start = self.string(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(start, |builder, &n| builder.u64(n)).u32(tensor_type).u64(offset)
    }
    fn data(mut self, n_bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + n_bytes, 0);
        self
    }
}

fn assert_rejects(file: &Builder, message: &str) {
    match GgufHeader::parse(&file.0) {
        Ok(_) => panic!("accepted a file that should be refused with `{message}`"),
        Err(error) => assert!(error.to_string().contains(message), "`{error}` does not say `{message}`"),
    }
}

#[test]
fn a_sound_file_is_accepted() {
    let file = Builder::new(2, 1).alignment(32).tensor("a", &[32], 8, 0).tensor("b", &[4], 0, 64).data(80);
    let header = GgufHeader::parse(&file.0).expect("sound");
    assert_eq!(header.tensors()["b"].shape, [4]);
    assert!(GgufHeader::parse(&Builder::new(0, 0).0).is_ok());
}

#[test]
fn bad_headers_are_refused() {
    assert_rejects(&Builder::default(), "inside the magic number");
    assert_rejects(&Builder::default().raw(b"GGML").u32(3), "not a GGUF file");
    assert_rejects(&Builder::default().raw(b"GGUF").u32(1), "version 1 is not supported");
    assert_rejects(&Builder::default().raw(b"GGUF").u32(0x0300_0000), "not supported");
    assert_rejects(&Builder::new(u64::MAX, 0), "the number of tensors must be at most 65536");
    assert_rejects(&Builder::new(0, u64::MAX), "the number of metadata entries must be at most 65536");
    assert_rejects(&Builder::new(1, 0), "inside a tensor name");
    assert_rejects(&Builder::new(0, 1), "inside a metadata key");
}

#[test]
fn bad_metadata_are_refused() {
    let one = || Builder::new(0, 1);
    assert_rejects(&one().u64(u64::MAX), "a metadata key must be at most 65535");
    assert_rejects(&one().u64(2).raw(b"\xff\xfe"), "a metadata key is not UTF-8");
    assert_rejects(&one().string("k").u32(13), "unknown value type 13");
    assert_rejects(&one().string("k").u32(8).u64(u64::MAX), "a metadata string must be at most");
    assert_rejects(&one().string("k").u32(8).u64(100), "inside a metadata string");
    assert_rejects(&one().string("k").u32(7).raw(&[2]), "neither 0 nor 1");
    assert_rejects(&one().string("k").u32(9).u32(4).u64(u64::MAX), "the length of an array must be at most");
    assert_rejects(&one().string("k").u32(9).u32(4).u64(1000), "inside an array");
    assert_rejects(&one().string("k").u32(9).u32(8).u64(1000), "inside a string of an array");
    assert_rejects(&one().string("k").u32(9).u32(99).u64(0), "unknown value type 99");
    let nested = (0..64).fold(one().string("k").u32(9), |builder, _| builder.u32(9).u64(1));
    assert_rejects(&nested, "nesting of arrays must be at most 2");
    let twice = Builder::new(0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(2);
    assert_rejects(&twice, "`k` appears twice");
    for alignment in [0, 1, 4, 13, 1 << 31] {
        assert_rejects(&one().alignment(alignment), "`general.alignment` must be");
    }
    assert_rejects(&one().string("general.alignment").u32(5).u32(32), "`general.alignment` must be");
    assert_rejects(&one().string("general.alignment").u32(10).u64(32), "`general.alignment` must be");
}

#[test]
fn bad_tensors_are_refused() {
    let one = || Builder::new(1, 0);
    assert_rejects(&one().tensor("t", &[], 0, 0), "1 to 4 dimensions. Given: 0");
    assert_rejects(&one().tensor("t", &[1; 5], 0, 0), "1 to 4 dimensions. Given: 5");
    assert_rejects(&one().tensor("t", &[0], 0, 0), "a dimension of 0");
    assert_rejects(&one().tensor("t", &[u64::MAX], 0, 0), "a dimension of 18446744073709551615");
    assert_rejects(&one().tensor("t", &[32], 4, 0), "unsupported type 4");
    assert_rejects(&one().tensor("t", &[32], 16, 0), "unsupported type 16");
    assert_rejects(&one().tensor("t", &[33], 8, 0), "not a multiple of the block of 32");
    assert_rejects(&one().tensor("t", &[1 << 32, 1 << 32], 0, 0), "larger than can be addressed");
    assert_rejects(&one().tensor("t", &[1 << 62], 0, 0), "larger than can be addressed");
    assert_rejects(&one().tensor("t", &[4], 0, 8).data(64), "not a multiple of 32");
    assert_rejects(&one().tensor("t", &[4], 0, 0).data(15), "the file at");
    assert_rejects(&one().tensor("t", &[4], 0, u64::MAX - 31), "larger than can be addressed");
    assert_rejects(&one().tensor("t", &[4], 0, 1 << 40).data(64), "the file at");
    let pair =
        |second: &str, offset| Builder::new(2, 0).tensor("a", &[9], 0, 0).tensor(second, &[4], 0, offset);
    assert_rejects(&pair("a", 64).data(80), "`a` appears twice");
    assert_rejects(&pair("b", 32).data(80), "overlap");
    assert_rejects(&pair("b", 0).data(80), "overlap");
}

/// A valid file, cut at every byte of its header and at many places behind it.
#[test]
fn truncated_files_are_refused() {
    let file = tiny();
    let ends = (0..file.len()).filter(|end| end % 977 == 0 || *end < 3000 || *end > file.len() - 40);
    for end in ends {
        assert!(GgufHeader::parse(&file[..end]).is_err(), "accepted {end} of {} bytes", file.len());
    }
    assert!(GgufHeader::parse(&file).is_ok());
}

#[test]
fn tensors_are_read_as_they_were_written() {
    let file = GgufFile::open(&tiny_path()).expect("the tiny model");
    for entry in file.header().tensors().values() {
        assert_eq!(file.read_tensor(entry).expect("reads"), tiny()[entry.bytes.clone()]);
        let mut part = [0; 5];
        file.read_part(entry, 7, &mut part).expect("reads");
        assert_eq!(part, tiny()[entry.bytes.start + 7..][..5]);
    }
    assert_eq!(file.string("general.architecture").expect("a string"), "llama");
    assert!(matches!(file.string("no.such.key"), Err(GgufError::MissingKey { .. })));
    assert!(matches!(file.count("general.architecture"), Err(GgufError::WrongType { .. })));
}

/// Loads a changed tiny model, as far as it goes, and runs it when it loads.
fn load_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<(), model::ModelError> {
    let mut bytes = tiny();
    change(&mut bytes);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &bytes).expect("writes");
    ModelSummary::read(file.path())?;
    let model = std::sync::Arc::new(Model::load(&ModelConfig::new(file.path()))?);
    model.sequence()?.prefill(&[1, 2, 3])
}

/// Replaces the first occurrence of `from` by `to`, which is as long.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn sound_containers_with_unsound_models_are_refused() {
    assert!(load_changed(|_| ()).is_ok());
    let cases: [(&str, &[u8], &[u8]); 6] = [
        ("the architecture `gpt-2` is not supported", b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gpt-2"),
        ("the metadata lack `llama.block_count`", b"llama.block_count", b"llama.blokk_count"),
        ("tensor `blk.1.ffn_up.weight` is missing", b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"),
        ("tensor `output_norm.weight` is missing", b"output_norm.weight", b"output_nerm.weight"),
        (
            "is not supported",
            b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"tokenizer.ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0brian",
        ),
        ("the metadata lack `tokenizer.ggml.scores`", b"tokenizer.ggml.scores", b"tokenizer.ggml.scares"),
    ];
    for (message, from, to) in cases {
        let error = load_changed(|bytes| replace(bytes, from, to)).expect_err(message);
        assert!(error.to_string().contains(message), "`{error}` does not say `{message}`");
    }
    let error = load_changed(|bytes| {
        let header = GgufHeader::parse(bytes).expect("sound");
        let start = header.tensors()["output_norm.weight"].bytes.start;
        bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(
        error.expect_err("NaN").to_string().contains("`output_norm.weight` holds a value that is not finite")
    );
}

/// A scale that is no number would make completions of nothing.
#[test]
fn weights_that_are_no_numbers_are_refused() {
    let infinity = half_bits(f32::INFINITY);
    for (tensor, bits) in [("blk.0.attn_q.weight", half_bits(f32::NAN)), ("token_embd.weight", infinity)] {
        let error = load_changed(|bytes| {
            let header = GgufHeader::parse(bytes).expect("sound");
            let entry = &header.tensors()[tensor];
            assert!(entry.tensor_type.block().0 > 1, "its blocks begin with a scale");
            // The last block's: they are all looked at.
            let at = entry.bytes.end - entry.tensor_type.block().1;
            bytes[at..at + 2].copy_from_slice(&bits);
        });
        let message = format!("tensor `{tensor}` holds a value that is not finite");
        assert_eq!(error.expect_err("no number").to_string(), message);
    }
}

fn half_bits(value: f32) -> [u8; 2] {
    half::f16::from_f32(value).to_le_bytes()
}

/// A file that is cut short while it is loaded is an error, not the end of the process.
#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, tiny()).expect("writes");
    let mut has_been_cut = false;
    let loaded = Model::load_with_progress(&ModelConfig::new(&path), &mut |_| {
        if !std::mem::replace(&mut has_been_cut, true) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
            file.set_len(tiny().len() as u64 / 2).expect("cuts");
        }
        std::ops::ControlFlow::Continue(())
    });
    let error = loaded.expect_err("half of it is gone").to_string();
    assert!(error.starts_with("reading tensor `"), "{error}");
}

/// A vocabulary with tokens `a`, `aa`, `aaa` and so on, or one long one: refused before it takes time or memory.
#[test]
fn vocabularies_that_would_take_for_ever_are_refused() {
    let piece = |n: usize| "a".repeat(n);
    let cases: [Vec<String>; 2] = [vec![piece(512 << 10)], (1..1500).map(piece).collect()];
    for pieces in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        write_vocabulary(&path, &pieces);
        let started = std::time::Instant::now();
        let file = GgufFile::open(&path).expect("a sound container");
        let error = model::Tokenizer::from_gguf(&file, 259 + pieces.len()).expect_err("too much work");
        assert!(error.to_string().contains("must be at most"), "{error}");
        assert!(started.elapsed().as_secs() < 20, "it took {:?}", started.elapsed());
    }
}

/// A file that is nothing but a SentencePiece vocabulary with `pieces`.
fn write_vocabulary(path: &std::path::Path, pieces: &[String]) {
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"]
        .into_iter()
        .map(str::to_owned)
        .chain((0..=255u8).map(|byte| format!("<0x{byte:02X}>")))
        .chain(pieces.iter().cloned())
        .collect();
    let n = tokens.len() as u64;
    let array = |builder: Builder, key: &str, element: u32| builder.string(key).u32(9).u32(element).u64(n);
    let mut builder = Builder::new(0, 4).string("tokenizer.ggml.model").u32(8).string("llama");
    builder = array(builder, "tokenizer.ggml.tokens", 8);
    builder = tokens.iter().fold(builder, |builder, token| builder.string(token));
    builder = array(builder, "tokenizer.ggml.scores", 6);
    builder = (0..n).fold(builder, |builder, _| builder.u32(0));
    builder = array(builder, "tokenizer.ggml.token_type", 5);
    builder = (0..n).fold(builder, |builder, id| {
        builder.u32(if id < 3 {
            3
        } else if id < 259 {
            6
        } else {
            1
        })
    });
    std::fs::write(path, builder.0).expect("writes");
}

/// More keys and values than any machine has room for: an error, before the weights are read where the engine
/// loads, and never an abort.
#[test]
fn a_cache_that_no_machine_holds_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("wide.gguf");
    let config = model::RandomModelConfig {
        n_layers: 1,
        hidden: 2048,
        n_heads: 1024,
        n_kv_heads: 1024,
        feed_forward: 32,
        vocabulary: 259,
        context_length: 1 << 20,
        ..model::RandomModelConfig::llama_7b(model::gguf::TensorType::Q4_0)
    };
    model::write_random_model(&config, &path).expect("writes");
    let mut bytes = std::fs::read(&path).expect("reads");
    // Heads a thousand times as wide: the tensors do not fit, but what a cache takes is computed before.
    replace(
        &mut bytes,
        b"llama.attention.key_length\x04\0\0\0\x02\0\0\0",
        b"llama.attention.key_length\x04\0\0\0\0\x04\0\0",
    );
    std::fs::write(&path, bytes).expect("writes");
    let architecture = ModelSummary::architecture_of(&path).expect("the header is sound");
    assert!(architecture.cache_bytes(1 << 20, CacheType::F16) > 1 << 42);
    let shape = kernels::AttentionShape::new(1024, 1024, 1024);
    let error =
        kernels::KvCache::new(1, 1 << 40, shape, CacheType::F16).expect_err("no machine has it").to_string();
    assert!(error.ends_with("bytes of memory cannot be had"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any change of the header gives a model or an error, never a panic.
    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..26_000, 0u8..8), 1..4)) {
        let _ = load_changed(|bytes| {
            for (at, bit) in flips {
                let at = at % bytes.len();
                bytes[at] ^= 1 << bit;
            }
        });
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = GgufHeader::parse(&bytes);
        let _ = GgufHeader::parse(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
    }
}

#[test]
fn adapters_for_other_models_are_refused() {
    use model::{AdapterSource, SatAdapter};
    let adapter = concat!(env!("SATEEN_CHECKOUT"), "models/sat-smollm2-135m.safetensors");
    let config = |source| ModelConfig { adapter: Some(source), ..ModelConfig::new(tiny_path()) };
    let error = Model::load(&config(AdapterSource::File(adapter.into()))).expect_err("another model's");
    assert!(error.to_string().contains("shape of sat.embedding"), "{error}");
    assert_eq!(SatAdapter::base_of(b"not safetensors"), None);
    for bytes in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff{}", b"\x02\0\0\0\0\0\0\0{}"] {
        let error = Model::load(&config(AdapterSource::BuiltIn(bytes))).expect_err("no adapter");
        println!("{error}");
    }
    // The end of a text is a token of the vocabulary, and none of those that are drafted anyway.
    let bytes = std::fs::read(adapter).expect("reads");
    let of_smollm = |bytes: Vec<u8>| {
        let path = common::weights("smollm2-135m");
        let source = AdapterSource::BuiltIn(Vec::leak(bytes));
        Model::load(&ModelConfig { adapter: Some(source), max_context: 64, ..ModelConfig::new(path) })
    };
    for end in ["49152", "32767", "-1", "none"] {
        let error = of_smollm(common::with_note(&bytes, SatAdapter::END, end)).expect_err("no such end");
        assert!(error.to_string().contains(&format!("`{end}`")), "{error}");
    }
    let error = Model::load(&config(AdapterSource::File("no/such/file".into()))).expect_err("no file");
    assert!(error.to_string().starts_with("cannot read the adapter no/such/file"), "{error}");
}
