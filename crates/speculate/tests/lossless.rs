//! Speculative output equals ordinary output, whatever the drafter does.

mod common;

use common::{ToyDrafter, ToyTarget};
use proptest::prelude::*;
use speculate::{
    AdaptiveGroup, CorpusDrafter, DraftTree, Drafter, OrdinaryDecoding, PassCosts, PhrasePool, PromptLookup,
    Proposal, PublishedTree, Router, RouterConfig, Sampler, SamplingParams, SemanticDrafter, SuffixDrafter,
    TokenRecycling, TwoPassSdsat, step,
};

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
    let mut n_pending = prompt.len();
    let mut n_steps = 0;
    target.committed.clear();
    drafter.begin(&context);
    while context.len() - prompt.len() < n {
        let mut proposal = drafter.propose(&context, n_pending);
        proposal.truncate_depth(n - (context.len() - prompt.len()) - 1);
        let max_depth = proposal.drafts.nodes().iter().map(|node| node.depth).max().unwrap_or(0);
        let outcome = step(target, &context, n_pending, proposal, sampler).expect("toy targets do not fail");
        assert!((1..=max_depth + 1).contains(&outcome.tokens.len()));
        assert_eq!(outcome.tokens.len(), outcome.accepted_path.len() + 1);
        assert_eq!(outcome.rows.len(), outcome.drafts.nodes().len() + 1);
        context.extend(&outcome.tokens);
        drafter.observe(&context, &outcome);
        n_pending = 1;
        n_steps += 1;
        // T4: the cache holds exactly what was decided, but for the token of the next step.
        assert_eq!(target.committed, context[..context.len() - 1]);
    }
    drafter.end(&context);
    Run { tokens: context[prompt.len()..].to_vec(), committed: target.committed.clone(), n_steps }
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let greedy = Just(SamplingParams::default());
    let penalty = prop_oneof![2 => Just(1.0f32), 1 => 0.6f32..2.0];
    let sampled = (0.1f32..2.0, 0usize..6, 0.2f32..=1.0, 0.0f32..0.5, penalty.clone(), any::<u64>())
        .prop_map(|(temperature, top_k, top_p, min_p, repetition_penalty, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
        });
    let penalised = penalty
        .prop_map(|repetition_penalty| SamplingParams { repetition_penalty, ..SamplingParams::default() });
    prop_oneof![1 => greedy, 1 => penalised, 2 => sampled]
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
        let oracle = ToyDrafter::Oracle { continuation: continuation.clone(), n_prompt, n: n_drafts };
        let near_miss = ToyDrafter::NearMiss { continuation, n_prompt, n: n_drafts, wrong_at };
        let random = ToyDrafter::Random { seed, vocabulary, n_nodes: n_drafts };
        let costs = match seed % 3 {
            0 => PassCosts::flat(),
            1 => PassCosts::linear(0.05),
            _ => PassCosts::linear(1.0),
        };
        let router = |drafters: Vec<Box<dyn Drafter>>| -> Box<dyn Drafter> {
            Box::new(Router::new(RouterConfig { costs: costs.clone(), n_slots }, drafters))
        };
        let free = || -> Vec<Box<dyn Drafter>> {
            vec![
                Box::new(SuffixDrafter::default()),
                Box::new(CorpusDrafter::default()),
                Box::new(TokenRecycling::default()),
                Box::new(PhrasePool::default()),
                Box::new(PromptLookup::default()),
            ]
        };
        let mut everything = free();
        everything.push(Box::new(SemanticDrafter::default()));
        everything.extend([oracle.clone(), near_miss.clone(), random.clone()].map(|toy| Box::new(toy) as _));
        let drafters: Vec<(&str, Box<dyn Drafter>)> = vec![
            ("two-pass", Box::new(TwoPassSdsat::default())),
            ("two-pass with two slots", Box::new(TwoPassSdsat::new(Some(2), None))),
            ("two-pass with a tree", Box::new(TwoPassSdsat::new(None, PublishedTree::of_depth(7)))),
            ("semantic", Box::new(SemanticDrafter::default())),
            ("suffix", Box::new(SuffixDrafter::default())),
            ("corpus", Box::new(CorpusDrafter::default())),
            ("recycling", Box::new(TokenRecycling::default())),
            ("phrases", Box::new(PhrasePool::default())),
            ("lookup", Box::new(PromptLookup::default())),
            ("fused", router(vec![Box::new(SemanticDrafter::default())])),
            ("free", router(free())),
            ("everything, merged", router(everything)),
            ("empty", Box::new(ToyDrafter::Empty)),
            ("oracle", Box::new(oracle)),
            ("near miss", Box::new(near_miss)),
            ("random", Box::new(random)),
        ];
        for (name, mut drafter) in drafters {
            // Twice: the second time with what was learnt.
            for _ in 0..2 {
                let speculative = decode(&mut toy(), drafter.as_mut(), &sampler, &prompt, n);
                prop_assert_eq!(&speculative.tokens, &ordinary.tokens, "{} drafter", name);
                prop_assert_eq!(&speculative.committed, &ordinary.committed, "{} drafter", name);
                if name == "oracle" {
                    prop_assert_eq!(speculative.n_steps, n.div_ceil(n_drafts + 1), "a perfect drafter is always accepted");
                }
            }
        }
    }
}

/// Counts up; adaptive slots know it.
#[derive(Default)]
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
            values[idx * vocabulary + plan.rows()[row].position + 1] = 9.0;
        }
        self.logits = speculate::Logits::from_rows(values, vocabulary);
        Ok(&self.logits)
    }
    fn commit(&mut self, rows: &[usize]) -> Result<(), Self::Error> {
        self.committed += rows.len();
        Ok(())
    }
}

/// An adaptive draft stands where the alignment rule says: slot j after a token predicts the
/// token j + 2 places on (j from 0), so a target whose slots know the future has all accepted.
#[test]
fn adaptive_drafts_are_aligned() {
    let mut target = Counter::default();
    let sampler = Sampler::new(SamplingParams::default()).expect("greedy");
    let mut drafter = TwoPassSdsat::default();
    let drafting = step(&mut target, &[0, 1], 2, drafter.propose(&[0, 1], 2), &sampler).expect("no failure");
    assert_eq!((drafting.tokens.as_slice(), drafting.n_rows), (&[2][..], 6));
    drafter.observe(&[0, 1, 2], &drafting);
    let proposal = drafter.propose(&[0, 1, 2], 1);
    let verifying = step(&mut target, &[0, 1, 2], 1, proposal, &sampler).expect("no failure");
    assert_eq!(verifying.tokens, [3, 4, 5, 6, 7]);

    // Fused: each pass verifies four drafts and drafts the next four.
    let mut target = Counter::default();
    let config = RouterConfig { costs: PassCosts::flat(), n_slots: 4 };
    let mut router = Router::new(config, vec![Box::new(SemanticDrafter::default())]);
    let mut context = vec![0, 1];
    router.begin(&context);
    for expected in [vec![2], vec![3, 4, 5, 6, 7], vec![8, 9, 10, 11, 12]] {
        let n_pending = context.len() - target.committed;
        let proposal = router.propose(&context, n_pending);
        let outcome = step(&mut target, &context, n_pending, proposal, &sampler).expect("no failure");
        assert_eq!(outcome.tokens, expected);
        context.extend(&outcome.tokens);
        router.observe(&context, &outcome);
    }
}

/// Where the walk goes past a group, the slots that stand behind it still say what comes.
#[test]
fn the_nearest_group_drafts_what_is_left_of_it() {
    let sampler = Sampler::new(SamplingParams::default()).expect("greedy");
    let left_of = |n_slots| {
        let mut drafts = DraftTree::default();
        let two = drafts.push(2, None);
        drafts.push(3, Some(two));
        let adaptive_groups = vec![AdaptiveGroup { after: None, n_slots }];
        let proposal = Proposal { drafts, adaptive_groups, decision: None };
        let outcome = step(&mut Counter::default(), &[0, 1], 2, proposal, &sampler).expect("no failure");
        assert_eq!(outcome.tokens, [2, 3, 4]);
        let slots = outcome.slots.unwrap_or_default();
        let said: Vec<u32> = (0..slots.len()).filter_map(|slot| Some(slots.behind(slot, 0)?[0].0)).collect();
        (said, outcome.n_slots_passed)
    };
    assert_eq!(left_of(4), (vec![5, 6], 2));
    assert_eq!(left_of(3), (vec![5], 2));
    assert_eq!(left_of(2), (vec![], 0));
}
