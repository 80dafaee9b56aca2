//! What losslessness rests on: a row's result depends on what it sees, and on nothing else.

mod common;

use std::sync::Arc;

use common::{golden, ids, on_all_devices, smollm, with_group};
use model::{
    AdapterSource, CacheType, DRAFT_VOCABULARY, Device, Model, ModelConfig, ModelError, SatAdapter, Sequence,
};
use speculate::{Layout, RowPlan, Target, rank, rank_beside};

fn prompt() -> Vec<u32> {
    ids(&golden("smollm2-135m")["prompts"][0]["ids"])[..24].to_vec()
}

/// A GPU in software takes a second for what the processor does in a few milliseconds.
fn prompt_for(model: &Model) -> Vec<u32> {
    let n = if model.device().starts_with("CPU") { 24 } else { 9 };
    prompt()[..n].to_vec()
}

fn one_row_at_a_time(sequence: &mut Sequence, tokens: &[u32]) -> Vec<Vec<f32>> {
    let step = |&token| {
        let mut plan = RowPlan::prefill(sequence.n_committed(), &[token]);
        plan.want_logits(0);
        let logits = sequence.forward(&plan).expect("the plan fits").row(0).full.expect("asked for").to_vec();
        sequence.commit(&[0]).expect("memory");
        logits
    };
    tokens.iter().map(step).collect()
}

/// T3: bit for bit, for every number of rows in a pass, on every device.
#[test]
fn many_rows_equal_single_rows() {
    let mut on_processor: Option<Vec<Vec<f32>>> = None;
    for device in common::devices() {
        let load = |cache_type| {
            let config = ModelConfig {
                max_context: 1024,
                cache_type,
                device: device.clone(),
                ..ModelConfig::new(common::weights("smollm2-135m"))
            };
            Arc::new(Model::load(&config).expect("the installed model loads"))
        };
        let [exact, halves] = [CacheType::F32, CacheType::F16]
            .map(|cache_type| many_rows_equal_single_rows_of(&load(cache_type)));
        assert!(exact != halves, "the type has an effect");
        let expected = on_processor.get_or_insert_with(|| exact.clone());
        for logits in [&exact, &halves] {
            let pairs = expected.iter().zip(logits);
            let divergences: Vec<f64> = pairs.map(|(a, b)| common::kl_divergence(a, b)).collect();
            // On the processor activations are quantized: what changes at all changes by as much as they are rounded.
            assert!(divergences.iter().all(|&divergence| divergence < 0.05), "{device:?}: {divergences:?}");
        }
    }
}

fn many_rows_equal_single_rows_of(model: &Arc<Model>) -> Vec<Vec<f32>> {
    let tokens = prompt_for(model);
    let expected = one_row_at_a_time(&mut model.sequence().expect("memory"), &tokens);
    for n_rows in [2, 3, 5, 16, 24] {
        let mut sequence = model.sequence().expect("memory");
        for (chunk, expected) in tokens.chunks(n_rows).zip(expected.chunks(n_rows)) {
            let mut plan = RowPlan::prefill(sequence.n_committed(), chunk);
            let rows: Vec<usize> = (0..chunk.len()).collect();
            rows.iter().for_each(|&row| {
                plan.want_logits(row);
            });
            let logits = sequence.forward(&plan).expect("the plan fits");
            for (row, expected) in expected.iter().enumerate() {
                assert!(logits.row(row).full == Some(&expected[..]), "row {row} of {n_rows} differs");
            }
            sequence.commit(&rows).expect("memory");
        }
    }
    expected
}

/// Token rows are the base model's, bit for bit: without adapter, with it, and with any number
/// of adaptive rows in the pass.
#[test]
fn adaptive_rows_leave_token_rows_alone() {
    common::devices().iter().for_each(adaptive_rows_leave_token_rows_alone_on);
}

fn adaptive_rows_leave_token_rows_alone_on(device: &Device) {
    let with_adapter = common::load_on("smollm2-135m", device);
    let config = ModelConfig {
        max_context: 1024,
        device: device.clone(),
        ..ModelConfig::new(common::weights("smollm2-135m"))
    };
    let without_adapter = std::sync::Arc::new(Model::load(&config).expect("the installed model loads"));
    assert_eq!(without_adapter.n_adaptive_tokens(), 0);
    let tokens = prompt_for(&with_adapter);
    let expected = one_row_at_a_time(&mut without_adapter.sequence().expect("memory"), &tokens);
    let (_, rows) = with_group(&with_adapter, &tokens);
    assert!(rows[..tokens.len()] == expected[..], "one group at the end");

    let is_quick = with_adapter.device().starts_with("CPU");
    for n_slots in if is_quick { 1 } else { 4 }..=with_adapter.n_adaptive_tokens() {
        let mut plan = RowPlan::prefill(0, &tokens);
        (0..tokens.len()).for_each(|row| {
            plan.want_logits(row);
        });
        (0..tokens.len()).for_each(|row| {
            plan.push_adaptive_group(row, n_slots);
        });
        let mut sequence = with_adapter.sequence().expect("memory");
        let logits = sequence.forward(&plan).expect("the plan fits");
        for (row, expected) in expected.iter().enumerate() {
            assert!(
                logits.row(row).full == Some(&expected[..]),
                "row {row} with {n_slots} slots after every token"
            );
        }
    }
}

/// Adaptive rows do differ from what the base model alone would make of them.
#[test]
fn the_adapter_has_an_effect() {
    // The same adapter, but with deltas of nothing.
    let bytes = std::fs::read(common::adapter("smollm2-135m")).expect("the adapter");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let zeros = vec![0u8; bytes.len()];
    let without_deltas = tensors.tensors().into_iter().map(|(name, view)| {
        let data = if name.ends_with("lora_b") { &zeros[..view.data().len()] } else { view.data() };
        let view = safetensors::tensor::TensorView::new(view.dtype(), view.shape().to_vec(), data);
        (name, view.expect("the same shape"))
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    safetensors::serialize_to_file(without_deltas, header.metadata().clone(), file.path()).expect("writes");
    let config = ModelConfig {
        adapter: Some(AdapterSource::File(file.path().to_owned())),
        max_context: 1024,
        ..ModelConfig::new(common::weights("smollm2-135m"))
    };
    let embeddings_only = Arc::new(Model::load(&config).expect("loads"));
    let tokens = prompt();
    let (_, rows) = with_group(&smollm(), &tokens);
    let (_, others) = with_group(&embeddings_only, &tokens);
    for (row, (with, without)) in rows.iter().zip(&others).enumerate() {
        let divergence = common::kl_divergence(with, without);
        match row < tokens.len() {
            true => assert_eq!(with, without, "token rows see nothing of it"),
            false => assert!(divergence > 0.05, "row {row}: {divergence}"),
        }
    }
}

/// Siblings in a tree do not see each other, and compaction keeps exactly the accepted path.
#[test]
fn a_tree_gives_each_path_its_own_logits_and_compacts() {
    on_all_devices().for_each(|model| a_tree_gives_each_path_its_own_logits_and_compacts_of(&model));
}

fn a_tree_gives_each_path_its_own_logits_and_compacts_of(model: &Arc<Model>) {
    let tokens = prompt();
    let (root, left, right) = (tokens[0], [11, 12, 13], [21, 22]);
    let mut plan = RowPlan::new(0);
    let root_row = plan.push_token(root, None);
    let mut rows = vec![];
    // Interleaved, so that the kept path is not a prefix.
    let mut parents = [Some(root_row); 2];
    for depth in 0..3 {
        for (side, path) in [&left[..], &right[..]].into_iter().enumerate() {
            if let Some(&token) = path.get(depth) {
                let row = plan.push_token(token, parents[side]);
                parents[side] = Some(row);
                rows.push((side, row));
            }
        }
    }
    rows.iter().for_each(|&(_, row)| {
        plan.want_logits(row);
    });
    let mut sequence = model.sequence().expect("memory");
    let logits = sequence.forward(&plan).expect("the plan fits");
    let of_side = |side| -> Vec<Vec<f32>> {
        rows.iter()
            .enumerate()
            .filter(|(_, row)| row.0 == side)
            .map(|(idx, _)| logits.row(idx).full.expect("asked for").to_vec())
            .collect()
    };
    let (left_logits, right_logits) = (of_side(0), of_side(1));
    let path = |drafts: &[u32]| {
        let tokens: Vec<u32> = std::iter::once(root).chain(drafts.iter().copied()).collect();
        one_row_at_a_time(&mut model.sequence().expect("memory"), &tokens)[1..].to_vec()
    };
    assert!(left_logits == path(&left), "left path");
    assert!(right_logits == path(&right), "right path");

    let kept: Vec<usize> =
        std::iter::once(root_row).chain(rows.iter().filter(|row| row.0 == 1).map(|row| row.1)).collect();
    sequence.commit(&kept).expect("memory");
    let after = one_row_at_a_time(&mut sequence, &[31]);
    let fresh = one_row_at_a_time(&mut model.sequence().expect("memory"), &[root, 21, 22, 31]);
    assert!(after[0] == fresh[3], "the cache after compaction is that of a fresh prefill");
}

/// A model without adapter drafts with the mean of its prompt, and its token rows do not notice.
#[test]
fn untrained_adaptive_tokens_leave_token_rows_alone() {
    let config = ModelConfig {
        max_context: 1024,
        probe_slots: 4,
        ..ModelConfig::new(common::weights("smollm2-135m"))
    };
    let model = std::sync::Arc::new(Model::load(&config).expect("the installed model loads"));
    assert!(!model.has_trained_slots() && model.n_adaptive_tokens() == 4);
    let tokens = prompt();
    let expected = one_row_at_a_time(&mut smollm().sequence().expect("memory"), &tokens);
    let mut plan = RowPlan::prefill(0, &tokens);
    plan.push_adaptive_group(tokens.len() - 1, 4);
    (0..plan.rows().len()).for_each(|row| {
        plan.want_logits(row);
    });
    let mut sequence = model.sequence().expect("memory");
    assert!(sequence.forward(&plan).is_err(), "nothing is known of the prompt yet");
    sequence.probe_with(&tokens).expect("tokens of the vocabulary");
    let logits = sequence.forward(&plan).expect("the plan fits");
    for (row, expected) in expected.iter().enumerate() {
        assert!(logits.row(row).full == Some(&expected[..]), "row {row}");
    }
    assert!(logits.row(tokens.len()).argmax().is_some());
    assert!(sequence.probe_with(&[u32::MAX]).is_err());
}

/// Drafts that were asked for first do not narrow what others are ranked among.
#[test]
fn exact_rows_are_exact_in_any_order_of_asking() {
    on_all_devices().for_each(|model| exact_rows_are_exact_in_any_order_of_asking_of(&model));
}

fn exact_rows_are_exact_in_any_order_of_asking_of(model: &Arc<Model>) {
    let tokens = prompt_for(model);
    let run = |want: &dyn Fn(&mut RowPlan)| {
        let mut plan = RowPlan::prefill(0, &tokens);
        plan.push_adaptive_group(tokens.len() - 1, 2);
        want(&mut plan);
        model.sequence().expect("memory").forward(&plan).expect("the plan fits").clone()
    };
    let n = tokens.len();
    let exact = run(&|plan| {
        (0..n).for_each(|row| {
            plan.want_logits(row);
        });
    });
    let mixed = run(&|plan| {
        plan.want_drafts(n);
        for row in 0..n {
            match row % 2 {
                0 => plan.want_ranked(row),
                _ => plan.want_logits(row),
            };
        }
        plan.want_drafts(n + 1);
    });
    for row in 0..n {
        assert_eq!(mixed.row(row + 1).ranked, exact.row(row).ranked);
        assert_eq!(mixed.row(row + 1).full, exact.row(row).full.filter(|_| row % 2 == 1));
    }
}

/// An adapter may draft the end of a text, wherever in the vocabulary that is: its logit is the exact one, and it is ranked
/// with the others.
#[test]
fn the_end_of_a_text_is_drafted_beside_the_first_tokens() {
    // A head would rank the end with factors of its own.
    let adapter = std::fs::read(common::adapter("smollm2-135m")).expect("reads");
    let adapter = common::without_markov_head(&adapter);
    for device in common::devices() {
        let load = |end: Option<u32>| {
            let note = |end: u32| common::with_note(&adapter, SatAdapter::END, &end.to_string());
            let bytes = end.map_or_else(|| adapter.clone(), note);
            let config = ModelConfig {
                adapter: Some(AdapterSource::BuiltIn(Vec::leak(bytes))),
                max_context: 64,
                device: device.clone(),
                ..ModelConfig::new(common::weights("smollm2-135m"))
            };
            Arc::new(Model::load(&config).expect("the installed model loads"))
        };
        let tokens = &prompt()[..6];
        let run = |model: &Arc<Model>, want: fn(&mut RowPlan, usize) -> usize| {
            let mut plan = RowPlan::prefill(0, tokens);
            plan.push_adaptive_group(tokens.len() - 1, 2);
            plan.want_ranked(0);
            (0..2).for_each(|slot| {
                want(&mut plan, tokens.len() + slot);
            });
            model.sequence().expect("memory").forward(&plan).expect("the plan fits").clone()
        };
        let without = load(None);
        let all = run(&without, RowPlan::want_logits);
        let full = all.row(1).full.expect("asked for");
        let first = &full[..DRAFT_VOCABULARY];
        // The likeliest of those that are not drafted otherwise, and the least likely.
        let others = DRAFT_VOCABULARY..full.len();
        let likeliest = others.clone().max_by(|&a, &b| full[a].total_cmp(&full[b])).expect("tokens");
        let least = others.min_by(|&a, &b| full[a].total_cmp(&full[b])).expect("tokens");
        for end in [likeliest, least] {
            let mut expected = rank(first);
            rank_beside(&mut expected, end as u32, full[end]);
            let drafts = run(&load(Some(end as u32)), RowPlan::want_drafts);
            assert_eq!(drafts.row(1).ranked, &expected, "{device:?}");
            assert_eq!(drafts.row(0).ranked, all.row(0).ranked, "{device:?}");
        }
        assert_eq!(run(&without, RowPlan::want_drafts).row(1).ranked, &rank(first), "{device:?}");
    }
}

/// Truncation forgets, and what comes after is as if it had never been.
#[test]
fn truncation_equals_a_fresh_prefill() {
    on_all_devices().for_each(|model| truncation_equals_a_fresh_prefill_of(&model));
}

fn truncation_equals_a_fresh_prefill_of(model: &Arc<Model>) {
    let tokens = prompt();
    let mut sequence = model.sequence().expect("memory");
    sequence.prefill(&tokens).expect("the prompt fits");
    sequence.truncate(10);
    assert_eq!(sequence.n_committed(), 10);
    let resumed = one_row_at_a_time(&mut sequence, &tokens[10..14]);
    let fresh = one_row_at_a_time(&mut model.sequence().expect("memory"), &tokens[..14]);
    assert!(resumed == fresh[10..]);
}

/// A pass that is given up in its midst leaves what was committed, and what comes next is what it would have been.
#[test]
fn passes_that_are_given_up_leave_no_trace() {
    on_all_devices().for_each(|model| {
        let tokens = prompt();
        let mut sequence = model.sequence().expect("memory");
        sequence.prefill(&tokens[..8]).expect("it fits");
        let n_layers = model.architecture().n_layers;
        for n_asked in 0..n_layers {
            // A wider pass with other tokens, given up before each of the layers.
            let n_left = std::cell::Cell::new(n_asked);
            let is_cancelled = || n_left.replace(n_left.get().saturating_sub(1)) == 0;
            let mut target = sequence.unless(&is_cancelled);
            let plan = target.lay_out(&tokens[3..7]);
            let error = target.forward(&plan).expect_err("given up");
            assert!(matches!(error, ModelError::Cancelled), "{error}");
            assert_eq!(target.n_committed(), 8);
        }
        let after = one_row_at_a_time(&mut sequence, &tokens[8..12]);
        let fresh = one_row_at_a_time(&mut model.sequence().expect("memory"), &tokens[..12]);
        assert!(after == fresh[8..], "{}", model.device());
    });
}

/// Bad plans are errors that say what does not fit.
#[test]
fn plans_that_do_not_fit_are_refused() {
    let model = smollm();
    let mut sequence = model.sequence().expect("memory");
    let refusals = [
        (RowPlan::prefill(0, &[49_152]), "token 49152 is outside the vocabulary of 49152"),
        (RowPlan::prefill(3, &[1]), "a plan starts at row 3 of the cache, which holds 0"),
        (RowPlan::prefill(0, &[1; 1281]), "the context holds 1280 rows. Needed: 1281"),
    ];
    for (plan, message) in refusals {
        assert_eq!(sequence.forward(&plan).expect_err("refused").to_string(), message);
    }
    let mut plan = RowPlan::prefill(0, &[1]);
    plan.push_adaptive_group(0, 5);
    let error = sequence.forward(&plan).expect_err("refused");
    assert_eq!(error.to_string(), "adaptive slot 4 is outside the adapter's 4");
}

/// Tokens aside are computed once, and stand where the line before them leaves them: whatever was typed before, the
/// rows behind it are those of a fresh cache.
#[test]
fn tokens_aside_know_nothing_of_what_was_typed() {
    on_all_devices().for_each(|model| tokens_aside_know_nothing_of_what_was_typed_on(&model));
}

fn tokens_aside_know_nothing_of_what_was_typed_on(model: &Arc<Model>) {
    let tokens = prompt();
    let (before, aside) = (6, 6..11);
    let after_typing = |line_lengths: &[usize]| {
        let mut sequence = model.sequence().expect("memory");
        for &n_line in line_lengths {
            sequence.truncate(aside.end);
            let layout = Layout { aside: aside.clone(), n_line, n_inner: 1 };
            sequence.set_layout(layout).expect("it fits what is committed");
            if sequence.n_committed() == 0 {
                sequence.prefill(&tokens[..before]).expect("it fits");
                sequence.prefill(&tokens[aside.clone()]).expect("it fits");
            }
            sequence.prefill(&tokens[aside.end..aside.end + n_line]).expect("it fits");
        }
        let mut plan = sequence.lay_out(&tokens[20..22]);
        plan.want_logits(0);
        plan.want_logits(1);
        sequence.forward(&plan).expect("it fits").full.clone()
    };
    let fresh = after_typing(&[4]);
    assert!(after_typing(&[2, 7, 3, 4]) == fresh, "{}", model.device());
    assert!(after_typing(&[3]) != fresh, "the line has an effect");
}
