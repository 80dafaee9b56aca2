//! How often slots guess right.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, Tensor};
use speculate::{MarkovHead, Slots, rank};

use crate::adapter::TrainedAdapter;
use crate::base::Base;
use crate::batch::{Anchors, Batch};
use crate::error::TrainError;
use crate::native::NativeModel;
use crate::sample::Sample;

/// How often slots guess what the model itself finds likeliest behind the text that is there.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SlotAcceptance {
    /// Share of each slot's guesses that are the model's, whatever the slots before it guessed.
    pub of_model: Vec<f64>,
    /// Share that are the text's.
    pub of_text: Vec<f64>,
    /// Slots of a group in a row that are the model's, on average.
    pub chain: f64,
    /// Groups that were looked at.
    pub n_groups: usize,
}

impl SlotAcceptance {
    /// Tokens per forward pass of two-pass SDSAT: a drafting pass emits one, a verifying pass one and the chain.
    pub fn tokens_per_pass_two_pass(&self) -> f64 {
        (2.0 + self.chain) / 2.0
    }

    /// Tokens per forward pass when every node that a walk may stop at has a group.
    pub fn tokens_per_pass_fused(&self) -> f64 {
        1.0 + self.chain
    }
}

fn likeliest(logits: &Tensor) -> Result<Vec<u32>, TrainError> {
    Ok(logits.argmax(D::Minus1)?.to_vec1::<u32>()?)
}

/// Of the likeliest tokens of each row, the one that is likeliest behind the token `before`: what the engine drafts.
fn likeliest_behind(
    base: &Base,
    head: &Arc<MarkovHead>,
    logits: &Tensor,
    before: &[u32],
) -> Result<Vec<u32>, TrainError> {
    let rows = logits.to_vec2::<f32>()?;
    let guess = |(row, &before): (&Vec<f32>, &u32)| {
        let ranked = rank(row).map(|(output, logit)| (base.token_of(output), logit));
        let slots = Slots::new(vec![ranked], before, Some(head.clone()));
        slots.behind(0, before).map_or(0, |ranked| ranked[0].0)
    };
    Ok(rows.iter().zip(before).map(guess).collect())
}

/// What was counted of some groups.
#[derive(Clone, Debug, Default)]
struct Counts {
    of_model: Vec<usize>,
    of_text: Vec<usize>,
    n_chain: usize,
    n_groups: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        for (all, more) in [(&mut self.of_model, &other.of_model), (&mut self.of_text, &other.of_text)] {
            all.resize(all.len().max(more.len()), 0);
            all.iter_mut().zip(more).for_each(|(all, more)| *all += more);
        }
        self.n_chain += other.n_chain;
        self.n_groups += other.n_groups;
    }

    fn acceptance(&self) -> SlotAcceptance {
        let share = |n: usize| n as f64 / self.n_groups.max(1) as f64;
        SlotAcceptance {
            of_model: self.of_model.iter().copied().map(share).collect(),
            of_text: self.of_text.iter().copied().map(share).collect(),
            chain: share(self.n_chain),
            n_groups: self.n_groups,
        }
    }
}

/// Counts for each sample. `likeliest_of` gives what the model says at the rows of a batch, and what these guess.
fn count(
    samples: &[Sample],
    n_slots: usize,
    n_anchors: usize,
    likeliest_of: impl Fn(&Sample, &Batch) -> Result<[Vec<u32>; 2], TrainError>,
) -> Result<Vec<Counts>, TrainError> {
    let mut counted = Vec::with_capacity(samples.len());
    for (idx, sample) in samples.iter().enumerate() {
        let mut counts =
            Counts { of_model: vec![0; n_slots], of_text: vec![0; n_slots], ..Counts::default() };
        let anchors = Anchors { n: n_anchors, keep_rate: 1.0, glancing: 0.0 };
        let mut random = fastrand::Rng::with_seed(idx as u64);
        let batch = Batch::choose(&sample.tokens, sample.first_anchor, n_slots, anchors, &mut random);
        if !batch.is_empty() {
            let [teacher, guesses] = likeliest_of(sample, &batch)?;
            for rows in batch.groups().into_iter().filter(|rows| rows.len() == n_slots) {
                let is_right = |row: usize| guesses[row] == teacher[row];
                counts.n_chain += rows.clone().take_while(|&row| is_right(row)).count();
                counts.n_groups += 1;
                for row in rows {
                    let slot = batch.slots[row] as usize;
                    counts.of_model[slot] += usize::from(is_right(row));
                    counts.of_text[slot] += usize::from(guesses[row] == batch.labels[row]);
                }
            }
        }
        counted.push(counts);
    }
    Ok(counted)
}

fn count_of_adapter(
    base: &Base,
    adapter: &TrainedAdapter,
    samples: &[Sample],
    n_anchors: usize,
) -> Result<Vec<Counts>, TrainError> {
    let head = adapter.markov_head(base)?;
    count(samples, adapter.shape().n_slots, n_anchors, |sample, batch| {
        let pass = base.read(&sample.tokens)?;
        let tokens = |outputs: Vec<u32>| outputs.into_iter().map(|output| base.token_of(output)).collect();
        let teacher = tokens(likeliest(&base.logits_at(&pass, &batch.positions)?)?);
        let logits = base.slot_logits(adapter, &pass, batch)?;
        let guesses = match &head {
            None => tokens(likeliest(&logits)?),
            Some(head) => likeliest_behind(base, head, &logits, &batch.before)?,
        };
        Ok([teacher, guesses])
    })
}

/// The same for a model with a token of its own.
///
/// # Errors
/// Those of memory.
pub fn evaluate_native(
    model: &NativeModel,
    samples: &[Sample],
    n_anchors: usize,
) -> Result<SlotAcceptance, TrainError> {
    let counts = count(samples, model.sat().n_slots, n_anchors, |sample, batch| {
        let [of_tokens, of_slots] = model.logits(&sample.tokens, batch)?.map(|logits| logits.detach());
        let said = likeliest(&of_tokens)?;
        let teacher = batch.positions.iter().map(|&position| said[position as usize]).collect();
        Ok([teacher, likeliest(&of_slots)?])
    })?;
    Ok(in_all(&counts))
}

fn in_all(counts: &[Counts]) -> SlotAcceptance {
    let mut all = Counts::default();
    counts.iter().for_each(|counts| all.add(counts));
    all.acceptance()
}

/// Looks at groups behind anchors of `samples`, up to `n_anchors` in each.
///
/// # Errors
/// Those of memory.
pub fn evaluate(
    base: &Base,
    adapter: &TrainedAdapter,
    samples: &[Sample],
    n_anchors: usize,
) -> Result<SlotAcceptance, TrainError> {
    Ok(in_all(&count_of_adapter(base, adapter, samples, n_anchors)?))
}

/// The same, and for the samples of each language (`text` where none is known), by its name.
///
/// # Errors
/// Those of memory.
pub fn evaluate_by_language(
    base: &Base,
    adapter: &TrainedAdapter,
    samples: &[Sample],
    n_anchors: usize,
) -> Result<(SlotAcceptance, BTreeMap<String, SlotAcceptance>), TrainError> {
    let counts = count_of_adapter(base, adapter, samples, n_anchors)?;
    let mut by_language = BTreeMap::<String, Counts>::new();
    for (sample, counts) in samples.iter().zip(&counts) {
        let name = if sample.language.is_empty() { "text" } else { &sample.language };
        by_language.entry(name.to_owned()).or_default().add(counts);
    }
    let by_language = by_language.into_iter().map(|(name, counts)| (name, counts.acceptance()));
    Ok((in_all(&counts), by_language.collect()))
}
