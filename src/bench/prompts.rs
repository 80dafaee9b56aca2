//! Prompts to measure on: HumanEval, single-line infilling, or places in source files.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
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
/// Bytes of other files that a prompt comes with.
const MAX_OTHER_BYTES: usize = 128 << 10;

/// Which places in source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Places {
    /// Every twelfth line
    All,
    /// Of those, where code like the next lines stands elsewhere in the folder: as in editing
    Akin,
}

/// A place to complete at.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) prefix: String,
    pub(crate) suffix: String,
    pub(crate) other_files: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
    #[serde(default)]
    suffix: String,
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
        let Line { prompt, suffix } = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}: not a prompt", path.display(), idx + 1))?;
        Ok(Prompt { prefix: prompt, suffix, other_files: Vec::new() })
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

fn of_folder(folder: &Path, places: Places) -> anyhow::Result<Vec<Prompt>> {
    let mut paths = Vec::new();
    sources(folder, &mut paths)?;
    if paths.is_empty() {
        bail!("{} holds no source files ({})", folder.display(), SOURCE_ENDINGS.join(", "));
    }
    let texts: Vec<String> = paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
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
            let other_files = others.iter().map(|&other| texts[other].clone()).collect();
            prompts.push(Prompt { prefix: prefix.to_owned(), suffix: suffix.to_owned(), other_files });
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
