//! Byte-level BPE: "gpt2" in GGUF.
//!
//! For: SmolLM, Llama 3, Qwen, GPT-2: text is cut by a pre-tokenizer, each part is merged from
//! single bytes by the file's list of merges.
//! Must never: give a control token for text.
//! Relies on: `split.rs`, `table.rs`, `merge.rs`; `tokenizers` for the normal form NFC.

use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};

use super::merge::{Merger, NONE};
use super::split::Splitter;
use super::table::{Ids, Merge, Merges, Texts};
use super::vocabulary::{Fields, Kind};
use crate::error::{EncodeError, LoadError};

/// A vocabulary of byte strings with its merges.
#[derive(Debug)]
pub(super) struct ByteBpe {
    splitter: Splitter,
    merges: Merges,
    /// The token of each single byte.
    of_byte: [u32; 256],
    /// Parts that are tokens as they stand need no merges to become them. Llama 3's vocabulary
    /// holds words that no merge leads to.
    whole: Option<Ids>,
}

impl ByteBpe {
    /// The model, and what every id stands for.
    pub(super) fn new(fields: &Fields<'_>, kinds: &[Kind]) -> Result<(ByteBpe, Texts), LoadError> {
        let splitter = Splitter::named(fields.pre)?;
        let alphabet = Alphabet::new();
        let (texts, is_bytes) = token_bytes(&fields.tokens, kinds, &alphabet);
        let mut ids = Ids::with_room(fields.tokens.len());
        for ((id, text), is_bytes) in (0u32..).zip(&fields.tokens).zip(&is_bytes) {
            if *is_bytes && let Some(other) = ids.insert(&texts, id) {
                let what = format!("tokens {other} and {id} are both {text:?}");
                return Err(LoadError::Tokenizer(what));
            }
        }
        let of_byte = std::array::from_fn(|byte| ids.get(&texts, &[byte as u8]).unwrap_or(NONE));
        let find = Find { texts: &texts, is_bytes: &is_bytes, ids: &ids, of_byte: &of_byte };
        let merges = merges(&fields.merges, &find, &alphabet)?;
        let whole = (splitter == Splitter::Llama3).then_some(ids);
        Ok((ByteBpe { splitter, merges, of_byte, whole }, texts))
    }

    /// Whether files of the family that lack `tokenizer.ggml.add_bos_token` mean yes. Source:
    /// llama.cpp, which wrote such files for Llama 3.
    pub(super) fn adds_bos(&self) -> bool {
        self.splitter == Splitter::Llama3
    }

    /// Adds the ids of `text`. A byte without a token is left out, as by the models' makers;
    /// vocabularies lack bytes that hardly occur, if any.
    pub(super) fn encode(
        &self,
        text: &str,
        texts: &Texts,
        ids: &mut Vec<u32>,
    ) -> Result<(), EncodeError> {
        let composed;
        let text = if self.splitter == Splitter::Qwen2 && !is_surely_nfc(text) {
            let mut normalized = NormalizedString::from(text);
            NFC.normalize(&mut normalized).map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
            composed = normalized;
            composed.get()
        } else {
            text
        };
        let mut merger = Merger::default();
        self.splitter.split(text, &mut |part| self.encode_part(part, texts, &mut merger, ids));
        Ok(())
    }

    fn encode_part(&self, part: &str, texts: &Texts, merger: &mut Merger, ids: &mut Vec<u32>) {
        let part = part.as_bytes();
        if let Some(id) = self.whole.as_ref().and_then(|whole| whole.get(texts, part)) {
            return ids.push(id);
        }
        merger.clear();
        let mut len = 0;
        for byte in part {
            let id = self.of_byte[*byte as usize];
            if id != NONE {
                merger.push(len, 1, id);
                len += 1;
            }
        }
        merger.run(|left, right| self.merges.get(left.id, right.id));
        ids.extend(merger.symbols().map(|symbol| symbol.id));
    }
}

/// Whether `text` is in normal form C for the reason that no character in it ever changes: the
/// first combining mark is U+0300.
fn is_surely_nfc(text: &str) -> bool {
    // 0xCC leads the UTF-8 form of U+0300.
    text.bytes().all(|byte| byte < 0xcc)
}

/// How merges' tokens are found: 280,000 times three in a Llama 3 file.
struct Find<'a> {
    texts: &'a Texts,
    is_bytes: &'a [bool],
    ids: &'a Ids,
    of_byte: &'a [u32; 256],
}

impl Find<'_> {
    /// The id of `bytes`.
    fn id(&self, bytes: &[u8]) -> Option<u32> {
        match bytes {
            [byte] => Some(self.of_byte[*byte as usize]).filter(|id| *id != NONE),
            _ => self.ids.get(self.texts, bytes),
        }
    }

    /// The id of `bytes`, which may well be the one at or after `last`: most vocabularies number
    /// tokens in the order in which merges lead to them.
    fn id_near(&self, bytes: &[u8], last: u32) -> Option<u32> {
        let is_here = |id: &u32| {
            self.is_bytes.get(*id as usize) == Some(&true) && self.texts.get(*id) == bytes
        };
        [last, last + 1].into_iter().find(is_here).or_else(|| self.id(bytes))
    }
}

fn merges(lines: &[&str], find: &Find<'_>, alphabet: &Alphabet) -> Result<Merges, LoadError> {
    let mut merges = Merges::with_room(lines.len());
    let mut whole = Vec::new();
    let mut last = 0;
    for (rank, line) in (0u32..).zip(lines) {
        let wrong = |what: &str| LoadError::Tokenizer(format!("merge {rank} ({line:?}) {what}"));
        let (left, right) = line.split_once(' ').ok_or_else(|| wrong("has no space in it"))?;
        whole.clear();
        let is_known = alphabet.decode(left, &mut whole);
        let middle = whole.len();
        let is_known = alphabet.decode(right, &mut whole) && is_known;
        let (left, right) = whole.split_at(middle);
        let pair = find.id(left).zip(find.id(right)).filter(|_| is_known);
        let (left, right) =
            pair.ok_or_else(|| wrong("names a token that the vocabulary doesn't have"))?;
        last = find
            .id_near(&whole, last)
            .ok_or_else(|| wrong("leads to a token that the vocabulary doesn't have"))?;
        merges.insert(left, right, Merge { rank, id: last });
    }
    Ok(merges)
}

/// Bytes of every token, none for control tokens, and whether text can become it: whether it is
/// written in the byte alphabet. No merge leads to others.
fn token_bytes(tokens: &[&str], kinds: &[Kind], alphabet: &Alphabet) -> (Texts, Vec<bool>) {
    let mut texts = Texts::with_room(tokens.len(), tokens.iter().map(|text| text.len()).sum());
    let mut is_bytes = Vec::with_capacity(tokens.len());
    let mut decoded = Vec::new();
    for (text, kind) in tokens.iter().zip(kinds) {
        decoded.clear();
        let is_written = alphabet.decode(text, &mut decoded);
        is_bytes.push(is_written && *kind != Kind::Control && !text.is_empty());
        match kind {
            Kind::Control => texts.push(b""),
            // Meant literally.
            Kind::UserDefined => texts.push(text.as_bytes()),
            Kind::Unused | Kind::Text | Kind::Byte => texts.push(&decoded),
        }
    }
    (texts, is_bytes)
}

/// Bytes by the character that vocabularies write for each. Source: GPT-2's byte encoder:
/// printable Latin-1 bytes stand for themselves, the other 68 for U+0100 upwards in order.
pub(super) struct Alphabet([Option<u8>; 0x100 + 68]);

impl Alphabet {
    pub(super) fn new() -> Alphabet {
        let mut bytes = [None; 0x100 + 68];
        let mut next = 0x100;
        for byte in 0..=255u8 {
            let is_printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let at = if is_printable { byte as usize } else { next };
            next += usize::from(!is_printable);
            bytes[at] = Some(byte);
        }
        Alphabet(bytes)
    }

    fn byte(&self, c: char) -> Option<u8> {
        self.0.get(c as usize).copied().flatten()
    }

    /// Appends the bytes that the characters of `text` stand for; others stand for themselves.
    /// Tells whether there were none of those.
    pub(super) fn decode(&self, text: &str, bytes: &mut Vec<u8>) -> bool {
        let mut is_known = true;
        for c in text.chars() {
            match self.byte(c) {
                Some(byte) => bytes.push(byte),
                None => {
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    is_known = false;
                }
            }
        }
        is_known
    }
}

#[cfg(test)]
mod tests {
    use super::is_surely_nfc;

    #[test]
    fn the_quick_answer_about_nfc_is_never_wrong() {
        use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};
        let mut sure = 0;
        // Every character that is called sure stays as it is, alone and after another one.
        for c in '\0'..=char::MAX {
            let text = format!("a{c}a{c}");
            if is_surely_nfc(&text) {
                let mut normalized = NormalizedString::from(text.as_str());
                NFC.normalize(&mut normalized).unwrap();
                assert_eq!(normalized.get(), text);
                sure += 1;
            }
        }
        assert_eq!(sure, 0x300);
    }
}
