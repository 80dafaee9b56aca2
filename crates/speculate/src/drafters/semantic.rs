//! Drafts from the slots of a group of semantic adaptive tokens.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::{DraftSource, DraftTree, Drafter, Proposal, Ranked, StepOutcome, ranked_probabilities};

/// Most nodes of a tree.
const MAX_NODES: usize = 32;
/// Survival below which a node is not worth looking at.
const MIN_SURVIVAL: f32 = 0.01;

/// The tree of the likeliest paths through the slots, best first. Slots predict independently, so the
/// survival of a node is the product of its ranks' probabilities (DDTree, arXiv 2604.12989).
#[derive(Clone, Debug, Default)]
pub struct SemanticDrafter {
    slots: Vec<Ranked>,
}

struct Candidate {
    survival: f32,
    parent: Option<usize>,
    /// Survival of the parent.
    parent_survival: f32,
    slot: usize,
    rank: usize,
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

impl SemanticDrafter {
    fn tree(&self) -> DraftTree {
        let probabilities: Vec<_> = self.slots.iter().map(ranked_probabilities).collect();
        let mut tree = DraftTree::default();
        let mut heap = BinaryHeap::new();
        let consider =
            |heap: &mut BinaryHeap<Candidate>, parent, parent_survival: f32, slot: usize, rank: usize| {
                let probability =
                    probabilities.get(slot).and_then(|ranks| ranks.get(rank)).copied().unwrap_or(0.0);
                let survival = parent_survival * probability;
                // NaN is not above anything.
                if survival > MIN_SURVIVAL {
                    heap.push(Candidate { survival, parent, parent_survival, slot, rank });
                }
            };
        consider(&mut heap, None, 1.0, 0, 0);
        while let Some(Candidate { survival, parent, parent_survival, slot, rank }) = heap.pop() {
            if tree.nodes().len() == MAX_NODES {
                break;
            }
            let token = self.slots[slot][rank].0;
            let node = tree.push_from(DraftSource::Semantic, token, parent, survival / parent_survival);
            consider(&mut heap, parent, parent_survival, slot, rank + 1);
            consider(&mut heap, Some(node), survival, slot + 1, 0);
        }
        tree
    }
}

impl Drafter for SemanticDrafter {
    fn begin(&mut self, _context: &[u32]) {
        self.slots.clear();
    }

    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        Proposal { drafts: self.tree(), ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        self.slots.clone_from(outcome.slots.as_ref().unwrap_or(&Vec::new()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank;

    #[test]
    fn paths_come_in_the_order_of_their_survival() {
        let slot = |p: [f32; 3]| rank(&p.map(f32::ln));
        let drafter = SemanticDrafter { slots: vec![slot([0.55, 0.3, 0.15]), slot([0.1, 0.8, 0.1])] };
        let tree = drafter.tree();
        let paths: Vec<_> = tree.nodes().iter().map(|node| (node.token, node.parent)).collect();
        // .55, .44, .3, .24, .15, .12, then .055 twice, .03 twice, .015 twice.
        assert_eq!(paths[..6], [(0, None), (1, Some(0)), (1, None), (1, Some(2)), (2, None), (1, Some(4))]);
        assert_eq!(tree.nodes().len(), 12);
        assert!((tree.nodes()[3].confidence - 0.8).abs() < 1e-5);
    }

    #[test]
    fn slots_without_finite_logits_draft_nothing() {
        let drafter = SemanticDrafter { slots: vec![rank(&[f32::NAN, 1.0]), rank(&[1.0])] };
        assert_eq!(drafter.tree(), DraftTree::default());
    }
}
