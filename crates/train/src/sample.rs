//! What of a text is learnt from, as the model is asked for it.

use std::ops::Range;

use crate::TrainError;
use crate::base::Base;

/// Tokens that a sample offers as anchors, at least.
const MIN_ANCHORS: usize = 9;
/// The same of one that is whole however short it is: the first slot has something to guess.
const SHORT_ANCHORS: usize = 3;
/// Bytes that are about a token.
const TOKEN_BYTES: usize = 3;

/// A stretch of text as the model is asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Index of the first token that may be an anchor: the last of the prompt.
    pub first_anchor: usize,
    /// Its language, where it is known.
    pub language: String,
}

/// What samples are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleConfig {
    /// Tokens, about.
    pub max_tokens: usize,
    /// Share in the form in which the model is asked for the middle of a text, where it has one.
    pub infill: f32,
    /// Share of these of which a line or a few are missing, as people ask for; of the others it is half of the tokens.
    pub short: f32,
    /// Share of texts that the model wrote itself, where there are such and others.
    pub written: f32,
    /// Slots of a group: behind the last anchor stand as many tokens and one.
    pub n_slots: usize,
}

/// A text, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) content: String,
    /// Its language; empty where it is not known.
    pub(crate) language: String,
    /// What of it the model wrote itself.
    pub(crate) written: Option<Written>,
}

/// A part of a text that the model wrote: what is before and behind it is what it was asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: Range<usize>,
    /// Whether the model ended there by itself.
    pub(crate) is_whole: bool,
}

/// A part of a text that is filled in, with what the model is told of the text.
pub(crate) struct Cut<'a> {
    pub(crate) before: &'a str,
    pub(crate) middle: &'a str,
    pub(crate) after: &'a str,
    /// Whether the text goes on with `after` behind `middle`, so that nothing else is missing.
    pub(crate) is_whole: bool,
}

/// Most lines of a short part.
const MAX_LINES: usize = 6;

fn starts_of_lines(text: &str) -> Vec<usize> {
    std::iter::once(0)
        .chain(text.match_indices('\n').map(|(at, _)| at + 1))
        .filter(|&at| at < text.len())
        .collect()
}

/// The last place for a cut that is not behind `at`.
fn at_char(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl Text {
    /// A part of it to fill in: a line or a few where it `is_short`, otherwise half of the tokens. A quarter each stands
    /// before and after it.
    pub(crate) fn cut(&self, max_tokens: usize, is_short: bool, random: &mut fastrand::Rng) -> Cut<'_> {
        let text = self.content.as_str();
        let mut cursor = random.choice(starts_of_lines(text)).unwrap_or(0);
        // Within a line as often as at its start.
        if random.bool() {
            let line = text[cursor..].find('\n').unwrap_or(text.len() - cursor);
            cursor = at_char(text, cursor + random.usize(0..=line));
        }
        let before = &text[at_char(text, cursor.saturating_sub(max_tokens / 4 * TOKEN_BYTES))..cursor];
        let end = at_char(text, cursor + max_tokens / 2 * TOKEN_BYTES);
        let mut ends_of_lines = text[cursor..end].match_indices('\n').map(|(at, _)| cursor + at);
        let end = if is_short {
            let n_lines = if random.bool() { 1 } else { random.usize(2..=MAX_LINES) };
            // The end of the last line belongs to it as often as not.
            let with_its_end = usize::from(random.bool());
            ends_of_lines.nth(n_lines - 1).map_or(end, |at| at + with_its_end)
        } else {
            ends_of_lines.next_back().unwrap_or(end)
        };
        let after = &text[end..at_char(text, end + max_tokens / 4 * TOKEN_BYTES)];
        Cut { before, middle: &text[cursor..end], after, is_whole: true }
    }

    /// A place at the end of a line to go on from, with half of the tokens before it.
    pub(crate) fn end(&self, max_tokens: usize, random: &mut fastrand::Rng) -> Cut<'_> {
        let text = self.content.as_str();
        let cursor = random.choice(starts_of_lines(text)).filter(|&at| at > 0).unwrap_or(text.len());
        let before = &text[at_char(text, cursor.saturating_sub(max_tokens / 2 * TOKEN_BYTES))..cursor];
        Cut { before, middle: "", after: "", is_whole: false }
    }

    /// A sample of it: what the model wrote where it wrote some, else a stretch, or a part to fill in. With it, how many
    /// tokens it should have from the first anchor on.
    pub(crate) fn sample(
        &self,
        base: &Base,
        config: SampleConfig,
        random: &mut fastrand::Rng,
    ) -> Result<(Sample, usize), TrainError> {
        let SampleConfig { max_tokens, infill, short, n_slots, .. } = config;
        let text = self.content.as_str();
        let mut n_least = (n_slots + 2).max(MIN_ANCHORS).max(max_tokens / 4);
        let mut sample = match &self.written {
            Some(Written { bytes, is_whole }) => {
                let [before, after] = [&text[..bytes.start], &text[bytes.end..]];
                n_least = if *is_whole { SHORT_ANCHORS } else { n_least };
                fill_in(base, Cut { before, middle: &text[bytes.clone()], after, is_whole: *is_whole })?
            }
            None if base.format().can_infill() && random.f32() < infill => {
                let is_short = random.f32() < short;
                n_least = if is_short { SHORT_ANCHORS } else { n_least };
                fill_in(base, self.cut(max_tokens, is_short, random))?
            }
            None => {
                let start = random.choice(starts_of_lines(text)).unwrap_or(0);
                let stretch = &text[start..at_char(text, start + 6 * max_tokens)];
                let tokens = base.format().between(base.tokenizer(), stretch, "")?;
                Sample { tokens, first_anchor: 0, language: String::new() }
            }
        };
        sample.tokens.truncate(max_tokens.max(sample.first_anchor + 1));
        Ok((Sample { language: self.language.clone(), ..sample }, n_least))
    }
}

/// The form in which the model is asked for a middle, the middle, and the token by which it says that this is all.
fn fill_in(base: &Base, Cut { before, middle, after, is_whole }: Cut<'_>) -> Result<Sample, TrainError> {
    let mut tokens = base.format().between(base.tokenizer(), before, after)?;
    let first_anchor = tokens.len().saturating_sub(1);
    if !middle.is_empty() {
        tokens.extend(base.tokenizer().encode_inside(middle)?);
    }
    if is_whole && !after.is_empty() {
        tokens.extend(base.tokenizer().end_of_text());
    }
    Ok(Sample { tokens, first_anchor, language: String::new() })
}
