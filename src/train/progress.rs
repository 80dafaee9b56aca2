//! How a run is shown while it lasts: a bar, words about what was measured, figures in a file.

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use train::{TrainEvent, TrainOutcome};

use super::{curves, in_words};

/// What a run shows.
pub(super) struct Progress {
    bar: ProgressBar,
    n_steps: usize,
    metrics: Option<(PathBuf, File)>,
    is_stopped: Arc<AtomicBool>,
    loss: Option<f64>,
    /// Rows, and seconds that they took, the later ones more than the earlier.
    pace: [f64; 2],
}

pub(super) fn steps_bar(n_steps: usize) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(n_steps as u64);
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}, {eta} left").context("the bar")?);
    Ok(bar)
}

impl Progress {
    /// Of a run of `n_steps`, with its figures in the file at `metrics`. Ctrl-C asks it to stop from now on.
    pub(super) fn new(n_steps: usize, metrics: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            Ok::<_, anyhow::Error>((
                path.to_owned(),
                file.with_context(|| format!("cannot write {}", path.display()))?,
            ))
        };
        let is_stopped = crate::terminal::interrupt()?;
        let metrics = metrics.map(open).transpose()?;
        Ok(Self { bar: steps_bar(n_steps)?, n_steps, metrics, is_stopped, loss: None, pace: [0.0; 2] })
    }

    /// Shows `event`; whether to go on.
    pub(super) fn show(&mut self, event: &TrainEvent) -> ControlFlow<()> {
        if let Some((_, file)) = &mut self.metrics {
            // A full disk costs the figures, not the run.
            let _ = serde_json::to_writer(&mut *file, event).map(|()| file.write_all(b"\n"));
        }
        match *event {
            TrainEvent::Resumed { step } => {
                self.say(&format!("going on behind step {step}"));
                self.bar.set_position(step as u64);
            }
            TrainEvent::Step { step, loss, n_rows, seconds, .. } => {
                let loss = self.loss.map_or(loss, |mean| 0.95 * mean + 0.05 * loss);
                self.loss = Some(loss);
                let [rows, of_rows] = self.pace;
                self.pace = [0.9 * rows + n_rows as f64, 0.9 * of_rows + seconds];
                self.bar.set_message(format!("loss {loss:.3}, {:.0} rows/s", self.pace[0] / self.pace[1]));
                self.bar.set_position(step as u64);
            }
            TrainEvent::Evaluated { step, ref acceptance } => {
                self.say(&format!("step {step}: {}", in_words(acceptance)));
                // That the figures cannot be drawn ends nothing.
                if let Some(Err(error)) = self.metrics.as_ref().map(|(path, _)| curves::draw(path)) {
                    self.bar.println(format!("no curves: {error:#}"));
                }
            }
        }
        match self.is_stopped.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Above the bar, which shows nothing where there is no terminal.
    fn say(&self, words: &str) {
        match self.bar.is_hidden() {
            true => println!("{words}"),
            false => self.bar.println(words),
        }
    }

    /// Says how it ended; `finished` when all was done.
    pub(super) fn finish(self, outcome: TrainOutcome, finished: &str) {
        self.bar.finish_and_clear();
        match outcome {
            TrainOutcome::Finished => println!("{finished}"),
            TrainOutcome::Stopped { step } => {
                println!(
                    "Stopped behind step {step} of {}; the same command goes on from there",
                    self.n_steps
                );
            }
        }
    }
}
