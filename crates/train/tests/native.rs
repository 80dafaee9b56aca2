//! Training a model itself: its gradients, its pass against the engine's, and what the file that it leaves decodes.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{gradients_are_slopes, random_model};
use engine::{CompletionRequest, Extent, Session, Speculation};
use model::{Family, Model, ModelConfig, NativeSat};
use speculate::{RowPlan, Target};
use train::{
    Anchors, Batch, Corpus, LossConfig, LossRows, NativeConfig, NativeModel, Stage, TrainDevice, TrainEvent,
    TrainOutcome, slot_loss, train_native,
};

const TINY: &str = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");

fn config() -> NativeConfig {
    NativeConfig {
        max_tokens: 48,
        anchors: Anchors { n: 12, keep_rate: 1.0, glancing: 0.0 },
        infill: 0.0,
        short: 0.0,
        written: 0.5,
        loss: LossConfig { distillation: 0.6, cross_entropy: 0.4, slot_decay: 0.9, aligned_among: 0 },
        slot_weight: 0.7,
        n_token_steps: 4,
        token_rate: 1e-2,
        n_joint_steps: 4,
        joint_rate: 5e-3,
        seed: 1,
        evaluate_every: 1000,
        n_evaluated: 4,
        save_every: 1000,
    }
}

fn text(n: usize, vocabulary: usize) -> Vec<u32> {
    (0..n).map(|i| (i * i * 31 + i * 7 + 3) as u32 % vocabulary as u32).collect()
}

fn corpus(folder: &Path) -> Corpus {
    std::fs::create_dir(folder).expect("a folder");
    for idx in 0..40 {
        let text: String = (0..30).map(|i| format!("def f{idx}_{i}(x):\n    return x + {i}\n")).collect();
        std::fs::write(folder.join(format!("{idx}.py")), text).expect("writes");
    }
    Corpus::read(&[folder]).expect("a corpus")
}

/// A special token of the model in the file at `path`.
fn special_token(path: &Path) -> u32 {
    let (_, tokenizer) = model::ModelSummary::read(path).expect("reads");
    let is_special = |id: &u32| tokenizer.bytes(*id).is_empty() && Some(*id) != tokenizer.start_of_sequence();
    (1..tokenizer.vocabulary() as u32).rev().find(is_special).expect("a special token")
}

/// Every weight learns, along the slope that moving it shows.
#[test]
fn every_gradient_is_that_of_finite_differences() {
    let folder = tempfile::tempdir().expect("a folder");
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let path = random_model(family, folder.path());
        let sat = NativeSat::shared(special_token(&path), 3);
        let model = NativeModel::load(&path, 64, TrainDevice::Cpu, sat).expect("loads");
        let text = text(24, 256);
        let anchors = Anchors { n: 6, keep_rate: 1.0, glancing: 0.0 };
        let batch = Batch::choose(&text, 2, 3, anchors, &mut fastrand::Rng::with_seed(3));
        // The teacher is the model itself, and no part of the slope.
        let loss = LossConfig { distillation: 0.0, cross_entropy: 1.0, slot_decay: 0.8, aligned_among: 0 };
        let config = NativeConfig { loss, ..config() };
        let loss = |stage| model.loss(&config, stage, &text, &batch).expect("a loss");
        gradients_are_slopes(family.name(), model.variables(), || loss(Stage::Joint));
        // Weights may have changed: the stage of the token alone sees what they are now.
        let moved = (model.variables()[1].1.as_tensor() * 1.5).expect("moves");
        model.variables()[1].1.set(&moved).expect("sets");
        let token = model.variables().into_iter().take(1).collect();
        gradients_are_slopes(family.name(), token, || loss(Stage::Token));
        let [_, of_slots] = model.logits(&text, &batch).expect("computes");
        let rows = LossRows { slots: &batch.slots, labels: &batch.labels, firsts: &vec![0; batch.len()] };
        let in_one_pass = slot_loss(config.loss, &of_slots, &of_slots.detach(), rows).expect("a loss");
        let [alone, in_one_pass] =
            [loss(Stage::Token), in_one_pass].map(|loss| loss.to_scalar::<f32>().expect("a number"));
        assert!((alone - in_one_pass).abs() < 1e-5 * in_one_pass.abs(), "{alone} {in_one_pass}");
    }
}

/// The file that training leaves is a model of its own kind, whose pass is the one that was trained; it is gone on from with its
/// token.
#[test]
fn the_engine_runs_what_was_trained() {
    let folder = tempfile::tempdir().expect("a folder");
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let path = random_model(family, folder.path());
        let sat = NativeSat::shared(special_token(&path), 3);
        let model = NativeModel::load(&path, 64, TrainDevice::Cpu, sat).expect("loads");
        for (name, variable) in model.variables().into_iter().filter(|(name, _)| name == "sat") {
            let moved = (variable.as_tensor() * 3.0).expect("moves");
            variable.set(&moved).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let written = folder.path().join(format!("{}-native.gguf", family.name()));
        model.save(&written).expect("writes");
        let text = text(20, 256);
        let anchors = Anchors { n: 1, keep_rate: 1.0, glancing: 0.0 };
        let choose = |seed| Batch::choose(&text, 12, 3, anchors, &mut fastrand::Rng::with_seed(seed));
        let batch = (0..).map(choose).find(|batch| batch.len() == 3).expect("a whole group");
        let anchor = batch.positions[0] as usize - 1;
        let again = NativeModel::load(&written, 64, TrainDevice::Cpu, sat).expect("reads");
        let [of_tokens, of_slots] = again.logits(&text[..=anchor], &batch).expect("computes");
        let engine = Arc::new(Model::load(&ModelConfig::new(&written)).expect("loads"));
        assert_eq!(engine.n_adaptive_tokens(), 3);
        let mut sequence = engine.sequence().expect("a sequence");
        let mut plan = RowPlan::prefill(0, &text[..=anchor]);
        let first = plan.push_adaptive_group(anchor, 3);
        for row in std::iter::once(anchor).chain(first..first + 3) {
            plan.want_logits(row);
        }
        let logits = sequence.forward(&plan).expect("a pass").clone();
        let ours = candle_core::Tensor::cat(&[of_tokens.narrow(0, anchor, 1).expect("a row"), of_slots], 0);
        let ours: Vec<f32> = ours.and_then(|x| x.flatten_all()).and_then(|x| x.to_vec1()).expect("numbers");
        assert_eq!(ours.len(), logits.full.len());
        for (idx, (ours, theirs)) in ours.iter().zip(&logits.full).enumerate() {
            // The engine never says the token itself.
            let is_sat = idx % 320 == sat.token as usize;
            assert!(is_sat || (ours - theirs).abs() < 2e-2 * (1.0 + theirs.abs()), "{idx}: {ours} {theirs}");
        }
    }
}

/// Both stages of the tiny model: its slots learn what code of one kind goes on with, and what it then decodes is the same with
/// them and without.
#[test]
fn a_model_that_learnt_itself_decodes_losslessly() {
    let folder = tempfile::tempdir().expect("a folder");
    let corpus = corpus(&folder.path().join("code"));
    let sat = NativeSat::shared(special_token(TINY.as_ref()), 3);
    let model = NativeModel::load(TINY.as_ref(), 128, TrainDevice::Cpu, sat).expect("loads");
    let config = NativeConfig { n_token_steps: 10, n_joint_steps: 120, evaluate_every: 10, ..config() };
    let (mut losses, mut measured) = (Vec::new(), Vec::new());
    let mut on_event = |event| {
        match event {
            TrainEvent::Step { loss, .. } => losses.push(loss),
            TrainEvent::Evaluated { acceptance, .. } => measured.push(acceptance.of_text[0]),
            TrainEvent::Resumed { .. } => (),
        }
        ControlFlow::Continue(())
    };
    let written = folder.path().join("native.gguf");
    train_native(&model, &corpus, &config, &written, &mut on_event).expect("trains");
    assert_eq!(losses.len(), 130);
    let (first, last) = (measured[0], measured[measured.len() - 1]);
    assert!(last > first + 0.2, "{measured:?}");
    let engine = Arc::new(Model::load(&ModelConfig::new(&written)).expect("loads"));
    let mut session = Session::new(&engine);
    let mut n_accepted = 0;
    for idx in 0..4 {
        let prefix = format!("def f{idx}_0(x):\n    return x + 0\ndef f{idx}_1(x):\n");
        let mut complete = |speculation| {
            let extent = Extent::Raw;
            let request = CompletionRequest {
                speculation,
                extent,
                max_tokens: 32,
                ..CompletionRequest::new(&prefix, "")
            };
            session.complete(&request).expect("completes")
        };
        let ordinary = complete(Speculation::Off);
        for speculation in [Speculation::Sdsat, Speculation::Fused, Speculation::Auto] {
            let speculative = complete(speculation);
            assert_eq!(speculative.tokens, ordinary.tokens, "{speculation:?}");
            n_accepted += speculative.n_accepted;
        }
    }
    assert!(n_accepted > 0, "what it learnt is of no use");
    // Tokens that texts need are refused.
    let of_text = NativeSat::shared(40, 3);
    let error = NativeModel::load(TINY.as_ref(), 64, TrainDevice::Cpu, of_text).err().expect("refused");
    assert!(error.to_string().contains("`sat-token` must be a special token"), "{error}");
}

/// A run that was stopped in either stage goes on to the bit, and a file of somebody's is not written over.
#[test]
fn a_run_that_was_interrupted_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let corpus = corpus(&folder.path().join("code"));
    let sat = NativeSat::shared(special_token(TINY.as_ref()), 3);
    let config = NativeConfig { save_every: 3, ..config() };
    // Where it is stopped, and each time begins again with the model as it was; at the end of a stage too.
    let run = |name: &str, stops: &[usize]| {
        let out = folder.path().join(name);
        let (mut losses, mut resumed, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        for &stop_at in stops {
            let model = NativeModel::load(TINY.as_ref(), 128, TrainDevice::Cpu, sat).expect("loads");
            let outcome = train_native(&model, &corpus, &config, &out, &mut |event| {
                match event {
                    TrainEvent::Step { step, loss, .. } => {
                        losses.push(loss);
                        if step == stop_at {
                            return ControlFlow::Break(());
                        }
                    }
                    TrainEvent::Resumed { step } => resumed.push(step),
                    TrainEvent::Evaluated { .. } => (),
                }
                ControlFlow::Continue(())
            });
            outcomes.push(outcome.expect("trains"));
        }
        assert!(!folder.path().join(format!("{name}.checkpoint")).exists());
        (losses, resumed, outcomes, std::fs::read(out).expect("a model"))
    };
    let (losses, _, outcomes, whole) = run("whole.gguf", &[8]);
    assert_eq!((losses.len(), &outcomes[..]), (8, &[TrainOutcome::Finished][..]));
    let (again, resumed, outcomes, parts) = run("parts.gguf", &[2, 4, 6, 8]);
    assert_eq!((again, resumed), (losses, vec![2, 4, 6]));
    let stopped = [2, 4, 6].map(|step| TrainOutcome::Stopped { step });
    assert_eq!(outcomes, [&stopped[..], &[TrainOutcome::Finished]].concat());
    assert!(whole == parts, "the models differ");
    let model = NativeModel::load(TINY.as_ref(), 128, TrainDevice::Cpu, sat).expect("loads");
    let mut go_on = |_| ControlFlow::Continue(());
    let error = train_native(&model, &corpus, &config, &folder.path().join("whole.gguf"), &mut go_on);
    assert!(error.is_err_and(|error| error.to_string().contains("whole.gguf is there already")));
}
