//! From the text around a cursor to the tokens of a prompt.

use model::{Tokenizer, TokenizerError, TokenizerKind};

/// How a model wants to be asked for the middle of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptFormat {
    /// `<|fim_prefix|>` prefix `<|fim_suffix|>` suffix `<|fim_middle|>` (Qwen2.5-Coder).
    QwenInfill,
    /// Start of sequence, `▁<PRE>` `▁<SUF>` suffix `▁<MID>` prefix, the suffix without the space that
    /// SentencePiece puts before a text: suffix first, as Code Llama was trained half the time (arXiv
    /// 2308.12950, §2.3). A keystroke then changes the end of the prompt only.
    CodeLlamaInfill,
    /// The text before the cursor, for models that cannot fill in.
    PrefixOnly,
}

/// Most tokens of a prompt. Text is dropped far from the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptBudget {
    /// Tokens before the cursor.
    pub prefix_tokens: usize,
    /// Tokens after the cursor.
    pub suffix_tokens: usize,
}

impl Default for PromptBudget {
    fn default() -> Self {
        Self { prefix_tokens: 768, suffix_tokens: 256 }
    }
}

/// Text is cut to this many bytes per token of its budget before it is tokenized.
const BYTES_PER_TOKEN: usize = 8;

impl PromptFormat {
    /// The format of a model, by the special tokens it has.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let has = |names: [&str; 3]| names.iter().all(|name| tokenizer.special(name).is_some());
        match tokenizer.kind() {
            TokenizerKind::SentencePiece if has(CODE_LLAMA) => Self::CodeLlamaInfill,
            TokenizerKind::ByteLevelQwen2 if has(QWEN) => Self::QwenInfill,
            _ => Self::PrefixOnly,
        }
    }

    /// Whether the text after the cursor stands before the text that a keystroke changes.
    pub fn is_suffix_first(self) -> bool {
        self == Self::CodeLlamaInfill
    }

    /// A name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::QwenInfill => "fill-in (Qwen)",
            Self::CodeLlamaInfill => "fill-in (Code Llama)",
            Self::PrefixOnly => "prefix only",
        }
    }

    /// The tokens that ask for the text between `prefix` and `suffix`. A blank suffix asks for a
    /// plain continuation. User text never becomes a special token.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn render(
        self,
        tokenizer: &Tokenizer,
        prefix: &str,
        suffix: &str,
        budget: PromptBudget,
    ) -> Result<Vec<u32>, TokenizerError> {
        let prefix = tail_from_a_line(prefix, budget.prefix_tokens * BYTES_PER_TOKEN);
        let suffix = head(suffix, budget.suffix_tokens * BYTES_PER_TOKEN);
        let mut before = tokenizer.encode(prefix)?;
        drop_front(&mut before, budget.prefix_tokens);
        let mut after = match self {
            Self::PrefixOnly => Vec::new(),
            _ if suffix.trim().is_empty() => Vec::new(),
            _ => tokenizer.encode_inside(suffix)?,
        };
        after.truncate(budget.suffix_tokens);

        let names = match self {
            _ if after.is_empty() => None,
            Self::QwenInfill => Some(QWEN),
            Self::CodeLlamaInfill => Some(CODE_LLAMA),
            Self::PrefixOnly => None,
        };
        let mut tokens: Vec<u32> = tokenizer.start_of_sequence().into_iter().collect();
        match names.map(|names| names.map(|name| tokenizer.special(name))) {
            Some([Some(pre), Some(suf), Some(mid)]) if self.is_suffix_first() => {
                tokens.extend([pre, suf]);
                tokens.extend(after);
                tokens.push(mid);
                tokens.extend(before);
            }
            Some([Some(pre), Some(suf), Some(mid)]) => {
                tokens.push(pre);
                tokens.extend(before);
                tokens.push(suf);
                tokens.extend(after);
                tokens.push(mid);
            }
            _ => tokens.extend(before),
        }
        Ok(tokens)
    }
}

const QWEN: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
const CODE_LLAMA: [&str; 3] = ["▁<PRE>", "▁<SUF>", "▁<MID>"];

/// The end of `text`, from the start of a line. The start moves in large strides only, so that
/// the prompts of successive keystrokes begin alike and their common part stays in the cache.
fn tail_from_a_line(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let stride = (max_bytes / 2).max(1);
    let earliest = (text.len() - max_bytes).next_multiple_of(stride);
    let earliest = (earliest..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let rest = &text[earliest..];
    match rest.find('\n') {
        Some(newline) if newline + 1 < rest.len() => &rest[newline + 1..],
        _ => rest,
    }
}

fn head(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    &text[..end]
}

/// Drops tokens from the front, again in large strides.
fn drop_front(tokens: &mut Vec<u32>, max_tokens: usize) {
    if tokens.len() > max_tokens {
        let stride = (max_tokens / 4).max(1);
        let excess = (tokens.len() - max_tokens).next_multiple_of(stride);
        tokens.drain(..excess.min(tokens.len().saturating_sub(1)));
    }
}

/// The byte offset of a place in `text`, as editors count: `line` from 1, `column` from 1 in
/// characters; the column after the last character is allowed. `None` when there is no such place.
pub fn byte_offset(text: &str, line: usize, column: usize) -> Option<usize> {
    let mut start = 0;
    for _ in 1..line {
        start += text[start..].find('\n')? + 1;
    }
    let rest = &text[start..];
    let line_text = rest.split('\n').next().unwrap_or_default();
    let line_text = line_text.strip_suffix('\r').unwrap_or(line_text);
    let mut ends = line_text.char_indices().map(|(at, _)| at).chain([line_text.len()]);
    ends.nth(column.checked_sub(1)?).filter(|_| line > 0).map(|at| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_as_editors_count() {
        let text = "ab\r\ncé🦀d\n\nx";
        let cases = [
            ((1, 1), Some(0)),
            ((1, 3), Some(2)),
            ((1, 4), None),
            ((2, 3), Some(7)),
            ((2, 4), Some(11)),
            ((2, 5), Some(12)),
            ((3, 1), Some(13)),
            ((4, 2), Some(15)),
            ((5, 1), None),
            ((0, 1), None),
            ((1, 0), None),
        ];
        for ((line, column), expected) in cases {
            assert_eq!(byte_offset(text, line, column), expected, "{line}:{column}");
        }
    }

    #[test]
    fn the_kept_tail_starts_at_a_line_and_moves_in_strides() {
        let text: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        let tail = tail_from_a_line(&text, 1000);
        assert!(tail.len() <= 1000 && tail.starts_with("line ") && text.ends_with(tail));
        let longer = format!("{text}abc");
        assert_eq!(tail_from_a_line(&longer, 1000), format!("{tail}abc"), "a keystroke keeps the start");
    }

    #[test]
    fn cuts_keep_characters_whole() {
        let text = "🦀".repeat(100);
        for max_bytes in 0..50 {
            assert!(head(&text, max_bytes).len() <= max_bytes);
            assert!(tail_from_a_line(&text, max_bytes).len() <= max_bytes.max(4));
        }
    }
}
