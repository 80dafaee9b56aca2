//! `sateen bench peers`: the same file, rows, threads and prompts on other engines, in turns with ours.

#[cfg(feature = "candle-peer")]
mod candle;
pub(super) mod llama_cpp;
mod ours;

use std::path::PathBuf;

use clap::Args;
use engine::{Engine, EngineConfig, ModelLibrary, PassTimer};
use serde::{Deserialize, Serialize};

use self::llama_cpp::LlamaCpp;
use self::ours::Ours;
use super::Setting;
use super::prompts::{self, Places, Prompt};

const ROW_COUNTS: [usize; 8] = [1, 2, 4, 8, 12, 16, 32, 64];
const PREFILL_LENGTHS: [usize; 3] = [128, 512, 2048];
/// Passes of one kind in a row, so that caches are as they are in decoding.
const PASSES_PER_TURN: usize = 3;

#[derive(Args)]
pub(crate) struct PeersArguments {
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// Turns of each engine
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// A Python that has the package llama-cpp-python
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Prompts to decode too, ordinarily and speculating, as `bench decode` reads them
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Prompts, evenly from all there are
    #[arg(long, default_value_t = 12)]
    limit: usize,
    /// Most tokens of a completion
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Another engine, or ours.
trait Peer {
    fn name(&self) -> String;
    /// Milliseconds of passes over `n_rows` rows, logits of each.
    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>>;
    /// Milliseconds of reading a prompt.
    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64>;
    /// Ways in which it decodes, ordinary decoding first; none where it cannot be asked.
    fn ways(&self) -> Vec<String> {
        Vec::new()
    }
    /// Decodes greedily behind a prompt, after whose first step the time starts.
    fn decode(&mut self, _way: usize, _prompt: &Prompt, _max_tokens: usize) -> anyhow::Result<DecodeTime> {
        anyhow::bail!("{} does not decode here", self.name())
    }
    /// Turns after which it has shown what it can.
    fn max_turns(&self) -> usize {
        usize::MAX
    }
}

/// What decoding took behind the first step.
#[derive(Clone, Copy, Default)]
struct DecodeTime {
    n_tokens: usize,
    ms: f64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PeersReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) rows: Vec<usize>,
    pub(crate) prefills: Vec<usize>,
    /// Prompts that were decoded, their number, and the most tokens of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) decoded: Option<(String, usize, usize)>,
    pub(crate) peers: Vec<PeerResult>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PeerResult {
    pub(crate) name: String,
    /// Fastest of all turns, in milliseconds, by [`ROW_COUNTS`]; `None` where it was not run.
    pub(crate) passes_ms: Vec<Option<f64>>,
    /// Tokens per second, by [`PREFILL_LENGTHS`].
    pub(crate) prefill_tokens_per_s: Vec<Option<f64>>,
    /// Ways of decoding, ordinary decoding first, and tokens per second with each.
    #[serde(default)]
    pub(crate) decoding: Vec<(String, f64)>,
}

pub(crate) fn run(arguments: &PeersArguments) -> anyhow::Result<()> {
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let engine = Engine::start(EngineConfig { learned: None, ..EngineConfig::of(&installed) }, |_| ())?;
    let (loaded, model) = engine.wait_until_ready()?;
    let vocabulary = model.architecture().vocabulary;
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Ours::new(model.clone())?)];
    match LlamaCpp::start(&arguments.python, &installed.path, model.n_threads(), vocabulary) {
        Ok(peer) => peers.push(Box::new(peer)),
        Err(error) => eprintln!("without llama.cpp: {error:#}"),
    }
    #[cfg(feature = "candle-peer")]
    peers.push(Box::new(candle::Candle::load(&installed.path, vocabulary)?));
    #[cfg(not(feature = "candle-peer"))]
    eprintln!("without candle: build with `--features candle-peer`");

    let mut passes = vec![vec![f64::INFINITY; ROW_COUNTS.len()]; peers.len()];
    let mut prefills = vec![vec![f64::INFINITY; PREFILL_LENGTHS.len()]; peers.len()];
    for turn in 0..arguments.repetitions.max(1) {
        for (idx, &n_rows) in ROW_COUNTS.iter().enumerate() {
            for (peer, passes) in
                peers.iter_mut().zip(&mut passes).filter(|(peer, _)| turn < peer.max_turns())
            {
                let times = peer.passes(n_rows, PASSES_PER_TURN)?;
                passes[idx] = times.into_iter().fold(passes[idx], f64::min);
            }
        }
        for (idx, &n_tokens) in PREFILL_LENGTHS.iter().enumerate() {
            for (peer, prefills) in
                peers.iter_mut().zip(&mut prefills).filter(|(peer, _)| turn < peer.max_turns())
            {
                prefills[idx] = prefills[idx].min(peer.prefill(n_tokens)?);
            }
        }
    }
    let prompts = match &arguments.prompts {
        Some(path) => prompts::read(path, Places::All, arguments.limit)?,
        None => Vec::new(),
    };
    let decoding = decode(&mut peers, &prompts, arguments.max_tokens)?;
    let results: Vec<PeerResult> = peers
        .iter()
        .zip(passes.into_iter().zip(prefills).zip(decoding))
        .map(|(peer, ((passes_ms, prefills), decoding))| PeerResult {
            name: peer.name(),
            decoding,
            passes_ms: passes_ms.into_iter().map(|ms| Some(ms).filter(|ms| ms.is_finite())).collect(),
            prefill_tokens_per_s: PREFILL_LENGTHS
                .iter()
                .zip(prefills)
                .map(|(&n, ms)| Some(n as f64 * 1000.0 / ms).filter(|rate| *rate > 0.0))
                .collect(),
        })
        .collect();
    let report = PeersReport {
        setting: Setting::of(&loaded.device),
        model: installed.id,
        rows: ROW_COUNTS.to_vec(),
        prefills: PREFILL_LENGTHS.to_vec(),
        decoded: arguments.prompts.as_ref().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, prompts.len(), arguments.max_tokens)
        }),
        peers: results,
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report.model, &report.setting.device, &report.peers),
    }
    Ok(())
}

/// Each peer's tokens per second in each of its ways, in turns on each prompt.
fn decode(
    peers: &mut [Box<dyn Peer>],
    prompts: &[Prompt],
    max_tokens: usize,
) -> anyhow::Result<Vec<Vec<(String, f64)>>> {
    let ways: Vec<Vec<String>> = peers.iter().map(|peer| peer.ways()).collect();
    let mut sums: Vec<Vec<DecodeTime>> =
        ways.iter().map(|ways| vec![DecodeTime::default(); ways.len()]).collect();
    for prompt in prompts {
        for (peer, sums) in peers.iter_mut().zip(&mut sums) {
            for (way, sum) in sums.iter_mut().enumerate() {
                let time = peer.decode(way, prompt, max_tokens)?;
                sum.n_tokens += time.n_tokens;
                sum.ms += time.ms;
            }
        }
    }
    let rate = |sum: DecodeTime| sum.n_tokens as f64 * 1000.0 / sum.ms;
    let named = |(ways, sums): (Vec<String>, Vec<DecodeTime>)| {
        ways.into_iter()
            .zip(sums)
            .filter(|(_, sum)| sum.ms > 0.0)
            .map(|(way, sum)| (way, rate(sum)))
            .collect()
    };
    Ok(ways.into_iter().zip(sums).map(named).collect())
}

fn print(model: &str, device: &str, results: &[PeerResult]) {
    println!(
        "{model} on {device}; milliseconds of a pass behind {} tokens, fastest of all turns",
        PassTimer::N_COMMITTED
    );
    let header = |what: &str, numbers: &[usize]| {
        let columns: Vec<String> = numbers.iter().map(|n| format!("{n:>8}")).collect();
        println!("{what:<36}{}", columns.concat());
    };
    let row = |name: &str, values: Vec<Option<f64>>, digits: usize| {
        let column = |value: &Option<f64>| match value {
            Some(value) => format!("{value:>8.digits$}"),
            None => format!("{:>8}", "–"),
        };
        let columns: Vec<String> = values.iter().map(column).collect();
        println!("{name:<36}{}", columns.concat());
    };
    let ratios = |a: &[Option<f64>], b: &[Option<f64>]| -> Vec<Option<f64>> {
        a.iter().zip(b).map(|(a, b)| Some((*a)? / (*b)?)).collect()
    };
    header("rows", &ROW_COUNTS);
    for result in results {
        row(&result.name, result.passes_ms.clone(), 2);
        row("  T(n)/T(1)", ratios(&result.passes_ms, &vec![result.passes_ms[0]; ROW_COUNTS.len()]), 2);
    }
    for result in &results[1..] {
        row(&format!("speed-up over {}", result.name), ratios(&result.passes_ms, &results[0].passes_ms), 2);
    }
    header("prefill, tokens/s", &PREFILL_LENGTHS);
    for result in results {
        row(&result.name, result.prefill_tokens_per_s.clone(), 0);
    }
    for result in &results[1..] {
        let ratios = ratios(&results[0].prefill_tokens_per_s, &result.prefill_tokens_per_s);
        row(&format!("speed-up over {}", result.name), ratios, 2);
    }
    for result in results.iter().filter(|result| !result.decoding.is_empty()) {
        println!("{}, decoding", result.name);
        for (way, tokens_per_s) in &result.decoding {
            let speedup = tokens_per_s / result.decoding[0].1;
            println!("  {way:<34}{tokens_per_s:>8.1} tokens/s, {speedup:.2} of its ordinary decoding");
        }
    }
}
