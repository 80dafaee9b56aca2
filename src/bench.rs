//! `sateen bench`

mod cost;
mod decode;
mod gpu_check;
mod page;
mod peers;
mod perplexity;
mod plots;
mod prompts;
mod quality;
mod random_model;
mod soak;
mod typing;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// When and where a measurement was made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Setting {
    /// Day, in UTC.
    date: String,
    /// The processor.
    machine: String,
    /// What the model ran on.
    device: String,
    /// How it was called, without the program's folder, and what was overridden.
    command: String,
}

impl Setting {
    fn of(device: &str) -> Self {
        let date = time::OffsetDateTime::now_utc().date().to_string();
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = match name {
            Some((_, name)) => format!("{}, {cores} cores", name.trim()),
            None => format!("{}, {cores} cores", std::env::consts::ARCH),
        };
        // File names only: where things lie on this machine is nobody's business.
        let short = |word: String| match word.rsplit_once('/') {
            Some((_, name)) if !word.starts_with('-') => name.to_owned(),
            _ => word,
        };
        let overrides = ["SATEEN_KERNELS", "SATEEN_THREADS"]
            .into_iter()
            .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
        let words: Vec<String> = overrides.chain(std::env::args().map(short)).collect();
        Self { date, machine, device: device.to_owned(), command: words.join(" ") }
    }
}

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure what a forward pass costs, against the number of its rows
    Cost(cost::CostArguments),
    /// See whether a GPU decodes exactly, and what a 7B model would cost on it
    GpuCheck(gpu_check::GpuCheckArguments),
    /// Compare the ways of decoding on the same prompts
    Decode(decode::DecodeArguments),
    /// Compare what is completed with what stood there, and with llama.cpp's
    Quality(quality::QualityArguments),
    /// How likely models find a text: what their quantization costs
    Perplexity(perplexity::PerplexityArguments),
    /// Type a file anew, and measure what a person would feel
    Typing(typing::TypingArguments),
    /// Compare forward passes with llama.cpp and candle on the same file
    Peers(peers::PeersArguments),
    /// Work for several clients for a long time, and see whether anything leaks, fails or differs
    Soak(soak::SoakArguments),
    /// Write a page of results from the JSON that the other measurements print
    Page(page::PageArguments),
    /// Write a weight file with random weights, to measure shapes that are not at hand
    RandomModel(random_model::RandomModelArguments),
}

pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    match &arguments.command {
        BenchCommand::Cost(arguments) => cost::run(arguments),
        BenchCommand::GpuCheck(arguments) => gpu_check::run(arguments),
        BenchCommand::Decode(arguments) => decode::run(arguments),
        BenchCommand::Quality(arguments) => quality::run(arguments),
        BenchCommand::Perplexity(arguments) => perplexity::run(arguments),
        BenchCommand::Typing(arguments) => typing::run(arguments),
        BenchCommand::Peers(arguments) => peers::run(arguments),
        BenchCommand::Soak(arguments) => soak::run(arguments),
        BenchCommand::Page(arguments) => page::run(arguments),
        BenchCommand::RandomModel(arguments) => random_model::run(arguments),
    }
}
