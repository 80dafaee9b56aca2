//! From the text around a cursor to the tokens of a prompt.

use model::{InfillToken, Tokenizer, TokenizerError, TokenizerKind};
use speculate::Layout;

/// A piece of an infilling prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The token that says that the text before the cursor follows.
    PrefixMark,
    /// The token that says that the text after the cursor follows.
    SuffixMark,
    /// The token behind which the model writes.
    MiddleMark,
    /// The text before the cursor.
    Before,
    /// The text after the cursor.
    After,
}

use Part::{After, Before, MiddleMark, PrefixMark, SuffixMark};

/// How a family of models is asked for the middle of a text.
#[derive(Debug)]
struct InfillFormat {
    /// For people.
    name: &'static str,
    /// Names of the marks of prefix, suffix and middle; the last is empty where there is none.
    marks: [&'static str; 3],
    order: &'static [Part],
    /// Names of the tokens before the name of a repository and before that of a file.
    repository: [&'static str; 2],
}

const PREFIX_FIRST: &[Part] = &[PrefixMark, Before, SuffixMark, After, MiddleMark];
const SUFFIX_FIRST: &[Part] = &[SuffixMark, After, PrefixMark, Before, MiddleMark];

/// The formats by the names of their tokens, the more particular ones first. Sources: the model cards, and for
/// Code Llama arXiv 2308.12950, §2.3: suffix first is what it was trained on half the time, and a keystroke then
/// changes the end of the prompt only.
const FORMATS: &[InfillFormat] = &[
    InfillFormat {
        name: "Qwen",
        marks: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        order: PREFIX_FIRST,
        repository: ["<|repo_name|>", "<|file_sep|>"],
    },
    InfillFormat {
        name: "CodeGemma",
        marks: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        order: PREFIX_FIRST,
        repository: ["", "<|file_separator|>"],
    },
    InfillFormat {
        name: "Granite",
        marks: ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        order: PREFIX_FIRST,
        repository: ["", ""],
    },
    InfillFormat {
        name: "StarCoder2",
        marks: ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        order: PREFIX_FIRST,
        repository: ["<repo_name>", "<file_sep>"],
    },
    InfillFormat {
        name: "StarCoder",
        marks: ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        order: PREFIX_FIRST,
        repository: ["<reponame>", "<filename>"],
    },
    InfillFormat {
        name: "StarCoder",
        marks: ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        order: PREFIX_FIRST,
        repository: ["", ""],
    },
    InfillFormat {
        name: "Code Llama",
        marks: ["▁<PRE>", "▁<SUF>", "▁<MID>"],
        order: &[PrefixMark, SuffixMark, After, MiddleMark, Before],
        repository: ["", ""],
    },
    InfillFormat {
        name: "DeepSeek",
        marks: ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        order: PREFIX_FIRST,
        repository: ["", ""],
    },
    InfillFormat {
        name: "Codestral",
        marks: ["[PREFIX]", "[SUFFIX]", ""],
        order: &[SuffixMark, After, PrefixMark, Before],
        repository: ["", ""],
    },
    InfillFormat {
        name: "Seed-Coder",
        marks: ["<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"],
        order: SUFFIX_FIRST,
        repository: ["", ""],
    },
];

/// How a model is asked: with its own tokens, or with the text before the cursor alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptFormat {
    name: &'static str,
    /// `None` for models that cannot fill in.
    infill: Option<Infill>,
    /// The tokens before the name of a repository, where there is one, and before that of a file.
    repository: Option<(Option<u32>, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Infill {
    prefix: u32,
    suffix: u32,
    middle: Option<u32>,
    order: &'static [Part],
}

/// Whether the text after the cursor sees the line that the cursor stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SuffixVisibility {
    /// It does, as the models were trained; each keystroke computes it anew.
    AsTrained,
    /// What is right behind the cursor does; the rest is computed once for a line, without that line, and a
    /// keystroke costs what was typed and what is right behind it.
    #[default]
    BlindToLine,
}

/// Tokens right behind the cursor that are computed anew with each keystroke, as models were trained; with what
/// is typed they fit into one pass.
pub(crate) const NEAR_TOKENS: usize = 48;
/// Tokens behind those below which they are computed anew too: that costs little.
pub(crate) const MIN_ASIDE_TOKENS: usize = 32;

/// The tokens of a prompt, and where they stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// In the order in which they are computed.
    pub tokens: Vec<u32>,
    /// Which of them are aside.
    pub layout: Layout,
}

/// The texts that a prompt is made of, cut to what the model is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PromptTexts<'a> {
    /// Name of the repository.
    pub(crate) repository: &'a str,
    /// Names and texts of other files.
    pub(crate) others: Vec<(&'a str, &'a str)>,
    /// Name of the file.
    pub(crate) path: Option<&'a str>,
    /// Tokens of the text before the cursor's line.
    pub(crate) before: Vec<u32>,
    /// That line, up to the cursor.
    pub(crate) line: &'a str,
    /// Tokens of the text after the cursor.
    pub(crate) after: Vec<u32>,
    pub(crate) visibility: SuffixVisibility,
}

impl PromptFormat {
    /// The format of a model: by the marks that its file names, else by the tokens it has.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let special = |name: &str| if name.is_empty() { None } else { tokenizer.special(name) };
        let named = |token| tokenizer.infill_token(token);
        let has = |format: &&InfillFormat| {
            let [prefix, suffix, middle] = format.marks.map(special);
            let has_marks =
                prefix.is_some() && suffix.is_some() && (middle.is_some() || format.marks[2].is_empty());
            has_marks && format.repository.iter().all(|name| name.is_empty() || special(name).is_some())
        };
        let known = FORMATS.iter().find(has);
        // The file's own word counts for the tokens; the order comes from the table where they are known.
        let of_file = match (named(InfillToken::Prefix), named(InfillToken::Suffix)) {
            (Some(prefix), Some(suffix)) => Some((prefix, suffix, named(InfillToken::Middle))),
            _ => None,
        };
        let of_table = known.and_then(|format| {
            let [prefix, suffix, middle] = format.marks.map(special);
            Some((prefix?, suffix?, middle))
        });
        let order = known.map_or(PREFIX_FIRST, |format| format.order);
        let infill =
            of_file.or(of_table).map(|(prefix, suffix, middle)| Infill { prefix, suffix, middle, order });
        let infill = infill.filter(|infill| infill.middle.is_some() || !order.contains(&MiddleMark));
        let [repository, file] = known.map_or([None, None], |format| format.repository.map(special));
        let repository = named(InfillToken::Repository).or(repository);
        let file = named(InfillToken::File).or(file);
        Self {
            name: match (&infill, known) {
                (None, _) => "prefix only",
                (Some(_), Some(format)) => format.name,
                (Some(_), None) => "fill-in",
            },
            repository: file.filter(|_| infill.is_some()).map(|file| (repository, file)),
            infill,
        }
    }

    /// Whether the model can fill in.
    pub fn can_infill(&self) -> bool {
        self.infill.is_some()
    }

    /// Whether the model knows how several files look.
    pub fn has_repository(&self) -> bool {
        self.repository.is_some()
    }

    /// A name for people.
    pub fn name(&self) -> String {
        match self.infill {
            Some(_) => format!("fill-in ({})", self.name),
            None => self.name.to_owned(),
        }
    }

    /// The tokens that ask for the text between `before` and `after`, in the form that the model was trained with.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn between(
        &self,
        tokenizer: &Tokenizer,
        before: &str,
        after: &str,
    ) -> Result<Vec<u32>, TokenizerError> {
        let before = if before.is_empty() { Vec::new() } else { tokenizer.encode_inside(before)? };
        let after = if after.is_empty() { Vec::new() } else { tokenizer.encode_inside(after)? };
        let visibility = SuffixVisibility::AsTrained;
        let texts = PromptTexts { before, after, visibility, ..PromptTexts::default() };
        Ok(self.render(tokenizer, texts)?.tokens)
    }

    /// The tokens that ask for the text between those of `texts`. Without text after the cursor they ask for a
    /// plain continuation. User text never becomes a special token.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub(crate) fn render(
        &self,
        tokenizer: &Tokenizer,
        texts: PromptTexts<'_>,
    ) -> Result<Prompt, TokenizerError> {
        let PromptTexts { repository, others, path, before, line, after, visibility } = texts;
        let mut tokens: Vec<u32> = tokenizer.start_of_sequence().into_iter().collect();
        if let Some((repository_mark, file_mark)) = self.repository
            && (path.is_some() || !others.is_empty())
        {
            if let Some(mark) = repository_mark {
                tokens.push(mark);
                tokens.extend(tokenizer.encode_inside(&format!("{repository}\n"))?);
            }
            for (path, text) in others {
                tokens.push(file_mark);
                tokens.extend(tokenizer.encode_inside(&format!("{path}\n{text}\n"))?);
            }
            tokens.push(file_mark);
            tokens.extend(tokenizer.encode_inside(&format!("{}\n", path.unwrap_or("untitled")))?);
        }
        // Tokens do not reach over the start of the line, so that what is typed changes the tokens of its line.
        let of_line =
            if before.is_empty() { tokenizer.encode(line)? } else { tokenizer.encode_inside(line)? };
        let Some(infill) = self.infill.as_ref().filter(|_| !after.is_empty()) else {
            tokens.extend(before);
            tokens.extend(of_line);
            return Ok(Prompt { tokens, layout: Layout::default() });
        };
        let order = infill.order;
        let is_prefix_first = order == PREFIX_FIRST;
        let is_aside = is_prefix_first
            && visibility == SuffixVisibility::BlindToLine
            && after.len() >= NEAR_TOKENS + MIN_ASIDE_TOKENS;
        let mut layout = Layout::default();
        if is_aside {
            tokens.push(infill.prefix);
            tokens.extend(before);
            let start = tokens.len();
            // A mark and near tokens of their own: those of the line see the line, and they must not.
            tokens.push(infill.suffix);
            tokens.extend(&after);
            let (n_inner, n_line) = (1 + NEAR_TOKENS, of_line.len() + 1 + NEAR_TOKENS);
            layout = Layout { aside: start..tokens.len(), n_line, n_inner };
            tokens.extend(of_line);
            tokens.push(infill.suffix);
            tokens.extend(&after[..NEAR_TOKENS]);
            tokens.extend(infill.middle);
            return Ok(Prompt { tokens, layout });
        }
        for part in order {
            match part {
                PrefixMark => tokens.push(infill.prefix),
                SuffixMark => tokens.push(infill.suffix),
                MiddleMark => tokens.extend(infill.middle),
                After => tokens.extend(&after),
                Before => {
                    tokens.extend(&before);
                    tokens.extend(&of_line);
                }
            }
        }
        Ok(Prompt { tokens, layout })
    }
}

/// Whether a tokenizer keeps line breaks apart from what follows them, so that a text can be tokenized in
/// pieces that end with a line.
pub(crate) fn splits_at_lines(kind: TokenizerKind) -> bool {
    kind != TokenizerKind::ByteLevelStarCoder
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
}
