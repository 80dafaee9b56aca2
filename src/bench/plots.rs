//! The plots of a report.

use std::path::Path;

use super::decode::{DecodeReport, ModeResult};
use crate::plots::{Axes, Series, bars, lines};

/// Writes the plots that the report has data for to `folder`, named after the model.
pub(crate) fn write(folder: &Path, report: &DecodeReport) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = |kind: &str| folder.join(format!("{}-{kind}.svg", report.model));
    bars(&path("speed"), "tokens/s against ordinary decoding", &values(report, |mode| mode.speedup))?;
    bars(
        &path("tokens-per-pass"),
        "tokens per forward pass",
        &values(report, |mode| mode.mean_accepted_tokens),
    )?;
    let by_depth = |mode: &ModeResult| -> Series {
        let points = (1..).zip(&mode.accepted_per_slot).take(8);
        (mode.mode.clone(), points.map(|(depth, share)| (f64::from(depth), *share)).collect())
    };
    let drafting =
        report.modes.iter().filter(|mode| mode.n_slots.is_none() && !mode.accepted_per_slot.is_empty());
    let axes =
        Axes { title: "acceptance by depth of the draft", x: "depth", y: "accepted of those verified" };
    lines(&path("acceptance"), axes, &drafting.map(by_depth).collect::<Vec<_>>())?;
    let costs: Vec<(f64, f64)> =
        report.costs.iter().map(|&(n_rows, ms)| (n_rows as f64, ms / report.costs[0].1)).collect();
    let axes = Axes { title: "cost of a pass against one row", x: "rows", y: "T(n) / T(1)" };
    lines(&path("cost"), axes, &[(report.model.clone(), costs)])?;

    // Two-pass SDSAT by its number of slots: 0 is ordinary decoding, and the one without a limit has all.
    let mut sweep: Vec<(f64, &ModeResult)> =
        report.modes.iter().filter_map(|mode| Some((mode.n_slots? as f64, mode))).collect();
    if !sweep.is_empty() {
        let n_all = sweep.len() as f64 + 1.0;
        sweep.extend(report.modes.iter().filter(|mode| mode.mode == "off").map(|mode| (0.0, mode)));
        let all = |mode: &&ModeResult| mode.mode == "sdsat" && mode.n_slots.is_none();
        sweep.extend(report.modes.iter().filter(all).map(|mode| (n_all, mode)));
        sweep.sort_by(|a, b| a.0.total_cmp(&b.0));
        let series = |name: &str, of: fn(&ModeResult) -> f64| -> Series {
            (name.to_owned(), sweep.iter().map(|&(k, mode)| (k, of(mode))).collect())
        };
        let axes =
            Axes { title: "two-pass SDSAT by its number of slots", x: "k", y: "against ordinary decoding" };
        let both = [
            series("tokens/s", |mode| mode.speedup),
            series("tokens per pass", |mode| mode.mean_accepted_tokens),
        ];
        lines(&path("slots"), axes, &both)?;
    }
    Ok(())
}

fn values(report: &DecodeReport, of: fn(&ModeResult) -> f64) -> Vec<(String, f64)> {
    let whole = report.modes.iter().filter(|mode| mode.n_slots.is_none());
    whole.map(|mode| (mode.mode.clone(), of(mode))).collect()
}
