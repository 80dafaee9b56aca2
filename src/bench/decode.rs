//! `sateen bench decode`: the ways of decoding side by side, on the same prompts, in turns.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    AdapterChoice, CancelToken, Completion, CompletionRequest, Engine, EngineConfig, Extent, Model,
    ModelLibrary, Outcome, PassCosts, PublishedTree, SamplingParams, Session, SessionConfig, Speculation,
    measure_pass_costs,
};
use serde::{Deserialize, Serialize};

use super::prompts::{self, Places, Prompt};
use super::{Setting, plots};
use crate::speculation::SpeculationArgument;

#[derive(Args)]
pub(crate) struct DecodeArguments {
    /// JSON lines with `prompt` and perhaps `suffix`, gzipped or not, or a folder of source files
    prompts: PathBuf,
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// A SAT adapter instead of the model's own
    #[arg(long, value_name = "FILE")]
    adapter: Option<PathBuf>,
    /// Ways of decoding; ordinary decoding always runs too
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sdsat,fused,lookup,free,auto")]
    modes: Vec<SpeculationArgument>,
    /// Prompts, evenly from all there are
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Most tokens of a completion
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Places in a folder's files
    #[arg(long, value_enum, default_value = "all")]
    places: Places,
    /// Choose widths as if rows cost nothing, as on a wide GPU: tokens per pass are what counts then
    #[arg(long)]
    flat_costs: bool,
    /// Choose widths by these costs of passes, rows and time in any unit, like `1:1,8:1.1,32:2.4`: what another device
    /// would gain, by those costs
    #[arg(long, value_delimiter = ',', value_parser = row_cost, conflicts_with = "flat_costs")]
    costs: Vec<(usize, f64)>,
    /// Also run two-pass SDSAT with each number of slots from 0 up
    #[arg(long)]
    sweep_slots: bool,
    /// Also run two-pass SDSAT with the paper's tree for groups of 5, 7, 9, 11 or 13
    #[arg(long, value_name = "DEPTH")]
    published_tree: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Write plots (SVG) to this folder
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

/// What is measured of a way of decoding.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ModeResult {
    pub(crate) mode: String,
    /// Slots that two-pass SDSAT was limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) n_slots: Option<usize>,
    /// Tokens and forward passes of the decode loops.
    pub(crate) n_tokens: usize,
    pub(crate) n_passes: usize,
    /// Tokens per forward pass.
    pub(crate) mean_accepted_tokens: f64,
    /// Rows per forward pass.
    pub(crate) mean_rows: f64,
    /// Passes by the number of their rows; the pass that ends the prompt counts as one over one row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) passes_by_rows: BTreeMap<usize, usize>,
    /// Tokens per second after the first step, over all prompts.
    pub(crate) tokens_per_s: f64,
    /// The same against ordinary decoding in this run.
    pub(crate) speedup: f64,
    /// The smallest speed-up of a quarter of the prompts, in their order.
    pub(crate) worst_quarter: f64,
    /// Time of whole completions, against ordinary decoding.
    pub(crate) total_time_ratio: f64,
    pub(crate) median_ttft_ms: f64,
    /// Share of drafts accepted at each depth, of those verified there.
    pub(crate) accepted_per_slot: Vec<f64>,
    /// Tokens by origin, as shares of all: the target's own, and each drafter's.
    pub(crate) shares: BTreeMap<String, f64>,
    /// Completions whose tokens are those of ordinary decoding.
    pub(crate) n_identical: usize,
    /// Time of ordinary decoding against this, by costs that were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) speedup_by_costs: Option<f64>,
}

impl ModeResult {
    /// Its name, the acceptance by depth, and the tokens by origin, for a line of a table.
    pub(crate) fn in_words(&self) -> (String, String, String) {
        let name = match self.n_slots {
            Some(n_slots) => format!("{} k={n_slots}", self.mode),
            None => self.mode.clone(),
        };
        let depths: Vec<String> =
            self.accepted_per_slot.iter().take(6).map(|share| format!("{share:.2}")).collect();
        let shares: Vec<String> =
            self.shares.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0)).collect();
        (name, depths.join(" "), shares.join(", "))
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DecodeReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) prompts: String,
    pub(crate) n_prompts: usize,
    pub(crate) max_tokens: usize,
    pub(crate) temperature: f32,
    pub(crate) flat_costs: bool,
    /// Rows and milliseconds that widths were chosen by.
    pub(crate) costs: Vec<(usize, f64)>,
    pub(crate) modes: Vec<ModeResult>,
}

impl DecodeReport {
    /// What costs that were given say of each way, in a sentence.
    pub(crate) fn by_given_costs(&self) -> Option<String> {
        let gains: Vec<String> = self
            .modes
            .iter()
            .filter_map(|mode| Some(format!("{} {:.2}", mode.in_words().0, mode.speedup_by_costs?)))
            .collect();
        let costs = costs_in_words(&self.costs);
        (!gains.is_empty())
            .then(|| format!("Against ordinary decoding by the costs {}: {}.", costs, gains.join(", ")))
    }
}

struct Mode {
    speculation: Speculation,
    n_slots: Option<usize>,
    tree_depth: Option<usize>,
    session: Session,
    completions: Vec<Completion>,
    /// Passes by the number of their rows.
    passes_by_rows: BTreeMap<usize, usize>,
}

/// Rows and what a pass over them takes, as in `8:1.1`.
fn row_cost(argument: &str) -> Result<(usize, f64), String> {
    let parsed = argument
        .split_once(':')
        .and_then(|(n_rows, ms)| Some((n_rows.trim().parse().ok()?, ms.trim().parse().ok()?)));
    parsed.ok_or_else(|| "rows and a time are wanted, like 8:1.1".to_owned())
}

/// As `--costs` takes them.
pub(crate) fn costs_in_words(costs: &[(usize, f64)]) -> String {
    let words: Vec<String> = costs.iter().map(|(n_rows, ms)| format!("{n_rows}:{ms}")).collect();
    words.join(",")
}

/// What widths are chosen by.
fn costs(arguments: &DecodeArguments, model: &Arc<Model>) -> anyhow::Result<PassCosts> {
    if arguments.flat_costs {
        return Ok(PassCosts::flat());
    }
    if arguments.costs.is_empty() {
        return Ok(measure_pass_costs(model, &|| false)?);
    }
    let costs = PassCosts::new(arguments.costs.clone());
    Ok(costs.context("--costs: rows and times must be more than 0, and times less than a day")?.given())
}

pub(crate) fn run(arguments: &DecodeArguments) -> anyhow::Result<()> {
    let prompts = prompts::read(&arguments.prompts, arguments.places, arguments.limit)?;
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    // Nothing learnt before helps any of them.
    let own = EngineConfig::of(&installed);
    let adapter = arguments.adapter.clone().map_or(own.adapter.clone(), AdapterChoice::File);
    let engine = Engine::start(EngineConfig { learned: None, adapter, ..own }, |_| ())?;
    let (loaded, model) = engine.wait_until_ready()?;
    let costs = costs(arguments, &model)?;
    let mut modes = modes(arguments, &model, &costs)?;
    for (idx, prompt) in prompts.iter().enumerate() {
        if !arguments.json {
            eprint!("\rprompt {} of {}", idx + 1, prompts.len());
        }
        // They take turns, and the first place goes round, so that what disturbs the machine meets all.
        let n_modes = modes.len();
        for turn in 0..n_modes {
            complete(&mut modes[(idx + turn) % n_modes], prompt, arguments)?;
        }
    }
    if !arguments.json {
        eprintln!();
    }
    let given_costs = (!arguments.costs.is_empty()).then_some(&costs);
    let report = DecodeReport {
        setting: Setting::of(&loaded.device),
        model: installed.id,
        prompts: arguments.prompts.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        n_prompts: prompts.len(),
        max_tokens: arguments.max_tokens,
        temperature: arguments.temperature,
        flat_costs: arguments.flat_costs,
        costs: costs.points().to_vec(),
        modes: modes.iter().map(|mode| summarise(mode, &modes[0], given_costs)).collect(),
    };
    if let Some(folder) = &arguments.plots {
        plots::write(folder, &report)
            .with_context(|| format!("cannot write plots to {}", folder.display()))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn modes(arguments: &DecodeArguments, model: &Arc<Model>, costs: &PassCosts) -> anyhow::Result<Vec<Mode>> {
    let mode = |speculation, n_slots: Option<usize>| {
        let config = SessionConfig { costs: Some(costs.clone()), ..SessionConfig::default() };
        let mut session = Session::with(model, config);
        session.set_two_pass(n_slots, None);
        Mode {
            speculation,
            n_slots,
            tree_depth: None,
            session,
            completions: Vec::new(),
            passes_by_rows: BTreeMap::new(),
        }
    };
    let mut modes = vec![mode(Speculation::Off, None)];
    let wanted = arguments.modes.iter().filter(|&&wanted| wanted != SpeculationArgument::Off);
    modes.extend(wanted.map(|&wanted| mode(wanted.into(), None)));
    if let Some(depth) = arguments.published_tree {
        let tree = PublishedTree::of_depth(depth).with_context(|| {
            format!("no tree of depth {depth} was published; there are {:?}", PublishedTree::DEPTHS)
        })?;
        let mut with_tree = mode(Speculation::Sdsat, None);
        with_tree.session.set_two_pass(None, Some(tree));
        with_tree.tree_depth = Some(depth);
        modes.push(with_tree);
    }
    if arguments.sweep_slots {
        let slots = 1..model.n_adaptive_tokens();
        modes.extend(slots.map(|n_slots| mode(Speculation::Sdsat, Some(n_slots))));
    }
    Ok(modes)
}

fn complete(mode: &mut Mode, prompt: &Prompt, arguments: &DecodeArguments) -> anyhow::Result<()> {
    let request = CompletionRequest {
        max_tokens: arguments.max_tokens,
        other_files: prompt.other_files.clone(),
        sampling: SamplingParams {
            temperature: arguments.temperature,
            seed: arguments.seed,
            ..SamplingParams::default()
        },
        speculation: mode.speculation,
        // All that the model writes: how fast it is, not where a person would stop.
        extent: Extent::Raw,
        ..CompletionRequest::new(prompt.prefix.as_str(), prompt.suffix.as_str())
    };
    let mut n_steps = 0;
    let outcome = mode.session.complete_with(&request, &CancelToken::default(), &mut |step| {
        // The rows of the first are those of the prompt.
        *mode.passes_by_rows.entry(if n_steps == 0 { 1 } else { step.n_rows }).or_default() += 1;
        n_steps += 1;
    })?;
    let Outcome::Ended(completion) = outcome else { bail!("the completion was stopped") };
    mode.completions.push(*completion);
    Ok(())
}

/// Tokens per second after the first steps, over several completions.
fn tokens_per_s(completions: &[Completion]) -> f64 {
    let (mut n_tokens, mut seconds) = (0.0, 0.0);
    for completion in completions.iter().filter(|completion| completion.tokens_per_s > 0.0) {
        let decode_seconds = (completion.total_ms - completion.ttft_ms) / 1000.0;
        n_tokens += completion.tokens_per_s * decode_seconds;
        seconds += decode_seconds;
    }
    if seconds > 0.0 { n_tokens / seconds } else { 0.0 }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// What such passes take by these costs, in milliseconds.
pub(crate) fn ms_by_costs(passes_by_rows: &BTreeMap<usize, usize>, costs: &PassCosts) -> f64 {
    passes_by_rows.iter().map(|(&n_rows, &n_passes)| n_passes as f64 * costs.of(n_rows)).sum()
}

fn summarise(mode: &Mode, ordinary: &Mode, given_costs: Option<&PassCosts>) -> ModeResult {
    let ms = |mode: &Mode, costs| ms_by_costs(&mode.passes_by_rows, costs);
    let speedup_by_costs = given_costs.map(|costs| ratio(ms(ordinary, costs), ms(mode, costs)));
    let ordinary = &ordinary.completions;
    let completions = &mode.completions;
    let sum = |f: fn(&Completion) -> f64| completions.iter().map(f).sum::<f64>();
    let n_tokens: usize = completions.iter().map(|completion| completion.n_tokens).sum();
    let n_passes: usize = completions.iter().map(|completion| completion.n_steps).sum();
    let mut ttft: Vec<f64> = completions.iter().map(|completion| completion.ttft_ms).collect();
    ttft.sort_by(f64::total_cmp);
    let quarter = completions.len().div_ceil(4);
    let quarters = completions.chunks(quarter).zip(ordinary.chunks(quarter));
    let depth = completions.iter().map(|c| c.drafted_per_slot.len()).max().unwrap_or(0);
    let at = |slot: usize| -> (f64, f64) {
        let verified = completions
            .iter()
            .filter_map(|c| Some((c.accepted_per_slot.get(slot)?, c.drafted_per_slot[slot])));
        verified.fold((0.0, 0.0), |(a, n), (share, drafted)| (a + share * drafted as f64, n + drafted as f64))
    };
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for drafter in completions.iter().flat_map(|completion| &completion.accepted_by_drafter) {
        *shares.entry(drafter.drafter.clone()).or_default() +=
            drafter.n_accepted as f64 / n_tokens.max(1) as f64;
    }
    shares.insert("target".to_owned(), ratio(n_passes as f64, n_tokens as f64));
    ModeResult {
        mode: match mode.tree_depth {
            Some(depth) => format!("{} tree {depth}", mode.speculation.name()),
            None => mode.speculation.name().to_owned(),
        },
        n_slots: mode.n_slots,
        n_tokens,
        n_passes,
        mean_accepted_tokens: ratio(n_tokens as f64, n_passes as f64),
        mean_rows: ratio(sum(|completion| completion.mean_rows * completion.n_steps as f64), n_passes as f64),
        passes_by_rows: mode.passes_by_rows.clone(),
        tokens_per_s: tokens_per_s(completions),
        speedup: ratio(tokens_per_s(completions), tokens_per_s(ordinary)),
        worst_quarter: quarters
            .map(|(ours, theirs)| ratio(tokens_per_s(ours), tokens_per_s(theirs)))
            .fold(f64::INFINITY, f64::min),
        total_time_ratio: ratio(ordinary.iter().map(|c| c.total_ms).sum(), sum(|c| c.total_ms)),
        median_ttft_ms: ttft.get(ttft.len() / 2).copied().unwrap_or(0.0),
        accepted_per_slot: (0..depth).map(at).map(|(a, n)| ratio(a, n)).collect(),
        shares,
        n_identical: completions.iter().zip(ordinary).filter(|(a, b)| a.tokens == b.tokens).count(),
        speedup_by_costs,
    }
}

fn print(report: &DecodeReport) {
    let DecodeReport { setting, model, prompts, n_prompts, max_tokens, temperature, .. } = report;
    let device = &setting.device;
    println!(
        "{model} on {device}; {n_prompts} prompts of {prompts}, {max_tokens} tokens, temperature {temperature}"
    );
    println!(
        "{:<13} {:>9} {:>9} {:>7} {:>9} {:>6} {:>6} {:>9} {:>10}  accepted by depth; tokens by origin",
        "mode", "tokens/s", "speed-up", "worst", "in all", "MAT", "rows", "TTFT ms", "identical"
    );
    for mode in &report.modes {
        let (name, depths, shares) = mode.in_words();
        println!(
            "{name:<13} {:>9.1} {:>9.2} {:>7.2} {:>9.2} {:>6.2} {:>6.2} {:>9.1} {:>6}/{:<3}  {}; {}",
            mode.tokens_per_s,
            mode.speedup,
            mode.worst_quarter,
            mode.total_time_ratio,
            mode.mean_accepted_tokens,
            mode.mean_rows,
            mode.median_ttft_ms,
            mode.n_identical,
            report.n_prompts,
            depths,
            shares,
        );
    }
    if let Some(sentence) = report.by_given_costs() {
        println!("{sentence}");
    }
}
