//! Text to ids and back, by the vocabulary that comes with the weights.
//!
//! For: byte-level BPE ("gpt2" in GGUF) and SentencePiece BPE ("llama"), and whatever a
//! `tokenizer.json` beside safetensors describes.
//! Must never: split text in another way than the model was trained with: an unknown
//! pre-tokenizer is an error; never read a control token out of a client's own text.
//! Relies on: `bytes.rs`, `pieces.rs`, `hf.rs`, each compared with Hugging Face's `tokenizers`
//! on more than 100,000 strings (`tests.rs`), and with llama.cpp on a corpus.
//!
//! ```text
//! text ─▶ special.rs (control and user-defined tokens)
//!           ├▶ bytes.rs (split.rs, NFC) ─▶ merge.rs ─▶ ids
//!           └▶ pieces.rs (spaces)       ─▶ merge.rs ─▶ ids
//! ```

mod bytes;
mod classes;
pub(crate) mod hf;
mod merge;
mod pieces;
mod special;
mod split;
mod table;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::collections::HashMap;
use std::path::Path;

use crate::detokenizer::Detokenizer;
use crate::error::{EncodeError, LoadError};
use crate::files::gguf::Gguf;
use bytes::ByteBpe;
use hf::HfModel;
use pieces::Pieces;
pub(crate) use special::SpecialTokens;
use table::Texts;
pub(crate) use vocabulary::Fields;
use vocabulary::Kind;

/// A vocabulary and its rules.
pub(crate) struct Tokenizer {
    model: Model,
    /// What each id stands for; nothing for control tokens.
    texts: Texts,
    /// Ids of control tokens, which only a template may write.
    control: SpecialTokens,
    /// Tokens that stand for their text wherever it occurs.
    user_defined: SpecialTokens,
    /// By id: whether the token is of `control` or user-defined.
    is_special: Vec<bool>,
    /// Special tokens that take white space beside them away.
    swallows: HashMap<u32, Swallows>,
    /// Put before every prompt, if the file says so.
    bos: Option<u32>,
    ends: Vec<u32>,
    prefix: SpacePrefix,
}

/// Where a tokenizer of the SentencePiece kind puts a space that isn't part of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpacePrefix {
    Never,
    /// At the very beginning.
    Beginning,
    /// At the beginning and after every special token.
    EveryPart,
}

/// On which sides a special token takes white space away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Swallows {
    before: bool,
    after: bool,
}

/// How plain text becomes ids.
enum Model {
    Bytes(ByteBpe),
    Pieces(Pieces),
    Hf(Box<HfModel>),
}

/// Where a text stands that is to be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the beginning: a first token is put before it, if the file asks for one.
    Beginning,
    /// Right after text that is in ids already.
    AfterText,
}

impl Tokenizer {
    /// Builds the tokenizer of a folder with `tokenizer.json` (safetensors models). Blocks while
    /// files are read.
    pub(crate) fn from_hf(folder: &Path) -> Result<Tokenizer, LoadError> {
        hf::open(folder)
    }

    /// Builds the tokenizer that the file describes.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, LoadError> {
        Tokenizer::new(&Fields::read(gguf)?)
    }

    /// Builds the tokenizer that `fields` describe.
    ///
    /// `tokenizer.ggml.add_eos_token` is not among them: a prompt that is to be continued never
    /// ends with an end.
    pub(crate) fn new(fields: &Fields<'_>) -> Result<Tokenizer, LoadError> {
        let kinds = fields.kinds()?;
        let (model, texts) = match fields.model {
            Some("gpt2") => {
                let (model, texts) = ByteBpe::new(fields, &kinds)?;
                (Model::Bytes(model), texts)
            }
            Some("llama") => {
                let (model, texts) = Pieces::new(fields, &kinds)?;
                (Model::Pieces(model), texts)
            }
            other => {
                return Err(LoadError::Tokenizer(format!(
                    "model {:?} (tokenizer.ggml.model) is not supported; known are \"gpt2\" \
                     (byte-level BPE) and \"llama\" (SentencePiece)",
                    other.unwrap_or("none")
                )));
            }
        };
        let of_kind = |wanted: Kind| {
            let ids = (0u32..).zip(&fields.tokens).zip(&kinds);
            let wanted = ids.filter(move |(_, kind)| **kind == wanted);
            SpecialTokens::new(wanted.map(|((id, text), _)| (*text, id)))
        };
        // Where the key is missing the family's habit holds.
        let adds_bos = fields.add_bos.unwrap_or(match &model {
            Model::Bytes(model) => model.adds_bos(),
            Model::Pieces(_) | Model::Hf(_) => true,
        });
        let prefix = match &model {
            Model::Pieces(pieces) if pieces.has_space_prefix => SpacePrefix::EveryPart,
            Model::Bytes(_) | Model::Pieces(_) | Model::Hf(_) => SpacePrefix::Never,
        };
        let after = Swallows { before: false, after: true };
        let is_special = |kind: &Kind| matches!(kind, Kind::Control | Kind::UserDefined);
        Ok(Tokenizer {
            model,
            texts,
            control: of_kind(Kind::Control),
            user_defined: of_kind(Kind::UserDefined),
            is_special: kinds.iter().map(is_special).collect(),
            swallows: fields.swallowing(&kinds).map(|id| (id, after)).collect(),
            bos: fields.bos.filter(|_| adds_bos).map(|id| id as u32),
            ends: fields.end_ids(&kinds),
            prefix,
        })
    }

    /// Refuses ids that have no row of `rows` in the embedding: each request with one would
    /// fail. Rows without a token are fine: checkpoints pad.
    pub(crate) fn check_ids(&self, rows: usize) -> Result<(), LoadError> {
        match self.texts.len() {
            tokens if tokens > rows => {
                let what = format!("it has {tokens} tokens, the model's vocabulary {rows}");
                Err(LoadError::Tokenizer(what))
            }
            _ => Ok(()),
        }
    }

    /// Ids that end a text: the file's end-of-sequence and end-of-turn tokens.
    pub(crate) fn eos(&self) -> &[u32] {
        &self.ends
    }

    /// The control tokens, which a client's text must not be able to produce.
    pub(crate) fn control(&self) -> &SpecialTokens {
        &self.control
    }

    /// Ids of plain text: control tokens in it are letters like any others.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        self.encode_text(text, true, &mut ids)?;
        ids.splice(0..0, self.bos);
        Ok(ids)
    }

    /// Ids of a rendered template: control tokens are recognised, except where `mark` stands
    /// inside them; the mark itself is dropped.
    ///
    /// Text on both sides of a mark is tokenised together, as if it had never been there.
    pub(crate) fn encode_marked(
        &self,
        text: &str,
        mark: char,
        place: Place,
    ) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        let mut rest = text;
        let mut is_start = place == Place::Beginning;
        while let Some((at, token, id)) = self.control.find_first(rest) {
            let (before, after) = self.around(id, &rest[..at], &rest[at + token.len()..]);
            self.encode_text(&before.replace(mark, ""), is_start, &mut ids)?;
            ids.push(id);
            is_start = true;
            rest = after;
        }
        self.encode_text(&rest.replace(mark, ""), is_start, &mut ids)?;
        if let Some(bos) = self.bos
            && place == Place::Beginning
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Bytes that `id` stands for in the middle of a text: none for control tokens and ids
    /// beyond the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.texts.get(id)
    }

    /// Bytes that `id` stands for after `before`. Where a text begins (before the first token,
    /// and after a special one) tokenizers of the SentencePiece kind add a space, which isn't
    /// part of the text.
    pub(crate) fn bytes_after(&self, before: Option<u32>, id: u32) -> &[u8] {
        let bytes = self.bytes(id);
        let is_start = match self.prefix {
            SpacePrefix::Never => false,
            SpacePrefix::Beginning => before.is_none() || before == self.bos,
            SpacePrefix::EveryPart => before.is_none_or(|before| self.is_special(before)),
        };
        match is_start && !self.is_special(id) {
            true => bytes.strip_prefix(b" ").unwrap_or(bytes),
            false => bytes,
        }
    }

    /// Text of `ids`, control tokens left out; bytes that aren't UTF-8 become U+FFFD.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::default();
        let mut text = String::new();
        let mut before = None;
        for id in ids {
            text.push_str(&detokenizer.push(self.bytes_after(before, *id)));
            before = Some(*id);
        }
        if detokenizer.is_within_character() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }

    fn is_special(&self, id: u32) -> bool {
        self.is_special.get(id as usize) == Some(&true)
    }

    /// The texts before and after a special token, without the white space that it swallows.
    fn around<'a>(&self, id: u32, before: &'a str, after: &'a str) -> (&'a str, &'a str) {
        let swallows = self.swallows.get(&id).copied().unwrap_or_default();
        (
            if swallows.before { before.trim_end() } else { before },
            if swallows.after { after.trim_start() } else { after },
        )
    }

    /// Adds the ids of text without control tokens; `is_start` if nothing or a special token is
    /// before it.
    fn encode_text(
        &self,
        text: &str,
        mut is_start: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), EncodeError> {
        if u32::try_from(text.len()).is_err() {
            return Err(EncodeError::Tokenizer(format!("{} bytes are too many", text.len())));
        }
        let mut rest = text;
        while let Some((at, token, id)) = self.user_defined.find_first(rest) {
            let (before, after) = self.around(id, &rest[..at], &rest[at + token.len()..]);
            self.encode_plain_part(before, is_start, ids)?;
            ids.push(id);
            is_start = true;
            rest = after;
        }
        self.encode_plain_part(rest, is_start, ids)
    }

    fn encode_plain_part(
        &self,
        text: &str,
        is_start: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), EncodeError> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.model {
            Model::Bytes(model) => model.encode(text, &self.texts, ids)?,
            Model::Pieces(model) => model.encode(text, is_start, &self.texts, ids),
            Model::Hf(model) => {
                let is_first = is_start && ids.is_empty();
                model.encode(text, (is_start, is_first), ids)?;
            }
        }
        Ok(())
    }
}
