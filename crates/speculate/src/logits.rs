//! What a target says about the next token.

/// Entries of a [`Ranked`].
pub const N_RANKED: usize = 8;

/// The likeliest tokens after a row and their logits, likeliest first; of equal ones the lowest token
/// first. Unused places hold the highest token and the lowest logit. When any logit of the row is
/// NaN, the first entry's is.
pub type Ranked = [(u32, f32); N_RANKED];

/// Logits of the rows that asked for them.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// The likeliest tokens of each row that asked, in the order of the request.
    pub ranked: Vec<Ranked>,
    /// Whether the row asked for all its logits.
    pub is_full: Vec<bool>,
    /// All logits of the rows that asked for them, `[number of those, vocabulary]`.
    pub full: Vec<f32>,
}

impl Logits {
    /// From all logits of all rows, `[n_rows, vocabulary]`.
    pub fn from_rows(values: Vec<f32>, vocabulary: usize) -> Self {
        let ranked: Vec<Ranked> = values.chunks_exact(vocabulary).map(rank).collect();
        Self { vocabulary, is_full: vec![true; ranked.len()], ranked, full: values }
    }

    /// Leaves `token` out of every row: it is no token of a text.
    pub fn exclude(&mut self, token: u32) {
        for ranked in &mut self.ranked {
            if let Some(place) = ranked.iter().position(|&(other, _)| other == token) {
                let is_nan = ranked[0].1.is_nan();
                ranked.copy_within(place + 1.., place);
                ranked[N_RANKED - 1] = (u32::MAX, f32::NEG_INFINITY);
                if is_nan {
                    ranked[0].1 = f32::NAN;
                }
            }
        }
        let rows = self.full.chunks_exact_mut(self.vocabulary.max(1));
        rows.filter_map(|row| row.get_mut(token as usize)).for_each(|logit| *logit = f32::NEG_INFINITY);
    }

    /// The `idx`-th row of [`RowPlan::logit_rows`](crate::RowPlan::logit_rows).
    pub fn row(&self, idx: usize) -> RowLogits<'_> {
        let full_idx = self.is_full[..idx].iter().filter(|&&is_full| is_full).count();
        let full = full_idx * self.vocabulary..(full_idx + 1) * self.vocabulary;
        RowLogits { ranked: &self.ranked[idx], full: self.is_full[idx].then(|| &self.full[full]) }
    }
}

/// What a target says after one row.
#[derive(Clone, Copy, Debug)]
pub struct RowLogits<'a> {
    /// The likeliest tokens.
    pub ranked: &'a Ranked,
    /// All logits, `[vocabulary]`, where they were asked for.
    pub full: Option<&'a [f32]>,
}

impl RowLogits<'_> {
    /// The likeliest token; `None` when a logit is NaN or none is finite.
    pub fn argmax(&self) -> Option<u32> {
        argmax(self.ranked)
    }
}

/// The likeliest token of a row; `None` when a logit is NaN or none is finite.
pub fn argmax(ranked: &Ranked) -> Option<u32> {
    let (token, logit) = ranked[0];
    logit.is_finite().then_some(token)
}

/// The likeliest tokens among all `logits` of a row.
pub fn rank(logits: &[f32]) -> Ranked {
    let mut ranked: Ranked = [(u32::MAX, f32::NEG_INFINITY); N_RANKED];
    let mut n_ranked = 0;
    for (token, &logit) in logits.iter().enumerate() {
        // Ascending tokens: of equal logits the earlier stays in front.
        let place = ranked[..n_ranked].iter().position(|&(_, other)| logit > other).unwrap_or(n_ranked);
        if place < N_RANKED {
            n_ranked = (n_ranked + 1).min(N_RANKED);
            ranked.copy_within(place..N_RANKED - 1, place + 1);
            ranked[place] = (token as u32, logit);
        }
    }
    if logits.iter().any(|logit| logit.is_nan()) {
        ranked[0].1 = f32::NAN;
    }
    ranked
}

/// Ranks `token`, which is not among those of `ranked`, with them.
pub fn rank_beside(ranked: &mut Ranked, token: u32, logit: f32) {
    let comes_first = |&(other, than): &(u32, f32)| logit > than || (logit == than && token < other);
    // What is NaN anywhere stays so.
    match ranked.iter().position(comes_first) {
        _ if logit.is_nan() => ranked[0].1 = f32::NAN,
        Some(place) if !ranked[0].1.is_nan() => {
            ranked.copy_within(place..N_RANKED - 1, place + 1);
            ranked[place] = (token, logit);
        }
        _ => (),
    }
}

/// The probabilities of ranked tokens among themselves. The rest of the vocabulary is left out, so
/// they are too high; whoever uses them calibrates.
pub fn ranked_probabilities(ranked: &Ranked) -> [f32; N_RANKED] {
    let largest = ranked[0].1;
    let mut probabilities = ranked.map(|(_, logit)| (logit - largest).exp());
    let sum: f32 = probabilities.iter().filter(|weight| weight.is_finite()).sum();
    probabilities
        .iter_mut()
        .for_each(|weight| *weight = if weight.is_finite() { *weight / sum } else { 0.0 });
    probabilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_token_at_every_pair() {
        for low in 0..6 {
            for high in low + 1..6 {
                let mut logits = [0.0; 6];
                logits[low] = 3.0;
                logits[high] = 3.0;
                let ranked = rank(&logits);
                assert_eq!(argmax(&ranked), Some(low as u32));
                assert_eq!(ranked[1].0, high as u32);
            }
        }
    }

    #[test]
    fn nan_and_all_infinite_rows_have_no_argmax() {
        for logits in [&[0.0, f32::NAN][..], &[f32::NEG_INFINITY; 2], &[f32::INFINITY, 0.0], &[]] {
            assert_eq!(argmax(&rank(logits)), None);
        }
        let mut many = [1.0; 20];
        many[15] = f32::NAN;
        assert_eq!(argmax(&rank(&many)), None);
    }

    #[test]
    fn rows_are_found_among_full_and_ranked_ones() {
        let mut logits = Logits::from_rows(vec![0.0, 1.0, 3.0, 2.0], 2);
        assert_eq!(logits.row(1).full, Some(&[3.0, 2.0][..]));
        logits.is_full[0] = false;
        logits.full = vec![3.0, 2.0];
        assert_eq!((logits.row(0).full, logits.row(0).argmax()), (None, Some(1)));
        assert_eq!(logits.row(1).full, Some(&[3.0, 2.0][..]));
    }

    #[test]
    fn an_excluded_token_is_nowhere() {
        let mut logits = Logits::from_rows(vec![0.0, 3.0, 2.0, 3.0, 0.0, 1.0], 3);
        logits.exclude(1);
        assert_eq!((logits.row(0).argmax(), logits.row(1).argmax()), (Some(2), Some(0)));
        assert_eq!(logits.row(0).full, Some(&[0.0, f32::NEG_INFINITY, 2.0][..]));
        assert!(logits.ranked.iter().flatten().all(|&(token, _)| token != 1));
        let mut nan = Logits::from_rows(vec![0.0, f32::NAN, 1.0], 3);
        nan.exclude(nan.ranked[0][0].0);
        assert_eq!(nan.row(0).argmax(), None);
    }

    #[test]
    fn a_token_is_ranked_beside_others() {
        let all: Vec<f32> = (0..12).map(|i| ((i * 7 + 3) % 5) as f32).collect();
        for last in [-9.0, 0.0, 1.5, 4.0, 7.0, f32::NEG_INFINITY] {
            let mut ranked = rank(&all);
            rank_beside(&mut ranked, 12, last);
            assert_eq!(ranked, rank(&[&all[..], &[last]].concat()));
        }
        let mut few = rank(&[1.0]);
        rank_beside(&mut few, 1, 2.0);
        assert_eq!(few, rank(&[1.0, 2.0]));
        for [first, last] in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            let mut ranked = rank(&[first, 0.0]);
            rank_beside(&mut ranked, 2, last);
            assert_eq!(argmax(&ranked), None);
        }
    }

    #[test]
    fn probabilities_are_those_of_a_softmax() {
        let probabilities = ranked_probabilities(&rank(&[0.0, 3.0f32.ln()]));
        assert!((probabilities[0] - 0.75).abs() < 1e-6 && (probabilities[1] - 0.25).abs() < 1e-6);
        assert_eq!(probabilities[2], 0.0);
    }
}
