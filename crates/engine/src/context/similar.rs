//! Which parts of other files a model is told of: those that are most like the text around the cursor.

use std::collections::{HashMap, HashSet};

use super::{ContextTexts, TYPICAL_BYTES, head};

/// Lines of a chunk of another file at most: short ones, so that many places of other files fit into the budget.
const CHUNK_LINES: usize = 8;
/// Lines from which on a blank line ends a chunk.
const MIN_CHUNK_LINES: usize = 3;
/// Lines before the cursor's that chunks are compared with, and how many are typed before that changes.
const LINES_BEFORE: usize = 24;
const STRIDE_LINES: usize = 8;
/// Lines behind the cursor's that they are compared with.
const LINES_AFTER: usize = 8;
/// Share of what makes the text around the cursor particular that a chunk must have to be worth its tokens.
const MIN_SCORE: f64 = 0.05;
/// How much more a word counts where a chunk defines it: a caller must know what it calls.
const DEFINITION_WEIGHT: u64 = 4;
/// What stands before the name of what is defined, in the usual languages.
const DEFINING_WORDS: [&str; 14] = [
    "class",
    "const",
    "def",
    "enum",
    "fn",
    "func",
    "function",
    "interface",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
];
/// Chunks that have as many of their words in common say the same.
const MAX_ALIKE: f64 = 0.85;

/// A piece of another file.
struct Chunk<'a> {
    file_idx: usize,
    start: usize,
    path: &'a str,
    text: &'a str,
    words: HashSet<&'a str>,
    defined: HashSet<&'a str>,
    score: f64,
}

/// The chunks of other files that are most like the text around the cursor, and what was edited a moment ago, as
/// many as fit into `n_tokens`; in the order of the files, so that they stay where they are when the choice
/// changes a little.
pub(super) fn chunks<'a>(texts: ContextTexts<'a>, n_tokens: usize) -> Vec<(&'a str, &'a str)> {
    let room = n_tokens * TYPICAL_BYTES;
    let ContextTexts { path, other_files, recent_edits, .. } = texts;
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
    let others = other_files.iter().enumerate().filter(|(_, file)| Some(file.path.as_str()) != path);
    let mut candidates: Vec<Chunk<'_>> = others
        .flat_map(|(file_idx, file)| {
            chunks_of(&file.text).into_iter().map(move |(start, text)| Chunk {
                file_idx,
                start,
                path: file.path.as_str(),
                text,
                words: words(text),
                defined: defined(text),
                score: 0.0,
            })
        })
        .collect();
    rate(&mut candidates, &query(texts));
    candidates
        .sort_by(|a, b| b.score.total_cmp(&a.score).then((a.file_idx, a.start).cmp(&(b.file_idx, b.start))));
    for chunk in candidates.into_iter().take_while(|chunk| chunk.score >= MIN_SCORE) {
        let is_new = known.iter().all(|known| alike(known, &chunk.words) < MAX_ALIKE);
        let size = chunk.text.len() + chunk.path.len();
        if is_new && n_bytes + size <= room {
            n_bytes += size;
            known.push(chunk.words);
            chosen.push((chunk.file_idx, chunk.start, chunk.path, chunk.text));
        }
    }
    chosen.sort_unstable_by_key(|&(file_idx, start, ..)| (file_idx, start));
    chosen.into_iter().map(|(_, _, path, text)| (path, text)).collect()
}

/// Scores chunks by the words that they share with `query`, rare ones more than common ones (inverse document
/// frequency; Spärck Jones 1972), divided by the root of all that they say, so that length alone is no merit.
/// 1 for a chunk of the query's words alone, and more for one that defines some of them. Weights are whole numbers, whose sums are the same in any
/// order and on any machine, as the text of a request must be.
fn rate(candidates: &mut [Chunk<'_>], query: &HashSet<&str>) {
    let mut n_with = HashMap::<&str, u64>::new();
    for chunk in candidates.iter() {
        chunk.words.iter().for_each(|word| *n_with.entry(word).or_default() += 1);
    }
    let n = candidates.len() as u64;
    let weights: HashMap<&str, u64> =
        n_with.into_iter().map(|(word, n_with)| (word, rarity(n, n_with).pow(2))).collect();
    let total =
        |words: &mut dyn Iterator<Item = &&str>| words.filter_map(|word| weights.get(word)).sum::<u64>();
    let of_query = total(&mut query.iter()) as f64;
    for chunk in candidates {
        let shared = total(&mut chunk.words.iter().filter(|word| query.contains(*word)));
        let defined = total(&mut chunk.defined.iter().filter(|word| query.contains(*word)));
        let common = (shared + (DEFINITION_WEIGHT - 1) * defined) as f64;
        let norm = (of_query * total(&mut chunk.words.iter()) as f64).sqrt();
        chunk.score = if norm > 0.0 { common / norm } else { 0.0 };
    }
}

/// 256 times the binary logarithm of `1 + n / (n_with + 1/2)`, along a line between powers of two.
fn rarity(n: u64, n_with: u64) -> u64 {
    let ratio = (1 << 16) + (n << 17) / (2 * n_with + 1);
    let whole = u64::from(ratio.ilog2());
    ((whole - 16) << 8) + (ratio >> (whole - 8) & 255)
}

/// The words around the cursor: of the lines before its own, in strides, so that a line more chooses no other
/// chunks, and of the lines behind it. Nothing of the line itself: a keystroke must not choose other chunks.
fn query<'a>(texts: ContextTexts<'a>) -> HashSet<&'a str> {
    let ContextTexts { prefix, suffix, .. } = texts;
    let starts: Vec<usize> =
        std::iter::once(0).chain(prefix.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let n_lines = starts.len() - 1;
    let end = n_lines / STRIDE_LINES * STRIDE_LINES;
    let start = end.saturating_sub(LINES_BEFORE);
    let mut found = words(&prefix[starts[start]..starts[end]]);
    let after = suffix.find('\n').map_or("", |at| &suffix[at + 1..]);
    let end = after.match_indices('\n').nth(LINES_AFTER).map_or(after.len(), |(at, _)| at);
    found.extend(words(&after[..end]));
    found
}

/// Pieces of a text of some lines each, and where they begin. A blank line is where one is best cut.
fn chunks_of(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut n_lines) = (0, 0);
    for (at, _) in text.match_indices('\n') {
        n_lines += 1;
        let is_blank = text[at + 1..].starts_with(['\n', '\r']);
        if n_lines >= CHUNK_LINES || n_lines >= MIN_CHUNK_LINES && is_blank {
            chunks.push((start, text[start..at].trim_matches(['\n', '\r'])));
            (start, n_lines) = (at + 1, 0);
        }
    }
    chunks.push((start, text[start..].trim_matches(['\n', '\r'])));
    chunks.retain(|(_, chunk)| !chunk.trim().is_empty());
    chunks
}

fn words_in_order(text: &str) -> impl Iterator<Item = &str> + Clone {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.split(move |c: char| !is_word(c)).filter(|word| !word.is_empty())
}

fn words(text: &str) -> HashSet<&str> {
    words_in_order(text).filter(|word| word.len() > 1).collect()
}

/// The names that `text` defines, as far as words tell.
fn defined(text: &str) -> HashSet<&str> {
    let followed = words_in_order(text).zip(words_in_order(text).skip(1));
    followed.filter(|(before, _)| DEFINING_WORDS.contains(before)).map(|(_, name)| name).collect()
}

/// Share of the words of the shorter that the other has too.
fn alike(a: &HashSet<&str>, b: &HashSet<&str>) -> f64 {
    a.intersection(b).count() as f64 / a.len().min(b.len()).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContextFile;

    #[test]
    fn rarity_is_a_logarithm() {
        for (n, n_with) in [(1u64, 1u64), (10, 1), (1000, 1), (1000, 999), (100_000, 3)] {
            let exact = 256.0 * (1.0 + n as f64 / (n_with as f64 + 0.5)).log2();
            assert!((rarity(n, n_with) as f64 - exact).abs() < 24.0, "{n} {n_with}: {exact}");
        }
    }

    fn file(path: &str, text: &str) -> ContextFile {
        ContextFile { path: path.to_owned(), text: text.to_owned() }
    }

    /// At the end of a file with others beside it.
    fn here<'a>(prefix: &'a str, other_files: &'a [ContextFile]) -> ContextTexts<'a> {
        let path = Some("here.rs");
        ContextTexts { prefix, suffix: "", path, repository: "", other_files, recent_edits: &[] }
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
        let texts = ContextTexts { recent_edits: &edits, ..here(&prefix, &files) };
        let paths = |n_tokens| chunks(texts, n_tokens).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths(400), ["z.rs", "b.rs", "c.rs"]);
        assert!(paths(0).is_empty());
        let typed = format!("{prefix}    let x = file.");
        let longer = chunks(ContextTexts { prefix: &typed, ..texts }, 400);
        assert_eq!(longer, chunks(texts, 400), "what is typed chooses no other chunks");
    }

    /// Where both say as much of the words around the cursor, the one that defines one of them tells more.
    #[test]
    fn what_is_called_is_told_before_what_calls_it() {
        let caller = "let parsed = parse_header(file, limit, mode);\nuse_it(parsed, limit, mode);\n";
        let definition =
            "fn parse_header(file: File, limit: usize) {\n    let mode = open(file, limit);\n}\n";
        let unlike = (0..40).map(|n| format!("unlike_{n} = {n}\n")).collect::<String>();
        let files =
            [file("caller.rs", caller), file("definition.rs", definition), file("unlike.rs", &unlike)];
        let prefix = "x = parse_header(file, limit, mode)\n".repeat(8);
        let texts = here(&prefix, &files);
        let room_for_one = definition.len().max(caller.len()) / TYPICAL_BYTES + 8;
        let paths: Vec<&str> = chunks(texts, room_for_one).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["definition.rs"]);
        assert_eq!(
            defined("class A(B):\n    def run(self): pass\nconst x = 1"),
            HashSet::from(["A", "run", "x"])
        );
    }

    #[test]
    fn chunks_end_at_blank_lines_and_lose_nothing() {
        let text: String =
            (0..100).map(|n| if n % 15 == 14 { "\n".to_owned() } else { format!("{n}\n") }).collect();
        let chunks = chunks_of(&text);
        let lines: Vec<&str> =
            chunks.iter().flat_map(|chunk| chunk.1.lines()).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>());
        assert!(chunks.iter().all(|chunk| chunk.1.lines().count() <= CHUNK_LINES));
    }
}
