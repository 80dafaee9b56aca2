//! What a model is told: the text around the cursor, and what is like it in other files, within a budget.
//!
//! All of it is a function of the request alone, and changes as little as possible from keystroke to keystroke,
//! so that the tokens before the cursor's line stay in the cache.

mod similar;

use model::{Tokenizer, TokenizerError};
use serde::{Deserialize, Serialize};
use ts_rs::TS;

use crate::prompt::{Prompt, PromptFormat, PromptTexts, SuffixVisibility, splits_at_lines};

/// Another file that is open or was edited lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, TS)]
#[serde(deny_unknown_fields)]
#[ts(export)]
pub struct ContextFile {
    /// Its path, from the root of the repository.
    pub path: String,
    /// Its text, or the part that was edited.
    pub text: String,
}

/// Most tokens of the parts of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptBudget {
    /// Tokens before the cursor.
    pub prefix_tokens: usize,
    /// Tokens after the cursor.
    pub suffix_tokens: usize,
    /// Tokens of other files.
    pub other_tokens: usize,
    /// What the text after the cursor sees.
    pub visibility: SuffixVisibility,
}

impl Default for PromptBudget {
    fn default() -> Self {
        Self {
            prefix_tokens: 1024,
            suffix_tokens: 256,
            other_tokens: 512,
            visibility: SuffixVisibility::default(),
        }
    }
}

impl PromptBudget {
    /// As much of this as a context of `n` tokens has room for.
    pub(crate) fn within(self, n: usize) -> Self {
        let total = self.prefix_tokens + self.suffix_tokens + self.other_tokens;
        if total <= n {
            return self;
        }
        let share = |tokens: usize| tokens * n / total;
        Self {
            prefix_tokens: share(self.prefix_tokens).max(1),
            suffix_tokens: share(self.suffix_tokens),
            other_tokens: share(self.other_tokens),
            ..self
        }
    }
}

/// What stands around the cursor, and in other files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContextTexts<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) suffix: &'a str,
    pub(crate) path: Option<&'a str>,
    pub(crate) repository: &'a str,
    pub(crate) other_files: &'a [ContextFile],
    pub(crate) recent_edits: &'a [ContextFile],
}

/// Text is cut to this many bytes per token of its budget before it is tokenized.
const BYTES_PER_TOKEN: usize = 8;
/// Share of the prefix's budget that the cursor's line gets.
const LINE_SHARE: usize = 8;
/// Share of the prefix's budget that the beginning of a long file gets.
const HEAD_SHARE: usize = 6;
/// Rough number of bytes of a token of code.
const TYPICAL_BYTES: usize = 3;

/// Makes the prompt for `texts`.
pub(crate) fn build(
    format: &PromptFormat,
    tokenizer: &Tokenizer,
    texts: ContextTexts<'_>,
    budget: PromptBudget,
) -> Result<Prompt, TokenizerError> {
    let ContextTexts { prefix, suffix, path, repository, .. } = texts;
    let line_start = match splits_at_lines(tokenizer.kind()) {
        true => prefix.rfind('\n').map_or(0, |newline| newline + 1),
        false => 0,
    };
    let (before, line) = prefix.split_at(line_start);
    let visibility = match splits_at_lines(tokenizer.kind()) {
        true => budget.visibility,
        false => SuffixVisibility::AsTrained,
    };
    // Both have their share whatever the other takes: what is typed must not move what stands before it.
    let for_line = if before.is_empty() { budget.prefix_tokens } else { budget.prefix_tokens / LINE_SHARE };
    let line = tail(line, for_line.max(1) * TYPICAL_BYTES);
    let before = tokens_before(tokenizer, before, path, budget.prefix_tokens.saturating_sub(for_line))?;
    let after = match format.can_infill() && !suffix.trim().is_empty() {
        true => tokens_after(tokenizer, suffix, budget.suffix_tokens)?,
        false => Vec::new(),
    };
    let others =
        if format.has_repository() { similar::chunks(texts, budget.other_tokens) } else { Vec::new() };
    format.render(tokenizer, PromptTexts { repository, others, path, before, line, after, visibility })
}

/// The text before the cursor's line: all of it, or where that is too long the head of the file with what it
/// imports, and as much as there is room for right before the line.
fn tokens_before(
    tokenizer: &Tokenizer,
    text: &str,
    path: Option<&str>,
    n: usize,
) -> Result<Vec<u32>, TokenizerError> {
    if text.is_empty() || n == 0 {
        return Ok(Vec::new());
    }
    if text.len() <= n * BYTES_PER_TOKEN {
        let tokens = tokenizer.encode(text)?;
        if tokens.len() <= n {
            return Ok(tokens);
        }
    }
    let mut tokens = head_of_file(tokenizer, text, path, n / HEAD_SHARE)?;
    let room = n - tokens.len();
    let nearest = tail_from_a_line(text, room * BYTES_PER_TOKEN);
    let mut nearest =
        if tokens.is_empty() { tokenizer.encode(nearest)? } else { tokenizer.encode_inside(nearest)? };
    drop_front(&mut nearest, room);
    tokens.extend(nearest);
    Ok(tokens)
}

/// The imports at the head of a file, without its licence.
fn head_of_file(
    tokenizer: &Tokenizer,
    text: &str,
    path: Option<&str>,
    n: usize,
) -> Result<Vec<u32>, TokenizerError> {
    let is_comment = |line: &str| {
        let line = line.trim_start();
        ["//", "/*", "*", "#!", "# ", "--", ";;", "<!--"].iter().any(|start| line.starts_with(start))
            || line == "#"
    };
    let is_import = |line: &str| {
        const WORDS: [&str; 13] = [
            "import ", "from ", "use ", "pub use ", "#include", "using ", "package ", "require", "const ",
            "extern ", "mod ", "module ", "export ",
        ];
        WORDS.iter().any(|word| line.starts_with(word))
    };
    let mut head = String::new();
    let mut open = false;
    for line in text.lines().skip_while(|line| line.trim().is_empty() || is_comment(line)).take(200) {
        // What an import opens belongs to it.
        if open || is_import(line) {
            head.push_str(line);
            head.push('\n');
            let opens = line.matches(['(', '{']).count() as isize - line.matches([')', '}']).count() as isize;
            open = if open { opens >= 0 } else { opens > 0 };
        }
        if head.len() > n * BYTES_PER_TOKEN {
            break;
        }
    }
    if head.is_empty() {
        return Ok(Vec::new());
    }
    head.push_str(crate::syntax::comment_mark(path, text));
    head.push_str(" …\n");
    let tokens = tokenizer.encode(&head)?;
    Ok(if tokens.len() <= n { tokens } else { Vec::new() })
}

/// The text after the cursor, up to the end of a line.
fn tokens_after(tokenizer: &Tokenizer, suffix: &str, n: usize) -> Result<Vec<u32>, TokenizerError> {
    let text = head(suffix, n * BYTES_PER_TOKEN);
    let mut tokens = tokenizer.encode_inside(text)?;
    tokens.truncate(n);
    Ok(tokens)
}

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

/// The end of `text`.
pub(crate) fn tail(text: &str, max_bytes: usize) -> &str {
    let start = text.len().saturating_sub(max_bytes);
    &text[(start..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len())..]
}

/// The beginning of `text`.
pub(crate) fn head(text: &str, max_bytes: usize) -> &str {
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(tail(&text, max_bytes).len() <= max_bytes);
            assert!(tail_from_a_line(&text, max_bytes).len() <= max_bytes.max(4));
        }
    }
}
