//! The state behind the window: one engine, the model library, the open files.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::{
    CancelToken, CompletionRequest, Engine, EngineConfig, EngineError, EngineState, InstalledModel,
    ModelLibrary, Outcome, StepEvent,
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
    running: Mutex<Option<Running>>,
    failure: Mutex<Option<String>>,
    completion: Mutex<CancelToken>,
    installation: Mutex<CancelToken>,
}

struct Running {
    engine: Engine,
    model_id: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Application {
    /// Starts with the default model, if one is installed.
    pub(crate) fn start(app: AppHandle, initial_file: Option<PathBuf>) -> Self {
        let application = Self {
            app,
            library: ModelLibrary::of_user().map_err(|error| error.to_string()),
            documents: Documents::default(),
            initial_file: Mutex::new(initial_file),
            running: Mutex::default(),
            failure: Mutex::default(),
            completion: Mutex::default(),
            installation: Mutex::default(),
        };
        let model = application.library().and_then(|library| library.default_model());
        let started = match model {
            Ok(model) => application.load(&model),
            Err(EngineError::NoModel) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            *lock(&application.failure) = Some(error.to_string());
        }
        application
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
            (Some(running), _) => {
                ApplicationState { engine: running.engine.state(), model_id: Some(running.model_id.clone()) }
            }
            (None, Some(reason)) => {
                ApplicationState { engine: EngineState::Failed { reason: reason.clone() }, model_id: None }
            }
            (None, None) => ApplicationState { engine: EngineState::NoModel, model_id: None },
        }
    }

    /// Replaces the running engine by one with `model`.
    pub(crate) fn load(&self, model: &InstalledModel) -> Result<(), EngineError> {
        let previous = lock(&self.running).take();
        // Frees the memory of the old model before the new one is loaded.
        drop(previous);
        *lock(&self.failure) = None;
        let (app, model_id) = (self.app.clone(), model.id.clone());
        let on_state = move |engine: EngineState| {
            let state = ApplicationState { engine, model_id: Some(model_id.clone()) };
            // Fails only when the window is gone, and then there is nobody to tell.
            let _ = app.emit("application_state", state);
        };
        let engine = Engine::start(EngineConfig::of(model), on_state)?;
        *lock(&self.running) = Some(Running { engine, model_id: model.id.clone() });
        Ok(())
    }

    /// Asks for a completion; earlier ones are cancelled.
    pub(crate) fn submit(
        &self,
        request: CompletionRequest,
        on_step: impl FnMut(StepEvent) + Send + 'static,
        on_end: impl FnOnce(Result<Outcome, EngineError>) + Send + 'static,
    ) -> Result<(), EngineError> {
        let running = lock(&self.running);
        let running = running.as_ref().ok_or(EngineError::NoModel)?;
        *lock(&self.completion) = running.engine.submit(request, on_step, on_end);
        Ok(())
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
