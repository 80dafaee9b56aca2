//! The command line on a GPU, which is Mesa's in software here.

use std::process::{Command, Output};

use serde_json::Value;

const SAMPLE: &str = concat!(env!("SATEEN_CHECKOUT"), "samples/mean.py");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// On a device that is named the text is the same in every way of decoding, and what it ran on is said.
#[test]
fn completes_on_a_gpu() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    std::fs::create_dir(folder.path().join("models")).expect("a folder");
    std::fs::copy(tiny, folder.path().join("models/tiny.gguf")).expect("copies");
    let with = |device: &str, mode: &str| -> Value {
        let arguments =
            ["complete", "--model", "tiny", "--max-tokens", "16", "--json", "--temperature", "1.5"];
        let output = Command::new(env!("CARGO_BIN_EXE_sateen"))
            .args([&arguments[..], &["--device", device, "--speculation", mode, SAMPLE]].concat())
            .env("SATEEN_CONFIG_DIR", "/nonexistent")
            .env("SATEEN_DATA_DIR", folder.path())
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    };
    let ordinary = with("vulkan:0", "off");
    assert!(ordinary["n_tokens"].as_u64().expect("a number") > 0, "{ordinary}");
    for mode in ["sdsat", "fused", "auto"] {
        assert_eq!(with("vulkan:0", mode)["text"], ordinary["text"], "{mode}");
    }
}

/// The check of a GPU, in a small shape: every way of decoding writes the same, and passes of a trace are replayed.
#[test]
fn a_gpu_is_checked() {
    let check = |more: &[&str]| -> Output {
        let arguments =
            ["bench", "gpu-check", "--device", "vulkan:0", "--dry-run", "--type", "Q4_0", "--json"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_sateen"));
        command.args(arguments).args(["--repetitions", "1"]).args(more).output().expect("the program runs")
    };
    let output = check(&[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let of_type = &report["types"][0];
    assert_eq!((&of_type["tensor_type"], &of_type["n_identical"]), (&"Q4_0".into(), &48.into()), "{report}");
    // The longest of the passes over at most so many rows: times are noisy.
    let ms = |n_rows: u64| {
        let passes = of_type["cost"]["passes"].as_array().expect("passes").iter();
        let passes = passes.filter(|pass| pass["n_rows"].as_u64().expect("a number") <= n_rows);
        passes.map(|pass| pass["median_ms"].as_f64().expect("a number")).fold(0.0, f64::max)
    };
    let ordinary = of_type["ordinary_tokens_per_s"].as_f64().expect("a number");
    assert!((ordinary * ms(1) / 1000.0 - 1.0).abs() < 1e-9, "{report}");
    assert!(of_type["first_token"]["n_reused_tokens"].as_u64().expect("a number") > 1000, "{report}");
    let replayed = of_type["replayed"].as_array().expect("ways of decoding");
    let modes: Vec<&str> = replayed.iter().filter_map(|way| way["mode"].as_str()).collect();
    assert_eq!(modes, ["sdsat", "fused", "auto"]);
    // A pass of two-pass decoding has five rows at most, so it costs no more than that.
    let [per_pass, per_s] =
        ["tokens_per_pass", "tokens_per_s"].map(|key| replayed[0][key].as_f64().expect(key));
    assert!(per_pass > 1.5 && per_s * ms(6) / 1000.0 >= 0.99 * per_pass, "{report}");

    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("gpu-check.json"), &output.stdout).expect("writes");
    let page = folder.path().join("page.md");
    let made = Command::new(env!("CARGO_BIN_EXE_sateen"))
        .args(["bench", "page"])
        .args([folder.path(), &page])
        .output()
        .expect("the program runs");
    assert!(made.status.success(), "{}", text(&made.stderr));
    let page = std::fs::read_to_string(page).expect("the page");
    for part in
        ["## A small model of random weights on llvmpipe", "### Q4_0, ", "| rows | 1 |", "| auto, replayed |"]
    {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let trace = folder.path().join("trace.json");
    std::fs::write(&trace, "{}").expect("writes");
    let output = check(&["--trace", trace.to_str().expect("UTF-8")]);
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains("trace.json"), "{error}");
}
