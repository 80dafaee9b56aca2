//! Small checkpoints as they are published, converted: the model that comes out computes what the checkpoint does by
//! candle-transformers, which reads it as it is, and splits text as its `tokenizer.json` does.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use convert::{ConvertConfig, ConvertError, MergeConfig, Mix, NativeSat, convert, merge_sat};
use model::gguf::{GgufFile, TensorType};
use model::{AdapterSource, Architecture, Model, ModelConfig, SlotIds, Tokenizer, sha256_of_file};
use serde_json::{Value, json};
use speculate::{RowPlan, Target};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

const CPU: candle_core::Device = candle_core::Device::Cpu;
const HIDDEN: usize = 256;
const FEED_FORWARD: usize = 512;
const LAYERS: usize = 2;
/// Rows of the embedding table; a few are no token's.
const ROWS: usize = 300;
const TOKENS: [u32; 12] = [5, 99, 7, 7, 199, 42, 250, 3, 120, 11, 64, 255];

/// A checkpoint of a family in a folder.
struct Published {
    folder: tempfile::TempDir,
    tensors: HashMap<String, Tensor>,
}

impl Published {
    fn new(family: &str, settings: &Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = tensors(family);
        let of_layers = |name: &&String| name.contains("layers.1.");
        // In two files, as large ones are.
        for (file, second) in
            [("model-00001-of-00002.safetensors", false), ("model-00002-of-00002.safetensors", true)]
        {
            let part: HashMap<String, Tensor> = (tensors.iter())
                .filter(|(name, _)| of_layers(name) == second)
                .map(|(name, tensor)| (name.clone(), tensor.to_dtype(DType::BF16).expect("bf16")))
                .collect();
            candle_core::safetensors::save(&part, folder.path().join(file)).expect("writes");
        }
        let mut config = json!({
            "model_type": family, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD,
            "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "vocab_size": ROWS,
            "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": [257, 256],
        });
        let entries = settings.as_object().expect("settings").clone();
        config.as_object_mut().expect("an object").extend(entries);
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("writes");
        byte_level(QWEN2_SPLIT).save(folder.path().join("tokenizer.json"), false).expect("writes");
        let published = Self { folder, tensors };
        published.round();
        published
    }

    /// The numbers that the files have.
    fn round(&self) {
        assert!(self.tensors.values().all(|tensor| tensor.dtype() == DType::F32));
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn config(&self, mix: Mix) -> ConvertConfig {
        let out = self.path().join(format!("{mix:?}.gguf"));
        ConvertConfig { folder: self.path().to_owned(), out, mix, sat: None, n_threads: 2 }
    }

    fn convert(&self, mix: Mix) -> PathBuf {
        let config = self.config(mix);
        convert(&config, &mut |_, _| ControlFlow::Continue(())).expect("converts");
        config.out
    }
}

/// Random numbers that bfloat16 has.
fn tensors(family: &str) -> HashMap<String, Tensor> {
    let mut random = 7u64;
    let mut tensor = |shape: &[usize], centre: f64, spread: f64| {
        let n: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..n)
            .map(|_| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (centre + spread * ((random >> 40) as f64 / (1u64 << 23) as f64 - 1.0)) as f32
            })
            .collect();
        let tensor = Tensor::from_vec(numbers, shape, &CPU).and_then(|t| t.to_dtype(DType::BF16));
        tensor.and_then(|t| t.to_dtype(DType::F32)).expect("a tensor")
    };
    let mut all = HashMap::new();
    all.insert("model.embed_tokens.weight".to_owned(), tensor(&[ROWS, HIDDEN], 0.0, 1.0));
    all.insert("lm_head.weight".to_owned(), tensor(&[ROWS, HIDDEN], 0.0, 0.2));
    all.insert("model.norm.weight".to_owned(), tensor(&[HIDDEN], 1.0, 0.1));
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, n_out) in [("q", HIDDEN), ("k", HIDDEN / 2), ("v", HIDDEN / 2)] {
            all.insert(name(&format!("self_attn.{part}_proj.weight")), tensor(&[n_out, HIDDEN], 0.0, 0.15));
            if family == "qwen2" {
                all.insert(name(&format!("self_attn.{part}_proj.bias")), tensor(&[n_out], 0.0, 0.5));
            }
        }
        if family == "qwen3" {
            for part in ["q", "k"] {
                all.insert(name(&format!("self_attn.{part}_norm.weight")), tensor(&[HIDDEN / 4], 1.0, 0.3));
            }
        }
        all.insert(name("self_attn.o_proj.weight"), tensor(&[HIDDEN, HIDDEN], 0.0, 0.1));
        all.insert(name("mlp.gate_proj.weight"), tensor(&[FEED_FORWARD, HIDDEN], 0.0, 0.1));
        all.insert(name("mlp.up_proj.weight"), tensor(&[FEED_FORWARD, HIDDEN], 0.0, 0.1));
        all.insert(name("mlp.down_proj.weight"), tensor(&[HIDDEN, FEED_FORWARD], 0.0, 0.1));
        all.insert(name("input_layernorm.weight"), tensor(&[HIDDEN], 1.0, 0.2));
        all.insert(name("post_attention_layernorm.weight"), tensor(&[HIDDEN], 1.0, 0.2));
    }
    all
}

const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// All bytes, few merges, two special tokens.
fn byte_level(split: &str) -> tokenizers::Tokenizer {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let pairs =
        [("e", "r"), ("i", "n"), ("Ġ", "t"), ("in", "g"), ("1", "2"), ("12", "3"), ("Ċ", "Ċ"), ("Ġ", "Ġ")];
    let wholes = pairs.iter().map(|(left, right)| format!("{left}{right}"));
    let texts = alphabet.iter().map(char::to_string).chain(wholes);
    // Ids 256 and 257 are for special tokens.
    let ids = (0..256).chain(258..);
    let vocabulary = texts.zip(ids).collect();
    let merges = pairs.iter().map(|(left, right)| ((*left).to_owned(), (*right).to_owned())).collect();
    let vocabulary: HashMap<String, u32> = vocabulary;
    let special = [("<|start|>", 256), ("<|end|>", 257)].map(|(text, id)| (text.to_owned(), id));
    let vocabulary = vocabulary.into_iter().chain(special).collect::<HashMap<_, u32>>();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().expect("a tokenizer"));
    let pattern = SplitPattern::Regex(split.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).expect("a pattern");
    let bytes = ByteLevel::new(false, true, false);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])));
    let _ = tokenizer.add_special_tokens(["<|start|>", "<|end|>"].map(|text| AddedToken::from(text, true)));
    tokenizer
}

fn our_logits(path: &Path) -> Vec<f32> {
    let model = Arc::new(Model::load(&ModelConfig::new(path)).expect("loads"));
    let mut sequence = model.sequence().expect("memory");
    let mut plan = RowPlan::prefill(0, &TOKENS);
    plan.want_logits(TOKENS.len() - 1);
    sequence.forward(&plan).expect("runs").row(0).full.expect("asked for").to_vec()
}

/// How far ours are from theirs, as a share of how much theirs spread.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|x| x * x).sum::<f64>().sqrt();
    let far = square(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
    far / square(&mut theirs.iter().map(|x| f64::from(*x)))
}

fn input() -> Tensor {
    Tensor::new(&TOKENS, &CPU).and_then(|tokens| tokens.unsqueeze(0)).expect("tokens")
}

fn llama_logits(published: &Published) -> Vec<f32> {
    use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
    let text = std::fs::read_to_string(published.path().join("config.json")).expect("a file");
    let config: LlamaConfig = serde_json::from_str(&text).expect("a configuration");
    let config = config.into_config(false);
    let weights = VarBuilder::from_tensors(published.tensors.clone(), DType::F32, &CPU);
    let model = Llama::load(weights, &config).expect("loads");
    let mut cache = Cache::new(false, DType::F32, &config, &CPU).expect("a cache");
    let logits = model.forward(&input(), 0, &mut cache).and_then(|logits| logits.flatten_all());
    logits.and_then(|logits| logits.to_vec1()).expect("logits")
}

/// Queries and keys change their order, and positions are stretched as Llama 3.1 does it.
#[test]
fn a_llama_computes_what_its_checkpoint_does() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    for settings in [json!({}), json!({ "rope_scaling": scaling })] {
        let published = Published::new("llama", &settings);
        let theirs = llama_logits(&published);
        // The processor's dense layers round activations to nothing: what is left is the order of sums.
        for (mix, bound) in
            [(Mix::F32, 1e-4), (Mix::BF16, 1e-4), (Mix::F16, 2e-3), (Mix::Q8_0, 0.04), (Mix::Q4_K_M, 0.4)]
        {
            let far = distance(&our_logits(&published.convert(mix)), &theirs);
            println!("{mix:?} {settings}: {far}");
            assert!(far < bound, "{mix:?} {settings}: {far}");
        }
    }
    let stretched = Published::new("llama", &json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }));
    let file = GgufFile::open(&stretched.convert(Mix::F16)).expect("a file");
    assert_eq!(Architecture::from_gguf(&file).expect("a model").rope_scale, 4.0);
}

#[test]
fn a_qwen2_computes_what_its_checkpoint_does() {
    use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
    let published = Published::new(
        "qwen2",
        &json!({ "sliding_window": 512, "max_window_layers": 2, "use_sliding_window": false, "tie_word_embeddings": true }),
    );
    let text = std::fs::read_to_string(published.path().join("config.json")).expect("a file");
    let config: Config = serde_json::from_str(&text).expect("a configuration");
    // Logits are made with the embedding table, whatever else is there.
    let mut tensors = published.tensors.clone();
    tensors.remove("lm_head.weight");
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &CPU);
    let mut model = ModelForCausalLM::new(&config, weights).expect("loads");
    let logits = model.forward(&input(), 0).and_then(|logits| logits.flatten_all());
    let theirs: Vec<f32> = logits.and_then(|logits| logits.to_vec1()).expect("logits");
    let far = distance(&our_logits(&published.convert(Mix::F32)), &theirs);
    assert!(far < 1e-4, "{far}");
}

#[test]
fn a_qwen3_computes_what_its_checkpoint_does() {
    use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
    let published = Published::new(
        "qwen3",
        &json!({
            "head_dim": HIDDEN / 4, "attention_bias": false, "sliding_window": null, "max_window_layers": 2,
            "use_sliding_window": false, "tie_word_embeddings": false,
        }),
    );
    let text = std::fs::read_to_string(published.path().join("config.json")).expect("a file");
    let config: Config = serde_json::from_str(&text).expect("a configuration");
    let weights = VarBuilder::from_tensors(published.tensors.clone(), DType::F32, &CPU);
    let mut model = ModelForCausalLM::new(&config, weights).expect("loads");
    let logits = model.forward(&input(), 0).and_then(|logits| logits.flatten_all());
    let theirs: Vec<f32> = logits.and_then(|logits| logits.to_vec1()).expect("logits");
    let far = distance(&our_logits(&published.convert(Mix::F32)), &theirs);
    assert!(far < 1e-4, "{far}");
}

#[test]
fn text_is_split_as_the_checkpoint_splits_it() {
    let published = Published::new("llama", &json!({}));
    let out = published.convert(Mix::Q8_0);
    let file = GgufFile::open(&out).expect("a file");
    let tokenizer = Tokenizer::from_gguf(&file, ROWS).expect("a tokenizer");
    let reference = byte_level(QWEN2_SPLIT);
    for text in ["inner string 123123\n\n\n  x", "ing  ing\ter1234", "Größe 漢字 🦀"] {
        let wanted = reference.encode(text, false).expect("splits");
        assert_eq!(tokenizer.encode(text).expect("splits"), wanted.get_ids(), "{text}");
        assert_eq!(tokenizer.decode(wanted.get_ids()), text);
    }
    assert_eq!(tokenizer.special("<|start|>"), Some(256));
    assert!(tokenizer.ends_text(257));
    // One that nobody here knows is refused: every letter for itself.
    byte_level(r"\p{L}").save(published.path().join("tokenizer.json"), false).expect("writes");
    let config = ConvertConfig { out: published.path().join("other.gguf"), ..published.config(Mix::Q8_0) };
    let error = convert(&config, &mut |_, _| ControlFlow::Continue(())).expect_err("another tokenizer");
    assert!(matches!(error, ConvertError::UnknownTokenizer { .. }), "{error}");
    assert!(!config.out.exists());
}

#[test]
fn conversations_have_the_form_that_the_checkpoint_says() {
    let published = Published::new("llama", &json!({}));
    let template = |mix| {
        let file = GgufFile::open(&published.convert(mix)).expect("a file");
        file.has("tokenizer.chat_template")
            .then(|| file.string("tokenizer.chat_template").expect("text").to_owned())
    };
    let write = |name: &str, text: &str| std::fs::write(published.path().join(name), text).expect("writes");
    assert_eq!(template(Mix::Q8_0), None);
    write("chat_template.jinja", "{{ in a file }}");
    assert_eq!(template(Mix::Q4_0).as_deref(), Some("{{ in a file }}"));
    let named =
        json!([{ "name": "tools", "template": "no" }, { "name": "default", "template": "{{ named }}" }]);
    write("tokenizer_config.json", &json!({ "chat_template": named }).to_string());
    assert_eq!(template(Mix::F16).as_deref(), Some("{{ named }}"));
    write("tokenizer_config.json", &json!({ "chat_template": "{{ alone }}" }).to_string());
    assert_eq!(template(Mix::Q6_K).as_deref(), Some("{{ alone }}"));
}

/// SentencePiece in `tokenizer.json` alone: the order of merges stands for scores.
#[test]
fn sentence_piece_is_split_by_the_order_of_its_merges() {
    let published = Published::new("llama", &json!({ "bos_token_id": 1, "eos_token_id": 2 }));
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let letters = "▁abcdefghijklmnopqrstuvwxyz".chars().map(|c| c.to_string());
    let fixed = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let pairs = [("i", "n"), ("▁", "t"), ("e", "r"), ("in", "g"), ("▁t", "h")];
    let wholes = pairs.map(|(left, right)| format!("{left}{right}"));
    let vocabulary: serde_json::Map<String, Value> = fixed
        .chain(bytes)
        .chain(letters)
        .chain(wholes)
        .zip(0..)
        .map(|(text, id)| (text, json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [
            { "id": 0, "content": "<unk>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false },
            { "id": 1, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false },
        ],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": &vocabulary, "merges": pairs.map(|(left, right)| format!("{left} {right}")),
        },
    });
    std::fs::write(published.path().join("tokenizer.json"), tokenizer.to_string()).expect("writes");
    let file = GgufFile::open(&published.convert(Mix::Q8_0)).expect("a file");
    let ours = Tokenizer::from_gguf(&file, ROWS).expect("a tokenizer");
    let path = published.path().join("tokenizer.json");
    let reference = tokenizers::Tokenizer::from_file(path).expect("a tokenizer");
    for text in ["the ringing in there", "tinger 12\tthe", "  Größe"] {
        let wanted = reference.encode(text, false).expect("splits");
        assert_eq!(ours.encode(text).expect("splits"), wanted.get_ids(), "{text}");
    }
    assert_eq!(ours.start_of_sequence(), Some(1));

    // The same from `tokenizer.model`, whose scores say the order.
    let mut file = Vec::new();
    let mut pieces: Vec<(String, usize)> =
        (vocabulary.iter()).map(|(text, id)| (text.clone(), id.as_u64().expect("an id") as usize)).collect();
    pieces.sort_by_key(|(_, id)| *id);
    for (text, id) in &pieces {
        let kind = match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend((-(*id as f32)).to_le_bytes());
        piece.extend([0x18, kind]);
        file.extend([0x0a, piece.len() as u8]);
        file.extend(piece);
    }
    std::fs::write(published.path().join("tokenizer.model"), &file).expect("writes");
    for has_json in [true, false] {
        if !has_json {
            std::fs::remove_file(published.path().join("tokenizer.json")).expect("it is there");
        }
        let out = published.path().join(format!("pieces-{has_json}.gguf"));
        let config = ConvertConfig { out, ..published.config(Mix::Q8_0) };
        convert(&config, &mut |_, _| ControlFlow::Continue(())).expect("converts");
        let file = GgufFile::open(&config.out).expect("a file");
        let of_pieces = Tokenizer::from_gguf(&file, ROWS).expect("a tokenizer");
        for text in ["the ringing in there", "tinger 12\tthe", "  Größe"] {
            assert_eq!(of_pieces.encode(text).expect("splits"), ours.encode(text).expect("splits"), "{text}");
        }
    }
}

/// An adapter of three slots for the model at `path`, with `rank` and more tensors `of_rank`.
fn adapter(path: &Path, rank: usize, of_rank: &[(&str, [usize; 2])]) -> Vec<u8> {
    let embedding =
        tensors("llama").remove("model.embed_tokens.weight").and_then(|table| table.narrow(0, 7, 3).ok());
    let embedding = embedding.and_then(|rows| rows.affine(-0.7, 0.01).ok()).expect("three rows");
    let mut all = HashMap::from([("sat.embedding".to_owned(), embedding)]);
    for (name, shape) in of_rank {
        all.insert((*name).to_owned(), Tensor::zeros(shape, DType::F32, &CPU).expect("zeros"));
    }
    let sha256 = sha256_of_file(path).expect("a file");
    let notes =
        [("base_sha256", sha256.as_str()), ("k", "3"), ("rank", &rank.to_string()), ("rope", "interleaved")];
    let notes = notes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    safetensors::serialize(&all, Some(notes)).expect("a file")
}

/// What a model says behind a text and in the slots behind that.
fn logits_with_slots(model: ModelConfig) -> Vec<Vec<f32>> {
    let model = Arc::new(Model::load(&model).expect("loads"));
    assert!(model.has_trained_slots() && model.n_adaptive_tokens() == 3);
    let mut plan = RowPlan::prefill(0, &TOKENS);
    let first = plan.push_adaptive_group(TOKENS.len() - 1, 3);
    (TOKENS.len() - 1..first + 3).for_each(|row| {
        plan.want_logits(row);
    });
    let mut sequence = model.sequence().expect("memory");
    let logits = sequence.forward(&plan).expect("runs");
    (0..4).map(|row| logits.row(row).full.expect("asked for").to_vec()).collect()
}

/// The slots of a merged adapter say what the adapter's do, from rows of the vocabulary, and all else in the file is what it was.
#[test]
fn a_merged_adapter_is_rows_of_the_vocabulary() {
    let go_on = &mut |_: f32, _: &str| ControlFlow::Continue(());
    let published = Published::new("llama", &json!({}));
    // Beside the checkpoint it would be read as a part of it.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.safetensors");
    const IDS: std::ops::Range<usize> = 291..294;
    for mix in [Mix::F32, Mix::Q8_0] {
        let model = published.convert(mix);
        std::fs::write(&path, adapter(&model, 0, &[])).expect("writes");
        let out = published.path().join(format!("merged-{mix:?}.gguf"));
        let config =
            MergeConfig { model: model.clone(), adapter: path.clone(), token: 291, out: out.clone() };
        let report = merge_sat(&config, go_on).expect("merges");
        assert_eq!(report.file_bytes, std::fs::metadata(&out).expect("a file").len());

        let [before, after] = [&model, &out].map(|path| GgufFile::open(path).expect("a file"));
        let sat = NativeSat { token: 291, n_slots: 3, ids: SlotIds::Consecutive };
        let architecture = Architecture::from_gguf(&after).expect("a model");
        assert_eq!(NativeSat::from_gguf(&after, &architecture).expect("in range"), Some(sat));
        assert_eq!(before.header().tensors().len(), after.header().tensors().len());
        for (name, entry) in before.header().tensors() {
            let other = &after.header().tensors()[name];
            assert_eq!((entry.tensor_type, &entry.shape), (other.tensor_type, &other.shape));
            let mut bytes =
                [before.read_tensor(entry), after.read_tensor(other)].map(|bytes| bytes.expect("reads"));
            if name == "token_embd.weight" {
                let row = bytes[0].len() / ROWS;
                assert_ne!(bytes[0], bytes[1]);
                bytes.iter_mut().for_each(|bytes| bytes[IDS.start * row..IDS.end * row].fill(0));
            }
            assert!(bytes[0] == bytes[1], "{name}");
        }

        let of_adapter =
            ModelConfig { adapter: Some(AdapterSource::File(path.clone())), ..ModelConfig::new(&model) };
        let [of_adapter, merged] = [of_adapter, ModelConfig::new(&out)].map(logits_with_slots);
        for (row, (mut theirs, mut ours)) in of_adapter.into_iter().zip(merged).enumerate() {
            assert!(ours[IDS].iter().all(|&logit| logit == f32::NEG_INFINITY));
            [&mut theirs, &mut ours].into_iter().for_each(|logits| logits[IDS].fill(0.0));
            // What a text's rows say stays the same to the bit; slots are rounded as their row is.
            let bound = if row == 0 || mix == Mix::F32 { 0.0 } else { 0.05 };
            let far = distance(&ours, &theirs);
            println!("{mix:?} row {row}: {far}");
            assert!(far <= bound, "{mix:?} row {row}: {far}");
        }
    }
}

#[test]
fn an_adapter_that_cannot_be_merged_is_refused() {
    let go_on = &mut |_: f32, _: &str| ControlFlow::Continue(());
    let published = Published::new("llama", &json!({}));
    let model = published.convert(Mix::Q8_0);
    // Beside the checkpoint it would be read as a part of it.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.safetensors");
    let config = MergeConfig {
        model: model.clone(),
        adapter: path.clone(),
        token: 297,
        out: published.path().join("merged.gguf"),
    };
    let refused = |config: &MergeConfig, adapter: Vec<u8>| {
        std::fs::write(&path, adapter).expect("writes");
        let error =
            merge_sat(config, &mut |_, _| ControlFlow::Continue(())).expect_err("refused").to_string();
        assert!(!config.out.exists(), "{error}");
        error
    };
    let linears = ["q", "k", "v", "o", "gate", "up", "down"];
    let kv = HIDDEN / 2;
    let widths = [(HIDDEN, HIDDEN), (HIDDEN, kv), (HIDDEN, kv), (HIDDEN, HIDDEN)];
    let widths =
        widths.into_iter().chain([(HIDDEN, FEED_FORWARD), (HIDDEN, FEED_FORWARD), (FEED_FORWARD, HIDDEN)]);
    let mut deltas = Vec::new();
    for (name, (n_in, n_out)) in linears.iter().zip(widths) {
        for layer in 0..LAYERS {
            deltas.push((format!("layers.{layer}.{name}.lora_a"), [n_in, 2]));
            deltas.push((format!("layers.{layer}.{name}.lora_b"), [2, n_out]));
        }
    }
    let deltas: Vec<(&str, [usize; 2])> =
        deltas.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
    let with_deltas = refused(&config, adapter(&model, 2, &deltas));
    assert!(with_deltas.contains("its deltas apply to adaptive rows alone"), "{with_deltas}");
    let head = [("markov.before", [20, 3]), ("markov.after", [20, 3])];
    let with_head = refused(&config, adapter(&model, 0, &head));
    assert!(with_head.contains("Markov head"), "{with_head}");
    let other = published.convert(Mix::F16);
    let of_other = refused(&config, adapter(&other, 0, &[]));
    assert!(of_other.contains("belongs to another model"), "{of_other}");
    let fits = || adapter(&model, 0, &[]);
    for (token, words) in [
        (298, "the adaptive token 300: it has the ids 0 to 299"),
        (0, "the adaptive token 0: it has the ids 0 to 299, and the first is for texts"),
        (255, "the adaptive token 255: texts have it, as "),
        (256, "the adaptive token 256: it begins or ends texts"),
    ] {
        let error = refused(&MergeConfig { token, ..config.clone() }, fits());
        assert!(error.contains(words), "{error}");
    }
    let no_model = refused(&MergeConfig { model: path.clone(), ..config.clone() }, fits());
    assert!(no_model.contains("adapter.safetensors cannot be read: "), "{no_model}");

    std::fs::write(&path, fits()).expect("writes");
    let cancelled = merge_sat(&config, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(ConvertError::Cancelled)) && !config.out.exists());
    merge_sat(&config, go_on).expect("merges");
    assert!(matches!(merge_sat(&config, go_on), Err(ConvertError::Exists { .. })));
    // Once is enough.
    let again =
        MergeConfig { model: config.out.clone(), out: published.path().join("again.gguf"), ..config.clone() };
    let twice = refused(&again, adapter(&config.out, 0, &[]));
    assert!(twice.contains("has adaptive tokens already"), "{twice}");
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_left() {
    let go_on = &mut |_: f32, _: &str| ControlFlow::Continue(());
    let published = Published::new("llama", &json!({}));
    let config = published.config(Mix::Q4_0);
    // Ended on the way.
    let cancelled = convert(&config, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(cancelled, Err(ConvertError::Cancelled)));
    let names = std::fs::read_dir(published.path()).expect("a folder");
    let names: Vec<_> = names.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with(".sateen")), "{names:?}");
    convert(&config, go_on).expect("converts");
    assert!(matches!(convert(&config, go_on), Err(ConvertError::Exists { .. })));

    // An adaptive token of the vocabulary, and one that is none.
    let sat = |token| ConvertConfig {
        out: published.path().join(format!("sat-{token}.gguf")),
        sat: Some(NativeSat::shared(token, 5)),
        ..config.clone()
    };
    convert(&sat(299), go_on).expect("converts");
    let file = GgufFile::open(&sat(299).out).expect("a file");
    let architecture = Architecture::from_gguf(&file).expect("a model");
    let native = NativeSat::from_gguf(&file, &architecture).expect("in range");
    assert_eq!(native, Some(NativeSat::shared(299, 5)));
    assert!(matches!(convert(&sat(300), go_on), Err(ConvertError::Model(_))));

    // Logits keep more bits than the rest; what is not whole super-blocks falls back.
    let tensors = file.header().tensors();
    assert_eq!(tensors["output.weight"].tensor_type, TensorType::Q6_K);
    assert_eq!(tensors["blk.0.ffn_up.weight"].tensor_type, TensorType::Q4_0);

    for (settings, wanted) in [
        (json!({ "model_type": "gpt2" }), "the model type `gpt2`"),
        (json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } }), "rotary scaling `yarn`"),
        (json!({ "hidden_act": "gelu" }), "`hidden_act`"),
        (json!({ "intermediate_size": 640 }), "has the shape"),
        (json!({ "num_hidden_layers": 3 }), "lacks the tensor"),
        (json!({ "num_hidden_layers": 1 }), "nobody knows what the tensor"),
        (json!({ "num_attention_heads": 0 }), "`num_attention_heads`"),
        (json!({ "num_key_value_heads": u64::MAX / 2 }), "`num_key_value_heads`"),
    ] {
        let published = Published::new("llama", &settings);
        let error = convert(&published.config(Mix::Q8_0), go_on).expect_err("refused").to_string();
        assert!(error.contains(wanted), "{error}");
    }

    // A token whose id nobody has room for.
    let far = Published::new("llama", &json!({}));
    std::fs::write(far.path().join("added_tokens.json"), r#"{"<|far|>": 900000000000}"#).expect("writes");
    far.convert(Mix::Q8_0);

    // A number that is none, and a file that is cut.
    let broken = Published::new("llama", &json!({}));
    let nan = Tensor::new(&[f32::NAN; HIDDEN], &CPU).expect("a tensor");
    let path = broken.path().join("model-00001-of-00002.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &CPU).expect("reads");
    tensors.insert("model.norm.weight".to_owned(), nan);
    candle_core::safetensors::save(&tensors, &path).expect("writes");
    let error = convert(&broken.config(Mix::Q8_0), go_on);
    assert!(matches!(error, Err(ConvertError::NotFinite { .. })), "{error:?}");
    let bytes = std::fs::read(&path).expect("reads");
    for n in [0, 4, 100, bytes.len() / 2] {
        std::fs::write(&path, &bytes[..n]).expect("writes");
        assert!(convert(&broken.config(Mix::Q8_0), go_on).is_err(), "{n} bytes");
    }
}
