//! How text is cut before byte-level BPE.
//!
//! For: the pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.
//! Must never: cut in another way than the model was trained with: a name that isn't here is
//! an error; lose or add a byte: the parts of a text, joined, are the text.
//! Relies on: `classes.rs`. The patterns are those of the families' `tokenizer.json`, written
//! out by hand because a backtracking matcher gives up on long runs of white space.

use super::classes::{Class, class, is_punctuation};
use crate::error::LoadError;

/// A way to cut text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// GPT-2's pattern.
    Gpt2,
    /// Every number character alone, then GPT-2's pattern.
    SmolLm,
    /// Llama 3's pattern: numbers in groups of three.
    Llama3,
    /// Qwen 2's pattern: as Llama 3, numbers one by one. The text is in NFC.
    Qwen2,
    /// What llama.cpp's converter calls `default`: runs of punctuation, then GPT-2's pattern,
    /// then runs of numbers, then ASCII digits in groups of three.
    Default,
}

/// Names of `tokenizer.ggml.pre` (llama.cpp's converter writes them) that stand for a pattern.
const NAMES: [(&str, Splitter); 9] = [
    ("gpt-2", Splitter::Gpt2),
    ("phi-2", Splitter::Gpt2),
    ("smollm", Splitter::SmolLm),
    ("llama-bpe", Splitter::Llama3),
    ("llama3", Splitter::Llama3),
    ("llama-v3", Splitter::Llama3),
    ("qwen2", Splitter::Qwen2),
    ("deepseek-r1-qwen", Splitter::Qwen2),
    ("default", Splitter::Default),
];

impl Splitter {
    /// The splitter that a file names.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for a missing or unknown name.
    pub(super) fn named(name: Option<&str>) -> Result<Splitter, LoadError> {
        let found = NAMES.iter().find(|(known, _)| Some(*known) == name);
        found.map(|(_, splitter)| *splitter).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            let name = name.map_or("none".to_string(), |name| format!("{name:?}"));
            LoadError::Tokenizer(format!(
                "pre-tokenizer {name} (tokenizer.ggml.pre) is unknown, text would be split in \
                 another way than in training; known are {}",
                known.join(", ")
            ))
        })
    }

    /// Gives `each` the parts of `text` in order.
    pub(super) fn split<'a>(self, text: &'a str, each: &mut dyn FnMut(&'a str)) {
        let is_number = |c| class(c) == Class::Number;
        match self {
            Splitter::Gpt2 => repeat(text, first_gpt2, each),
            Splitter::Llama3 => repeat(text, |text| first_llama3(text, 3), each),
            Splitter::Qwen2 => repeat(text, |text| first_llama3(text, 1), each),
            Splitter::SmolLm => isolate(text, is_number, 1, &mut |part: &'a str| {
                repeat(part, first_gpt2, each);
            }),
            Splitter::Default => {
                let is_mark = |c| is_punctuation(c) || "$+<=>^~|".contains(c);
                let is_digit = |c: char| c.is_ascii_digit();
                let digits = &mut |part: &'a str| {
                    repeat(part, |text| first_three(text, is_digit), &mut *each)
                };
                let numbers = &mut |part: &'a str| isolate(part, is_number, usize::MAX, digits);
                isolate(text, is_mark, usize::MAX, &mut |part: &'a str| {
                    repeat(part, first_gpt2, numbers);
                });
            }
        }
    }
}

/// Cuts off what `first` measures until nothing is left.
fn repeat<'a>(mut text: &'a str, first: impl Fn(&str) -> usize, each: &mut dyn FnMut(&'a str)) {
    while !text.is_empty() {
        let (part, rest) = text.split_at(first(text));
        each(part);
        text = rest;
    }
}

/// Cuts runs of the characters that `is_wanted` out of `text`, `most` characters each.
fn isolate<'a>(
    text: &'a str,
    is_wanted: impl Fn(char) -> bool,
    most: usize,
    each: &mut dyn FnMut(&'a str),
) {
    let first = |text: &str| match run(text, most, &is_wanted) {
        0 => run(text, usize::MAX, |c| !is_wanted(c)),
        wanted => wanted,
    };
    repeat(text, first, each);
}

/// Bytes of the characters that `text` begins with and `is_wanted`, at most `most` of them.
fn run(text: &str, most: usize, is_wanted: impl Fn(char) -> bool) -> usize {
    let mut left = most;
    let end = text.find(|c| {
        let goes_on = left > 0 && is_wanted(c);
        left = left.saturating_sub(1);
        !goes_on
    });
    end.unwrap_or(text.len())
}

/// Bytes of the run of one class that `text` begins with.
fn run_of(wanted: Class, text: &str) -> usize {
    run(text, usize::MAX, |c| class(c) == wanted)
}

fn first_class(text: &str) -> Option<Class> {
    text.chars().next().map(class)
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn first_gpt2(text: &str) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(found) = CONTRACTIONS.iter().find(|found| text.starts_with(**found)) {
        return found.len();
    }
    let lead = usize::from(text.starts_with(' '));
    match first_class(&text[lead..]) {
        Some(Class::Space) | None => spaces(text),
        Some(found) => lead + run_of(found, &text[lead..]),
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
/// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`, with `numbers` for the 3.
fn first_llama3(text: &str, numbers: usize) -> usize {
    if let Some(len) = contraction_of_any_case(text) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let (rest, is_newline) = (chars.as_str(), |c| matches!(c, '\r' | '\n'));
    match class(first) {
        Class::Letter => return run_of(Class::Letter, text),
        Class::Number => return run(text, numbers, |c| class(c) == Class::Number),
        _ if !is_newline(first) && first_class(rest) == Some(Class::Letter) => {
            return first.len_utf8() + run_of(Class::Letter, rest);
        }
        Class::Space | Class::Other => (),
    }
    let lead = usize::from(first == ' ');
    if first_class(&text[lead..]) == Some(Class::Other) {
        let marks = lead + run_of(Class::Other, &text[lead..]);
        return marks + run(&text[marks..], usize::MAX, is_newline);
    }
    match text[..run_of(Class::Space, text)].rfind(is_newline) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

/// Length of `'s` and the like in any case. `ſ` is an `s` to patterns that ignore case.
fn contraction_of_any_case(text: &str) -> Option<usize> {
    let mut chars = text.strip_prefix('\'')?.chars();
    let first = chars.next()?;
    match first.to_ascii_lowercase() {
        's' | 't' | 'm' | 'd' | 'ſ' => return Some(1 + first.len_utf8()),
        _ => (),
    }
    let pair = (first.to_ascii_lowercase(), chars.next()?.to_ascii_lowercase());
    matches!(pair, ('r', 'e') | ('v', 'e') | ('l', 'l')).then_some(3)
}

/// `\s+(?!\S)|\s+`: white space up to the end, else all of it but the last character, which
/// goes with what follows.
fn spaces(text: &str) -> usize {
    let end = run_of(Class::Space, text);
    let last = text[..end].char_indices().next_back().map_or(0, |(at, _)| at);
    if end == text.len() || last == 0 { end } else { last }
}

/// Three wanted characters, or all before the first three that stand together.
fn first_three(text: &str, is_wanted: impl Fn(char) -> bool) -> usize {
    let mut seen = 0;
    for (at, c) in text.char_indices() {
        seen = if is_wanted(c) { seen + 1 } else { 0 };
        if seen == 3 {
            let end = at + c.len_utf8();
            // The wanted characters are ASCII digits: three bytes.
            return if end == 3 { 3 } else { end - 3 };
        }
    }
    text.len()
}
