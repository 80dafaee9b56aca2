//! `sateen convert`

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use ::convert::{ConvertConfig, ConvertReport, MergeConfig, Mix, NativeSat, convert, merge_sat};
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Args)]
pub(crate) struct ConvertArguments {
    /// The folder of a published checkpoint: config.json, safetensors, tokenizer; with `--merge-sat` a GGUF file
    source: PathBuf,
    /// The GGUF file to write
    out: PathBuf,
    /// Types of the weights: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M or Q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K_M", value_parser = mix)]
    mix: Mix,
    /// The id of the semantic adaptive token that the checkpoint was trained with (32011 for CodeLlama-SDSAT), or the first of
    /// those that are to be
    #[arg(long, value_name = "ID", requires = "slots")]
    sat_token: Option<u32>,
    /// How many of it make a group (5 for L5, 7 for L7)
    #[arg(long, value_name = "N", requires = "sat_token", group = "slots")]
    sat_slots: Option<usize>,
    /// Give ids of the model's vocabulary, from `--sat-token` on, the embeddings of this adapter of rank 0; all else stays as it is
    #[arg(long, value_name = "ADAPTER", requires = "sat_token", conflicts_with = "mix", group = "slots")]
    merge_sat: Option<PathBuf>,
}

fn mix(name: &str) -> Result<Mix, String> {
    Mix::named(name).ok_or_else(|| {
        let known = Mix::ALL.map(|(_, name)| name).join(", ");
        format!("there are {known}")
    })
}

pub(crate) fn run(arguments: &ConvertArguments) -> anyhow::Result<()> {
    let ConvertArguments { source, out, mix, sat_token, sat_slots, merge_sat: adapter } = arguments;
    let is_interrupted = crate::terminal::interrupt()?;
    let bar = ProgressBar::new(1000);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {eta:>4} left  {msg}");
    bar.set_style(style.context("the progress bar")?);
    let mut progress = |share: f32, tensor: &str| {
        bar.set_position((share * 1000.0) as u64);
        bar.set_message(tensor.to_owned());
        match is_interrupted.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let (source, out) = (source.clone(), out.clone());
    let converted = if let (Some(adapter), &Some(token)) = (adapter, sat_token) {
        let config = MergeConfig { model: source, adapter: adapter.clone(), token, out: out.clone() };
        merge_sat(&config, &mut progress)
    } else {
        let sat = sat_token.zip(*sat_slots).map(|(token, n_slots)| NativeSat::shared(token, n_slots));
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let config = ConvertConfig { folder: source, out: out.clone(), mix: *mix, sat, n_threads };
        convert(&config, &mut progress)
    };
    bar.finish_and_clear();
    let ConvertReport { file_bytes, n_tensors, n_tokens } = converted?;
    let (size, out) = (file_bytes as f64 / 1e9, out.display());
    println!("{out}: {size:.2} GB, {n_tensors} tensors, {n_tokens} tokens");
    println!("`sateen models add {out}` makes it a model of yours");
    Ok(())
}
