//! How likely a model finds a text at a place: a finer measure of what it is told than whether it writes that text.

use model::ModelError;
use speculate::{Target, rank};

use crate::prompt::Prompt;
use crate::sequences::CachedSequence;
use crate::{CompletionRequest, EngineError, Session};

/// Tokens of a text that are looked at.
const MAX_TOKENS: usize = 64;

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
    (first..first + tokens.len()).for_each(|row| {
        plan.want_logits(row);
    });
    let mut likelihood = Likelihood { n_tokens: tokens.len(), ..Likelihood::default() };
    let logits = cached.sequence.forward(&plan)?;
    for (idx, &token) in tokens.iter().enumerate() {
        let Some(row) = logits.row(idx).full else { continue };
        let (likeliest, max) = rank(row)[0];
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        likelihood.n_likeliest += usize::from(likeliest == token);
        likelihood.nats += sum.ln() - f64::from(row[token as usize] - max);
    }
    Ok(likelihood)
}
