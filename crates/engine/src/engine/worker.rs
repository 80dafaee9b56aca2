//! The engine's thread: it loads models, and shares forward passes among the requests.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use model::{Model, ModelConfig, ModelError, give_back_freed_memory};

use super::events::EventSender;
use super::{EngineConfig, EngineState, LoadedModel, Order, Priority, Shared, lock};
use crate::device::{LoadedOn, load_on};
use crate::generation::{Generation, Progress};
use crate::learned::LearnedFiles;
use crate::memory::check_memory;
use crate::session::DEFAULT_CACHE_BYTES;
use crate::{
    CancelToken, Completion, CompletionRequest, EngineError, ErrorCode, MemoryNeeded, Outcome, Session,
    SessionConfig,
};

/// Adaptive tokens in a group of a model without adapter.
const PROBE_SLOTS: usize = 4;
/// Entries that token recycling learns before they are written down.
const SAVE_EVERY: usize = 2_000;

/// A request that was handed in.
pub(super) struct Job {
    pub(super) priority: Priority,
    pub(super) request: CompletionRequest,
    pub(super) cancel: CancelToken,
    pub(super) events: EventSender,
}

/// A request under way.
struct Active {
    job: Job,
    /// `None` until its first pass.
    generation: Option<Generation>,
    /// Passes that it has had.
    n_passes: usize,
    /// Order in which they came.
    number: u64,
}

/// A model that is ready, and what belongs to it.
struct Loaded {
    session: Session,
    words: LoadedModel,
    files: Option<LearnedFiles>,
    n_saved: usize,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    on_state: Box<dyn Fn(EngineState) + Send>,
    config: EngineConfig,
    loaded: Option<Loaded>,
    /// Why the model could not be loaded.
    failure: Option<(String, ErrorCode)>,
    active: Vec<Active>,
    n_jobs: u64,
    last_work: Instant,
}

/// Runs `work` and turns a panic into an error; what it worked on must be dropped.
fn guard<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(EngineError::Panic { message: message.unwrap_or_else(|| "unknown".to_owned()) })
    })
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        config: EngineConfig,
        on_state: impl Fn(EngineState) + Send + 'static,
    ) -> Self {
        Self {
            shared,
            on_state: Box::new(on_state),
            config,
            loaded: None,
            failure: None,
            active: Vec::new(),
            n_jobs: 0,
            last_work: Instant::now(),
        }
    }

    fn set_state(&self, state: EngineState) {
        let is_ready = matches!(state, EngineState::Ready(_) | EngineState::Thinking(_));
        if is_ready && self.is_interrupted() {
            // Another model has been ordered; nobody is to find this one.
            return;
        }
        let mut current = lock(&self.shared.state);
        if *current == state {
            return;
        }
        *current = state.clone();
        drop(current);
        self.shared.changed.notify_all();
        // A listener that panics has not heard it; that is no reason for nobody to hear anything any more.
        let _ = catch_unwind(AssertUnwindSafe(|| (self.on_state)(state)));
    }

    pub(super) fn run(mut self) {
        self.load();
        while let Some(order) = self.next_order() {
            match order {
                Order::Load(config) => {
                    self.unload();
                    self.config = *config;
                    self.load();
                }
                Order::Unload => {
                    self.unload();
                    if self.failure.is_none() {
                        self.set_state(EngineState::Unloaded { name: self.config.model_name.clone() });
                    }
                }
                Order::Work => self.work(),
            }
        }
        self.save(true);
        self.end_all(|| Err(EngineError::Stopped));
    }

    /// What to do next; waits while there is nothing. `None` when the engine is to stop.
    fn next_order(&mut self) -> Option<Order> {
        let mut inbox = lock(&self.shared.inbox);
        loop {
            if inbox.is_stopping {
                return None;
            }
            if let Some(order) = inbox.orders.pop_front() {
                return Some(order);
            }
            for job in inbox.jobs.drain(..) {
                self.n_jobs += 1;
                self.active.push(Active { job, generation: None, n_passes: 0, number: self.n_jobs });
            }
            if !self.active.is_empty() {
                return Some(Order::Work);
            }
            // An idle model's memory is given back after a while; the next request loads it again.
            let idle = self.config.unload_after.filter(|_| self.loaded.is_some());
            match idle.map(|after| after.saturating_sub(self.last_work.elapsed())) {
                Some(left) if left.is_zero() => return Some(Order::Unload),
                Some(left) => {
                    inbox = self
                        .shared
                        .has_orders
                        .wait_timeout(inbox, left)
                        .map_or_else(|poisoned| poisoned.into_inner().0, |(inbox, _)| inbox);
                }
                None => inbox = self.shared.has_orders.wait(inbox).unwrap_or_else(|p| p.into_inner()),
            }
        }
    }

    /// One forward pass for the request whose turn it is.
    fn work(&mut self) {
        self.drop_cancelled();
        if self.active.is_empty() {
            return self.rest();
        }
        if self.loaded.is_none() {
            if self.failure.is_none() {
                self.load();
            }
            if let Some((reason, code)) = self.failure.clone() {
                self.end_all(|| Err(EngineError::NotReady { state: reason.clone(), code }));
            }
            return;
        }
        // The most urgent; among those the one that has had least, so that short ones never wait for long
        // ones; among those the newest.
        let turn = (0..self.active.len()).max_by_key(|&idx| {
            let Active { job, n_passes, number, .. } = &self.active[idx];
            (job.priority, std::cmp::Reverse(*n_passes), *number)
        });
        let Some(turn) = turn else { return };
        self.make_room(turn);
        // What nobody waits for is nothing to tell.
        let is_awaited = self.active[turn].job.priority > Priority::Background;
        if let Some(loaded) = self.loaded.as_ref().filter(|_| is_awaited) {
            self.set_state(EngineState::Thinking(loaded.words.clone()));
        }
        let Some(loaded) = self.loaded.as_mut() else { return };
        let active = &mut self.active[turn];
        active.n_passes += 1;
        self.shared.n_passes.fetch_add(1, Ordering::Relaxed);
        let mut generation = active.generation.take();
        let Job { request, cancel, .. } = &active.job;
        let result = guard(|| {
            let generation = match &mut generation {
                Some(generation) => generation,
                None => generation.insert(loaded.session.begin(request.clone())?),
            };
            loaded.session.advance(generation, cancel)
        });
        match result {
            Ok(Progress::Prefilled) => active.generation = generation,
            // It leaves with those that nobody waits for, below.
            Err(error) if error.is_cancelled() => active.generation = generation,
            Ok(Progress::Step(event)) => {
                active.generation = generation;
                active.job.events.step(event);
            }
            Ok(Progress::Ended(event)) => {
                active.job.events.step(event);
                let active = self.active.swap_remove(turn);
                let outcome = self.end_generation(generation).map(|completion| match completion {
                    Some(completion) => Outcome::Ended(Box::new(completion)),
                    None => Outcome::Cancelled,
                });
                active.job.events.end(outcome);
            }
            Err(error) => {
                let is_panic = matches!(error, EngineError::Panic { .. });
                let active = self.active.swap_remove(turn);
                active.job.events.end(Err(error));
                if is_panic {
                    // What the panic left half done goes with the session; the model survives it.
                    self.renew_session();
                } else {
                    // The request has its error already.
                    let _ = self.end_generation(generation);
                }
            }
        }
        self.drop_cancelled();
        if self.active.is_empty() {
            self.rest();
        }
    }

    /// Ends a generation, and keeps what it leaves. A panic costs the session, as one in a pass does.
    fn end_generation(&mut self, generation: Option<Generation>) -> Result<Option<Completion>, EngineError> {
        let (Some(generation), Some(loaded)) = (generation, self.loaded.as_mut()) else { return Ok(None) };
        let ended = guard(|| Ok(loaded.session.end(generation)));
        if ended.is_err() {
            self.renew_session();
        }
        ended
    }

    /// Nothing is left to do for now.
    fn rest(&mut self) {
        self.last_work = Instant::now();
        self.save(false);
        if let Some(loaded) = &self.loaded {
            self.set_state(EngineState::Ready(loaded.words.clone()));
        }
    }

    fn drop_cancelled(&mut self) {
        while let Some(idx) = self.active.iter().position(|active| active.job.cancel.is_cancelled()) {
            let Active { job, generation, .. } = self.active.swap_remove(idx);
            // Nobody waits for what it says.
            let _ = self.end_generation(generation);
            let is_superseded = job.cancel.is_superseded();
            job.events.end(Ok(if is_superseded { Outcome::Superseded } else { Outcome::Cancelled }));
        }
    }

    /// Sees to it that there is a cache for the request at `turn`, if need be that of a request that is less
    /// urgent, or has had most.
    fn make_room(&mut self, turn: usize) {
        let has_sequence = |active: &Active| active.generation.as_ref().is_some_and(Generation::has_sequence);
        let Some(loaded) = self.loaded.as_mut() else { return };
        if has_sequence(&self.active[turn]) || loaded.session.has_room() {
            return;
        }
        let others = (0..self.active.len()).filter(|&idx| idx != turn && has_sequence(&self.active[idx]));
        let victim = others.min_by_key(|&idx| {
            let Active { job, n_passes, .. } = &self.active[idx];
            (job.priority, std::cmp::Reverse(*n_passes))
        });
        if let Some(generation) = victim.and_then(|victim| self.active[victim].generation.as_mut()) {
            loaded.session.suspend(generation);
        }
    }

    fn end_all(&mut self, mut result: impl FnMut() -> Result<Outcome, EngineError>) {
        for Active { job, generation, .. } in std::mem::take(&mut self.active) {
            // The result is decided.
            let _ = self.end_generation(generation);
            job.events.end(result());
        }
    }

    /// Forgets the model. Requests under way begin anew when there is one again.
    fn unload(&mut self) {
        self.save(true);
        for active in &mut self.active {
            active.generation = None;
        }
        self.loaded = None;
        *lock(&self.shared.model) = None;
        give_back_freed_memory();
        self.last_work = Instant::now();
    }

    fn load(&mut self) {
        self.failure = None;
        self.set_state(EngineState::Loading { name: self.config.model_name.clone(), progress: 0.0 });
        match guard(|| self.load_session()) {
            Ok(loaded) => {
                *lock(&self.shared.model) = Some(loaded.session.model().clone());
                let words = loaded.words.clone();
                self.loaded = Some(loaded);
                self.last_work = Instant::now();
                self.set_state(EngineState::Ready(words));
                give_back_freed_memory();
            }
            // Another model is wanted, or none any more.
            Err(EngineError::Model(ModelError::Cancelled)) => (),
            Err(error) => {
                let reason = error.to_string();
                let code = error.code();
                self.failure = Some((reason.clone(), code));
                self.set_state(EngineState::Failed { reason, code });
            }
        }
    }

    fn load_session(&self) -> Result<Loaded, EngineError> {
        let config = &self.config;
        check_memory(config)?;
        let model_config = |device| ModelConfig {
            device,
            adapter: config.adapter.source(&config.sha256),
            weights_sha256: Some(config.sha256.clone()).filter(|hash| !hash.is_empty()),
            probe_slots: PROBE_SLOTS,
            max_context: config.max_context,
            cache_type: config.cache_type,
            n_threads: config.n_threads,
            ..ModelConfig::new(&config.weights)
        };
        let name = config.model_name.clone();
        let load = |device| {
            Ok(Model::load_with_progress(&model_config(device), &mut |progress| {
                self.set_state(EngineState::Loading { name: name.clone(), progress });
                if self.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?)
        };
        let files = config.learned.as_deref().and_then(|folder| LearnedFiles::new(folder, &config.sha256));
        let needed = MemoryNeeded::of(config)?;
        let LoadedOn { model, note } = load_on(&config.device, needed, files.as_ref(), &load)?;
        let session = self.new_session(&model, files.as_ref())?;
        Ok(Loaded {
            words: LoadedModel {
                name: name.clone(),
                n_adaptive_tokens: if model.has_trained_slots() { model.n_adaptive_tokens() } else { 0 },
                prompt_format: session.format().name(),
                device: model.device(),
                device_note: note,
            },
            n_saved: session.n_recycled(),
            session,
            files,
        })
    }

    fn new_session(&self, model: &Arc<Model>, files: Option<&LearnedFiles>) -> Result<Session, EngineError> {
        let costs = match files {
            Some(files) => match files.known_costs(model) {
                Some(costs) => Some(costs),
                None => {
                    self.set_state(EngineState::Measuring { name: self.config.model_name.clone() });
                    files.measure_costs(model, &|| self.is_interrupted())?
                }
            },
            None => None,
        };
        let recycling = files.map(|files| files.recycling(model)).unwrap_or_default();
        let cache_bytes = self.config.cache_bytes.map_or(DEFAULT_CACHE_BYTES, |bytes| bytes as usize);
        Ok(Session::with(model, SessionConfig { costs, recycling, cache_bytes }))
    }

    /// Whether loading is in vain: the engine stops, or other orders wait.
    fn is_interrupted(&self) -> bool {
        let inbox = lock(&self.shared.inbox);
        inbox.is_stopping || !inbox.orders.is_empty()
    }

    fn renew_session(&mut self) {
        for active in &mut self.active {
            active.generation = None;
        }
        let Some(loaded) = self.loaded.take() else { return };
        let model = loaded.session.model().clone();
        match guard(|| self.new_session(&model, loaded.files.as_ref())) {
            Ok(session) => {
                self.set_state(EngineState::Ready(loaded.words.clone()));
                self.loaded = Some(Loaded { session, ..loaded });
            }
            Err(error) => {
                let (reason, code) = (error.to_string(), error.code());
                self.failure = Some((reason.clone(), code));
                self.set_state(EngineState::Failed { reason, code });
            }
        }
    }

    fn save(&mut self, is_last: bool) {
        let Some(loaded) = self.loaded.as_mut() else { return };
        let n_known = loaded.session.n_recycled();
        let n_new = n_known.abs_diff(loaded.n_saved);
        if let Some(files) = loaded.files.as_ref().filter(|_| n_new > if is_last { 0 } else { SAVE_EVERY }) {
            loaded.n_saved = n_known;
            let session = &loaded.session;
            // What is lost is learnt again.
            let _ = guard(|| {
                files.save_recycling(&session.save_recycling());
                Ok(())
            });
        }
    }
}
