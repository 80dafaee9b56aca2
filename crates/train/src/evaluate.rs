//! How often slots guess right.

use candle_core::{D, Tensor};

use crate::adapter::TrainedAdapter;
use crate::base::Base;
use crate::batch::{Anchors, Batch};
use crate::corpus::Sample;
use crate::error::TrainError;

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
    let n_slots = adapter.shape().n_slots;
    let (mut of_model, mut of_text) = (vec![0usize; n_slots], vec![0usize; n_slots]);
    let (mut n_chain, mut n_groups) = (0usize, 0usize);
    for (idx, sample) in samples.iter().enumerate() {
        let anchors = Anchors { n: n_anchors, keep_rate: 1.0 };
        let mut random = fastrand::Rng::with_seed(idx as u64);
        let batch = Batch::choose(&sample.tokens, sample.first_anchor, n_slots, anchors, &mut random);
        if batch.is_empty() {
            continue;
        }
        let pass = base.read(&sample.tokens)?;
        let teacher = likeliest(&base.logits_at(&pass, &batch.positions)?)?;
        let guesses = likeliest(&base.logits(&base.draft(adapter, &pass, &batch)?.detach())?)?;
        for rows in batch.groups() {
            let is_right = |row: usize| guesses[row] == teacher[row];
            n_chain += rows.clone().take_while(|&row| is_right(row)).count();
            n_groups += 1;
            for row in rows {
                let slot = batch.slots[row] as usize;
                of_model[slot] += usize::from(is_right(row));
                of_text[slot] += usize::from(guesses[row] == batch.labels[row]);
            }
        }
    }
    let share = |n: usize| n as f64 / n_groups.max(1) as f64;
    Ok(SlotAcceptance {
        of_model: of_model.into_iter().map(share).collect(),
        of_text: of_text.into_iter().map(share).collect(),
        chain: share(n_chain),
        n_groups,
    })
}
