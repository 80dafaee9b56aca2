//! The settings, their defaults and their bounds.

use std::collections::BTreeMap;

use engine::{
    AdapterChoice, CacheType, DeviceChoice, EngineConfig, EngineError, Extent, InstalledModel, ModelLibrary,
    PromptBudget, Speculation,
};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::SettingsError;

/// All settings, by group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct Settings {
    /// What runs, and with what.
    pub model: ModelSettings,
    /// What is asked of it.
    pub completion: CompletionSettings,
    /// The hotkey, and what is done with the clipboard.
    pub clipboard: ClipboardSettings,
    /// What is remembered.
    pub privacy: PrivacySettings,
    /// How the window looks.
    pub appearance: AppearanceSettings,
    /// How the app starts.
    pub start: StartSettings,
}

/// What runs, and with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct ModelSettings {
    /// Id of the installed model; the catalogue's first that is installed when empty.
    pub id: String,
    /// Adapters by the id of their model: the name of one of the user's, `shipped`, `off`, or `newest`, as where nothing is
    /// said: the user's newest, and where there is none the one that ships.
    pub adapters: BTreeMap<String, String>,
    /// What it runs on: `auto`, `cpu`, or a GPU like `cuda:0`, `vulkan:0` or `metal`.
    pub device: String,
    /// Threads that compute; as many as the machine has cores when 0.
    pub threads: usize,
    /// Longest context in tokens.
    pub context_tokens: usize,
    /// Keys and values in half precision: half the memory of a context.
    pub half_precision_cache: bool,
    /// Minutes without a request after which the model's memory is given back; never when 0.
    pub unload_after_minutes: u32,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            id: String::new(),
            adapters: BTreeMap::new(),
            device: DeviceChoice::Auto.to_string(),
            threads: 0,
            context_tokens: EngineConfig::DEFAULT_CONTEXT,
            half_precision_cache: false,
            unload_after_minutes: 0,
        }
    }
}

/// What is asked of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct CompletionSettings {
    /// Ask when typing pauses; otherwise by key alone.
    pub automatic: bool,
    /// Most tokens of a completion.
    pub max_tokens: usize,
    /// Where it ends.
    pub extent: Extent,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// How to decode; the text is the same in every way.
    pub speculation: Speculation,
    /// Most tokens before the cursor.
    pub prefix_tokens: usize,
    /// Most tokens after the cursor.
    pub suffix_tokens: usize,
    /// Most tokens of other open files.
    pub other_tokens: usize,
    /// Endings of files that are not completed, as in `md`.
    pub excluded_endings: Vec<String>,
}

impl Default for CompletionSettings {
    fn default() -> Self {
        let budget = PromptBudget::default();
        Self {
            automatic: true,
            max_tokens: 64,
            extent: Extent::Auto,
            temperature: 0.0,
            speculation: Speculation::Auto,
            prefix_tokens: budget.prefix_tokens,
            suffix_tokens: budget.suffix_tokens,
            other_tokens: budget.other_tokens,
            excluded_endings: Vec::new(),
        }
    }
}

/// The hotkey, and what is done with the clipboard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct ClipboardSettings {
    /// The keys that complete what was copied, from any program; none when empty.
    pub hotkey: String,
    /// Where this stands in what was copied, the text after it is told too; none when empty.
    pub cursor_marker: String,
    /// Puts the continuation into the clipboard without a window, and says so.
    pub silent: bool,
    /// Types Ctrl+V into the program that had the focus, behind an accepted continuation (X11).
    pub paste: bool,
    /// Most tokens of a continuation.
    pub max_tokens: usize,
    /// Programs in which the hotkey does nothing (X11), by the class of their windows.
    pub excluded_programs: Vec<String>,
}

impl Default for ClipboardSettings {
    fn default() -> Self {
        Self {
            hotkey: "Ctrl+Alt+Space".to_owned(),
            cursor_marker: "<CURSOR>".to_owned(),
            silent: false,
            paste: false,
            max_tokens: 96,
            excluded_programs: Vec::new(),
        }
    }
}

/// What is remembered, on this computer only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct PrivacySettings {
    /// Keep figures of completions: how long they took and what became of them, never their text.
    pub history: bool,
    /// Days that they are kept.
    pub history_days: u32,
    /// Keep what drafters learn of the model beside its file.
    pub learning: bool,
    /// Keep texts that are not saved, to offer them again after a crash.
    pub drafts: bool,
}

impl Default for PrivacySettings {
    fn default() -> Self {
        Self { history: true, history_days: 90, learning: true, drafts: true }
    }
}

/// Light or dark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum Theme {
    /// As the desktop is.
    #[default]
    System,
    /// Light.
    Light,
    /// Dark.
    Dark,
}

/// How the window looks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct AppearanceSettings {
    /// Light or dark.
    pub theme: Theme,
    /// Size of everything in percent of what the desktop wants.
    pub zoom: u32,
    /// Font of code; the system's when empty.
    pub code_font: String,
    /// Size of code in pixels.
    pub code_size: f32,
    /// Tint tokens of accepted drafts, with a line under each forward pass.
    pub show_speculation: bool,
}

impl Default for AppearanceSettings {
    fn default() -> Self {
        Self {
            theme: Theme::System,
            zoom: 100,
            code_font: String::new(),
            code_size: 13.5,
            show_speculation: false,
        }
    }
}

/// How the app starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, TS)]
#[serde(default)]
#[ts(export)]
pub struct StartSettings {
    /// With the session.
    pub on_login: bool,
    /// Without a window; the hotkey and a second start show one.
    pub hidden: bool,
    /// Keep running when the window is closed, for the hotkey.
    pub keep_running: bool,
    /// The introduction was seen.
    pub toured: bool,
}

/// Longest text of a setting in characters.
const MAX_TEXT: usize = 200;
/// Most models with an adapter of their own.
const MAX_ADAPTERS: usize = 1000;
/// Most endings or programs that are excluded.
const MAX_EXCLUDED: usize = 100;

impl Settings {
    /// Whether every value is within its bounds.
    ///
    /// # Errors
    /// [`SettingsError::OutOfRange`], for the first that is not.
    pub fn check(&self) -> Result<(), SettingsError> {
        let Self { model, completion, clipboard, privacy, appearance, .. } = self;
        let count = |name: &'static str, got: usize, min: usize, max: usize| {
            let bound = format!("from {min} to {max}");
            within(name, (min..=max).contains(&got), bound, got.to_string())
        };
        let text = |name: &'static str, got: &str| {
            let is_short = got.chars().count() <= MAX_TEXT && !got.contains(char::is_control);
            within(name, is_short, format!("at most {MAX_TEXT} characters in one line"), got.to_owned())
        };
        let number = |name: &'static str, got: f32, min: f32, max: f32| {
            within(name, got >= min && got <= max, format!("from {min} to {max}"), got.to_string())
        };
        text("model.id", &model.id)?;
        count("model.adapters", model.adapters.len(), 0, MAX_ADAPTERS)?;
        model
            .adapters
            .iter()
            .flat_map(|(id, name)| [id, name])
            .try_for_each(|e| text("model.adapters", e))?;
        let device = model.device.parse::<DeviceChoice>();
        let bound = "`auto`, `cpu`, `cuda:N`, `vulkan:N` or `metal`".to_owned();
        within("model.device", device.is_ok(), bound, model.device.clone())?;
        count("model.threads", model.threads, 0, 256)?;
        count("model.context_tokens", model.context_tokens, 512, 131_072)?;
        count("model.unload_after_minutes", model.unload_after_minutes as usize, 0, 10_080)?;
        count("completion.max_tokens", completion.max_tokens, 1, 1024)?;
        number("completion.temperature", completion.temperature, 0.0, 2.0)?;
        count("completion.prefix_tokens", completion.prefix_tokens, 16, 65_536)?;
        count("completion.suffix_tokens", completion.suffix_tokens, 0, 65_536)?;
        count("completion.other_tokens", completion.other_tokens, 0, 65_536)?;
        count("completion.excluded_endings", completion.excluded_endings.len(), 0, MAX_EXCLUDED)?;
        completion.excluded_endings.iter().try_for_each(|e| text("completion.excluded_endings", e))?;
        text("clipboard.hotkey", &clipboard.hotkey)?;
        text("clipboard.cursor_marker", &clipboard.cursor_marker)?;
        count("clipboard.excluded_programs", clipboard.excluded_programs.len(), 0, MAX_EXCLUDED)?;
        clipboard.excluded_programs.iter().try_for_each(|e| text("clipboard.excluded_programs", e))?;
        count("clipboard.max_tokens", clipboard.max_tokens, 1, 1024)?;
        count("privacy.history_days", privacy.history_days as usize, 1, 3650)?;
        count("appearance.zoom", appearance.zoom as usize, 50, 300)?;
        text("appearance.code_font", &appearance.code_font)?;
        number("appearance.code_size", appearance.code_size, 8.0, 40.0)
    }

    /// Which adapter was chosen for the model `id`, in the words of [`InstalledModel::adapter`].
    pub fn adapter_of(&self, id: &str) -> &str {
        self.model.adapters.get(id).map_or(AdapterChoice::NEWEST, String::as_str)
    }

    /// What the engine runs when `model` is to run.
    pub fn engine_config(&self, model: &InstalledModel) -> EngineConfig {
        let of_model = EngineConfig::of(model);
        let minutes = self.model.unload_after_minutes;
        EngineConfig {
            adapter: model.adapter(self.adapter_of(&model.id)),
            max_context: self.model.context_tokens,
            // It was parsed when it was read.
            device: self.model.device.parse().unwrap_or_default(),
            n_threads: self.model.threads,
            cache_type: if self.model.half_precision_cache { CacheType::F16 } else { CacheType::F32 },
            learned: of_model.learned.clone().filter(|_| self.privacy.learning),
            unload_after: (minutes > 0).then(|| std::time::Duration::from_secs(60 * u64::from(minutes))),
            ..of_model
        }
    }

    /// The model that was chosen, or where that is none or gone the catalogue's first that is installed.
    ///
    /// # Errors
    /// Those of the library.
    pub fn model(&self, library: &ModelLibrary) -> Result<InstalledModel, EngineError> {
        match library.find(&self.model.id) {
            Ok(model) if !self.model.id.is_empty() => Ok(model),
            Err(error)
                if !matches!(error, EngineError::NotInstalled { .. } | EngineError::ModelId { .. }) =>
            {
                Err(error)
            }
            _ => library.default_model(),
        }
    }

    /// How much the model is told.
    pub fn budget(&self) -> PromptBudget {
        let CompletionSettings { prefix_tokens, suffix_tokens, other_tokens, .. } = self.completion;
        PromptBudget { prefix_tokens, suffix_tokens, other_tokens, ..PromptBudget::default() }
    }
}

fn within(setting: &'static str, is_so: bool, bound: String, got: String) -> Result<(), SettingsError> {
    if is_so { Ok(()) } else { Err(SettingsError::OutOfRange { setting: setting.to_owned(), bound, got }) }
}
