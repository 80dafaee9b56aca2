//! Drafters: what the next forward pass should try.

use crate::{DraftTree, StepOutcome};

/// What a pass carries besides the tokens it has to compute anyway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// Drafts to verify.
    pub drafts: DraftTree,
    /// Places after which a group of semantic adaptive tokens drafts ahead: a node of `drafts`,
    /// or `None` for the last committed token.
    pub adaptive_groups: Vec<Option<usize>>,
}

impl Proposal {
    /// Cuts the drafts to `max_depth` tokens. Groups after dropped nodes go with them.
    pub fn truncate_depth(&mut self, max_depth: usize) {
        if self.drafts.nodes().iter().all(|node| node.depth <= max_depth) {
            return;
        }
        let nodes = self.drafts.nodes();
        let mut new_idx = 0;
        let kept: Vec<Option<usize>> = nodes
            .iter()
            .map(|node| {
                (node.depth <= max_depth).then(|| {
                    new_idx += 1;
                    new_idx - 1
                })
            })
            .collect();
        self.adaptive_groups = self
            .adaptive_groups
            .iter()
            .filter_map(|group| match group {
                None => Some(None),
                Some(node) => kept[*node].map(Some),
            })
            .collect();
        self.drafts.truncate_depth(max_depth);
    }
}

/// Proposes drafts and learns from what was accepted. Any drafter is lossless, however bad.
pub trait Drafter: Send {
    /// What the next pass should carry. `context` holds all tokens so far: prompt and completion.
    fn propose(&mut self, context: &[u32]) -> Proposal;

    /// Told after every pass.
    fn observe(&mut self, outcome: &StepOutcome);
}

/// No drafts: one pass, one token.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrdinaryDecoding;

impl Drafter for OrdinaryDecoding {
    fn propose(&mut self, _context: &[u32]) -> Proposal {
        Proposal::default()
    }

    fn observe(&mut self, _outcome: &StepOutcome) {}
}

/// SDSAT as published (arXiv 2403.18647): a pass that emits one token while a group of semantic
/// adaptive tokens after it drafts the following ones, then a pass that verifies the drafts.
#[derive(Clone, Debug, Default)]
pub struct TwoPassSdsat {
    drafted: Option<Vec<u32>>,
}

impl Drafter for TwoPassSdsat {
    fn propose(&mut self, _context: &[u32]) -> Proposal {
        match self.drafted.take() {
            Some(tokens) => Proposal { drafts: DraftTree::chain(&tokens), adaptive_groups: vec![] },
            None => Proposal { drafts: DraftTree::default(), adaptive_groups: vec![None] },
        }
    }

    fn observe(&mut self, outcome: &StepOutcome) {
        self.drafted.clone_from(&outcome.adaptive_drafts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_drops_groups_of_dropped_nodes() {
        let mut proposal =
            Proposal { drafts: DraftTree::chain(&[1, 2, 3]), adaptive_groups: vec![None, Some(0), Some(2)] };
        proposal.truncate_depth(1);
        assert_eq!(proposal.drafts, DraftTree::chain(&[1]));
        assert_eq!(proposal.adaptive_groups, [None, Some(0)]);
    }
}
