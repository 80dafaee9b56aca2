//! Losslessness on real models and real code: speculative output equals ordinary output, greedy
//! and sampled. `make losslessness` runs all of HumanEval; the ordinary run takes a slice.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{
    Completion, CompletionRequest, DeviceChoice, Engine, EngineConfig, Extent, SamplingParams, Session,
    Speculation,
};

/// Every way of decoding but the ordinary one.
const MODES: [Speculation; 5] =
    [Speculation::Sdsat, Speculation::Fused, Speculation::Lookup, Speculation::Free, Speculation::Auto];

fn settings() -> [(&'static str, SamplingParams); 4] {
    let sampled = |temperature, seed| SamplingParams { temperature, seed, ..SamplingParams::default() };
    [
        ("greedy", SamplingParams::default()),
        ("temperature 0.2", sampled(0.2, 7)),
        ("temperature 1.0", sampled(1.0, 8)),
        ("penalty 1.03", SamplingParams { repetition_penalty: 1.03, ..SamplingParams::default() }),
    ]
}

/// How many prompts: all of them in the full run.
fn n_prompts(slice: usize) -> usize {
    let wanted = std::env::var("SATEEN_HUMAN_EVAL_PROMPTS").ok();
    wanted.map_or(slice, |n| n.parse().expect("SATEEN_HUMAN_EVAL_PROMPTS is a number"))
}

#[derive(Clone, Default)]
struct Tally {
    n_tokens: usize,
    n_steps: usize,
    drafted: Vec<usize>,
    accepted: Vec<f64>,
}

impl Tally {
    fn add(&mut self, completion: &Completion) {
        self.n_tokens += completion.n_tokens;
        self.n_steps += completion.n_steps;
        let n_slots = self.drafted.len().max(completion.drafted_per_slot.len());
        self.drafted.resize(n_slots, 0);
        self.accepted.resize(n_slots, 0.0);
        for (slot, &n) in completion.drafted_per_slot.iter().enumerate() {
            self.drafted[slot] += n;
            self.accepted[slot] += completion.accepted_per_slot[slot] * n as f64;
        }
    }
}

/// What is decoded, and on what.
struct Check {
    id: &'static str,
    device: DeviceChoice,
    n_prompts: usize,
    max_tokens: usize,
    /// Of [`settings`], the first so many.
    n_settings: usize,
}

impl Default for Check {
    fn default() -> Self {
        let n_settings = settings().len();
        Self { id: "smollm2-135m", device: DeviceChoice::Cpu, n_prompts: 0, max_tokens: 64, n_settings }
    }
}

fn check(check: Check) {
    let Check { id, device, n_prompts, max_tokens, n_settings } = check;
    let mut prompts = common::human_eval();
    assert_eq!(prompts.len(), 164);
    prompts.truncate(n_prompts);
    if device != DeviceChoice::Cpu {
        // Some twenty tokens of each: a GPU in software takes its time over a prompt.
        prompts.iter_mut().for_each(|prompt| *prompt = prompt.chars().take(60).collect());
    }
    let model = {
        // The engine's own way of loading, so that the adapter is the one that ships.
        let config = EngineConfig { device: device.clone(), ..common::config(id) };
        let engine = Engine::start(config, |_| ()).expect("a thread");
        let (loaded, model) = engine.wait_until_ready().expect("the installed model loads");
        assert_eq!(loaded.device_note, None);
        model
    };
    assert_eq!(model.device().starts_with("CPU"), device == DeviceChoice::Cpu);
    assert!(model.n_adaptive_tokens() > 0, "without adaptive tokens nothing would be tested");
    let next = AtomicUsize::new(0);
    let tallies = Mutex::new(vec![vec![Tally::default(); MODES.len() + 1]; settings().len()]);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(prompts.len());
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                // One for each mode, so that none learns from what another has written.
                let mut sessions: Vec<Session> = (0..=MODES.len()).map(|_| Session::new(&model)).collect();
                while let Some(prompt) = prompts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    for (setting, (name, sampling)) in settings().into_iter().take(n_settings).enumerate() {
                        let mut complete = |session: usize, speculation| {
                            let request = CompletionRequest {
                                max_tokens,
                                sampling: sampling.clone(),
                                speculation,
                                extent: Extent::Raw,
                                ..CompletionRequest::new(prompt.as_str(), "")
                            };
                            sessions[session].complete(&request).expect("the prompt fits")
                        };
                        let ordinary = complete(0, Speculation::Off);
                        assert_eq!(ordinary.n_steps, ordinary.n_tokens);
                        tallies.lock().expect("no thread panicked")[setting][0].add(&ordinary);
                        for (idx, mode) in MODES.into_iter().enumerate() {
                            let speculative = complete(idx + 1, mode);
                            assert_eq!(
                                speculative.tokens, ordinary.tokens,
                                "{id}, {mode:?}, {name}: {prompt}"
                            );
                            assert_eq!(speculative.text, ordinary.text, "{id}, {mode:?}, {name}: {prompt}");
                            assert_eq!(
                                speculative.stop_reason, ordinary.stop_reason,
                                "{id}, {mode:?}, {name}"
                            );
                            tallies.lock().expect("no thread panicked")[setting][idx + 1].add(&speculative);
                        }
                    }
                }
            });
        }
    });
    let tallies = tallies.into_inner().expect("no thread panicked");
    for ((name, _), tallies) in settings().iter().zip(&tallies).take(n_settings) {
        for (mode, tally) in MODES.iter().zip(&tallies[1..]) {
            let rates = tally.accepted.iter().zip(&tally.drafted).take(6);
            let rates: Vec<String> = rates.map(|(a, &n)| format!("{:.2}", a / n as f64)).collect();
            println!(
                "{id} on {device}, {} prompts, {name}, {}: {} tokens identical; per pass {:.2}; accepted by depth {}",
                prompts.len(),
                mode.name(),
                tally.n_tokens,
                tally.n_tokens as f64 / tally.n_steps as f64,
                rates.join(", ")
            );
            let is_short = max_tokens < 64;
            assert!(
                is_short || tally.accepted.iter().sum::<f64>() > 0.0,
                "{mode:?}: no draft was ever accepted"
            );
        }
    }
}

#[test]
fn speculative_output_is_identical_smollm2_135m() {
    check(Check { n_prompts: n_prompts(4), ..Check::default() });
}

#[test]
fn speculative_output_is_identical_qwen2_5_coder_0_5b() {
    check(Check { id: "qwen2.5-coder-0.5b", n_prompts: n_prompts(2), ..Check::default() });
}

/// On a GPU, or on what Debian's `mesa-vulkan-drivers` has in its place: that is slow, so the slice is small.
#[test]
fn speculative_output_is_identical_on_a_gpu() {
    let device = "vulkan:0".parse().expect("a device");
    check(Check { device, n_prompts: 1, max_tokens: 5, n_settings: 1, ..Check::default() });
}
