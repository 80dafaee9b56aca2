//! `sateen bench typing`: what a person who types would feel.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use engine::{
    CompletionRequest, Engine, EngineConfig, Event, ModelLibrary, Outcome, Priority, PromptBudget,
    Speculation,
};
use serde::{Deserialize, Serialize};

use super::Setting;
use crate::complete::BudgetArguments;

#[derive(Args)]
pub(crate) struct TypingArguments {
    /// The file whose lines are typed anew, each in its place
    file: PathBuf,
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// Lines, evenly from those of the file's second half
    #[arg(long, default_value_t = 30)]
    lines: usize,
    /// How long the cursor rests at a line before it is typed, in milliseconds: the place is computed ahead then, as in the
    /// window
    #[arg(long, default_value_t = 0)]
    rest: u64,
    /// Most tokens of a completion
    #[arg(long, default_value_t = 48)]
    max_tokens: usize,
    #[command(flatten)]
    budget: BudgetArguments,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TypingReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) file: String,
    pub(crate) n_lines: usize,
    /// How long the cursor rested at each before it was typed: milliseconds.
    #[serde(default)]
    pub(crate) rest_ms: u64,
    pub(crate) n_keystrokes: usize,
    /// Keystrokes whose character was the next of the text that was shown: they cost nothing.
    pub(crate) n_predicted: usize,
    /// Pauses behind a word without a text that still fits: a completion was asked for.
    pub(crate) n_requests: usize,
    /// From the pause to the first text, for requests behind a first one in the same line: milliseconds.
    pub(crate) warm_p50_ms: f64,
    pub(crate) warm_p95_ms: f64,
    /// The same for the first request in a line; the lines lie far apart, so that most of its prompt is new.
    pub(crate) first_p50_ms: f64,
    pub(crate) first_p95_ms: f64,
    /// Tokens of warm prompts that were computed, in the middle.
    pub(crate) median_new_tokens: usize,
    pub(crate) n_passes: u64,
    /// Passes for texts of which no character was typed.
    pub(crate) n_wasted_passes: u64,
}

#[derive(Default)]
struct Times {
    first: Vec<f64>,
    warm: Vec<f64>,
    new_tokens: Vec<usize>,
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let idx = (values.len() as f64 * share) as usize;
    values.get(idx.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

pub(crate) fn run(arguments: &TypingArguments) -> anyhow::Result<()> {
    let path = &arguments.file;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<(usize, usize)> = text
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .filter_map(|start| Some((start, start + text[start..].find('\n')?)))
        .filter(|&(start, end)| text[start..end].trim().len() > 8)
        .collect();
    // The second half, so that there is a file before the cursor; a quarter stays behind it.
    let lines = &lines[lines.len() / 2..lines.len() * 3 / 4];
    ensure!(!lines.is_empty(), "{} has too few lines", path.display());
    let n_lines = arguments.lines.clamp(1, lines.len());
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let engine = Engine::start(EngineConfig::of(&installed), |_| ())?;
    let (loaded, _) = engine.wait_until_ready()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut report = TypingReport {
        setting: Setting::of(&loaded.device),
        model: installed.id,
        file: name.clone(),
        n_lines,
        rest_ms: arguments.rest,
        ..TypingReport::default()
    };
    let mut times = Times::default();
    for (start, end) in (0..n_lines).map(|i| lines[i * lines.len() / n_lines]) {
        type_line(&engine, arguments, &name, &text, (start, end), &mut report, &mut times)?;
    }
    report.warm_p50_ms = percentile(&mut times.warm, 0.5);
    report.warm_p95_ms = percentile(&mut times.warm, 0.95);
    report.first_p50_ms = percentile(&mut times.first, 0.5);
    report.first_p95_ms = percentile(&mut times.first, 0.95);
    times.new_tokens.sort_unstable();
    report.median_new_tokens = times.new_tokens.get(times.new_tokens.len() / 2).copied().unwrap_or(0);
    match arguments.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print(&report),
    }
    Ok(())
}

/// Types a line, with a pause behind each word; what is shown stays as long as it is what is typed.
fn type_line(
    engine: &Engine,
    arguments: &TypingArguments,
    name: &str,
    text: &str,
    (start, end): (usize, usize),
    report: &mut TypingReport,
    times: &mut Times,
) -> anyhow::Result<()> {
    let (mut shown, mut is_first) = (String::new(), true);
    // Passes for the text that is shown, until a character of it is typed.
    let mut n_unused = 0;
    let indent = text[start..end].len() - text[start..end].trim_start().len();
    let request = |at: usize| CompletionRequest {
        max_tokens: arguments.max_tokens,
        path: Some(name.to_owned()),
        budget: arguments.budget.over(PromptBudget::default()),
        ..CompletionRequest::new(&text[..at], &text[end..])
    };
    if arguments.rest > 0 {
        let ahead =
            CompletionRequest { max_tokens: 1, speculation: Speculation::Off, ..request(start + indent) };
        engine
            .submit("typing", Priority::Background, ahead)
            .wait_for_end(Duration::from_millis(arguments.rest));
    }
    for (at, typed) in text[start + indent..end].char_indices() {
        let at = start + indent + at + typed.len_utf8();
        report.n_keystrokes += 1;
        if let Some(rest) = shown.strip_prefix(typed) {
            report.n_predicted += 1;
            n_unused = 0;
            shown = rest.to_owned();
            if !shown.is_empty() {
                continue;
            }
        }
        report.n_wasted_passes += std::mem::take(&mut n_unused);
        shown.clear();
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if is_word(typed) && text[at..].starts_with(is_word) {
            continue;
        }
        let request = request(at);
        let (started, n_before) = (Instant::now(), engine.n_passes());
        let mut first_text = None;
        let mut submission = engine.submit("typing", Priority::Editor, request);
        while let Some(event) = submission.next_event() {
            match event {
                Event::Step(step) if step.pieces.is_empty() => (),
                Event::Step(_) => {
                    first_text.get_or_insert_with(|| started.elapsed());
                }
                Event::Ended(result) => {
                    let ms = first_text.unwrap_or_else(|| started.elapsed()).as_secs_f64() * 1000.0;
                    let Outcome::Ended(completion) = result? else { continue };
                    if std::mem::take(&mut is_first) {
                        times.first.push(ms);
                    } else {
                        times.warm.push(ms);
                        times.new_tokens.push(completion.n_prompt_tokens - completion.n_reused_tokens);
                    }
                    shown = completion.text;
                }
            }
        }
        report.n_requests += 1;
        n_unused = engine.n_passes() - n_before;
        report.n_passes += n_unused;
    }
    report.n_wasted_passes += n_unused;
    Ok(())
}

fn print(report: &TypingReport) {
    let TypingReport { n_keystrokes, n_predicted, n_requests, n_passes, n_wasted_passes, .. } = report;
    let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    println!(
        "{} on {}; {} lines of {} typed",
        report.model, report.setting.device, report.n_lines, report.file
    );
    println!(
        "{n_keystrokes} keystrokes, {:.0} % as predicted; {n_requests} requests behind the others",
        share(*n_predicted as f64, *n_keystrokes as f64)
    );
    println!(
        "first text in a line already begun: {:.0} ms (p50), {:.0} ms (p95), {} tokens computed",
        report.warm_p50_ms, report.warm_p95_ms, report.median_new_tokens
    );
    println!(
        "first text at another place of the file, {} ms after the cursor came there: {:.0} ms (p50), {:.0} ms (p95)",
        report.rest_ms, report.first_p50_ms, report.first_p95_ms
    );
    println!(
        "{n_passes} passes, {:.0} % of them for texts that were not used",
        share(*n_wasted_passes as f64, *n_passes as f64)
    );
}
