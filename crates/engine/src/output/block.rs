//! Where a completion of several lines ends.

use super::surroundings::{Cursor, Surroundings, indentation};
use super::trimmed_len;
use crate::StopReason;
use crate::syntax::{Event, Scanner, opener_of};

/// Lines that the following text must have in common with what is written before it counts as reached: one
/// line may well be written twice.
const MIN_REPEATED_LINES: usize = 2;
/// Blank lines that a completion may begin with.
const MAX_LEADING_BLANKS: usize = 2;
/// Lines at the level of a block's header that belong to it.
const CONTINUATIONS: [&str; 8] = ["else", "elif", "except", "finally", "catch", "case", "default", "end"];

/// What begins and ends code in Markdown.
const FENCE: &str = "```";

/// A completion that may go on over several lines: it ends with the block, at a blank line, where indentation
/// falls below where it began, before a bracket that the text behind the cursor closes already, where the
/// following lines are reached, or at a Markdown fence. Its first line is released as it comes, the others when
/// they are whole.
#[derive(Debug)]
pub(super) struct BlockEnd {
    around: Surroundings,
    scanner: Scanner,
    /// Where the line that is being written begins.
    line_start: usize,
    /// Whether that is within a string or a comment.
    starts_in_text: bool,
    /// Whether it closes a bracket of the text before the cursor.
    closes_outer: bool,
    n_lines: usize,
    n_blank: usize,
    /// Indentation that the block does not fall below.
    base: Option<usize>,
    /// Whether the cursor's own line opens the block, and lines of that have been seen.
    is_header: bool,
    has_body: bool,
    /// Lines at the end that are those behind the cursor, where they begin, and the lines before them.
    n_repeated: usize,
    repeated_start: usize,
    n_before_repeated: usize,
}

/// Whether a line opens a block.
fn is_header(line: &str) -> bool {
    line.trim_end().ends_with([':', '{', '(', '[', '>'])
}

impl BlockEnd {
    pub(super) fn new(around: Surroundings) -> Self {
        let base = (!around.line.trim().is_empty()).then(|| indentation(&around.line));
        Self {
            scanner: around.scanner.clone(),
            around,
            line_start: 0,
            starts_in_text: false,
            closes_outer: false,
            n_lines: 0,
            n_blank: 0,
            base,
            is_header: false,
            has_body: false,
            n_repeated: 0,
            repeated_start: 0,
            n_before_repeated: 0,
        }
    }

    /// Takes the last character of `text`. Says whether it ended the completion.
    pub(super) fn push(&mut self, text: &mut Vec<char>) -> Option<StopReason> {
        let character = *text.last()?;
        let event = self.scanner.push(character);
        if character == '\n' {
            let line: String = text[self.line_start..text.len() - 1].iter().collect();
            if let Some(end) = self.judge(&line) {
                text.truncate(end);
                return Some(StopReason::EndOfBlock);
            }
            if self.n_repeated >= MIN_REPEATED_LINES {
                return Some(StopReason::FollowingText);
            }
            self.line_start = text.len();
            self.closes_outer = false;
            self.starts_in_text = self.scanner.is_in_text();
        }
        if event == Event::Unmatched {
            if self.around.unclosed.last().copied() != opener_of(character) {
                let is_alone = text[self.line_start..text.len() - 1].iter().all(|c| c.is_whitespace());
                text.truncate(if is_alone { self.before_line() } else { text.len() - 1 });
                return Some(StopReason::EndOfBlock);
            }
            self.around.unclosed.pop();
            self.closes_outer = true;
        }
        None
    }

    /// Characters that no later line takes away.
    pub(super) fn n_safe(&self, text: &[char]) -> usize {
        // A line whose indentation has been set by another may be behind the end.
        let is_first = self.n_lines == 0 && (self.line_start == 0 || self.base.is_none());
        match is_first {
            true if self.may_end(&text[self.line_start.min(text.len())..]) => self.before_line(),
            true => text.len(),
            false if self.n_repeated > 0 => self.repeated_start,
            false => self.before_line(),
        }
    }

    pub(super) fn finish(&mut self, text: &mut Vec<char>, reason: StopReason) {
        let is_cut =
            matches!(reason, StopReason::MaxTokens | StopReason::ContextLimit | StopReason::Repetition);
        if is_cut && self.n_lines > 0 {
            // A whole line is worth more than a line and a half.
            text.truncate(self.before_line());
        } else if !matches!(reason, StopReason::EndOfBlock | StopReason::FollowingText) {
            let line: String = text[self.line_start.min(text.len())..].iter().collect();
            if !line.trim().is_empty()
                && let Some(end) = self.judge(&line)
            {
                text.truncate(end);
            }
        }
        // A single line that is both the whole completion and the next line is the model's own choice.
        if self.n_repeated > 0 && (self.n_before_repeated > 0 || self.n_repeated >= MIN_REPEATED_LINES) {
            text.truncate(self.repeated_start);
        }
        text.truncate(trimmed_len(text));
        if self.around.cursor == Cursor::AtStart && !text.is_empty() {
            text.push('\n');
        }
    }

    /// The end of the line before the one that is being written.
    fn before_line(&self) -> usize {
        self.line_start.saturating_sub(1)
    }

    /// Takes a line that is whole. `Some` where the completion ends, before that line.
    fn judge(&mut self, line: &str) -> Option<usize> {
        let trimmed = line.trim();
        let is_first = self.n_lines == 0;
        let continues_line = self.line_start == 0 && !self.around.line.trim().is_empty();
        if trimmed.is_empty() && continues_line {
            // Nothing more on the cursor's own line.
            self.is_header = is_header(&self.around.line);
            return None;
        }
        if trimmed.is_empty() {
            self.n_blank += 1;
            let is_inside = self.starts_in_text
                || matches!(self.scanner.open().last(), Some(open) if open.bracket != '{');
            let is_end = if is_first { self.n_blank > MAX_LEADING_BLANKS } else { !is_inside };
            return is_end.then_some(self.before_line());
        }
        if trimmed.starts_with(FENCE) && !self.around.is_markdown {
            return Some(self.before_line());
        }
        let whole =
            if self.line_start == 0 { format!("{}{line}", self.around.line) } else { line.to_owned() };
        let indentation = indentation(&whole);
        let base = *self.base.get_or_insert(indentation);
        if continues_line {
            self.is_header = is_header(&whole);
        } else if !self.starts_in_text && !self.closes_outer {
            let belongs = CONTINUATIONS.iter().any(|word| trimmed.starts_with(word))
                || trimmed.starts_with(['}', ')', ']']);
            let is_sibling = self.is_header && self.has_body && indentation == base && !belongs;
            if indentation < base || is_sibling {
                return Some(self.before_line());
            }
            self.has_body |= indentation > base;
        }
        if self.closes_outer {
            // A bracket that is needed is no repetition of one that is there.
            self.n_repeated = 0;
        } else if !continues_line {
            self.compare(trimmed);
        }
        self.n_lines += 1;
        None
    }

    /// Counts how many lines at the end are the following ones.
    fn compare(&mut self, line: &str) {
        let is_at = |idx: usize| {
            self.around.following.get(idx).is_some_and(|next| next.iter().copied().eq(line.chars()))
        };
        if self.n_repeated > 0 && is_at(self.n_repeated) {
            self.n_repeated += 1;
        } else if is_at(0) {
            self.n_repeated = 1;
            self.repeated_start = self.before_line();
            self.n_before_repeated = self.n_lines;
        } else {
            self.n_repeated = 0;
        }
    }

    /// Whether the line that is being written may become the first of the following lines, or a fence.
    fn may_end(&self, line: &[char]) -> bool {
        // Lines are compared without white space at either end: a carriage return is some.
        let line = &line[..trimmed_len(line)];
        let start = line.iter().position(|c| !c.is_whitespace()).unwrap_or(line.len());
        let is_fence = line[start..].iter().zip(FENCE.chars()).all(|(a, b)| *a == b);
        if is_fence && !self.around.is_markdown {
            return true;
        }
        let continues_line = self.line_start == 0 && !self.around.line.trim().is_empty();
        !continues_line && self.around.following.first().is_some_and(|next| next.starts_with(&line[start..]))
    }
}
