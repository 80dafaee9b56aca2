//! sateen on the command line.

#![forbid(unsafe_code)]

mod bench;
mod clipboard;
mod complete;
mod convert;
mod models;
mod plots;
mod speculation;
mod terminal;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use engine::{EngineError, ErrorCode};

/// Offline code completion by speculative decoding with semantic adaptive tokens.
#[derive(Parser)]
#[command(name = "sateen", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Complete code at a place in a file, or after what standard input brings
    Complete(complete::CompleteArguments),
    /// Measure how fast this machine is
    Bench(bench::BenchArguments),
    /// Continue what was copied, in the window of the app: a command to bind to keys
    Clipboard,
    /// Install, add, list and remove models
    Models(models::ModelsArguments),
    /// Make a model file of a checkpoint as it is published
    Convert(convert::ConvertArguments),
    /// Teach a model adaptive tokens of its own
    Train(train::TrainArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Complete(arguments) => complete::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Clipboard => clipboard::run(),
        Command::Models(arguments) => models::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sateen: {}", terminal::printable(&format!("{error:#}")));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Whoever read our output has left; that is not an error of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// One exit code per kind of error. 2 is also clap's for arguments it cannot read.
fn exit_code(error: &anyhow::Error) -> u8 {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<EngineError>()).map(EngineError::code);
    match code {
        Some(ErrorCode::InvalidRequest) => 2,
        Some(ErrorCode::ModelMissing) => 3,
        Some(ErrorCode::ModelInvalid) => 4,
        Some(ErrorCode::DownloadFailed) => 5,
        Some(ErrorCode::NoSpace) => 6,
        Some(ErrorCode::Io | ErrorCode::Conflict) => 7,
        Some(ErrorCode::NoMemory) => 8,
        Some(ErrorCode::Busy) => 9,
        Some(ErrorCode::Internal) => 70,
        None => 1,
    }
}
