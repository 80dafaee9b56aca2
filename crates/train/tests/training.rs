//! The trainer against the engine, against finite differences, and against itself when it is interrupted.

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{gradients_are_slopes, random_model};
use model::{AdapterSource, DRAFT_VOCABULARY, Model, ModelConfig, SatAdapter};
use speculate::{RowPlan, Target};
use train::{
    Activations, AdapterPart, AdapterShape, Anchors, Base, Batch, Corpus, LossConfig, LossRows, TrainConfig,
    TrainDevice, TrainError, TrainEvent, TrainOutcome, TrainedAdapter, evaluate, loss_and_gradients,
    slot_loss, train,
};

const TINY: &str = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");

fn tokens(n: usize, vocabulary: usize) -> Vec<u32> {
    (0..n).map(|i| (i * i * 31 + i * 7 + 3) as u32 % vocabulary as u32).collect()
}

/// An adapter whose deltas do something.
fn adapter_of(base: &Base, shape: AdapterShape) -> TrainedAdapter {
    let adapter = TrainedAdapter::new(base, shape, 5).expect("an adapter");
    let mut random = fastrand::Rng::with_seed(9);
    for (name, variable) in adapter.variables() {
        let noise: Vec<f32> = (0..variable.elem_count()).map(|_| (random.f32() - 0.5) * 0.2).collect();
        let noise = candle_core::Tensor::from_vec(noise, variable.dims(), variable.device()).expect("noise");
        let sum = (variable.as_tensor() + noise).expect("a sum");
        variable.set(&sum).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    adapter
}

/// Families, and ranks of deltas; with none of them, embeddings are all that an adapter is.
const RANKS: [(model::Family, usize); 4] = [
    (model::Family::Llama, 4),
    (model::Family::Qwen2, 4),
    (model::Family::Qwen3, 4),
    (model::Family::Qwen2, 0),
];

/// candle cuts gradients off in several of its operations without a word. So every tensor that learns is moved along a
/// direction, and the loss must change as its gradient says.
#[test]
fn every_gradient_is_that_of_finite_differences() {
    let folder = tempfile::tempdir().expect("a folder");
    for (family, rank) in RANKS {
        let base = Base::load(&random_model(family, folder.path()), 64, TrainDevice::Cpu).expect("loads");
        let adapter = adapter_of(&base, AdapterShape { n_slots: 3, rank: rank / 2, markov_rank: 5 });
        let text = tokens(24, base.architecture().vocabulary);
        let anchors = Anchors { n: 6, keep_rate: 1.0, glancing: 0.0 };
        let batch = Batch::choose(&text, 2, 3, anchors, &mut fastrand::Rng::with_seed(3));
        let config = LossConfig { distillation: 0.7, cross_entropy: 0.6, slot_decay: 0.8, aligned_among: 0 };
        let loss = || train::loss_of(&base, &adapter, config, &text, &batch).expect("a loss");
        gradients_are_slopes(family.name(), adapter.variables(), loss);
    }
}

/// Where there is little memory, a layer's activations are computed a second time; nothing else changes, to the bit.
#[test]
fn activations_that_are_computed_again_give_the_same_gradients() {
    let folder = tempfile::tempdir().expect("a folder");
    for markov_rank in [0, 5] {
        let path = random_model(model::Family::Qwen3, folder.path());
        let base = Base::load(&path, 64, TrainDevice::Cpu).expect("loads");
        assert_eq!(base.activations(), Activations::Kept);
        let adapter = adapter_of(&base, AdapterShape { n_slots: 3, rank: 2, markov_rank });
        let text = tokens(24, base.architecture().vocabulary);
        let anchors = Anchors { n: 6, keep_rate: 1.0, glancing: 0.0 };
        let batch = Batch::choose(&text, 2, 3, anchors, &mut fastrand::Rng::with_seed(3));
        let of = |base: &Base| {
            loss_and_gradients(base, &adapter, LossConfig::default(), &text, &batch).expect("gradients")
        };
        let (loss, kept) = of(&base);
        let (again, recomputed) = of(&base.with_activations(Activations::Recomputed));
        assert_eq!(loss, again);
        for (name, variable) in adapter.variables() {
            let [kept, recomputed] = [&kept, &recomputed].map(|gradients| {
                let gradient =
                    gradients.get(variable.as_tensor()).unwrap_or_else(|| panic!("{name} has none"));
                gradient.flatten_all().and_then(|numbers| numbers.to_vec1::<f32>()).expect("numbers")
            });
            assert_eq!(kept, recomputed, "{name}");
        }
    }
}

/// What the trainer computes is what the engine decodes with: the same slots of the same adapter behind the same text.
#[test]
fn the_engine_drafts_what_was_trained() {
    let folder = tempfile::tempdir().expect("a folder");
    for (family, rank) in RANKS {
        let path = random_model(family, folder.path());
        let base = Base::load(&path, 64, TrainDevice::Cpu).expect("loads");
        let shape = AdapterShape { n_slots: 3, rank, markov_rank: 6 };
        let trained = adapter_of(&base, shape);
        let file = folder.path().join("adapter.safetensors");
        trained.save(&base, &file).expect("writes");
        // As it is in the file: in half precision.
        let saved = TrainedAdapter::load(&base, &file).expect("reads");
        let text = tokens(20, base.architecture().vocabulary);
        let config = ModelConfig { adapter: Some(AdapterSource::File(file)), ..ModelConfig::new(&path) };
        let model = Arc::new(Model::load(&config).expect("loads with the adapter"));
        let mut sequence = model.sequence().expect("a sequence");
        let mut plan = RowPlan::prefill(0, &text);
        let first = plan.push_adaptive_group(text.len() - 1, shape.n_slots);
        for row in std::iter::once(text.len() - 1).chain(first..first + shape.n_slots) {
            plan.want_logits(row);
        }
        let logits = sequence.forward(&plan).expect("a pass").clone();
        let ours = train::logits_behind(&base, &saved, &text).expect("computes");
        let vocabulary = base.architecture().vocabulary;
        assert_eq!(logits.full.len(), ours.len());
        assert!(vocabulary <= DRAFT_VOCABULARY);
        let head = saved.markov_head(&base).expect("numbers");
        assert!(head.is_some() && model.markov_head() == head.as_ref(), "{}", family.name());
        for (row, (theirs, ours)) in
            logits.full.chunks_exact(vocabulary).zip(ours.chunks_exact(vocabulary)).enumerate()
        {
            let divergence = kl(ours, theirs);
            assert!(divergence < 2e-3, "{}: row {row} diverges by {divergence} nats", family.name());
        }
    }
}

/// The end of a text is drafted wherever in a large vocabulary it is.
#[test]
fn an_end_far_down_the_vocabulary_is_drafted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.gguf");
    let (vocabulary, end) = (DRAFT_VOCABULARY + 200, DRAFT_VOCABULARY as u32 + 77);
    let config = model::RandomModelConfig {
        n_layers: 1,
        hidden: 32,
        n_heads: 4,
        n_kv_heads: 2,
        feed_forward: 64,
        vocabulary,
        ..model::RandomModelConfig::llama_7b(model::gguf::TensorType::F32)
    };
    model::write_random_model(&config, &path).expect("writes");
    // What the file says of its end: behind the key stand the type and the number.
    let mut bytes = std::fs::read(&path).expect("reads");
    let key = b"tokenizer.ggml.eos_token_id";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the key") + key.len() + 4;
    assert_eq!(bytes[at..at + 4], 2u32.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&end.to_le_bytes());
    std::fs::write(&path, bytes).expect("writes");

    let base = Base::load(&path, 64, TrainDevice::Cpu).expect("loads");
    assert_eq!(base.n_outputs(), DRAFT_VOCABULARY + 1);
    let shape = AdapterShape { n_slots: 2, rank: 4, markov_rank: 3 };
    let adapter = adapter_of(&base, shape);
    // A slot learns it: text, and its end.
    let text: Vec<u32> = [&tokens(12, 300)[..], &[end]].concat();
    let anchors = Anchors { n: 64, keep_rate: 1.0, glancing: 0.0 };
    let batch = Batch::choose(&text, 10, 2, anchors, &mut fastrand::Rng::with_seed(3));
    assert_eq!(batch.labels, [end]);
    let config = LossConfig { distillation: 0.0, cross_entropy: 1.0, slot_decay: 1.0, aligned_among: 0 };
    let rates = train::AdamWConfig { learning_rate: 1e-2, ..train::AdamWConfig::default() };
    let mut optimizer = train::AdamW::new(rates, &adapter.variables()).expect("an optimizer");
    for _ in 0..60 {
        let loss = train::loss_of(&base, &adapter, config, &text, &batch).expect("a loss");
        optimizer.step(&loss.backward().expect("gradients"), 1.0).expect("a step");
    }
    let file = folder.path().join("adapter.safetensors");
    adapter.save(&base, &file).expect("writes");
    let saved = TrainedAdapter::load(&base, &file).expect("reads");
    let config = ModelConfig { adapter: Some(AdapterSource::File(file)), ..ModelConfig::new(&path) };
    let model = Arc::new(Model::load(&config).expect("loads with the adapter"));
    assert_eq!(model.markov_head(), saved.markov_head(&base).expect("numbers").as_ref());
    let mut plan = RowPlan::prefill(0, &text[..11]);
    let slot = plan.push_adaptive_group(10, 2);
    plan.want_drafts(slot);
    let logits = model.sequence().expect("a sequence").forward(&plan).expect("a pass").clone();
    assert_eq!(logits.row(0).argmax(), Some(end));
    let ours = train::logits_behind(&base, &saved, &text[..11]).expect("computes");
    let of_end = ours[2 * base.n_outputs() - 1];
    assert!((logits.row(0).ranked[0].1 - of_end).abs() < 0.05 * of_end.abs(), "{of_end} {:?}", logits.ranked);
}

/// `KL(p ‖ q)` of the distributions of two rows of logits, in nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |x: &[f32]| -> Vec<f64> {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = x.iter().map(|x| f64::from(x - max).exp()).sum();
        x.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
    };
    log_softmax(p).iter().zip(log_softmax(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn corpus(folder: &Path) -> Corpus {
    for idx in 0..40 {
        let text: String = (0..30).map(|i| format!("def f{idx}_{i}(x):\n    return x + {i}\n")).collect();
        std::fs::write(folder.join(format!("{idx}.py")), text).expect("writes");
    }
    Corpus::read(&[folder]).expect("a corpus")
}

fn quick(n_steps: usize) -> TrainConfig {
    TrainConfig {
        shape: AdapterShape { n_slots: 3, rank: 4, markov_rank: 0 },
        max_tokens: 64,
        anchors: Anchors { n: 8, keep_rate: 0.9, glancing: 0.4 },
        loss: LossConfig { aligned_among: 3, ..LossConfig::default() },
        evaluate_every: 3,
        n_evaluated: 2,
        save_every: 2,
        ..TrainConfig::new(n_steps)
    }
}

/// A run that was stopped goes on to the bit, and leaves nothing but its adapter.
#[test]
fn a_run_that_was_interrupted_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("code")).expect("a folder");
    let corpus = corpus(&folder.path().join("code"));
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut losses = Vec::new();
    let outcome = train(&base, &corpus, &quick(6), &whole, &mut |event| {
        if let TrainEvent::Step { loss, .. } = event {
            losses.push(loss);
        }
        ControlFlow::Continue(())
    });
    assert_eq!(outcome.expect("trains"), TrainOutcome::Finished);
    let mut again = Vec::new();
    for stop_at in [3, 6] {
        let outcome = train(&base, &corpus, &quick(6), &parts, &mut |event| match event {
            TrainEvent::Step { step, loss, .. } => {
                again.push(loss);
                if step == stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            TrainEvent::Resumed { step } => {
                assert_eq!(step, 3);
                ControlFlow::Continue(())
            }
            TrainEvent::Evaluated { acceptance, .. } => {
                assert_eq!(acceptance.of_model.len(), 3);
                ControlFlow::Continue(())
            }
        });
        let expected = if stop_at == 3 { TrainOutcome::Stopped { step: 3 } } else { TrainOutcome::Finished };
        assert_eq!(outcome.expect("trains"), expected);
    }
    assert_eq!(losses, again);
    // What stands behind the header, whose metadata have no order.
    let numbers = |path: &Path| {
        let bytes = std::fs::read(path).expect("an adapter");
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        bytes[8 + header..].to_vec()
    };
    assert!(numbers(&whole) == numbers(&parts), "the adapters differ");
    assert!(!folder.path().join("parts.checkpoint").exists());
}

#[test]
fn mistakes_are_said_and_checkpoints_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("code")).expect("a folder");
    let corpus = corpus(&folder.path().join("code"));
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let out = folder.path().join("adapter.safetensors");
    let stop = &mut |event: TrainEvent| match event {
        TrainEvent::Step { step: 2, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    train(&base, &corpus, &quick(6), &out, stop).expect("begins");
    let checkpoint = folder.path().join("adapter.safetensors.checkpoint");
    let kept = std::fs::read(&checkpoint).expect("a checkpoint");
    let other = TrainConfig { seed: 1, ..quick(6) };
    let error = train(&base, &corpus, &other, &out, stop).expect_err("another run's");
    assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
    let model = random_model(model::Family::Llama, folder.path());
    let another = Base::load(&model, 128, TrainDevice::Cpu).expect("loads");
    let error = train(&another, &corpus, &quick(6), &out, stop).expect_err("another model's");
    assert!(matches!(error, TrainError::OtherBase { .. } | TrainError::TooLittleText { .. }), "{error}");
    assert_eq!(std::fs::read(&checkpoint).expect("it stays"), kept);
    std::fs::write(&checkpoint, &kept[..kept.len() / 2]).expect("writes");
    let error = train(&base, &corpus, &quick(6), &out, stop).expect_err("half of one");
    assert!(matches!(error, TrainError::Unreadable { .. }), "{error}");
    for config in [
        TrainConfig { max_tokens: 4, ..quick(2) },
        TrainConfig { infill: f32::NAN, ..quick(2) },
        TrainConfig { short: 2.0, ..quick(2) },
        TrainConfig { written: -0.1, ..quick(2) },
        TrainConfig { anchors: Anchors { glancing: 1.5, ..quick(2).anchors }, ..quick(2) },
        TrainConfig { shape: AdapterShape { n_slots: 40, rank: 4, markov_rank: 0 }, ..quick(2) },
        TrainConfig { shape: AdapterShape { n_slots: 4, rank: 2000, markov_rank: 0 }, ..quick(2) },
    ] {
        let error = train(&base, &corpus, &config, &out, stop).expect_err("out of range");
        assert!(matches!(error, TrainError::OutOfRange { .. }), "{error}");
    }
    assert!(Base::load(&out, 128, TrainDevice::Cpu).is_err(), "an adapter is no model");
    std::fs::remove_file(&checkpoint).expect("removes");
    let adapter = std::fs::read(&out).expect("an adapter");
    let error = train(&base, &corpus, &quick(6), &out, stop).expect_err("it is there");
    assert!(matches!(error, TrainError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(&out).expect("it stays"), adapter);
    let nowhere = folder.path().join("nowhere/adapter.safetensors");
    let error =
        train(&base, &corpus, &quick(6), &nowhere, &mut |_| panic!("no step")).expect_err("no folder");
    assert!(matches!(error, TrainError::Io { .. }), "{error}");
    let error = TrainedAdapter::load(&another, &out).err().expect("another model's");
    assert!(matches!(error, TrainError::OtherBase { .. }), "{error}");
}

/// Slots of a frozen random model learn what stands further ahead in a text that repeats itself.
#[test]
fn slots_learn_a_grammar() {
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let shape = AdapterShape { n_slots: 3, rank: 16, markov_rank: 0 };
    let adapter = TrainedAdapter::new(&base, shape, 1).expect("an adapter");
    // Every token has one successor.
    let text: Vec<u32> = (0..96).map(|i| 40 + (i % 12) as u32 * 5).collect();
    let config = LossConfig { distillation: 0.0, cross_entropy: 1.0, slot_decay: 1.0, aligned_among: 0 };
    let rates = train::AdamWConfig { learning_rate: 1e-2, ..train::AdamWConfig::default() };
    let mut optimizer = train::AdamW::new(rates, &adapter.variables()).expect("an optimizer");
    let sample = train::Sample { tokens: text.clone(), first_anchor: 16, language: String::new() };
    let before = evaluate(&base, &adapter, std::slice::from_ref(&sample), 64).expect("measures");
    assert!(before.of_text.iter().all(|&share| share < 0.5), "{before:?}");
    for step in 0..300 {
        let mut random = fastrand::Rng::with_seed(step);
        let batch =
            Batch::choose(&text, 16, 3, Anchors { n: 24, keep_rate: 1.0, glancing: 0.0 }, &mut random);
        let loss = train::loss_of(&base, &adapter, config, &text, &batch).expect("a loss");
        optimizer.step(&loss.backward().expect("gradients"), 1.0).expect("a step");
        if step % 20 == 19 {
            let now = evaluate(&base, &adapter, std::slice::from_ref(&sample), 64).expect("measures");
            if now.of_text.iter().all(|&share| share > 0.95) {
                return;
            }
        }
    }
    let after = evaluate(&base, &adapter, std::slice::from_ref(&sample), 64).expect("measures");
    panic!("it did not learn: {after:?}");
}

/// What follows is clear from the token before it, and from nothing earlier: slots alone can but guess.
#[test]
fn a_markov_head_learns_what_slots_cannot_know() {
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let text_of = |seed| -> Vec<u32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..32).flat_map(|_| if random.bool() { [40, 60] } else { [45, 65] }).collect()
    };
    let sample = train::Sample { tokens: text_of(1000), first_anchor: 16, language: String::new() };
    let config = LossConfig { distillation: 0.0, cross_entropy: 1.0, slot_decay: 1.0, aligned_among: 0 };
    let rates = train::AdamWConfig { learning_rate: 1e-2, ..train::AdamWConfig::default() };
    let [without, with] = [0, 8].map(|markov_rank| {
        let shape = AdapterShape { n_slots: 2, rank: 4, markov_rank };
        let adapter = TrainedAdapter::new(&base, shape, 1).expect("an adapter");
        let mut optimizer = train::AdamW::new(rates, &adapter.variables()).expect("an optimizer");
        for step in 0..120 {
            let text = text_of(step);
            let mut random = fastrand::Rng::with_seed(step);
            let batch =
                Batch::choose(&text, 16, 2, Anchors { n: 24, keep_rate: 1.0, glancing: 0.0 }, &mut random);
            let loss = train::loss_of(&base, &adapter, config, &text, &batch).expect("a loss");
            optimizer.step(&loss.backward().expect("gradients"), 1.0).expect("a step");
        }
        evaluate(&base, &adapter, std::slice::from_ref(&sample), 64).expect("measures").of_text
    });
    // Half of the tokens are the second of a pair.
    assert!(
        without.iter().zip(&with).all(|(without, with)| with > &(without + 0.15)),
        "{without:?} {with:?}"
    );
}

/// Where only the head learns, the rest of the adapter stays as it is.
#[test]
fn a_markov_head_learns_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("code")).expect("a folder");
    let corpus = corpus(&folder.path().join("code"));
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let [first, second, third] = ["first", "second", "third"].map(|name| folder.path().join(name));
    let go_on = &mut |_| ControlFlow::Continue(());
    train(&base, &corpus, &quick(2), &first, go_on).expect("trains");
    let alone = |markov_rank| TrainConfig {
        shape: AdapterShape { markov_rank, ..quick(2).shape },
        learns: AdapterPart::MarkovHead,
        init: Some(first.clone()),
        ..quick(2)
    };
    let error = train(&base, &corpus, &alone(0), &second, go_on).expect_err("nothing to learn");
    assert!(matches!(error, TrainError::NothingLearns), "{error}");
    train(&base, &corpus, &alone(4), &third, go_on).expect("trains");
    let [before, after] = [&first, &third].map(|path| std::fs::read(path).expect("reads"));
    let [before, after] =
        [&before, &after].map(|bytes| safetensors::SafeTensors::deserialize(bytes).expect("an adapter"));
    for (name, tensor) in before.tensors() {
        assert_eq!(after.tensor(&name).expect("it is still there").data(), tensor.data(), "{name}");
    }
    let learnt = after.tensor("markov.after").expect("a head").data().iter().any(|&byte| byte != 0);
    assert!(learnt && after.len() == before.len() + 6);
}

/// Factors of a Markov head come from a file: what does not fit is refused, and said where.
#[test]
fn markov_heads_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = Base::load(Path::new(TINY), 64, TrainDevice::Cpu).expect("loads");
    let file = folder.path().join("adapter.safetensors");
    adapter_of(&base, AdapterShape { n_slots: 2, rank: 2, markov_rank: 4 })
        .save(&base, &file)
        .expect("writes");
    let bytes = std::fs::read(&file).expect("reads");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("an adapter");
    let n = base.n_outputs();
    // `markov.after` in another shape, in half precision, or not at all.
    let refused = |shape: Option<Vec<usize>>, number: half::f16| -> String {
        let data = number.to_le_bytes().repeat(shape.iter().flatten().product());
        let mut views = tensors.tensors();
        let scales = format!("{}{}", SatAdapter::MARKOV[1], model::AdapterTensors::SCALES);
        views.retain(|(name, _)| name != SatAdapter::MARKOV[1] && *name != scales);
        if let Some(shape) = shape {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape, &data);
            views.push((SatAdapter::MARKOV[1].to_owned(), view.expect("a tensor")));
        }
        let changed = safetensors::serialize(views, header.metadata().clone()).expect("serializes");
        let parsed = SatAdapter::parse(&changed, Path::new("changed"), base.architecture());
        parsed.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let one = half::f16::ONE;
    assert_eq!(refused(Some(vec![n, 4]), one), "");
    for shape in [vec![n, 5], vec![n - 1, 4], vec![4 * n], vec![1, n, 4]] {
        let error = refused(Some(shape.clone()), one);
        assert!(error.contains("shape of markov.after"), "{shape:?}: {error}");
    }
    assert!(refused(Some(vec![n, 4]), half::f16::NAN).contains("markov.after"));
    assert!(refused(None, one).contains("markov.after"));
}

/// Without distillation and labels there is nothing to learn.
#[test]
fn a_loss_without_parts_is_zero() {
    let config = LossConfig { distillation: 0.0, cross_entropy: 0.0, slot_decay: 1.0, aligned_among: 0 };
    let rows =
        candle_core::Tensor::ones((2, 4), candle_core::DType::F32, &candle_core::Device::Cpu).expect("rows");
    let of_rows = LossRows { slots: &[0, 1], labels: &[0, 1], firsts: &[0, 0] };
    let loss = slot_loss(config, &rows, &rows, of_rows).expect("computes");
    assert_eq!(loss.to_scalar::<f32>().expect("a number"), 0.0);
}

/// What a head is made of is checked with the rest: an error names the tensor.
#[test]
fn projections_of_another_shape_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("adapter.safetensors");
    let base = Base::load(Path::new(TINY), 128, TrainDevice::Cpu).expect("loads");
    let shape = AdapterShape { n_slots: 2, rank: 2, markov_rank: 4 };
    adapter_of(&base, shape).save(&base, &path).expect("writes");
    let bytes = std::fs::read(&path).expect("reads");
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    for name in SatAdapter::MARKOV_PROJECTIONS {
        let changed = tensors.tensors().into_iter().map(|(tensor, view)| {
            let mut shape = view.shape().to_vec();
            if tensor == name {
                shape.reverse();
            }
            let view = safetensors::tensor::TensorView::new(view.dtype(), shape, view.data());
            (tensor, view.expect("as many numbers"))
        });
        let changed = safetensors::serialize(changed, metadata.metadata().clone()).expect("bytes");
        std::fs::write(&path, changed).expect("writes");
        let error = TrainedAdapter::load(&base, &path).err().expect("of another shape").to_string();
        assert!(error.contains(name), "{error}");
    }
}
