//! Token recycling: what the target named as successors of a token, drafted when the token comes again
//! (arXiv 2408.08696).

use std::collections::HashMap;

use crate::{DraftSource, DraftTree, Drafter, N_RANKED, Proposal, StepOutcome, ranked_probabilities};

/// Most nodes of a tree.
const MAX_NODES: usize = 16;
/// Deepest draft in tokens.
const MAX_DEPTH: usize = 5;
/// Survival below which a draft ends.
const MIN_SURVIVAL: f32 = 0.05;
/// Most pairs of tokens that are remembered.
const MAX_PAIRS: usize = 1 << 17;
/// What a saved table starts with: a name and a version.
const MAGIC: &[u8; 8] = b"SATREC1\n";
/// Bytes of a saved entry: two tokens, and the successors with their probabilities in 1/255.
const ENTRY_BYTES: usize = 8 + N_RANKED * 5;

/// Successors of a token or a pair, likeliest first, with their probabilities in 1/255.
type Successors = [(u32, u8); N_RANKED];

/// Remembers the successors of each token, and of each pair of tokens, which are much better guesses
/// where the pair has been seen. Rejected drafts teach as much as accepted ones: their rows were
/// computed too.
#[derive(Clone, Debug, Default)]
pub struct TokenRecycling {
    after_token: HashMap<u32, Successors>,
    after_pair: HashMap<(u32, u32), Successors>,
}

/// In the place of the first of two tokens for an entry of a single token.
const ANY: u32 = u32::MAX;

impl TokenRecycling {
    fn successors(&self, before: Option<u32>, token: u32) -> Option<(&Successors, bool)> {
        let of_pair = before.and_then(|before| self.after_pair.get(&(before, token)));
        of_pair.map(|successors| (successors, true)).or_else(|| Some((self.after_token.get(&token)?, false)))
    }

    fn tree(&self, before: Option<u32>, token: u32) -> DraftTree {
        let mut tree = DraftTree::default();
        let mut open = vec![(1.0f32, None, before, token, 0)];
        while tree.nodes().len() < MAX_NODES {
            let best =
                (0..open.len()).reduce(|best, idx| if open[idx].0 > open[best].0 { idx } else { best });
            let Some((survival, parent, before, token, depth)) = best.map(|best| open.swap_remove(best))
            else {
                break;
            };
            let Some((successors, is_pair)) = self.successors(before, token) else { continue };
            for &(next, probability) in successors {
                let trust = if is_pair { 1.0 } else { 0.6 };
                let confidence = trust * f32::from(probability) / 255.0;
                let survival = survival * confidence;
                if survival < MIN_SURVIVAL || tree.nodes().len() == MAX_NODES {
                    break;
                }
                let node = tree.push_from(DraftSource::Recycling, next, parent, confidence);
                if depth + 1 < MAX_DEPTH {
                    open.push((survival, Some(node), Some(token), next, depth + 1));
                }
            }
        }
        tree
    }

    /// Number of tokens and pairs whose successors are known.
    pub fn len(&self) -> usize {
        self.after_token.len() + self.after_pair.len()
    }

    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known, in bytes for a file.
    pub fn save(&self) -> Vec<u8> {
        let single = self.after_token.iter().map(|(&token, successors)| ((ANY, token), successors));
        let pairs = self.after_pair.iter().map(|(&pair, successors)| (pair, successors));
        let mut bytes = MAGIC.to_vec();
        for ((before, token), successors) in single.chain(pairs) {
            bytes.extend(before.to_le_bytes());
            bytes.extend(token.to_le_bytes());
            for (next, probability) in successors {
                bytes.extend(next.to_le_bytes());
                bytes.push(*probability);
            }
        }
        bytes
    }

    /// What was saved. `None` when the bytes are something else. Tokens outside a vocabulary of
    /// `vocabulary` are left out.
    pub fn load(bytes: &[u8], vocabulary: usize) -> Option<Self> {
        let entries = bytes.strip_prefix(MAGIC)?;
        if !entries.len().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let is_token = |token: u32| (token as usize) < vocabulary;
        let mut table = Self::default();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (before, token) = (number(entry), number(&entry[4..]));
            let mut successors = [(0, 0); N_RANKED];
            for (successor, bytes) in successors.iter_mut().zip(entry[8..].chunks_exact(5)) {
                *successor = (number(bytes), bytes[4]);
            }
            let is_known = |&(next, probability): &(u32, u8)| is_token(next) || probability == 0;
            if !is_token(token) || !successors.iter().all(is_known) {
                continue;
            }
            if before == ANY {
                table.after_token.insert(token, successors);
            } else if table.after_pair.len() < MAX_PAIRS {
                table.after_pair.insert((before, token), successors);
            }
        }
        Some(table)
    }
}

impl Drafter for TokenRecycling {
    fn propose(&mut self, context: &[u32], _n_pending: usize) -> Proposal {
        let Some((&token, rest)) = context.split_last() else { return Proposal::default() };
        Proposal { drafts: self.tree(rest.last().copied(), token), ..Proposal::default() }
    }

    fn observe(&mut self, _context: &[u32], outcome: &StepOutcome) {
        for row in &outcome.rows {
            let probabilities = ranked_probabilities(&row.ranked);
            let mut successors = [(0, 0); N_RANKED];
            for (successor, (&(token, _), probability)) in
                successors.iter_mut().zip(row.ranked.iter().zip(probabilities))
            {
                let probability = (probability * 255.0) as u8;
                *successor = if probability > 0 { (token, probability) } else { (0, 0) };
            }
            if successors[0].1 == 0 {
                continue;
            }
            self.after_token.insert(row.token, successors);
            if let Some(before) = row.before {
                if self.after_pair.len() >= MAX_PAIRS {
                    // Rare, and what is lost is learnt again.
                    self.after_pair.clear();
                }
                self.after_pair.insert((before, row.token), successors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{VerifiedRow, rank};

    fn taught() -> TokenRecycling {
        let mut table = TokenRecycling::default();
        let row = |before, token, p: [f32; 4]| VerifiedRow { before, token, ranked: rank(&p.map(f32::ln)) };
        let rows = vec![
            row(Some(3), 1, [0.1, 0.1, 0.7, 0.1]),
            row(Some(2), 1, [0.1, 0.1, 0.2, 0.6]),
            row(Some(1), 2, [0.9, 0.05, 0.03, 0.02]),
        ];
        table.observe(&[], &StepOutcome { rows, ..StepOutcome::default() });
        table
    }

    #[test]
    fn successors_are_drafted_by_pair_and_else_by_token() {
        let mut table = taught();
        let first =
            |table: &mut TokenRecycling, context: &[u32]| table.propose(context, 1).drafts.nodes()[0].token;
        assert_eq!(first(&mut table, &[3, 1]), 2);
        assert_eq!(first(&mut table, &[2, 1]), 3);
        assert_eq!(first(&mut table, &[0, 1]), 3, "the latest of any pair");
        let tree = table.propose(&[3, 1], 1).drafts;
        let child = tree.child(Some(0), 0).expect("a second token");
        assert_eq!(tree.nodes()[child].depth, 2);
        assert_eq!(table.propose(&[0], 1).drafts, DraftTree::default());
        assert_eq!(table.propose(&[], 1).drafts, DraftTree::default());
    }

    #[test]
    fn what_is_saved_comes_back_and_other_bytes_do_not() {
        let table = taught();
        let bytes = table.save();
        let loaded = TokenRecycling::load(&bytes, 4).expect("a table");
        assert_eq!((loaded.after_token, loaded.after_pair), (table.after_token, table.after_pair));
        assert!(TokenRecycling::load(&bytes, 3).expect("a table").len() < 5, "tokens outside are left out");
        assert!(TokenRecycling::load(b"", 4).is_none());
        assert!(TokenRecycling::load(&bytes[..bytes.len() - 1], 4).is_none());
        assert!(TokenRecycling::load(&[&b"NOTHING\n"[..], &bytes[8..]].concat(), 4).is_none());
    }
}
