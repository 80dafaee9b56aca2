//! `sateen train`

mod curves;
mod generate;
mod native;
mod progress;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use engine::ModelLibrary;
use progress::Progress;
use train::{
    Activations, AdapterPart, AdapterShape, Anchors, Base, Corpus, LossConfig, SampleConfig, SlotAcceptance,
    TrainConfig, TrainDevice, TrainedAdapter, evaluate_by_language,
};

#[derive(Args)]
pub(crate) struct TrainArguments {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Subcommand)]
enum TrainCommand {
    /// Train a SAT adapter: the model stays what it is, bit for bit, and learns to draft
    Sat(SatArguments),
    /// Say how often the slots of an adapter guess what the model would say
    Eval(EvalArguments),
    /// Have a model write texts to learn from: what its drafts will be compared with
    Generate(generate::GenerateArguments),
    /// Train the model itself, with a token of its own vocabulary as the adaptive one: it becomes another model
    Native(native::NativeArguments),
}

#[derive(Args)]
struct TextArguments {
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// A folder of source code, or JSON lines with a `text` each; may be given several times
    #[arg(long, value_name = "FOLDER_OR_JSONL", required = true)]
    data: Vec<PathBuf>,
    /// Tokens of a text
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Places in a text that a group of adaptive tokens stands behind
    #[arg(long, default_value_t = 64)]
    anchors: usize,
    /// Share of texts that are filled in, for models that can
    #[arg(long, default_value_t = 0.6)]
    infill: f32,
    /// Share of these of which a line or a few are missing; of the others it is half of the tokens
    #[arg(long, default_value_t = 0.5)]
    short: f32,
    /// Share of texts that the model wrote itself, where the data have such and others
    #[arg(long, default_value_t = 0.5)]
    written: f32,
    /// Texts that acceptance is measured on
    #[arg(long, default_value_t = 16)]
    evaluated: usize,
    /// `cpu`, or `cuda:0` in builds with the feature `cuda`
    #[arg(long, default_value = "cpu")]
    device: TrainDevice,
}

#[derive(Args)]
struct SatArguments {
    #[command(flatten)]
    text: TextArguments,
    /// The adapter to write; a checkpoint stands beside it until the end
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Steps, a text each, or several short ones
    #[arg(long, default_value_t = 1000)]
    steps: usize,
    /// Adaptive tokens in a group
    #[arg(long, default_value_t = 4)]
    slots: usize,
    /// Rank of the deltas; 0 for none, so that embeddings are all that learns
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Rank of a Markov head, by which a draft depends on the token before it; 0 for none
    #[arg(long, default_value_t = 0)]
    markov_rank: usize,
    /// What learns
    #[arg(long, value_enum, default_value_t = Part::Whole)]
    learns: Part,
    /// Go on from this adapter, with its slots and ranks; it may be given a Markov head
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Highest learning rate
    #[arg(long, default_value_t = 1e-3)]
    rate: f64,
    /// Weight of the divergence from what the model itself would say
    #[arg(long, default_value_t = 0.9)]
    distillation: f64,
    /// Weight of the surprise at what stands in the text
    #[arg(long, default_value_t = 0.1)]
    cross_entropy: f64,
    /// Weight of a slot against the one before it
    #[arg(long, default_value_t = 0.85)]
    slot_decay: f64,
    /// Count a slot only where those before it have what the model says among so many of their likeliest; 0 counts all
    #[arg(long, default_value_t = 0)]
    aligned_among: usize,
    /// Share of groups that are told their first tokens, at the beginning; it falls to none
    #[arg(long, default_value_t = 0.0)]
    glancing: f32,
    /// Share of groups that keep their next slot
    #[arg(long, default_value_t = 1.0)]
    keep_rate: f32,
    /// Compute what layers make of adaptive tokens a second time instead of keeping it: less memory, longer steps, the same
    /// adapter. Chosen by itself where memory would not suffice, except on a GPU
    #[arg(long)]
    recompute: bool,
    /// Seed of all draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps between two measurements of acceptance
    #[arg(long, default_value_t = 100)]
    evaluate_every: usize,
    /// Steps between two checkpoints
    #[arg(long, default_value_t = 20)]
    save_every: usize,
    /// Append what happens to this file, a JSON object a line, and draw it beside it, as SVG
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

/// What of an adapter learns.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// All of it
    Whole,
    /// Its Markov head, which takes half the time
    Markov,
}

#[derive(Args)]
struct EvalArguments {
    #[command(flatten)]
    text: TextArguments,
    /// The adapter
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &TrainArguments) -> anyhow::Result<()> {
    match &arguments.command {
        TrainCommand::Sat(arguments) => sat(arguments),
        TrainCommand::Eval(arguments) => eval(arguments),
        TrainCommand::Generate(arguments) => generate::run(arguments),
        TrainCommand::Native(arguments) => native::run(arguments),
    }
}

fn base_and_corpus(arguments: &TextArguments) -> anyhow::Result<(Base, Corpus)> {
    let corpus = Corpus::read(&arguments.data)?;
    let installed = ModelLibrary::of_user()?.find_or_default(arguments.model.as_deref())?;
    let base = Base::load(&installed.path, arguments.tokens + 64, arguments.device)
        .with_context(|| format!("cannot train {}", installed.id))?;
    Ok((base, corpus))
}

fn in_words(acceptance: &SlotAcceptance) -> String {
    let shares: Vec<String> = acceptance.of_model.iter().map(|share| format!("{share:.3}")).collect();
    format!(
        "accepted by slot {}; tokens per pass {:.2} in two passes, {:.2} fused",
        shares.join(" "),
        acceptance.tokens_per_pass_two_pass(),
        acceptance.tokens_per_pass_fused()
    )
}

fn say_count(corpus: &Corpus) {
    let count = corpus.count();
    let languages: Vec<String> = count.by_language.iter().map(|(name, n)| format!("{n} {name}")).collect();
    eprintln!(
        "{} of {:.1} MB; {} near-duplicates and {} others left out",
        languages.join(", "),
        count.n_bytes as f64 / 1e6,
        count.n_duplicates,
        count.n_skipped
    );
}

fn sat(arguments: &SatArguments) -> anyhow::Result<()> {
    let SatArguments { text, out, steps, .. } = arguments;
    let (mut base, corpus) = base_and_corpus(text)?;
    say_count(&corpus);
    if arguments.recompute {
        base = base.with_activations(Activations::Recomputed);
    } else if base.activations() == Activations::Recomputed {
        eprintln!("There is little memory: activations are computed a second time, which takes longer");
    }
    let defaults = TrainConfig::new(*steps);
    let config = TrainConfig {
        shape: AdapterShape {
            n_slots: arguments.slots,
            rank: arguments.rank,
            markov_rank: arguments.markov_rank,
        },
        learns: match arguments.learns {
            Part::Whole => AdapterPart::Whole,
            Part::Markov => AdapterPart::MarkovHead,
        },
        init: arguments.init.clone(),
        max_tokens: text.tokens,
        anchors: Anchors { n: text.anchors, keep_rate: arguments.keep_rate, glancing: arguments.glancing },
        infill: text.infill,
        short: text.short,
        written: text.written,
        loss: LossConfig {
            distillation: arguments.distillation,
            cross_entropy: arguments.cross_entropy,
            slot_decay: arguments.slot_decay,
            aligned_among: arguments.aligned_among,
        },
        optimizer: train::AdamWConfig { learning_rate: arguments.rate, ..defaults.optimizer },
        seed: arguments.seed,
        evaluate_every: arguments.evaluate_every,
        n_evaluated: text.evaluated,
        save_every: arguments.save_every,
        ..defaults
    };
    let mut progress = Progress::new(*steps, arguments.metrics.as_deref())?;
    let outcome = train::train(&base, &corpus, &config, out, &mut |event| progress.show(&event))?;
    progress.finish(outcome, &format!("Wrote {0}; `sateen models adapter add {0}` uses it", out.display()));
    Ok(())
}

fn eval(arguments: &EvalArguments) -> anyhow::Result<()> {
    let text = &arguments.text;
    let (base, corpus) = base_and_corpus(text)?;
    let adapter = TrainedAdapter::load(&base, &arguments.adapter)?;
    let n_slots = adapter.shape().n_slots;
    let of_samples = SampleConfig {
        max_tokens: text.tokens,
        infill: text.infill,
        short: text.short,
        written: text.written,
        n_slots,
    };
    let samples = corpus.held_out(&base, of_samples, text.evaluated)?;
    let (acceptance, by_language) = evaluate_by_language(&base, &adapter, &samples, text.anchors)?;
    match arguments.json {
        true => {
            let mut value = serde_json::to_value(&acceptance)?;
            value["by_language"] = serde_json::to_value(&by_language)?;
            println!("{value}");
        }
        false => {
            println!("{} groups: {}", acceptance.n_groups, in_words(&acceptance));
            for (language, acceptance) in &by_language {
                println!("{language}, {} groups: {}", acceptance.n_groups, in_words(acceptance));
            }
        }
    }
    Ok(())
}
