//! `sateen bench quality`: what is completed against what stood there.

mod python;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use engine::{
    CompletionRequest, Engine, EngineConfig, Likelihood, ModelLibrary, PromptBudget, Session,
    SuffixVisibility, shown_text,
};
use serde::{Deserialize, Serialize};

use super::Setting;
use super::peers::llama_cpp::LlamaCpp;
use super::prompts::{self, Places, Prompt};
use crate::complete::{BudgetArguments, CacheTypeArgument};

/// Longest that a peer may take for one completion.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct QualityArguments {
    /// JSON lines with `prompt`, `suffix` and `canonical_solution`, gzipped or not, or a folder of source files
    prompts: PathBuf,
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// Places, evenly from all there are
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Which places of a folder's files
    #[arg(long, value_enum, default_value = "lines")]
    places: Places,
    /// Most tokens of a completion
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    #[command(flatten)]
    budget: BudgetArguments,
    /// A server of llama.cpp with the same file, asked by `/infill`
    #[arg(long, value_name = "URL")]
    peer: Option<String>,
    /// A Python that has the package llama-cpp-python: llama.cpp then goes on from the same tokens as we do, in the
    /// order in which the model was trained
    #[arg(long)]
    python: Option<PathBuf>,
    /// Also measure how likely the model finds what stood there
    #[arg(long)]
    likelihood: bool,
    /// How keys and values are kept
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    cache_type: CacheTypeArgument,
    /// Run the tests that come with the prompts, which runs what the models wrote, as Python
    #[arg(long)]
    run_tests: bool,
    /// Print each completion that is not what stood there
    #[arg(long)]
    verbose: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was measured of one way of completing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct QualityResult {
    pub(crate) name: String,
    /// Places whose text is what stood there, but for white space at its end.
    pub(crate) n_exact: usize,
    /// Mean of 1 - (Levenshtein distance / length of the longer).
    pub(crate) edit_similarity: f64,
    /// Places where as many brackets of each kind are open behind the text as behind what stood there.
    pub(crate) n_balanced: usize,
    /// Places where the text has as many lines as what stood there.
    pub(crate) n_same_lines: usize,
    pub(crate) n_empty: usize,
    /// Places whose tests pass, where there are some and they were run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) n_passed: Option<usize>,
    /// Tokens of what stood there that the model finds likeliest, given those before them: their share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) likeliest_share: Option<f64>,
    /// Mean `-ln p` of the tokens of what stood there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nats_per_token: Option<f64>,
    /// Median time of a whole completion, each with a cold cache or what is left of the one before.
    pub(crate) median_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct QualityReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) prompts: String,
    pub(crate) places: String,
    pub(crate) n_places: usize,
    pub(crate) results: Vec<QualityResult>,
}

impl QualityResult {
    /// Tests passed, share of likeliest tokens, nats per token; a dash for what was not measured.
    pub(crate) fn in_words(&self) -> [String; 3] {
        [
            self.n_passed.map(|n| n.to_string()),
            self.likeliest_share.map(|share| format!("{:.1} %", 100.0 * share)),
            self.nats_per_token.map(|nats| format!("{nats:.3}")),
        ]
        .map(|text| text.unwrap_or_else(|| "–".to_owned()))
    }
}

/// Gathers the figures of one way.
struct Tally {
    result: QualityResult,
    similarities: f64,
    times: Vec<f64>,
    likelihood: Likelihood,
}

impl Tally {
    fn new(name: &str) -> Self {
        let result = QualityResult { name: name.to_owned(), ..QualityResult::default() };
        Self { result, similarities: 0.0, times: Vec::new(), likelihood: Likelihood::default() }
    }

    /// Says whether the text is what stood there.
    fn add(&mut self, prompt: &Prompt, text: &str, ms: f64, runs_tests: bool) -> anyhow::Result<bool> {
        let (got, wanted) = (text.trim_end(), prompt.middle.trim_end());
        let result = &mut self.result;
        let is_exact = got == wanted;
        result.n_exact += usize::from(is_exact);
        result.n_balanced += usize::from(open_brackets(got) == open_brackets(wanted));
        result.n_same_lines += usize::from(got.lines().count() == wanted.lines().count());
        result.n_empty += usize::from(got.is_empty());
        self.similarities += strsim::normalized_levenshtein(got, wanted);
        self.times.push(ms);
        if let Some((test, entry_point)) = prompt.test.as_ref().filter(|_| runs_tests) {
            // What stood there passes, so that only the others need to be run.
            let has_passed = is_exact || python::passes(prompt, text, test, entry_point)?;
            *result.n_passed.get_or_insert(0) += usize::from(has_passed);
        }
        Ok(is_exact)
    }

    fn add_likelihood(&mut self, one: Likelihood) {
        self.likelihood.n_tokens += one.n_tokens;
        self.likelihood.n_likeliest += one.n_likeliest;
        self.likelihood.nats += one.nats;
    }

    fn finish(mut self, n: usize) -> QualityResult {
        self.times.sort_by(f64::total_cmp);
        self.result.median_ms = self.times.get(self.times.len() / 2).copied().unwrap_or(0.0);
        let Likelihood { n_tokens, n_likeliest, nats } = self.likelihood;
        if n_tokens > 0 {
            self.result.likeliest_share = Some(n_likeliest as f64 / n_tokens as f64);
            self.result.nats_per_token = Some(nats / n_tokens as f64);
        }
        self.result.edit_similarity = self.similarities / n.max(1) as f64;
        self.result
    }
}

/// How many brackets of each kind `text` leaves open, counted as they stand there.
fn open_brackets(text: &str) -> [isize; 3] {
    ["()", "[]", "{}"].map(|pair| {
        let count = |at: usize| text.matches(&pair[at..=at]).count() as isize;
        count(0) - count(1)
    })
}

pub(crate) fn run(arguments: &QualityArguments) -> anyhow::Result<()> {
    let mut prompts = prompts::read(&arguments.prompts, arguments.places, usize::MAX)?;
    prompts.retain(|prompt| !prompt.middle.trim().is_empty());
    let n = arguments.limit.min(prompts.len());
    let prompts: Vec<Prompt> = (0..n).map(|i| prompts[i * prompts.len() / n].clone()).collect();
    anyhow::ensure!(n > 0, "{} does not say what stood at its places", arguments.prompts.display());
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let engine = Engine::start(
        EngineConfig {
            learned: None,
            cache_type: arguments.cache_type.into(),
            ..EngineConfig::of(&installed)
        },
        |_| (),
    )?;
    let (loaded, model) = engine.wait_until_ready()?;
    let mut session = Session::new(&model);
    let has_others = arguments.budget.over(PromptBudget::default()).other_tokens > 0
        && prompts.iter().any(|prompt| !prompt.other_files.is_empty());
    let names: &[&str] = if has_others { &["with other files", "this file alone"] } else { &["sateen"] };
    let mut ours: Vec<Tally> = names.iter().map(|name| Tally::new(name)).collect();
    let mut peers =
        arguments.peer.as_ref().map(|_| [Tally::new("llama.cpp"), Tally::new("llama.cpp, cut as ours")]);
    let mut twin = match &arguments.python {
        Some(python) => {
            let vocabulary = model.architecture().vocabulary;
            Some(LlamaCpp::start(python, &installed.path, model.n_threads(), vocabulary)?)
        }
        None => None,
    };
    let mut of_twin = twin.as_ref().map(|_| Tally::new("llama.cpp, same tokens"));
    for (idx, prompt) in prompts.iter().enumerate() {
        if !arguments.json {
            eprint!("\rplace {} of {n}", idx + 1);
        }
        for (way, tally) in ours.iter_mut().enumerate() {
            let request = request(arguments, prompt, way == 0);
            if arguments.likelihood {
                tally.add_likelihood(session.likelihood(&request, &prompt.middle)?);
            }
            let completion = session.complete(&request)?;
            let is_exact = tally.add(prompt, &completion.text, completion.total_ms, arguments.run_tests)?;
            if arguments.verbose && !is_exact {
                let line = prompt.prefix.rsplit('\n').next().unwrap_or_default();
                let rest = prompt.suffix.split('\n').next().unwrap_or_default();
                eprintln!(
                    "\n{line}|{rest}\n  wanted {:?}\n  got    {:?}, {:?}",
                    prompt.middle, completion.text, completion.stop_reason
                );
            }
        }
        if let (Some(twin), Some(tally)) = (&mut twin, &mut of_twin) {
            let mut request = request(arguments, prompt, true);
            request.budget.visibility = SuffixVisibility::AsTrained;
            let prompt_tokens = session.prompt(&request)?.tokens;
            let (tokens, ms) = twin.continuation(&prompt_tokens, request.max_tokens)?;
            let text = shown_text(&request, &model.tokenizer().decode(&tokens));
            tally.add(prompt, &text, ms, arguments.run_tests)?;
        }
        if let (Some(url), Some([raw, cut])) = (&arguments.peer, &mut peers) {
            let request = request(arguments, prompt, true);
            let (text, ms) = ask_peer(url, &request)?;
            raw.add(prompt, &text, ms, arguments.run_tests)?;
            cut.add(prompt, &shown_text(&request, &text), ms, arguments.run_tests)?;
        }
    }
    if !arguments.json {
        eprintln!();
    }
    let all = ours.into_iter().chain(of_twin).chain(peers.into_iter().flatten());
    let report = QualityReport {
        setting: Setting::of(&loaded.device),
        model: installed.id,
        prompts: arguments.prompts.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        places: format!("{:?}", arguments.places).to_lowercase(),
        n_places: n,
        results: all.map(|tally| tally.finish(n)).collect(),
    };
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report),
    }
    Ok(())
}

fn request(arguments: &QualityArguments, prompt: &Prompt, with_others: bool) -> CompletionRequest {
    CompletionRequest {
        max_tokens: arguments.max_tokens,
        path: prompt.path.clone(),
        other_files: if with_others { prompt.other_files.clone() } else { Vec::new() },
        budget: arguments.budget.over(PromptBudget::default()),
        ..CompletionRequest::new(prompt.prefix.as_str(), prompt.suffix.as_str())
    }
}

#[derive(Deserialize)]
struct PeerAnswer {
    content: String,
}

/// The peer's completion, and its milliseconds.
fn ask_peer(url: &str, request: &CompletionRequest) -> anyhow::Result<(String, f64)> {
    let extra: Vec<_> = request
        .other_files
        .iter()
        .map(|file| serde_json::json!({ "filename": file.path, "text": file.text }))
        .collect();
    let body = serde_json::json!({
        "input_prefix": request.prefix, "input_suffix": request.suffix, "input_extra": extra, "prompt": "",
        "n_predict": request.max_tokens, "temperature": 0.0, "samplers": ["temperature"], "cache_prompt": true,
    });
    let started = std::time::Instant::now();
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PEER_TIMEOUT)).build().into();
    let mut answer =
        agent.post(format!("{url}/infill")).send_json(&body).with_context(|| format!("asking {url}"))?;
    let answer: PeerAnswer = answer.body_mut().read_json().context("an answer that is none of /infill")?;
    Ok((answer.content, started.elapsed().as_secs_f64() * 1000.0))
}

fn print(report: &QualityReport) {
    let QualityReport { setting, model, prompts, places, n_places, results } = report;
    println!("{model} on {}; {n_places} places of {prompts} ({places})", setting.device);
    println!(
        "{:<24} {:>6} {:>10} {:>9} {:>11} {:>6} {:>7} {:>8} {:>10} {:>9}",
        "", "exact", "similarity", "balanced", "same lines", "empty", "passed", "ms", "likeliest", "nats"
    );
    for result in results {
        let [passed, likeliest, nats] = result.in_words();
        println!(
            "{:<24} {:>6} {:>10.3} {:>9} {:>11} {:>6} {passed:>7} {:>8.1} {likeliest:>10} {nats:>9}",
            result.name,
            result.n_exact,
            result.edit_similarity,
            result.n_balanced,
            result.n_same_lines,
            result.n_empty,
            result.median_ms,
        );
    }
}
