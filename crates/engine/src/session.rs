//! The session: a model with its caches and drafters, and the decode loop.

use std::sync::Arc;
use std::time::Instant;

use model::Model;
use speculate::{PassCosts, PublishedTree, Sampler, Target, TokenRecycling, step};

use crate::completion::{Completion, CompletionRequest, Speculation, StepEvent, StopReason};
use crate::drafting::Drafting;
use crate::prompt::{PromptBudget, PromptFormat};
use crate::run::Run;
use crate::sequences::SequencePool;
use crate::{CancelToken, EngineError};

/// Rows of a prefill pass. A cancel waits for one pass at most.
pub(crate) const PREFILL_ROWS: usize = 32;
/// Seconds that the text after the cursor may take: where the prompt has it behind the text before, each
/// keystroke computes it anew.
const SUFFIX_SECONDS: f64 = 0.12;
/// The suffix is cut to a power of two between these, so that it stays the same from run to run.
const SUFFIX_TOKENS: std::ops::RangeInclusive<usize> = 32..=4096;

/// What a session knows from elsewhere.
#[derive(Debug, Default)]
pub struct SessionConfig {
    /// What passes cost on this device; a guess without it.
    pub costs: Option<PassCosts>,
    /// What token recycling has learnt in earlier sessions.
    pub recycling: TokenRecycling,
}

/// A model with the tokens that its caches hold, and drafters that learn.
pub struct Session {
    model: Arc<Model>,
    format: PromptFormat,
    sequences: SequencePool,
    drafting: Drafting,
    costs: Option<PassCosts>,
}

impl Session {
    /// A session on `model` that knows nothing yet.
    pub fn new(model: &Arc<Model>) -> Self {
        Self::with(model, SessionConfig::default())
    }

    /// A session on `model`.
    pub fn with(model: &Arc<Model>, config: SessionConfig) -> Self {
        let SessionConfig { costs, recycling } = config;
        Self {
            model: model.clone(),
            format: PromptFormat::of(model.tokenizer()),
            sequences: SequencePool::new(model),
            drafting: Drafting::new(model.n_adaptive_tokens(), costs.clone(), recycling),
            costs,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How the model is asked for the middle of a text.
    pub fn format(&self) -> PromptFormat {
        self.format
    }

    /// How two-pass SDSAT drafts: with at most so many slots (0 decodes ordinarily), and with a tree of
    /// the paper instead of a chain.
    pub fn set_two_pass(&mut self, max_slots: Option<usize>, tree: Option<PublishedTree>) {
        self.drafting.set_two_pass(max_slots, tree);
    }

    /// What token recycling has learnt, for the next session.
    pub fn save_recycling(&self) -> Vec<u8> {
        self.drafting.recycling().lock().save()
    }

    /// Number of tokens and pairs that token recycling knows.
    pub fn n_recycled(&self) -> usize {
        self.drafting.recycling().lock().len()
    }

    /// The budget of a prompt on this device and for this model's context.
    fn budget(&self, budget: PromptBudget, max_tokens: usize) -> PromptBudget {
        let room = self.model.context_length().saturating_sub(max_tokens.min(64)).max(2);
        // Where the suffix comes first it stays in the cache.
        let costs = self.costs.as_ref().filter(|_| !self.format.is_suffix_first());
        let suffix_by_time = costs.map_or(usize::MAX, |costs| {
            let n_tokens = SUFFIX_SECONDS * 1000.0 / costs.of(PREFILL_ROWS) * PREFILL_ROWS as f64;
            let power = (n_tokens.max(1.0) as usize).checked_ilog2().unwrap_or(0);
            (1usize << power.min(20)).clamp(*SUFFIX_TOKENS.start(), *SUFFIX_TOKENS.end())
        });
        PromptBudget {
            prefix_tokens: budget.prefix_tokens.min(room * 3 / 4).max(1),
            suffix_tokens: budget.suffix_tokens.min(room / 4).min(suffix_by_time),
        }
    }

    /// Completes `request`, telling `on_step` after every forward pass. The part of the prompt
    /// that a cache holds from earlier requests is not computed again.
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
        let model = self.model.clone();
        let tokenizer = model.tokenizer();
        let budget = self.budget(budget, request.max_tokens);
        let mut context = self.format.render(tokenizer, &request.prefix, &request.suffix, budget)?;
        if context.is_empty() {
            context.extend(tokenizer.special("<|endoftext|>"));
        }
        if context.is_empty() {
            let (field, bound) = ("prefix", "not empty for this model".to_owned());
            return Err(EngineError::InvalidRequest { field, bound, got: "0 bytes".to_owned() });
        }
        if matches!(request.speculation, Speculation::Free | Speculation::Auto) {
            self.drafting.set_documents(&request.other_files, |text| tokenizer.encode(text))?;
        }

        let mut run = Run::new(request, context.len(), started);
        let cached = self.sequences.for_prompt(&context);
        run.n_reused_tokens = cached.tokens.len();
        cached.sequence.probe_with(&context)?;
        // The last rows of the prompt ride on the first step: they decide the first token, and draft.
        let body = &context[cached.tokens.len()..];
        let n_first = (body.len() - 1) % PREFILL_ROWS + 1;
        for chunk in body[..body.len() - n_first].chunks(PREFILL_ROWS) {
            if cancel.is_cancelled() {
                return Ok(run.end(StopReason::Cancelled));
            }
            cached.sequence.prefill(chunk)?;
            cached.tokens.extend(chunk);
        }

        let drafter = self.drafting.of(request.speculation);
        drafter.begin(&context);
        let reason = loop {
            let n_left = request.max_tokens - run.n_tokens();
            let room = model.context_length().saturating_sub(context.len());
            if n_left == 0 {
                break StopReason::MaxTokens;
            }
            if room == 0 {
                break StopReason::ContextLimit;
            }
            if cancel.is_cancelled() {
                break StopReason::Cancelled;
            }
            let n_pending = context.len() - cached.sequence.n_committed();
            let mut proposal = drafter.propose(&context, n_pending);
            let max_drafts = n_left.min(room) - 1;
            proposal.truncate_depth(max_drafts);
            if max_drafts == 0 {
                proposal.adaptive_groups.clear();
            }
            let has_groups = !proposal.adaptive_groups.is_empty();
            let step_started = Instant::now();
            let outcome = step(&mut cached.sequence, &context, n_pending, proposal, &sampler)?;
            if n_pending == 1 && !has_groups {
                drafter.observe_time(outcome.n_rows, step_started.elapsed().as_secs_f64() * 1000.0);
            }
            context.extend(&outcome.tokens);
            drafter.observe(&context, &outcome);
            let n_committed = cached.sequence.n_committed();
            cached.tokens.extend(&context[cached.tokens.len()..n_committed]);
            let (event, ended) = run.take(tokenizer, &outcome, n_pending);
            on_step(event);
            if let Some(reason) = ended {
                break reason;
            }
        };
        drafter.end(&context);
        let rest = run.finish_text(reason);
        if !rest.is_empty() {
            on_step(StepEvent { pieces: rest, ..StepEvent::default() });
        }
        Ok(run.end(reason))
    }
}
