//! As much of a language's syntax as brackets need: what is a comment, what is a string, and what opens and
//! closes. A guess that is wrong costs a worse cut, never an error.

/// How a language writes comments and strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    hash_comments: bool,
    slash_comments: bool,
    triple_quotes: bool,
    /// `'a'` is a character and `'a` a lifetime.
    lifetimes: bool,
    /// Strings in backticks may span lines.
    backtick_strings: bool,
    /// Whether there are strings at all.
    quotes: bool,
}

impl Syntax {
    const C: Self = Self {
        hash_comments: false,
        slash_comments: true,
        triple_quotes: false,
        lifetimes: false,
        backtick_strings: false,
        quotes: true,
    };
    /// Text for people, as comments hold: brackets, and nothing else.
    pub(crate) const PROSE: Self = Self { slash_comments: false, quotes: false, ..Self::C };
    const PYTHON: Self = Self { hash_comments: true, slash_comments: false, triple_quotes: true, ..Self::C };
    const RUST: Self = Self { lifetimes: true, ..Self::C };
    const SCRIPT: Self = Self { backtick_strings: true, ..Self::C };
    const SHELL: Self = Self { hash_comments: true, slash_comments: false, ..Self::C };

    /// By the ending of `path`; without one that is known, by what `text` looks like.
    pub(crate) fn of(path: Option<&str>, text: &str) -> Self {
        let ending = path.and_then(|path| path.rsplit_once('.')).map_or("", |(_, ending)| ending);
        match ending {
            "py" | "pyi" | "pyx" => Self::PYTHON,
            "rs" => Self::RUST,
            "js" | "jsx" | "mjs" | "cjs" | "ts" | "tsx" | "mts" | "svelte" | "vue" | "go" => Self::SCRIPT,
            "sh" | "bash" | "zsh" | "rb" | "pl" | "yml" | "yaml" | "toml" | "r" | "jl" | "ex" | "exs" => {
                Self::SHELL
            }
            "c" | "h" | "cc" | "cpp" | "cxx" | "hpp" | "java" | "kt" | "kts" | "swift" | "cs" | "scala"
            | "dart" | "zig" | "css" | "scss" | "json" => Self::C,
            _ => Self::guess(text),
        }
    }

    fn guess(text: &str) -> Self {
        let mut votes = [0usize; 3];
        for line in text.lines().rev().take(200) {
            let line = line.trim();
            let starts = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
            let is_header =
                line.ends_with(':') && starts(&["def ", "class ", "if ", "for ", "while ", "elif "]);
            votes[0] +=
                usize::from(is_header || starts(&["import ", "from ", "\"\"\""]) && !line.ends_with(';'));
            votes[1] += usize::from(starts(&["fn ", "pub ", "impl ", "let mut ", "#[", "use "]));
            votes[2] +=
                usize::from(starts(&["function ", "const ", "export ", "import {", "func ", "package "]));
        }
        match votes {
            [0, 0, 0] => Self::C,
            [python, rust, script] if python >= rust && python >= script => Self::PYTHON,
            [_, rust, script] if rust >= script => Self::RUST,
            _ => Self::SCRIPT,
        }
    }
}

/// What starts a comment in the language of `path`, or in one that looks like `text`.
pub(crate) fn comment_mark(path: Option<&str>, text: &str) -> &'static str {
    if Syntax::of(path, text).hash_comments { "#" } else { "//" }
}

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Nothing to the brackets.
    Other,
    /// It opened a bracket.
    Opened,
    /// It closed the innermost bracket.
    Closed,
    /// It closes a bracket that was not opened in this text.
    Unmatched,
    /// It ended the string that the text began in.
    EndedString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment {
        star: bool,
    },
    /// `n` quotes end it.
    String {
        quote: char,
        n: usize,
        n_seen: usize,
        escaped: bool,
    },
    /// Behind a single quote where lifetimes are: one character, if there was one already.
    Quote {
        first: Option<char>,
    },
}

/// A bracket that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) bracket: char,
    /// Line of the text that it stands in, from 0.
    pub(crate) line: usize,
}

/// Reads a text character by character and keeps the brackets that are open.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    syntax: Syntax,
    state: State,
    /// Whether the text began inside a string that has not ended yet.
    in_outer_string: bool,
    open: Vec<Opener>,
    line: usize,
    previous: char,
    before_previous: char,
}

/// The bracket that opens what `closer` closes.
pub(crate) fn opener_of(closer: char) -> Option<char> {
    Some(match closer {
        ')' => '(',
        ']' => '[',
        '}' => '{',
        _ => return None,
    })
}

/// The bracket that closes `opener`.
pub(crate) fn closer_of(opener: char) -> char {
    match opener {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

impl Scanner {
    pub(crate) fn new(syntax: Syntax) -> Self {
        Self {
            syntax,
            state: State::Code,
            in_outer_string: false,
            open: Vec::new(),
            line: 0,
            previous: '\n',
            before_previous: '\n',
        }
    }

    /// A scanner that goes on in the comment or string where this one stands, with no bracket open.
    pub(crate) fn fork(&self) -> Self {
        Self { open: Vec::new(), line: 0, in_outer_string: self.string().is_some(), ..self.clone() }
    }

    /// The brackets that are open, outermost first.
    pub(crate) fn open(&self) -> &[Opener] {
        &self.open
    }

    /// Number of line breaks so far.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    /// The quote that ends the string that the text stands in.
    pub(crate) fn string(&self) -> Option<char> {
        match self.state {
            State::String { quote, .. } => Some(quote),
            _ => None,
        }
    }

    /// Whether the text stands in a comment, or in a string of several lines.
    pub(crate) fn is_in_prose(&self) -> bool {
        match self.state {
            State::LineComment | State::BlockComment { .. } => true,
            State::String { quote, n, .. } => n > 1 || quote == '`',
            State::Code | State::Quote { .. } => false,
        }
    }

    /// Whether the text stands in a string or a comment.
    pub(crate) fn is_in_text(&self) -> bool {
        !matches!(self.state, State::Code | State::Quote { .. })
    }

    /// Takes the next character.
    pub(crate) fn push(&mut self, c: char) -> Event {
        let event = self.advance(c);
        self.line += usize::from(c == '\n');
        self.before_previous = std::mem::replace(&mut self.previous, c);
        event
    }

    fn advance(&mut self, c: char) -> Event {
        match self.state {
            State::Code => self.code(c),
            State::LineComment => {
                if c == '\n' {
                    self.state = State::Code;
                }
                Event::Other
            }
            State::BlockComment { star } => {
                self.state = match c {
                    '/' if star => State::Code,
                    _ => State::BlockComment { star: c == '*' },
                };
                Event::Other
            }
            State::Quote { first: None } => {
                self.state = match c {
                    '\\' => State::String { quote: '\'', n: 1, n_seen: 0, escaped: true },
                    _ => State::Quote { first: Some(c) },
                };
                Event::Other
            }
            State::Quote { first: Some(_) } => {
                self.state = State::Code;
                if c == '\'' { Event::Other } else { self.code(c) }
            }
            State::String { quote, n, n_seen, escaped } => {
                let next = |n_seen, escaped| State::String { quote, n, n_seen, escaped };
                let mut has_ended = false;
                self.state = match c {
                    _ if escaped => next(0, false),
                    '\\' => next(0, true),
                    // A string that nobody closed ends with its line.
                    '\n' if n == 1 && quote != '`' => State::Code,
                    _ if c == quote && n_seen + 1 == n => {
                        has_ended = true;
                        State::Code
                    }
                    _ => next(if c == quote { n_seen + 1 } else { 0 }, false),
                };
                if self.state == State::Code && std::mem::take(&mut self.in_outer_string) && has_ended {
                    return Event::EndedString;
                }
                Event::Other
            }
        }
    }

    fn code(&mut self, c: char) -> Event {
        let Syntax { hash_comments, slash_comments, triple_quotes, lifetimes, backtick_strings, quotes } =
            self.syntax;
        let string = |n| State::String { quote: c, n, n_seen: 0, escaped: false };
        match c {
            '(' | '[' | '{' => {
                self.open.push(Opener { bracket: c, line: self.line });
                return Event::Opened;
            }
            ')' | ']' | '}' => {
                // An opener of another kind above it was never closed.
                let at = self.open.iter().rposition(|open| Some(open.bracket) == opener_of(c));
                let Some(at) = at else { return Event::Unmatched };
                self.open.truncate(at);
                return Event::Closed;
            }
            '\'' if lifetimes => self.state = State::Quote { first: None },
            '"' | '\'' if triple_quotes && self.previous == c && self.before_previous == c => {
                self.state = string(3);
            }
            '"' | '\'' if quotes => self.state = string(1),
            '`' if backtick_strings => self.state = string(1),
            '#' if hash_comments => self.state = State::LineComment,
            '/' if slash_comments && self.previous == '/' => self.state = State::LineComment,
            '*' if slash_comments && self.previous == '/' => self.state = State::BlockComment { star: false },
            _ => (),
        }
        Event::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &str, text: &str) -> String {
        let mut scanner = Scanner::new(Syntax::of(Some(path), text));
        text.chars().for_each(|c| {
            scanner.push(c);
        });
        scanner.open().iter().map(|open| open.bracket).collect()
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        let cases = [
            ("a.py", "f(\"(\", '[', [1, {", "([{"),
            ("a.py", "x = '''(\n it's ( \" '''\ny = (", "("),
            ("a.py", "def f():\n    \"\"\"Don't (\n    \"\"\"\n    g(a // b, '''", "("),
            ("a.py", "x = ''\ny = [ # (\n", "["),
            ("a.rs", "fn f<'a>(x: &'a [u8]) { g('(', '\\'', \"\\\"(\", [", "{(["),
            ("a.rs", "// it's (\n/* ( */ f(b'{', ", "("),
            ("a.ts", "const a = `(${b(\n`; f(", "("),
            ("a.c", "char c = '('; if (a / b) { // (", "{"),
            ("a.c", "f(a], b", "("),
            ("a.c", "f([a)", ""),
        ];
        for (path, text, expected) in cases {
            assert_eq!(open(path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn languages_are_guessed_from_their_text() {
        let of = |text| Syntax::of(None, text);
        assert_eq!(of("import os\n\ndef f(x):\n    return 1\n"), Syntax::PYTHON);
        assert_eq!(of("use std::io;\n\npub fn f() {\n    let mut x = 1;\n"), Syntax::RUST);
        assert_eq!(of("import { a } from 'b';\nexport const x = 1;\n"), Syntax::SCRIPT);
        assert_eq!(of("int main() {\n"), Syntax::C);
        assert_eq!(Syntax::of(Some("x/y.unknown"), ""), Syntax::C);
    }

    #[test]
    fn a_fork_knows_the_string_that_it_began_in() {
        let mut scanner = Scanner::new(Syntax::C);
        "f(\"abc".chars().for_each(|c| {
            scanner.push(c);
        });
        assert_eq!((scanner.string(), scanner.open().len()), (Some('"'), 1));
        let mut fork = scanner.fork();
        let events: Vec<Event> = "(\\\"\")".chars().map(|c| fork.push(c)).collect();
        use Event::{EndedString, Other, Unmatched};
        assert_eq!(events, [Other, Other, Other, EndedString, Unmatched]);
    }
}
