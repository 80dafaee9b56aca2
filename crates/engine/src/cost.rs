//! What a forward pass costs, against the number of its rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{Model, ModelError, Sequence};
use serde::{Deserialize, Serialize};
use speculate::{PassCosts, RowPlan, Target};
use ts_rs::TS;

use crate::EngineError;

/// Numbers of rows that are measured.
const ROW_COUNTS: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
/// Adaptive groups that are measured, from one to this many, one behind each token.
const MAX_GROUPS: usize = 3;
/// Tokens of the measured prefills.
const PREFILL_LENGTHS: [usize; 3] = [128, 512, 2048];

/// The cost of one kind of pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct PassCost {
    /// Rows of the pass, each with its logits.
    pub n_rows: usize,
    /// Median over the repetitions, in milliseconds.
    pub median_ms: f64,
    /// Fastest of the repetitions, in milliseconds.
    pub fastest_ms: f64,
}

/// The cost of reading a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefillCost {
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Tokens per second.
    pub tokens_per_s: f64,
}

/// What the machine could do at best, beside what it did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Bytes per second that the threads read together.
    pub read_bytes_per_s: f64,
    /// Multiply-adds of bytes per second, on weights in the caches.
    pub products_per_s: f64,
    /// Bytes of weights that a pass reads.
    pub pass_bytes: usize,
    /// Share of the read bandwidth that a pass over one row reaches.
    pub bandwidth_share: f64,
    /// Share of the products per second that a pass over the most rows reaches.
    pub products_share: f64,
    /// Most memory that the process has held, in bytes; `None` where the system does not say.
    pub peak_bytes: Option<u64>,
}

/// Most memory that this process has held, in bytes.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostTable {
    /// Passes, by number of rows.
    pub passes: Vec<PassCost>,
    /// Passes over one token and groups of adaptive rows, by number of groups.
    pub groups: Vec<PassCost>,
    /// Prefills, by length.
    pub prefills: Vec<PrefillCost>,
    /// The limits of the machine.
    pub roofline: Roofline,
}

/// Measures forward passes of `model`, `n_repetitions` each. The kinds take turns, so that a
/// disturbance of the machine meets all of them alike.
///
/// # Errors
/// Those of the model.
pub fn measure_cost(model: &Arc<Model>, n_repetitions: usize) -> Result<CostTable, EngineError> {
    // Before the buffers of the measurements, which are none of the model's.
    let peak_bytes = peak_bytes();
    let n_groups = if model.n_adaptive_tokens() > 0 { MAX_GROUPS } else { 0 };
    let plain = ROW_COUNTS.into_iter().map(|n_rows| pass(model, PassTimer::N_COMMITTED, n_rows, 0));
    let plans: Vec<RowPlan> =
        plain.chain((1..=n_groups).map(|n| pass(model, PassTimer::N_COMMITTED, n, n))).collect();
    let mut timer = PassTimer::new(model)?;
    let mut times = vec![Vec::new(); plans.len()];
    // One round more than is counted, to warm up.
    for repetition in 0..=n_repetitions {
        for (plan, times) in plans.iter().zip(&mut times) {
            let ms = timer.time(plan)?;
            times.extend((repetition > 0).then_some(ms));
        }
    }
    let cost = |(plan, mut times): (&RowPlan, Vec<f64>)| {
        times.sort_by(f64::total_cmp);
        PassCost { n_rows: plan.rows().len(), median_ms: times[times.len() / 2], fastest_ms: times[0] }
    };
    let mut passes: Vec<PassCost> = plans.iter().zip(times).map(cost).collect();
    let groups = passes.split_off(ROW_COUNTS.len());

    let mut prefills = Vec::new();
    for n_tokens in PREFILL_LENGTHS.into_iter().filter(|&n| n <= model.context_length()) {
        let ms = PassTimer::prefill(model, n_tokens)?;
        prefills.push(PrefillCost { n_tokens, tokens_per_s: n_tokens as f64 * 1000.0 / ms });
    }
    let (read_bytes_per_s, products_per_s) = model.roofline()?;
    let pass_bytes = model.pass_bytes();
    let seconds = |pass: &PassCost| pass.fastest_ms / 1000.0;
    let n_products = |pass: &PassCost| pass.n_rows as f64 * model.n_products_per_row() as f64;
    let roofline = Roofline {
        read_bytes_per_s,
        products_per_s,
        pass_bytes,
        bandwidth_share: passes
            .first()
            .map_or(0.0, |pass| pass_bytes as f64 / seconds(pass) / read_bytes_per_s),
        products_share: passes.last().map_or(0.0, |pass| n_products(pass) / seconds(pass) / products_per_s),
        peak_bytes,
    };
    Ok(CostTable { passes, groups, prefills, roofline })
}

/// Numbers of rows that the width of passes is chosen by.
const POLICY_ROW_COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 24, 32];
/// Wider ones, up to the widest pass that a router makes, which are measured where rows are cheap.
const WIDE_ROW_COUNTS: [usize; 2] = [64, 112];
/// Rows are cheap where as many as the last of [`POLICY_ROW_COUNTS`] cost less than so many passes over one.
const CHEAP_PASSES: f64 = 4.0;
/// Rounds of that measurement, the first of which only warms up.
const POLICY_ROUNDS: usize = 3;
/// Time after which no further round begins: a large model is loaded slowly enough.
const POLICY_TIME: Duration = Duration::from_millis(1500);

/// Kinds of passes that are measured however long they take.
const POLICY_LEAST: usize = 4;
/// Committed rows in front of those passes.
const POLICY_COMMITTED: usize = 32;

/// Measures what the width of passes is chosen by: some seconds at most, and on a model that is slow here fewer
/// numbers of rows, once each.
///
/// # Errors
/// Those of the model; [`ModelError::Cancelled`] when `is_cancelled` says so between two passes.
pub fn measure_pass_costs(
    model: &Arc<Model>,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<PassCosts, EngineError> {
    let started = Instant::now();
    let mut timer = PassTimer::behind(model, POLICY_COMMITTED)?;
    let plain = |n_rows| pass(model, POLICY_COMMITTED, n_rows, 0);
    let n_slots = model.n_adaptive_tokens();
    let adaptive = (n_slots > 0).then(|| pass(model, POLICY_COMMITTED, 2, 2));
    // From the narrowest; the one with adaptive rows is among those that are measured in any case.
    let n_adaptive = adaptive.iter().len();
    let [first, rest @ ..] = POLICY_ROW_COUNTS;
    let plans: Vec<RowPlan> =
        std::iter::once(plain(first)).chain(adaptive).chain(rest.into_iter().map(plain)).collect();
    let mut time = |plan: &RowPlan| {
        if is_cancelled() { Err(ModelError::Cancelled.into()) } else { timer.time(plan) }
    };
    let elapsed = || started.elapsed();
    let mut fastest = fastest_of(plans.len(), &elapsed, &mut |kind| time(&plans[kind]))?;
    let adaptive_ms: Vec<f64> = fastest.splice(1..1 + n_adaptive, []).collect();
    let mut points: Vec<(usize, f64)> = POLICY_ROW_COUNTS.into_iter().zip(fastest).collect();
    if rows_are_cheap(&points) && elapsed() < POLICY_TIME {
        let plans = WIDE_ROW_COUNTS.map(plain);
        let fastest = fastest_of(plans.len(), &elapsed, &mut |kind| time(&plans[kind]))?;
        points.extend(WIDE_ROW_COUNTS.into_iter().zip(fastest));
    }
    let costs = PassCosts::new(points).ok_or(EngineError::NotMeasured)?;
    Ok(match adaptive_ms.first() {
        Some(&ms) => costs.with_adaptive(2 + 2 * n_slots, ms),
        None => costs,
    })
}

/// Whether wide passes may be worth it: `points` has rows and milliseconds.
fn rows_are_cheap(points: &[(usize, f64)]) -> bool {
    let all = points.len() == POLICY_ROW_COUNTS.len();
    all && matches!(points, [(_, first), .., (_, last)] if *last < CHEAP_PASSES * first)
}

/// Fastest time of each kind of pass in milliseconds, from the first; kinds at the end are left out when the time is
/// over before.
fn fastest_of(
    n_kinds: usize,
    elapsed: &dyn Fn() -> Duration,
    run: &mut dyn FnMut(usize) -> Result<f64, EngineError>,
) -> Result<Vec<f64>, EngineError> {
    let is_over = || elapsed() > POLICY_TIME;
    let mut n_tried = n_kinds;
    for kind in 0..n_kinds {
        // The first pass of a kind is slower: buffers are made, on some devices kernels translated.
        run(kind)?;
        if is_over() && kind + 1 >= POLICY_LEAST {
            n_tried = kind + 1;
            break;
        }
    }
    let mut fastest = vec![f64::INFINITY; n_tried];
    for round in 1..POLICY_ROUNDS {
        if round > 1 && is_over() {
            break;
        }
        for (kind, fastest) in fastest.iter_mut().enumerate() {
            // The same kind of pass twice, as decoding runs them: the first leaves the caches as it does.
            if !is_over() {
                run(kind)?;
            }
            // Whatever disturbed the slower ones would disturb any width alike.
            *fastest = fastest.min(run(kind)?);
        }
    }
    Ok(fastest)
}

/// A pass over `n_tokens` tokens behind `n_committed` rows, an adaptive group behind each of the first `n_groups`.
fn pass(model: &Model, n_committed: usize, n_tokens: usize, n_groups: usize) -> RowPlan {
    let mut plan = RowPlan::prefill(n_committed, &tokens(model, n_tokens));
    (0..n_groups).for_each(|row| {
        plan.push_adaptive_group(row, model.n_adaptive_tokens());
    });
    (0..n_tokens).for_each(|row| {
        plan.want_ranked(row);
    });
    (n_tokens..plan.rows().len()).for_each(|row| {
        plan.want_drafts(row);
    });
    plan
}

/// Times passes one by one, each behind the same committed rows.
pub struct PassTimer {
    sequence: Sequence,
}

impl PassTimer {
    /// Committed rows in front of the measured ones.
    pub const N_COMMITTED: usize = 128;

    /// Reads the rows that are committed.
    ///
    /// # Errors
    /// Those of the model.
    pub fn new(model: &Arc<Model>) -> Result<Self, EngineError> {
        Self::behind(model, Self::N_COMMITTED)
    }

    /// Passes behind `n_committed` rows.
    ///
    /// # Errors
    /// Those of the model.
    pub(crate) fn behind(model: &Arc<Model>, n_committed: usize) -> Result<Self, EngineError> {
        let mut sequence = model.sequence()?;
        prefill(&mut sequence, n_committed)?;
        sequence.probe_with(&tokens(model, n_committed))?;
        Ok(Self { sequence })
    }

    /// Milliseconds of a pass over `n_rows` tokens, each with its likeliest successors.
    ///
    /// # Errors
    /// Those of the model.
    pub fn tokens(&mut self, n_rows: usize) -> Result<f64, EngineError> {
        let plan = pass(&self.sequence.model().clone(), self.sequence.n_committed(), n_rows, 0);
        self.time(&plan)
    }

    /// Milliseconds of a pass over `n_rows` tokens of a prompt, the likeliest tokens after its last.
    ///
    /// # Errors
    /// Those of the model.
    pub fn prompt(&mut self, n_rows: usize) -> Result<f64, EngineError> {
        let tokens = tokens(self.sequence.model(), n_rows);
        let mut plan = RowPlan::prefill(self.sequence.n_committed(), &tokens);
        plan.want_ranked(n_rows - 1);
        self.time(&plan)
    }

    fn time(&mut self, plan: &RowPlan) -> Result<f64, EngineError> {
        let started = Instant::now();
        self.sequence.forward(plan)?;
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    }

    /// Milliseconds of reading a prompt of `n_tokens`, the likeliest tokens after its last.
    ///
    /// # Errors
    /// Those of the model.
    pub fn prefill(model: &Arc<Model>, n_tokens: usize) -> Result<f64, EngineError> {
        let mut sequence = model.sequence()?;
        let started = Instant::now();
        prefill(&mut sequence, n_tokens - 1)?;
        let mut last = RowPlan::prefill(n_tokens - 1, &tokens(model, 1));
        last.want_ranked(0);
        sequence.forward(&last)?;
        Ok(started.elapsed().as_secs_f64() * 1000.0)
    }
}

/// Commits `n_tokens` in passes as a session makes them.
fn prefill(sequence: &mut Sequence, n_tokens: usize) -> Result<(), EngineError> {
    for chunk in tokens(&sequence.model().clone(), n_tokens).chunks(crate::generation::PREFILL_ROWS) {
        sequence.prefill(chunk)?;
    }
    Ok(())
}

/// Any tokens do: the cost does not depend on them.
fn tokens(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7919 % model.architecture().vocabulary) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ModelConfig;

    /// Neither a model that takes a second for each row nor one that takes none is measured for longer than it must be.
    #[test]
    fn a_slow_device_is_measured_less() {
        let measured = |ms_per_row: f64| {
            let rows = [1, 10, 2, 4, 8, 16, 24, 32];
            let clock = std::cell::Cell::new(0.0);
            let mut n_runs = 0;
            let mut run = |kind: usize| {
                let ms = ms_per_row * rows[kind] as f64;
                clock.set(clock.get() + ms);
                n_runs += 1;
                Ok(ms)
            };
            let elapsed = || Duration::from_secs_f64(clock.get() / 1000.0);
            let fastest = fastest_of(rows.len(), &elapsed, &mut run).expect("measures");
            assert!(fastest.iter().zip(rows).all(|(ms, n_rows)| *ms == ms_per_row * n_rows as f64));
            (fastest.len(), n_runs, clock.get() / ms_per_row)
        };
        assert_eq!(measured(0.1), (8, 8 + 2 * 16, 97.0 * 5.0));
        assert_eq!(measured(1000.0), (4, 4 + 4, 17.0 * 2.0));
    }

    #[test]
    fn wide_passes_are_measured_where_rows_are_cheap() {
        let points =
            |ms_per_row: f64| POLICY_ROW_COUNTS.map(|n_rows| (n_rows, 1.0 + ms_per_row * n_rows as f64));
        assert!(rows_are_cheap(&points(0.05)) && !rows_are_cheap(&points(0.2)));
        assert!(!rows_are_cheap(&points(0.05)[..4]), "where narrower ones were left out");
        assert!(!rows_are_cheap(&[]));
    }

    #[test]
    fn every_kind_of_pass_is_measured() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let model = Arc::new(Model::load(&ModelConfig::new(tiny)).expect("the tiny model"));
        let table = measure_cost(&model, 2).expect("measures");
        assert_eq!(table.passes.iter().map(|pass| pass.n_rows).collect::<Vec<_>>(), ROW_COUNTS);
        assert!(table.passes.iter().all(|pass| pass.fastest_ms > 0.0 && pass.fastest_ms <= pass.median_ms));
        assert_eq!(table.prefills.len(), 2, "the third is longer than its context");
    }
}
