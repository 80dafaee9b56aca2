//! Where a completion within a line ends.

use super::surroundings::Surroundings;
use super::{overlap, trimmed_len};
use crate::StopReason;
use crate::syntax::{Event, Scanner, closer_of, opener_of};

/// Letters and digits from which on a repetition of the beginning of the rest is no accident.
const MIN_REPEATED: usize = 4;

/// A completion of a line that goes on behind the cursor: it ends with the line, before a closer that the rest
/// of the line has already, and without what the rest begins with. Brackets that it opens and leaves open are
/// closed.
#[derive(Debug)]
pub(super) struct LineEnd {
    around: Surroundings,
    scanner: Scanner,
    /// Brackets before the cursor that the completion has not closed yet, of those that it should.
    unclosed: Vec<char>,
    /// A closer or quote that the rest has already ended it.
    has_met_closer: bool,
}

impl LineEnd {
    pub(super) fn new(around: Surroundings) -> Self {
        let (scanner, unclosed) = (around.scanner.clone(), around.unclosed.clone());
        Self { around, scanner, unclosed, has_met_closer: false }
    }

    /// Takes the last character of `text`. Says whether it ended the completion.
    pub(super) fn push(&mut self, text: &mut Vec<char>) -> Option<StopReason> {
        let character = *text.last()?;
        if character == '\n' {
            text.pop();
            return Some(StopReason::EndOfLine);
        }
        match self.scanner.push(character) {
            Event::EndedString if self.around.closed_quote.is_some() => self.has_met_closer = true,
            Event::Unmatched if self.unclosed.last().copied() == opener_of(character) => {
                self.unclosed.pop();
            }
            Event::Unmatched => self.has_met_closer = true,
            _ => (),
        }
        self.has_met_closer.then_some(StopReason::FollowingText)
    }

    /// Characters that no repetition of the rest takes away.
    pub(super) fn n_safe(&self, text: &[char]) -> usize {
        let rest = &self.around.rest;
        // White space at the end may hide a repetition.
        let trimmed = &text[..trimmed_len(text)];
        (trimmed.len() - overlap(trimmed, rest)).min(text.len() - overlap(text, rest))
    }

    pub(super) fn finish(&mut self, text: &mut Vec<char>) {
        let n_repeated = match self.has_met_closer {
            true => overlap(text, &self.around.rest).max(1),
            false => {
                // Where white space hides a repetition it is none that was wanted.
                let trimmed = &text[..trimmed_len(text)];
                match self.repeated(trimmed) {
                    0 => self.repeated(text),
                    n => n + text.len() - trimmed.len(),
                }
            }
        };
        text.truncate(text.len() - n_repeated);
        // White space at the end is only wanted where something follows at once.
        let is_blank = trimmed_len(text) == 0;
        if is_blank || self.around.rest.first().is_none_or(|c| c.is_whitespace()) {
            text.truncate(trimmed_len(text));
        }
        let (scanner, _) = self.scan(text);
        if !is_blank && !scanner.is_in_text() {
            let n_open = scanner.open().len().saturating_sub(self.around.n_unopened);
            text.extend(scanner.open().iter().rev().take(n_open).map(|open| closer_of(open.bracket)));
        }
    }

    /// Reads `text`; also gives the number of brackets before the cursor that it closes.
    fn scan(&self, text: &[char]) -> (Scanner, usize) {
        let mut scanner = self.around.scanner.clone();
        let n_closed = text.iter().filter(|&&c| scanner.push(c) == Event::Unmatched).count();
        (scanner, n_closed)
    }

    /// Whether brackets belong together when `text` stands between what is there.
    fn is_balanced(&self, text: &[char]) -> bool {
        let (scanner, n_closed) = self.scan(text);
        scanner.open().len() == self.around.n_unopened && n_closed == self.around.unclosed.len()
    }

    /// Length of the longest tail of `text` that repeats the beginning of the rest and is not needed.
    fn repeated(&self, text: &[char]) -> usize {
        let rest = &self.around.rest;
        let longest = text.len().min(rest.len());
        (1..=longest).rev().find(|&n| text.ends_with(&rest[..n]) && self.is_needless(text, n)).unwrap_or(0)
    }

    /// Whether the last `n` characters of `text`, with which the rest begins, are not needed.
    fn is_needless(&self, text: &[char], n: usize) -> bool {
        let rest = &self.around.rest;
        let (kept, tail) = text.split_at(text.len() - n);
        if tail.iter().any(|c| "()[]{}".contains(*c)) {
            return self.is_balanced(kept);
        }
        let is_word = |c: Option<&char>| c.is_some_and(|c| c.is_alphanumeric() || *c == '_');
        let splits_a_word = |a: Option<&char>, b: Option<&char>| is_word(a) && is_word(b);
        if splits_a_word(kept.last(), tail.first()) {
            return false;
        }
        let is_whole = n == rest.len();
        let is_separator = matches!(tail, [';' | ',']);
        let n_letters = tail.iter().filter(|c| c.is_alphanumeric()).count();
        is_whole || is_separator || n_letters >= MIN_REPEATED && !splits_a_word(tail.last(), rest.get(n))
    }
}
