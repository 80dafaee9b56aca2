//! Drafters: what the next forward pass should try.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Decision, DraftSource, DraftTree, PublishedTree, Slots, StepOutcome, argmax};

/// A group of semantic adaptive tokens that drafts ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveGroup {
    /// The node of the drafts that it follows; `None` follows the last committed token.
    pub after: Option<usize>,
    /// Slots of the group that are used; a target with fewer gives as many as it has.
    pub n_slots: usize,
}

impl AdaptiveGroup {
    /// A group with all the slots that the target has.
    pub fn whole(after: Option<usize>) -> Self {
        Self { after, n_slots: usize::MAX }
    }
}

/// What a pass carries besides the tokens it has to compute anyway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// Drafts to verify.
    pub drafts: DraftTree,
    /// Where to draft ahead.
    pub adaptive_groups: Vec<AdaptiveGroup>,
    /// How the choice came about, from drafters that weigh costs.
    pub decision: Option<Decision>,
}

impl Proposal {
    /// Cuts the drafts to `max_depth` tokens. Groups after dropped nodes go with them.
    pub fn truncate_depth(&mut self, max_depth: usize) {
        if self.drafts.nodes().iter().all(|node| node.depth <= max_depth) {
            return;
        }
        let mut new_idx = 0;
        let kept: Vec<Option<usize>> = self
            .drafts
            .nodes()
            .iter()
            .map(|node| {
                (node.depth <= max_depth).then(|| {
                    new_idx += 1;
                    new_idx - 1
                })
            })
            .collect();
        let groups = self.adaptive_groups.iter().filter_map(|group| match group.after {
            None => Some(*group),
            Some(node) => kept[node].map(|node| AdaptiveGroup { after: Some(node), ..*group }),
        });
        self.adaptive_groups = groups.collect();
        self.drafts.truncate_depth(max_depth);
    }
}

/// Proposes drafts and learns from what was accepted. Any drafter is lossless, however bad: it never
/// sees the target's draw before it has proposed.
///
/// `context` holds all tokens so far, prompt and completion.
pub trait Drafter: Send {
    /// A completion begins after `context`.
    fn begin(&mut self, _context: &[u32]) {}

    /// What the next pass should carry besides the `n_pending` last tokens of `context`.
    fn propose(&mut self, context: &[u32], n_pending: usize) -> Proposal;

    /// Told after every pass; `context` ends with the tokens of `outcome`.
    fn observe(&mut self, _context: &[u32], _outcome: &StepOutcome) {}

    /// A pass over `n_rows` rows without adaptive ones took `ms` milliseconds. Only for drafters that weigh
    /// costs; nobody has to say it.
    fn observe_time(&mut self, _n_rows: usize, _ms: f64) {}

    /// The completion has ended.
    fn end(&mut self, _context: &[u32]) {}
}

/// A drafter that several modes use, so that what it has learnt serves all of them.
#[derive(Debug, Default)]
pub struct SharedDrafter<D>(Arc<Mutex<D>>);

impl<D> Clone for SharedDrafter<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D> SharedDrafter<D> {
    /// Shares `drafter`.
    pub fn new(drafter: D) -> Self {
        Self(Arc::new(Mutex::new(drafter)))
    }

    /// The drafter, while nobody else uses it. What a panic left behind is at worst a bad guess.
    pub fn lock(&self) -> MutexGuard<'_, D> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Drafter> Drafter for SharedDrafter<D> {
    fn begin(&mut self, context: &[u32]) {
        self.lock().begin(context);
    }

    fn propose(&mut self, context: &[u32], n_pending: usize) -> Proposal {
        self.lock().propose(context, n_pending)
    }

    fn observe(&mut self, context: &[u32], outcome: &StepOutcome) {
        self.lock().observe(context, outcome);
    }

    fn end(&mut self, context: &[u32]) {
        self.lock().end(context);
    }
}

/// No drafts: one pass, one token.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrdinaryDecoding;

impl Drafter for OrdinaryDecoding {
    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        Proposal::default()
    }
}

/// SDSAT as published (arXiv 2403.18647): a pass that emits one token while a group of semantic
/// adaptive tokens after it drafts the following ones, then a pass that verifies the drafts.
#[derive(Clone, Debug, Default)]
pub struct TwoPassSdsat {
    /// Slots that draft; all that the target has without it.
    pub max_slots: Option<usize>,
    /// A tree of the paper; the chain of the likeliest tokens without it.
    pub tree: Option<PublishedTree>,
    slots: Slots,
}

impl TwoPassSdsat {
    /// With at most so many slots, and a tree of the paper.
    pub fn new(max_slots: Option<usize>, tree: Option<PublishedTree>) -> Self {
        Self { max_slots, tree, slots: Slots::default() }
    }
}

impl Drafter for TwoPassSdsat {
    fn begin(&mut self, _context: &[u32]) {
        self.slots = Slots::default();
    }

    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        let slots = std::mem::take(&mut self.slots);
        let drafts = match self.tree {
            Some(tree) => tree.over(&slots),
            None => {
                // A slot without a finite logit ends the drafts; verification never depends on them.
                let mut chain = DraftTree::default();
                let (mut parent, mut before) = (None, 0);
                for slot in 0..slots.len() {
                    let Some(token) = slots.behind(slot, before).as_ref().and_then(argmax) else { break };
                    parent = Some(chain.push_from(DraftSource::Semantic, token, parent, 1.0));
                    before = token;
                }
                chain
            }
        };
        if !drafts.nodes().is_empty() {
            return Proposal { drafts, ..Proposal::default() };
        }
        let n_slots = self.max_slots.unwrap_or(usize::MAX);
        let adaptive_groups = vec![AdaptiveGroup { after: None, n_slots }];
        Proposal { adaptive_groups, ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        self.slots = outcome.slots.clone().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_drops_groups_of_dropped_nodes() {
        let group = AdaptiveGroup::whole;
        let mut proposal = Proposal {
            drafts: DraftTree::chain(&[1, 2, 3]),
            adaptive_groups: vec![group(None), group(Some(0)), group(Some(2))],
            decision: None,
        };
        proposal.truncate_depth(1);
        assert_eq!(proposal.drafts, DraftTree::chain(&[1]));
        assert_eq!(proposal.adaptive_groups, [group(None), group(Some(0))]);
    }
}
