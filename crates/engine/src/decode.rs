//! The decode loop, and the session that keeps a cache between requests.

use std::sync::Arc;
use std::time::Instant;

use model::{Model, Sequence};
use speculate::{Drafter, OrdinaryDecoding, Sampler, StepOutcome, Target, TwoPassSdsat, step};

use crate::completion::{Completion, CompletionRequest, Piece, Speculation, StepEvent, StopReason};
use crate::output::OutputFilter;
use crate::prompt::{PromptBudget, PromptFormat};
use crate::{CancelToken, EngineError};

/// Rows of a prefill pass. A cancel waits for one pass at most.
pub(crate) const PREFILL_ROWS: usize = 32;

/// A model with the tokens that its cache holds.
pub struct Session {
    sequence: Sequence,
    format: PromptFormat,
    /// Tokens of the committed rows.
    cached: Vec<u32>,
}

impl Session {
    /// A session on `model` with an empty cache.
    pub fn new(model: &Arc<Model>) -> Self {
        let format = PromptFormat::of(model.tokenizer());
        Self { sequence: model.sequence(), format, cached: Vec::new() }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.sequence.model()
    }

    /// How the model is asked for the middle of a text.
    pub fn format(&self) -> PromptFormat {
        self.format
    }

    /// Completes `request`, telling `on_step` after every forward pass. The part of the prompt
    /// that the cache holds from earlier requests is not computed again.
    ///
    /// # Errors
    /// A request outside its limits, or a failing model. The session stays usable.
    pub fn complete(
        &mut self,
        request: &CompletionRequest,
        budget: PromptBudget,
        cancel: &CancelToken,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<Completion, EngineError> {
        let started = Instant::now();
        request.check()?;
        let sampler = Sampler::new(request.sampling.clone())?;
        let tokenizer = self.model().clone();
        let tokenizer = tokenizer.tokenizer();
        let room = self.model().context_length().saturating_sub(request.max_tokens.min(64)).max(2);
        let budget = PromptBudget {
            prefix_tokens: budget.prefix_tokens.min(room * 3 / 4).max(1),
            suffix_tokens: budget.suffix_tokens.min(room / 4),
        };
        let mut context = self.format.render(tokenizer, &request.prefix, &request.suffix, budget)?;
        if context.is_empty() {
            context.extend(tokenizer.special("<|endoftext|>"));
        }
        if context.is_empty() {
            let (field, bound) = ("prefix", "not empty for this model".to_owned());
            return Err(EngineError::InvalidRequest { field, bound, got: "0 bytes".to_owned() });
        }

        let mut run = Run::new(request, context.len(), started);
        if !self.prefill(&context, cancel, &mut run)? {
            return Ok(run.end(StopReason::Cancelled));
        }
        let mut pending = vec![context[context.len() - 1]];
        let mut drafter: Box<dyn Drafter> = match request.speculation {
            Speculation::Sdsat if self.model().n_adaptive_tokens() > 0 => Box::new(TwoPassSdsat::default()),
            _ => Box::new(OrdinaryDecoding),
        };
        let reason = loop {
            let n_left = request.max_tokens - run.tokens.len();
            let room = self.model().context_length().saturating_sub(context.len());
            if n_left == 0 {
                break StopReason::MaxTokens;
            }
            if room == 0 {
                break StopReason::ContextLimit;
            }
            if cancel.is_cancelled() {
                break StopReason::Cancelled;
            }
            let mut proposal = drafter.propose(&context);
            let max_drafts = n_left.min(room) - 1;
            proposal.truncate_depth(max_drafts);
            if max_drafts == 0 {
                proposal.adaptive_groups.clear();
            }
            let outcome = step(&mut self.sequence, &pending, proposal, &sampler)?;
            drafter.observe(&outcome);
            context.extend(&outcome.tokens);
            self.cached = context[..self.sequence.n_committed()].to_vec();
            pending = vec![context[context.len() - 1]];
            let (event, ended) = run.take(tokenizer, &outcome);
            on_step(event);
            if let Some(reason) = ended {
                break reason;
            }
        };
        let rest = run.finish_text(reason);
        if !rest.is_empty() {
            on_step(StepEvent { pieces: rest, n_drafted: 0, n_accepted: 0 });
        }
        Ok(run.end(reason))
    }

    /// Computes all of `context` but its last token. `false` when cancelled on the way.
    fn prefill(&mut self, context: &[u32], cancel: &CancelToken, run: &mut Run) -> Result<bool, EngineError> {
        let body = &context[..context.len() - 1];
        let n_reused = self.cached.iter().zip(body).take_while(|(a, b)| a == b).count();
        self.sequence.truncate(n_reused);
        self.cached.truncate(n_reused);
        run.n_reused_tokens = n_reused;
        for chunk in body[n_reused..].chunks(PREFILL_ROWS) {
            if cancel.is_cancelled() {
                return Ok(false);
            }
            self.sequence.prefill(chunk)?;
            self.cached.extend(chunk);
        }
        run.decode_started = Some(Instant::now());
        Ok(true)
    }
}

/// One completion in the making.
struct Run {
    filter: Option<OutputFilter>,
    text: String,
    tokens: Vec<u32>,
    n_steps: usize,
    n_drafted: usize,
    n_accepted: usize,
    accepted_per_slot: Vec<usize>,
    drafted_per_slot: Vec<usize>,
    n_prompt_tokens: usize,
    n_reused_tokens: usize,
    started: Instant,
    decode_started: Option<Instant>,
    first_token: Option<Instant>,
}

impl Run {
    fn new(request: &CompletionRequest, n_prompt_tokens: usize, started: Instant) -> Self {
        Self {
            filter: Some(OutputFilter::new(&request.stop, &request.suffix)),
            text: String::new(),
            tokens: Vec::new(),
            n_steps: 0,
            n_drafted: 0,
            n_accepted: 0,
            accepted_per_slot: Vec::new(),
            drafted_per_slot: Vec::new(),
            n_prompt_tokens,
            n_reused_tokens: 0,
            started,
            decode_started: None,
            first_token: None,
        }
    }

    /// Takes the tokens of a step, up to one that ends the completion.
    fn take(
        &mut self,
        tokenizer: &model::Tokenizer,
        outcome: &StepOutcome,
    ) -> (StepEvent, Option<StopReason>) {
        self.first_token.get_or_insert_with(Instant::now);
        self.n_steps += 1;
        let mut n_accepted = 0;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut ended = None;
        for (idx, &token) in outcome.tokens.iter().enumerate() {
            let drafted = idx < outcome.accepted_path.len();
            n_accepted += usize::from(drafted);
            self.tokens.push(token);
            if tokenizer.ends_text(token) {
                ended = Some(StopReason::EndOfText);
                break;
            }
            let Some(filter) = &mut self.filter else { break };
            let (new, reason) = filter.push(tokenizer.bytes(token), drafted);
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
        (StepEvent { pieces, n_drafted, n_accepted }, ended)
    }

    /// What the filter still held, after an end that was not its own finding.
    fn finish_text(&mut self, reason: StopReason) -> Vec<Piece> {
        let found_by_filter = matches!(reason, StopReason::StopString | StopReason::FollowingText);
        let filter = self.filter.take().filter(|_| !found_by_filter);
        let rest = filter.map(OutputFilter::finish).unwrap_or_default();
        self.text.extend(rest.iter().map(|piece| piece.text.as_str()));
        rest
    }

    fn end(self, stop_reason: StopReason) -> Completion {
        let n_tokens = self.tokens.len();
        let milliseconds = |instant: Instant| (instant - self.started).as_secs_f64() * 1000.0;
        let decode_seconds = self.decode_started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let shares = self.accepted_per_slot.iter().zip(&self.drafted_per_slot);
        Completion {
            n_tokens,
            n_steps: self.n_steps,
            n_drafted: self.n_drafted,
            n_accepted: self.n_accepted,
            accepted_per_slot: shares.map(|(&a, &n)| ratio(a as f64, n as f64)).collect(),
            mean_accepted_tokens: ratio(n_tokens as f64, self.n_steps as f64),
            ttft_ms: self.first_token.map_or(0.0, milliseconds),
            tokens_per_s: ratio(n_tokens as f64, decode_seconds),
            total_ms: milliseconds(Instant::now()),
            n_prompt_tokens: self.n_prompt_tokens,
            n_reused_tokens: self.n_reused_tokens,
            stop_reason,
            text: self.text,
            drafted_per_slot: self.drafted_per_slot,
            tokens: self.tokens,
        }
    }
}
