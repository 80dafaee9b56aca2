//! Several sequences on one model: a cache for each of the files that are worked on in turn.

use std::sync::Arc;

use model::{Model, ModelError, Sequence};
use speculate::{Layout, Target};

use crate::generation::PREFILL_ROWS;
use crate::prompt::Prompt;

/// Most sequences, whatever the memory.
const MAX_SEQUENCES: usize = 8;
/// Tokens that a prompt must share with a cache for that to be worth anything.
const MIN_COMMON: usize = 16;
/// A cache is another prompt's when more than this many of its tokens would go, and more than stay.
const MIN_LOST: usize = 128;

/// A sequence, and the tokens that its cache holds.
pub(crate) struct CachedSequence {
    pub(crate) sequence: Sequence,
    pub(crate) tokens: Vec<u32>,
    layout: Layout,
    last_used: u64,
}

impl CachedSequence {
    /// Tokens of the cache that are where `prompt` wants them, at most all of the prompt but its last.
    fn n_common(&self, prompt: &Prompt) -> usize {
        let body = &prompt.tokens[..prompt.tokens.len().saturating_sub(1)];
        let n = self.tokens.iter().zip(body).take_while(|(a, b)| a == b).count();
        let (ours, theirs) = (&self.layout, &prompt.layout);
        let start = match (ours.aside.is_empty(), theirs.aside.is_empty()) {
            (true, true) => return n,
            (false, true) => ours.aside.start,
            (true, false) => theirs.aside.start,
            (false, false) => ours.aside.start.min(theirs.aside.start),
        };
        let is_same = ours.aside == theirs.aside && ours.n_inner == theirs.n_inner && n >= theirs.aside.end;
        // Rows behind a line stand elsewhere when the line has another length.
        let n_line = ours.n_line.min(theirs.n_line);
        if is_same { n.min(theirs.aside.end + n_line) } else { n.min(start) }
    }

    /// Computes the next part of `prompt`, in a pass without logits. False when what is left of it fits into the
    /// pass that wants some.
    pub(crate) fn prefill_part(&mut self, prompt: &Prompt) -> Result<bool, ModelError> {
        let n_cached = self.tokens.len();
        let aside = &prompt.layout.aside;
        // Tokens aside, those before and those behind come in passes of their own.
        let boundary = [aside.start, aside.end].into_iter().find(|&at| !aside.is_empty() && n_cached < at);
        let rest = &prompt.tokens[n_cached..boundary.unwrap_or(prompt.tokens.len())];
        if boundary.is_none() && rest.len() <= PREFILL_ROWS {
            return Ok(false);
        }
        let part = &rest[..rest.len().min(PREFILL_ROWS)];
        self.sequence.prefill(part)?;
        self.tokens.extend(part);
        Ok(true)
    }

    /// Drops what differs from `prompt`, and takes its layout.
    fn begin(&mut self, prompt: &Prompt) -> Result<(), ModelError> {
        let n = self.n_common(prompt);
        self.sequence.truncate(n);
        self.tokens.truncate(self.sequence.n_committed());
        self.sequence.set_layout(prompt.layout.clone())?;
        self.layout = prompt.layout.clone();
        Ok(())
    }
}

/// The sequences of a session.
pub(crate) struct SequencePool {
    model: Arc<Model>,
    /// Those that no completion uses.
    free: Vec<CachedSequence>,
    n_made: usize,
    max_sequences: usize,
    n_uses: u64,
}

impl SequencePool {
    /// Sequences that take `memory_bytes` together at most, but always one.
    pub(crate) fn new(model: &Arc<Model>, memory_bytes: usize) -> Self {
        let max_sequences = (memory_bytes / model.sequence_bytes().max(1)).clamp(1, MAX_SEQUENCES);
        Self { model: model.clone(), free: Vec::new(), n_made: 0, max_sequences, n_uses: 0 }
    }

    /// Whether [`take`](Self::take) has one to give.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.n_made < self.max_sequences
    }

    /// The sequence that has most of `prompt` already, with what differs dropped: its cache holds the
    /// longest common prefix, at most all of `prompt` but its last token. Where that would cost another
    /// prompt's tokens, what is common is copied to a new one, or to the one that was left alone longest.
    /// `None` when all are in use.
    pub(crate) fn take(&mut self, prompt: &Prompt) -> Result<Option<CachedSequence>, ModelError> {
        self.n_uses += 1;
        let body_len = prompt.tokens.len().saturating_sub(1);
        let best = (0..self.free.len()).max_by_key(|&idx| {
            let cached = &self.free[idx];
            (cached.n_common(prompt), cached.last_used)
        });
        let n_best = best.map_or(0, |idx| self.free[idx].n_common(prompt));
        let is_own = |idx: usize| {
            let n_lost = self.free[idx].tokens.len() - n_best;
            self.free[idx].tokens.is_empty() || n_best > 0 && (n_lost <= MIN_LOST || n_lost <= n_best)
        };
        let idx = match best.filter(|&idx| is_own(idx)) {
            Some(idx) => idx,
            None => {
                let idx = if self.n_made < self.max_sequences {
                    let sequence = self.model.sequence()?;
                    let layout = Layout::default();
                    self.free.push(CachedSequence { sequence, tokens: Vec::new(), layout, last_used: 0 });
                    self.n_made += 1;
                    self.free.len() - 1
                } else {
                    let oldest = (0..self.free.len()).min_by_key(|&idx| self.free[idx].last_used);
                    let Some(oldest) = oldest else { return Ok(None) };
                    oldest
                };
                if let Some(best) = best.filter(|&best| best != idx && n_best >= MIN_COMMON.min(body_len)) {
                    self.copy(best, idx, prompt, n_best);
                }
                idx
            }
        };
        let mut cached = self.free.swap_remove(idx);
        cached.last_used = self.n_uses;
        match cached.begin(prompt) {
            Ok(()) => Ok(Some(cached)),
            Err(error) => {
                self.give_back(cached);
                Err(error)
            }
        }
    }

    /// Copies the tokens before those aside, which is what different places of a file have in common.
    fn copy(&mut self, from: usize, to: usize, prompt: &Prompt, n_common: usize) {
        let aside = &prompt.layout.aside;
        let n = if aside.is_empty() { n_common } else { n_common.min(aside.start) };
        let [from, to] = match self.free.get_disjoint_mut([from, to]) {
            Ok(pair) => pair,
            // The same one, or none: nothing to copy.
            Err(_) => return,
        };
        // A copy that fails leaves nothing, which is computed then.
        let _ = to.sequence.copy_prefix(&from.sequence, n);
        let n = to.sequence.n_committed();
        to.tokens.clear();
        to.tokens.extend_from_slice(&from.tokens[..n]);
        to.layout = Layout::default();
    }

    /// Gives a sequence back; what it holds may serve the next prompt.
    pub(crate) fn give_back(&mut self, cached: CachedSequence) {
        self.free.push(cached);
    }
}
