//! `sateen train generate`

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use clap::Args;
use engine::{
    Completion, CompletionRequest, DeviceChoice, Engine, EngineConfig, Extent, ModelLibrary, SamplingParams,
    StopReason,
};
use train::Corpus;

/// Texts that are shorter, and were not ended by the model, teach nothing.
const MIN_TOKENS: usize = 12;

#[derive(Args)]
pub(super) struct GenerateArguments {
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// What it goes on from and fills in: folders of source code, or JSON lines with a `text` each
    #[arg(long, value_name = "FOLDER_OR_JSONL", required = true)]
    data: Vec<PathBuf>,
    /// JSON lines to write; the same command goes on behind what is there
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Texts
    #[arg(long, default_value_t = 1000)]
    texts: usize,
    /// Tokens of a text, of which the model writes half
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Share of texts that are filled in, for models that can
    #[arg(long, default_value_t = 0.6)]
    infill: f32,
    /// Share of texts whose tokens are drawn; the others take the likeliest
    #[arg(long, default_value_t = 0.3)]
    sampled: f32,
    /// Temperature of those
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// Seed of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to run on, as for `complete`
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
}

/// Opens the file at `path` behind its last whole line. Says how many there are: an interrupted write is undone.
fn open_behind(path: &Path) -> anyhow::Result<(File, usize)> {
    let file = File::options().create(true).read(true).write(true).truncate(false).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let (mut n_lines, mut n_bytes, mut line) = (0, 0, Vec::new());
    let mut reader = BufReader::new(&file);
    while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
        let value = serde_json::from_slice::<serde_json::Value>(&line);
        if !value.is_ok_and(|value| value["number"] == n_lines) {
            bail!("line {} of {} is not of `sateen train generate`", n_lines + 1, path.display());
        }
        n_lines += 1;
        n_bytes += line.len() as u64;
        line.clear();
    }
    file.set_len(n_bytes)?;
    file.seek(SeekFrom::Start(n_bytes))?;
    Ok((file, n_lines))
}

pub(super) fn run(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let GenerateArguments { data, out, texts, tokens, infill, sampled, temperature, seed, .. } = arguments;
    let corpus = Corpus::read(data)?;
    let (mut file, n_done) = open_behind(out)?;
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let of_model = EngineConfig::of(&installed);
    let device = arguments.device.clone().unwrap_or(of_model.device);
    let engine = Engine::start(EngineConfig { device, ..of_model }, |_| ())?;
    let (_, model) =
        engine.wait_until_ready().with_context(|| format!("cannot load {}", installed.path.display()))?;
    // A model that cannot fill in is told of nothing behind the cursor.
    let infill = if engine::PromptFormat::of(model.tokenizer()).can_infill() { *infill } else { 0.0 };
    let is_stopped = crate::terminal::interrupt()?;
    let bar = super::progress::steps_bar(*texts)?;
    bar.set_position(n_done as u64);
    let (mut n_tokens, started) = (0, std::time::Instant::now());
    for number in n_done..*texts {
        if is_stopped.load(Ordering::Acquire) {
            bar.finish_and_clear();
            println!("Stopped behind {number} of {texts} texts; the same command goes on from there");
            return Ok(());
        }
        let Some(prompt) = corpus.prompt(*seed, number, *tokens, infill) else { break };
        // Spread evenly over the numbers, so that an interrupted run has its share too.
        let is_drawn = (number as f32 * sampled).fract() + sampled >= 1.0;
        let temperature = if is_drawn { *temperature } else { 0.0 };
        // At the beginning of a short text there is nothing to go on from.
        let has_prompt = !prompt.before.is_empty() || !prompt.after.is_empty();
        let request = CompletionRequest {
            max_tokens: (tokens / 2).max(1),
            extent: Extent::Raw,
            sampling: SamplingParams { temperature, seed: *seed, ..SamplingParams::default() },
            ..CompletionRequest::new(&prompt.before, &prompt.after)
        };
        let completion = has_prompt.then(|| engine.complete(request, |_| ())).transpose()?;
        n_tokens += completion.as_ref().map_or(0, |completion| completion.n_tokens);
        let is_whole = |completion: &Completion| completion.stop_reason == StopReason::EndOfText;
        let written =
            completion.filter(|completion| completion.n_tokens >= MIN_TOKENS || is_whole(completion));
        let text = written.as_ref().map_or("", |completion| &completion.text);
        let mut line = prompt.line(text, written.as_ref().is_some_and(is_whole));
        line["number"] = number.into();
        line["temperature"] = temperature.into();
        // In one piece: what is cut short is written anew.
        file.write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("writing {}", out.display()))?;
        bar.set_message(format!(
            "{:.0} tokens/s",
            f64::from(n_tokens as u32) / started.elapsed().as_secs_f64()
        ));
        bar.set_position(number as u64 + 1);
    }
    bar.finish_and_clear();
    println!("Wrote {0}; `sateen train sat --data {0}` learns from it", out.display());
    Ok(())
}
