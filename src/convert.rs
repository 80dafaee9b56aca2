//! `sateen convert`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use ::convert::{ConvertConfig, ConvertReport, Mix, NativeSat, convert};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Args)]
pub(crate) struct ConvertArguments {
    /// The folder of a published checkpoint: config.json, safetensors, tokenizer
    folder: PathBuf,
    /// The GGUF file to write
    out: PathBuf,
    /// Types of the weights: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K_M", value_parser = mix)]
    mix: Mix,
    /// The id of the semantic adaptive token that the checkpoint was trained with (32011 for CodeLlama-SDSAT)
    #[arg(long, value_name = "ID", requires = "sat_slots")]
    sat_token: Option<u32>,
    /// How many of it make a group (5 for L5, 7 for L7)
    #[arg(long, value_name = "N", requires = "sat_token")]
    sat_slots: Option<usize>,
}

fn mix(name: &str) -> Result<Mix, String> {
    Mix::named(name).ok_or_else(|| {
        let known = Mix::ALL.map(|(_, name)| name).join(", ");
        format!("there are {known}")
    })
}

pub(crate) fn run(arguments: &ConvertArguments) -> anyhow::Result<()> {
    let ConvertArguments { folder, out, mix, sat_token, sat_slots } = arguments;
    let is_interrupted = crate::terminal::interrupt()?;
    let sat = sat_token.zip(*sat_slots).map(|(token, n_slots)| NativeSat { token, n_slots });
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let config = ConvertConfig { folder: folder.clone(), out: out.clone(), mix: *mix, sat, n_threads };
    let bar = ProgressBar::new(1000);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta:>4} left  {msg}");
    bar.set_style(style.context("the progress bar")?);
    let converted = convert(&config, &mut |share, tensor| {
        bar.set_position((share * 1000.0) as u64);
        bar.set_message(tensor.to_owned());
        match is_interrupted.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let ConvertReport { file_bytes, n_tensors, n_tokens } = converted?;
    let (size, out) = (file_bytes as f64 / 1e9, out.display());
    println!("{out}: {size:.2} GB, {n_tensors} tensors, {n_tokens} tokens");
    println!("`sateen models add {out}` makes it a model of yours");
    Ok(())
}
