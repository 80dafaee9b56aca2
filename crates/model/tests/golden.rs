//! Tokens, logits and adaptive slots against an independent implementation in numpy.

mod common;

use common::{IDS, golden, ids, load_on};
use model::{Device, ModelSummary, Tokenizer};
use speculate::{RowPlan, Target};

fn tokenizer(id: &str) -> Tokenizer {
    ModelSummary::read(&common::weights(id)).expect("a whole file").1
}

#[test]
fn token_ids_agree() {
    for id in IDS {
        let tokenizer = tokenizer(id);
        let golden = golden(id);
        let cases = golden["tokens"].as_array().expect("cases").iter();
        for (text, expected) in cases.map(|case| (case["text"].as_str().expect("text"), ids(&case["ids"]))) {
            assert_eq!(tokenizer.encode(text).expect("encodes"), expected, "{id}: {text:?}");
            assert_eq!(tokenizer.decode(&expected), text, "{id}");
        }
    }
}

/// Nats between the distributions among the reference's five likeliest tokens, of tokens and of slots, at most. The reference
/// computes with activations that are numbers, as GPUs do; the processor quantizes them, and those of slots once more
/// between the factors of a delta.
fn max_divergence(device: &Device) -> [f64; 2] {
    if *device == Device::Cpu { [0.01, 0.02] } else { [0.001, 0.001] }
}

/// The first prompts; the shortest ones on GPUs, which may be slow ones in software.
fn check_logits(id: &str, device: &Device, n_prompts: usize) {
    let model = load_on(id, device);
    let n_slots = model.n_adaptive_tokens();
    let mut largest = [0.0f64; 2];
    let (mut n_agreeing, mut n_rows) = (0, 0);
    let golden = golden(id);
    let prompts = golden["prompts"].as_array().expect("prompts").iter();
    let mut prompts: Vec<_> = prompts.map(|prompt| (prompt, ids(&prompt["ids"]))).collect();
    if *device != Device::Cpu {
        prompts.sort_by_key(|(_, tokens)| tokens.len());
    }
    for (prompt, tokens) in prompts.into_iter().take(n_prompts) {
        let mut sequence = model.sequence().expect("memory");
        sequence.prefill(&tokens[..tokens.len() - 1]).expect("the prompt fits");
        let mut plan = RowPlan::prefill(tokens.len() - 1, &tokens[tokens.len() - 1..]);
        plan.push_adaptive_group(0, n_slots);
        (0..=n_slots).for_each(|row| {
            plan.want_logits(row);
        });
        let logits = sequence.forward(&plan).expect("the plan fits");
        let slots = prompt["sat_slots_top5"].as_array().expect("slots");
        assert_eq!(slots.len(), n_slots);
        for (row, top5) in std::iter::once(&prompt["last_token_top5"]).chain(slots).enumerate() {
            let top5 = top5.as_array().expect("five");
            let full = logits.row(row).full.expect("asked for");
            let pairs =
                top5.iter().map(|pair| (pair[0].as_u64().expect("id"), pair[1].as_f64().expect("logit")));
            let (ours, expected): (Vec<f32>, Vec<f32>) =
                pairs.map(|(token, logit)| (full[token as usize], logit as f32)).unzip();
            let divergence = common::kl_divergence(&expected, &ours);
            largest[usize::from(row > 0)] = largest[usize::from(row > 0)].max(divergence);
            // Near ties may fall the other way, but never out of the reference's five likeliest.
            let argmax = u64::from(logits.row(row).argmax().expect("finite"));
            assert!(
                top5.iter().any(|pair| pair[0].as_u64() == Some(argmax)),
                "row {row}: {argmax} not in {top5:?}"
            );
            n_rows += 1;
            n_agreeing += usize::from(Some(argmax) == top5[0][0].as_u64());
        }
    }
    println!(
        "{id} on {}: largest divergence {:.5} (tokens), {:.5} (slots); argmax agrees in {n_agreeing} of {n_rows} rows",
        model.device(),
        largest[0],
        largest[1]
    );
    let bounds = max_divergence(device);
    assert!(largest.iter().zip(bounds).all(|(&divergence, bound)| divergence < bound), "{largest:?}");
}

fn n_prompts(device: &Device, on_processor: usize) -> usize {
    if *device == Device::Cpu { on_processor } else { 1 }
}

#[test]
fn logits_and_adaptive_slots_agree_smollm2_135m() {
    common::devices().iter().for_each(|device| check_logits("smollm2-135m", device, n_prompts(device, 3)));
}

#[test]
fn logits_and_adaptive_slots_agree_qwen2_5_coder_0_5b() {
    // On GPUs `candle_parity.rs` has it, with fewer tokens.
    check_logits("qwen2.5-coder-0.5b", &Device::Cpu, 1);
}
