//! `sateen complete`

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use engine::{
    CacheType, CompletionRequest, ContextFile, Engine, EngineConfig, Extent, ModelLibrary, PromptBudget,
    SamplingParams, SuffixVisibility, byte_offset,
};

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
    /// Another file that is open: what is like the text at the cursor goes into the prompt, and all of it is
    /// drafted from; may be given several times
    #[arg(long = "open-file", value_name = "FILE")]
    other_files: Vec<PathBuf>,
    /// Name of the repository, for models that are told
    #[arg(long, default_value = "")]
    repository: String,
    /// Path of the file as the model is told; that of the file without it
    #[arg(long)]
    path: Option<String>,
    /// Where to end: with the line or the block, always with the line, or where the model does
    #[arg(long, value_enum, default_value = "auto")]
    extent: ExtentArgument,
    /// Other completions of the same place
    #[arg(long, default_value_t = 0, value_name = "N")]
    alternatives: usize,
    #[command(flatten)]
    budget: BudgetArguments,
    /// Longest context in tokens; the model's own length where that is shorter
    #[arg(long, default_value_t = EngineConfig::DEFAULT_CONTEXT, value_name = "TOKENS")]
    context: usize,
    /// How keys and values are kept: exactly, or in half precision, which takes half the memory
    #[arg(long, value_enum, default_value = "f32", value_name = "TYPE")]
    cache_type: CacheTypeArgument,
    /// Memory that keys and values may take, in megabytes; a context that does not fit is refused
    #[arg(long, value_name = "MB")]
    cache_mb: Option<u64>,
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

/// Where a completion ends, as the command line names it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExtentArgument {
    /// With the line where something follows the cursor on it, else with the block
    Auto,
    /// With the line
    Line,
    /// Where the model ends
    Raw,
}

impl From<ExtentArgument> for Extent {
    fn from(argument: ExtentArgument) -> Self {
        match argument {
            ExtentArgument::Auto => Self::Auto,
            ExtentArgument::Line => Self::Line,
            ExtentArgument::Raw => Self::Raw,
        }
    }
}

/// How keys and values are kept, as the command line names it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheTypeArgument {
    F32,
    F16,
}

impl From<CacheTypeArgument> for CacheType {
    fn from(argument: CacheTypeArgument) -> Self {
        match argument {
            CacheTypeArgument::F32 => Self::F32,
            CacheTypeArgument::F16 => Self::F16,
        }
    }
}

/// How much the model is told.
#[derive(Args, Clone, Copy)]
pub(crate) struct BudgetArguments {
    /// Most tokens before the cursor
    #[arg(long, default_value_t = PromptBudget::default().prefix_tokens)]
    prefix_tokens: usize,
    /// Most tokens after the cursor
    #[arg(long, default_value_t = PromptBudget::default().suffix_tokens)]
    suffix_tokens: usize,
    /// Most tokens of other files
    #[arg(long, default_value_t = PromptBudget::default().other_tokens)]
    pub(crate) other_tokens: usize,
    /// Let the text after the cursor see the cursor's line, as the model was trained: each keystroke then
    /// computes that text anew
    #[arg(long)]
    suffix_as_trained: bool,
}

impl From<BudgetArguments> for PromptBudget {
    fn from(arguments: BudgetArguments) -> Self {
        let BudgetArguments { prefix_tokens, suffix_tokens, other_tokens, suffix_as_trained } = arguments;
        let visibility = match suffix_as_trained {
            true => SuffixVisibility::AsTrained,
            false => SuffixVisibility::BlindToLine,
        };
        Self { prefix_tokens, suffix_tokens, other_tokens, visibility }
    }
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
    let config = EngineConfig {
        max_context: arguments.context,
        cache_type: arguments.cache_type.into(),
        cache_bytes: arguments.cache_mb.map(|mb| mb.saturating_mul(1_000_000)),
        ..EngineConfig::of(&model)
    };
    let engine = Engine::start(config, |_| ())?;
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
        path: arguments.path.clone().or_else(|| arguments.file.as_deref().map(path_for_model)),
        repository: arguments.repository.clone(),
        other_files: read_other_files(&arguments.other_files)?,
        budget: arguments.budget.into(),
        extent: arguments.extent.into(),
        n_alternatives: arguments.alternatives,
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
    if streams {
        for (idx, text) in completion.alternatives.iter().enumerate() {
            writeln!(stdout, "--- alternative {}\n{text}", idx + 1)?;
        }
    }
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

/// What the model is told of a path: no more than what lies below the current folder, else the name.
fn path_for_model(path: &Path) -> String {
    let folder = std::env::current_dir().and_then(|folder| folder.canonicalize());
    let inside = folder.and_then(|folder| Ok(path.canonicalize()?.strip_prefix(&folder).map(Path::to_owned)));
    let path = match inside {
        Ok(Ok(path)) => path,
        _ => PathBuf::from(path.file_name().unwrap_or_default()),
    };
    path.to_string_lossy().replace('\\', "/")
}

fn read_other_files(paths: &[PathBuf]) -> anyhow::Result<Vec<ContextFile>> {
    let read = |path: &PathBuf| {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(ContextFile { path: path_for_model(path), text })
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
