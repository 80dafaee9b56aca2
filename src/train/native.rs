//! `sateen train native`

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use engine::ModelLibrary;
use train::{Anchors, Corpus, LossConfig, NativeConfig, NativeModel, NativeSat, train_native};

use super::progress::Progress;
use super::{TextArguments, say_count};

#[derive(Args)]
pub(super) struct NativeArguments {
    #[command(flatten)]
    text: TextArguments,
    /// The GGUF file to write, in half precision
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The token of the vocabulary that becomes adaptive: a special one that no text needs
    #[arg(long, value_name = "ID")]
    sat_token: u32,
    /// Adaptive tokens in a group
    #[arg(long, default_value_t = 5)]
    slots: usize,
    /// Steps of the first stage, a text each: the embedding of the token learns, nothing else
    #[arg(long, default_value_t = 500)]
    token_steps: usize,
    /// Steps of the second stage: all weights learn, what tokens say beside what slots guess
    #[arg(long, default_value_t = 2000)]
    joint_steps: usize,
    /// Highest learning rate of the first stage
    #[arg(long, default_value_t = 1e-3)]
    token_rate: f64,
    /// Highest learning rate of the second stage
    #[arg(long, default_value_t = 1e-5)]
    joint_rate: f64,
    /// Weight of what slots learn against what tokens learn
    #[arg(long, default_value_t = 1.0)]
    slot_weight: f64,
    /// Seed of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two measurements of acceptance
    #[arg(long, default_value_t = 100)]
    evaluate_every: usize,
    /// Steps between two checkpoints, beside the file to write: of all weights, each takes twelve bytes a parameter
    #[arg(long, default_value_t = 250)]
    save_every: usize,
    /// Append what happens to this file, a JSON object a line, and draw it beside it, as SVG
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub(super) fn run(arguments: &NativeArguments) -> anyhow::Result<()> {
    let NativeArguments { text, out, .. } = arguments;
    let corpus = Corpus::read(&text.data)?;
    say_count(&corpus);
    let installed = ModelLibrary::of_user()?.find_or_default(text.model.as_deref())?;
    let sat = NativeSat::shared(arguments.sat_token, arguments.slots);
    let model = NativeModel::load(&installed.path, text.tokens + 64, text.device, sat)
        .with_context(|| format!("cannot train {}", installed.id))?;
    let config = NativeConfig {
        max_tokens: text.tokens,
        anchors: Anchors { n: text.anchors, keep_rate: 1.0, glancing: 0.0 },
        infill: text.infill,
        short: text.short,
        written: text.written,
        loss: LossConfig::default(),
        slot_weight: arguments.slot_weight,
        n_token_steps: arguments.token_steps,
        token_rate: arguments.token_rate,
        n_joint_steps: arguments.joint_steps,
        joint_rate: arguments.joint_rate,
        seed: arguments.seed,
        evaluate_every: arguments.evaluate_every,
        n_evaluated: text.evaluated,
        save_every: arguments.save_every,
    };
    let n_steps = config.n_token_steps + config.n_joint_steps;
    let mut progress = Progress::new(n_steps, arguments.metrics.as_deref())?;
    let outcome = train_native(&model, &corpus, &config, out, &mut |event| progress.show(&event))?;
    progress.finish(
        outcome,
        &format!("Wrote {0}; `sateen models add {0}` makes it a model of yours", out.display()),
    );
    Ok(())
}
