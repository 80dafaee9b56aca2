//! `sateen bench cost`: what a forward pass costs, against the number of its rows.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use engine::{AdapterChoice, CostTable, DeviceChoice, Engine, EngineConfig, ModelLibrary, measure_cost};
use serde::{Deserialize, Serialize};

use super::Setting;

#[derive(Args)]
pub(crate) struct CostArguments {
    /// Which installed model; the default one without it
    #[arg(long)]
    model: Option<String>,
    /// A SAT adapter instead of the model's own
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What to run on: cpu, or a GPU like cuda:0 or vulkan:0
    #[arg(long, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// How often each number of rows is measured
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct CostReport {
    pub(crate) setting: Setting,
    pub(crate) model: String,
    pub(crate) file_bytes: u64,
    pub(crate) cost: CostTable,
}

pub(crate) fn run(arguments: &CostArguments) -> anyhow::Result<()> {
    let CostArguments { model, adapter, device, repetitions, json } = arguments;
    let installed = ModelLibrary::of_user()?.find_or_default(model.as_deref())?;
    let own = EngineConfig::of(&installed);
    let adapter = adapter.clone().map_or(own.adapter.clone(), AdapterChoice::File);
    let config = EngineConfig { learned: None, device: device.clone(), adapter, ..own };
    let engine = Engine::start(config, |_| ())?;
    let (loaded, model) = engine.wait_until_ready()?;
    if let Some(note) = loaded.device_note {
        bail!("{note}");
    }
    let table = measure_cost(&model, usize::from(*repetitions))?;
    if *json {
        println!(
            "{}",
            serde_json::json!(CostReport {
                setting: Setting::of(&loaded.device),
                model: installed.id,
                file_bytes: installed.size_bytes,
                cost: table,
            })
        );
        return Ok(());
    }
    let CostTable { passes, groups, prefills, roofline } = table;
    println!("{} on {}, logits for every row", loaded.name, loaded.device);
    println!("{:>6} {:>10} {:>10} {:>8}", "rows", "median ms", "fastest ms", "T(n)/T(1)");
    for pass in &passes {
        let ratio = pass.median_ms / passes[0].median_ms;
        println!("{:>6} {:>10.2} {:>10.2} {ratio:>8.2}", pass.n_rows, pass.median_ms, pass.fastest_ms);
    }
    for (n_groups, group) in (1..).zip(&groups) {
        let ratio = group.median_ms / passes[0].median_ms;
        let (n_rows, median_ms, fastest_ms) = (group.n_rows, group.median_ms, group.fastest_ms);
        println!(
            "{n_rows:>6} {median_ms:>10.2} {fastest_ms:>10.2} {ratio:>8.2}  {n_groups} tokens, each with an adaptive group"
        );
    }
    for prefill in prefills {
        println!("prefill of {} tokens: {:.0} tokens/s", prefill.n_tokens, prefill.tokens_per_s);
    }
    println!(
        "one row reads {:.0} MB at {:.0} % of the {:.1} GB/s that the threads read at best",
        roofline.pass_bytes as f64 / 1e6,
        roofline.bandwidth_share * 100.0,
        roofline.read_bytes_per_s / 1e9
    );
    println!(
        "{} rows reach {:.0} % of the {:.0} billion products/s that the kernel does on cached weights",
        passes.last().map_or(0, |pass| pass.n_rows),
        roofline.products_share * 100.0,
        roofline.products_per_s / 1e9
    );
    if let Some(peak) = roofline.peak_bytes {
        let ratio = peak as f64 / installed.size_bytes as f64;
        println!("loading took {:.0} MB of memory at most, {ratio:.2} of the file", peak as f64 / 1e6);
    }
    Ok(())
}
