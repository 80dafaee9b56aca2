//! `sateen complete`

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use engine::{
    CacheType, CompletionRequest, ContextFile, DeviceChoice, Engine, EngineConfig, Extent, ModelLibrary,
    PromptBudget, SamplingParams, Speculation, SuffixVisibility, byte_offset,
};
use settings::SettingsFile;

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
    /// Which installed model; that of the settings without it
    #[arg(long)]
    model: Option<String>,
    /// How to decode; as the settings say without it
    #[arg(long, value_enum)]
    speculation: Option<SpeculationArgument>,
    /// Most tokens to generate; as the settings say without it
    #[arg(long)]
    max_tokens: Option<usize>,
    /// 0 takes the likeliest token, higher values vary more; as the settings say without it
    #[arg(long)]
    temperature: Option<f32>,
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
    #[arg(long, value_enum)]
    extent: Option<ExtentArgument>,
    /// Other completions of the same place
    #[arg(long, default_value_t = 0, value_name = "N")]
    alternatives: usize,
    #[command(flatten)]
    budget: BudgetArguments,
    /// Longest context in tokens; the model's own length where that is shorter
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// What to run on: auto, cpu, or a GPU like cuda:0, vulkan:0 or metal
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// How keys and values are kept: exactly, or in half precision, which takes half the memory
    #[arg(long, value_enum, value_name = "TYPE")]
    cache_type: Option<CacheTypeArgument>,
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
    #[arg(long)]
    prefix_tokens: Option<usize>,
    /// Most tokens after the cursor
    #[arg(long)]
    suffix_tokens: Option<usize>,
    /// Most tokens of other files
    #[arg(long)]
    other_tokens: Option<usize>,
    /// Let the text after the cursor see the cursor's line, as the model was trained: each keystroke then
    /// computes that text anew
    #[arg(long)]
    suffix_as_trained: bool,
}

impl BudgetArguments {
    /// `budget` with what is said here.
    pub(crate) fn over(self, budget: PromptBudget) -> PromptBudget {
        PromptBudget {
            prefix_tokens: self.prefix_tokens.unwrap_or(budget.prefix_tokens),
            suffix_tokens: self.suffix_tokens.unwrap_or(budget.suffix_tokens),
            other_tokens: self.other_tokens.unwrap_or(budget.other_tokens),
            visibility: match self.suffix_as_trained {
                true => SuffixVisibility::AsTrained,
                false => budget.visibility,
            },
        }
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
    let (settings, notices) = SettingsFile::of_user();
    notices.iter().for_each(|notice| eprintln!("sateen: {}", printable(&notice.0)));
    let settings = settings.settings();
    let library = ModelLibrary::of_user()?;
    let model = match &arguments.model {
        Some(id) => library.find(id)?,
        None => settings.model(&library)?,
    };
    let of_settings = settings.engine_config(&model);
    let config = EngineConfig {
        max_context: arguments.context.unwrap_or(of_settings.max_context),
        device: arguments.device.clone().unwrap_or(of_settings.device),
        cache_type: arguments.cache_type.map_or(of_settings.cache_type, CacheType::from),
        cache_bytes: arguments.cache_mb.map(|mb| mb.saturating_mul(1_000_000)),
        unload_after: None,
        ..of_settings
    };
    let engine = Engine::start(config, |_| ())?;
    let (loaded, _) =
        engine.wait_until_ready().with_context(|| format!("cannot load {}", model.path.display()))?;
    loaded.device_note.iter().for_each(|note| eprintln!("sateen: {}", printable(note)));

    let (prefix, suffix) = text.split_at(cursor);
    let request = CompletionRequest {
        max_tokens: arguments.max_tokens.unwrap_or(settings.completion.max_tokens),
        stop: arguments.stop.clone(),
        sampling: SamplingParams {
            temperature: arguments.temperature.unwrap_or(settings.completion.temperature),
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            min_p: arguments.min_p,
            repetition_penalty: arguments.repetition_penalty,
            seed: arguments.seed,
        },
        speculation: arguments.speculation.map_or(settings.completion.speculation, Speculation::from),
        path: arguments.path.clone().or_else(|| arguments.file.as_deref().map(path_for_model)),
        repository: arguments.repository.clone(),
        other_files: read_other_files(&arguments.other_files)?,
        budget: arguments.budget.over(settings.budget()),
        extent: arguments.extent.map_or(settings.completion.extent, Extent::from),
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
