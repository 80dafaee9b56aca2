//! What a model costs and gives on this machine, for people who want to know.

use std::sync::Arc;

use model::Model;
use serde::{Deserialize, Serialize};
use speculate::TokenRecycling;
use ts_rs::TS;

use crate::cost::{PassTimer, measure_pass_costs};
use crate::session::{Session, SessionConfig};
use crate::{CompletionRequest, EngineError, Extent, PassCost, Speculation};

/// Numbers of rows that are timed.
const ROW_COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Each so many times, of which the middle counts.
const REPETITIONS: usize = 5;
/// What is completed, with and without speculation.
const SAMPLES: [&str; 3] = [
    "def mean(values):\n    \"\"\"The arithmetic mean.\"\"\"\n    total = 0\n    for value in values:\n",
    "struct Point {\n    x: f64,\n    y: f64,\n}\n\nimpl Point {\n    fn distance(&self, other: &Point) -> f64 {\n",
    "function debounce(callback, delay) {\n  let timer = null;\n  return function (...args) {\n",
];
const MAX_TOKENS: usize = 64;

/// What a model costs and gives on this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct SpeedMeasurement {
    /// What a pass costs, by its rows.
    pub passes: Vec<PassCost>,
    /// Tokens per second, a token per pass.
    pub ordinary_tokens_per_s: f64,
    /// Tokens per second with all drafters.
    pub speculative_tokens_per_s: f64,
    /// Tokens per pass with all drafters.
    pub mean_accepted_tokens: f64,
    /// Share of drafts that were accepted at each place of a draft, of those verified there.
    pub accepted_per_slot: Vec<f64>,
    /// Whether both ways gave the same texts, as they must.
    pub is_identical: bool,
}

/// Measures `model`, telling `progress` the share that is done. It is given up when `progress` says so.
///
/// # Errors
/// Those of the model, and [`EngineError::Stopped`] when it was given up.
pub fn measure_speed(
    model: &Arc<Model>,
    progress: &mut dyn FnMut(f32) -> bool,
) -> Result<SpeedMeasurement, EngineError> {
    let n_parts = (ROW_COUNTS.len() + 2 * SAMPLES.len()) as f32;
    let mut n_done = 0.0;
    let mut advance = || {
        n_done += 1.0;
        if progress(n_done / n_parts) { Ok(()) } else { Err(EngineError::Stopped) }
    };
    let mut timer = PassTimer::new(model)?;
    let mut passes = Vec::new();
    for n_rows in ROW_COUNTS {
        let times: Result<Vec<f64>, EngineError> = (0..REPETITIONS).map(|_| timer.tokens(n_rows)).collect();
        let mut times = times?;
        times.sort_by(f64::total_cmp);
        passes.push(PassCost { n_rows, median_ms: times[REPETITIONS / 2], fastest_ms: times[0] });
        advance()?;
    }
    drop(timer);
    let costs = Some(measure_pass_costs(model, &|| false)?);
    let mut session = Session::with(
        model,
        SessionConfig { costs, recycling: TokenRecycling::default(), ..SessionConfig::default() },
    );
    let mut texts = [Vec::new(), Vec::new()];
    let mut speeds = [Vec::new(), Vec::new()];
    let (mut n_tokens, mut n_steps) = (0, 0);
    let (mut n_drafted, mut n_accepted) = (Vec::<f64>::new(), Vec::<f64>::new());
    for (way, speculation) in [Speculation::Off, Speculation::Auto].into_iter().enumerate() {
        for sample in SAMPLES {
            let request = CompletionRequest {
                max_tokens: MAX_TOKENS,
                extent: Extent::Raw,
                speculation,
                ..CompletionRequest::new(sample, "")
            };
            let completion = session.complete(&request)?;
            speeds[way].push(completion.tokens_per_s);
            if speculation == Speculation::Auto {
                (n_tokens, n_steps) = (n_tokens + completion.n_tokens, n_steps + completion.n_steps);
                let n_slots = completion.drafted_per_slot.len().max(n_drafted.len());
                n_drafted.resize(n_slots, 0.0);
                n_accepted.resize(n_slots, 0.0);
                let shares = completion.drafted_per_slot.iter().zip(&completion.accepted_per_slot);
                for (slot, (&n, &share)) in shares.enumerate() {
                    n_drafted[slot] += n as f64;
                    n_accepted[slot] += n as f64 * share;
                }
            }
            texts[way].push(completion.text);
            advance()?;
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let shares = n_accepted.iter().zip(&n_drafted).map(|(&a, &n)| if n > 0.0 { a / n } else { 0.0 });
    Ok(SpeedMeasurement {
        passes,
        ordinary_tokens_per_s: mean(&speeds[0]),
        speculative_tokens_per_s: mean(&speeds[1]),
        mean_accepted_tokens: n_tokens as f64 / n_steps.max(1) as f64,
        accepted_per_slot: shares.collect(),
        is_identical: texts[0] == texts[1],
    })
}
