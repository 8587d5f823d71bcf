//! SentencePiece BPE: "llama" in GGUF.
//!
//! For: Llama 2, TinyLlama, Vicuna, Mistral: whole texts are merged from single characters, the
//! pair whose piece has the highest score first; characters without a piece become bytes.
//! Must never: give a control, unknown or byte token for text that merely looks like one.
//! Relies on: `table.rs`, `merge.rs`.

use std::collections::HashMap;

use super::merge::{Merger, NONE, Symbol};
use super::table::{Ids, Merge, Texts};
use super::vocabulary::{Fields, Kind};
use crate::error::LoadError;

/// What vocabularies write for a space.
const SPACE: char = '\u{2581}';

/// A vocabulary of pieces with scores.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Pieces that text may become.
    ids: Ids,
    /// Order of merging by id: the highest score has 0, equal scores have equal ranks.
    ranks: Vec<u32>,
    /// The token of each single byte.
    of_byte: [u32; 256],
    /// What a character without a piece becomes when there is no token for its bytes.
    unknown: u32,
    /// Pieces that take part in merging but are taken apart again in the end.
    unused: Vec<bool>,
    /// A space is put before a text and after every special token.
    pub(super) has_space_prefix: bool,
    /// Runs of spaces count as one, those at the ends as none.
    is_collapsing: bool,
}

impl Pieces {
    /// The model, and what every id stands for.
    pub(super) fn new(fields: &Fields<'_>, kinds: &[Kind]) -> Result<(Pieces, Texts), LoadError> {
        let bad = |what: String| Err(LoadError::Tokenizer(what));
        let Some(scores) = &fields.scores else {
            return bad("tokenizer.ggml.scores is missing".into());
        };
        if scores.len() != fields.tokens.len() {
            return bad(format!("{} scores for {} tokens", scores.len(), fields.tokens.len()));
        }
        if let Some(at) = scores.iter().position(|score| score.is_nan()) {
            return bad(format!("the score of token {at} is no number"));
        }
        let mut of_byte = [NONE; 256];
        let mut texts = Texts::default();
        let mut ids = Ids::with_room(fields.tokens.len());
        for ((id, text), kind) in (0u32..).zip(&fields.tokens).zip(kinds) {
            match kind {
                Kind::Control => texts.push(b""),
                Kind::UserDefined => texts.push(text.as_bytes()),
                Kind::Byte => {
                    let Some(byte) = byte_named(text) else {
                        return bad(format!("byte token {id} is {text:?}, not <0x00> to <0xFF>"));
                    };
                    texts.push(&[byte]);
                    of_byte[byte as usize] = id;
                }
                Kind::Text | Kind::Unused => {
                    texts.push(text.replace(SPACE, " ").as_bytes());
                    if let Some(other) = ids.insert(&texts, id)
                        && !text.is_empty()
                    {
                        return bad(format!("tokens {other} and {id} are both {text:?}"));
                    }
                }
            }
        }
        let unknown = fields.unknown.map_or(NONE, |id| id as u32);
        if unknown == NONE && of_byte.contains(&NONE) {
            return bad("there are neither 256 byte tokens nor an unknown token".into());
        }
        let pieces = Pieces {
            ids,
            ranks: ranks(scores),
            of_byte,
            unknown,
            unused: kinds.iter().map(|kind| *kind == Kind::Unused).collect(),
            has_space_prefix: fields.add_space_prefix.unwrap_or(true),
            is_collapsing: fields.remove_extra_whitespaces.unwrap_or(false),
        };
        Ok((pieces, texts))
    }

    /// Adds the ids of `text`; `is_start` if it is where a text begins: at the very start or
    /// after a special token.
    pub(super) fn encode(&self, text: &str, is_start: bool, texts: &Texts, ids: &mut Vec<u32>) {
        let text = self.normalized(text, is_start);
        let mut merger = Merger::default();
        for (at, c) in text.char_indices() {
            let len = c.len_utf8();
            let id = self.ids.get(texts, &text.as_bytes()[at..at + len]);
            merger.push(at, len, id.unwrap_or(NONE));
        }
        let text = text.as_bytes();
        merger.run(|left, right| {
            let id = self.ids.get(texts, joined(left, right, text))?;
            Some(Merge { rank: self.ranks[id as usize], id })
        });
        let mut taken_apart = None;
        let mut is_after_unknown = false;
        for symbol in merger.symbols() {
            let count = ids.len();
            if self.unused.get(symbol.id as usize) == Some(&true) {
                let parts = taken_apart.get_or_insert_with(|| self.parts(text, texts));
                self.push_parts(symbol.of(text), parts, texts, ids);
            } else if symbol.id != NONE {
                ids.push(symbol.id);
            } else {
                self.push_bytes(symbol.of(text), ids);
            }
            // Characters without a piece that stand together are one unknown token.
            if is_after_unknown && ids[count..] == [self.unknown] {
                ids.truncate(count);
            }
            is_after_unknown = ids.last() == Some(&self.unknown);
        }
    }

    /// The text that is merged: a space for every `▁`, and the spaces that the file asks for.
    fn normalized(&self, text: &str, is_start: bool) -> String {
        let collapsed;
        let text = if self.is_collapsing {
            let words = text.split(' ').filter(|word| !word.is_empty());
            collapsed = words.collect::<Vec<&str>>().join(" ");
            // What vocabularies write for a space counts as one at the end only.
            collapsed.trim_end_matches([' ', SPACE])
        } else {
            text
        };
        let prefix = self.has_space_prefix && is_start && !text.is_empty();
        let prefix = prefix.then_some(' ').into_iter();
        prefix.chain(text.chars().map(|c| if c == SPACE { ' ' } else { c })).collect()
    }

    fn push_bytes(&self, text: &[u8], ids: &mut Vec<u32>) {
        let found = text.iter().map(|byte| self.of_byte[*byte as usize]);
        if found.clone().any(|id| id == NONE) {
            ids.push(self.unknown);
        } else {
            ids.extend(found);
        }
    }

    /// How unused pieces in `text` come about: their left part's length by text, by the first
    /// pair that was met. Rare enough to merge a second time for.
    fn parts(&self, text: &[u8], texts: &Texts) -> HashMap<Vec<u8>, usize> {
        let parts = std::cell::RefCell::new(HashMap::new());
        let mut merger = Merger::default();
        let lossless = String::from_utf8_lossy(text);
        for (at, c) in lossless.char_indices() {
            merger.push(at, c.len_utf8(), NONE);
        }
        merger.run(|left, right| {
            let whole = joined(left, right, text);
            let id = self.ids.get(texts, whole)?;
            if self.unused[id as usize] {
                parts.borrow_mut().entry(whole.to_vec()).or_insert(left.len as usize);
            }
            Some(Merge { rank: self.ranks[id as usize], id })
        });
        parts.into_inner()
    }

    fn push_parts(
        &self,
        text: &[u8],
        parts: &HashMap<Vec<u8>, usize>,
        texts: &Texts,
        ids: &mut Vec<u32>,
    ) {
        let id = self.ids.get(texts, text).filter(|id| !self.unused[*id as usize]);
        match (id, parts.get(text)) {
            (Some(id), _) => ids.push(id),
            (None, Some(left)) => {
                let (left, right) = text.split_at(*left);
                self.push_parts(left, parts, texts, ids);
                self.push_parts(right, parts, texts, ids);
            }
            (None, None) => self.push_bytes(text, ids),
        }
    }
}

fn joined<'a>(left: &Symbol, right: &Symbol, text: &'a [u8]) -> &'a [u8] {
    &text[left.start as usize..(right.start + right.len) as usize]
}

/// Places in the order of falling scores, equal ones sharing a place.
fn ranks(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut ranks = vec![0; scores.len()];
    for (before, at) in order.iter().zip(order.iter().skip(1)) {
        ranks[*at] = ranks[*before] + u32::from(scores[*at] != scores[*before]);
    }
    ranks
}

/// The byte of a token text such as `<0x0A>`.
pub(super) fn byte_named(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
