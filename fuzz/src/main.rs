//! `sateen-fuzz`: runs the targets for a time, and keeps what breaks them.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use fuzz::{Limit, Report, TARGETS, Target, targets};

/// Feeds changed files and texts to what reads them.
#[derive(Parser)]
#[command(name = "sateen-fuzz")]
struct Arguments {
    /// Which targets; all of them without a name
    names: Vec<String>,
    /// Minutes for each target at most
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Inputs for each target at most
    #[arg(long, default_value_t = u64::MAX)]
    executions: u64,
    /// Where to begin; the time of day without it
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let named = |name: &String| targets::named(name).with_context(|| format!("no target `{name}`"));
    let chosen: Vec<Target> = match arguments.names.is_empty() {
        true => TARGETS.to_vec(),
        false => arguments.names.iter().map(named).collect::<anyhow::Result<_>>()?,
    };
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    // What breaks is told below, once.
    std::panic::set_hook(Box::new(|_| ()));
    let mut n_failures = 0;
    for target in chosen {
        let report = run_on_all_cores(&target, &arguments, seed);
        n_failures += report.failures.len();
        let folder = std::env::temp_dir().join("sateen-fuzz").join(target.name);
        for (input, what) in &report.failures {
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(format!("{:016x}", fastrand::u64(..)));
            std::fs::write(&path, input).with_context(|| format!("cannot write {}", path.display()))?;
            println!("  {what}\n  {}", path.display());
        }
    }
    ensure!(n_failures == 0, "{n_failures} inputs broke something; they belong into fuzz/corpus, with a fix");
    Ok(())
}

fn run_on_all_cores(target: &Target, arguments: &Arguments, seed: u64) -> Report {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let limit = Limit {
        n_executions: arguments.executions.div_ceil(n_threads),
        time: Duration::from_secs_f64(arguments.minutes.clamp(0.0, 1e6) * 60.0),
    };
    let started = Instant::now();
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let run = |idx| scope.spawn(move || fuzz::run(target, limit, seed.wrapping_add(idx)));
        let running: Vec<_> = (0..n_threads).map(run).collect();
        running.into_iter().map(|thread| thread.join().expect("targets' panics are caught")).collect()
    });
    let mut all = Report::default();
    for report in reports {
        all.n_executions += report.n_executions;
        all.n_accepted += report.n_accepted;
        all.slowest = all.slowest.max(report.slowest);
        all.failures.extend(report.failures);
    }
    println!(
        "{:18} {:>11} executions in {:>6.0} s, {:>5.1} % sound, slowest {:>7.1} ms, {} failures",
        target.name,
        all.n_executions,
        started.elapsed().as_secs_f64(),
        100.0 * all.n_accepted as f64 / all.n_executions.max(1) as f64,
        all.slowest.as_secs_f64() * 1000.0,
        all.failures.len(),
    );
    all
}
