//! The target's own choice at a position: argmax, or a seeded draw.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::{Ranked, RowLogits, argmax, rank};

/// How tokens are chosen. The penalty comes first, then filters in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Divides the logits; 0 chooses the likeliest token and ignores everything below.
    pub temperature: f32,
    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of the tokens that occurred lately (CTRL, arXiv
    /// 1909.05858); 1 leaves them alone.
    #[serde(default = "no_penalty")]
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

fn no_penalty() -> f32 {
    1.0
}

/// Tokens that the repetition penalty looks back over.
pub const PENALTY_WINDOW: usize = 64;

impl Default for SamplingParams {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("`{name}` must be in {range}. Given: {value}")]
    ParameterOutOfRange {
        /// Name of the parameter.
        name: &'static str,
        /// The range in words.
        range: &'static str,
        /// What was given.
        value: f32,
    },
    /// A draw by chance, from a row that was only asked for its likeliest tokens.
    #[error("a draw at position {position} needs all logits of its row")]
    LogitsNotAskedFor {
        /// Absolute position of the token to be chosen.
        position: usize,
    },
    /// The model gave NaN, or nothing but -inf.
    #[error("the logits at position {position} hold no finite maximum")]
    NoFiniteLogit {
        /// Absolute position of the token to be chosen.
        position: usize,
    },
}

/// Chooses tokens. The random number of a draw depends on the seed and the absolute position
/// only, so ordinary and speculative decoding draw the same token at the same place.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
}

impl Sampler {
    /// A sampler with `params`.
    ///
    /// # Errors
    /// [`SamplingError::ParameterOutOfRange`].
    pub fn new(params: SamplingParams) -> Result<Self, SamplingError> {
        let check = |name, range, value: f32, ok: bool| {
            if ok { Ok(()) } else { Err(SamplingError::ParameterOutOfRange { name, range, value }) }
        };
        let SamplingParams { temperature, top_p, min_p, repetition_penalty, .. } = params;
        check("temperature", "[0, 2]", temperature, (0.0..=2.0).contains(&temperature))?;
        check("top_p", "(0, 1]", top_p, top_p > 0.0 && top_p <= 1.0)?;
        check("min_p", "[0, 1)", min_p, (0.0..1.0).contains(&min_p))?;
        let penalty_ok = (0.5..=2.0).contains(&repetition_penalty);
        check("repetition_penalty", "[0.5, 2]", repetition_penalty, penalty_ok)?;
        Ok(Self { params })
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Whether a draw needs all logits of a row, and not only its likeliest tokens.
    pub fn needs_all_logits(&self) -> bool {
        self.params.temperature > 0.0 || self.has_penalty()
    }

    /// Whether a draw depends on the tokens before it.
    pub fn has_penalty(&self) -> bool {
        self.params.repetition_penalty != 1.0
    }

    /// The token at absolute `position`, given the logits of the row before it, and of the tokens so
    /// far the last [`PENALTY_WINDOW`] or more.
    ///
    /// # Errors
    /// [`SamplingError::NoFiniteLogit`], and [`SamplingError::LogitsNotAskedFor`] when all logits
    /// are needed and not there.
    pub fn draw(&self, row: RowLogits<'_>, position: usize, recent: &[u32]) -> Result<u32, SamplingError> {
        let likeliest = row.argmax().ok_or(SamplingError::NoFiniteLogit { position })?;
        if !self.needs_all_logits() {
            return Ok(likeliest);
        }
        let logits = row.full.ok_or(SamplingError::LogitsNotAskedFor { position })?;
        if !self.has_penalty() {
            return Ok(self.draw_from(logits, row.ranked, position));
        }
        let logits = self.penalised(logits, recent);
        let ranked = rank(&logits);
        argmax(&ranked).ok_or(SamplingError::NoFiniteLogit { position })?;
        Ok(self.draw_from(&logits, &ranked, position))
    }

    fn penalised(&self, logits: &[f32], recent: &[u32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        let mut recent = recent[recent.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
        // Once for each token, however often it occurred.
        recent.sort_unstable();
        recent.dedup();
        for token in recent {
            if let Some(logit) = logits.get_mut(token as usize) {
                let penalty = self.params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        logits
    }

    fn draw_from(&self, logits: &[f32], ranked: &Ranked, position: usize) -> u32 {
        let (likeliest, largest) = ranked[0];
        if self.params.temperature == 0.0 {
            return likeliest;
        }
        let candidates = self.candidates(logits, largest);
        let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
        let threshold = self.uniform(position) * total;
        let mut sum = 0.0;
        for &(token, weight) in &candidates {
            sum += weight;
            if sum > threshold {
                return token;
            }
        }
        // Only rounding in the last addition leads here.
        candidates.last().map_or(likeliest, |&(token, _)| token)
    }

    /// Tokens that survive the filters with weights in proportion to their probability, in an
    /// order that depends on the logits alone, so that sums over them round the same way
    /// everywhere.
    fn candidates(&self, logits: &[f32], max: f32) -> Vec<(u32, f64)> {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let temperature = f64::from(temperature);
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| (token as u32, ((f64::from(logit) - f64::from(max)) / temperature).exp()))
            .filter(|&(_, weight)| weight > 0.0)
            .collect();
        let likelier_first = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier_first);
            candidates.truncate(top_k);
            candidates.sort_unstable_by(likelier_first);
        }
        if top_p < 1.0 {
            let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
            let target = f64::from(top_p) * total;
            // All tokens below this weight together weigh less than `total - target`, so none of
            // them is in the nucleus; dropping them first makes the sort cheap.
            let floor = (total - target) / candidates.len() as f64;
            candidates.retain(|&(_, weight)| weight >= floor);
            candidates.sort_unstable_by(likelier_first);
            let mut sum = 0.0;
            let n_kept = candidates.iter().take_while(|&&(_, weight)| {
                let wanted = sum < target;
                sum += weight;
                wanted
            });
            let n_kept = n_kept.count().max(1);
            candidates.truncate(n_kept);
        }
        // The likeliest token has weight 1.
        candidates.retain(|&(_, weight)| weight >= f64::from(min_p));
        candidates
    }

    /// Uniform in `[0, 1)`, a function of (seed, position).
    fn uniform(&self, position: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(self.params.seed);
        rng.set_stream(position as u64);
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampler: &Sampler, logits: &[f32], position: usize) -> Result<u32, SamplingError> {
        sampler.draw(RowLogits { ranked: &rank(logits), full: Some(logits) }, position, &[])
    }

    fn sampler(params: SamplingParams) -> Sampler {
        Sampler::new(params).expect("valid parameters")
    }

    #[test]
    fn nan_and_all_infinite_rows_are_errors() {
        for logits in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
            let error = draw(&sampler(SamplingParams::default()), &logits, 4);
            assert_eq!(error, Err(SamplingError::NoFiniteLogit { position: 4 }));
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let default = SamplingParams::default();
        for params in [
            SamplingParams { temperature: -0.1, ..default.clone() },
            SamplingParams { temperature: f32::NAN, ..default.clone() },
            SamplingParams { temperature: f32::INFINITY, ..default.clone() },
            SamplingParams { top_p: 0.0, ..default.clone() },
            SamplingParams { top_p: 1.5, ..default.clone() },
            SamplingParams { min_p: 1.0, ..default.clone() },
            SamplingParams { repetition_penalty: 0.0, ..default.clone() },
            SamplingParams { repetition_penalty: f32::NAN, ..default.clone() },
        ] {
            assert!(Sampler::new(params).is_err());
        }
    }

    /// The share of each token over many positions.
    fn shares(params: SamplingParams, logits: &[f32]) -> Vec<f64> {
        let n_draws = 40_000;
        let sampler = sampler(params);
        let mut shares = vec![0.0; logits.len()];
        for position in 0..n_draws {
            shares[draw(&sampler, logits, position).expect("finite") as usize] += 1.0 / n_draws as f64;
        }
        shares
    }

    #[test]
    fn filters_leave_the_renormalised_distribution() {
        let p: [f32; 5] = [0.1, 0.4, 0.05, 0.3, 0.15];
        let logits = p.map(f32::ln);
        let base = SamplingParams { temperature: 1.0, seed: 3, ..SamplingParams::default() };
        let cases = [
            (base.clone(), [0.1, 0.4, 0.05, 0.3, 0.15]),
            (SamplingParams { top_k: 2, ..base.clone() }, [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0, 0.0]),
            (SamplingParams { top_p: 0.75, ..base.clone() }, [0.0, 4.0 / 8.5, 0.0, 3.0 / 8.5, 1.5 / 8.5]),
            (SamplingParams { min_p: 0.3, ..base.clone() }, [0.0, 4.0 / 8.5, 0.0, 3.0 / 8.5, 1.5 / 8.5]),
            (SamplingParams { temperature: 0.5, top_k: 2, ..base }, [0.0, 16.0 / 25.0, 0.0, 9.0 / 25.0, 0.0]),
        ];
        for (params, expected) in cases {
            let observed = shares(params.clone(), &logits);
            let distance: f64 = observed.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0;
            assert!(distance < 0.01, "{params:?}: {observed:?} is {distance} from {expected:?}");
        }
    }

    #[test]
    fn the_penalty_falls_on_recent_tokens_once() {
        let sampler = sampler(SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() });
        let logits = [3.0, 2.5, -1.0];
        let draw = |recent: &[u32]| {
            let row = RowLogits { ranked: &rank(&logits), full: Some(&logits) };
            sampler.draw(row, 0, recent).expect("finite")
        };
        assert_eq!((draw(&[]), draw(&[0, 0, 0]), draw(&[0, 1])), (0, 1, 0));
        assert_eq!(sampler.penalised(&logits, &[0, 2, 2, 9]), [2.0, 2.5, -1.5]);
        let long_ago = [&[0][..], &[2; PENALTY_WINDOW]].concat();
        assert_eq!(draw(&long_ago), 0, "what is behind the window is forgotten");
    }

    #[test]
    fn draws_are_a_function_of_seed_and_position() {
        let logits = [0.0; 64];
        let draw = |seed, position| {
            let params = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
            draw(&sampler(params), &logits, position).expect("finite")
        };
        let tokens: Vec<_> = (0..32).map(|position| draw(1, position)).collect();
        assert_eq!(tokens, (0..32).map(|position| draw(1, position)).collect::<Vec<_>>());
        assert_ne!(tokens, (0..32).map(|position| draw(2, position)).collect::<Vec<_>>());
        assert!(tokens.iter().any(|&token| token != tokens[0]));
    }
}
