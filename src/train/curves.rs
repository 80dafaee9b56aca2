//! The curves of a run.

use std::path::Path;

use anyhow::Context;
use train::TrainEvent;

use crate::plots::{Axes, Series, lines};

/// Steps whose losses are one point.
const N_POINTS: usize = 200;

/// Draws what the metrics at `path` say, with the endings `loss.svg` and `acceptance.svg` instead of theirs: all runs that
/// were appended, as one.
pub(super) fn draw(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // What a killed run left half written is left out.
    let events: Vec<TrainEvent> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let losses: Vec<(f64, f64)> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Step { step, loss, .. } => Some((*step as f64, *loss)),
            _ => None,
        })
        .collect();
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let sum = part.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n)
    };
    let points: Vec<(f64, f64)> = losses.chunks(losses.len().div_ceil(N_POINTS).max(1)).map(mean).collect();
    let axes = Axes { title: "loss of a step", x: "step", y: "nats" };
    lines(&path.with_extension("loss.svg"), axes, &[("loss".to_owned(), points)])?;
    let mut slots: Vec<Series> = Vec::new();
    for event in &events {
        let TrainEvent::Evaluated { step, acceptance } = event else { continue };
        for (idx, share) in acceptance.of_model.iter().enumerate() {
            if idx == slots.len() {
                slots.push((format!("slot {}", idx + 1), Vec::new()));
            }
            slots[idx].1.push((*step as f64, *share));
        }
    }
    let axes = Axes { title: "guesses that are the model's own choice", x: "step", y: "share" };
    lines(&path.with_extension("acceptance.svg"), axes, &slots)
}
