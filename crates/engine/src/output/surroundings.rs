//! What stands around the cursor, as far as it says where a completion ends.

use crate::context::{head, tail};
use crate::syntax::{Event, Opener, Scanner, Syntax, opener_of};

/// Text on either side of the cursor that is read, in bytes.
const MAX_BYTES: usize = 1 << 16;
/// Lines behind the cursor that are compared with what is written.
const MAX_FOLLOWING: usize = 8;
/// Lines behind a line that is completed in which its brackets may close.
const MAX_STATEMENT_LINES: usize = 100;
/// Width of a tab in an indentation.
const TAB: usize = 4;

/// Where the cursor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// The rest of its line is blank.
    AtEnd,
    /// Something follows on its line.
    Within,
    /// At the very start of a line that holds something: what is inserted are whole lines.
    AtStart,
}

/// The text around the cursor.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) cursor: Cursor,
    /// The rest of the cursor's line, without white space at its end.
    pub(crate) rest: Vec<char>,
    /// The lines that follow, trimmed, those that are blank left out.
    pub(crate) following: Vec<Vec<char>>,
    /// Reads on from the cursor.
    pub(crate) scanner: Scanner,
    /// Brackets before the cursor that the text behind it does not close, innermost last: what is inserted
    /// may close them.
    pub(crate) unclosed: Vec<char>,
    /// Brackets that the text behind the cursor closes on its line and nothing opens: what is inserted may
    /// leave so many open.
    pub(crate) n_unopened: usize,
    /// Ends the string that the cursor stands in, when the rest of its line does so already.
    pub(crate) closed_quote: Option<char>,
    /// The cursor's line, up to the cursor.
    pub(crate) line: String,
    /// Whether Markdown is being written, where a fence is no end.
    pub(crate) is_markdown: bool,
}

/// Width of the white space that `text` starts with.
pub(crate) fn indentation(text: &str) -> usize {
    let blanks = text.chars().take_while(|c| c.is_whitespace());
    blanks.map(|c| if c == '\t' { TAB } else { 1 }).sum()
}

impl Surroundings {
    pub(crate) fn of(path: Option<&str>, prefix: &str, suffix: &str) -> Self {
        let (prefix, suffix) = (tail(prefix, MAX_BYTES), head(suffix, MAX_BYTES));
        let syntax = Syntax::of(path, prefix);
        let mut scanner = Scanner::new(syntax);
        prefix.chars().for_each(|c| {
            scanner.push(c);
        });
        let line = prefix.rsplit('\n').next().unwrap_or_default();
        if scanner.is_in_prose() {
            // Brackets in a comment belong together too, but to nothing outside their line.
            scanner = Scanner::new(Syntax::PROSE);
            line.chars().for_each(|c| {
                scanner.push(c);
            });
        }
        let mut lines = suffix.split('\n');
        let rest = lines.next().unwrap_or_default().trim_end();
        let cursor = match (rest.trim().is_empty(), line.is_empty()) {
            (true, _) => Cursor::AtEnd,
            (false, true) => Cursor::AtStart,
            (false, false) => Cursor::Within,
        };
        let following = if cursor == Cursor::AtStart { suffix.lines() } else { suffix[rest.len()..].lines() };
        let following = following.map(str::trim).filter(|line| !line.is_empty());
        let inside = scanner.fork();
        let closed_quote = scanner.string().filter(|_| closes_string(&scanner, rest));
        let (unclosed, n_unopened) = match cursor {
            Cursor::Within => brackets_of_statement(&scanner, line, rest, suffix),
            Cursor::AtEnd | Cursor::AtStart => (brackets_of_text(&scanner, suffix), 0),
        };
        Self {
            cursor,
            rest: rest.chars().collect(),
            following: following.take(MAX_FOLLOWING).map(|line| line.chars().collect()).collect(),
            scanner: inside,
            unclosed,
            n_unopened,
            closed_quote,
            line: line.to_owned(),
            is_markdown: path.is_some_and(|path| path.ends_with(".md")),
        }
    }
}

fn closes_string(scanner: &Scanner, rest: &str) -> bool {
    let mut scanner = scanner.fork();
    rest.chars().any(|c| scanner.push(c) == Event::EndedString)
}

/// The closers in `text` that nothing in it opens.
fn unmatched<'a>(scanner: &Scanner, text: &'a str) -> impl Iterator<Item = char> + use<'a> {
    let mut scanner = scanner.fork();
    text.chars().filter(move |&c| scanner.push(c) == Event::Unmatched)
}

/// Brackets of the whole text before the cursor that `suffix` leaves open, innermost last. Those that it
/// closes are the outer ones: what is being written is closed from inside.
fn brackets_of_text(scanner: &Scanner, suffix: &str) -> Vec<char> {
    let open: Vec<char> = scanner.open().iter().map(|open| open.bracket).collect();
    let mut n_closed = 0;
    // Sizes first: which of the brackets a closer belongs to depends on how many there are.
    let closers: Vec<char> = unmatched(scanner, suffix).take(open.len()).collect();
    let first = open.len() - closers.len();
    for (closer, opener) in closers.iter().zip(open[..closers.len()].iter().rev()) {
        if opener_of(*closer) != Some(*opener) {
            break;
        }
        n_closed += 1;
    }
    // Where the kinds do not fit, the text is not what it seems; then nothing is forbidden.
    if n_closed == closers.len() { open[open.len() - first..].to_vec() } else { open }
}

/// For a cursor within a line: brackets of that line which neither its rest nor the rest of the statement
/// closes, and the number of closers in its rest that nothing opens.
fn brackets_of_statement(scanner: &Scanner, line: &str, rest: &str, suffix: &str) -> (Vec<char>, usize) {
    let is_here = |open: &&Opener| open.line == scanner.line();
    let of_line: Vec<char> = scanner.open().iter().filter(is_here).map(|open| open.bracket).collect();
    let n_outer = scanner.open().len() - of_line.len();
    let n_in_rest = unmatched(scanner, rest).count();
    let n_unopened = n_in_rest.saturating_sub(of_line.len() + n_outer);

    // The statement goes on as long as lines are indented more, or start with a closer where it began.
    let base = indentation(line);
    let mut end = suffix.find('\n').map_or(suffix.len(), |newline| newline + 1);
    for next in suffix[end..].split_inclusive('\n').take(MAX_STATEMENT_LINES) {
        let is_closer = next.trim_start().starts_with([')', ']', '}']);
        let ends = indentation(next) < base || indentation(next) == base && !is_closer;
        if ends && !next.trim().is_empty() {
            break;
        }
        end += next.len();
    }
    let mut remaining = of_line.clone();
    let mut n_closed = 0;
    for closer in unmatched(scanner, &suffix[..end]) {
        let Some(opener) = opener_of(closer) else { continue };
        match remaining.iter().rposition(|&open| open == opener) {
            Some(at) => {
                remaining.truncate(at);
                n_closed += 1;
            }
            None => break,
        }
    }
    // As many as nobody closes; the innermost, since the text closes from outside.
    let n_unclosed = of_line.len().saturating_sub(n_closed);
    (of_line[of_line.len() - n_unclosed..].to_vec(), n_unopened)
}
