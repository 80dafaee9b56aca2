//! Checkpoints that were trained with an adaptive token of their own vocabulary, as the published SDSAT models were.

mod common;

use std::sync::Arc;

use model::gguf::TensorType;
use model::{Device, Model, ModelConfig, NativeSat, RandomModelConfig, SlotIds, write_random_model};
use speculate::{RowPlan, Target};

/// As in CodeLlama's checkpoints: the first of the ids that its vocabulary has to spare.
const SAT_TOKEN: u32 = 411;
/// Those checkpoints have one id, repeated; what an adapter was merged into has one for each slot.
const SHARED: NativeSat = NativeSat::shared(SAT_TOKEN, 5);
const CONSECUTIVE: NativeSat = NativeSat { ids: SlotIds::Consecutive, ..SHARED };

fn shape() -> RandomModelConfig {
    RandomModelConfig {
        n_layers: 3,
        hidden: 256,
        n_heads: 4,
        n_kv_heads: 4,
        feed_forward: 512,
        vocabulary: 416,
        context_length: 256,
        native_sat: Some(SHARED),
        ..RandomModelConfig::llama_7b(TensorType::Q4_K)
    }
}

fn load(config: &RandomModelConfig, device: &Device) -> Arc<Model> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sat.gguf");
    write_random_model(config, &path).expect("writes");
    Arc::new(Model::load(&ModelConfig { device: device.clone(), ..ModelConfig::new(&path) }).expect("loads"))
}

/// A slot is that token in the slot's place, and no row ever names it.
#[test]
fn slots_are_the_token_of_the_vocabulary() {
    let tokens = [5, 300, 7, 7, 199, 42];
    for (device, sat) in
        common::devices().into_iter().flat_map(|device| [(device.clone(), SHARED), (device, CONSECUTIVE)])
    {
        let model = load(&RandomModelConfig { native_sat: Some(sat), ..shape() }, &device);
        assert!(model.has_trained_slots() && model.n_adaptive_tokens() == 5);
        let (plan, with_slots) = common::with_group(&model, &tokens);
        let slots = sat.tokens().cycle().take(sat.n_slots).collect::<Vec<u32>>();
        let mut chain = RowPlan::prefill(0, &[&tokens[..], &slots].concat());
        (0..plan.rows().len()).for_each(|row| {
            chain.want_logits(row);
        });
        let logits = model.sequence().expect("memory").forward(&chain).expect("fits").clone();
        for (row, with_slots) in with_slots.iter().enumerate() {
            assert!(logits.row(row).full == Some(&with_slots[..]), "row {row} on {device:?}");
            assert!(sat.tokens().all(|token| with_slots[token as usize] == f32::NEG_INFINITY));
            assert!(logits.row(row).ranked.iter().all(|(token, _)| !sat.tokens().contains(token)));
        }
    }
}

#[test]
fn ids_that_are_none_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sat.gguf");
    for (native_sat, words) in [
        (
            NativeSat { token: 416, ..SHARED },
            "`sateen.sat.token_id` must be a token of the vocabulary, and not the first. Given: 416",
        ),
        (
            NativeSat { token: 412, ..CONSECUTIVE },
            "`sateen.sat.token_id` must be a token of the vocabulary, and not the first. Given: 412",
        ),
        (NativeSat { n_slots: 33, ..SHARED }, "`sateen.sat.n_tokens` must be from 1 to 32. Given: 33"),
        (NativeSat { n_slots: 0, ..SHARED }, "`sateen.sat.n_tokens` must be from 1 to 32. Given: 0"),
        (
            NativeSat { n_slots: 8, ..CONSECUTIVE },
            "`sateen.sat.n_ids` must be 1, or one for each slot and at most 7. Given: 8",
        ),
    ] {
        let config = RandomModelConfig { native_sat: Some(native_sat), ..shape() };
        write_random_model(&config, &path).expect("writes");
        let error = Model::load(&ModelConfig::new(&path)).expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}
