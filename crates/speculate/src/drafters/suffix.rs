//! Drafts from text that has stood before: in the prompt, in other files, in recent completions
//! (SuffixDecoding, arXiv 2411.04975).

use std::collections::VecDeque;

use super::suffix_automaton::{Place, SuffixAutomaton};
use crate::{DraftSource, DraftTree, Drafter, Proposal, StepOutcome};

/// Most nodes of a tree.
const MAX_NODES: usize = 24;
/// Deepest draft in tokens.
const MAX_DEPTH: usize = 16;
/// Shorter suffixes that are looked at besides the longest.
const N_SUFFIXES: usize = 3;
/// Survival below which a draft ends.
const MIN_SURVIVAL: f32 = 0.03;

/// Ends a text of the corpus. No prompt holds it, so no match runs across.
const END: u32 = u32::MAX;

/// The likeliest continuations of what stands at `place`, and of its shorter suffixes, best first.
fn tree_at(automaton: &SuffixAutomaton, place: Place, source: DraftSource) -> DraftTree {
    let mut tree = DraftTree::default();
    let mut open: Vec<(f32, Option<usize>, usize, Place)> = Vec::new();
    let suffixes = std::iter::successors(Some(place), |&place| automaton.shorter(place));
    open.extend(suffixes.take(N_SUFFIXES).filter(|place| place.len > 0).map(|place| (1.0, None, 0, place)));
    // The longest suffix is the first of those with equal survival, and its drafts are kept where
    // shorter ones say the same.
    while tree.nodes().len() < MAX_NODES {
        let best = (0..open.len()).reduce(|best, idx| if open[idx].0 > open[best].0 { idx } else { best });
        let Some((survival, parent, depth, place)) = best.map(|best| open.remove(best)) else { break };
        if depth == MAX_DEPTH {
            continue;
        }
        let total: u32 = automaton.continuations(place).map(|(_, count, _)| count).sum();
        // What follows the end of a text is another text.
        let mut next: Vec<_> = automaton.continuations(place).filter(|&(token, ..)| token != END).collect();
        next.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        for (token, count, next_place) in next.into_iter().take(3) {
            // Longer matches and commoner continuations are likelier; what that means in numbers is
            // for the calibration to find out.
            let trust = 1.0 - 0.6f32.powi(place.len as i32);
            let confidence = trust * (count as f32 + 0.2) / (total as f32 + 0.4);
            let survival = survival * confidence;
            if survival >= MIN_SURVIVAL && tree.nodes().len() < MAX_NODES {
                let is_new = tree.child(parent, token).is_none();
                let node = tree.push_from(source, token, parent, confidence);
                if is_new {
                    open.push((survival, Some(node), depth + 1, next_place));
                }
            }
        }
    }
    tree
}

/// Drafts from the prompt (text before and after the cursor) and the completion so far.
#[derive(Clone, Debug, Default)]
pub struct SuffixDrafter {
    automaton: SuffixAutomaton,
    place: Place,
}

impl SuffixDrafter {
    fn push(&mut self, token: u32) {
        let place = self.automaton.advance(self.place, token);
        self.automaton.push(token);
        self.place = self.automaton.settle(place);
    }
}

impl Drafter for SuffixDrafter {
    fn begin(&mut self, context: &[u32]) {
        *self = Self::default();
        context.iter().for_each(|&token| self.push(token));
    }

    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        let drafts = tree_at(&self.automaton, self.place, DraftSource::Suffix);
        Proposal { drafts, ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        outcome.tokens.iter().for_each(|&token| self.push(token));
    }
}

/// Most tokens of the corpus; the oldest completions go first.
const MAX_CORPUS: usize = 1 << 16;
/// Tokens before the cursor that a completion is remembered with.
const N_BEFORE: usize = 16;
/// Tokens of the context that are matched against the corpus.
const N_MATCHED: usize = 32;

/// Drafts from other texts: open files, and recent completions.
#[derive(Clone, Debug, Default)]
pub struct CorpusDrafter {
    automaton: SuffixAutomaton,
    place: Place,
    documents: Vec<Vec<u32>>,
    completions: VecDeque<Vec<u32>>,
    n_prompt: usize,
}

impl CorpusDrafter {
    /// Replaces the documents.
    pub fn set_documents(&mut self, documents: Vec<Vec<u32>>) {
        if documents != self.documents {
            self.documents = documents;
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        self.automaton = SuffixAutomaton::default();
        let texts = self.documents.iter().chain(&self.completions);
        for text in texts {
            text.iter().chain(&[END]).for_each(|&token| self.automaton.push(token));
        }
    }

    fn remember(&mut self, completion: Vec<u32>) {
        let is_full = self.automaton.len() + completion.len() > MAX_CORPUS;
        completion.iter().chain(&[END]).for_each(|&token| self.automaton.push(token));
        self.completions.push_back(completion);
        if is_full {
            // Half of the completions go, so that rebuilding stays rare.
            self.completions.drain(..self.completions.len().div_ceil(2));
            self.rebuild();
        }
    }
}

impl Drafter for CorpusDrafter {
    fn begin(&mut self, context: &[u32]) {
        self.n_prompt = context.len();
        let recent = &context[context.len().saturating_sub(N_MATCHED)..];
        self.place =
            recent.iter().fold(Place::default(), |place, &token| self.automaton.advance(place, token));
    }

    fn propose(&mut self, _context: &[u32], _n_pending: usize) -> Proposal {
        let drafts = tree_at(&self.automaton, self.place, DraftSource::Corpus);
        Proposal { drafts, ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        let advance = |place, &token: &u32| self.automaton.advance(place, token);
        self.place = outcome.tokens.iter().fold(self.place, advance);
    }

    fn end(&mut self, context: &[u32]) {
        if context.len() > self.n_prompt {
            let start = self.n_prompt.saturating_sub(N_BEFORE);
            self.remember(context[start..].to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_path(tree: &DraftTree) -> Vec<u32> {
        let mut path = Vec::new();
        let mut parent = None;
        while let Some(idx) = tree.nodes().iter().position(|node| node.parent == parent) {
            path.push(tree.nodes()[idx].token);
            parent = Some(idx);
        }
        path
    }

    #[test]
    fn what_followed_before_is_drafted() {
        let mut drafter = SuffixDrafter::default();
        drafter.begin(&[1, 2, 3, 4, 5, 6, 9, 2, 3]);
        assert_eq!(first_path(&drafter.propose(&[], 1).drafts)[..3], [4, 5, 6]);
        drafter.begin(&[1, 2, 3]);
        assert_eq!(drafter.propose(&[], 1).drafts, DraftTree::default());
    }

    #[test]
    fn the_corpus_holds_documents_and_completions_and_forgets_the_oldest() {
        let mut drafter = CorpusDrafter::default();
        drafter.set_documents(vec![vec![10, 11, 12, 13], vec![20, 21]]);
        drafter.begin(&[5, 10, 11]);
        let drafts = drafter.propose(&[], 1).drafts;
        assert_eq!(first_path(&drafts), [12, 13], "the end of a text is not drafted");
        assert!(drafts.nodes().iter().all(|node| node.token != END));
        drafter.end(&[5, 10, 11, 77, 78]);
        drafter.begin(&[77]);
        assert_eq!(first_path(&drafter.propose(&[], 1).drafts), [78]);
        for n in 0..40u32 {
            drafter.begin(&[1]);
            let long: Vec<u32> = (0..4000).map(|i| 1000 + (i * 7 + n) % 5000).collect();
            drafter.end(&[&[1][..], &long].concat());
        }
        assert!(drafter.automaton.len() <= MAX_CORPUS + 4100);
        drafter.begin(&[10, 11]);
        assert_eq!(first_path(&drafter.propose(&[], 1).drafts), [12, 13], "documents stay");
    }
}
