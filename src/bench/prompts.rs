//! Prompts to measure on: HumanEval, single-line infilling, or places in source files.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use engine::ContextFile;
use serde::Deserialize;

/// Largest file of prompts, and largest source file that is read, in bytes.
const MAX_PROMPTS_BYTES: u64 = 256 << 20;
const MAX_SOURCE_BYTES: u64 = 256 << 10;
/// Endings of the source files of a folder.
const SOURCE_ENDINGS: [&str; 12] =
    ["rs", "py", "ts", "js", "svelte", "c", "h", "cpp", "go", "java", "kt", "swift"];
/// Lines between two places in a file.
const STRIDE_LINES: usize = 12;
/// Lines that are looked at for whether code like them stands elsewhere.
const N_AHEAD: usize = 4;
/// Share of their word triples that must.
const MIN_AKIN: f64 = 0.6;
/// Places of a kind in one file.
const MAX_SPANS: usize = 6;
/// Bytes of other files that a prompt comes with.
const MAX_OTHER_BYTES: usize = 128 << 10;

/// Which places in source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Places {
    /// Every twelfth line
    All,
    /// Of those, where code like the next lines stands elsewhere in the folder: as in editing
    Akin,
    /// Within the brackets of a call
    Calls,
    /// Behind the first word of an import
    Imports,
    /// At the last lines of blocks
    Blocks,
    /// Behind some token of a line
    Lines,
}

/// A place within a text: what stands there is between the two.
type Span = (usize, usize);

/// The places of one kind in `text`.
fn spans(text: &str, places: Places) -> Vec<Span> {
    let starts: Vec<usize> =
        std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |n| at + n);
    let mut found = Vec::new();
    for (idx, &start) in starts.iter().enumerate() {
        let end = line_end(start);
        let line = &text[start..end];
        let indent = line.len() - line.trim_start().len();
        let is_comment =
            ["//", "#", "*", "/*", "\"\"\""].iter().any(|mark| line.trim_start().starts_with(mark));
        if line.trim().is_empty() || is_comment {
            continue;
        }
        match places {
            Places::Calls => found.extend(call(line).map(|(from, to)| (start + from, start + to))),
            Places::Imports => {
                let words = ["import ", "from ", "use ", "pub use "];
                let word = words.iter().find(|word| line.trim_start().starts_with(**word));
                found.extend(word.map(|word| (start + indent + word.len(), end)));
            }
            Places::Blocks => {
                // The last line of a block and the one before it, where the next line is indented less.
                let next = starts.get(idx + 1).map(|&at| &text[at..line_end(at)]);
                let falls = next.is_some_and(|next| {
                    !next.trim().is_empty() && next.len() - next.trim_start().len() < indent
                });
                let from = starts[idx.saturating_sub(1)];
                let first = &text[from..line_end(from)];
                let same = first.len() - first.trim_start().len() == indent && !first.trim().is_empty();
                found.extend((falls && same && from < start).then_some((from + indent, end)));
            }
            Places::Lines => {
                // Behind the first word boundary in the middle of the line.
                let middle = indent + (line.len() - indent) / 3;
                let at = line.char_indices().map(|(at, _)| at).find(|&at| {
                    at > middle && !line[at..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                });
                found.extend(at.filter(|at| line.len() - at > 3).map(|at| (start + at, end)));
            }
            Places::All | Places::Akin => (),
        }
    }
    found
}

/// The arguments of the first call in a line that is more than a pair of brackets.
fn call(line: &str) -> Option<Span> {
    let open = line.match_indices('(').map(|(at, _)| at).find(|&at| {
        let is_call = line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        is_call && !line[at + 1..].starts_with(')')
    })?;
    let mut depth = 0;
    for (at, c) in line[open..].char_indices() {
        depth += isize::from("([{".contains(c)) - isize::from(")]}".contains(c));
        if depth == 0 {
            return Some((open + 1, open + at));
        }
    }
    None
}

/// A place to complete at.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) prefix: String,
    pub(crate) suffix: String,
    /// What stood there; empty where that is not known.
    pub(crate) middle: String,
    /// A Python program that checks the whole, and the function that it checks.
    pub(crate) test: Option<(String, String)>,
    /// Path in the folder.
    pub(crate) path: Option<String>,
    pub(crate) other_files: Vec<ContextFile>,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
    #[serde(default)]
    suffix: String,
    #[serde(default)]
    canonical_solution: String,
    test: Option<String>,
    entry_point: Option<String>,
}

/// The prompts in `path`: a file with a JSON object per line (`prompt`, and perhaps `suffix`), gzipped or
/// not, or a folder of source files.
pub(crate) fn read(path: &Path, places: Places, limit: usize) -> anyhow::Result<Vec<Prompt>> {
    let prompts = if path.is_dir() { of_folder(path, places)? } else { of_file(path)? };
    ensure!(!prompts.is_empty(), "{} holds no prompts", path.display());
    // Evenly over all of them, so that a slice is like the whole.
    let n = limit.clamp(1, prompts.len());
    Ok((0..n).map(|i| prompts[i * prompts.len() / n].clone()).collect())
}

fn of_file(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let cannot_read = || format!("cannot read {}", path.display());
    let file = std::fs::File::open(path).with_context(cannot_read)?;
    let mut text = String::new();
    if path.extension().is_some_and(|ending| ending == "gz") {
        flate2::read::GzDecoder::new(file).take(MAX_PROMPTS_BYTES).read_to_string(&mut text)
    } else {
        file.take(MAX_PROMPTS_BYTES).read_to_string(&mut text)
    }
    .with_context(cannot_read)?;
    let parse = |(idx, line): (usize, &str)| -> anyhow::Result<Prompt> {
        let Line { prompt, suffix, canonical_solution, test, entry_point } = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: not a prompt", path.display(), idx + 1))?;
        let middle = canonical_solution;
        let test = test.zip(entry_point);
        Ok(Prompt { prefix: prompt, suffix, middle, test, path: None, other_files: Vec::new() })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries: Vec<_> = entries.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        let is_built = ["target", "node_modules", "dist"].iter().any(|name| entry.file_name() == *name);
        if kind.is_dir() && !is_hidden && !is_built {
            sources(&path, found)?;
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let is_small = entry.metadata()?.len() <= MAX_SOURCE_BYTES;
        if kind.is_file() && is_small && SOURCE_ENDINGS.contains(&ending) {
            found.push(path);
        }
    }
    Ok(())
}

fn triples(text: &str) -> HashSet<[&str; 3]> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: Vec<&str> = text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).collect();
    words.windows(3).map(|three| [three[0], three[1], three[2]]).collect()
}

fn context_files(which: &[usize], names: &[String], texts: &[String]) -> Vec<ContextFile> {
    let file = |&idx: &usize| ContextFile { path: names[idx].clone(), text: texts[idx].clone() };
    which.iter().map(file).collect()
}

fn of_folder(folder: &Path, places: Places) -> anyhow::Result<Vec<Prompt>> {
    let mut paths = Vec::new();
    sources(folder, &mut paths)?;
    if paths.is_empty() {
        bail!("{} holds no source files ({})", folder.display(), SOURCE_ENDINGS.join(", "));
    }
    let read = |path: &PathBuf| {
        let name = path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
        Some((name, std::fs::read_to_string(path).ok()?))
    };
    let (names, texts): (Vec<String>, Vec<String>) = paths.iter().filter_map(read).unzip();
    let triples_of: Vec<HashSet<[&str; 3]>> = texts.iter().map(|text| triples(text)).collect();
    let mut prompts = Vec::new();
    for (idx, text) in texts.iter().enumerate() {
        // The files that have most in common with this one are those one would have open.
        let mut others: Vec<usize> = (0..texts.len()).filter(|&other| other != idx).collect();
        others.sort_by_key(|&other| {
            std::cmp::Reverse(triples_of[idx].intersection(&triples_of[other]).count())
        });
        let mut n_bytes = 0;
        others.retain(|&other| {
            n_bytes += texts[other].len();
            n_bytes <= MAX_OTHER_BYTES
        });
        if !matches!(places, Places::All | Places::Akin) {
            let spans = spans(text, places);
            // No file has more to say than another.
            let n = spans.len().min(MAX_SPANS);
            for (from, to) in (0..n).map(|i| spans[i * spans.len() / n]) {
                prompts.push(Prompt {
                    prefix: text[..from].to_owned(),
                    suffix: text[to..].to_owned(),
                    middle: text[from..to].to_owned(),
                    test: None,
                    path: Some(names[idx].clone()),
                    other_files: context_files(&others, &names, &texts),
                });
            }
            continue;
        }
        let lines: Vec<usize> = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .filter(|&at| at < text.len())
            .collect();
        for line in (STRIDE_LINES..lines.len().saturating_sub(N_AHEAD)).step_by(STRIDE_LINES) {
            let (start, end) = (lines[line], lines[line + N_AHEAD]);
            let indent = text[start..].len() - text[start..].trim_start_matches([' ', '\t']).len();
            let (prefix, suffix) = (&text[..start + indent], &text[end..]);
            if places == Places::Akin {
                let next = triples(&text[start..end]);
                let (before, after) = (triples(prefix), triples(suffix));
                let stands_elsewhere = |triple: &&[&str; 3]| {
                    before.contains(*triple)
                        || after.contains(*triple)
                        || others.iter().any(|&other| triples_of[other].contains(*triple))
                };
                let n_akin = next.iter().filter(stands_elsewhere).count();
                if next.len() < 6 || (n_akin as f64) < MIN_AKIN * next.len() as f64 {
                    continue;
                }
            }
            prompts.push(Prompt {
                prefix: prefix.to_owned(),
                suffix: suffix.to_owned(),
                middle: text[start + indent..end].to_owned(),
                test: None,
                path: Some(names[idx].clone()),
                other_files: context_files(&others, &names, &texts),
            });
        }
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_where_code_stands_elsewhere_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let body = |name: &str| {
            let line = |i: usize| format!("    let value_{i} = {name}.field_{i}(input, {i});\n");
            (0..40).map(line).collect::<String>()
        };
        std::fs::write(folder.path().join("a.rs"), body("first")).expect("writes");
        std::fs::write(folder.path().join("b.rs"), body("first")).expect("writes");
        let unlike: String = (0..40).map(|i| format!("only{i} here{i} stands{i} nothing{i}\n")).collect();
        std::fs::write(folder.path().join("c.rs"), unlike).expect("writes");
        let all = read(folder.path(), Places::All, 1000).expect("prompts");
        let akin = read(folder.path(), Places::Akin, 1000).expect("prompts");
        // Two places in each of three files of forty lines.
        assert_eq!((all.len(), akin.len()), (6, 4));
        assert!(akin.iter().all(|prompt| prompt.prefix.ends_with("    ") && prompt.other_files.len() == 2));
        assert_eq!(read(folder.path(), Places::All, 4).expect("prompts").len(), 4);
        std::fs::write(folder.path().join("bad.jsonl"), "{\"prompt\": \"x\"}\n{}\n").expect("writes");
        let error = read(&folder.path().join("bad.jsonl"), Places::All, 9).expect_err("no prompt");
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
