//! Feeds what strangers may send to what reads it: changed files and texts, by the million.
//!
//! A target is a function of bytes that must not panic, must not take long, and must not allocate out of proportion.
//! Inputs are seeds with changes: bits, lengths, pieces of other seeds. `make fuzz MINUTES=n` runs all targets, a test a
//! slice of each; inputs that were found to break something lie in `corpus` and are run with every test.

#![forbid(unsafe_code)]

mod mutation;
pub mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutation::mutate;
pub use targets::{TARGETS, Target};

/// Longest that one input may take.
const MAX_TIME: Duration = Duration::from_secs(2);
/// Changes to a seed at most.
const MAX_MUTATIONS: usize = 6;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Inputs at most.
    pub n_executions: u64,
    /// Time at most.
    pub time: Duration,
}

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Inputs that were run.
    pub n_executions: u64,
    /// Inputs that the target took for sound.
    pub n_accepted: u64,
    /// The slowest input.
    pub slowest: Duration,
    /// Inputs that broke something, and what they broke.
    pub failures: Vec<(Vec<u8>, String)>,
}

/// Inputs of `target` that broke something once.
pub fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("SATEEN_CHECKOUT")).join("fuzz/corpus").join(target.name);
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_) => return Vec::new(),
    };
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Runs one input: whether the target took it for sound, and how long that took.
///
/// # Errors
/// What it broke.
pub fn execute(target: &Target, input: &[u8]) -> Result<(bool, Duration), String> {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let time = started.elapsed();
    let is_sound = result.map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panicked: {}", message.unwrap_or("no words"))
    })?;
    match time <= MAX_TIME {
        true => Ok((is_sound, time)),
        false => Err(format!("took {time:?}")),
    }
}

/// Runs `target` on changed seeds until `limit`.
pub fn run(target: &Target, limit: Limit, seed: u64) -> Report {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seeds = (target.seeds)();
    seeds.extend(corpus(target));
    let mut report = Report::default();
    let started = Instant::now();
    let mut input = Vec::new();
    while report.n_executions < limit.n_executions && started.elapsed() < limit.time {
        input.clone_from(&seeds[random.usize(..seeds.len())]);
        // Some seeds go as they are.
        for _ in 0..random.usize(0..=MAX_MUTATIONS) {
            mutate(&mut input, &seeds, &mut random, target.max_bytes);
        }
        report.n_executions += 1;
        match execute(target, &input) {
            Ok((is_sound, time)) => {
                report.n_accepted += u64::from(is_sound);
                report.slowest = report.slowest.max(time);
            }
            Err(what) => {
                report.failures.push((input.clone(), what));
                if report.failures.len() >= 10 {
                    break;
                }
            }
        }
    }
    report
}
