//! `sateen bench soak`: many clients for a long time, and whether anything is lost, leaks or differs.

use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use engine::{
    CompletionRequest, ContextFile, Engine, EngineConfig, Event, ModelLibrary, Outcome, Priority,
    SamplingParams, Speculation, Submission,
};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::Setting;

/// What is edited: sources of this program.
const TEXTS: [(&str, &str); 4] = [
    ("src/bench/soak.rs", include_str!("soak.rs")),
    ("src/bench/quality.rs", include_str!("quality.rs")),
    ("src/complete.rs", include_str!("../complete.rs")),
    ("src/models.rs", include_str!("../models.rs")),
];
const CLIENTS: [(&str, Priority); 3] =
    [("popup", Priority::Popup), ("editor", Priority::Editor), ("ahead", Priority::Background)];
/// Where nothing else is said, a round of so many is warm-up.
const WARM_UP_SHARE: usize = 5;
/// One request of so many is compared with ordinary decoding.
const COMPARE_EVERY: usize = 10;

#[derive(Args)]
pub(crate) struct SoakArguments {
    /// Which installed model
    #[arg(long, default_value = "smollm2-135m")]
    model: String,
    /// How many requests
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Rounds after which caches are touched and what can be learnt is learnt; a fifth of all without it
    #[arg(long)]
    warm_up: Option<usize>,
    /// Seed of the choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct SoakReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) n_requests: usize,
    pub(crate) n_ended: usize,
    pub(crate) n_superseded: usize,
    pub(crate) n_cancelled: usize,
    pub(crate) n_errors: usize,
    /// Requests that were compared with ordinary decoding, and those that differed.
    pub(crate) n_compared: usize,
    pub(crate) n_different: usize,
    /// Cancels after which the engine ran more than one pass more.
    pub(crate) n_late_cancels: usize,
    pub(crate) n_passes: u64,
    /// Resident memory after the warm-up and at the end, in bytes.
    pub(crate) warm_bytes: u64,
    pub(crate) end_bytes: u64,
    pub(crate) seconds: f64,
}

/// Memory that this process holds now, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A file that somebody works on: the cursor moves a little, and far now and then.
struct Editing {
    path: &'static str,
    text: String,
    cursor: usize,
}

impl Editing {
    fn edit(&mut self, random: &mut Rng) {
        match random.usize(..8) {
            0 => self.cursor = random.usize(..self.text.len()),
            1 => {
                let end = (self.cursor + 1 + random.usize(..40)).min(self.text.len());
                let (start, end) = (self.boundary(self.cursor), self.boundary(end));
                self.text.replace_range(start..end, "");
            }
            2 => self.text.insert_str(self.boundary(self.cursor), "\n    let é = value(1);"),
            _ => self.cursor += 1 + random.usize(..12),
        }
        self.cursor = self.boundary(self.cursor.min(self.text.len()));
        if self.text.len() < 500 {
            *self = Self::of(random.usize(..TEXTS.len()));
        }
    }

    fn of(idx: usize) -> Self {
        let (path, text) = TEXTS[idx % TEXTS.len()];
        Self { path, text: text.to_owned(), cursor: text.len() / 2 }
    }

    fn boundary(&self, at: usize) -> usize {
        (0..=at).rev().find(|&at| self.text.is_char_boundary(at)).unwrap_or(0)
    }

    fn request(&self, random: &mut Rng) -> CompletionRequest {
        let start = self.boundary(self.cursor.saturating_sub(500));
        let end = self.boundary((self.cursor + 250).min(self.text.len()));
        let (path, text) = TEXTS[random.usize(..TEXTS.len())];
        let other = ContextFile { path: path.to_owned(), text: text[..2000].to_owned() };
        let (temperature, seed) = if random.usize(..3) == 0 { (0.8, random.u64(..)) } else { (0.0, 0) };
        CompletionRequest {
            path: Some(self.path.to_owned()),
            max_tokens: 1 + random.usize(..24),
            speculation: Speculation::ALL[random.usize(..Speculation::ALL.len())],
            sampling: SamplingParams { temperature, seed, ..SamplingParams::default() },
            other_files: if random.usize(..4) == 0 { vec![other] } else { Vec::new() },
            n_alternatives: if random.usize(..20) == 0 { 2 } else { 0 },
            ..CompletionRequest::new(&self.text[start..self.cursor], &self.text[self.cursor..end])
        }
    }
}

pub(crate) fn run(arguments: &SoakArguments) -> anyhow::Result<()> {
    let installed = ModelLibrary::of_user()?.find(&arguments.model)?;
    let config = EngineConfig { max_context: 1024, learned: None, ..EngineConfig::of(&installed) };
    let engine = Engine::start(config, |_| ())?;
    let (loaded, _) = engine.wait_until_ready()?;
    let mut random = Rng::with_seed(arguments.seed);
    let mut files: Vec<Editing> = (0..TEXTS.len()).map(Editing::of).collect();
    let mut report = SoakReport {
        setting: Setting::of(&loaded.device),
        model: installed.id,
        n_requests: arguments.requests,
        ..SoakReport::default()
    };
    let started = Instant::now();
    for idx in 0..arguments.requests {
        if idx == arguments.warm_up.unwrap_or(arguments.requests / WARM_UP_SHARE) {
            report.warm_bytes = resident_bytes();
        }
        if !arguments.json && idx % 100 == 0 {
            eprint!("\rrequest {idx} of {}, {} MB", arguments.requests, resident_bytes() >> 20);
        }
        let file = random.usize(..files.len());
        files[file].edit(&mut random);
        let request = files[file].request(&mut random);
        let (client, priority) = CLIENTS[random.usize(..CLIENTS.len())];
        let submission = engine.submit(client, priority, request.clone());
        match random.usize(..5) {
            // A newer one takes its place, another client asks beside it.
            0 => {
                let newer = engine.submit(client, priority, files[file].request(&mut random));
                let beside = engine.submit("beside", Priority::Editor, request);
                for submission in [submission, newer, beside] {
                    count(submission.wait(|_| ()), &mut report);
                }
            }
            1 => cancel(&engine, submission, &mut random, &mut report),
            _ => {
                let tokens = count(submission.wait(|_| ()), &mut report);
                if idx % COMPARE_EVERY == 0
                    && let Some(tokens) = tokens
                {
                    let ordinary = CompletionRequest { speculation: Speculation::Off, ..request };
                    let expected = engine.complete(ordinary, |_| ()).context("ordinary decoding")?.tokens;
                    report.n_compared += 1;
                    report.n_different += usize::from(tokens != expected);
                }
            }
        }
    }
    if !arguments.json {
        eprintln!();
    }
    (report.end_bytes, report.n_passes) = (resident_bytes(), engine.n_passes());
    report.seconds = started.elapsed().as_secs_f64();
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report),
    }
    ensure!(report.n_errors == 0, "{} requests failed", report.n_errors);
    ensure!(report.n_different == 0, "{} completions differ from ordinary decoding", report.n_different);
    ensure!(report.n_late_cancels == 0, "{} cancels took more than a pass", report.n_late_cancels);
    Ok(())
}

/// Cancels a request after some of its events, and sees how soon the engine is idle.
fn cancel(engine: &Engine, mut submission: Submission, random: &mut Rng, report: &mut SoakReport) {
    for _ in 0..random.usize(..4) {
        if let Some(Event::Ended(result)) = submission.next_event() {
            count(result, report);
            return;
        }
    }
    submission.cancel();
    let n_before = engine.n_passes();
    let result = submission.wait(|_| ());
    report.n_late_cancels += usize::from(engine.n_passes() > n_before + 1);
    count(result, report);
}

/// The tokens of a completion that came to its end.
fn count(result: Result<Outcome, engine::EngineError>, report: &mut SoakReport) -> Option<Vec<u32>> {
    match result {
        Ok(Outcome::Ended(completion)) => {
            report.n_ended += 1;
            return Some(completion.tokens);
        }
        Ok(Outcome::Superseded) => report.n_superseded += 1,
        Ok(Outcome::Cancelled) => report.n_cancelled += 1,
        Err(error) => {
            eprintln!("\n{error}");
            report.n_errors += 1;
        }
    }
    None
}

fn print(report: &SoakReport) {
    let SoakReport { n_requests, n_ended, n_superseded, n_cancelled, n_errors, .. } = report;
    println!("{} on {}; {n_requests} rounds in {:.0} s", report.model, report.setting.device, report.seconds);
    println!("{n_ended} ended, {n_superseded} superseded, {n_cancelled} cancelled, {n_errors} failed");
    println!(
        "{} compared with ordinary decoding, {} different; {} cancels took more than a pass; {} passes",
        report.n_compared, report.n_different, report.n_late_cancels, report.n_passes
    );
    let growth = 100.0 * (report.end_bytes as f64 / report.warm_bytes.max(1) as f64 - 1.0);
    println!(
        "resident memory {} MB after the warm-up, {} MB at the end: {growth:+.1} %",
        report.warm_bytes >> 20,
        report.end_bytes >> 20
    );
}
