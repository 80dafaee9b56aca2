//! Plots, as SVG.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

const SIZE: (u32, u32) = (560, 340);
/// Legible one upon the other, also for those who do not tell red from green.
const COLOURS: [RGBColor; 7] = [
    RGBColor(95, 100, 112),
    RGBColor(15, 118, 110),
    RGBColor(180, 83, 9),
    RGBColor(37, 99, 235),
    RGBColor(147, 51, 234),
    RGBColor(190, 18, 60),
    RGBColor(13, 148, 136),
];

/// A name, and points.
pub(crate) type Series = (String, Vec<(f64, f64)>);

/// What a plot is called, and its axes.
pub(crate) struct Axes<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

fn area(path: &Path) -> anyhow::Result<DrawingArea<SVGBackend<'_>, Shift>> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
    Ok(area)
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max)
}

/// A bar for each value, under its name.
pub(crate) fn bars(path: &Path, title: &str, values: &[(String, f64)]) -> anyhow::Result<()> {
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = area(path)?;
        let top = largest(values.iter().map(|(_, value)| *value)).max(1.0) * 1.15;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(40)
            .build_cartesian_2d((0..values.len().saturating_sub(1)).into_segmented(), 0.0..top)?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(idx) => values.get(*idx).map(|(name, _)| name.clone()).unwrap_or_default(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&name)
            .draw()?;
        for (idx, (_, value)) in values.iter().enumerate() {
            let corners = [(SegmentValue::Exact(idx), 0.0), (SegmentValue::Exact(idx + 1), *value)];
            let mut bar = Rectangle::new(corners, COLOURS[usize::from(idx > 0)].filled());
            bar.set_margin(0, 0, 14, 14);
            chart.draw_series([bar])?;
            let label = Text::new(
                format!("{value:.2}"),
                (SegmentValue::CenterOf(idx), *value + top * 0.06),
                ("sans-serif", 13).into_font(),
            );
            chart.draw_series([label])?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("{error}")).with_context(|| path.display().to_string())
}

/// A line for each series.
pub(crate) fn lines(path: &Path, axes: Axes<'_>, series: &[Series]) -> anyhow::Result<()> {
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let area = area(path)?;
        let points = || series.iter().flat_map(|(_, points)| points);
        let (right, top) = (largest(points().map(|point| point.0)), largest(points().map(|point| point.1)));
        let mut chart = ChartBuilder::on(&area)
            .caption(axes.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..right * 1.02, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(axes.x)
            .y_desc(axes.y)
            .x_labels((right as usize + 1).clamp(2, 12))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.1}"))
            .draw()?;
        for (idx, (name, points)) in series.iter().enumerate() {
            let colour = COLOURS[(idx + 1) % COLOURS.len()];
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        if series.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(TRANSPARENT)
                .draw()?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow!("{error}")).with_context(|| path.display().to_string())
}
