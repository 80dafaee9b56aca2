//! How likely a model finds a text: at a place a finer measure of what it is told than whether it writes that text, and in
//! windows of a long one a measure of the model's own weights.

use std::sync::Arc;

use model::{Model, ModelError, Sequence};
use speculate::{RowPlan, Target, rank};

use crate::prompt::Prompt;
use crate::sequences::CachedSequence;
use crate::{CompletionRequest, EngineError, Session};

/// Tokens of a text that are looked at.
const MAX_TOKENS: usize = 64;

/// Tokens that a pass looks at: each has the logits of a whole vocabulary.
const PASS_TOKENS: usize = 64;

/// What a model thinks of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// Tokens that were looked at.
    pub n_tokens: usize,
    /// Those among them that it would have written too, given what stands before them.
    pub n_likeliest: usize,
    /// The sum of `-ln p` of the tokens.
    pub nats: f64,
}

impl Session {
    /// How likely `text` is at the place of `request`.
    ///
    /// # Errors
    /// A request outside its limits, or a failing model.
    pub fn likelihood(&mut self, request: &CompletionRequest, text: &str) -> Result<Likelihood, EngineError> {
        request.check()?;
        let prompt = self.prompt(request)?;
        let mut tokens = self.model().tokenizer().encode_inside(text)?;
        tokens.truncate(MAX_TOKENS);
        let mut cached = self.sequences.take(&prompt)?.ok_or(EngineError::NoSequence)?;
        let likelihood = measure(&mut cached, &prompt, &tokens);
        // Nothing of the text was committed, so the cache is that of the prompt's beginning, whatever failed.
        self.sequences.give_back(cached);
        Ok(likelihood?)
    }
}

fn measure(cached: &mut CachedSequence, prompt: &Prompt, tokens: &[u32]) -> Result<Likelihood, ModelError> {
    while cached.prefill_part(prompt)? {}
    let rest = &prompt.tokens[cached.tokens.len()..];
    let Some(first) = rest.len().checked_sub(1) else { return Ok(Likelihood::default()) };
    let mut plan = cached.sequence.lay_out(&[rest, tokens].concat());
    let mut likelihood = Likelihood::default();
    likelihood.add(&mut cached.sequence, &mut plan, first, tokens)?;
    Ok(likelihood)
}

impl Likelihood {
    /// Runs `plan`, whose rows from `first` on are each followed by one of `tokens`, and counts these.
    fn add(
        &mut self,
        sequence: &mut Sequence,
        plan: &mut RowPlan,
        first: usize,
        tokens: &[u32],
    ) -> Result<(), ModelError> {
        (first..first + tokens.len()).for_each(|row| {
            plan.want_logits(row);
        });
        let logits = sequence.forward(plan)?;
        for (idx, &token) in tokens.iter().enumerate() {
            let Some(row) = logits.row(idx).full else { continue };
            let (likeliest, max) = rank(row)[0];
            let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
            self.n_tokens += 1;
            self.n_likeliest += usize::from(likeliest == token);
            self.nats += sum.ln() - f64::from(row[token as usize] - max);
        }
        Ok(())
    }

    /// How many tokens would be as hard to tell apart: the exponential of the mean of nats. NaN where none was looked at.
    pub fn perplexity(&self) -> f64 {
        (self.nats / self.n_tokens as f64).exp()
    }
}

/// How likely `model` finds `text`, in windows of `n_window` tokens, which begin as a text of the model's does: the tokens of
/// each window's second half are looked at. What is left behind the last whole window is not.
///
/// # Errors
/// A failing model, one whose context is shorter than a window, and those of the tokenizer.
pub fn likelihood_in_windows(
    model: &Arc<Model>,
    text: &str,
    n_window: usize,
    on_window: &mut dyn FnMut(Likelihood),
) -> Result<Likelihood, EngineError> {
    let mut likelihood = Likelihood::default();
    let start = model.tokenizer().start_of_sequence();
    let tokens = model.tokenizer().encode_inside(text)?;
    let mut sequence = model.sequence()?;
    for window in tokens.chunks_exact(n_window.max(2)) {
        sequence.truncate(0);
        let half = window.len() / 2;
        let context: Vec<u32> = start.into_iter().chain(window[..half].iter().copied()).collect();
        let (last, before) = context.split_last().ok_or(EngineError::NoSequence)?;
        sequence.prefill(before)?;
        let mut from = *last;
        for looked_at in window[half..].chunks(PASS_TOKENS) {
            let rows: Vec<u32> =
                std::iter::once(from).chain(looked_at.iter().copied()).take(looked_at.len()).collect();
            let mut plan = sequence.lay_out(&rows);
            likelihood.add(&mut sequence, &mut plan, 0, looked_at)?;
            sequence.commit(&(0..rows.len()).collect::<Vec<_>>())?;
            from = looked_at[looked_at.len() - 1];
        }
        on_window(likelihood);
    }
    Ok(likelihood)
}

#[cfg(test)]
mod tests {
    use model::ModelConfig;

    use super::*;

    /// Against a pass over each window alone.
    #[test]
    fn windows_are_looked_at_whole() {
        let tiny = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
        let model = Arc::new(Model::load(&ModelConfig::new(tiny)).expect("the tiny model"));
        let text = "def work(x):\n    return x * 17 + len(str(x))\n".repeat(12);
        let tokens = model.tokenizer().encode_inside(&text).expect("tokens");
        let mut n_windows = 0;
        let got = likelihood_in_windows(&model, &text, 150, &mut |_| n_windows += 1).expect("a likelihood");
        assert_eq!((n_windows, got.n_tokens), (tokens.len() / 150, 75 * n_windows));
        assert!(n_windows > 1, "{} tokens", tokens.len());
        let mut expected = Likelihood::default();
        for window in tokens.chunks_exact(150) {
            let mut sequence = model.sequence().expect("a sequence");
            let all: Vec<u32> =
                model.tokenizer().start_of_sequence().into_iter().chain(window.iter().copied()).collect();
            let mut plan = sequence.lay_out(&all[..all.len() - 1]);
            let first = all.len() - 76;
            expected.add(&mut sequence, &mut plan, first, &window[75..]).expect("a pass");
        }
        assert_eq!(got, expected);
        // A random model finds everything about as likely as anything else.
        let n_tokens = model.architecture().vocabulary as f64;
        assert!((0.3 * n_tokens..3.0 * n_tokens).contains(&got.perplexity()), "{}", got.perplexity());
    }
}
