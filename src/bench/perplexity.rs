//! `sateen bench perplexity`

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use engine::{DeviceChoice, Engine, EngineConfig, ModelLibrary, likelihood_in_windows};
use indicatif::ProgressBar;
use serde::Serialize;

use super::Setting;

#[derive(Args)]
pub(crate) struct PerplexityArguments {
    /// Files of text, one behind the other
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Installed models; each is compared with the first
    #[arg(long = "model", value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// What they run on
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Tokens of a window: its second half is looked at, behind the first
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..=4096))]
    window: u16,
    /// Most bytes of the text
    #[arg(long, default_value_t = 65_536)]
    bytes: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PerplexityReport {
    setting: Setting,
    models: Vec<PerplexityResult>,
}

#[derive(Serialize)]
struct PerplexityResult {
    model: String,
    n_tokens: usize,
    perplexity: f64,
    /// Share of tokens that the model itself finds likeliest.
    likeliest_share: f64,
}

pub(crate) fn run(arguments: &PerplexityArguments) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for path in &arguments.files {
        bytes.extend(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    bytes.truncate(arguments.bytes);
    let text = String::from_utf8_lossy(&bytes);
    let window = usize::from(arguments.window);
    let mut report = PerplexityReport { setting: Setting::default(), models: Vec::new() };
    for name in &arguments.models {
        let installed = ModelLibrary::of_user()?.find_or_default(Some(name))?;
        let config =
            EngineConfig { learned: None, device: arguments.device.clone(), ..EngineConfig::of(&installed) };
        let engine = Engine::start(config, |_| ())?;
        let (loaded, model) = engine.wait_until_ready()?;
        report.setting = Setting::of(&loaded.device);
        let bar = ProgressBar::new_spinner();
        let likelihood = likelihood_in_windows(&model, &text, window, &mut |so_far| {
            bar.set_message(format!("{} tokens: perplexity {:.4}", so_far.n_tokens, so_far.perplexity()));
            bar.tick();
        })?;
        bar.finish_and_clear();
        let n_tokens = likelihood.n_tokens;
        ensure!(n_tokens > 0, "the text has less than a window of {window} tokens");
        let result = PerplexityResult {
            model: installed.id,
            n_tokens,
            perplexity: likelihood.perplexity(),
            likeliest_share: likelihood.n_likeliest as f64 / n_tokens as f64,
        };
        if !arguments.json {
            let first = report.models.first().unwrap_or(&result);
            println!(
                "{}: perplexity {:.4}, {:.4} of the first; {:.4} of {n_tokens} tokens are its likeliest",
                result.model,
                result.perplexity,
                result.perplexity / first.perplexity,
                result.likeliest_share
            );
        }
        report.models.push(result);
    }
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}
