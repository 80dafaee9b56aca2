//! From tokens to the text that is shown: whole characters, no stop strings, and nothing that
//! already follows the cursor.

use std::collections::VecDeque;

use model::StreamDecoder;

use crate::{Piece, StopReason};

/// How much of the text after the cursor is compared, in characters.
const MAX_FOLLOWING: usize = 1024;
/// Letters and digits that a repetition of the following text must have before it ends the
/// completion: a lone bracket proves nothing.
const MIN_REPEATED: usize = 4;

/// Holds back what may still turn out to be a stop string or a repetition of the text after the
/// cursor, and releases the rest.
#[derive(Debug)]
pub(crate) struct OutputFilter {
    decoder: StreamDecoder,
    stops: Vec<Vec<char>>,
    following: Vec<char>,
    /// Length of a repetition of `following` that ends the completion.
    repetition: Option<usize>,
    held: VecDeque<(char, bool)>,
}

impl OutputFilter {
    pub(crate) fn new(stops: &[String], suffix: &str) -> Self {
        let following: Vec<char> = suffix.chars().take(MAX_FOLLOWING).collect();
        let repetition = repetition_that_ends(&following);
        let stops = stops.iter().map(|stop| stop.chars().collect()).collect();
        Self { decoder: StreamDecoder::default(), stops, following, repetition, held: VecDeque::new() }
    }

    /// Takes the bytes of a token and returns what can be shown. The reason says that the
    /// completion has ended; nothing may be pushed after that.
    pub(crate) fn push(&mut self, bytes: &[u8], drafted: bool) -> (Vec<Piece>, Option<StopReason>) {
        let mut pieces = Vec::new();
        for character in self.decoder.push(bytes).chars() {
            self.held.push_back((character, drafted));
            if let Some(stop) = self.stops.iter().find(|stop| self.held_ends_with(stop)) {
                let n_kept = self.held.len() - stop.len();
                self.release(n_kept, &mut pieces);
                self.held.clear();
                return (pieces, Some(StopReason::StopString));
            }
            let overlap = self.overlap(&self.following);
            if self.repetition.is_some_and(|enough| overlap >= enough) {
                self.release(self.held.len() - overlap, &mut pieces);
                self.held.clear();
                return (pieces, Some(StopReason::FollowingText));
            }
            let undecided = self.stops.iter().map(|stop| self.overlap(stop)).fold(overlap, usize::max);
            self.release(self.held.len() - undecided, &mut pieces);
        }
        (pieces, None)
    }

    /// The rest, without what already follows the cursor.
    pub(crate) fn finish(mut self) -> Vec<Piece> {
        let rest = std::mem::take(&mut self.decoder).finish();
        self.held.extend(rest.chars().map(|character| (character, false)));
        let n_kept = self.held.len() - self.overlap(&self.following);
        let mut pieces = Vec::new();
        self.release(n_kept, &mut pieces);
        pieces
    }

    fn held_ends_with(&self, text: &[char]) -> bool {
        let held = self.held.iter().rev().map(|(character, _)| character);
        self.held.len() >= text.len() && held.zip(text.iter().rev()).all(|(a, b)| a == b)
    }

    /// Length of the longest tail of the held text that `text` starts with.
    fn overlap(&self, text: &[char]) -> usize {
        let longest = self.held.len().min(text.len());
        (1..=longest).rev().find(|&len| self.held_ends_with(&text[..len])).unwrap_or(0)
    }

    fn release(&mut self, n: usize, pieces: &mut Vec<Piece>) {
        for (character, drafted) in self.held.drain(..n) {
            match pieces.last_mut() {
                Some(piece) if piece.drafted == drafted => piece.text.push(character),
                _ => pieces.push(Piece { text: character.to_string(), drafted }),
            }
        }
    }
}

/// Up to the end of the first line by which enough letters and digits have been repeated.
fn repetition_that_ends(following: &[char]) -> Option<usize> {
    let mut n_seen = 0;
    for (idx, character) in following.iter().enumerate() {
        n_seen += usize::from(character.is_alphanumeric());
        let line_ends = following.get(idx + 1).is_none_or(|next| ['\n', '\r'].contains(next));
        if line_ends && n_seen >= MIN_REPEATED {
            return Some(idx + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], suffix: &str, tokens: &[&str]) -> (String, Option<StopReason>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut filter = OutputFilter::new(&stops, suffix);
        let mut text = String::new();
        for token in tokens {
            let (pieces, reason) = filter.push(token.as_bytes(), false);
            text.extend(pieces.into_iter().map(|piece| piece.text));
            if reason.is_some() {
                return (text, reason);
            }
        }
        text.extend(filter.finish().into_iter().map(|piece| piece.text));
        (text, None)
    }

    fn check(stops: &[&str], suffix: &str, tokens: &[&str], expected: &str, reason: Option<StopReason>) {
        assert_eq!(run(stops, suffix, tokens), (expected.to_owned(), reason));
        // The result does not depend on where tokens end.
        let whole = tokens.concat();
        assert_eq!(run(stops, suffix, &[&whole]), (expected.to_owned(), reason));
        let letters: Vec<String> = whole.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(run(stops, suffix, &letters), (expected.to_owned(), reason));
    }

    #[test]
    fn stop_strings_are_found_across_tokens_and_left_out() {
        check(&["\ndef "], "", &["return x", "\n", "de", "f y"], "return x", Some(StopReason::StopString));
        check(&["aab"], "", &["xa", "aa", "b!"], "xa", Some(StopReason::StopString));
        check(&["END", "\n\n"], "", &["a\n", "\nb"], "a", Some(StopReason::StopString));
        check(&["\n\n"], "", &["a\n", "b\n"], "a\nb\n", None);
    }

    #[test]
    fn text_after_the_cursor_is_not_repeated() {
        check(&[], ")", &["x", ", y)"], "x, y", None);
        check(&[], ")\n", &["f(a)", " + g(b)"], "f(a) + g(b", None);
        let suffix = "\n    return total\n\nprint(1)\n";
        let reason = Some(StopReason::FollowingText);
        check(&[], suffix, &["total += x", "\n    ", "return total", "\n\n"], "total += x", reason);
        check(&[], suffix, &["total += x", "\n    return None"], "total += x\n    return None", None);
        check(&[], "}\n}\n", &["a }", "\n}\n", "b"], "a }\n}\nb", None);
    }

    #[test]
    fn accepted_drafts_stay_marked() {
        let mut filter = OutputFilter::new(&["--".to_owned()], "");
        let (pieces, _) = filter.push(b"ab-", false);
        assert_eq!(pieces, [Piece { text: "ab".to_owned(), drafted: false }]);
        let (pieces, _) = filter.push(b"c", true);
        let expected =
            [("-", false), ("c", true)].map(|(text, drafted)| Piece { text: text.to_owned(), drafted });
        assert_eq!(pieces, expected);
    }

    #[test]
    fn half_characters_wait() {
        let mut filter = OutputFilter::new(&[], "");
        assert_eq!(filter.push(&"é".as_bytes()[..1], false).0, []);
        assert_eq!(filter.push(&"é".as_bytes()[1..], false).0[0].text, "é");
        filter.push(&"🦀".as_bytes()[..2], false);
        assert_eq!(filter.finish()[0].text, "\u{fffd}");
    }
}
