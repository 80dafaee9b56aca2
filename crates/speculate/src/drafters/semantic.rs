//! Drafts from the slots of a group of semantic adaptive tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::{
    DraftSource, DraftTree, Drafter, N_RANKED, Proposal, Ranked, Slots, StepOutcome, ranked_probabilities,
};

/// Most nodes of a tree.
const MAX_NODES: usize = 32;
/// Survival below which a node is not worth looking at.
const MIN_SURVIVAL: f32 = 0.01;

/// The tree of the likeliest paths through the slots, best first (DDTree, arXiv 2604.12989). The survival of a node is
/// the product of its ranks' probabilities; what a slot says depends on its parent where the target has a Markov head, and
/// on nothing else where it has none.
#[derive(Clone, Debug, Default)]
pub struct SemanticDrafter {
    slots: Slots,
}

#[derive(Clone, Copy)]
struct Candidate {
    survival: f32,
    parent: Option<usize>,
    /// Survival of the parent.
    parent_survival: f32,
    slot: usize,
    rank: usize,
    /// Which of the things that slots said it is of.
    said: usize,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.survival.total_cmp(&other.survival).then(other.slot.cmp(&self.slot))
    }
}

/// What a slot says behind a node, and how likely that is.
struct Said {
    ranked: Ranked,
    probabilities: [f32; N_RANKED],
}

impl SemanticDrafter {
    fn tree(&self) -> DraftTree {
        let mut tree = DraftTree::default();
        let mut heap = BinaryHeap::new();
        let mut said: Vec<Said> = Vec::new();
        let mut next =
            Candidate { survival: 1.0, parent: None, parent_survival: 1.0, slot: 0, rank: 0, said: 0 };
        let mut before = 0;
        loop {
            if let Some(ranked) = self.slots.behind(next.slot, before) {
                said.push(Said { ranked, probabilities: ranked_probabilities(&ranked) });
                consider(&mut heap, &said, Candidate { said: said.len() - 1, ..next });
            }
            let Some(best) = heap.pop().filter(|_| tree.nodes().len() < MAX_NODES) else { break };
            before = said[best.said].ranked[best.rank].0;
            let confidence = best.survival / best.parent_survival;
            let node = tree.push_from(DraftSource::Semantic, before, best.parent, confidence);
            consider(&mut heap, &said, Candidate { rank: best.rank + 1, ..best });
            next = Candidate {
                parent: Some(node),
                parent_survival: best.survival,
                slot: best.slot + 1,
                rank: 0,
                ..best
            };
        }
        tree
    }
}

/// Puts `candidate` on the heap where it is worth looking at. Its survival is that of its parent and its rank.
fn consider(heap: &mut BinaryHeap<Candidate>, said: &[Said], candidate: Candidate) {
    let probability = said[candidate.said].probabilities.get(candidate.rank).copied().unwrap_or(0.0);
    let survival = candidate.parent_survival * probability;
    // NaN is not above anything.
    if survival > MIN_SURVIVAL {
        heap.push(Candidate { survival, ..candidate });
    }
}

impl Drafter for SemanticDrafter {
    fn begin(&mut self, _context: &[u32]) {
        self.slots = Slots::default();
    }

    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        Proposal { drafts: self.tree(), ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        self.slots = outcome.slots.clone().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{MarkovHead, rank};

    fn paths(drafter: &SemanticDrafter) -> Vec<(u32, Option<usize>)> {
        drafter.tree().nodes().iter().map(|node| (node.token, node.parent)).collect()
    }

    #[test]
    fn paths_come_in_the_order_of_their_survival() {
        let slot = |p: [f32; 3]| rank(&p.map(f32::ln));
        let slots = vec![slot([0.55, 0.3, 0.15]), slot([0.1, 0.8, 0.1])];
        let drafter = SemanticDrafter { slots: Slots::new(slots, 0, None) };
        // .55, .44, .3, .24, .15, .12, then .055 twice, .03 twice, .015 twice.
        let first = [(0, None), (1, Some(0)), (1, None), (1, Some(2)), (2, None), (1, Some(4))];
        assert_eq!(paths(&drafter)[..6], first);
        let tree = drafter.tree();
        assert_eq!(tree.nodes().len(), 12);
        assert!((tree.nodes()[3].confidence - 0.8).abs() < 1e-5);
    }

    #[test]
    fn children_depend_on_their_parent_where_the_target_says_how() {
        let slot = |p: [f32; 3]| rank(&p.map(f32::ln));
        // Behind 1 comes 2: sixteen times as likely as without it.
        let before = [0.0, 1.0, 0.0];
        let after = [0.0, 0.0, 16.0f32.ln()];
        let head = Arc::new(MarkovHead::new(1, &before, &after, None));
        let slots = vec![slot([0.6, 0.4, 0.0]), slot([0.75, 0.125, 0.125])];
        let drafter = SemanticDrafter { slots: Slots::new(slots, 0, Some(head)) };
        // .6, .45, .4, then .4 * (2 / 2.875) = .278 behind 1, where 0 is .104.
        assert_eq!(paths(&drafter)[..4], [(0, None), (0, Some(0)), (1, None), (2, Some(2))]);
        let likelihood = drafter.tree().nodes()[3].confidence;
        assert!((likelihood - 2.0 / 2.875).abs() < 0.01, "{likelihood}");
    }

    #[test]
    fn slots_without_finite_logits_draft_nothing() {
        let slots = Slots::new(vec![rank(&[f32::NAN, 1.0]), rank(&[1.0])], 0, None);
        assert_eq!(SemanticDrafter { slots }.tree(), DraftTree::default());
    }
}
