//! Many drafters, one tree: merged by token, cut to what its rows are worth.

use std::collections::HashMap;

use crate::calibration::{Calibration, GroupValue};
use crate::{
    AdaptiveGroup, Decision, DraftSource, DraftTree, Drafter, PassCosts, Proposal, Slots, StepOutcome,
};

/// Most drafts of a pass.
const MAX_DRAFTS: usize = 48;
/// Most adaptive groups of a pass.
const MAX_GROUPS: usize = 16;
/// Share of a pass that speculation must gain before it is done at all.
const MIN_GAIN: f64 = 0.05;
/// Passes without a group after which one is tried again: acceptance changes with the text.
const PROBE_EVERY: usize = 24;

/// What a drafter said of one node.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    source: DraftSource,
    confidence: f32,
}

/// A node of the merged tree.
#[derive(Clone, Debug)]
struct Candidate {
    token: u32,
    parent: Option<usize>,
    depth: usize,
    evidence: Vec<Evidence>,
    /// That the target agrees, given that it agreed with the parent.
    probability: f32,
    /// That the target agrees with all of the path.
    survival: f32,
}

/// What the router may do.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// What passes cost.
    pub costs: PassCosts,
    /// Semantic adaptive tokens in a group of the target; 0 when it has none.
    pub n_slots: usize,
}

/// Asks all drafters, and takes what maximises `tokens - rate * milliseconds`, where `rate` is what decoding
/// has brought lately: more drafts as long as their rows bring more than the same time brings
/// anyway, groups of semantic adaptive tokens after the likeliest stops, and none of either where
/// nothing gains a twentieth of a pass.
pub struct Router {
    config: RouterConfig,
    drafters: Vec<Box<dyn Drafter>>,
    calibration: Calibration,
    group_value: GroupValue,
    /// The merged tree of the last proposal.
    candidates: Vec<Candidate>,
    n_tokens: f64,
    n_ms: f64,
    n_since_group: usize,
    /// Slots of the group that the last pass stopped at, whose drafts are in the next.
    n_slots_drafted: Option<usize>,
}

impl Router {
    /// A router over `drafters`.
    pub fn new(config: RouterConfig, drafters: Vec<Box<dyn Drafter>>) -> Self {
        Self {
            config,
            drafters,
            calibration: Calibration::default(),
            group_value: GroupValue::default(),
            candidates: Vec::new(),
            n_tokens: 0.0,
            n_ms: 0.0,
            n_since_group: 0,
            n_slots_drafted: None,
        }
    }

    /// Merges the proposals of all drafters by token.
    fn merge(&mut self, context: &[u32], n_pending: usize) {
        self.candidates.clear();
        let mut found: HashMap<(Option<usize>, u32), usize> = HashMap::new();
        for drafter in &mut self.drafters {
            let drafts = drafter.propose(context, n_pending).drafts;
            let mut merged_idx: Vec<usize> = Vec::with_capacity(drafts.nodes().len());
            for node in drafts.nodes() {
                let parent = node.parent.map(|parent| merged_idx[parent]);
                let candidates = &mut self.candidates;
                let idx = *found.entry((parent, node.token)).or_insert_with(|| {
                    let (token, depth) = (node.token, node.depth);
                    let evidence = Vec::new();
                    candidates.push(Candidate {
                        token,
                        parent,
                        depth,
                        evidence,
                        probability: 0.0,
                        survival: 0.0,
                    });
                    candidates.len() - 1
                });
                let evidence = Evidence { source: node.source, confidence: node.confidence };
                self.candidates[idx].evidence.push(evidence);
                merged_idx.push(idx);
            }
        }
        self.weigh();
    }

    /// Probabilities from the evidence. Drafters that agree are not independent, so the surest counts, and
    /// the children of a node share what there is.
    fn weigh(&mut self) {
        for candidate in &mut self.candidates {
            let probability = |evidence: &Evidence| {
                self.calibration.probability(evidence.source, candidate.depth, evidence.confidence)
            };
            candidate.probability = candidate.evidence.iter().map(probability).fold(0.0, f32::max);
        }
        let mut sums: HashMap<Option<usize>, f32> = HashMap::new();
        for candidate in &self.candidates {
            *sums.entry(candidate.parent).or_default() += candidate.probability;
        }
        for idx in 0..self.candidates.len() {
            let parent = self.candidates[idx].parent;
            let excess = sums.get(&parent).copied().unwrap_or(1.0).max(1.0);
            let above = parent.map_or(1.0, |parent| self.candidates[parent].survival);
            let candidate = &mut self.candidates[idx];
            candidate.probability /= excess;
            candidate.survival = above * candidate.probability;
        }
    }

    /// What a millisecond has brought lately, in tokens; at least what ordinary decoding brings.
    fn rate(&self) -> f64 {
        let ordinary = 1.0 / self.config.costs.of(1);
        // Starts from ordinary decoding, as if it had been done for a while.
        let prior = 16.0;
        ((self.n_tokens + prior) / (self.n_ms + prior / ordinary)).max(ordinary)
    }

    fn choose(&self, n_pending: usize) -> Choice {
        let Self { config, candidates, .. } = self;
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        // A parent survives at least as likely as its children and comes before them.
        order.sort_by(|&a, &b| candidates[b].survival.total_cmp(&candidates[a].survival).then(a.cmp(&b)));
        order.truncate(MAX_DRAFTS);
        let rate = self.rate();
        let base_ms = config.costs.of(n_pending);
        let score =
            |tokens: f64, n_rows: usize| tokens - rate * (config.costs.of(n_pending + n_rows) - base_ms);

        let mut best = Choice::default();
        let mut best_score = MIN_GAIN;
        // Where the walk is expected to stop: at the root, or at a chosen node none of whose children holds.
        let mut stops: Vec<(Option<usize>, f32)> = vec![(None, 1.0)];
        let mut place_of: HashMap<usize, usize> = HashMap::new();
        let mut drafted = 0.0f64;
        for n_drafts in 0..=order.len() {
            if let Some(idx) = n_drafts.checked_sub(1).map(|at| order[at]) {
                let Candidate { parent, survival, .. } = candidates[idx];
                let parent_place = parent.map_or(0, |parent| place_of[&parent]);
                stops[parent_place].1 -= survival;
                place_of.insert(idx, stops.len());
                stops.push((Some(idx), survival));
                drafted += f64::from(survival);
            }
            let plain = score(drafted, n_drafts);
            if plain > best_score {
                best_score = plain;
                best = Choice { drafts: order[..n_drafts].to_vec(), expected: drafted, ..Choice::default() };
            }
            if config.n_slots == 0 {
                continue;
            }
            let likeliest = likeliest_stops(&stops);
            let mut stopped = 0.0f64;
            for (n_groups, stop) in (1..).zip(&likeliest) {
                stopped += f64::from(stop.1.max(0.0));
                for n_slots in 1..=config.n_slots {
                    // The drafts of the group will need rows of their own in the next pass.
                    let next_ms = config.costs.of(1 + n_slots) - config.costs.of(1);
                    let ahead = (stopped * (self.group_value.of(n_slots) - rate * next_ms)).max(0.0);
                    let n_rows = n_drafts + n_groups * n_slots;
                    let score = score(drafted + ahead, n_rows) - rate * config.costs.adaptive_ms();
                    if score > best_score {
                        best_score = score;
                        best = Choice {
                            drafts: order[..n_drafts].to_vec(),
                            stops: likeliest[..n_groups].iter().map(|stop| stop.0).collect(),
                            n_slots,
                            expected: drafted,
                            ahead,
                        };
                    }
                }
            }
        }
        if config.n_slots > 0 && best.stops.is_empty() && self.n_since_group >= PROBE_EVERY {
            best.stops = vec![best.drafts.last().filter(|_| best.drafts.len() == 1).copied()];
            best.n_slots = config.n_slots;
        }
        best
    }
}

/// The places where the walk stops likeliest, likeliest first.
fn likeliest_stops(stops: &[(Option<usize>, f32)]) -> Vec<(Option<usize>, f32)> {
    let mut likeliest: Vec<(Option<usize>, f32)> = Vec::with_capacity(MAX_GROUPS + 1);
    for &stop in stops {
        let place = likeliest.iter().position(|other| stop.1 > other.1).unwrap_or(likeliest.len());
        if place < MAX_GROUPS {
            likeliest.insert(place, stop);
            likeliest.truncate(MAX_GROUPS);
        }
    }
    likeliest
}

/// What a pass is to carry, in candidates.
#[derive(Debug, Default)]
struct Choice {
    drafts: Vec<usize>,
    stops: Vec<Option<usize>>,
    n_slots: usize,
    expected: f64,
    ahead: f64,
}

impl Drafter for Router {
    fn begin(&mut self, context: &[u32]) {
        self.drafters.iter_mut().for_each(|drafter| drafter.begin(context));
        self.n_slots_drafted = None;
    }

    fn propose(&mut self, context: &[u32], n_pending: usize) -> Proposal {
        self.merge(context, n_pending);
        let choice = self.choose(n_pending);
        let mut drafts = DraftTree::default();
        let mut node_of: HashMap<usize, usize> = HashMap::new();
        for &idx in &choice.drafts {
            let candidate = &self.candidates[idx];
            let parent = candidate.parent.map(|parent| node_of[&parent]);
            let surest = candidate.evidence.iter().max_by(|a, b| {
                let probability =
                    |e: &Evidence| self.calibration.probability(e.source, candidate.depth, e.confidence);
                probability(a).total_cmp(&probability(b))
            });
            let source = surest.map_or(DraftSource::Other, |evidence| evidence.source);
            node_of.insert(idx, drafts.push_from(source, candidate.token, parent, candidate.probability));
        }
        let n_slots = choice.n_slots;
        let group = |stop: &Option<usize>| AdaptiveGroup { after: stop.map(|idx| node_of[&idx]), n_slots };
        let adaptive_groups: Vec<AdaptiveGroup> = choice.stops.iter().map(group).collect();
        let costs = &self.config.costs;
        let n_rows = choice.drafts.len() + adaptive_groups.len() * n_slots;
        let adaptive_ms = if adaptive_groups.is_empty() { 0.0 } else { costs.adaptive_ms() };
        let decision = Decision {
            n_drafts: choice.drafts.len(),
            n_offered: self.candidates.len(),
            n_groups: adaptive_groups.len(),
            n_slots,
            expected_tokens: 1.0 + choice.expected,
            expected_ahead: choice.ahead,
            relative_cost: (costs.of(n_pending + n_rows) + adaptive_ms) / costs.of(n_pending),
        };
        self.n_since_group = if adaptive_groups.is_empty() { self.n_since_group + 1 } else { 0 };
        Proposal { drafts, adaptive_groups, decision: Some(decision) }
    }

    fn observe(&mut self, context: &[u32], outcome: &StepOutcome) {
        // Down the merged tree along what the target chose, whether or not it was in the pass: all
        // children of a node on the way were right or wrong.
        let mut at = None;
        let mut brought = Vec::new();
        for &token in &outcome.tokens {
            let mut next = None;
            for (idx, candidate) in self.candidates.iter().enumerate().filter(|(_, c)| c.parent == at) {
                let is_right = candidate.token == token;
                for evidence in &candidate.evidence {
                    self.calibration.observe(evidence.source, candidate.depth, evidence.confidence, is_right);
                }
                if is_right {
                    next = Some(idx);
                }
            }
            let Some(idx) = next else { break };
            let evidence = &self.candidates[idx].evidence;
            brought.push(evidence.iter().all(|evidence| evidence.source == DraftSource::Semantic));
            at = next;
        }
        if let Some(n_slots) = self.n_slots_drafted {
            self.group_value.observe(n_slots, &brought);
        }
        // What is left of a group that the walk went past says nothing of what whole ones bring.
        self.n_slots_drafted = outcome.slots.as_ref().filter(|_| outcome.n_slots_passed == 0).map(Slots::len);
        // Fades, so that the rate is that of the last hundred passes or so. A pass with a chunk of a
        // prompt says nothing of decoding.
        if outcome.n_rows <= 1 + MAX_DRAFTS + MAX_GROUPS * self.config.n_slots {
            self.n_tokens = self.n_tokens * 0.99 + outcome.tokens.len() as f64;
            let has_group = outcome.decision.is_some_and(|decision| decision.n_groups > 0);
            let adaptive_ms = if has_group { self.config.costs.adaptive_ms() } else { 0.0 };
            self.n_ms = self.n_ms * 0.99 + self.config.costs.of(outcome.n_rows) + adaptive_ms;
        }
        self.drafters.iter_mut().for_each(|drafter| drafter.observe(context, outcome));
    }

    fn observe_time(&mut self, n_rows: usize, ms: f64) {
        self.config.costs.observe(n_rows, ms);
    }

    fn end(&mut self, context: &[u32]) {
        self.drafters.iter_mut().for_each(|drafter| drafter.end(context));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank;

    /// Drafts the same chain with the same confidence, whatever happens.
    struct Stubborn {
        source: DraftSource,
        tokens: Vec<u32>,
        confidence: f32,
    }

    impl Drafter for Stubborn {
        fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
            let mut drafts = DraftTree::default();
            let mut parent = None;
            for &token in &self.tokens {
                parent = Some(drafts.push_from(self.source, token, parent, self.confidence));
            }
            Proposal { drafts, ..Proposal::default() }
        }
    }

    fn router(costs: PassCosts, n_slots: usize, tokens: &[u32], confidence: f32) -> Router {
        let stubborn = Stubborn { source: DraftSource::Suffix, tokens: tokens.to_vec(), confidence };
        Router::new(RouterConfig { costs, n_slots }, vec![Box::new(stubborn)])
    }

    fn outcome(tokens: &[u32]) -> StepOutcome {
        StepOutcome { tokens: tokens.to_vec(), n_rows: 1, ..StepOutcome::default() }
    }

    #[test]
    fn dear_rows_carry_likely_drafts_only() {
        let n_drafts = |costs: PassCosts, confidence| {
            router(costs, 0, &[1, 2, 3, 4, 5, 6, 7, 8], confidence).propose(&[0], 1).drafts.nodes().len()
        };
        assert_eq!(n_drafts(PassCosts::linear(1.0), 0.9), 0, "a row that costs a pass must be certain");
        assert_eq!(n_drafts(PassCosts::linear(0.05), 0.9), 8);
        assert_eq!(n_drafts(PassCosts::linear(0.3), 0.6), 2, "0.6 and 0.36 are worth 0.3 of a pass");
        assert_eq!(n_drafts(PassCosts::flat(), 0.3), 8);
    }

    #[test]
    fn drafts_that_are_always_wrong_are_given_up() {
        let mut router = router(PassCosts::linear(0.1), 0, &[1, 2, 3], 0.9);
        assert_eq!(router.propose(&[0], 1).drafts.nodes().len(), 3);
        for _ in 0..60 {
            router.propose(&[0], 1);
            router.observe(&[0, 9], &outcome(&[9]));
        }
        let proposal = router.propose(&[0], 1);
        assert_eq!(proposal.drafts.nodes().len(), 0);
        let words = proposal.decision.expect("the router says why").to_string();
        assert_eq!(words, "ordinary: none of 3 drafts is worth its row");
        // And taken up again when they are right, though they were not in the passes.
        for _ in 0..60 {
            router.propose(&[0], 1);
            router.observe(&[0, 1, 2, 3, 4], &outcome(&[1, 2, 3, 4]));
        }
        assert_eq!(router.propose(&[0], 1).drafts.nodes().len(), 3);
    }

    #[test]
    fn groups_hang_off_the_likeliest_stops() {
        let mut router = router(PassCosts::flat(), 4, &[1, 2], 0.6);
        let proposal = router.propose(&[0], 1);
        let after: Vec<Option<usize>> = proposal.adaptive_groups.iter().map(|group| group.after).collect();
        // Stops at the root with 0.4, at the second with 0.36, at the first with 0.24.
        assert_eq!(after, [None, Some(1), Some(0)]);
        assert!(proposal.adaptive_groups.iter().all(|group| group.n_slots == 4));
    }

    #[test]
    fn there_are_as_many_groups_as_rows_are_worth() {
        let tokens: Vec<u32> = (1..=8).collect();
        let n_groups = |costs| router(costs, 4, &tokens, 0.8).propose(&[0], 1).adaptive_groups.len();
        assert_eq!(n_groups(PassCosts::flat()), 9, "one for each place where the walk may stop");
        assert_eq!(n_groups(PassCosts::linear(0.05)), 4);
        assert_eq!(n_groups(PassCosts::linear(0.5)), 0);
    }

    #[test]
    fn groups_that_bring_nothing_are_only_tried_now_and_then() {
        let slots = Slots::new(vec![rank(&[5.0, 0.0]); 4], 0, None);
        let costs = PassCosts::linear(0.05).with_adaptive(5, 1.4);
        let config = RouterConfig { costs, n_slots: 4 };
        let mut router = Router::new(config, vec![Box::new(crate::SemanticDrafter::default())]);
        let mut n_groups = 0;
        for pass in 0..600 {
            let proposal = router.propose(&[7], 1);
            let has_group = !proposal.adaptive_groups.is_empty();
            n_groups += usize::from(has_group && pass >= 300);
            // The slots say 0, and the target never does.
            let slots = has_group.then(|| slots.clone());
            router.observe(&[7, 1], &StepOutcome { slots, ..outcome(&[1]) });
        }
        assert!((5..40).contains(&n_groups), "{n_groups} groups in 300 passes");
    }

    #[test]
    fn drafters_that_agree_share_a_node_and_children_share_what_there_is() {
        let stubborn = |source, tokens: &[u32], confidence| -> Box<dyn Drafter> {
            Box::new(Stubborn { source, tokens: tokens.to_vec(), confidence })
        };
        let drafters = vec![
            stubborn(DraftSource::Suffix, &[1, 2], 0.9),
            stubborn(DraftSource::Recycling, &[1, 3], 0.7),
            stubborn(DraftSource::Lookup, &[4], 0.9),
        ];
        let mut router = Router::new(RouterConfig { costs: PassCosts::flat(), n_slots: 0 }, drafters);
        let drafts = router.propose(&[0], 1).drafts;
        let (one, four) = (drafts.child(None, 1).expect("1"), drafts.child(None, 4).expect("4"));
        assert_eq!(drafts.nodes().len(), 4);
        assert!((drafts.nodes()[one].confidence - 0.5).abs() < 0.01, "0.9 and 0.9 are more than there is");
        assert_eq!(drafts.nodes()[one].source, DraftSource::Suffix);
        assert_eq!(drafts.nodes()[four].source, DraftSource::Lookup);
    }
}
