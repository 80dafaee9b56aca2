//! Which rows of adaptive tokens hang off a text, and what they see.

use std::ops::Range;

use crate::loss::LossRows;

/// How anchors are chosen.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Anchors {
    /// Anchors in a text, at most.
    pub n: usize,
    /// Share of the groups with a slot that have the next one too: later slots learn from fewer rows (PARD, arXiv
    /// 2504.18583, §3.2). 1 keeps all.
    pub keep_rate: f32,
    /// Share of groups that are told some of their first tokens, and learn the slots behind these only (glancing, arXiv
    /// 2008.07905): what is near comes first. 0 tells none.
    pub glancing: f32,
}

/// Rows of adaptive tokens behind the tokens of one text. A group stands behind its anchor: slot `j` from 0, at position
/// `anchor + 1 + j`, guesses the token at `anchor + 2 + j`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Slot of each row.
    pub slots: Vec<u32>,
    /// Position of each row: that of the token whose successor it guesses.
    pub positions: Vec<u32>,
    /// Tokens that each row guesses.
    pub labels: Vec<u32>,
    /// Tokens before those.
    pub before: Vec<u32>,
    /// Index of the last token that each row sees.
    anchors: Vec<usize>,
    /// The first row of each row's group.
    firsts: Vec<usize>,
}

impl Batch {
    /// Groups behind some of the tokens of a text from the one with the index `first` on.
    pub fn choose(
        tokens: &[u32],
        first: usize,
        n_slots: usize,
        anchors: Anchors,
        random: &mut fastrand::Rng,
    ) -> Self {
        // Behind a slot there must be the token that it guesses.
        let end = tokens.len().saturating_sub(2);
        let mut possible: Vec<usize> = (first..end).collect();
        random.shuffle(&mut possible);
        possible.truncate(anchors.n);
        possible.sort_unstable();
        let mut batch = Self::default();
        for anchor in possible {
            let is_told = anchors.glancing > 0.0 && n_slots > 1 && random.f32() < anchors.glancing;
            let n_told = if is_told { random.usize(1..n_slots) } else { 0 };
            let first = batch.len();
            for slot in n_told..n_slots {
                let is_kept = slot == n_told || random.f32() < anchors.keep_rate;
                if !is_kept || anchor + 2 + slot >= tokens.len() {
                    break;
                }
                batch.slots.push(slot as u32);
                batch.positions.push((anchor + 1 + slot) as u32);
                batch.labels.push(tokens[anchor + 2 + slot]);
                batch.before.push(tokens[anchor + 1 + slot]);
                batch.anchors.push(anchor + n_told);
                batch.firsts.push(first);
            }
        }
        batch
    }

    /// A group behind the token with the index `anchor`, which is not compared with anything.
    pub(crate) fn behind(anchor: usize, n_slots: usize) -> Self {
        Self {
            slots: (0..n_slots as u32).collect(),
            positions: (0..n_slots).map(|slot| (anchor + 1 + slot) as u32).collect(),
            labels: vec![0; n_slots],
            before: vec![0; n_slots],
            anchors: vec![anchor; n_slots],
            firsts: vec![0; n_slots],
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// What a loss is told of them, `labels` being the outputs that they guess.
    pub(crate) fn loss_rows<'a>(&'a self, labels: &'a [u32]) -> LossRows<'a> {
        LossRows { slots: &self.slots, labels, firsts: &self.firsts }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Rows of a group each, in order.
    pub fn groups(&self) -> Vec<std::ops::Range<usize>> {
        let starts: Vec<usize> = (0..self.len()).filter(|&row| self.firsts[row] == row).collect();
        let ends = starts.iter().skip(1).copied().chain([self.len()]);
        starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
    }

    /// What each row sees of `n_tokens` tokens and, behind them, the rows of the batch: the text up to its anchor, and its
    /// own group up to itself.
    pub(crate) fn visible(&self, n_tokens: usize) -> Vec<[Range<usize>; 2]> {
        let of_row = |row: usize| [0..self.anchors[row] + 1, n_tokens + self.firsts[row]..n_tokens + row + 1];
        (0..self.len()).map(of_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_see_their_anchor_and_their_group() {
        let tokens: Vec<u32> = (100..110).collect();
        let anchors = Anchors { n: 100, keep_rate: 1.0, glancing: 0.0 };
        let batch = Batch::choose(&tokens, 4, 2, anchors, &mut fastrand::Rng::with_seed(1));
        // The last anchor is the one whose first slot guesses the last token.
        assert_eq!(batch.groups(), [0..2, 2..4, 4..6, 6..7]);
        assert_eq!(batch.positions, [5, 6, 6, 7, 7, 8, 8]);
        assert_eq!(batch.labels, [106, 107, 107, 108, 108, 109, 109]);
        assert_eq!(batch.before, [105, 106, 106, 107, 107, 108, 108]);
        let visible = batch.visible(10);
        assert_eq!(visible.len(), 7);
        assert_eq!((&visible[3], &visible[0]), (&[0..6, 12..14], &[0..5, 10..11]));
        let told = Anchors { glancing: 1.0, ..anchors };
        let batch = Batch::choose(&tokens, 4, 2, told, &mut fastrand::Rng::with_seed(1));
        // Of two slots the second is left, behind the token that the first would have guessed.
        assert_eq!((&batch.slots[..], &batch.positions[..]), (&[1, 1, 1][..], &[6, 7, 8][..]));
        assert_eq!(batch.labels, [107, 108, 109]);
        assert_eq!((&batch.visible(10)[1], batch.groups().len()), (&[0..7, 11..12], 3));
        let sparse = Anchors { n: 100, keep_rate: 0.0, glancing: 0.0 };
        let batch = Batch::choose(&tokens, 0, 3, sparse, &mut fastrand::Rng::with_seed(1));
        assert!(batch.slots.iter().all(|&slot| slot == 0));
        assert!(Batch::choose(&tokens[..2], 0, 4, anchors, &mut fastrand::Rng::with_seed(1)).is_empty());
    }
}
