//! One completion in the making: its text, and how it comes about.

use std::collections::BTreeMap;
use std::time::Instant;

use speculate::{DraftSource, StepOutcome};

use crate::completion::{AcceptedDrafts, Completion, CompletionRequest, Piece, StepEvent, StopReason};
use crate::output::{Around, OutputFilter};

/// One completion in the making.
pub(crate) struct Run {
    filter: Option<OutputFilter>,
    text: String,
    tokens: Vec<u32>,
    n_steps: usize,
    n_rows: usize,
    n_drafted: usize,
    n_accepted: usize,
    n_accepted_by: BTreeMap<DraftSource, usize>,
    accepted_per_slot: Vec<usize>,
    drafted_per_slot: Vec<usize>,
    n_prompt_tokens: usize,
    n_reused_tokens: usize,
    /// Bytes at the beginning that stand before the cursor already.
    n_healed: usize,
    started: Instant,
    /// When the first step was over, and the tokens that it brought.
    first_step: Option<(Instant, usize)>,
}

impl Run {
    /// `n_healed` bytes are written that stand before the cursor already.
    pub(crate) fn new(request: &CompletionRequest, n_prompt_tokens: usize, n_healed: usize) -> Self {
        Self {
            filter: Some(OutputFilter::new(request.extent, &request.stop, Around::of(request))),
            text: String::new(),
            tokens: Vec::new(),
            n_steps: 0,
            n_rows: 0,
            n_drafted: 0,
            n_accepted: 0,
            n_accepted_by: BTreeMap::new(),
            accepted_per_slot: Vec::new(),
            drafted_per_slot: Vec::new(),
            n_prompt_tokens,
            n_reused_tokens: 0,
            n_healed,
            started: Instant::now(),
            first_step: None,
        }
    }

    /// Tokens of the prompt that were in a cache.
    pub(crate) fn reused(&mut self, n_tokens: usize) {
        self.n_reused_tokens = n_tokens;
    }

    /// Tokens so far.
    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Takes the tokens of a step over `n_pending` tokens and drafts, up to one that ends the completion.
    pub(crate) fn take(
        &mut self,
        tokenizer: &model::Tokenizer,
        outcome: &StepOutcome,
        n_pending: usize,
    ) -> (StepEvent, Option<StopReason>) {
        self.n_steps += 1;
        // Of the prompt's rows only the last belongs to decoding.
        self.n_rows += outcome.n_rows + 1 - n_pending;
        let mut n_accepted = 0;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut ended = None;
        for (idx, &token) in outcome.tokens.iter().enumerate() {
            let drafted = idx < outcome.accepted_path.len();
            n_accepted += usize::from(drafted);
            if let Some(&node) = outcome.accepted_path.get(idx) {
                *self.n_accepted_by.entry(outcome.drafts.nodes()[node].source).or_default() += 1;
            }
            self.tokens.push(token);
            if tokenizer.ends_text(token) {
                ended = Some(StopReason::EndOfText);
                break;
            }
            let Some(filter) = &mut self.filter else { break };
            let bytes = tokenizer.bytes(token);
            let n_healed = self.n_healed.min(bytes.len());
            self.n_healed -= n_healed;
            let (new, reason) = filter.push(&bytes[n_healed..], drafted);
            pieces.extend(new);
            if reason.is_some() {
                ended = reason;
                break;
            }
        }
        self.text.extend(pieces.iter().map(|piece| piece.text.as_str()));

        let n_drafted = outcome.drafts.nodes().len();
        let depth = outcome.drafts.nodes().iter().map(|node| node.depth).max().unwrap_or(0);
        self.drafted_per_slot.resize(self.drafted_per_slot.len().max(depth), 0);
        self.accepted_per_slot.resize(self.drafted_per_slot.len(), 0);
        self.drafted_per_slot[..depth].iter_mut().for_each(|n| *n += 1);
        self.accepted_per_slot[..n_accepted].iter_mut().for_each(|n| *n += 1);
        self.n_drafted += n_drafted;
        self.n_accepted += n_accepted;
        self.first_step.get_or_insert_with(|| (Instant::now(), self.tokens.len()));
        let explanation = outcome.decision.map(|decision| decision.to_string());
        (StepEvent { pieces, n_drafted, n_accepted, n_rows: outcome.n_rows, explanation }, ended)
    }

    /// What the filter still held.
    pub(crate) fn finish_text(&mut self, reason: StopReason) -> Vec<Piece> {
        let rest = self.filter.take().map(|filter| filter.finish(reason)).unwrap_or_default();
        self.text.extend(rest.iter().map(|piece| piece.text.as_str()));
        rest
    }

    pub(crate) fn end(self, stop_reason: StopReason) -> Completion {
        let n_tokens = self.tokens.len();
        let milliseconds = |instant: Instant| (instant - self.started).as_secs_f64() * 1000.0;
        let decode = self.first_step.map(|(started, n)| (started.elapsed().as_secs_f64(), n_tokens - n));
        let (decode_seconds, n_decoded) = decode.unwrap_or((0.0, 0));
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let shares = self.accepted_per_slot.iter().zip(&self.drafted_per_slot);
        Completion {
            n_tokens,
            n_steps: self.n_steps,
            n_drafted: self.n_drafted,
            n_accepted: self.n_accepted,
            accepted_per_slot: shares.map(|(&a, &n)| ratio(a as f64, n as f64)).collect(),
            mean_accepted_tokens: ratio(n_tokens as f64, self.n_steps as f64),
            mean_rows: ratio(self.n_rows as f64, self.n_steps as f64),
            accepted_by_drafter: self
                .n_accepted_by
                .iter()
                .map(|(source, &n_accepted)| AcceptedDrafts { drafter: source.name().to_owned(), n_accepted })
                .collect(),
            ttft_ms: self.first_step.map_or(0.0, |(instant, _)| milliseconds(instant)),
            tokens_per_s: ratio(n_decoded as f64, decode_seconds),
            total_ms: milliseconds(Instant::now()),
            n_prompt_tokens: self.n_prompt_tokens,
            n_reused_tokens: self.n_reused_tokens,
            stop_reason,
            alternatives: Vec::new(),
            text: self.text,
            drafted_per_slot: self.drafted_per_slot,
            tokens: self.tokens,
        }
    }
}
