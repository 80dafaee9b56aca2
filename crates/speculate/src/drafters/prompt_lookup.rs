//! Prompt lookup: the plain baseline of drafting without a model.

use std::collections::HashMap;

use crate::{DraftSource, DraftTree, Drafter, Proposal};

/// Lengths of the n-grams that are looked up, longest first.
const NGRAMS: [usize; 2] = [3, 2];
/// Longest draft in tokens.
const MAX_DRAFT: usize = 8;

/// A chain of what followed the last occurrence of the last three tokens, or else of the last two.
#[derive(Clone, Debug, Default)]
pub struct PromptLookup {
    /// Where the text behind an n-gram starts. The n-gram at the very end is not in it yet.
    continuations: HashMap<Vec<u32>, usize>,
    n_indexed: usize,
}

impl PromptLookup {
    fn index(&mut self, context: &[u32]) {
        for end in self.n_indexed..context.len() {
            for n in NGRAMS.into_iter().filter(|&n| n <= end) {
                self.continuations.insert(context[end - n..end].to_vec(), end);
            }
        }
        self.n_indexed = context.len();
    }
}

impl Drafter for PromptLookup {
    fn begin(&mut self, _context: &[u32]) {
        *self = Self::default();
    }

    fn propose(&mut self, context: &[u32], _n_pending: usize) -> Proposal {
        self.index(context);
        let ngrams = NGRAMS.into_iter().filter(|&n| n <= context.len());
        let found = ngrams.map(|n| (n, &context[context.len() - n..]));
        let found =
            found.filter_map(|(n, ngram)| self.continuations.get(ngram).map(|&start| (n, start))).next();
        let mut drafts = DraftTree::default();
        if let Some((n, start)) = found {
            let mut parent = None;
            for &token in &context[start..context.len().min(start + MAX_DRAFT)] {
                let confidence = if n == NGRAMS[0] { 0.8 } else { 0.6 };
                parent = Some(drafts.push_from(DraftSource::Lookup, token, parent, confidence));
            }
        }
        Proposal { drafts, ..Proposal::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_occurrence_is_continued() {
        let mut drafter = PromptLookup::default();
        drafter.begin(&[]);
        let mut draft = |context: &[u32]| {
            let tree = drafter.propose(context, 1).drafts;
            tree.nodes().iter().map(|node| node.token).collect::<Vec<_>>()
        };
        assert_eq!(draft(&[1, 2, 3]), []);
        assert_eq!(draft(&[1, 2, 3, 4, 2, 3]), [4, 2, 3]);
        assert_eq!(draft(&[1, 2, 3, 4, 2, 3, 5, 2, 3]), [5, 2, 3]);
        assert_eq!(draft(&[1, 2, 3, 4, 2, 3, 5, 2, 3, 4]), [2, 3, 5, 2, 3, 4], "three tokens go first");
    }
}
