//! The state behind the window: one engine, the model library, the open files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{
    CancelToken, CompletionRequest, Engine, EngineConfig, EngineError, EngineState, ErrorCode,
    InstalledModel, ModelLibrary, Priority, Submission,
};
use serde::Serialize;
use tauri::{AppHandle, Emitter};
use ts_rs::TS;

use crate::documents::Documents;

/// Everything the window shows of the app.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub(crate) struct ApplicationState {
    /// What the engine is doing.
    pub(crate) engine: EngineState,
    /// Id of the model that the engine runs.
    pub(crate) model_id: Option<String>,
}

pub(crate) struct Application {
    app: AppHandle,
    library: Result<ModelLibrary, String>,
    documents: Documents,
    initial_file: Mutex<Option<PathBuf>>,
    running: Mutex<Option<Engine>>,
    /// The model that was asked for last.
    model_id: Arc<Mutex<Option<String>>>,
    failure: Mutex<Option<(String, ErrorCode)>>,
    /// Until the default model was looked for.
    is_starting: AtomicBool,
    completion: Mutex<CancelToken>,
    installation: Mutex<CancelToken>,
}

/// The editor, as the engine knows it.
const EDITOR: &str = "window";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Application {
    /// Without a model yet: [`load_default_model`](Self::load_default_model) looks for one.
    pub(crate) fn new(app: AppHandle, initial_file: Option<PathBuf>) -> Self {
        Self {
            app,
            library: ModelLibrary::of_user().map_err(|error| error.to_string()),
            documents: Documents::default(),
            initial_file: Mutex::new(initial_file),
            running: Mutex::default(),
            model_id: Arc::default(),
            failure: Mutex::default(),
            is_starting: AtomicBool::new(true),
            completion: Mutex::default(),
            installation: Mutex::default(),
        }
    }

    /// Loads the default model, if one is installed. A file that nobody has looked at before is read for that, so
    /// this is no work for the thread that draws.
    pub(crate) fn load_default_model(&self) {
        let model = self.library().and_then(|library| library.default_model());
        let loaded = match model {
            // Whatever was chosen meanwhile is what is wanted.
            Ok(_) if lock(&self.running).is_some() => Ok(()),
            Ok(model) => self.load(&model),
            Err(EngineError::NoModel) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = loaded {
            *lock(&self.failure) = Some((error.to_string(), error.code()));
        }
        self.is_starting.store(false, Ordering::Release);
        // Fails only when the window is gone, and then there is nobody to tell.
        let _ = self.app.emit("application_state", self.state());
    }

    pub(crate) fn library(&self) -> Result<ModelLibrary, EngineError> {
        self.library.clone().map_err(|_| EngineError::NoDataFolder)
    }

    pub(crate) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The file that the app was started with, once.
    pub(crate) fn take_initial_file(&self) -> Option<PathBuf> {
        lock(&self.initial_file).take()
    }

    pub(crate) fn state(&self) -> ApplicationState {
        match (&*lock(&self.running), &*lock(&self.failure)) {
            (Some(engine), _) => {
                ApplicationState { engine: engine.state(), model_id: lock(&self.model_id).clone() }
            }
            (None, Some((reason, code))) => {
                let engine = EngineState::Failed { reason: reason.clone(), code: *code };
                ApplicationState { engine, model_id: None }
            }
            (None, None) if self.is_starting.load(Ordering::Acquire) => {
                ApplicationState { engine: EngineState::Starting, model_id: None }
            }
            (None, None) => ApplicationState { engine: EngineState::NoModel, model_id: None },
        }
    }

    /// Has the engine run `model`, in the place of another. Returns at once.
    pub(crate) fn load(&self, model: &InstalledModel) -> Result<(), EngineError> {
        let mut running = lock(&self.running);
        *lock(&self.failure) = None;
        *lock(&self.model_id) = Some(model.id.clone());
        match &*running {
            Some(engine) => engine.load(EngineConfig::of(model)),
            None => {
                let (app, model_id) = (self.app.clone(), self.model_id.clone());
                let on_state = move |engine: EngineState| {
                    let model_id = lock(&model_id).clone();
                    // Fails only when the window is gone, and then there is nobody to tell.
                    let _ = app.emit("application_state", ApplicationState { engine, model_id });
                };
                *running = Some(Engine::start(EngineConfig::of(model), on_state)?);
            }
        }
        Ok(())
    }

    /// Asks for a completion in the editor; it takes the place of earlier ones.
    pub(crate) fn submit(&self, request: CompletionRequest) -> Result<Submission, EngineError> {
        let running = lock(&self.running);
        let engine = running.as_ref().ok_or(EngineError::NoModel)?;
        let submission = engine.submit(EDITOR, Priority::Editor, request);
        *lock(&self.completion) = submission.cancel_token();
        Ok(submission)
    }

    pub(crate) fn cancel_completion(&self) {
        lock(&self.completion).cancel();
    }

    /// A token for a new installation; an earlier one is cancelled.
    pub(crate) fn begin_installation(&self) -> CancelToken {
        let cancel = CancelToken::default();
        std::mem::replace(&mut *lock(&self.installation), cancel.clone()).cancel();
        cancel
    }

    pub(crate) fn cancel_installation(&self) {
        lock(&self.installation).cancel();
    }
}
