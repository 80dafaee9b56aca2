//! `sateen bench random-model`: a weight file of any shape, for measurements.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use engine::{Family, RandomModelConfig, TensorType, write_random_model};

#[derive(Args)]
pub(crate) struct RandomModelArguments {
    /// The file to write
    file: PathBuf,
    /// Type of the weights, as in `Q4_K`
    #[arg(long = "type", default_value = "Q4_K")]
    tensor_type: String,
    /// `llama` or `qwen2`
    #[arg(long, default_value = "llama")]
    family: String,
    /// The defaults are the shape of CodeLlama 7B
    #[arg(long, default_value_t = 32)]
    layers: usize,
    #[arg(long, default_value_t = 4096)]
    hidden: usize,
    #[arg(long, default_value_t = 32)]
    heads: usize,
    #[arg(long, default_value_t = 32)]
    kv_heads: usize,
    #[arg(long, default_value_t = 11_008)]
    feed_forward: usize,
    #[arg(long, default_value_t = 32_016)]
    vocabulary: usize,
}

pub(crate) fn run(arguments: &RandomModelArguments) -> anyhow::Result<()> {
    let tensor_type = tensor_type(&arguments.tensor_type)?;
    let Some(family) = Family::named(&arguments.family) else {
        let known = Family::ALL.map(Family::name).join(", ");
        bail!("no family `{}`; there are {known}", arguments.family);
    };
    let config = RandomModelConfig {
        family,
        n_layers: arguments.layers,
        hidden: arguments.hidden,
        n_heads: arguments.heads,
        n_kv_heads: arguments.kv_heads,
        feed_forward: arguments.feed_forward,
        vocabulary: arguments.vocabulary,
        ..RandomModelConfig::llama_7b(tensor_type)
    };
    write_random_model(&config, &arguments.file)
        .with_context(|| format!("cannot write {}", arguments.file.display()))
}

/// The type of that name, as in `Q4_K`.
pub(super) fn tensor_type(wanted: &str) -> anyhow::Result<TensorType> {
    let name = |tensor_type: &TensorType| format!("{tensor_type:?}");
    let found = TensorType::ALL.into_iter().find(|tensor_type| name(tensor_type) == wanted.to_uppercase());
    let known = || TensorType::ALL.iter().map(name).collect::<Vec<_>>().join(", ");
    found.with_context(|| format!("no type `{wanted}`; there are {}", known()))
}
