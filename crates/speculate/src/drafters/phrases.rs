//! Phrases from the rejected tails of drafts (Ouroboros, arXiv 2402.13720, §3.3).

use std::collections::{HashMap, VecDeque};

use crate::{DraftSource, DraftTree, Drafter, Proposal, StepOutcome, argmax};

/// Tokens of a phrase behind the one that finds it.
const MAX_LEN: usize = 6;
/// Shortest phrase that is kept.
const MIN_LEN: usize = 2;
/// Phrases for a token, newest first.
const PER_TOKEN: usize = 3;
/// Most tokens with phrases.
const MAX_TOKENS: usize = 1 << 14;

/// A draft that was rejected because of its first token often holds a phrase that the target agrees
/// with further down: the rows behind a rejection are computed anyway. Those phrases are
/// remembered by the token before them.
#[derive(Clone, Debug, Default)]
pub struct PhrasePool {
    phrases: HashMap<u32, VecDeque<Vec<u32>>>,
}

impl PhrasePool {
    fn remember(&mut self, token: u32, phrase: &[u32]) {
        if phrase.len() < MIN_LEN {
            return;
        }
        if self.phrases.len() >= MAX_TOKENS && !self.phrases.contains_key(&token) {
            // Rare, and what is lost is learnt again.
            self.phrases.clear();
        }
        let phrases = self.phrases.entry(token).or_default();
        phrases.retain(|known| known != phrase);
        phrases.push_front(phrase.to_vec());
        phrases.truncate(PER_TOKEN);
    }
}

impl Drafter for PhrasePool {
    fn propose(&mut self, context: &[u32], _n_pending: usize) -> Proposal {
        let mut drafts = DraftTree::default();
        let phrases = context.last().and_then(|token| self.phrases.get(token));
        for (age, phrase) in phrases.into_iter().flatten().enumerate() {
            let mut parent = None;
            for &token in phrase {
                let confidence = if parent.is_some() { 0.7 } else { [0.5, 0.3, 0.2][age.min(2)] };
                parent = Some(drafts.push_from(DraftSource::Phrases, token, parent, confidence));
            }
        }
        Proposal { drafts, ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        let nodes = outcome.drafts.nodes();
        // Rows are the last committed token's, then those of the nodes in order.
        for (idx, node) in nodes.iter().enumerate() {
            if outcome.accepted_path.contains(&idx) {
                continue;
            }
            // Down from a rejected node for as long as the target agrees with what was drafted.
            let mut phrase = Vec::new();
            let mut at = Some(idx);
            while let Some(node_idx) = at.filter(|_| phrase.len() < MAX_LEN) {
                let Some(next) = outcome.rows.get(node_idx + 1).and_then(|row| argmax(&row.ranked)) else {
                    break;
                };
                phrase.push(next);
                at = outcome.drafts.child(Some(node_idx), next);
            }
            self.remember(node.token, &phrase);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VerifiedRow, rank};

    #[test]
    fn the_tail_of_a_rejected_draft_comes_again() {
        let mut pool = PhrasePool::default();
        let likeliest = |token: usize| {
            let mut logits = [0.0; 10];
            logits[token] = 5.0;
            rank(&logits)
        };
        // Drafted 4 5 6 after 1; the target wants 9 after 1, and 5, 6, 7 after 4, 5, 6.
        let row = |token, next| VerifiedRow { before: None, token, ranked: likeliest(next) };
        let outcome = StepOutcome {
            drafts: DraftTree::chain(&[4, 5, 6]),
            rows: vec![row(1, 9), row(4, 5), row(5, 6), row(6, 7)],
            tokens: vec![9],
            ..StepOutcome::default()
        };
        pool.observe(&[1, 9], &outcome);
        let tokens = |pool: &mut PhrasePool, context: &[u32]| -> Vec<u32> {
            pool.propose(context, 1).drafts.nodes().iter().map(|node| node.token).collect()
        };
        assert_eq!(tokens(&mut pool, &[3, 4]), [5, 6, 7]);
        assert_eq!(tokens(&mut pool, &[5]), [6, 7]);
        assert_eq!(tokens(&mut pool, &[6]), [], "one token is no phrase");
        assert_eq!(tokens(&mut pool, &[1]), []);
    }
}
