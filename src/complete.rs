//! `sateen complete`

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::{CompletionRequest, Engine, EngineConfig, ModelLibrary, SamplingParams, byte_offset};

use crate::speculation::SpeculationArgument;
use crate::terminal::printable;

#[derive(Args)]
pub(crate) struct CompleteArguments {
    /// The file to complete in; standard input when it is missing or `-`
    file: Option<PathBuf>,
    /// Line of the cursor, from 1; the end of the text without it
    #[arg(long, requires = "column")]
    line: Option<usize>,
    /// Column of the cursor, in characters from 1
    #[arg(long, requires = "line")]
    column: Option<usize>,
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// How to decode
    #[arg(long, value_enum, default_value = "auto")]
    speculation: SpeculationArgument,
    /// Most tokens to generate
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher values vary more
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample among this many likeliest tokens; 0 means all
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Sample among the likeliest tokens that make up this share
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Seed of the draws; the same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Above 1 makes recent tokens less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Another file to draft from; may be given several times
    #[arg(long = "open-file", value_name = "FILE")]
    other_files: Vec<PathBuf>,
    /// Print a line per forward pass on standard error: how wide it was, and why
    #[arg(long)]
    explain: bool,
    /// A text that ends the completion; may be given several times
    #[arg(long)]
    stop: Vec<String>,
    /// Print one JSON object at the end instead of streaming the text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &CompleteArguments) -> anyhow::Result<()> {
    let text = read_text(arguments)?;
    let cursor = match (arguments.line, arguments.column) {
        (Some(line), Some(column)) => match byte_offset(&text, line, column) {
            Some(cursor) => cursor,
            None => {
                bail!("the text has no line {line}, column {column}; it has {} lines", text.lines().count())
            }
        },
        _ => text.len(),
    };
    let model = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let engine = Engine::start(EngineConfig::of(&model), |_| ())?;
    engine.wait_until_ready().with_context(|| format!("cannot load {}", model.path.display()))?;

    let (prefix, suffix) = text.split_at(cursor);
    let request = CompletionRequest {
        max_tokens: arguments.max_tokens,
        stop: arguments.stop.clone(),
        sampling: SamplingParams {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            min_p: arguments.min_p,
            repetition_penalty: arguments.repetition_penalty,
            seed: arguments.seed,
        },
        speculation: arguments.speculation.into(),
        other_files: read_other_files(&arguments.other_files)?,
        ..CompletionRequest::new(prefix, suffix)
    };
    let streams = !arguments.json;
    let is_terminal = std::io::stdout().is_terminal();
    let explains = arguments.explain;
    let completion = engine.complete(request, move |event| {
        if explains && event.n_rows > 0 {
            let why = event.explanation.as_deref().unwrap_or("fixed width");
            let emitted = event.n_accepted + 1;
            eprintln!("{:>3} rows, {emitted} emitted of {} drafts; {why}", event.n_rows, event.n_drafted);
        }
        if streams {
            let text: String = event.pieces.iter().map(|piece| piece.text.as_str()).collect();
            let text = if is_terminal { printable(&text) } else { text };
            let mut stdout = std::io::stdout().lock();
            // A closed pipe shows up again when the end is written.
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
    })?;
    let mut stdout = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut stdout, &completion)?;
    }
    writeln!(stdout)?;
    if streams && std::io::stderr().is_terminal() {
        eprintln!(
            "{} tokens in {} forward passes ({:.2} each), {:.1} tokens/s after the first, which took {:.0} ms",
            completion.n_tokens,
            completion.n_steps,
            completion.mean_accepted_tokens,
            completion.tokens_per_s,
            completion.ttft_ms
        );
    }
    Ok(())
}

fn read_other_files(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    paths.iter().map(read).collect()
}

fn read_text(arguments: &CompleteArguments) -> anyhow::Result<String> {
    let (bytes, name) = match &arguments.file {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            (std::fs::read(path).with_context(|| format!("cannot read {name}"))?, name)
        }
        _ => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            (bytes, "standard input".to_owned())
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail!("{name} is not UTF-8: byte {}", error.utf8_error().valid_up_to()),
    }
}
