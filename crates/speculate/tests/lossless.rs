//! Speculative output equals ordinary output, whatever the drafter does.

mod common;

use common::{ToyDrafter, ToyTarget};
use proptest::prelude::*;
use speculate::{Drafter, OrdinaryDecoding, Sampler, SamplingParams, TwoPassSdsat, step};

struct Run {
    tokens: Vec<u32>,
    committed: Vec<u32>,
    n_steps: usize,
}

fn decode(
    target: &mut ToyTarget,
    drafter: &mut dyn Drafter,
    sampler: &Sampler,
    prompt: &[u32],
    n: usize,
) -> Run {
    let mut context = prompt.to_vec();
    let mut pending = prompt.to_vec();
    let mut n_steps = 0;
    while context.len() - prompt.len() < n {
        let mut proposal = drafter.propose(&context);
        proposal.truncate_depth(n - (context.len() - prompt.len()) - 1);
        let max_depth = proposal.drafts.nodes().iter().map(|node| node.depth).max().unwrap_or(0);
        let outcome = step(target, &pending, proposal, sampler).expect("toy targets do not fail");
        assert!((1..=max_depth + 1).contains(&outcome.tokens.len()));
        assert_eq!(outcome.tokens.len(), outcome.accepted_path.len() + 1);
        drafter.observe(&outcome);
        context.extend(&outcome.tokens);
        pending = vec![outcome.tokens[outcome.tokens.len() - 1]];
        n_steps += 1;
        // T4: the cache holds exactly what was decided, but for the token of the next step.
        assert_eq!(target.committed, context[..context.len() - 1]);
    }
    Run { tokens: context[prompt.len()..].to_vec(), committed: target.committed.clone(), n_steps }
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let greedy = Just(SamplingParams::default());
    let sampled = (0.1f32..2.0, 0usize..6, 0.2f32..=1.0, 0.0f32..0.5, any::<u64>()).prop_map(
        |(temperature, top_k, top_p, min_p, seed)| SamplingParams { temperature, top_k, top_p, min_p, seed },
    );
    prop_oneof![1 => greedy, 2 => sampled]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn speculative_output_equals_ordinary_output(
        seed in any::<u64>(),
        vocabulary in 2usize..16,
        n_levels in prop_oneof![Just(2u64), Just(5), Just(1 << 20)],
        order in 1usize..4,
        n_slots in 0usize..6,
        params in sampling(),
        prompt in prop::collection::vec(0u32..2, 1..5),
        n in 1usize..24,
        n_drafts in 1usize..9,
        wrong_at in 0usize..4,
    ) {
        let sampler = Sampler::new(params).expect("parameters in range");
        let toy = || ToyTarget { n_levels, order, n_slots, ..ToyTarget::new(seed, vocabulary) };
        let ordinary = decode(&mut toy(), &mut OrdinaryDecoding, &sampler, &prompt, n);
        prop_assert_eq!(ordinary.n_steps, n);

        let continuation = ordinary.tokens.clone();
        let n_prompt = prompt.len();
        let drafters: [(&str, Box<dyn Drafter>); 5] = [
            ("two-pass", Box::new(TwoPassSdsat::default())),
            ("empty", Box::new(ToyDrafter::Empty)),
            ("oracle", Box::new(ToyDrafter::Oracle { continuation: continuation.clone(), n_prompt, n: n_drafts })),
            ("near miss", Box::new(ToyDrafter::NearMiss { continuation, n_prompt, n: n_drafts, wrong_at })),
            ("random", Box::new(ToyDrafter::Random { seed, vocabulary, n_nodes: n_drafts })),
        ];
        for (name, mut drafter) in drafters {
            let speculative = decode(&mut toy(), drafter.as_mut(), &sampler, &prompt, n);
            prop_assert_eq!(&speculative.tokens, &ordinary.tokens, "{} drafter", name);
            prop_assert_eq!(&speculative.committed, &ordinary.committed, "{} drafter", name);
            if name == "oracle" {
                prop_assert_eq!(speculative.n_steps, n.div_ceil(n_drafts + 1), "a perfect drafter is always accepted");
            }
        }
    }
}

/// An adaptive draft stands where the alignment rule says: slot j after a token predicts the
/// token j + 2 places on (j from 0), so a target whose slots know the future has all accepted.
#[test]
fn adaptive_drafts_are_aligned() {
    /// Counts up; adaptive slots know it.
    struct Counter {
        committed: usize,
        logits: speculate::Logits,
    }
    impl speculate::Target for Counter {
        type Error = common::ToyError;
        fn n_committed(&self) -> usize {
            self.committed
        }
        fn n_adaptive_tokens(&self) -> usize {
            4
        }
        fn forward(&mut self, plan: &speculate::RowPlan) -> Result<&speculate::Logits, Self::Error> {
            let vocabulary = 100;
            let mut values = vec![0.0; plan.logit_rows().len() * vocabulary];
            for (idx, &row) in plan.logit_rows().iter().enumerate() {
                // The token at position p is p.
                values[idx * vocabulary + plan.rows()[row].position + 1] = 1.0;
            }
            self.logits = speculate::Logits::from_rows(values, vocabulary);
            Ok(&self.logits)
        }
        fn commit(&mut self, rows: &[usize]) {
            self.committed += rows.len();
        }
    }
    let mut target = Counter { committed: 0, logits: speculate::Logits::default() };
    let sampler = Sampler::new(SamplingParams::default()).expect("greedy");
    let mut drafter = TwoPassSdsat::default();
    let drafting = step(&mut target, &[0, 1], drafter.propose(&[0, 1]), &sampler).expect("no failure");
    assert_eq!((drafting.tokens.as_slice(), drafting.n_rows), (&[2][..], 6));
    drafter.observe(&drafting);
    let verifying = step(&mut target, &[2], drafter.propose(&[0, 1, 2]), &sampler).expect("no failure");
    assert_eq!(verifying.tokens, [3, 4, 5, 6, 7]);
}
