//! `sateen bench gpu-check`: whether a GPU decodes exactly, and what passes of a 7B model cost on it. The weights are
//! random and made on the spot: what a pass costs does not depend on what it has learnt.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{
    CompletionRequest, CostTable, DeviceChoice, Engine, EngineConfig, Extent, NativeSat, PassCosts,
    PromptBudget, RandomModelConfig, Speculation, TensorType, measure_cost, write_random_model,
};
use serde::{Deserialize, Serialize};

use super::Setting;
use super::decode::{DecodeReport, ModeResult, ms_by_costs};

/// The adaptive token of the published checkpoints of CodeLlama, and how many of it they were trained with (SDSAT,
/// arXiv 2403.18647: L5 7B).
const NATIVE_SAT: NativeSat = NativeSat::shared(32_011, 5);
/// Drafts that the published 7B model has accepted of a group: it is said to be three times as fast in passes of which
/// two make `2 + a` tokens.
const PUBLISHED_ACCEPTED: f64 = 4.0;
/// The passes that the default model made of HumanEval, as `bench decode` wrote them down.
const TRACE: &str = include_str!("../../docs/results/decode-gpu-0.5b.json");
/// Tokens that each way of decoding writes.
const N_TOKENS: usize = 48;
/// Tokens before the cursor at least, where the first token is waited for.
const N_WARM_TOKENS: usize = 1000;

#[derive(Args)]
pub(crate) struct GpuCheckArguments {
    /// The GPU, like cuda:0 or vulkan:0
    #[arg(long)]
    device: DeviceChoice,
    /// Types of the weights, as in `Q4_K`
    #[arg(long = "type", value_delimiter = ',', default_value = "Q4_0,Q4_K,F16")]
    tensor_types: Vec<String>,
    /// Passes to replay at what they cost here: what `bench decode FILE --costs ... --json` printed; without it those of the
    /// default model and its adapter over HumanEval, with the widths that are right where rows cost what a 7B model's do
    /// on an NVIDIA H200
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A small shape instead of the 7B's, to see that the check itself works
    #[arg(long)]
    dry_run: bool,
    /// How often each number of rows is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct GpuCheckReport {
    pub(crate) setting: Setting,
    pub(crate) is_dry_run: bool,
    /// What was replayed.
    pub(crate) trace: Trace,
    pub(crate) types: Vec<TypeReport>,
}

/// Passes that a model has made.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) model: String,
    pub(crate) prompts: String,
    /// Rows and what passes over them cost where widths were chosen.
    pub(crate) costs: Vec<(usize, f64)>,
}

/// A way of decoding whose passes were replayed: their number and rows are the trace's, what they cost this device's.
#[derive(Serialize, Deserialize)]
pub(crate) struct Replayed {
    pub(crate) mode: String,
    pub(crate) tokens_per_pass: f64,
    pub(crate) tokens_per_s: f64,
    /// Against one token a pass.
    pub(crate) speedup: f64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct TypeReport {
    pub(crate) tensor_type: String,
    pub(crate) file_bytes: u64,
    /// Tokens that every way of decoding has written alike.
    pub(crate) n_identical: usize,
    pub(crate) cost: CostTable,
    pub(crate) first_token: FirstToken,
    /// Tokens per second from the cost of passes and the published acceptance, not from a model that drafts well.
    pub(crate) ordinary_tokens_per_s: f64,
    pub(crate) two_pass_tokens_per_s: f64,
    pub(crate) fused_tokens_per_s: f64,
    pub(crate) replayed: Vec<Replayed>,
}

/// What one waits for the first token after a keystroke, when what stands before is in the cache.
#[derive(Serialize, Deserialize)]
pub(crate) struct FirstToken {
    pub(crate) n_prompt_tokens: usize,
    pub(crate) n_reused_tokens: usize,
    /// The median of some keystrokes.
    pub(crate) median_ms: f64,
}

pub(crate) fn run(arguments: &GpuCheckArguments) -> anyhow::Result<()> {
    if !matches!(arguments.device, DeviceChoice::Gpu(_)) {
        bail!("`--device` must name a GPU, like cuda:0 or vulkan:0. Given: {}", arguments.device);
    }
    let trace: DecodeReport = match &arguments.trace {
        None => serde_json::from_str(TRACE)?,
        Some(path) => {
            let cannot = || format!("no passes of `bench decode --json` in {}", path.display());
            serde_json::from_slice(&std::fs::read(path).with_context(cannot)?).with_context(cannot)?
        }
    };
    let has_passes = |mode: &ModeResult| !mode.passes_by_rows.is_empty();
    ensure!(
        trace.modes.iter().all(has_passes),
        "`--trace`: what it names does not say how many rows passes had"
    );
    let mut report = None;
    // A type that does not exist is said before the minutes that the others take.
    let types = arguments.tensor_types.iter().map(|name| super::random_model::tensor_type(name));
    for tensor_type in types.collect::<Result<Vec<_>, _>>()? {
        let (device, of_type) = check(arguments, tensor_type, &trace)?;
        if !arguments.json {
            print(&device, &of_type, &trace);
        }
        let new = || GpuCheckReport {
            setting: Setting::of(&device),
            is_dry_run: arguments.dry_run,
            trace: Trace {
                model: trace.model.clone(),
                prompts: trace.prompts.clone(),
                costs: trace.costs.clone(),
            },
            types: Vec::new(),
        };
        report.get_or_insert_with(new).types.push(of_type);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

fn check(
    arguments: &GpuCheckArguments,
    tensor_type: TensorType,
    trace: &DecodeReport,
) -> anyhow::Result<(String, TypeReport)> {
    let of_7b =
        RandomModelConfig { native_sat: Some(NATIVE_SAT), ..RandomModelConfig::llama_7b(tensor_type) };
    let shape = match arguments.dry_run {
        true => RandomModelConfig {
            n_layers: 2,
            hidden: 256,
            n_heads: 4,
            n_kv_heads: 4,
            feed_forward: 512,
            vocabulary: 512,
            native_sat: Some(NativeSat { token: 500, ..NATIVE_SAT }),
            ..of_7b
        },
        false => of_7b,
    };
    let folder = tempfile::tempdir().context("no room for temporary files")?;
    let path = folder.path().join("random.gguf");
    write_random_model(&shape, &path).context("cannot write the random model")?;
    let file_bytes = std::fs::metadata(&path)?.len();
    let config = EngineConfig {
        device: arguments.device.clone(),
        max_context: 2304,
        ..EngineConfig::new(format!("Random {tensor_type:?}"), &path, "")
    };
    let engine = Engine::start(config, |_| ())?;
    let (loaded, model) = engine.wait_until_ready()?;
    if let Some(note) = loaded.device_note {
        bail!("{note}");
    }
    let complete = |speculation| {
        let request = CompletionRequest {
            max_tokens: N_TOKENS,
            speculation,
            extent: Extent::Raw,
            ..CompletionRequest::new("def area(width, height):\n    return ", "")
        };
        engine.complete(request, |_| ())
    };
    let ordinary = complete(Speculation::Off)?.tokens;
    for speculation in Speculation::ALL {
        let tokens = complete(speculation)?.tokens;
        ensure!(tokens == ordinary, "{} writes other tokens than ordinary decoding", speculation.name());
    }
    let first_token = first_token(&engine)?;
    let cost = measure_cost(&model, usize::from(arguments.repetitions))?;
    let points = cost.passes.iter().map(|pass| (pass.n_rows, pass.median_ms)).collect();
    let costs = PassCosts::new(points).context("passes took no time")?;
    let ms = |n_rows: usize| costs.of(n_rows);
    let n_slots = NATIVE_SAT.n_slots;
    let per_s = |n_tokens: f64, ms: f64| 1000.0 * n_tokens / ms;
    let report = TypeReport {
        tensor_type: format!("{tensor_type:?}"),
        file_bytes,
        n_identical: ordinary.len(),
        ordinary_tokens_per_s: per_s(1.0, ms(1)),
        // A token with its group, then that token's successor with the drafts.
        two_pass_tokens_per_s: per_s(2.0 + PUBLISHED_ACCEPTED, 2.0 * ms(1 + n_slots)),
        // The drafts, and a group behind the node where the walk is likeliest to stop.
        fused_tokens_per_s: per_s(1.0 + PUBLISHED_ACCEPTED, ms(1 + 2 * n_slots)),
        replayed: (trace.modes.iter())
            .filter(|mode| mode.mode != Speculation::Off.name())
            .map(|mode| replay(mode, &costs))
            .collect(),
        cost,
        first_token,
    };
    Ok((loaded.device, report))
}

fn first_token(engine: &Engine) -> anyhow::Result<FirstToken> {
    let complete = |prompt: &str| {
        let request = CompletionRequest {
            max_tokens: 1,
            speculation: Speculation::Off,
            extent: Extent::Raw,
            budget: PromptBudget { prefix_tokens: 2 * N_WARM_TOKENS, ..PromptBudget::default() },
            ..CompletionRequest::new(prompt, "")
        };
        engine.complete(request, |_| ())
    };
    let mut prompt = "total += width * height\n".repeat(40);
    // How many tokens that is depends on the model's tokenizer.
    while complete(&prompt)?.n_prompt_tokens < N_WARM_TOKENS {
        ensure!(prompt.len() < 64 * N_WARM_TOKENS, "no prompt of {N_WARM_TOKENS} tokens fits in the context");
        prompt = prompt.repeat(2);
    }
    let mut keystrokes = Vec::new();
    for letter in "abcdefg".chars() {
        prompt.push(letter);
        keystrokes.push(complete(&prompt)?);
    }
    keystrokes.sort_by(|a, b| a.ttft_ms.total_cmp(&b.ttft_ms));
    let median = &keystrokes[keystrokes.len() / 2];
    Ok(FirstToken {
        n_prompt_tokens: median.n_prompt_tokens,
        n_reused_tokens: median.n_reused_tokens,
        median_ms: median.ttft_ms,
    })
}

fn replay(mode: &ModeResult, costs: &PassCosts) -> Replayed {
    let ms_of_token = ms_by_costs(&mode.passes_by_rows, costs) / mode.n_tokens.max(1) as f64;
    Replayed {
        mode: mode.mode.clone(),
        tokens_per_pass: mode.mean_accepted_tokens,
        tokens_per_s: 1000.0 / ms_of_token,
        speedup: costs.of(1) / ms_of_token,
    }
}

fn print(device: &str, report: &TypeReport, trace: &DecodeReport) {
    let TypeReport { tensor_type, file_bytes, n_identical, cost, first_token, .. } = report;
    println!("{tensor_type}, {:.2} GB, on {device}", *file_bytes as f64 / 1e9);
    println!("  {n_identical} tokens, identical in every way of decoding");
    let first = cost.passes[0].median_ms;
    for pass in &cost.passes {
        println!("  {:>3} rows {:>9.2} ms {:>6.2}", pass.n_rows, pass.median_ms, pass.median_ms / first);
    }
    let FirstToken { n_prompt_tokens, n_reused_tokens, median_ms } = first_token;
    println!(
        "  first token {median_ms:.1} ms after a keystroke behind {n_prompt_tokens} tokens, {n_reused_tokens} reused"
    );
    println!(
        "  one row reads at {:.0} % of the {:.1} GB/s that the device reads at best",
        100.0 * cost.roofline.bandwidth_share,
        cost.roofline.read_bytes_per_s / 1e9
    );
    println!(
        "  tokens/s at the published acceptance: {:.1} ordinary, {:.1} in two passes, {:.1} fused",
        report.ordinary_tokens_per_s, report.two_pass_tokens_per_s, report.fused_tokens_per_s
    );
    println!(
        "  replaying the passes of {} over {}, whose widths were chosen elsewhere:",
        trace.model, trace.prompts
    );
    for Replayed { mode, tokens_per_pass, tokens_per_s, speedup } in &report.replayed {
        println!(
            "    {mode:<6} {tokens_per_s:>8.1} tokens/s {speedup:>6.2} {tokens_per_pass:>6.2} tokens per pass"
        );
    }
}
