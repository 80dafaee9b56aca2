//! One completion in the making, a forward pass at a time.

use model::{Model, Tokenizer};
use speculate::{Drafter, Sampler, SamplingParams, Target, step, step_among};

use crate::completion::{Completion, CompletionRequest, StepEvent, StopReason};
use crate::prompt::Prompt;
use crate::run::Run;
use crate::sequences::CachedSequence;
use crate::{CancelToken, EngineError};

/// Rows of a prefill pass: a cancel, or a request that is more urgent, waits for one pass at most.
pub(crate) const PREFILL_ROWS: usize = 32;

/// What a pass brought.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Progress {
    /// Tokens of the prompt are in the cache.
    Prefilled,
    /// A step of the decode loop; the completion goes on.
    Step(StepEvent),
    /// The last step, with what was held back.
    Ended(StepEvent),
}

/// A completion that can be left between any two passes and taken up again, with another cache if need be.
pub(crate) struct Generation {
    request: CompletionRequest,
    sampler: Sampler,
    /// The prompt and the tokens since, in the order of the cache.
    context: Prompt,
    n_prompt: usize,
    run: Run,
    drafter: Box<dyn Drafter>,
    has_begun: bool,
    cached: Option<CachedSequence>,
    /// Bytes before the cursor that are no part of the prompt: the text must begin with them.
    healing: Vec<u8>,
    constraint: Constraint,
    /// The likeliest tokens behind the prompt, for the alternatives.
    first_tokens: Vec<u32>,
    /// The completion, while alternatives are written.
    completion: Option<Completion>,
    n_alternatives: usize,
}

/// What the next token must be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Constraint {
    Free,
    /// With those that follow, these bytes and more.
    Begins(Vec<u8>),
    /// This one.
    Is(u32),
}

impl Constraint {
    fn begins(bytes: &[u8]) -> Self {
        if bytes.is_empty() { Self::Free } else { Self::Begins(bytes.to_vec()) }
    }

    fn allows(&self, tokenizer: &Tokenizer, token: u32) -> bool {
        match self {
            Self::Free => true,
            Self::Is(only) => token == *only,
            Self::Begins(bytes) => {
                let spelled = tokenizer.bytes(token);
                !spelled.is_empty() && (spelled.starts_with(bytes) || bytes.starts_with(spelled))
            }
        }
    }

    /// What is left of it behind a token that spells `bytes`.
    fn after(&self, spelled: &[u8]) -> Self {
        match self {
            Self::Begins(bytes) => Self::begins(&bytes[spelled.len().min(bytes.len())..]),
            Self::Free | Self::Is(_) => Self::Free,
        }
    }
}

impl Generation {
    /// `healing` are bytes before the cursor that are no part of `prompt`.
    pub(crate) fn new(
        request: CompletionRequest,
        prompt: Prompt,
        healing: Vec<u8>,
        drafter: Box<dyn Drafter>,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            sampler: Sampler::new(request.sampling.clone())?,
            n_prompt: prompt.tokens.len(),
            run: Run::new(&request, prompt.tokens.len(), healing.len()),
            context: prompt,
            drafter,
            has_begun: false,
            cached: None,
            constraint: Constraint::begins(&healing),
            healing,
            first_tokens: Vec::new(),
            completion: None,
            n_alternatives: 0,
            request,
        })
    }

    pub(crate) fn request(&self) -> &CompletionRequest {
        &self.request
    }

    /// Whether it has a cache to run on.
    pub(crate) fn has_sequence(&self) -> bool {
        self.cached.is_some()
    }

    /// All tokens so far, for choosing a cache.
    pub(crate) fn context(&self) -> &Prompt {
        &self.context
    }

    /// Gives it a cache, which holds the beginning of its context.
    pub(crate) fn resume(&mut self, mut cached: CachedSequence) -> Result<(), EngineError> {
        cached.sequence.probe_with(&self.context.tokens[..self.n_prompt])?;
        if !self.has_begun {
            self.run.reused(cached.tokens.len());
        }
        self.cached = Some(cached);
        Ok(())
    }

    /// Takes its cache away; it goes on with another.
    pub(crate) fn suspend(&mut self) -> Option<CachedSequence> {
        self.cached.take()
    }

    /// Ends it, wherever it is.
    pub(crate) fn into_parts(mut self) -> (Option<CachedSequence>, Box<dyn Drafter>, Option<Completion>) {
        if self.has_begun {
            self.drafter.end(&self.context.tokens);
        }
        (self.cached, self.drafter, self.completion)
    }

    /// Runs one forward pass. One that only decodes is given up in its midst when `cancel` says so: nobody has
    /// a use for it. What is computed of a prompt is what the next one begins with.
    ///
    /// # Panics
    /// Without a cache.
    pub(crate) fn advance(&mut self, model: &Model, cancel: &CancelToken) -> Result<Progress, EngineError> {
        let cached = self.cached.as_mut().expect("invariant: a generation advances with a cache only");
        if cached.prefill_part(&self.context)? {
            return Ok(Progress::Prefilled);
        }
        self.step(model, cancel)
    }

    /// A pass that decides at least one token. The last rows of the prompt ride on the first: they decide the
    /// first token, and draft.
    fn step(&mut self, model: &Model, cancel: &CancelToken) -> Result<Progress, EngineError> {
        let tokenizer = model.tokenizer();
        if !std::mem::replace(&mut self.has_begun, true) {
            self.drafter.begin(&self.context.tokens);
        }
        let cached = self.cached.as_mut().expect("invariant: a generation advances with a cache only");
        let context = &mut self.context.tokens;
        let n_pending = context.len() - cached.tokens.len();
        let is_cancelled = || n_pending == 1 && cancel.is_cancelled();
        let n_left = self.request.max_tokens - self.run.n_tokens();
        let room = model.context_length().saturating_sub(context.len());
        if room == 0 {
            return Ok(self.end(StopReason::ContextLimit, StepEvent::default()));
        }
        let outcome = if self.constraint == Constraint::Free {
            let mut proposal = self.drafter.propose(context, n_pending);
            let max_drafts = n_left.min(room) - 1;
            proposal.truncate_depth(max_drafts);
            if max_drafts == 0 {
                proposal.adaptive_groups.clear();
            }
            let has_groups = !proposal.adaptive_groups.is_empty();
            let started = std::time::Instant::now();
            let mut target = cached.sequence.unless(&is_cancelled);
            let outcome = step(&mut target, context, n_pending, proposal, &self.sampler)?;
            if n_pending == 1 && !has_groups {
                self.drafter.observe_time(outcome.n_rows, started.elapsed().as_secs_f64() * 1000.0);
            }
            outcome
        } else {
            let constraint = &self.constraint;
            let is_allowed = |token| constraint.allows(tokenizer, token);
            let mut target = cached.sequence.unless(&is_cancelled);
            let outcome = step_among(&mut target, context, n_pending, &self.sampler, is_allowed)?;
            let spelled = tokenizer.bytes(outcome.tokens[0]);
            self.constraint = match constraint {
                // The first of the tokens that must spell what is healed.
                Constraint::Is(_) => Constraint::begins(&self.healing).after(spelled),
                _ => constraint.after(spelled),
            };
            outcome
        };
        if self.run.n_tokens() == 0 && self.completion.is_none() {
            let root = outcome.rows.first().map(|row| row.ranked).unwrap_or_default();
            let likely = root.iter().filter(|(_, logit)| logit.is_finite()).map(|&(token, _)| token);
            self.first_tokens = likely.collect();
        }
        context.extend(&outcome.tokens);
        self.drafter.observe(context, &outcome);
        let n_committed = cached.sequence.n_committed();
        cached.tokens.extend(&context[cached.tokens.len()..n_committed]);
        let (event, ended) = self.run.take(tokenizer, &outcome, n_pending);
        let is_full = self.run.n_tokens() >= self.request.max_tokens;
        match ended.or(is_full.then_some(StopReason::MaxTokens)) {
            Some(reason) => Ok(self.end(reason, event)),
            // Alternatives come whole, with the end.
            None if self.completion.is_some() => Ok(Progress::Prefilled),
            None => Ok(Progress::Step(event)),
        }
    }

    /// Ends the text that is being written, and begins the next alternative if one is wanted.
    fn end(&mut self, reason: StopReason, mut event: StepEvent) -> Progress {
        event.pieces.extend(self.run.finish_text(reason));
        let next = Run::new(&self.request, self.n_prompt, self.healing.len());
        let ended = std::mem::replace(&mut self.run, next).end(reason);
        let is_first = self.completion.is_none();
        let completion = self.completion.get_or_insert(ended.clone());
        let is_new = ended.text != completion.text && !completion.alternatives.contains(&ended.text);
        if is_new && !ended.text.is_empty() {
            completion.alternatives.push(ended.text);
        }
        match (self.begin_alternative(), is_first) {
            (true, true) => Progress::Step(event),
            (true, false) => Progress::Prefilled,
            (false, true) => Progress::Ended(event),
            (false, false) => Progress::Ended(StepEvent::default()),
        }
    }

    /// Goes back to the end of the prompt, to go on otherwise from there. False when no more is wanted.
    fn begin_alternative(&mut self) -> bool {
        let Some(cached) = self.cached.as_mut() else { return false };
        if self.n_alternatives == self.request.n_alternatives {
            return false;
        }
        self.n_alternatives += 1;
        let SamplingParams { temperature, seed, .. } = self.request.sampling;
        if temperature > 0.0 {
            // Other draws at the same places.
            let seed = seed.wrapping_add(self.n_alternatives as u64);
            let Ok(sampler) = Sampler::new(SamplingParams { seed, ..self.request.sampling.clone() }) else {
                return false;
            };
            self.sampler = sampler;
            self.constraint = Constraint::begins(&self.healing);
        } else {
            // The next in likelihood of the tokens that the text can begin with.
            let Some(&token) = self.first_tokens.get(self.n_alternatives) else { return false };
            self.constraint = Constraint::Is(token);
        }
        self.context.tokens.truncate(self.n_prompt);
        cached.sequence.truncate(self.n_prompt - 1);
        cached.tokens.truncate(cached.sequence.n_committed());
        self.drafter.begin(&self.context.tokens);
        true
    }
}
