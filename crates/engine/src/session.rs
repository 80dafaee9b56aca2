//! The session: a model with its caches and drafters, and the completions that run on them.

use std::sync::Arc;

use model::Model;
use speculate::{PassCosts, PublishedTree, TokenRecycling};

use crate::completion::{Completion, CompletionRequest, Outcome, Speculation, StepEvent};
use crate::context::{self, ContextTexts};
use crate::drafting::Drafting;
use crate::generation::{Generation, Progress};
use crate::prompt::{Prompt, PromptFormat};
use crate::sequences::SequencePool;
use crate::{CancelToken, EngineError};

/// Memory that the caches of a session may take together, where nothing else is said.
pub(crate) const DEFAULT_CACHE_BYTES: usize = 1 << 30;
/// Tokens that a prompt leaves for the completion at least, where the context is short.
const MIN_COMPLETION_TOKENS: usize = 64;

/// What a session knows from elsewhere.
#[derive(Debug)]
pub struct SessionConfig {
    /// What passes cost on this device; a guess without it.
    pub costs: Option<PassCosts>,
    /// What token recycling has learnt in earlier sessions.
    pub recycling: TokenRecycling,
    /// Memory that the caches may take together.
    pub cache_bytes: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { costs: None, recycling: TokenRecycling::default(), cache_bytes: DEFAULT_CACHE_BYTES }
    }
}

/// A model with the tokens that its caches hold, and drafters that learn.
pub struct Session {
    model: Arc<Model>,
    format: PromptFormat,
    pub(crate) sequences: SequencePool,
    drafting: Drafting,
}

impl Session {
    /// A session on `model` that knows nothing yet.
    pub fn new(model: &Arc<Model>) -> Self {
        Self::with(model, SessionConfig::default())
    }

    /// A session on `model`.
    pub fn with(model: &Arc<Model>, config: SessionConfig) -> Self {
        let SessionConfig { costs, recycling, cache_bytes } = config;
        Self {
            model: model.clone(),
            format: PromptFormat::of(model.tokenizer()),
            sequences: SequencePool::new(model, cache_bytes),
            drafting: Drafting::new(model.n_adaptive_tokens(), costs, recycling),
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How the model is asked for the middle of a text.
    pub fn format(&self) -> &PromptFormat {
        &self.format
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

    /// What the model is asked for `request`, a function of the request and the model's file alone.
    ///
    /// # Errors
    /// Those of the tokenizer, and an empty prompt for a model that has no token for it.
    pub fn prompt(&self, request: &CompletionRequest) -> Result<Prompt, EngineError> {
        let tokenizer = self.model.tokenizer();
        let room = self.model.context_length().saturating_sub(request.max_tokens.min(MIN_COMPLETION_TOKENS));
        let texts = ContextTexts {
            prefix: &request.prefix,
            suffix: &request.suffix,
            path: request.path.as_deref(),
            repository: &request.repository,
            other_files: &request.other_files,
            recent_edits: &request.recent_edits,
        };
        let mut prompt = context::build(&self.format, tokenizer, texts, request.budget.within(room.max(2)))?;
        if prompt.tokens.is_empty() {
            prompt.tokens.extend(tokenizer.special("<|endoftext|>"));
        }
        if prompt.tokens.is_empty() {
            let (field, bound) = ("prefix", "not empty for this model".to_owned());
            return Err(EngineError::InvalidRequest { field, bound, got: "0 bytes".to_owned() });
        }
        Ok(prompt)
    }

    /// Begins a completion, which [`advance`](Self::advance) carries on.
    pub(crate) fn begin(&mut self, request: CompletionRequest) -> Result<Generation, EngineError> {
        request.check()?;
        let mut prompt = self.prompt(&request)?;
        let healing = self.heal(&request, &mut prompt);
        let model = self.model.clone();
        if matches!(request.speculation, Speculation::Free | Speculation::Auto) {
            self.drafting
                .set_documents(&request.other_files, |text| model.tokenizer().encode_inside(text))?;
        }
        let drafter = self.drafting.take(request.speculation);
        Generation::new(request, prompt, healing, drafter)
    }

    /// Where a plain continuation follows a word that is being typed, its last token is written anew: the
    /// text may go on with another. Models that fill in were trained on places within words.
    fn heal(&self, request: &CompletionRequest, prompt: &mut Prompt) -> Vec<u8> {
        let tokenizer = self.model.tokenizer();
        let is_plain = !self.format.can_infill() || request.suffix.trim().is_empty();
        let last = prompt.tokens.last().map(|&token| tokenizer.bytes(token).to_vec()).unwrap_or_default();
        let ends_line = request.prefix.ends_with(['\n', '\r']);
        if !is_plain || ends_line || last.is_empty() || prompt.tokens.len() < 2 {
            return Vec::new();
        }
        prompt.tokens.pop();
        last
    }

    /// Whether a completion without cache can get one.
    pub(crate) fn has_room(&self) -> bool {
        self.sequences.has_room()
    }

    /// Runs one forward pass of `generation`, which `cancel` may cut short.
    ///
    /// # Errors
    /// Those of the model, [`ModelError::Cancelled`](model::ModelError::Cancelled) among them;
    /// [`EngineError::NoSequence`] when it needs a cache and all are in use.
    pub(crate) fn advance(
        &mut self,
        generation: &mut Generation,
        cancel: &CancelToken,
    ) -> Result<Progress, EngineError> {
        if !generation.has_sequence() {
            let cached = self.sequences.take(generation.context())?.ok_or(EngineError::NoSequence)?;
            generation.resume(cached)?;
        }
        generation.advance(&self.model, cancel)
    }

    /// Takes the cache of a completion away, for another that is more urgent.
    pub(crate) fn suspend(&mut self, generation: &mut Generation) {
        if let Some(cached) = generation.suspend() {
            self.sequences.give_back(cached);
        }
    }

    /// Ends a completion, and keeps what it leaves for the next. `None` when it was not at its end.
    pub(crate) fn end(&mut self, generation: Generation) -> Option<Completion> {
        let speculation = generation.request().speculation;
        let (cached, drafter, completion) = generation.into_parts();
        if let Some(cached) = cached {
            self.sequences.give_back(cached);
        }
        self.drafting.give_back(speculation, drafter);
        completion
    }

    /// Completes `request`.
    ///
    /// # Errors
    /// Those of [`complete_with`](Self::complete_with).
    pub fn complete(&mut self, request: &CompletionRequest) -> Result<Completion, EngineError> {
        match self.complete_with(request, &CancelToken::default(), &mut |_| ())? {
            Outcome::Ended(completion) => Ok(*completion),
            Outcome::Superseded | Outcome::Cancelled => Err(EngineError::Stopped),
        }
    }

    /// Completes `request`, telling `on_step` after every forward pass of the decode loop. The part of the
    /// prompt that a cache holds from earlier requests is not computed again.
    ///
    /// # Errors
    /// A request outside its limits, or a failing model. The session stays usable.
    pub fn complete_with(
        &mut self,
        request: &CompletionRequest,
        cancel: &CancelToken,
        on_step: &mut dyn FnMut(StepEvent),
    ) -> Result<Outcome, EngineError> {
        let mut generation = self.begin(request.clone())?;
        let has_ended = loop {
            if cancel.is_cancelled() {
                break Ok(());
            }
            match self.advance(&mut generation, cancel) {
                Ok(Progress::Prefilled) => (),
                Ok(Progress::Step(event)) => on_step(event),
                Ok(Progress::Ended(event)) => {
                    on_step(event);
                    break Ok(());
                }
                Err(error) if error.is_cancelled() => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let completion = self.end(generation);
        has_ended?;
        Ok(completion.map_or(Outcome::Cancelled, |completion| Outcome::Ended(Box::new(completion))))
    }
}
