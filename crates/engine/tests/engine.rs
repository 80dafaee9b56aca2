//! The engine with a real model: cancel, newest wins, reuse of the cache, bad requests.

mod common;

use std::sync::mpsc::channel;

use engine::{
    CancelToken, Completion, CompletionRequest, Engine, EngineConfig, EngineState, ErrorCode, Extent,
    Outcome, SamplingParams, Session, StopReason,
};
use model::{Model, ModelConfig};

const PROMPT: &str = "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n";

fn smollm() -> Session {
    let model = common::installed("smollm2-135m");
    let config = ModelConfig { max_context: 256, ..ModelConfig::new(model.path) };
    Session::new(&std::sync::Arc::new(Model::load(&config).expect("the installed model loads")))
}

fn complete(session: &mut Session, request: &CompletionRequest) -> Completion {
    session.complete(request).expect("the request is sound")
}

#[test]
fn the_cache_is_reused_and_changes_nothing() {
    let mut session = smollm();
    let request = CompletionRequest { max_tokens: 12, ..CompletionRequest::new(PROMPT.repeat(2), "") };
    let first = complete(&mut session, &request);
    assert_eq!(first.n_reused_tokens, 0);
    let again = complete(&mut session, &request);
    assert_eq!(again.n_reused_tokens, first.n_prompt_tokens - 1, "all but the last token of the prompt");
    assert_eq!(again.tokens, first.tokens);
    // Text before the cursor was edited: what stands before the edit is kept.
    let at = request.prefix.rfind("n-th").expect("it is there");
    let edited = format!("{}k{}", &request.prefix[..at], &request.prefix[at + 1..]);
    let edited = CompletionRequest { prefix: edited, ..request.clone() };
    let shared = complete(&mut session, &edited);
    assert!((16..first.n_prompt_tokens - 1).contains(&shared.n_reused_tokens), "{}", shared.n_reused_tokens);
    assert_eq!(complete(&mut smollm(), &edited).tokens, shared.tokens);
    // Another file in turn with this one: both keep their cache.
    let other = CompletionRequest { prefix: "class Stack {\n  push(x) {\n".repeat(3), ..request.clone() };
    assert_eq!(complete(&mut session, &other).n_reused_tokens, 0);
    let back = complete(&mut session, &edited);
    assert_eq!((back.n_reused_tokens, &back.tokens), (shared.n_prompt_tokens - 1, &shared.tokens));
    let other_again = complete(&mut session, &other);
    assert_eq!(other_again.n_reused_tokens, other_again.n_prompt_tokens - 1);
    assert_eq!(complete(&mut session, &request).tokens, first.tokens);
}

/// A character typed behind a prompt that the cache holds: one pass, and the first token is there.
#[test]
fn a_warm_keystroke_takes_one_pass() {
    let mut session = smollm();
    let request = CompletionRequest { max_tokens: 1, ..CompletionRequest::new(PROMPT.repeat(5), "") };
    let cold = complete(&mut session, &request);
    let warm = CompletionRequest { prefix: format!("{}x", request.prefix), ..request };
    let mut n_passes = 0;
    let cancel = CancelToken::default();
    let outcome = session.complete_with(&warm, &cancel, &mut |event| {
        n_passes += usize::from(event.n_rows > 0);
        assert!(event.n_rows < 8, "{} rows", event.n_rows);
    });
    let Ok(Outcome::Ended(completion)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((n_passes, completion.n_steps), (1, 1));
    assert!(completion.n_reused_tokens + 3 >= cold.n_prompt_tokens, "{}", completion.n_reused_tokens);
}

#[test]
fn the_context_limit_ends_a_completion() {
    let mut session = smollm();
    // As far as the model goes, in circles or not.
    let extent = Extent::Raw;
    let request =
        CompletionRequest { max_tokens: 600, extent, ..CompletionRequest::new(PROMPT.repeat(30), "") };
    let completion = complete(&mut session, &request);
    assert_eq!(completion.stop_reason, StopReason::ContextLimit);
    assert_eq!(completion.n_prompt_tokens + completion.n_tokens, 256);
}

#[test]
fn cancelling_stops_within_a_step() {
    let mut session = smollm();
    let cancel = CancelToken::default();
    let request = CompletionRequest { extent: Extent::Raw, ..CompletionRequest::new(PROMPT, "") };
    let mut n_events = 0;
    let outcome = session.complete_with(&request, &cancel, &mut |_| {
        n_events += 1;
        if n_events == 3 {
            cancel.cancel();
        }
    });
    assert_eq!((outcome.expect("cancel is an outcome"), n_events), (Outcome::Cancelled, 3));
    // Nothing of it is left behind.
    assert_eq!(complete(&mut session, &request).tokens, complete(&mut smollm(), &request).tokens);

    let outcome = session.complete_with(&request, &cancel, &mut |_| panic!("cancelled before it began"));
    assert_eq!(outcome.expect("cancel is an outcome"), Outcome::Cancelled);
}

/// A pass that decodes ends when someone asks, not at its end; the text that follows is what it would have been.
#[test]
fn cancelling_in_the_midst_of_passes_changes_nothing() {
    let mut session = smollm();
    let request = CompletionRequest { extent: Extent::Raw, ..CompletionRequest::new(PROMPT, "") };
    for n in 0..24 {
        let (has_begun, begun) = channel();
        let cancel = CancelToken::default();
        let outcome = std::thread::scope(|scope| {
            let from_outside = cancel.clone();
            scope.spawn(move || {
                begun.recv().expect("it begins");
                std::thread::sleep(std::time::Duration::from_micros(200 * n));
                from_outside.cancel();
            });
            session.complete_with(&request, &cancel, &mut |_| has_begun.send(()).unwrap_or_default())
        });
        assert_eq!(outcome.expect("cancel is an outcome"), Outcome::Cancelled);
    }
    let expected = complete(&mut smollm(), &request);
    let completion = complete(&mut session, &request);
    assert_eq!(completion.tokens, expected.tokens);
    assert_eq!(completion.n_reused_tokens, expected.n_prompt_tokens - 1);
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_state_with_a_reason() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"GGUF\x03\0\0\0\x01\0\0").expect("writes");
    let (sender, states) = channel();
    let config = EngineConfig::new("broken", file.path(), "");
    let engine =
        Engine::start(config, move |state| sender.send(state).expect("the test listens")).expect("a thread");
    let error = engine.wait_until_ready().expect_err("it is not a model");
    assert!(error.to_string().contains("the file ends at byte"), "{error}");
    assert!(matches!(states.recv(), Ok(EngineState::Failed { .. })));
    let error = engine.complete(CompletionRequest::new("x", ""), |_| ()).expect_err("no model");
    assert_eq!(error.code(), ErrorCode::ModelInvalid);
}

#[test]
fn requests_outside_their_limits_are_refused() {
    let mut session = smollm();
    let base = CompletionRequest::new(PROMPT, "");
    let sampling = |temperature, top_p| SamplingParams { temperature, top_p, ..SamplingParams::default() };
    let refused = [
        (
            CompletionRequest { max_tokens: 0, ..base.clone() },
            "`max_tokens` must be from 1 to 4096. Given: 0",
        ),
        (
            CompletionRequest { stop: vec![String::new()], ..base.clone() },
            "`stop` must be strings of 1 to 256 bytes. Given: 0 bytes",
        ),
        (
            CompletionRequest { sampling: sampling(9.0, 1.0), ..base.clone() },
            "`temperature` must be in [0, 2]. Given: 9",
        ),
        (CompletionRequest { sampling: sampling(1.0, 0.0), ..base }, "`top_p` must be in (0, 1]. Given: 0"),
    ];
    for (request, message) in refused {
        let error = session.complete(&request).expect_err("refused");
        assert_eq!((error.to_string().as_str(), error.code()), (message, ErrorCode::InvalidRequest));
    }
    // An empty document is sound: it starts from the token that starts every text.
    assert!(
        complete(&mut session, &CompletionRequest { max_tokens: 2, ..CompletionRequest::new("", "") })
            .n_tokens
            > 0
    );
}

/// Fill-in with the default model: the gap of a function, and nothing that follows it.
#[test]
fn the_default_model_fills_in() {
    let engine = Engine::start(common::config("qwen2.5-coder-0.5b"), |_| ()).expect("a thread");
    engine.wait_until_ready().expect("the installed model loads");
    let prefix = "def mean(values):\n    total = 0\n    for value in values:\n        ";
    let suffix = "\n    return total / len(values)\n";
    let request = |speculation| CompletionRequest { speculation, ..CompletionRequest::new(prefix, suffix) };
    let completion = engine.complete(request(engine::Speculation::Auto), |_| ()).expect("completes");
    assert_eq!(completion.text, "total += value");
    // Nothing but adaptive tokens drafts here, and some of it they draft.
    let fused = engine.complete(request(engine::Speculation::Fused), |_| ()).expect("completes");
    assert_eq!(fused.tokens, completion.tokens);
    let of_sat: Vec<_> = fused.accepted_by_drafter.iter().filter(|share| share.drafter == "sat").collect();
    assert!(of_sat.iter().any(|share| share.n_accepted > 0), "{:?}", fused.accepted_by_drafter);
}

/// Whoever listens to the engine's state may fail; the engine does not.
#[test]
fn a_listener_that_panics_is_no_end() {
    let listener = |state| assert!(!matches!(state, EngineState::Ready(_)), "a defect of the listener");
    let engine = Engine::start(common::config("smollm2-135m"), listener).expect("a thread");
    engine.wait_until_ready().expect("the model is loaded all the same");
    let request = || CompletionRequest { max_tokens: 4, ..CompletionRequest::new(PROMPT, "") };
    let first = engine.complete(request(), |_| ()).expect("completes");
    assert_eq!(engine.complete(request(), |_| ()).expect("completes again").text, first.text);
}

/// A word that is being typed goes on, whatever its tokens are; infilling needs no such care.
#[test]
fn a_word_that_is_being_typed_goes_on() {
    let mut session = smollm();
    for (typed, rest) in [("    retur", "n"), ("    return fibonacc", "i")] {
        let prefix = format!("{PROMPT}    if n < 2:\n        return n\n{typed}");
        let request = CompletionRequest { max_tokens: 12, ..CompletionRequest::new(prefix, "") };
        let completion = complete(&mut session, &request);
        assert!(completion.text.starts_with(rest), "{typed}|{}", completion.text);
        let ordinary = CompletionRequest { speculation: engine::Speculation::Off, ..request };
        assert_eq!(complete(&mut session, &ordinary).tokens, completion.tokens);
    }
}

/// Alternatives begin otherwise, share the prefill, and leave the first text alone.
#[test]
fn alternatives_come_from_one_prefill() {
    let mut session = smollm();
    let base = CompletionRequest { max_tokens: 8, ..CompletionRequest::new(format!("{PROMPT}    x = "), "") };
    let alone = complete(&mut session, &base);
    for sampling in
        [SamplingParams::default(), SamplingParams { temperature: 1.0, ..SamplingParams::default() }]
    {
        let request = CompletionRequest { n_alternatives: 3, sampling, ..base.clone() };
        let (mut n_prompt_rows, mut text) = (0, String::new());
        let outcome = smollm().complete_with(&request, &CancelToken::default(), &mut |event| {
            n_prompt_rows += usize::from(event.n_rows > 16);
            text.extend(event.pieces.iter().map(|piece| piece.text.as_str()));
        });
        let Ok(Outcome::Ended(completion)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(
            (n_prompt_rows, &text),
            (1, &completion.text),
            "one prefill, and the first text is streamed"
        );
        assert!(!completion.alternatives.is_empty());
        let mut texts = completion.alternatives.clone();
        texts.push(completion.text.clone());
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), completion.alternatives.len() + 1, "each says something else: {texts:?}");
        if request.sampling.temperature == 0.0 {
            assert_eq!(completion.text, alone.text);
        }
        assert_eq!(
            complete(&mut session, &request).alternatives,
            completion.alternatives,
            "the cache changes nothing"
        );
    }
}

/// What is written does not depend on what a client wants to see of it.
#[test]
fn the_extent_cuts_the_same_text() {
    let mut session = smollm();
    let base =
        CompletionRequest { max_tokens: 24, ..CompletionRequest::new(format!("{PROMPT}    a = f("), ")\n") };
    let raw = complete(&mut session, &CompletionRequest { extent: Extent::Raw, ..base.clone() });
    let shown = complete(&mut session, &base);
    assert!(raw.tokens.starts_with(&shown.tokens[..shown.tokens.len() - 1]));
    assert_eq!(shown.text, engine::shown_text(&base, &raw.text));
}
