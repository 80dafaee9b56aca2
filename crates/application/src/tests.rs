//! The application with a tiny random model, and no window.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use engine::{AdapterChoice, AddMode, EngineState, ModelLibrary};
use settings::SettingsFile;
use tempfile::TempDir;

use super::*;

const TINY: &str = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    application: Application,
    states: Receiver<ApplicationState>,
    folder: TempDir,
}

impl Running {
    /// With `settings` as their file, and no model.
    fn with_settings(settings: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("settings.json");
        std::fs::write(&path, settings).expect("settings");
        let config = ApplicationConfig {
            library: Some(ModelLibrary::new(folder.path().join("models"))),
            settings: SettingsFile::open(path),
            state_folder: Some(folder.path().join("state")),
            initial_path: None,
        };
        let (tell, states) = channel();
        let application = Application::new(config, move |state| _ = tell.send(state));
        Self { application, states, folder }
    }

    fn with_model(settings: &str) -> Self {
        let running = Self::with_settings(settings);
        let library = running.application.library().expect("a library");
        library.add(Path::new(TINY), AddMode::Link).expect("the tiny model");
        running.application.load_default_model();
        running.wait_for(|state| matches!(state, EngineState::Ready { .. }));
        running
    }

    fn wait_for(&self, is_wanted: impl Fn(&EngineState) -> bool) {
        while !is_wanted(&self.states.recv_timeout(PATIENCE).expect("the state that is waited for").engine) {}
    }

    /// The text of a completion, and its number in the history.
    fn text(&self, begun: Begun) -> (String, Option<i64>) {
        let mut end = None;
        self.application.follow(begun, |event| {
            match event {
                CompletionEvent::Step(_) => (),
                CompletionEvent::Ended { completion, entry } => end = Some((completion.text, entry)),
                other => panic!("{other:?}"),
            }
            true
        });
        end.expect("an end")
    }

    fn copied(&self, text: &str) -> ClipboardCompletion {
        self.application.begin_completion_of(Ok(Some(text.to_owned())))
    }

    /// The text of what the window over the clipboard shows.
    fn shown(&self, again: bool) -> String {
        let begun = self.application.take_clipboard_completion(again).expect("work").expect("a model");
        self.text(begun).0
    }
}

fn arguments(prefix: &str) -> CompleteArguments {
    CompleteArguments {
        prefix: prefix.to_owned(),
        suffix: String::new(),
        key: "1".to_owned(),
        name: "a.py".to_owned(),
        path: String::new(),
        n_alternatives: 0,
    }
}

#[test]
fn completions_are_remembered_where_that_is_wanted() {
    for (settings, is_kept) in [("{}", true), (r#"{"privacy": {"history": false}}"#, false)] {
        let running = Running::with_model(settings);
        let begun = running.application.complete(arguments("def mean(")).expect("a model");
        let (text, entry) = running.text(begun);
        assert_ne!(text, "");
        assert_eq!(entry.is_some(), is_kept, "{settings}");
    }
}

/// What is computed ahead is there when someone types, is no completion, and wakes no model that rests.
#[test]
fn a_place_is_prepared_for_who_types_there() {
    let running = Running::with_model("{}");
    let text = "def mean(values):\n    return sum(values) / len(values)\n\n".repeat(4);
    running.application.prepare(arguments(&text));
    let preparation = lock(&running.application.preparation).take();
    preparation.expect("a model is ready").wait_for_end(PATIENCE);
    let reused = |text: &str| {
        let begun = running.application.complete(arguments(text)).expect("a model");
        let mut n = None;
        running.application.follow(begun, |event| {
            if let CompletionEvent::Ended { completion, .. } = event {
                n = Some((completion.n_reused_tokens, completion.n_prompt_tokens));
            }
            true
        });
        n.expect("an end")
    };
    let (n_reused, n_prompt) = reused(&format!("{text}x"));
    assert!(n_reused > 20 && n_reused + 4 > n_prompt, "{n_reused} of {n_prompt}");
    let insight = running.application.with_history(|history| history.insight(0, 1));
    assert_eq!(insight.expect("it is kept").expect("reads").n_shown, 1, "the preparation is none");
    running.application.unload();
    running.wait_for(|state| matches!(state, EngineState::Unloaded { .. }));
    running.application.prepare(arguments(&text));
    assert!(matches!(running.application.state().engine, EngineState::Unloaded { .. }));
    let error = running.application.model().expect_err("it rests").to_string();
    assert_eq!(error, "the model is not ready: it is not loaded yet");
}

/// A choice is for one model and for good, and the one that runs is loaded with it.
#[test]
fn an_adapter_is_chosen_for_its_model() {
    let running = Running::with_model("{}");
    let listed = || {
        let list = running.application.list_models(None).expect("a folder");
        (list.installed[0].model.id.clone(), list.installed[0].adapter.clone())
    };
    let (id, adapter) = listed();
    assert_eq!(adapter, AdapterChoice::NEWEST);
    running.application.choose_adapter(&id, AdapterChoice::OFF).expect("written");
    running.wait_for(|state| matches!(state, EngineState::Loading { .. }));
    running.wait_for(|state| matches!(state, EngineState::Ready { .. }));
    assert_eq!(listed().1, AdapterChoice::OFF);
    assert_eq!(running.application.settings().adapter_of("another"), AdapterChoice::NEWEST);
    running.application.choose_adapter("another", AdapterChoice::OFF).expect("written");
    assert!(matches!(running.application.state().engine, EngineState::Ready(_)), "it does not run");
    running.application.choose_adapter(&id, AdapterChoice::NEWEST).expect("written");
    assert_eq!(listed().1, AdapterChoice::NEWEST);
}

/// A page that asks anew, because it was loaded again, gets the text of its first time; the key for it another.
#[test]
fn the_window_over_the_clipboard_gets_another_text_only_where_it_asks_for_one() {
    let running = Running::with_model("{}");
    running.application.show_clipboard_completion(running.copied("def mean("));
    let first = running.shown(false);
    assert_eq!(running.shown(false), first);
    let others: Vec<String> = (0..4).map(|_| running.shown(true)).collect();
    assert!(others.iter().any(|other| *other != first), "{others:?}");
    running.application.end_clipboard_completion();
    assert!(running.application.take_clipboard_completion(false).is_none());
    assert_eq!(running.application.popup_content(), PopupContent::default());
}

#[test]
fn the_window_over_the_clipboard_says_what_is_missing() {
    let running = Running::with_settings("{}");
    let content = |completion: ClipboardCompletion| {
        running.application.show_clipboard_completion(completion);
        running.application.popup_content()
    };
    let problem = content(running.application.begin_completion_of(Ok(None))).problem.expect("a problem");
    assert_eq!(problem, "There is no text in the clipboard. Copy some code first.");
    assert!(running.application.take_clipboard_completion(false).is_none());
    // With a text, it is the model that is missing.
    assert_eq!(content(running.copied("x = ")).tail, "x = ");
    let refused =
        running.application.take_clipboard_completion(false).expect("work").err().expect("no model");
    assert!(matches!(refused, engine::EngineError::NoModel), "{refused}");
    let words = running.application.complete_clipboard_silently(running.copied("x = "));
    assert_eq!(words, Some(refused.to_string()));
}

/// A file outside the open folder is not opened by a path below it.
#[test]
fn paths_stay_in_the_open_folder() {
    let running = Running::with_settings("{}");
    let project = running.folder.path().join("project");
    std::fs::create_dir(&project).expect("a folder");
    std::fs::write(project.join("a.py"), "a = 1\n").expect("a file");
    assert!(running.application.open_in_folder("a.py").is_err(), "no folder is open");
    assert!(matches!(running.application.open(&project), DocumentEvent::FolderOpened(_)));
    assert_eq!(running.application.folder_root().as_deref(), Some(project.as_path()));
    assert_eq!(running.application.open_in_folder("a.py").expect("the file").text, "a = 1\n");
    assert!(running.application.open_in_folder("../settings.json").is_err());
    assert!(matches!(running.application.open(&project.join("missing.py")), DocumentEvent::Failed(_)));
}

#[test]
fn a_model_is_chosen_forgotten_and_missed() {
    let running = Running::with_model("{}");
    let listed = running.application.list_models(Some(running.folder.path())).expect("a list");
    let [entry] = listed.installed.as_slice() else { panic!("one model: {listed:?}") };
    assert!(entry.place.starts_with('~'), "{}", entry.place);
    running.application.choose_model(&entry.model.id).expect("the choice");
    assert_eq!(running.application.settings().model.id, entry.model.id);
    assert!(running.application.choose_model("missing").is_err());
    assert_eq!(running.application.settings().model.id, entry.model.id, "a failure changes nothing");
    running.application.remove_model(&entry.model.id).expect("removed");
    assert!(matches!(running.application.state().engine, EngineState::NoModel));
}

/// A text that is too long to be a file is refused before it is written.
#[test]
fn drafts_are_bounded_and_come_back() {
    let running = Running::with_settings("{}");
    let draft = |n_bytes: usize| documents::Draft {
        key: "1".to_owned(),
        name: "a.py".to_owned(),
        path: String::new(),
        text: "x".repeat(n_bytes),
        is_changed: true,
    };
    assert!(running.application.keep_draft(draft(documents::MAX_FILE_BYTES as usize + 1)).is_err());
    running.application.keep_draft(draft(3)).expect("a draft");
    let config = ApplicationConfig {
        library: None,
        settings: SettingsFile::open(running.folder.path().join("settings.json")),
        state_folder: Some(running.folder.path().join("state")),
        initial_path: None,
    };
    let restored = Application::new(config, |_| ()).restored_drafts();
    assert_eq!(restored.iter().map(|draft| draft.draft.text.as_str()).collect::<Vec<_>>(), ["xxx"]);
}

/// What waits for the page goes on when it is up, and without it in the end.
#[test]
fn a_page_is_waited_for() {
    let running = Running::with_settings("{}");
    assert!(!running.application.wait_for_page(Duration::ZERO));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| running.application.wait_for_page(PATIENCE));
        running.application.page_is_up();
        assert!(waiting.join().expect("no panic"));
    });
}
