//! `sateen bench`

mod cost;
mod decode;
mod peers;
mod plots;
mod prompts;
mod random_model;

use clap::{Args, Subcommand};

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure what a forward pass costs, against the number of its rows
    Cost(cost::CostArguments),
    /// Compare the ways of decoding on the same prompts
    Decode(decode::DecodeArguments),
    /// Compare forward passes with llama.cpp and candle on the same file
    Peers(peers::PeersArguments),
    /// Write a weight file with random weights, to measure shapes that are not at hand
    RandomModel(random_model::RandomModelArguments),
}

pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    match &arguments.command {
        BenchCommand::Cost(arguments) => cost::run(arguments),
        BenchCommand::Decode(arguments) => decode::run(arguments),
        BenchCommand::Peers(arguments) => peers::run(arguments),
        BenchCommand::RandomModel(arguments) => random_model::run(arguments),
    }
}
