//! From tokens to the text that is shown: whole characters, no stop strings, and an end where a person would
//! have stopped.

mod block;
mod line;
mod repetition;
mod surroundings;

use model::StreamDecoder;
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::{CompletionRequest, Piece, StopReason};
use block::BlockEnd;
use line::LineEnd;
use repetition::Repetition;
use surroundings::{Cursor, Surroundings};

/// How far a completion goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(rename_all = "snake_case")]
#[ts(export)]
pub enum Extent {
    /// To the end of the line where something follows the cursor on it, else to the end of the block.
    #[default]
    Auto,
    /// To the end of the line.
    Line,
    /// All that the model writes, up to a stop string.
    Raw,
}

/// What is written around the cursor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around<'a> {
    pub(crate) path: Option<&'a str>,
    pub(crate) prefix: &'a str,
    pub(crate) suffix: &'a str,
}

impl<'a> Around<'a> {
    pub(crate) fn of(request: &'a CompletionRequest) -> Self {
        Self { path: request.path.as_deref(), prefix: &request.prefix, suffix: &request.suffix }
    }
}

#[derive(Debug)]
enum Rule {
    Raw,
    Line(LineEnd),
    Block(BlockEnd),
}

/// Holds back what may still turn out not to belong to the completion, and releases the rest.
#[derive(Debug)]
pub(crate) struct OutputFilter {
    decoder: StreamDecoder,
    stops: Vec<Vec<char>>,
    rule: Rule,
    repetition: Repetition,
    /// All that was written, what was not released included.
    text: Vec<char>,
    is_drafted: Vec<bool>,
    n_released: usize,
}

impl OutputFilter {
    pub(crate) fn new(extent: Extent, stops: &[String], around: Around<'_>) -> Self {
        let stops = stops.iter().map(|stop| stop.chars().collect()).collect();
        let rule = match extent {
            Extent::Raw => Rule::Raw,
            Extent::Auto | Extent::Line => {
                let surroundings = Surroundings::of(around.path, around.prefix, around.suffix);
                match surroundings.cursor {
                    Cursor::AtEnd | Cursor::AtStart if extent == Extent::Auto => {
                        Rule::Block(BlockEnd::new(surroundings))
                    }
                    _ => Rule::Line(LineEnd::new(surroundings)),
                }
            }
        };
        let decoder = StreamDecoder::default();
        Self {
            decoder,
            stops,
            rule,
            repetition: Repetition::default(),
            text: Vec::new(),
            is_drafted: Vec::new(),
            n_released: 0,
        }
    }

    /// Takes the bytes of a token and returns what can be shown. The reason says that the completion has
    /// ended; then nothing may be pushed but [`finish`](Self::finish) called.
    pub(crate) fn push(&mut self, bytes: &[u8], drafted: bool) -> (Vec<Piece>, Option<StopReason>) {
        let mut pieces = Vec::new();
        for character in self.decoder.push(bytes).chars() {
            let end = self.push_character(character, drafted, &mut pieces);
            if end.is_some() {
                // What follows in the same token is behind the end.
                self.decoder = StreamDecoder::default();
                return (pieces, end);
            }
        }
        (pieces, None)
    }

    fn push_character(
        &mut self,
        character: char,
        drafted: bool,
        pieces: &mut Vec<Piece>,
    ) -> Option<StopReason> {
        self.text.push(character);
        self.is_drafted.push(drafted);
        if let Some(stop) = self.stops.iter().find(|stop| self.text.ends_with(stop)) {
            self.text.truncate(self.text.len() - stop.len());
            return Some(StopReason::StopString);
        }
        let is_repeated = !matches!(self.rule, Rule::Raw) && self.repetition.push(&self.text);
        let end = match &mut self.rule {
            Rule::Raw => None,
            Rule::Line(rule) => rule.push(&mut self.text),
            Rule::Block(rule) => rule.push(&mut self.text),
        };
        let end = end.or(is_repeated.then_some(StopReason::Repetition));
        if end.is_some() {
            return end;
        }
        // The text may end here, or before any stop string that has begun.
        let begun = self.stops.iter().map(|stop| overlap(&self.text, stop)).chain([0]);
        let n_safe = begun.map(|n| self.n_safe(&self.text[..self.text.len() - n])).min();
        self.release(n_safe.unwrap_or(0), pieces);
        None
    }

    /// Characters of `text` that are part of the completion, whatever comes behind it.
    fn n_safe(&self, text: &[char]) -> usize {
        let n = match &self.rule {
            Rule::Raw => return text.len(),
            Rule::Line(rule) => rule.n_safe(text),
            Rule::Block(rule) => rule.n_safe(text),
        };
        // White space may turn out to be at the end.
        trimmed_len(&text[..n.min(text.len())])
    }

    /// The rest, when the completion has ended for `reason`.
    pub(crate) fn finish(mut self, reason: StopReason) -> Vec<Piece> {
        let rest = std::mem::take(&mut self.decoder).finish();
        self.text.extend(rest.chars());
        match &mut self.rule {
            Rule::Raw => (),
            Rule::Line(rule) => rule.finish(&mut self.text),
            Rule::Block(rule) => rule.finish(&mut self.text, reason),
        }
        debug_assert!(self.n_released <= self.text.len(), "what was shown cannot be taken back");
        self.is_drafted.resize(self.text.len(), false);
        let mut pieces = Vec::new();
        self.release(self.text.len(), &mut pieces);
        pieces
    }

    fn release(&mut self, n: usize, pieces: &mut Vec<Piece>) {
        for idx in self.n_released..n {
            let (character, drafted) = (self.text[idx], self.is_drafted[idx]);
            match pieces.last_mut() {
                Some(piece) if piece.drafted == drafted => piece.text.push(character),
                _ => pieces.push(Piece { text: character.to_string(), drafted }),
            }
        }
        self.n_released = self.n_released.max(n);
    }
}

/// What is shown of `text` for `request`, when that is all that was written and its writer ended there.
pub fn shown_text(request: &CompletionRequest, text: &str) -> String {
    let mut filter = OutputFilter::new(request.extent, &request.stop, Around::of(request));
    let (mut pieces, end) = filter.push(text.as_bytes(), false);
    pieces.extend(filter.finish(end.unwrap_or(StopReason::EndOfText)));
    pieces.into_iter().map(|piece| piece.text).collect()
}

/// Length of the longest tail of `text` that `following` starts with.
fn overlap(text: &[char], following: &[char]) -> usize {
    let longest = text.len().min(following.len());
    (1..=longest).rev().find(|&n| text.ends_with(&following[..n])).unwrap_or(0)
}

/// `text` without the white space at its end: its length.
fn trimmed_len(text: &[char]) -> usize {
    text.iter().rposition(|c| !c.is_whitespace()).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests;
