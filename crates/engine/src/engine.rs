//! The engine: a thread that owns a model and answers requests, the newest first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use model::{Model, ModelConfig};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::adapters::built_in_for;
use crate::completion::{Completion, CompletionRequest, Outcome, StepEvent};
use crate::learned::LearnedFiles;
use crate::prompt::PromptBudget;
use crate::{CancelToken, EngineError, InstalledModel, ModelLibrary, Session, SessionConfig};

/// What an engine runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of the model for people.
    pub model_name: String,
    /// The weight file.
    pub weights: PathBuf,
    /// SHA-256 of the weight file; it finds the SAT adapter.
    pub sha256: String,
    /// Longest context in tokens.
    pub max_context: usize,
    /// Most tokens of a prompt.
    pub budget: PromptBudget,
    /// Where what is measured and learnt of the model is kept; nothing is kept without it.
    pub learned: Option<PathBuf>,
}

impl EngineConfig {
    /// An engine with the defaults for everything but the model.
    pub fn new(
        model_name: impl Into<String>,
        weights: impl Into<PathBuf>,
        sha256: impl Into<String>,
    ) -> Self {
        Self {
            model_name: model_name.into(),
            weights: weights.into(),
            sha256: sha256.into(),
            max_context: 4096,
            budget: PromptBudget::default(),
            learned: None,
        }
    }

    /// An engine with the defaults for an installed model.
    pub fn of(model: &InstalledModel) -> Self {
        let learned = ModelLibrary::learned_folder(&model.path);
        Self { learned, ..Self::new(&model.name, &model.path, &model.sha256) }
    }
}

/// A model that is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[ts(export)]
pub struct LoadedModel {
    /// Name for people.
    pub name: String,
    /// Trained semantic adaptive tokens in a group; 0 when the model has none.
    pub n_adaptive_tokens: usize,
    /// How it is asked for the middle of a text.
    pub prompt_format: String,
    /// What it runs on.
    pub device: String,
}

/// What the engine is doing, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(tag = "state", rename_all = "snake_case")]
#[ts(export)]
pub enum EngineState {
    /// No model is installed.
    NoModel,
    /// The model is being loaded.
    Loading {
        /// Name of the model.
        name: String,
        /// Share that is loaded, from 0 to 1.
        progress: f32,
    },
    /// Waiting for a request.
    Ready(LoadedModel),
    /// Working on a request.
    Thinking(LoadedModel),
    /// The model could not be loaded.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Adaptive tokens in a group of a model without adapter.
const PROBE_SLOTS: usize = 4;

/// Entries that token recycling learns before they are written down.
const SAVE_EVERY: usize = 2_000;

struct Job {
    request: CompletionRequest,
    cancel: CancelToken,
    on_step: Box<dyn FnMut(StepEvent) + Send>,
    on_end: Box<dyn FnOnce(Result<Outcome, EngineError>) + Send>,
}

struct Shared {
    model: Mutex<Option<Arc<Model>>>,
    state: Mutex<EngineState>,
    changed: Condvar,
    newest: Mutex<CancelToken>,
}

/// A running engine. Dropping it cancels the work and ends its thread.
pub struct Engine {
    jobs: Option<Sender<Box<Job>>>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: CancelToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the lock guards is replaced whole, so it is sound even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Starts a thread that loads the model of `config` and then answers requests. `on_state` is
    /// told of every change of state, from that thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        config: EngineConfig,
        on_state: impl Fn(EngineState) + Send + 'static,
    ) -> Result<Self, EngineError> {
        let loading = EngineState::Loading { name: config.model_name.clone(), progress: 0.0 };
        let shared = Arc::new(Shared {
            model: Mutex::default(),
            state: Mutex::new(loading),
            changed: Condvar::new(),
            newest: Mutex::default(),
        });
        let (jobs, received) = channel();
        let stop = CancelToken::default();
        let worker =
            Worker { config, shared: shared.clone(), on_state: Box::new(on_state), stop: stop.clone() };
        let thread =
            std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run(&received));
        let thread = thread.map_err(EngineError::io("the engine's thread"))?;
        Ok(Self { jobs: Some(jobs), shared, thread: Some(thread), stop })
    }

    /// What the engine is doing.
    pub fn state(&self) -> EngineState {
        lock(&self.shared.state).clone()
    }

    /// Waits until the model is loaded, and gives it: sessions of one's own can be made on it.
    ///
    /// # Errors
    /// [`EngineError::NotReady`] when it could not be loaded.
    pub fn wait_until_ready(&self) -> Result<(LoadedModel, Arc<Model>), EngineError> {
        let mut state = lock(&self.shared.state);
        loop {
            match &*state {
                EngineState::Ready(loaded) | EngineState::Thinking(loaded) => {
                    let model = lock(&self.shared.model).clone();
                    return model.map(|model| (loaded.clone(), model)).ok_or(EngineError::Stopped);
                }
                EngineState::Failed { reason } => {
                    return Err(EngineError::NotReady { state: reason.clone() });
                }
                EngineState::Loading { .. } | EngineState::NoModel => {
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Asks for a completion and cancels every earlier request: the newest wins. `on_step` is
    /// told after every forward pass, `on_end` once, both from the engine's thread. The token
    /// cancels the request within one forward pass.
    pub fn submit(
        &self,
        request: CompletionRequest,
        on_step: impl FnMut(StepEvent) + Send + 'static,
        on_end: impl FnOnce(Result<Outcome, EngineError>) + Send + 'static,
    ) -> CancelToken {
        let cancel = CancelToken::default();
        std::mem::replace(&mut *lock(&self.shared.newest), cancel.clone()).cancel();
        let job = Box::new(Job {
            request,
            cancel: cancel.clone(),
            on_step: Box::new(on_step),
            on_end: Box::new(on_end),
        });
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        if let Some(Err(error)) = sent {
            (error.0.on_end)(Err(EngineError::Stopped));
        }
        cancel
    }

    /// Completes `request` and waits for the end.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn complete(
        &self,
        request: CompletionRequest,
        on_step: impl FnMut(StepEvent) + Send + 'static,
    ) -> Result<Completion, EngineError> {
        let (sender, receiver) = channel();
        self.submit(request, on_step, move |result| {
            // The receiver waits below for as long as the sender lives.
            let _ = sender.send(result);
        });
        match receiver.recv() {
            Ok(Ok(Outcome::Ended(completion))) => Ok(*completion),
            Ok(Ok(Outcome::NotStarted)) | Err(_) => Err(EngineError::Stopped),
            Ok(Err(error)) => Err(error),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.cancel();
        lock(&self.shared.newest).cancel();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of its work, so there is nothing to learn from joining.
            let _ = thread.join();
        }
    }
}

struct Worker {
    config: EngineConfig,
    shared: Arc<Shared>,
    on_state: Box<dyn Fn(EngineState) + Send>,
    stop: CancelToken,
}

impl Worker {
    fn set_state(&self, state: EngineState) {
        *lock(&self.shared.state) = state.clone();
        self.shared.changed.notify_all();
        (self.on_state)(state);
    }

    fn run(self, jobs: &Receiver<Box<Job>>) {
        let model = match self.guard(|| self.load()) {
            Ok(model) => model,
            Err(error) => {
                let reason = error.to_string();
                self.set_state(EngineState::Failed { reason: reason.clone() });
                while let Ok(job) = jobs.recv() {
                    (job.on_end)(Err(EngineError::NotReady { state: reason.clone() }));
                }
                return;
            }
        };
        *lock(&self.shared.model) = Some(model.clone());
        let files = self.config.learned.as_deref();
        let files = files.and_then(|folder| LearnedFiles::new(folder, &self.config.sha256));
        let new_session = || {
            let costs = files.as_ref().and_then(|files| files.costs(&model));
            let recycling = files.as_ref().map(|files| files.recycling(&model)).unwrap_or_default();
            Session::with(&model, SessionConfig { costs, recycling })
        };
        let mut session = new_session();
        let mut n_saved = session.n_recycled();
        let mut save = |session: &Session, is_last: bool| {
            let n_new = session.n_recycled().abs_diff(n_saved);
            if let Some(files) = files.as_ref().filter(|_| n_new > if is_last { 0 } else { SAVE_EVERY }) {
                files.save_recycling(&session.save_recycling());
                n_saved = session.n_recycled();
            }
        };
        let loaded = LoadedModel {
            name: self.config.model_name.clone(),
            n_adaptive_tokens: if model.has_adapter() { model.n_adaptive_tokens() } else { 0 },
            prompt_format: session.format().name().to_owned(),
            device: model.device(),
        };
        self.set_state(EngineState::Ready(loaded.clone()));
        while let Ok(mut job) = jobs.recv() {
            if job.cancel.is_cancelled() || self.stop.is_cancelled() {
                (job.on_end)(Ok(Outcome::NotStarted));
                continue;
            }
            self.set_state(EngineState::Thinking(loaded.clone()));
            let budget = self.config.budget;
            let result = self.guard(|| session.complete(&job.request, budget, &job.cancel, &mut job.on_step));
            if matches!(result, Err(EngineError::Panic { .. })) {
                // Whatever the panic left behind, a new session does not have it.
                session = new_session();
            }
            self.set_state(EngineState::Ready(loaded.clone()));
            (job.on_end)(result.map(|completion| Outcome::Ended(Box::new(completion))));
            save(&session, false);
        }
        save(&session, true);
    }

    fn load(&self) -> Result<Arc<Model>, EngineError> {
        let config = ModelConfig {
            adapter: built_in_for(&self.config.sha256),
            probe_slots: PROBE_SLOTS,
            max_context: self.config.max_context,
            ..ModelConfig::new(&self.config.weights)
        };
        let name = self.config.model_name.clone();
        let model = Model::load_with_progress(&config, &mut |progress| {
            self.set_state(EngineState::Loading { name: name.clone(), progress });
        })?;
        Ok(Arc::new(model))
    }

    /// Turns a panic into that request's error; the thread and the model survive it.
    fn guard<T>(&self, work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().cloned();
            let message = message.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Err(EngineError::Panic { message: message.unwrap_or_else(|| "unknown".to_owned()) })
        })
    }
}
