//! What is fed, one function each. They say whether they took the input for sound.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engine::{CompletionRequest, EngineError, Extent, ModelLibrary, PassCosts, extract_part, shown_text};
use model::gguf::{GgufFile, GgufHeader};
use model::{Architecture, ModelSummary, SatAdapter, Tokenizer};
use sha2::{Digest, Sha256};
use speculate::{Layout, RowInput, RowPlan, TokenRecycling};
use zip::write::SimpleFileOptions;

/// A function of bytes that must come to an end whatever they are.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What inputs are made from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Runs it; whether the input was sound.
    pub run: fn(&[u8]) -> bool,
    /// Longest input.
    pub max_bytes: usize,
}

/// All targets.
pub const TARGETS: [Target; 11] = [
    Target { name: "gguf-header", seeds: headers, run: gguf_header, max_bytes: 4096 },
    Target { name: "gguf-file", seeds: models, run: gguf_file, max_bytes: 64 << 10 },
    Target { name: "tokenizer-encode", seeds: texts, run: tokenizer_encode, max_bytes: 512 },
    Target { name: "adapter", seeds: adapters, run: adapter, max_bytes: 64 << 10 },
    Target { name: "recycling", seeds: recyclings, run: recycling, max_bytes: 4096 },
    Target { name: "pass-costs", seeds: costs, run: pass_costs, max_bytes: 256 },
    Target { name: "model-record", seeds: records, run: model_record, max_bytes: 2048 },
    Target { name: "wheel", seeds: wheels, run: wheel, max_bytes: 4096 },
    Target { name: "row-plan", seeds: noise, run: row_plan, max_bytes: 256 },
    Target { name: "output", seeds: texts, run: output, max_bytes: 512 },
    Target { name: "prompt-place", seeds: texts, run: prompt_place, max_bytes: 256 },
];

/// The target of this name.
pub fn named(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

const TINY: &str = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");

fn tiny() -> Vec<u8> {
    std::fs::read(TINY).expect("the tiny model of the repository")
}

fn architecture() -> &'static Architecture {
    static ARCHITECTURE: OnceLock<Architecture> = OnceLock::new();
    ARCHITECTURE.get_or_init(|| ModelSummary::architecture_of(Path::new(TINY)).expect("the tiny model"))
}

/// A folder of this thread, in memory where there is such a thing.
fn workbench() -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = {
            let memory = Path::new("/dev/shm");
            let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            folder.expect("a folder")
        };
    }
    FOLDER.with(|folder| folder.path().to_owned())
}

/// Small GGUF files with an entry of each kind and two tensors.
fn headers() -> Vec<Vec<u8>> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry = |key: &str, kind: u32, value: &[u8]| [&string(key)[..], &kind.to_le_bytes(), value].concat();
    let array =
        |element: u32, n: u64, values: &[u8]| [&element.to_le_bytes()[..], &n.to_le_bytes(), values].concat();
    let entries: Vec<Vec<u8>> = vec![
        entry("general.architecture", 8, &string("llama")),
        entry("general.alignment", 4, &32u32.to_le_bytes()),
        entry("a.bool", 7, &[1]),
        entry("a.float", 6, &1.5f32.to_le_bytes()),
        entry("a.long", 11, &(-3i64).to_le_bytes()),
        entry("numbers", 9, &array(5, 3, &[1; 12])),
        entry("texts", 9, &array(8, 2, &[string("one"), string("two")].concat())),
        entry("nested", 9, &array(9, 1, &array(4, 1, &[9; 4]))),
    ];
    let tensor = |name: &str, dimensions: &[u64], kind: u32, offset: u64| {
        let mut bytes = string(name);
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    };
    let file = |entries: &[Vec<u8>], tensors: &[Vec<u8>], n_data: usize| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((entries.len() as u64).to_le_bytes());
        entries.iter().chain(tensors).for_each(|part| bytes.extend(part));
        bytes.resize(bytes.len().next_multiple_of(32) + n_data, 7);
        bytes
    };
    let tensors = [tensor("a", &[32, 2], 8, 0), tensor("b", &[4], 0, 96)];
    vec![file(&[], &[], 0), file(&entries, &tensors, 112), file(&entries[..2], &tensors[..1], 68)]
}

fn gguf_header(input: &[u8]) -> bool {
    GgufHeader::parse(input).is_ok()
}

/// The tiny model's header and tokenizer, with the data of its tensors cut away where that is possible.
fn models() -> Vec<Vec<u8>> {
    let mut bytes = tiny();
    bytes.truncate(64 << 10);
    vec![bytes, tiny()[..26_000].to_vec()]
}

/// Header, metadata and tokenizer of a file, and a text through what comes of it. The tensors' data are not there.
fn gguf_file(input: &[u8]) -> bool {
    let path = workbench().join("model.gguf");
    std::fs::write(&path, input).expect("writes");
    // As long as the header says, without taking the space.
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.set_len(input.len() as u64 + (1 << 20)).expect("a hole");
    let Ok(file) = GgufFile::open(&path) else { return false };
    let Ok(architecture) = Architecture::from_gguf(&file) else { return false };
    match Tokenizer::from_gguf(&file, architecture.vocabulary) {
        Ok(tokenizer) => {
            for token in tokenizer.encode("fn main() { é🦀\t}").unwrap_or_default() {
                assert!((token as usize) < tokenizer.vocabulary(), "a token outside the vocabulary");
            }
            true
        }
        Err(_) => false,
    }
}

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "def mean(values):\n    return sum(values) / \u{1}\n\n\u{1}len(values)\n",
        "let x = \"a(\";\n    f(\u{1});\n}\n\u{1}[1, 2], g({}))",
        "| # (\u{1}text)\n\u{1}```\n\n\n    }\n",
        "\u{1}\u{1}é中🦀\r\n\t\t x\u{301} 0000 <s> <0x41>",
        "/* ' */ '\\'' \"\"\"\n\u{1}`${a}`\u{1}// )\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn tokenizer_encode(input: &[u8]) -> bool {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| ModelSummary::read(Path::new(TINY)).expect("the tiny model").1);
    let text = String::from_utf8_lossy(input);
    let tokens = tokenizer.encode_inside(&text).expect("any text has tokens");
    assert!(tokens.iter().all(|&token| !tokenizer.ends_text(token)), "a text became a special token");
    // The tiny vocabulary has all bytes, so that nothing is lost; its spaces are SentencePiece's.
    assert_eq!(tokenizer.decode(&tokens), text.replace('\u{2581}', " "));
    true
}

fn adapters() -> Vec<Vec<u8>> {
    let architecture = architecture();
    let Architecture { n_layers, hidden, feed_forward, .. } = *architecture;
    let (query, kv) = (architecture.query_width(), architecture.kv_width());
    let mut shapes = vec![("sat.embedding".to_owned(), [2, hidden])];
    for layer in 0..n_layers {
        let linears = [
            ("q", hidden, query),
            ("k", hidden, kv),
            ("v", hidden, kv),
            ("o", query, hidden),
            ("gate", hidden, feed_forward),
            ("up", hidden, feed_forward),
            ("down", feed_forward, hidden),
        ];
        for (name, n_in, n_out) in linears {
            shapes.push((format!("layers.{layer}.{name}.lora_a"), [n_in, 1]));
            shapes.push((format!("layers.{layer}.{name}.lora_b"), [1, n_out]));
        }
    }
    let data = vec![0x3cu8; 2 * 2 * hidden.max(feed_forward).max(query)];
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = &data[..2 * shape[0] * shape[1]];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.to_vec(), bytes);
        (name.clone(), view.expect("a view"))
    });
    let notes = [("k", "2"), ("rank", "1"), ("rope", "interleaved"), ("base_sha256", "ab")];
    let notes = notes.map(|(key, value)| (key.to_owned(), value.to_owned()));
    vec![safetensors::serialize(views, Some(notes.into())).expect("serializes")]
}

fn adapter(input: &[u8]) -> bool {
    let _ = SatAdapter::base_of(input);
    SatAdapter::parse(input, Path::new("fuzzed"), architecture()).is_ok()
}

fn recyclings() -> Vec<Vec<u8>> {
    let empty = TokenRecycling::default().save();
    let longer = [&empty[..], &[0; 64]].concat();
    let filled = [&empty[..], &(0..64u8).collect::<Vec<u8>>()].concat();
    vec![empty, longer, filled]
}

fn recycling(input: &[u8]) -> bool {
    let Some(loaded) = TokenRecycling::load(input, 600) else { return false };
    let again = TokenRecycling::load(&loaded.save(), 600).expect("what was saved loads");
    assert_eq!(again.len(), loaded.len());
    true
}

fn costs() -> Vec<Vec<u8>> {
    let points = [(1u16, 5.0f64), (2, 5.5), (8, 7.25), (32, 20.0)];
    let bytes = points.iter().flat_map(|(n, ms)| n.to_le_bytes().into_iter().chain(ms.to_le_bytes()));
    vec![bytes.collect()]
}

fn pass_costs(input: &[u8]) -> bool {
    let points = input.chunks_exact(10).map(|point| {
        let n = u16::from_le_bytes([point[0], point[1]]);
        let mut ms = [0; 8];
        ms.copy_from_slice(&point[2..]);
        (usize::from(n), f64::from_le_bytes(ms))
    });
    let Some(mut costs) = PassCosts::new(points.collect()) else { return false };
    for n in [1, 2, 3, 9, 64, 1000, 100_000] {
        let ms = costs.of(n);
        assert!(ms.is_finite() && ms > 0.0, "{ms} ms for {n} rows of {:?}", costs.points());
        costs.observe(n, 3.0);
    }
    true
}

fn records() -> Vec<Vec<u8>> {
    let library = ModelLibrary::new(workbench().join("seed"));
    let folder = library.folder().to_owned();
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::copy(TINY, folder.join("tiny.gguf")).expect("copies");
    library.find("tiny").expect("the tiny model");
    vec![std::fs::read(folder.join("tiny.json")).expect("its record"), b"{}".to_vec(), b"[[[[[[[[".to_vec()]
}

/// Whatever a record says, the model is listed.
fn model_record(input: &[u8]) -> bool {
    let folder = workbench().join("models");
    if !folder.is_dir() {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(TINY, folder.join("tiny.gguf")).expect("copies");
    }
    std::fs::write(folder.join("tiny.json"), input).expect("writes");
    let listing = ModelLibrary::new(&folder).list().expect("lists");
    assert_eq!((listing.models.len(), listing.unusable.len()), (1, 0), "{:?}", listing.unusable);
    true
}

const CONTENT: &[u8] = b"part of a model, and again part of a model, and again part of a model";

fn part() -> engine::Part {
    engine::Part {
        package: "fuzzed".to_owned(),
        version: "1".to_owned(),
        file: "fuzzed/data/part.bin".to_owned(),
        size_bytes: CONTENT.len() as u64,
        sha256: Sha256::digest(CONTENT).iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn wheels() -> Vec<Vec<u8>> {
    let write = |method: zip::CompressionMethod| {
        let mut bytes = Vec::new();
        let mut wheel = zip::ZipWriter::new(Cursor::new(&mut bytes));
        let options = SimpleFileOptions::default().compression_method(method);
        for (name, content) in
            [("fuzzed/data/part.bin", CONTENT), ("fuzzed.dist-info/METADATA", b"Name: x\n")]
        {
            wheel.start_file(name, options).expect("a member");
            std::io::Write::write_all(&mut wheel, content).expect("writes");
        }
        wheel.finish().expect("a wheel");
        bytes
    };
    vec![write(zip::CompressionMethod::Stored), write(zip::CompressionMethod::Deflated)]
}

fn wheel(input: &[u8]) -> bool {
    let mut content = Vec::new();
    let mut write = |bytes: &[u8]| -> Result<(), EngineError> {
        content.extend_from_slice(bytes);
        assert!(content.len() <= CONTENT.len() + 1, "more than the part may hold");
        Ok(())
    };
    let is_sound = extract_part(Cursor::new(input), &part(), &mut write).is_ok();
    assert!(!is_sound || content == CONTENT, "another content passed for the part");
    is_sound
}

fn noise() -> Vec<Vec<u8>> {
    vec![(0..64).collect(), vec![0; 32], (0..64u32).map(|i| (i * 37 % 251) as u8).collect()]
}

/// A plan of any rows: each sees its ancestors and itself, and no token row sees an adaptive one.
fn row_plan(input: &[u8]) -> bool {
    let mut bytes = input.iter().map(|&byte| usize::from(byte));
    let mut next = move || bytes.next();
    let (Some(n_committed), Some(start), Some(n_aside)) = (next(), next(), next()) else { return false };
    let aside = start..start + n_aside;
    let n_line = next().unwrap_or(0);
    let layout = Layout { n_inner: n_line.min(next().unwrap_or(0)), n_line, aside };
    let tokens: Vec<u32> = (0..next().unwrap_or(0) as u32 % 32).collect();
    let mut plan = RowPlan::laid_out(n_committed, &tokens, &layout);
    // Token rows first: each hangs off any before it, or begins anew.
    let mut n_tokens = plan.rows().len();
    for _ in 0..next().unwrap_or(0) % 24 {
        let parent = next().filter(|_| n_tokens > 0).map(|byte| byte % n_tokens);
        plan.push_token(n_tokens as u32, parent);
        n_tokens += 1;
    }
    if n_tokens > 0 {
        for _ in 0..next().unwrap_or(0) % 4 {
            plan.push_adaptive_group(next().unwrap_or(0) % n_tokens, 1 + next().unwrap_or(0) % 5);
        }
    }
    for (idx, row) in plan.rows().iter().enumerate() {
        let visible = plan.visible(idx);
        assert!(
            visible.is_sorted_by(|a, b| a < b) && visible.last() == Some(&idx),
            "{visible:?} of row {idx}"
        );
        if matches!(row.input, RowInput::Token(_)) {
            let sees_slots =
                visible.iter().any(|&seen| matches!(plan.rows()[seen].input, RowInput::Adaptive(_)));
            assert!(!sees_slots, "token row {idx} sees an adaptive one");
        }
        let hidden = layout.hidden_from(row);
        assert!(hidden.start <= hidden.end, "{hidden:?}");
    }
    true
}

/// The parts between the marks: before the cursor, what is written, behind the cursor.
fn around(text: &str) -> [&str; 3] {
    let mut parts = text.splitn(3, '\u{1}');
    [0; 3].map(|_| parts.next().unwrap_or_default())
}

/// What is shown of any text between any texts begins it, but for the closers that it owes.
fn output(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let [prefix, written, suffix] = around(&text);
    for extent in [Extent::Auto, Extent::Line, Extent::Raw] {
        let request = CompletionRequest { extent, ..CompletionRequest::new(prefix, suffix) };
        let shown = shown_text(&request, written);
        let kept = shown.trim_end_matches([')', ']', '}', '\n', ' ']);
        assert!(written.starts_with(kept), "{shown:?} of {written:?}");
        assert!(extent != Extent::Raw || shown == written, "raw is raw");
    }
    true
}

/// Any line and column of any text is a place within it, or none.
fn prompt_place(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    for line in 0..6 {
        for column in (0..40).chain([usize::MAX]) {
            if let Some(at) = engine::byte_offset(&text, line, column) {
                assert!(text.is_char_boundary(at), "byte {at} of {text:?}");
            }
        }
    }
    true
}
