//! Files from strangers: every malformed one is refused with words, none brings the process down.

use std::path::PathBuf;

use model::gguf::{GgufError, GgufHeader};
use model::{Model, ModelConfig, ModelSummary};
use proptest::prelude::*;

fn tiny_path() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-random-llama.gguf").into()
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
fn gguf_file_maps_what_was_written() {
    let file = model::gguf::GgufFile::open(&tiny_path()).expect("the tiny model");
    assert_eq!(file.bytes(), tiny());
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
    model.sequence().prefill(&[1, 2, 3])
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
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/sat-smollm2-135m.safetensors");
    let config = |source| ModelConfig { adapter: Some(source), ..ModelConfig::new(tiny_path()) };
    let error = Model::load(&config(AdapterSource::File(adapter.into()))).expect_err("another model's");
    assert!(error.to_string().contains("shape of sat.embedding"), "{error}");
    assert_eq!(SatAdapter::base_of(b"not safetensors"), None);
    for bytes in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff\xff{}", b"\x02\0\0\0\0\0\0\0{}"] {
        let error = Model::load(&config(AdapterSource::BuiltIn(bytes))).expect_err("no adapter");
        println!("{error}");
    }
    let error = Model::load(&config(AdapterSource::File("no/such/file".into()))).expect_err("no file");
    assert!(error.to_string().starts_with("cannot read the adapter no/such/file"), "{error}");
}
