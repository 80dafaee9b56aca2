//! The engine: a thread that owns a model, and answers the requests of several clients.

mod events;
mod worker;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{CacheType, Model};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::completion::{Completion, CompletionRequest, StepEvent};
use crate::{AdapterChoice, CancelToken, DeviceChoice, EngineError, ErrorCode, InstalledModel, ModelLibrary};
pub use events::{Event, Submission};
use worker::{Job, Worker};

/// Most requests under way.
const MAX_JOBS: usize = 64;

/// What an engine runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of the model for people.
    pub model_name: String,
    /// The weight file.
    pub weights: PathBuf,
    /// SHA-256 of the weight file; it finds the SAT adapter that ships.
    pub sha256: String,
    /// The SAT adapter.
    pub adapter: AdapterChoice,
    /// Longest context in tokens; the model's own length where that is shorter.
    pub max_context: usize,
    /// What to run on.
    pub device: DeviceChoice,
    /// Threads that compute; as many as the machine has cores for this process when 0.
    pub n_threads: usize,
    /// How keys and values are kept.
    pub cache_type: CacheType,
    /// Memory that the caches of keys and values may take together; a model whose context does not fit is
    /// refused. Without it, a gigabyte, or what one context takes.
    pub cache_bytes: Option<u64>,
    /// Where what is measured and learnt of the model is kept; nothing is kept without it.
    pub learned: Option<PathBuf>,
    /// Idle time after which the model's memory is given back; the next request loads it again.
    pub unload_after: Option<Duration>,
}

impl EngineConfig {
    /// Longest context where nothing else is said, in tokens.
    pub const DEFAULT_CONTEXT: usize = 4096;

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
            adapter: AdapterChoice::default(),
            max_context: Self::DEFAULT_CONTEXT,
            device: DeviceChoice::default(),
            n_threads: 0,
            cache_type: CacheType::default(),
            cache_bytes: None,
            learned: None,
            unload_after: None,
        }
    }

    /// An engine with the defaults for an installed model.
    pub fn of(model: &InstalledModel) -> Self {
        let learned = ModelLibrary::learned_folder(&model.path);
        let adapter = model.adapter(AdapterChoice::NEWEST);
        Self { learned, adapter, ..Self::new(&model.name, &model.path, &model.sha256) }
    }
}

/// How urgent a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum Priority {
    /// Nobody waits for it: caches that are filled ahead.
    Background,
    /// Text in an editor.
    #[default]
    Editor,
    /// A window that someone has just opened for it.
    Popup,
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
    /// Why it does not run on a GPU, where one was looked for.
    pub device_note: Option<String>,
}

/// What the engine is doing, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(tag = "state", rename_all = "snake_case")]
#[ts(export)]
pub enum EngineState {
    /// The models are being looked at.
    Starting,
    /// No model is installed.
    NoModel,
    /// The model is being loaded.
    Loading {
        /// Name of the model.
        name: String,
        /// Share that is loaded, from 0 to 1.
        progress: f32,
    },
    /// The passes of the model are being timed on this device, once.
    Measuring {
        /// Name of the model.
        name: String,
    },
    /// Waiting for a request.
    Ready(LoadedModel),
    /// Working on a request.
    Thinking(LoadedModel),
    /// The model was idle and gave its memory back; the next request loads it.
    Unloaded {
        /// Name of the model.
        name: String,
    },
    /// The model could not be loaded.
    Failed {
        /// Why, for people.
        reason: String,
        /// What kind of error it is.
        code: ErrorCode,
    },
}

/// What the engine's thread is to do.
enum Order {
    Load(Box<EngineConfig>),
    Unload,
    Work,
}

#[derive(Default)]
struct Inbox {
    orders: VecDeque<Order>,
    jobs: Vec<Job>,
    is_stopping: bool,
}

struct Shared {
    model: Mutex<Option<Arc<Model>>>,
    state: Mutex<EngineState>,
    changed: Condvar,
    /// Held for a moment only, by whoever holds it.
    inbox: Mutex<Inbox>,
    has_orders: Condvar,
    /// The newest request of each client, and how to end it.
    clients: Mutex<Vec<(String, CancelToken)>>,
    n_passes: AtomicU64,
}

/// A running engine. Dropping it cancels the work and ends its thread.
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
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
            inbox: Mutex::default(),
            has_orders: Condvar::new(),
            clients: Mutex::default(),
            n_passes: AtomicU64::new(0),
        });
        let worker = Worker::new(shared.clone(), config, on_state);
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || worker.run());
        let thread = thread.map_err(EngineError::io("the engine's thread"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What the engine is doing.
    pub fn state(&self) -> EngineState {
        lock(&self.shared.state).clone()
    }

    /// Forward passes so far, those of prompts included.
    pub fn n_passes(&self) -> u64 {
        self.shared.n_passes.load(Ordering::Relaxed)
    }

    fn order(&self, order: Order) {
        let name = match &order {
            Order::Load(config) => Some(config.model_name.clone()),
            Order::Unload | Order::Work => None,
        };
        lock(&self.shared.inbox).orders.push_back(order);
        if let Some(name) = name {
            // From now on nobody finds the old model ready.
            *lock(&self.shared.state) = EngineState::Loading { name, progress: 0.0 };
        }
        self.shared.has_orders.notify_all();
    }

    /// Has another model loaded in the place of this one, and returns at once. Loading that is under way is
    /// given up; requests that are under way begin anew on the new model.
    pub fn load(&self, config: EngineConfig) {
        self.order(Order::Load(Box::new(config)));
    }

    /// Has the model's memory given back, and returns at once. The next request loads it again.
    pub fn unload(&self) {
        self.order(Order::Unload);
    }

    /// The model, where one is loaded.
    pub fn model(&self) -> Option<Arc<Model>> {
        lock(&self.shared.model).clone()
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
                EngineState::Failed { reason, code } => {
                    return Err(EngineError::NotReady { state: reason.clone(), code: *code });
                }
                EngineState::Starting
                | EngineState::Loading { .. }
                | EngineState::Measuring { .. }
                | EngineState::NoModel
                | EngineState::Unloaded { .. } => {
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Asks for a completion. The newest request of a `client` takes the place of its older ones; requests of
    /// different clients share the engine pass by pass, the more urgent first.
    pub fn submit(&self, client: &str, priority: Priority, request: CompletionRequest) -> Submission {
        let cancel = CancelToken::default();
        let (submission, events) = Submission::new(cancel.clone());
        if let Err(error) = request.check() {
            events.end(Err(error));
            return submission;
        }
        {
            let mut clients = lock(&self.shared.clients);
            clients.retain(|(_, cancel)| !cancel.is_cancelled());
            match clients.iter_mut().find(|(name, _)| name == client) {
                Some((_, newest)) => std::mem::replace(newest, cancel.clone()).supersede(),
                None => clients.push((client.to_owned(), cancel.clone())),
            }
            if clients.len() > MAX_JOBS {
                // The client that came first: what it still waits for ends on its own.
                clients.remove(0);
            }
        }
        let mut inbox = lock(&self.shared.inbox);
        if inbox.jobs.len() >= MAX_JOBS {
            drop(inbox);
            events.end(Err(EngineError::Busy { bound: MAX_JOBS }));
            return submission;
        }
        inbox.jobs.push(Job { priority, request, cancel, events });
        drop(inbox);
        self.shared.has_orders.notify_all();
        submission
    }

    /// Completes `request` for a client of its own and waits for the end.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn complete(
        &self,
        request: CompletionRequest,
        on_step: impl FnMut(StepEvent),
    ) -> Result<Completion, EngineError> {
        self.submit("", Priority::default(), request).completion(on_step)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        lock(&self.shared.inbox).is_stopping = true;
        lock(&self.shared.clients).iter().for_each(|(_, cancel)| cancel.cancel());
        self.shared.has_orders.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread catches panics of its work, so there is nothing to learn from joining.
            let _ = thread.join();
        }
    }
}
