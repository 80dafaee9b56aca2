//! From a drafter's confidence to how often it is right.

use crate::{DraftSource, N_RANKED};

/// Upper ends of the bins of confidence.
const BINS: [f32; 12] = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99, f32::INFINITY];
/// Depths that are told apart; deeper ones share the last.
const DEPTHS: usize = 6;
/// What a drafter's own confidence counts for, in observations.
const PRIOR: f32 = 4.0;
/// Observations after which the oldest begin to fade.
const MEMORY: f32 = 400.0;

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    n: f32,
    n_right: f32,
}

/// For each source, depth and confidence: how often the target agreed with a draft whose parent it had
/// agreed with.
#[derive(Clone, Debug)]
pub(crate) struct Calibration {
    tallies: Vec<Tally>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { tallies: vec![Tally::default(); DraftSource::ALL.len() * DEPTHS * BINS.len()] }
    }
}

impl Calibration {
    fn at(source: DraftSource, depth: usize, confidence: f32) -> usize {
        let bin = BINS.iter().position(|&end| confidence < end).unwrap_or(BINS.len() - 1);
        (source as usize * DEPTHS + depth.clamp(1, DEPTHS) - 1) * BINS.len() + bin
    }

    /// The probability that the target agrees.
    pub(crate) fn probability(&self, source: DraftSource, depth: usize, confidence: f32) -> f32 {
        let Tally { n, n_right } = self.tallies[Self::at(source, depth, confidence)];
        let confidence = if confidence.is_finite() { confidence.clamp(0.0, 1.0) } else { 0.0 };
        // Ranked probabilities leave out the rest of the vocabulary; nothing is certain.
        (n_right + PRIOR * confidence.min(0.98)) / (n + PRIOR)
    }

    pub(crate) fn observe(&mut self, source: DraftSource, depth: usize, confidence: f32, is_right: bool) {
        let tally = &mut self.tallies[Self::at(source, depth, confidence)];
        if tally.n >= MEMORY {
            tally.n *= 1.0 - 1.0 / MEMORY;
            tally.n_right *= 1.0 - 1.0 / MEMORY;
        }
        tally.n += 1.0;
        tally.n_right += f32::from(u8::from(is_right));
    }
}

/// How many tokens the drafts of an adaptive group bring that no other drafter had, by slot.
#[derive(Clone, Debug)]
pub(crate) struct GroupValue {
    /// Running shares of the groups whose slot brought a token.
    by_slot: [f64; N_RANKED],
    n_observed: f64,
}

impl Default for GroupValue {
    /// Hopeful, so that groups are tried.
    fn default() -> Self {
        let mut by_slot = [0.0; N_RANKED];
        by_slot.iter_mut().enumerate().for_each(|(slot, value)| *value = 0.5f64.powi(slot as i32 + 1));
        Self { by_slot, n_observed: 0.0 }
    }
}

impl GroupValue {
    /// Tokens from a group of `n_slots`.
    pub(crate) fn of(&self, n_slots: usize) -> f64 {
        self.by_slot.iter().take(n_slots).sum()
    }

    /// The first `n_slots` were used, and `brought` of them brought a token.
    pub(crate) fn observe(&mut self, n_slots: usize, brought: &[bool]) {
        self.n_observed += 1.0;
        let rate = (1.0 / (self.n_observed + 4.0)).max(0.03);
        for (slot, value) in self.by_slot.iter_mut().enumerate().take(n_slots) {
            let is_right = brought.get(slot).copied().unwrap_or(false);
            *value += rate * (f64::from(u8::from(is_right)) - *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_move_from_the_drafters_word_to_what_happened() {
        let mut calibration = Calibration::default();
        let before = calibration.probability(DraftSource::Suffix, 1, 0.7);
        assert!((before - 0.7).abs() < 1e-6);
        for n in 0..2000 {
            calibration.observe(DraftSource::Suffix, 1, 0.72, n % 4 == 0);
        }
        assert!((calibration.probability(DraftSource::Suffix, 1, 0.7) - 0.25).abs() < 0.03);
        assert!((calibration.probability(DraftSource::Suffix, 2, 0.7) - 0.7).abs() < 1e-6);
        for n in 0..2000 {
            calibration.observe(DraftSource::Suffix, 1, 0.72, n % 4 != 0);
        }
        assert!((calibration.probability(DraftSource::Suffix, 1, 0.7) - 0.75).abs() < 0.05, "it forgets");
        assert_eq!(calibration.probability(DraftSource::Other, 99, f32::NAN), 0.0);
    }

    #[test]
    fn the_value_of_groups_follows_what_they_brought() {
        let mut value = GroupValue::default();
        assert!(value.of(4) > 0.9);
        for _ in 0..300 {
            value.observe(4, &[true, false, false, false]);
        }
        assert!((value.of(4) - 1.0).abs() < 0.02 && (value.of(1) - 1.0).abs() < 0.02);
    }
}
