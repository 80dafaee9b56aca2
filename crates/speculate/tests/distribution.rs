//! The emitted tokens follow the target's distribution, and the harness has the power to see
//! when they do not: the nucleus rule of the published SDSAT code fails it.

mod common;

use common::{ToyDrafter, ToyTarget, mix};
use speculate::{Drafter, Proposal, Sampler, SamplingParams, StepOutcome, Target, step};

fn softmax(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn total_variation(counts: &[u32], p: &[f64]) -> f64 {
    let n: u32 = counts.iter().sum();
    counts.iter().zip(p).map(|(&count, p)| (f64::from(count) / f64::from(n) - p).abs()).sum::<f64>() / 2.0
}

fn chi_square(counts: &[u32], p: &[f64]) -> f64 {
    let n: u32 = counts.iter().sum();
    let term = |(&count, p): (&u32, &f64)| (f64::from(count) - p * f64::from(n)).powi(2) / (p * f64::from(n));
    counts.iter().zip(p).map(term).sum()
}

/// T2: first and second token over many seeds, with random draft trees.
#[test]
fn sampled_tokens_follow_the_target() {
    const VOCABULARY: usize = 8;
    const N_TARGETS: u64 = 50;
    const N_SAMPLES: u64 = 200_000;
    // Quantile of chi-square with 7 degrees of freedom at probability 1 - 1e-5.
    const CRITICAL: f64 = 35.2585;
    let mut n_accepted = 0;
    for target_seed in 0..N_TARGETS {
        let toy = ToyTarget { n_slots: 0, ..ToyTarget::new(mix(target_seed), VOCABULARY) };
        let p_first = softmax(&toy.logits_after(&[0], None));
        let mut p_second = vec![0.0; VOCABULARY];
        for (first, p) in p_first.iter().enumerate() {
            let conditional = softmax(&toy.logits_after(&[0, first as u32], None));
            p_second.iter_mut().zip(conditional).for_each(|(sum, q)| *sum += p * q);
        }
        let mut target = toy;
        // One fixed tree for each target: the harness varies the draws, not the drafts.
        let mut drafter = ToyDrafter::Random { seed: target_seed, vocabulary: VOCABULARY, n_nodes: 5 };
        let mut counts = [[0u32; VOCABULARY]; 2];
        for seed in 0..N_SAMPLES {
            let params = SamplingParams { temperature: 1.0, seed: mix(seed), ..SamplingParams::default() };
            let sampler = Sampler::new(params).expect("parameters in range");
            target.committed.clear();
            let mut context = vec![0u32];
            while context.len() < 3 {
                let proposal =
                    if context.len() == 1 { drafter.propose(&context, 1) } else { Proposal::default() };
                let outcome: StepOutcome =
                    step(&mut target, &context, 1, proposal, &sampler).expect("toy targets do not fail");
                n_accepted += outcome.accepted_path.len();
                context.extend(outcome.tokens);
            }
            counts[0][context[1] as usize] += 1;
            counts[1][context[2] as usize] += 1;
        }
        for (counts, p) in counts.iter().zip([&p_first, &p_second]) {
            let (distance, statistic) = (total_variation(counts, p), chi_square(counts, p));
            assert!(distance < 0.01, "target {target_seed}: total variation {distance}");
            assert!(statistic < CRITICAL, "target {target_seed}: chi-square {statistic}");
        }
    }
    assert!(n_accepted > 0, "no draft was ever accepted, so nothing was tested");
}

/// T2, fixed cases: a draft without probability is never accepted, a certain one always.
#[test]
fn impossible_drafts_are_never_accepted() {
    struct TwoTokens(speculate::Logits, usize);
    impl Target for TwoTokens {
        type Error = common::ToyError;
        fn n_committed(&self) -> usize {
            self.1
        }
        fn n_adaptive_tokens(&self) -> usize {
            0
        }
        fn forward(&mut self, plan: &speculate::RowPlan) -> Result<&speculate::Logits, Self::Error> {
            let row = [f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY];
            self.0 = speculate::Logits::from_rows(row.repeat(plan.logit_rows().len()), 4);
            Ok(&self.0)
        }
        fn commit(&mut self, rows: &[usize]) -> Result<(), Self::Error> {
            self.1 += rows.len();
            Ok(())
        }
    }
    for seed in 0..2_000 {
        let params = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
        let sampler = Sampler::new(params).expect("parameters in range");
        let mut tree = speculate::DraftTree::default();
        tree.push(0, None);
        tree.push(3, None);
        let sure = tree.push(1, None);
        let also = tree.push(2, None);
        let proposal = Proposal { drafts: tree, ..Proposal::default() };
        let outcome = step(&mut TwoTokens(speculate::Logits::default(), 0), &[0], 1, proposal, &sampler);
        let path = outcome.expect("toy targets do not fail").accepted_path;
        assert!(path == [sure] || path == [also], "accepted {path:?}");
    }
}

/// `tree_depth_5` of the published code: each path lists the rank of the draft at each depth.
const PUBLISHED_TREE: [&[usize]; 28] = [
    &[0],
    &[1],
    &[2],
    &[3],
    &[0, 0],
    &[0, 1],
    &[0, 2],
    &[1, 0],
    &[1, 1],
    &[2, 0],
    &[2, 1],
    &[3, 0],
    &[0, 0, 0],
    &[0, 0, 1],
    &[0, 0, 2],
    &[0, 1, 0],
    &[0, 1, 1],
    &[0, 2, 0],
    &[0, 2, 1],
    &[1, 0, 0],
    &[0, 0, 0, 0],
    &[0, 0, 0, 1],
    &[0, 0, 0, 2],
    &[0, 0, 1, 0],
    &[0, 0, 1, 1],
    &[0, 0, 0, 0, 0],
    &[0, 0, 0, 0, 1],
    &[0, 0, 0, 0, 2],
];

/// A stream of uniform numbers.
struct Uniform(u64);

impl Uniform {
    fn draw(&mut self, p: &[f64]) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut rest = (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64;
        p.iter()
            .position(|p| {
                rest -= p;
                rest < 0.0
            })
            .unwrap_or(p.len() - 1)
    }
}

/// First emitted token under the published rule: each root-to-leaf path draws for itself, the
/// longest accepted path wins, and a rejected draw is thrown away for a fresh one.
fn published_rule(p: &[f64], ranked: &[usize], uniform: &mut Uniform) -> usize {
    let is_leaf = |path: &&&[usize]| {
        !PUBLISHED_TREE.iter().any(|other| other.len() > path.len() && other.starts_with(path))
    };
    let mut best: (usize, Option<usize>) = (0, None);
    for path in PUBLISHED_TREE.iter().filter(is_leaf) {
        let n_accepted = path.iter().take_while(|&&rank| uniform.draw(p) == ranked[rank]).count();
        if n_accepted > best.0 {
            best = (n_accepted, Some(path[0]));
        }
    }
    best.1.map_or_else(|| uniform.draw(p), |rank| ranked[rank])
}

/// First emitted token under sample match, over the same tree.
fn sample_match_rule(p: &[f64], ranked: &[usize], uniform: &mut Uniform) -> usize {
    let mut tree = speculate::DraftTree::default();
    for path in PUBLISHED_TREE {
        let mut parent = None;
        for &rank in path {
            parent = Some(tree.push(ranked[rank] as u32, parent));
        }
    }
    let mut first = None;
    let draw = |_| {
        let token = uniform.draw(p);
        first.get_or_insert(token);
        Ok::<_, ()>(token as u32)
    };
    speculate::sample_match(&tree, draw).expect("draws do not fail");
    first.expect("the root is always visited")
}

/// Negative test: the same harness that passes sample match fails the published nucleus rule.
#[test]
fn the_published_nucleus_rule_is_caught() {
    let p = [0.5, 0.2, 0.1, 0.08, 0.06, 0.06];
    let ranked = [0, 1, 2, 3, 4, 5];
    let distance = |rule: fn(&[f64], &[usize], &mut Uniform) -> usize| {
        let mut uniform = Uniform(11);
        let mut counts = [0u32; 6];
        (0..60_000).for_each(|_| counts[rule(&p, &ranked, &mut uniform)] += 1);
        total_variation(&counts, &p)
    };
    let (published, exact) = (distance(published_rule), distance(sample_match_rule));
    println!("total variation: published rule {published:.3}, sample match {exact:.4}");
    assert!(published > 0.3, "the published rule should be far off, measured {published}");
    assert!(exact < 0.01, "sample match should be exact, measured {exact}");
}
