//! One engine, the model library, the open files, what was chosen and what is remembered.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use clipboard::Clipboard;
use documents::{Documents, Drafts, Folder};
use engine::{
    CancelToken, Completion, CompletionRequest, ContextFile, Engine, EngineError, EngineState, ErrorCode,
    InstalledModel, Model, ModelLibrary, Priority, SamplingParams, Submission,
};
use history::{Entry, History};
use serde::Serialize;
use settings::{Notice, Settings, SettingsFile};
use ts_rs::TS;

use crate::clipboard_completion::ClipboardCompletion;

/// Everything the window shows of the app.
#[derive(Clone, Debug, Serialize, TS)]
#[ts(export)]
pub struct ApplicationState {
    /// What the engine is doing.
    pub engine: EngineState,
    /// Id of the model that the engine runs.
    pub model_id: Option<String>,
}

/// Texts of other tabs that a request takes along, in bytes.
const MAX_OTHER_BYTES: usize = 512 << 10;

/// Who asks the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The editor, where someone types.
    Editor,
    /// The window over the clipboard.
    Popup,
}

impl Client {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Editor => "editor",
            Self::Popup => "popup",
        }
    }

    fn priority(self) -> Priority {
        match self {
            Self::Editor => Priority::Editor,
            Self::Popup => Priority::Popup,
        }
    }
}

/// What an [`Application`] works with.
pub struct ApplicationConfig {
    /// The models; `None` where this system has no place for them.
    pub library: Option<ModelLibrary>,
    /// What the user has chosen, and what was wrong with it.
    pub settings: (SettingsFile, Vec<Notice>),
    /// Where history and drafts are kept; without it they are forgotten at the end.
    pub state_folder: Option<PathBuf>,
    /// The file or folder to begin with.
    pub initial_path: Option<PathBuf>,
}

impl ApplicationConfig {
    /// The models, settings and history of the user who runs this.
    pub fn of_user(initial_path: Option<PathBuf>) -> Self {
        Self {
            library: ModelLibrary::of_user().ok(),
            settings: SettingsFile::of_user(),
            state_folder: settings::state_folder(),
            initial_path,
        }
    }
}

/// Hears what becomes of the engine and its model.
type OnState = Arc<dyn Fn(ApplicationState) + Send + Sync>;

/// Everything that the windows show and change. Its functions may be called from any thread; those that read files
/// or wait for a lock on one say so.
pub struct Application {
    on_state: OnState,
    library: Option<ModelLibrary>,
    /// The open files.
    pub documents: Documents,
    /// The texts of all tabs.
    pub drafts: Drafts,
    /// The clipboard, and what it held before a text was accepted.
    pub clipboard: Clipboard,
    pub(crate) folder: Mutex<Option<Folder>>,
    pub(crate) clipboard_completion: Mutex<Option<ClipboardCompletion>>,
    settings: Mutex<SettingsFile>,
    /// What was wrong with settings or history, for people.
    notices: Mutex<Vec<String>>,
    history: Mutex<Option<History>>,
    initial_path: Mutex<Option<PathBuf>>,
    running: Mutex<Option<Engine>>,
    /// The model that was asked for last.
    model_id: Arc<Mutex<Option<String>>>,
    failure: Mutex<Option<(String, ErrorCode)>>,
    /// Until the default model was looked for.
    is_starting: AtomicBool,
    /// Whether a page shows what the app was started with.
    page: (Mutex<bool>, Condvar),
    /// The newest request of the editor.
    completion: Mutex<CancelToken>,
    /// What is computed ahead; given up when it is dropped.
    pub(crate) preparation: Mutex<Option<Submission>>,
    installation: Mutex<CancelToken>,
}

/// Locks `mutex`, also one whose holder has panicked: what it guards is whole after every statement.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Application {
    /// Without a model yet: [`load_default_model`](Self::load_default_model) looks for one. `on_state` hears of every
    /// change, on whatever thread it happens.
    pub fn new(
        config: ApplicationConfig,
        on_state: impl Fn(ApplicationState) + Send + Sync + 'static,
    ) -> Self {
        let (settings, notices) = config.settings;
        let state = config.state_folder;
        let mut notices: Vec<String> = notices.into_iter().map(|notice| notice.0).collect();
        let opened = state.as_ref().map(|folder| History::open(folder.join("history.sqlite"))).transpose();
        let history = opened.unwrap_or_else(|error| {
            notices.push(format!("the history cannot be used: {error}"));
            None
        });
        if let Some(history) = &history {
            // What cannot be forgotten now is next time.
            let _ = history.prune(now_ms(), settings.settings().privacy.history_days);
        }
        Self {
            on_state: Arc::new(on_state),
            library: config.library,
            documents: Documents::default(),
            drafts: Drafts::in_folder(state.map(|folder| folder.join("drafts"))),
            clipboard: Clipboard::default(),
            folder: Mutex::default(),
            clipboard_completion: Mutex::default(),
            settings: Mutex::new(settings),
            notices: Mutex::new(notices),
            history: Mutex::new(history),
            initial_path: Mutex::new(config.initial_path),
            running: Mutex::default(),
            model_id: Arc::default(),
            failure: Mutex::default(),
            is_starting: AtomicBool::new(true),
            page: Default::default(),
            completion: Mutex::default(),
            preparation: Mutex::default(),
            installation: Mutex::default(),
        }
    }

    /// Says that a page shows what the app was started with.
    pub fn page_is_up(&self) {
        *lock(&self.page.0) = true;
        self.page.1.notify_all();
    }

    /// Waits for a page that shows what the app was started with, for at most `patience`, and says whether there is
    /// one. Web view and model would share the processor otherwise, and a person sees the one but not yet the other.
    pub fn wait_for_page(&self, patience: Duration) -> bool {
        let waited = self.page.1.wait_timeout_while(lock(&self.page.0), patience, |is_up| !*is_up);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Loads the model of the settings, if one is installed. A file that nobody has looked at before is read for
    /// that, so this is no work for the thread that draws.
    pub fn load_default_model(&self) {
        let settings = self.settings();
        let model = self.library().and_then(|library| settings.model(&library));
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
        (self.on_state)(self.state());
    }

    /// The installed models.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoDataFolder`] where this system has no place for them.
    pub fn library(&self) -> Result<ModelLibrary, EngineError> {
        self.library.clone().ok_or(EngineError::NoDataFolder)
    }

    /// What the user has chosen.
    pub fn settings(&self) -> Settings {
        lock(&self.settings).settings().clone()
    }

    /// What the user has chosen, to be changed.
    pub fn settings_file(&self) -> MutexGuard<'_, SettingsFile> {
        lock(&self.settings)
    }

    /// Loads what changed settings ask for; `before` is what they were.
    ///
    /// # Errors
    ///
    /// The model that they name is not there.
    pub fn apply_settings(&self, before: &Settings) -> Result<(), EngineError> {
        let now = self.settings();
        let running = lock(&self.model_id).clone();
        let of_running = |settings: &Settings| {
            let mut model = settings.model.clone();
            model.adapters.retain(|id, _| Some(id) == running.as_ref());
            model
        };
        if now.model.id != before.model.id {
            self.load(&now.model(&self.library()?)?)
        } else if of_running(&now) != of_running(before) || now.privacy.learning != before.privacy.learning {
            self.reload()
        } else {
            Ok(())
        }
    }

    /// What was wrong at the start, once.
    pub fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.notices))
    }

    /// The file or folder that the app was started with, once.
    pub(crate) fn take_initial_path(&self) -> Option<PathBuf> {
        lock(&self.initial_path).take()
    }

    /// What the windows show of the engine.
    pub fn state(&self) -> ApplicationState {
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
    ///
    /// # Errors
    ///
    /// The engine's thread cannot be started.
    pub fn load(&self, model: &InstalledModel) -> Result<(), EngineError> {
        let config = self.settings().engine_config(model);
        let mut running = lock(&self.running);
        *lock(&self.failure) = None;
        *lock(&self.model_id) = Some(model.id.clone());
        match &*running {
            Some(engine) => engine.load(config),
            None => {
                let (tell, model_id) = (self.on_state.clone(), self.model_id.clone());
                let on_state = move |engine: EngineState| {
                    let model_id = lock(&model_id).clone();
                    tell(ApplicationState { engine, model_id });
                };
                *running = Some(Engine::start(config, on_state)?);
            }
        }
        Ok(())
    }

    /// Loads the model that runs anew, with what the settings say now.
    ///
    /// # Errors
    ///
    /// Its file is gone.
    pub(crate) fn reload(&self) -> Result<(), EngineError> {
        let id = lock(&self.model_id).clone();
        match id {
            Some(id) => self.load(&self.library()?.find(&id)?),
            None => Ok(()),
        }
    }

    /// Gives the memory of the model back; the next request loads it.
    pub fn unload(&self) {
        if let Some(engine) = &*lock(&self.running) {
            engine.unload();
        }
    }

    /// Forgets a model that was removed. Without the engine nothing holds its file.
    pub fn forget(&self, id: &str) {
        let mut running = lock(&self.running);
        if lock(&self.model_id).as_deref() == Some(id) {
            *running = None;
            *lock(&self.model_id) = None;
        }
        drop(running);
        (self.on_state)(self.state());
    }

    /// The model that runs.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoModel`] where there is none, and [`EngineError::NotReady`] while it is not loaded.
    pub fn model(&self) -> Result<Arc<Model>, EngineError> {
        let running = lock(&self.running);
        let engine = running.as_ref().ok_or(EngineError::NoModel)?;
        let not_loaded =
            || EngineError::NotReady { state: "it is not loaded yet".to_owned(), code: ErrorCode::Busy };
        engine.model().ok_or_else(not_loaded)
    }

    /// Name of the open folder, as the model is told.
    pub(crate) fn repository(&self) -> String {
        lock(&self.folder).as_ref().map(Folder::name).unwrap_or_default()
    }

    /// A request for what is to be completed, as the settings have it.
    pub(crate) fn request(&self, prefix: String, suffix: String) -> CompletionRequest {
        let settings = self.settings();
        let of_completion = &settings.completion;
        CompletionRequest {
            max_tokens: of_completion.max_tokens,
            sampling: SamplingParams { temperature: of_completion.temperature, ..SamplingParams::default() },
            speculation: of_completion.speculation,
            extent: of_completion.extent,
            budget: settings.budget(),
            ..CompletionRequest::new(prefix, suffix)
        }
    }

    /// What the model is told of a file: its path below the open folder, else its name.
    pub(crate) fn path_for_model(&self, path: &str, name: &str) -> String {
        let below = lock(&self.folder).as_ref().and_then(|folder| folder.below(Path::new(path)));
        below.unwrap_or_else(|| name.to_owned())
    }

    /// The texts of other tabs.
    pub(crate) fn other_files(&self, key: &str) -> Vec<ContextFile> {
        let mut n_bytes = 0;
        let fits = |file: &ContextFile| {
            n_bytes += file.text.len() + file.path.len();
            n_bytes <= MAX_OTHER_BYTES
        };
        let others = self.drafts.others(key).into_iter();
        let files = others.map(|draft| ContextFile {
            path: self.path_for_model(&draft.path, &draft.name),
            text: draft.text,
        });
        files.filter(|file| !file.text.is_empty() && file.path.len() < 1024).take_while(fits).collect()
    }

    /// Asks for a completion; it takes the place of earlier ones of the same client.
    pub(crate) fn submit(
        &self,
        client: Client,
        request: CompletionRequest,
    ) -> Result<Submission, EngineError> {
        let running = lock(&self.running);
        let engine = running.as_ref().ok_or(EngineError::NoModel)?;
        let submission = engine.submit(client.name(), client.priority(), request);
        if client == Client::Editor {
            *lock(&self.completion) = submission.cancel_token();
        }
        Ok(submission)
    }

    /// Has what `request` asks the model with computed ahead, in the place of earlier work for the editor, while nothing
    /// else is to be done. Only by a model that is ready.
    pub(crate) fn submit_ahead(&self, request: CompletionRequest) {
        let running = lock(&self.running);
        if let Some(engine) =
            running.as_ref().filter(|engine| matches!(engine.state(), EngineState::Ready(_)))
        {
            let submission = engine.submit(Client::Editor.name(), Priority::Background, request);
            *lock(&self.preparation) = Some(submission);
        }
    }

    /// Gives up the newest completion of the editor, and what is computed ahead.
    pub fn cancel_completion(&self) {
        lock(&self.completion).cancel();
        *lock(&self.preparation) = None;
    }

    /// A token for a new installation; an earlier one is cancelled.
    pub fn begin_installation(&self) -> CancelToken {
        let cancel = CancelToken::default();
        std::mem::replace(&mut *lock(&self.installation), cancel.clone()).cancel();
        cancel
    }

    /// Gives up the installation that goes on.
    pub fn cancel_installation(&self) {
        lock(&self.installation).cancel();
    }

    /// Remembers a completion that is shown, where that is wanted. `elapsed_ms` is the time since the request.
    pub(crate) fn record(&self, client: Client, completion: &Completion, elapsed_ms: f64) -> Option<i64> {
        if !self.settings().privacy.history || completion.text.is_empty() {
            return None;
        }
        let model = lock(&self.model_id).clone().unwrap_or_default();
        let queue_ms = (elapsed_ms - completion.total_ms).max(0.0);
        let entry = Entry { at_ms: now_ms(), client: client.name(), model: &model, queue_ms, completion };
        // Figures that cannot be kept are no reason to keep the text from whoever waits for it.
        lock(&self.history).as_ref().and_then(|history| history.add(&entry).ok())
    }

    /// Does something with the history, if there is one.
    pub fn with_history<T>(&self, work: impl FnOnce(&History) -> T) -> Option<T> {
        lock(&self.history).as_ref().map(work)
    }
}
