//! What a model is told: the text around the cursor, and what is like it in other files, within a budget.
//!
//! All of it is a function of the request alone, and changes as little as possible from keystroke to keystroke,
//! so that the tokens before the cursor's line stay in the cache.

use std::collections::HashSet;

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
/// Lines of a chunk of another file.
const CHUNK_LINES: usize = 24;
/// Lines before the cursor's that chunks are compared with, and how many are typed before that changes.
const QUERY_LINES: usize = 24;
const QUERY_STRIDE: usize = 8;
/// Similarity below which a chunk is not worth its tokens.
const MIN_SIMILARITY: f64 = 0.04;
/// Chunks that are as much alike as this say the same.
const MAX_SIMILARITY: f64 = 0.9;
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
    let others = if format.has_repository() { chunks(texts, budget.other_tokens) } else { Vec::new() };
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

/// The chunks of other files that are most like what stands before the cursor, as many as fit; in the order of
/// the files, so that they stay where they are when the choice changes a little.
fn chunks<'a>(texts: ContextTexts<'a>, n_tokens: usize) -> Vec<(&'a str, &'a str)> {
    let room = n_tokens * TYPICAL_BYTES;
    let ContextTexts { prefix, suffix, path, other_files, recent_edits, .. } = texts;
    let mut chosen: Vec<(usize, usize, &str, &str)> = Vec::new();
    let mut n_bytes = 0;
    let mut known: Vec<HashSet<&str>> = Vec::new();
    // What was edited a moment ago is what the next edit is about.
    for (idx, edit) in recent_edits.iter().enumerate() {
        let text = head(&edit.text, room / 2);
        if n_bytes + text.len() <= room / 2 && !text.trim().is_empty() {
            n_bytes += text.len();
            known.push(words(text));
            chosen.push((usize::MAX, idx, &edit.path, text));
        }
    }
    let query = words(query_lines(prefix, suffix));
    let mut candidates = Vec::new();
    for (file_idx, file) in
        other_files.iter().enumerate().filter(|(_, file)| Some(file.path.as_str()) != path)
    {
        for (chunk_idx, text) in chunks_of(&file.text).into_iter().enumerate() {
            let words = words(text);
            let similarity = similarity(&query, &words);
            if similarity >= MIN_SIMILARITY {
                candidates.push((similarity, file_idx, chunk_idx, file.path.as_str(), text, words));
            }
        }
    }
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, file_idx, chunk_idx, path, text, words) in candidates {
        let is_new = known.iter().all(|known| similarity(known, &words) < MAX_SIMILARITY);
        if is_new && n_bytes + text.len() + path.len() <= room {
            n_bytes += text.len() + path.len();
            known.push(words);
            chosen.push((file_idx, chunk_idx, path, text));
        }
    }
    chosen.sort_unstable_by_key(|&(file_idx, chunk_idx, ..)| (file_idx, chunk_idx));
    chosen.into_iter().map(|(_, _, path, text)| (path, text)).collect()
}

/// The lines before the cursor's own, in strides: a line more must not choose other chunks.
fn query_lines<'a>(prefix: &'a str, suffix: &'a str) -> &'a str {
    let starts: Vec<usize> =
        std::iter::once(0).chain(prefix.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let n_lines = starts.len() - 1;
    let end = n_lines / QUERY_STRIDE * QUERY_STRIDE;
    let start = end.saturating_sub(QUERY_LINES);
    match end {
        // At the beginning of a file what follows says more.
        0 => head(suffix, QUERY_LINES * 40),
        _ => &prefix[starts[start]..starts[end]],
    }
}

/// Pieces of a text of some lines each.
fn chunks_of(text: &str) -> Vec<&str> {
    let mut chunks = Vec::new();
    let (mut start, mut n_lines) = (0, 0);
    for (at, _) in text.match_indices('\n') {
        n_lines += 1;
        // A blank line is where a chunk is best cut.
        let is_blank = text[at + 1..].starts_with(['\n', '\r']);
        if n_lines >= CHUNK_LINES || n_lines >= CHUNK_LINES / 2 && is_blank {
            chunks.push(text[start..at].trim_matches(['\n', '\r']));
            (start, n_lines) = (at + 1, 0);
        }
    }
    chunks.push(text[start..].trim_matches(['\n', '\r']));
    chunks.retain(|chunk| !chunk.trim().is_empty());
    chunks
}

fn words(text: &str) -> HashSet<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c: char| !is_word(c)).filter(|word| word.len() > 1).collect()
}

/// Jaccard's index.
fn similarity(a: &HashSet<&str>, b: &HashSet<&str>) -> f64 {
    let n_common = a.intersection(b).count();
    let n_all = a.len() + b.len() - n_common;
    if n_all == 0 { 0.0 } else { n_common as f64 / n_all as f64 }
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

    fn file(path: &str, text: &str) -> ContextFile {
        ContextFile { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn chunks_are_those_that_are_alike_in_the_order_of_their_files() {
        let alike = "fn read_header(file: &File) -> Header {\n    file.parse_header()\n}\n";
        let unlike = (0..40).map(|n| format!("unlike_{n} = {n}\n")).collect::<String>();
        let files = [
            file("z.rs", alike),
            file("a.rs", &unlike),
            file("b.rs", &alike.replace("read_header", "write_header")),
            file("here.rs", alike),
        ];
        let edits = [file("c.rs", "fn edited() {}\n")];
        let prefix = "fn read_header(file: &File) -> Header {\n".repeat(8);
        let texts = ContextTexts {
            prefix: &prefix,
            suffix: "",
            path: Some("here.rs"),
            repository: "",
            other_files: &files,
            recent_edits: &edits,
        };
        let paths = |n_tokens| chunks(texts, n_tokens).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths(400), ["z.rs", "b.rs", "c.rs"]);
        assert!(paths(0).is_empty());
        let typed = format!("{prefix}    let x = file.");
        let longer = chunks(ContextTexts { prefix: &typed, ..texts }, 400);
        assert_eq!(longer, chunks(texts, 400), "what is typed chooses no other chunks");
    }

    #[test]
    fn chunks_end_at_blank_lines_and_lose_nothing() {
        let text: String =
            (0..100).map(|n| if n % 15 == 14 { "\n".to_owned() } else { format!("{n}\n") }).collect();
        let chunks = chunks_of(&text);
        let lines: Vec<&str> =
            chunks.iter().flat_map(|chunk| chunk.lines()).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>());
        assert!(chunks.iter().all(|chunk| chunk.lines().count() <= CHUNK_LINES));
    }
}
