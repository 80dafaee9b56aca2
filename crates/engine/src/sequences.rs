//! Several sequences on one model: a cache for each of the files that are worked on in turn.

use std::sync::Arc;

use model::{Model, Sequence};

/// Memory that the caches of a session may take together.
const MEMORY_BYTES: usize = 1 << 30;
/// Most sequences, whatever the memory.
const MAX_SEQUENCES: usize = 8;
/// Tokens in common below which a prompt is taken for another file's.
const MIN_COMMON: usize = 16;

/// A sequence, and the tokens that its cache holds.
pub(crate) struct CachedSequence {
    pub(crate) sequence: Sequence,
    pub(crate) tokens: Vec<u32>,
    last_used: u64,
}

impl CachedSequence {
    fn n_common(&self, prompt: &[u32]) -> usize {
        self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }
}

/// The sequences of a session.
pub(crate) struct SequencePool {
    model: Arc<Model>,
    sequences: Vec<CachedSequence>,
    max_sequences: usize,
    n_uses: u64,
}

impl SequencePool {
    pub(crate) fn new(model: &Arc<Model>) -> Self {
        let max_sequences = (MEMORY_BYTES / model.sequence_bytes().max(1)).clamp(1, MAX_SEQUENCES);
        Self { model: model.clone(), sequences: Vec::new(), max_sequences, n_uses: 0 }
    }

    /// The sequence that has most of `prompt` already, with what differs dropped: its cache holds the
    /// longest common prefix, at most all of `prompt` but its last token. Where none has any of it a
    /// new one is made, or the one that was left alone longest begins anew.
    pub(crate) fn for_prompt(&mut self, prompt: &[u32]) -> &mut CachedSequence {
        self.n_uses += 1;
        let body = &prompt[..prompt.len().saturating_sub(1)];
        let best = (0..self.sequences.len()).max_by_key(|&idx| {
            let cached = &self.sequences[idx];
            (cached.n_common(body), cached.last_used)
        });
        let is_akin = |idx: &usize| {
            let cached = &self.sequences[*idx];
            cached.n_common(body) >= MIN_COMMON.min(body.len()) || cached.tokens.is_empty()
        };
        let idx = match best.filter(is_akin) {
            Some(idx) => idx,
            None if self.sequences.len() < self.max_sequences => {
                let sequence = self.model.sequence();
                self.sequences.push(CachedSequence { sequence, tokens: Vec::new(), last_used: 0 });
                self.sequences.len() - 1
            }
            None => (0..self.sequences.len()).min_by_key(|&idx| self.sequences[idx].last_used).unwrap_or(0),
        };
        let cached = &mut self.sequences[idx];
        cached.last_used = self.n_uses;
        let n_common = cached.n_common(body);
        cached.sequence.truncate(n_common);
        cached.tokens.truncate(n_common);
        cached
    }
}
