//! Drafts from text that has stood before: in the prompt, in other files, in recent completions
//! (SuffixDecoding, arXiv 2411.04975).

use std::collections::VecDeque;

use super::suffix_automaton::{Place, SuffixAutomaton};
use crate::{DraftSource, DraftTree, Drafter, Proposal, SharedDrafter, StepOutcome};

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

/// Most tokens of the documents; those that come last are left out.
const MAX_DOCUMENTS: usize = 3 << 14;
/// Most tokens of recent completions; the oldest go first.
const MAX_COMPLETIONS: usize = 1 << 14;
/// Tokens of documents that are taken in before each pass: some milliseconds at most.
const TOKENS_PER_PASS: usize = 512;
/// Tokens before the cursor that a completion is remembered with.
const N_BEFORE: usize = 16;
/// Tokens of the context that are matched against the corpus.
const N_MATCHED: usize = 32;

/// A text that grows, and says when it has been begun anew.
#[derive(Clone, Debug, Default)]
struct Text {
    automaton: SuffixAutomaton,
    version: u64,
}

impl Text {
    fn push(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.automaton.push(token));
    }

    fn restart(&mut self) {
        *self = Self { automaton: SuffixAutomaton::default(), version: self.version + 1 };
    }
}

/// Other texts to draft from: open files, and recent completions. Those who draft share it.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    documents: Vec<Vec<u32>>,
    /// Documents and tokens of the next that have been taken in.
    n_taken: (usize, usize),
    of_documents: Text,
    completions: VecDeque<Vec<u32>>,
    of_completions: Text,
}

impl Corpus {
    /// Replaces the documents. They are taken in little by little, before the passes that follow.
    pub fn set_documents(&mut self, documents: Vec<Vec<u32>>) {
        if documents == self.documents {
            return;
        }
        // Documents that were added behind those taken in already cost nothing but themselves.
        let (n_whole, n_of_next) = self.n_taken;
        let n_begun = n_whole + usize::from(n_of_next > 0);
        if documents.get(..n_begun) != self.documents.get(..n_begun) {
            self.of_documents.restart();
            self.n_taken = (0, 0);
        }
        self.documents = documents;
    }

    fn take_in(&mut self) {
        let mut n_left = TOKENS_PER_PASS;
        while let Some(document) = self.documents.get(self.n_taken.0) {
            let from = self.n_taken.1;
            let room = MAX_DOCUMENTS.saturating_sub(self.of_documents.automaton.len());
            let n = (document.len() - from).min(n_left).min(room);
            if n == 0 && from < document.len() {
                return;
            }
            self.of_documents.push(&document[from..from + n]);
            n_left -= n;
            self.n_taken.1 += n;
            if self.n_taken.1 == document.len() {
                self.of_documents.push(&[END]);
                self.n_taken = (self.n_taken.0 + 1, 0);
            }
        }
    }

    fn remember(&mut self, completion: Vec<u32>) {
        if self.of_completions.automaton.len() + completion.len() > MAX_COMPLETIONS {
            // Half of them go, so that this stays rare.
            self.completions.drain(..self.completions.len().div_ceil(2));
            self.of_completions.restart();
            for known in &self.completions {
                self.of_completions.push(known);
                self.of_completions.push(&[END]);
            }
        }
        self.of_completions.push(&completion);
        self.of_completions.push(&[END]);
        self.completions.push_back(completion);
    }
}

/// Where a completion stands in a text of the corpus.
#[derive(Clone, Copy, Debug, Default)]
struct PlaceIn {
    place: Place,
    version: u64,
}

impl PlaceIn {
    fn advance(&mut self, text: &Text, recent: &[u32], n_new: usize) {
        let is_same = self.version == text.version;
        let tokens = if is_same { &recent[recent.len() - n_new.min(recent.len())..] } else { recent };
        let start = if is_same { self.place } else { Place::default() };
        self.place = tokens.iter().fold(start, |place, &token| text.automaton.advance(place, token));
        self.version = text.version;
    }
}

/// Drafts from a [`Corpus`].
#[derive(Clone, Debug, Default)]
pub struct CorpusDrafter {
    corpus: SharedDrafter<Corpus>,
    in_documents: PlaceIn,
    in_completions: PlaceIn,
    n_prompt: usize,
    n_seen: usize,
}

impl CorpusDrafter {
    /// Drafts from `corpus`.
    pub fn new(corpus: SharedDrafter<Corpus>) -> Self {
        Self { corpus, ..Self::default() }
    }
}

impl Drafter for CorpusDrafter {
    fn begin(&mut self, context: &[u32]) {
        self.n_prompt = context.len();
        self.n_seen = 0;
        (self.in_documents, self.in_completions) = (PlaceIn::default(), PlaceIn::default());
    }

    fn propose(&mut self, context: &[u32], _n_pending: usize) -> Proposal {
        let mut corpus = self.corpus.lock();
        corpus.take_in();
        // What happened since: the corpus may have changed too, by other completions.
        let recent = &context[context.len().saturating_sub(N_MATCHED)..];
        let n_new = context.len() - self.n_seen;
        self.in_documents.advance(&corpus.of_documents, recent, n_new);
        self.in_completions.advance(&corpus.of_completions, recent, n_new);
        self.n_seen = context.len();
        let texts =
            [(&corpus.of_documents, self.in_documents), (&corpus.of_completions, self.in_completions)];
        let longer = texts.into_iter().rev().max_by_key(|(_, at)| at.place.len);
        let drafts = longer.map(|(text, at)| tree_at(&text.automaton, at.place, DraftSource::Corpus));
        Proposal { drafts: drafts.unwrap_or_default(), ..Proposal::default() }
    }

    fn end(&mut self, context: &[u32]) {
        if context.len() > self.n_prompt {
            let start = self.n_prompt.saturating_sub(N_BEFORE);
            self.corpus.lock().remember(context[start..].to_vec());
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
        let corpus: SharedDrafter<Corpus> = SharedDrafter::default();
        let mut drafter = CorpusDrafter::new(corpus.clone());
        corpus.lock().set_documents(vec![vec![10, 11, 12, 13], vec![20, 21]]);
        drafter.begin(&[5, 10, 11]);
        let drafts = drafter.propose(&[5, 10, 11], 1).drafts;
        assert_eq!(first_path(&drafts), [12, 13], "the end of a text is not drafted");
        assert!(drafts.nodes().iter().all(|node| node.token != END));
        drafter.end(&[5, 10, 11, 77, 78]);
        drafter.begin(&[77]);
        assert_eq!(first_path(&drafter.propose(&[77], 1).drafts), [78]);
        for n in 0..40u32 {
            drafter.begin(&[1]);
            let long: Vec<u32> = (0..4000).map(|i| 1000 + (i * 7 + n) % 5000).collect();
            drafter.end(&[&[1][..], &long].concat());
        }
        assert!(corpus.lock().of_completions.automaton.len() <= MAX_COMPLETIONS + 4100);
        drafter.begin(&[10, 11]);
        assert_eq!(first_path(&drafter.propose(&[10, 11], 1).drafts), [12, 13], "documents stay");
    }

    /// Two completions at a time draft from the same corpus, which changes between their passes.
    #[test]
    fn a_corpus_may_change_under_a_completion() {
        let corpus: SharedDrafter<Corpus> = SharedDrafter::default();
        let (mut one, mut other) = (CorpusDrafter::new(corpus.clone()), CorpusDrafter::new(corpus.clone()));
        corpus.lock().set_documents(vec![(0..3000).collect()]);
        one.begin(&[7, 8]);
        assert_eq!(first_path(&one.propose(&[7, 8], 1).drafts)[..2], [9, 10]);
        corpus.lock().set_documents(vec![vec![8, 9, 70, 71]]);
        other.begin(&[9]);
        assert_eq!(first_path(&other.propose(&[9], 1).drafts), [70, 71]);
        assert_eq!(first_path(&one.propose(&[7, 8, 9], 1).drafts), [70, 71]);
    }

    /// However large the documents are, the work between two passes is bounded, and so is what is kept.
    #[test]
    fn large_documents_are_taken_in_little_by_little() {
        let mut corpus = Corpus::default();
        corpus.set_documents((0..4).map(|n| (n * 40_000..(n + 1) * 40_000).collect()).collect());
        corpus.take_in();
        assert_eq!(corpus.of_documents.automaton.len(), TOKENS_PER_PASS);
        for _ in 0..200 {
            corpus.take_in();
        }
        let n = corpus.of_documents.automaton.len();
        assert!((MAX_DOCUMENTS..MAX_DOCUMENTS + 8).contains(&n), "{n}");
        let version = corpus.of_documents.version;
        corpus.remember(vec![1, 2, 3]);
        assert_eq!((corpus.of_documents.automaton.len(), corpus.of_documents.version), (n, version));
    }
}
