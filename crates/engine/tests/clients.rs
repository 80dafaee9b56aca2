//! One engine, several clients.

mod common;

use std::time::Duration;

use engine::{CompletionRequest, Engine, EngineConfig, EngineState, Event, Extent, Outcome, Priority};

fn engine() -> Engine {
    let engine = Engine::start(common::config("smollm2-135m"), |_| ()).expect("a thread");
    engine.wait_until_ready().expect("the installed model loads");
    engine
}

fn request(prefix: &str, max_tokens: usize) -> CompletionRequest {
    CompletionRequest { max_tokens, extent: Extent::Raw, ..CompletionRequest::new(prefix, "") }
}

#[test]
fn the_newest_request_of_a_client_takes_the_place_of_its_older_ones() {
    let engine = engine();
    let submissions: Vec<_> = (0..6)
        .map(|idx| engine.submit("editor", Priority::Editor, request(&format!("x{idx} = "), 24)))
        .collect();
    let other = engine.submit("popup", Priority::Popup, request("y = ", 8));
    let outcomes: Vec<Outcome> =
        submissions.into_iter().map(|submission| submission.wait(|_| ()).expect("nothing fails")).collect();
    assert!(outcomes[..5].iter().all(|outcome| *outcome == Outcome::Superseded), "{outcomes:?}");
    assert!(matches!(outcomes[5], Outcome::Ended(_)));
    assert!(matches!(other.wait(|_| ()), Ok(Outcome::Ended(_))), "each client supersedes only itself");
}

/// A short request starts within two passes of a long one that is running, and both write what they write alone.
#[test]
fn a_short_request_never_waits_for_a_long_one() {
    let engine = engine();
    let (long, short) = (request("def main():\n    ", 200), request("import ", 8));
    let alone =
        [&long, &short].map(|request| engine.complete(request.clone(), |_| ()).expect("completes").text);
    let mut running = engine.submit("server", Priority::Editor, long);
    for _ in 0..3 {
        assert!(matches!(running.next_event(), Some(Event::Step(_))));
    }
    let n_before = engine.n_passes();
    let mut interactive = engine.submit("editor", Priority::Editor, short);
    let Some(Event::Step(first)) = interactive.next_event() else { panic!("it starts") };
    // The passes since, of which the short request had its prompt's and its first.
    let n_passes = engine.n_passes() - n_before;
    assert!(first.n_rows > 0 && n_passes <= 4, "{n_passes} passes");
    let mut text: String = first.pieces.into_iter().map(|piece| piece.text).collect();
    let Ok(Outcome::Ended(short)) =
        interactive.wait(|event| text.extend(event.pieces.into_iter().map(|piece| piece.text)))
    else {
        panic!("it ends")
    };
    assert_eq!((&text, &short.text), (&alone[1], &alone[1]));
    let Ok(Outcome::Ended(long)) = running.wait(|_| ()) else { panic!("it ends") };
    assert_eq!(long.text, alone[0]);
}

/// More requests than caches: they take turns, and what they write stays the same.
#[test]
fn requests_without_a_cache_take_turns() {
    let config = EngineConfig { cache_bytes: Some(1), ..common::config("smollm2-135m") };
    let refused = Engine::start(config.clone(), |_| ()).expect("a thread");
    let error = refused.wait_until_ready().expect_err("no cache fits into a byte").to_string();
    assert!(error.contains("its budget is 1"), "{error}");

    let needed = engine::MemoryNeeded::of(&config).expect("the installed model").cache_bytes;
    let one_cache =
        Engine::start(EngineConfig { cache_bytes: Some(needed), ..config }, |_| ()).expect("a thread");
    let requests = ["def a():\n    ", "class B:\n    ", "import "].map(|prefix| request(prefix, 20));
    let alone =
        requests.clone().map(|request| one_cache.complete(request, |_| ()).expect("completes").tokens);
    let submissions: Vec<_> = requests
        .into_iter()
        .enumerate()
        .map(|(idx, request)| one_cache.submit(&idx.to_string(), Priority::Editor, request))
        .collect();
    for (submission, alone) in submissions.into_iter().zip(alone) {
        assert_eq!(submission.completion(|_| ()).expect("completes").tokens, alone);
    }
}

#[test]
fn dropping_a_request_cancels_it() {
    let engine = engine();
    let mut long = engine.submit("a", Priority::Editor, request("def main():\n    ", 2000));
    assert!(matches!(long.next_event(), Some(Event::Step(_))));
    drop(long);
    // The engine is free at once: what follows does not share its passes with anybody.
    let n_before = engine.n_passes();
    let completion = engine.complete(request("import ", 4), |_| ()).expect("completes");
    assert!(engine.n_passes() - n_before <= completion.n_steps as u64 + 2);
}

#[test]
fn a_model_is_replaced_unloaded_and_loaded_again() {
    let engine = engine();
    let running = engine.submit("a", Priority::Editor, request("def main():\n    ", 40));
    engine.unload();
    // What runs begins anew on the model that is loaded for it.
    assert!(matches!(running.wait(|_| ()), Ok(Outcome::Ended(_))));
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    // Loading is given up when another model is wanted.
    engine.load(common::config("qwen2.5-coder-0.5b"));
    engine.load(EngineConfig::new("Tiny", tiny, ""));
    let (loaded, _) = engine.wait_until_ready().expect("the tiny model loads");
    assert_eq!(loaded.name, "Tiny");
}

#[test]
fn an_idle_model_gives_its_memory_back() {
    let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    let (sender, states) = std::sync::mpsc::channel();
    let config =
        EngineConfig { unload_after: Some(Duration::from_millis(1)), ..EngineConfig::new("Tiny", tiny, "") };
    let on_state = move |state| {
        // The test may have ended.
        let _ = sender.send(state);
    };
    let engine = Engine::start(config, on_state).expect("a thread");
    let mut n_unloaded = 0;
    for state in &states {
        n_unloaded += usize::from(matches!(state, EngineState::Unloaded { .. }));
        match n_unloaded {
            1 if matches!(state, EngineState::Unloaded { .. }) => {
                engine.complete(request("x", 2), |_| ()).expect("it loads again");
            }
            2 => break,
            _ => (),
        }
    }
}
