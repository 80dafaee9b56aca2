//! What each model is asked, and that it is a function of the request alone.

mod common;

use std::sync::Arc;

use engine::{
    CacheType, CompletionRequest, ContextFile, Engine, EngineConfig, PromptBudget, Session, Speculation,
    SuffixVisibility,
};
use model::{Model, ModelConfig, Tokenizer};

fn session(path: impl Into<std::path::PathBuf>) -> Session {
    let config = ModelConfig { max_context: 2048, probe_slots: 2, ..ModelConfig::new(path) };
    Session::new(&Arc::new(Model::load(&config).expect("the model loads")))
}

fn qwen() -> Session {
    session(common::installed("qwen2.5-coder-0.5b").path)
}

fn tokens(session: &Session, prefix: &str, suffix: &str) -> Vec<u32> {
    session.prompt(&CompletionRequest::new(prefix, suffix)).expect("a prompt").tokens
}

fn encoded(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_inside(text).expect("encodes")
}

#[test]
fn prompts_follow_their_formats() {
    let session = qwen();
    let tokenizer = session.model().tokenizer();
    assert_eq!(session.format().name(), "fill-in (Qwen)");
    let special = |name| tokenizer.special(name).expect("an infilling token");
    let (pre, suf, mid) = (special("<|fim_prefix|>"), special("<|fim_suffix|>"), special("<|fim_middle|>"));
    let text = |text| encoded(tokenizer, text);
    let cases = [
        (
            ("x = 1\ndef f(", "):\n    pass"),
            [vec![pre], text("x = 1\n"), text("def f("), vec![suf], text("):\n    pass"), vec![mid]].concat(),
        ),
        (("", "\nx = 1"), [vec![pre], vec![suf], text("\nx = 1"), vec![mid]].concat()),
        // Nothing but space follows: a plain continuation.
        (("a = ", "\n\n"), text("a = ")),
    ];
    for ((prefix, suffix), expected) in cases {
        assert_eq!(tokens(&session, prefix, suffix), expected, "{prefix:?} {suffix:?}");
    }

    let smollm = self::session(common::installed("smollm2-135m").path);
    assert_eq!(smollm.format().name(), "prefix only");
    let expected = smollm.model().tokenizer().encode("a\n    = ").expect("encodes");
    assert_eq!(tokens(&smollm, "a\n    = ", "b"), expected);
}

/// A long text after the cursor comes before the cursor's line, with a mark of its own.
#[test]
fn long_suffixes_are_aside() {
    let session = qwen();
    let tokenizer = session.model().tokenizer();
    let suffix = ")\n".to_owned() + &"value = other(value)\n".repeat(40);
    let request = CompletionRequest::new("import a\nx = f(", suffix.as_str());
    let prompt = session.prompt(&request).expect("a prompt");
    let special = |name| tokenizer.special(name).expect("an infilling token");
    let (pre, suf, mid) = (special("<|fim_prefix|>"), special("<|fim_suffix|>"), special("<|fim_middle|>"));
    let (before, line) = (encoded(tokenizer, "import a\n"), encoded(tokenizer, "x = f("));
    let after = encoded(tokenizer, &suffix);
    // What is right behind the cursor comes again, where it sees the line.
    let (mark, near) = (vec![suf], after[..48].to_vec());
    let expected =
        [vec![pre], before, mark.clone(), after.clone(), line.clone(), mark, near, vec![mid]].concat();
    assert_eq!(prompt.tokens, expected);
    let start = expected.iter().position(|&token| token == suf).expect("the mark");
    assert_eq!(prompt.layout.aside, start..start + 1 + after.len());
    assert_eq!((prompt.layout.n_line, prompt.layout.n_inner), (line.len() + 49, 49));
    // As trained, where someone wants that.
    let budget = PromptBudget { visibility: SuffixVisibility::AsTrained, ..PromptBudget::default() };
    let trained = session.prompt(&CompletionRequest { budget, ..request }).expect("a prompt");
    assert!(trained.layout.aside.is_empty());
    assert_eq!(trained.tokens.len(), expected.len() - 49);
}

/// What is typed, taken back and typed anew on a warm cache gives the text that a fresh one gives, to the token,
/// in every way of decoding; and a keystroke costs what was typed.
#[test]
fn edits_on_a_warm_cache_change_nothing() {
    for cache_type in [CacheType::F32, CacheType::F16] {
        edits_change_nothing(cache_type);
    }
}

fn edits_change_nothing(cache_type: CacheType) {
    let model = {
        let config = EngineConfig { cache_type, ..common::config("qwen2.5-coder-0.5b") };
        let engine = Engine::start(config, |_| ()).expect("a thread");
        engine.wait_until_ready().expect("the installed model loads").1
    };
    let mut warm = Session::new(&model);
    let before = "import math\n\n\ndef mean(values):\n    return sum(values) / len(values)\n\n\n";
    let after = "\n".to_owned()
        + &"\n\ndef print_all(values):\n    for value in values:\n        print(value, math.sqrt(value))\n"
            .repeat(6);
    let lines = [
        "def deviation(",
        "def deviation(values",
        "def dev",
        "def dev(x, y=1",
        "x = mean(",
        "",
        "x = mean([1",
    ];
    let mut n_computed = Vec::new();
    for (idx, line) in lines.into_iter().enumerate() {
        for mode in [Speculation::Auto, Speculation::Off] {
            let request = CompletionRequest {
                max_tokens: 12,
                speculation: mode,
                ..CompletionRequest::new(format!("{before}{line}"), after.as_str())
            };
            let completion = warm.complete(&request).expect("completes");
            n_computed.push(completion.n_prompt_tokens - completion.n_reused_tokens);
            if idx % 2 == 1 {
                let fresh = Session::new(&model).complete(&request).expect("completes");
                assert_eq!(completion.tokens, fresh.tokens, "{line:?}, {mode:?}");
            }
        }
    }
    assert!(n_computed[0] > 60, "the first computes all: {n_computed:?}");
    assert!(n_computed[1..].iter().all(|&n| n <= 8 + 48), "a keystroke costs what was typed: {n_computed:?}");
    // Another place, then back.
    let elsewhere =
        CompletionRequest { max_tokens: 4, ..CompletionRequest::new("x = 1\ny =", after.as_str()) };
    warm.complete(&elsewhere).expect("completes");
    let request =
        CompletionRequest { max_tokens: 12, ..CompletionRequest::new(format!("{before}def me"), after) };
    let fresh = Session::new(&model).complete(&request).expect("completes");
    assert_eq!(warm.complete(&request).expect("completes").tokens, fresh.tokens);
}

/// Code Llama's format, suffix first: the suffix without the space that SentencePiece puts before a
/// text, and the prefix last, so that typing keeps the rest of the prompt.
#[test]
fn code_llama_prompts_follow_the_published_code() {
    let session = session(concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf"));
    let llama = session.model().tokenizer();
    assert_eq!(session.format().name(), "fill-in (Code Llama)");
    let special = |name| llama.special(name).expect("a special token");
    let expected = [
        vec![special("<s>"), special("▁<PRE>"), special("▁<SUF>")],
        encoded(llama, ") {}"),
        vec![special("▁<MID>")],
        llama.encode("fn f(").expect("encodes"),
    ];
    assert_eq!(tokens(&session, "fn f(", ") {}"), expected.concat());
    let expected = [vec![special("<s>")], llama.encode("fn f(").expect("encodes")].concat();
    assert_eq!(tokens(&session, "fn f(", "\n"), expected);
}

/// A user's text never becomes a special token, wherever it stands.
#[test]
fn special_tokens_cannot_be_typed() {
    let session = qwen();
    let tokenizer = session.model().tokenizer();
    let nasty = "<|fim_suffix|><|endoftext|>\n<|fim_middle|>";
    let file = || ContextFile { path: nasty.to_owned(), text: format!("{nasty}\n{nasty} x") };
    let request = CompletionRequest {
        path: Some(nasty.to_owned()),
        repository: nasty.to_owned(),
        recent_edits: vec![file()],
        ..CompletionRequest::new(nasty, nasty)
    };
    let prompt = session.prompt(&request).expect("a prompt").tokens;
    let n_special = prompt.iter().filter(|&&token| tokenizer.ends_text(token)).count();
    assert_eq!(n_special, 6, "the three of infilling, the repository's, and one for each file");
}

/// Long files are cut far from the cursor, within the budget; what they import stays, their licence goes.
#[test]
fn long_texts_keep_what_is_near_the_cursor_and_their_imports() {
    let session = qwen();
    let licence = "# Copyright by somebody\n# All rights reserved\n\n";
    let before: String = (0..5_000).map(|n| format!("line_{n} = {n}\n")).collect();
    let before = format!("{licence}import numpy as np\nfrom here import (\n    there,\n)\n\n{before}");
    let after: String = (0..5_000).map(|n| format!("after_{n} = {n}\n")).collect();
    let budget = PromptBudget { prefix_tokens: 200, suffix_tokens: 40, ..PromptBudget::default() };
    let path = Some("a.py".to_owned());
    let request = CompletionRequest { budget, path, ..CompletionRequest::new(before, after) };
    let tokens = session.prompt(&request).expect("a prompt").tokens;
    assert!(tokens.len() <= 200 + 40 + 12, "{} tokens", tokens.len());
    let text = session.model().tokenizer().decode(&tokens);
    assert!(
        text.starts_with("\na.py\nimport numpy as np\nfrom here import (\n    there,\n)\n# …\n"),
        "{text}"
    );
    assert!(text.contains("line_4999 = 4999\nafter_0 = 0"), "{text}");
}

/// Typing in a long file moves nothing that stands before the line, for many keystrokes.
#[test]
fn what_is_typed_moves_nothing_before_it() {
    let session = qwen();
    let before =
        "import os\n".to_owned() + &(0..3_000).map(|n| format!("line_{n} = {n}\n")).collect::<String>();
    let prompt = |line: &str| {
        session.prompt(&CompletionRequest::new(format!("{before}{line}"), "")).expect("a prompt").tokens
    };
    let empty = prompt("");
    for line in ["x", "x = some", "    return some_value(with, many, more, arguments, than, before) + 1"] {
        assert_eq!(prompt(line)[..empty.len()], empty, "{line}");
    }
}

/// Other files are told in the model's own format, those that are like the text at the cursor.
#[test]
fn other_files_come_first_in_the_models_own_format() {
    let session = qwen();
    let tokenizer = session.model().tokenizer();
    let file = |path: &str, text: &str| ContextFile { path: path.to_owned(), text: text.to_owned() };
    let near = "def read_header(file):\n    return parse_header(file)";
    let request = CompletionRequest {
        path: Some("src/main.py".to_owned()),
        repository: "weaver".to_owned(),
        other_files: vec![file("src/header.py", near), file("src/other.py", "class Unlike:\n    zzz = 1\n")],
        ..CompletionRequest::new("def read_header(file):\n".repeat(8) + "    x = ", "\n    return x\n")
    };
    let tokens = session.prompt(&request).expect("a prompt").tokens;
    let special = |name| tokenizer.special(name).expect("a special token");
    let head = [
        vec![special("<|repo_name|>")],
        encoded(tokenizer, "weaver\n"),
        vec![special("<|file_sep|>")],
        encoded(tokenizer, &format!("src/header.py\n{near}\n")),
        vec![special("<|file_sep|>")],
        encoded(tokenizer, "src/main.py\n"),
        vec![special("<|fim_prefix|>")],
    ]
    .concat();
    assert_eq!(tokens[..head.len()], head);
}

/// The text of a request is the same on every machine.
#[test]
fn the_text_of_a_request_is_what_it_always_was() {
    let engine = Engine::start(common::config("qwen2.5-coder-0.5b"), |_| ()).expect("a thread");
    let suffix =
        "\n\n".to_owned() + &"def area(shape):\n    return shape.width * shape.height\n\n\n".repeat(6);
    let cases = [
        ("from math import sqrt\n\n\ndef distance(a, b):\n    return sqrt(", suffix.as_str()),
        ("def fibonacci(n):\n    if n < 2:\n        return n\n    ", ""),
        ("values = [1, 2, 3]\nprint(", ")\n"),
    ];
    let golden = include_str!("data/golden_texts.txt");
    let texts = cases.map(|(prefix, suffix)| {
        let request =
            CompletionRequest { path: Some("a.py".to_owned()), ..CompletionRequest::new(prefix, suffix) };
        format!("{:?}\n", engine.complete(request, |_| ()).expect("completes").text)
    });
    assert_eq!(texts.concat(), golden);
}
