//! What a draft owes to the token before it.

use std::sync::Arc;

use crate::Ranked;

/// Slots of a group draft at once: none sees the token that another's draft stands behind. A Markov head makes up for it
/// (DSpark): behind a token `x` the logit of `c` is raised by `before[x] · after[c]`, low-rank factors of a table over all
/// pairs. Only drafts depend on it.
///
/// Numbers are kept in eight bits, with a scale for each token: what is raised is a guess.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkovHead {
    rank: usize,
    before: Factors,
    after: Factors,
    /// The token of the row of `after` behind those of the first tokens, where there is one.
    end: Option<u32>,
}

/// `[n_tokens, rank]`, in eight bits.
#[derive(Clone, Debug, PartialEq)]
struct Factors {
    numbers: Vec<i8>,
    scales: Vec<f32>,
}

impl Factors {
    fn new(values: &[f32], rank: usize) -> Self {
        let largest = |row: &[f32]| row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scales: Vec<f32> = values.chunks_exact(rank).map(|row| largest(row) / 127.0).collect();
        let inverse = |scale: f32| if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let rows = values.chunks_exact(rank).zip(&scales);
        let numbers = rows.flat_map(|(row, &scale)| {
            row.iter().map(move |value| (value * inverse(scale)).round().clamp(-127.0, 127.0) as i8)
        });
        Self { numbers: numbers.collect(), scales }
    }

    /// The numbers of a token, and what they are multiplied by.
    fn of(&self, token: u32, rank: usize) -> Option<(&[i8], f32)> {
        let scale = *self.scales.get(token as usize)?;
        Some((&self.numbers[token as usize * rank..][..rank], scale))
    }
}

impl MarkovHead {
    /// Factors of the first tokens of a vocabulary, `[n_tokens, rank]` each; behind others, and for others, nothing is
    /// raised. Where `end` is a token that ends a text, `after` has its row behind those of the first.
    ///
    /// # Panics
    /// When the factors are no rows of `rank`, or not as many as that.
    pub fn new(rank: usize, before: &[f32], after: &[f32], end: Option<u32>) -> Self {
        let of_end = end.map_or(0, |_| rank);
        assert!(
            rank > 0 && before.len() + of_end == after.len() && before.len().is_multiple_of(rank),
            "rows of factors"
        );
        Self { rank, before: Factors::new(before, rank), after: Factors::new(after, rank), end }
    }

    /// By how much the logit of `after` is raised behind `before`.
    pub fn raise(&self, before: u32, after: u32) -> f32 {
        let Some((x, of_x)) = self.before.of(before, self.rank) else { return 0.0 };
        let n_first = self.before.scales.len() as u32;
        let row = match after {
            end if self.end == Some(end) => n_first,
            first if first < n_first => first,
            _ => return 0.0,
        };
        let Some((c, of_c)) = self.after.of(row, self.rank) else { return 0.0 };
        let product: i32 = x.iter().zip(c).map(|(&x, &c)| i32::from(x) * i32::from(c)).sum();
        product as f32 * of_x * of_c
    }
}

/// What the slots of an adaptive group say of the tokens behind those that a step emitted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    ranked: Vec<Ranked>,
    /// The token that the first slot's stands behind.
    before: u32,
    head: Option<Arc<MarkovHead>>,
}

impl Slots {
    /// Slots whose first drafts the token behind `before`.
    pub fn new(ranked: Vec<Ranked>, before: u32, head: Option<Arc<MarkovHead>>) -> Self {
        Self { ranked, before, head }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranked.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranked.is_empty()
    }

    /// What slot `slot` says behind the draft `parent` of the slot before; the first stands behind the last token that
    /// was emitted, whatever `parent` is. `None` when there is no such slot.
    pub fn behind(&self, slot: usize, parent: u32) -> Option<Ranked> {
        let mut ranked = *self.ranked.get(slot)?;
        // What is NaN anywhere drafts nothing.
        let Some(head) = self.head.as_ref().filter(|_| ranked[0].1.is_finite()) else { return Some(ranked) };
        let before = if slot == 0 { self.before } else { parent };
        for (token, logit) in &mut ranked {
            *logit += head.raise(before, *token);
        }
        // Of equal ones the lowest token first.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Some(ranked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank;

    fn head() -> Arc<MarkovHead> {
        // Behind 0 comes 2, behind 1 comes 1; behind others anything.
        let before = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let after = [0.0, 0.0, 0.0, 5.0, 4.0, 0.0];
        Arc::new(MarkovHead::new(2, &before, &after, None))
    }

    #[test]
    fn a_logit_is_raised_by_the_product_of_the_factors() {
        let head = head();
        assert!((head.raise(0, 2) - 4.0).abs() < 1e-5 && (head.raise(1, 1) - 5.0).abs() < 1e-5);
        assert_eq!([head.raise(0, 1), head.raise(2, 1), head.raise(7, 1), head.raise(1, 7)], [0.0; 4]);
        // Eight bits: within half a step of each factor.
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.0) / 9.0).collect();
        let head = MarkovHead::new(64, &values, &values, None);
        let exact: f32 = values.iter().map(|value| value * value).sum();
        assert!((head.raise(0, 0) / exact - 1.0).abs() < 0.01);
    }

    #[test]
    fn the_end_of_a_text_has_a_row_of_its_own() {
        let head = MarkovHead::new(1, &[1.0, 2.0], &[3.0, 4.0, 5.0], Some(900));
        assert!((head.raise(1, 900) - 10.0).abs() < 1e-5 && (head.raise(1, 1) - 8.0).abs() < 1e-5);
        assert_eq!([head.raise(1, 2), head.raise(900, 1), head.raise(1, 901)], [0.0; 3]);
    }

    #[test]
    fn slots_are_ranked_anew_behind_each_token() {
        let slots = Slots::new(vec![rank(&[3.0, 2.0, 1.0]); 2], 0, Some(head()));
        let tokens = |slot, parent| slots.behind(slot, parent).map(|ranked| [0, 1, 2].map(|i| ranked[i].0));
        assert_eq!(tokens(0, 1), Some([2, 0, 1]), "the first stands behind what was emitted");
        assert_eq!(tokens(1, 1), Some([1, 0, 2]));
        assert_eq!(tokens(1, 2), Some([0, 1, 2]));
        assert_eq!(tokens(2, 0), None);
        assert!(slots.behind(0, 0).is_some_and(|ranked| ranked[3] == (u32::MAX, f32::NEG_INFINITY)));
        let without = Slots::new(vec![rank(&[3.0, 2.0, 1.0])], 0, None);
        assert_eq!(without.behind(0, 9), Some(rank(&[3.0, 2.0, 1.0])));
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let slots = Slots::new(vec![rank(&[f32::NAN, 2.0])], 0, Some(head()));
        assert!(slots.behind(0, 0).is_some_and(|ranked| ranked[0].1.is_nan()));
    }
}
