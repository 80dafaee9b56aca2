//! A run: steps, measurements, checkpoints.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::backprop::GradStore;

use crate::adapter::{AdapterPart, AdapterShape, TrainedAdapter};
use crate::base::Base;
use crate::batch::{Anchors, Batch};
use crate::checkpoint::CheckpointPlace;
use crate::corpus::{Corpus, random_of};
use crate::error::TrainError;
use crate::evaluate::{SlotAcceptance, evaluate};
use crate::gradients::{add, loss_and_gradients};
use crate::loss::LossConfig;
use crate::optimizer::{AdamW, AdamWConfig, Schedule};
use crate::sample::SampleConfig;

/// What a run is. A checkpoint belongs to one.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TrainConfig {
    /// Slots and ranks; those of `init` where it goes on from an adapter, but for a Markov head that it has not.
    pub shape: AdapterShape,
    /// An adapter to go on from.
    pub init: Option<PathBuf>,
    /// What learns.
    pub learns: AdapterPart,
    /// Tokens of a text.
    pub max_tokens: usize,
    /// Anchors in it.
    pub anchors: Anchors,
    /// Share of texts in the form of infilling, for models that have one.
    pub infill: f32,
    /// Share of these of which a line or a few are missing.
    pub short: f32,
    /// Share of texts that the model wrote itself, where there are such and others.
    pub written: f32,
    /// What is made small.
    pub loss: LossConfig,
    /// Constants of the optimizer.
    pub optimizer: AdamWConfig,
    /// Steps, and rates.
    pub schedule: Schedule,
    /// Draws of texts, anchors and first values.
    pub seed: u64,
    /// Steps between two measurements; the last step is measured in any case.
    pub evaluate_every: usize,
    /// Texts that are measured.
    pub n_evaluated: usize,
    /// Steps between two checkpoints.
    pub save_every: usize,
}

impl TrainConfig {
    /// As the adapters that ship were trained, in so many steps.
    pub fn new(n_steps: usize) -> Self {
        Self {
            shape: AdapterShape { n_slots: 4, rank: 16, markov_rank: 0 },
            init: None,
            learns: AdapterPart::Whole,
            max_tokens: 256,
            anchors: Anchors { n: 64, keep_rate: 1.0, glancing: 0.0 },
            infill: 0.6,
            short: 0.5,
            written: 0.5,
            loss: LossConfig::default(),
            optimizer: AdamWConfig::default(),
            schedule: Schedule { n_warm_up: (n_steps / 20).min(100), n_steps },
            seed: 0,
            evaluate_every: 100,
            n_evaluated: 16,
            save_every: 20,
        }
    }

    fn check(&self, base: &Base) -> Result<(), TrainError> {
        let refuse = |field, bound, got: &dyn ToString| {
            Err(TrainError::OutOfRange { field, bound, got: got.to_string() })
        };
        if !(16..=base.max_positions()).contains(&self.max_tokens) {
            return refuse(
                "tokens",
                "from 16 to the positions that the model was loaded for",
                &self.max_tokens,
            );
        }
        if self.anchors.n == 0 || self.schedule.n_steps == 0 {
            return refuse("anchors and steps", "at least 1", &0);
        }
        let rate = self.optimizer.learning_rate;
        if !(rate > 0.0 && rate <= 1.0) {
            return refuse("rate", "above 0, at most 1", &rate);
        }
        let Self { infill, short, written, .. } = *self;
        let of_texts = [("infill", infill), ("short", short), ("written", written)];
        let shares = of_texts.into_iter().chain([("glancing", self.anchors.glancing)]);
        for (field, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return refuse(field, "from 0 to 1", &share);
            }
        }
        Ok(())
    }
}

/// How a run goes.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainEvent {
    /// It goes on from a checkpoint of so many steps.
    Resumed {
        /// Steps that were done before.
        step: usize,
    },
    /// A step was done.
    Step {
        /// Its number, from 1.
        step: usize,
        /// Its loss, in nats.
        loss: f64,
        /// Norm of the gradients, before they were bounded.
        gradient_norm: f64,
        /// Rows of adaptive tokens that it learnt from.
        n_rows: usize,
        /// How long it took.
        seconds: f64,
    },
    /// Acceptance on texts that nothing is learnt from.
    Evaluated {
        /// Steps that were done.
        step: usize,
        /// What was measured.
        acceptance: SlotAcceptance,
    },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOutcome {
    /// All steps were done, and the adapter is written.
    Finished,
    /// It was told to stop: the checkpoint and the adapter of the steps so far are written.
    Stopped {
        /// Steps that were done.
        step: usize,
    },
}

/// Logits of the last of `tokens`, and of each slot behind it, without a Markov head: `[1 + n_slots, n_outputs]`, row by row.
///
/// # Errors
/// Those of memory.
pub fn logits_behind(base: &Base, adapter: &TrainedAdapter, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
    let last = tokens.len().saturating_sub(1);
    let batch = Batch::behind(last, adapter.shape().n_slots);
    let pass = base.read(tokens)?;
    let mut logits = base.logits_at(&pass, &[last as u32])?.flatten_all()?.to_vec1::<f32>()?;
    let of_slots = base.slot_logits(adapter, &pass, &batch)?;
    logits.extend(of_slots.flatten_all()?.to_vec1::<f32>()?);
    Ok(logits)
}

/// Trains an adapter for `base` on `corpus`, and writes it to `out`. A checkpoint beside it, `out` with `.checkpoint` behind
/// its name, is gone on from where there is one of this run, and removed at the end. `on_event` says whether to go on.
///
/// # Errors
/// What is wrong with the configuration or a file, [`TrainError::Exists`] where `out` is there without a checkpoint of this
/// run, and [`TrainError::NotANumber`]; the last checkpoint stays.
pub fn train(
    base: &Base,
    corpus: &Corpus,
    config: &TrainConfig,
    out: &Path,
    on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<TrainOutcome, TrainError> {
    config.check(base)?;
    let adapter = match &config.init {
        Some(path) => TrainedAdapter::load(base, path)?,
        None => TrainedAdapter::new(base, config.shape, config.seed)?,
    };
    let adapter =
        adapter.with_markov_head(base, config.shape.markov_rank, config.seed)?.learning(config.learns);
    let variables = adapter.variables();
    if variables.is_empty() {
        return Err(TrainError::NothingLearns);
    }
    let mut optimizer = AdamW::new(config.optimizer, &variables)?;
    let place = CheckpointPlace::beside(out, base.sha256(), config)?;
    if let Some(checkpoint) = place.open(out)? {
        let step = checkpoint.step;
        checkpoint.restore(&variables, &mut optimizer, step)?;
        if on_event(TrainEvent::Resumed { step }).is_break() {
            return Ok(TrainOutcome::Stopped { step });
        }
    }
    let n_slots = adapter.shape().n_slots;
    let TrainConfig { max_tokens, infill, short, written, .. } = *config;
    let of_samples = SampleConfig { max_tokens, infill, short, written, n_slots };
    let samples = corpus.held_out(base, of_samples, config.n_evaluated)?;
    let write = |optimizer: &AdamW| -> Result<(), TrainError> {
        place.save(&variables, optimizer, optimizer.n_steps)?;
        adapter.save(base, out)
    };
    let n_steps = config.schedule.n_steps;
    while optimizer.n_steps < n_steps {
        let step = optimizer.n_steps;
        let started = Instant::now();
        let mut random = random_of(config.seed.wrapping_add(1), step);
        // The less is told, the nearer the end.
        let glancing = config.anchors.glancing * (1.0 - step as f32 / n_steps as f32);
        let anchors = Anchors { glancing, ..config.anchors };
        let texts = corpus.texts_of_step(base, of_samples, anchors, &mut random)?;
        let n_rows: usize = texts.iter().map(|(_, batch)| batch.len()).sum();
        let (mut loss, mut gradients) = (0.0, None::<GradStore>);
        for (sample, batch) in &texts {
            let of_text = config.loss.scaled(batch.len() as f64 / n_rows as f64);
            let (value, of_text) = loss_and_gradients(base, &adapter, of_text, &sample.tokens, batch)?;
            loss += value;
            match &mut gradients {
                Some(gradients) => add(gradients, of_text, &variables)?,
                None => gradients = Some(of_text),
            }
        }
        let gradients = gradients.ok_or_else(|| corpus.too_little())?;
        if !loss.is_finite() {
            return Err(TrainError::NotANumber { step });
        }
        let gradient_norm = optimizer.step(&gradients, config.schedule.at(step))?;
        let step = step + 1;
        let seconds = started.elapsed().as_secs_f64();
        let mut wish = on_event(TrainEvent::Step { step, loss, gradient_norm, n_rows, seconds });
        if step == n_steps || step.is_multiple_of(config.evaluate_every.max(1)) {
            let acceptance = evaluate(base, &adapter, &samples, config.anchors.n)?;
            if on_event(TrainEvent::Evaluated { step, acceptance }).is_break() {
                wish = ControlFlow::Break(());
            }
        }
        if wish.is_break() && step < n_steps {
            write(&optimizer)?;
            return Ok(TrainOutcome::Stopped { step });
        }
        if step.is_multiple_of(config.save_every.max(1)) {
            write(&optimizer)?;
        }
    }
    adapter.save(base, out)?;
    place.remove();
    Ok(TrainOutcome::Finished)
}
