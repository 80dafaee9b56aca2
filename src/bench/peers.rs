//! `sateen bench peers`: the same file, rows and threads on other engines, in turns with ours.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use engine::{Engine, EngineConfig, Model, ModelLibrary, PassTimer};
use serde::{Deserialize, Serialize};

use super::Setting;

/// Committed rows in front of the measured ones.
const N_COMMITTED: usize = 128;
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
    /// Turns after which it has shown what it can.
    fn max_turns(&self) -> usize {
        usize::MAX
    }
}

struct Ours {
    model: Arc<Model>,
}

impl Peer for Ours {
    fn name(&self) -> String {
        "sateen".to_owned()
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        let mut timer = PassTimer::new(&self.model, N_COMMITTED)?;
        (0..repetitions).map(|_| Ok(timer.time(n_rows)?)).collect()
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        Ok(PassTimer::prefill(&self.model, n_tokens)?)
    }
}

/// llama.cpp, in a Python process.
struct LlamaCpp {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    vocabulary: usize,
    version: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ms: Vec<f64>,
    error: Option<String>,
    version: Option<String>,
}

impl LlamaCpp {
    fn start(python: &Path, weights: &Path, n_threads: usize, vocabulary: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", include_str!("llama_cpp_peer.py")])
            .arg(weights)
            .arg(n_threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let (requests, answers) = (child.stdin.take(), child.stdout.take());
        let (Some(requests), Some(answers)) = (requests, answers) else { bail!("no pipes to Python") };
        let answers = BufReader::new(answers);
        let mut peer = Self { child, requests, answers, vocabulary, version: String::new() };
        let hello =
            peer.read().context("llama-cpp-python is not installed there, or cannot load the model")?;
        peer.version = hello.version.unwrap_or_default();
        Ok(peer)
    }

    fn read(&mut self) -> anyhow::Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("Python ended");
        }
        let answer: Answer = serde_json::from_str(&line).context("an answer that is no JSON")?;
        match answer.error {
            Some(error) => bail!("llama.cpp: {error}"),
            None => Ok(answer),
        }
    }

    fn ask(&mut self, request: &serde_json::Value) -> anyhow::Result<Vec<f64>> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        Ok(self.read()?.ms)
    }

    fn tokens(&self, n: usize) -> Vec<usize> {
        (0..n).map(|i| i * 7919 % self.vocabulary).collect()
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        // It has nothing to save.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer for LlamaCpp {
    fn name(&self) -> String {
        format!("llama.cpp (llama-cpp-python {})", self.version)
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        let tokens = self.tokens(N_COMMITTED.max(n_rows));
        self.ask(&serde_json::json!({
            "operation": "passes", "tokens": tokens, "n_committed": N_COMMITTED, "n_rows": n_rows,
            "repetitions": repetitions,
        }))
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        let tokens = self.tokens(n_tokens);
        let ms = self.ask(&serde_json::json!({ "operation": "prefill", "tokens": tokens }))?;
        ms.first().copied().context("no time")
    }
}

/// candle's own quantized models. They give the logits of the last row only, so passes of several rows are
/// cheaper for them than what verification needs.
/// Larger passes take it seconds.
#[cfg(feature = "candle-peer")]
const MAX_CANDLE_ROWS: usize = 8;

#[cfg(feature = "candle-peer")]
struct Candle {
    model: CandleModel,
    vocabulary: usize,
}

#[cfg(feature = "candle-peer")]
enum CandleModel {
    Llama(candle_transformers::models::quantized_llama::ModelWeights),
    Qwen2(candle_transformers::models::quantized_qwen2::ModelWeights),
}

#[cfg(feature = "candle-peer")]
impl Candle {
    fn load(weights: &Path, vocabulary: usize) -> anyhow::Result<Self> {
        use candle_core::{Device, quantized::gguf_file::Content};
        use candle_transformers::models::{quantized_llama, quantized_qwen2};
        let mut file = std::fs::File::open(weights)?;
        let content = Content::read(&mut file)?;
        let architecture = content.metadata.get("general.architecture").map(|value| value.to_string());
        let model = match architecture.transpose()?.map(String::as_str) {
            Some("qwen2") => CandleModel::Qwen2(quantized_qwen2::ModelWeights::from_gguf(
                content,
                &mut file,
                &Device::Cpu,
            )?),
            _ => CandleModel::Llama(quantized_llama::ModelWeights::from_gguf(
                content,
                &mut file,
                &Device::Cpu,
            )?),
        };
        Ok(Self { model, vocabulary })
    }

    fn run(&mut self, n_tokens: usize, first: usize) -> anyhow::Result<f64> {
        let tokens: Vec<u32> = (0..n_tokens).map(|i| (i * 7919 % self.vocabulary) as u32).collect();
        let input = candle_core::Tensor::new(&tokens[..], &candle_core::Device::Cpu)?.unsqueeze(0)?;
        let started = std::time::Instant::now();
        match &mut self.model {
            CandleModel::Llama(model) => model.forward(&input, first)?,
            CandleModel::Qwen2(model) => model.forward(&input, first)?,
        };
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    }
}

#[cfg(feature = "candle-peer")]
impl Peer for Candle {
    fn name(&self) -> String {
        "candle 0.11.1 (last row's logits)".to_owned()
    }

    fn passes(&mut self, n_rows: usize, repetitions: usize) -> anyhow::Result<Vec<f64>> {
        if n_rows > MAX_CANDLE_ROWS {
            return Ok(Vec::new());
        }
        // It cannot forget rows, so each pass starts anew behind a short prompt.
        self.run(N_COMMITTED, 0)?;
        let mut first = N_COMMITTED;
        let mut times = Vec::new();
        for _ in 0..repetitions {
            times.push(self.run(n_rows, first)?);
            first += n_rows;
        }
        Ok(times)
    }

    fn max_turns(&self) -> usize {
        1
    }

    fn prefill(&mut self, n_tokens: usize) -> anyhow::Result<f64> {
        if n_tokens > N_COMMITTED { Ok(f64::INFINITY) } else { self.run(n_tokens, 0) }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PeersReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) rows: Vec<usize>,
    pub(crate) prefills: Vec<usize>,
    pub(crate) peers: Vec<PeerResult>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PeerResult {
    pub(crate) name: String,
    /// Fastest of all turns, in milliseconds, by [`ROW_COUNTS`]; `None` where it was not run.
    pub(crate) passes_ms: Vec<Option<f64>>,
    /// Tokens per second, by [`PREFILL_LENGTHS`].
    pub(crate) prefill_tokens_per_s: Vec<Option<f64>>,
}

pub(crate) fn run(arguments: &PeersArguments) -> anyhow::Result<()> {
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let engine = Engine::start(EngineConfig { learned: None, ..EngineConfig::of(&installed) }, |_| ())?;
    let (loaded, model) = engine.wait_until_ready()?;
    let vocabulary = model.architecture().vocabulary;
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(Ours { model: model.clone() })];
    match LlamaCpp::start(&arguments.python, &installed.path, model.n_threads(), vocabulary) {
        Ok(peer) => peers.push(Box::new(peer)),
        Err(error) => eprintln!("without llama.cpp: {error:#}"),
    }
    #[cfg(feature = "candle-peer")]
    peers.push(Box::new(Candle::load(&installed.path, vocabulary)?));
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
    let results: Vec<PeerResult> = peers
        .iter()
        .zip(passes.into_iter().zip(prefills))
        .map(|(peer, (passes_ms, prefills))| PeerResult {
            name: peer.name(),
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
        peers: results,
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report.model, &report.setting.device, &report.peers),
    }
    Ok(())
}

fn print(model: &str, device: &str, results: &[PeerResult]) {
    println!("{model} on {device}; milliseconds of a pass behind {N_COMMITTED} tokens, fastest of all turns");
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
}
