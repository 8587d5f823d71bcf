//! What a GGUF file says of its tokenizer, checked.
//!
//! For: both BPE kinds, and the choice of a chat template.
//! Must never: let a damaged file through: lists that don't fit together and ids that don't
//! exist are refused by the name of their key.
//! Relies on: `files/gguf.rs`.

use crate::error::LoadError;
use crate::files::gguf::Gguf;

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Part of ordinary text.
    Text,
    /// Structure that only a template may write; it has no text of its own. The unknown token
    /// is one too.
    Control,
    /// Stands for its text wherever it occurs.
    UserDefined,
    /// Takes part in merging, but is never given.
    Unused,
    /// One byte, as `<0x0A>`.
    Byte,
}

impl Kind {
    /// Numbers are those of the GGUF specification.
    fn of(number: u64, text: &str) -> Kind {
        match number {
            2 | 3 => Kind::Control,
            // Converters have written structure of this look as user-defined; a client that
            // could write it could end its own turn.
            4 if looks_like_control(text) => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Text,
        }
    }
}

/// `<|…|>` and `<｜…｜>`: how vocabularies write structure.
pub(super) fn looks_like_control(text: &str) -> bool {
    let is_between = |open, close| {
        text.strip_prefix(open).is_some_and(|rest: &str| rest.strip_suffix(close).is_some())
    };
    is_between("<|", "|>") || is_between("<｜", "｜>")
}

/// The tokenizer's keys of a file.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    /// `general.architecture`
    pub(crate) architecture: Option<&'a str>,
    /// `tokenizer.ggml.model`
    pub(crate) model: Option<&'a str>,
    /// `tokenizer.ggml.pre`
    pub(crate) pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`
    pub(crate) tokens: Vec<&'a str>,
    /// `tokenizer.ggml.merges`
    pub(crate) merges: Vec<&'a str>,
    /// `tokenizer.ggml.scores`
    pub(crate) scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`
    pub(crate) types: Option<Vec<u64>>,
    /// `tokenizer.ggml.bos_token_id`
    pub(crate) bos: Option<u64>,
    /// `tokenizer.ggml.eos_token_id`, `…eot_token_id`, `…eom_token_id`
    pub(crate) ends: [Option<u64>; 3],
    /// `tokenizer.ggml.unknown_token_id`
    pub(crate) unknown: Option<u64>,
    /// `tokenizer.ggml.add_bos_token`
    pub(crate) add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub(crate) add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`
    pub(crate) remove_extra_whitespaces: Option<bool>,
}

const ENDS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl<'a> Fields<'a> {
    /// Reads the keys.
    pub(crate) fn read(gguf: &'a Gguf) -> Result<Fields<'a>, LoadError> {
        let model = gguf.text("tokenizer.ggml.model");
        let merges = match model {
            Some("gpt2") => gguf.texts("tokenizer.ggml.merges")?,
            _ => Vec::new(),
        };
        Ok(Fields {
            architecture: gguf.text("general.architecture"),
            model,
            pre: gguf.text("tokenizer.ggml.pre"),
            tokens: gguf.texts("tokenizer.ggml.tokens")?,
            merges,
            scores: gguf.numbers("tokenizer.ggml.scores"),
            types: gguf.integers("tokenizer.ggml.token_type"),
            bos: gguf.integer("tokenizer.ggml.bos_token_id"),
            ends: ENDS.map(|key| gguf.integer(key)),
            unknown: gguf.integer("tokenizer.ggml.unknown_token_id"),
            add_bos: gguf.flag("tokenizer.ggml.add_bos_token"),
            add_space_prefix: gguf.flag("tokenizer.ggml.add_space_prefix"),
            remove_extra_whitespaces: gguf.flag("tokenizer.ggml.remove_extra_whitespaces"),
        })
    }

    /// Every token's kind, once all lists and ids fit together.
    pub(super) fn kinds(&self) -> Result<Vec<Kind>, LoadError> {
        let bad = |what: String| Err(LoadError::Tokenizer(what));
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return bad(format!("tokenizer.ggml.tokens has {count} tokens"));
        }
        let bytes: usize = self.tokens.iter().map(|text| text.len()).sum();
        if u32::try_from(bytes).is_err() {
            return bad(format!("tokenizer.ggml.tokens has {bytes} bytes"));
        }
        let [eos, eot, eom] = self.ends;
        let named = [
            ("tokenizer.ggml.bos_token_id", self.bos),
            (ENDS[0], eos),
            (ENDS[1], eot),
            (ENDS[2], eom),
            ("tokenizer.ggml.unknown_token_id", self.unknown),
        ];
        for (key, id) in named {
            if let Some(id) = id
                && id >= count as u64
            {
                return bad(format!("{key} is {id}, there are {count} tokens"));
            }
        }
        let Some(types) = &self.types else {
            let kind = |text: &&str| Kind::of(if looks_like_control(text) { 3 } else { 1 }, text);
            return Ok(self.tokens.iter().map(kind).collect());
        };
        if types.len() != count {
            return bad(format!("{} token types for {count} tokens", types.len()));
        }
        Ok(self.tokens.iter().zip(types).map(|(text, number)| Kind::of(*number, text)).collect())
    }

    /// Special tokens that take the white space after them away, which GGUF has no key for.
    /// Source: Phi 3's `tokenizer.json`: all that were added to Llama 2's vocabulary, but for the
    /// end of a text.
    pub(super) fn swallowing(&self, kinds: &[Kind]) -> impl Iterator<Item = u32> {
        let is_phi3 = self.architecture == Some("phi3") && self.model == Some("llama");
        let tokens = (0u32..).zip(&self.tokens).zip(kinds);
        let swallows = move |text: &str, kind: &Kind| {
            let is_special = matches!(kind, Kind::Control | Kind::UserDefined);
            is_phi3 && is_special && !matches!(text, "<unk>" | "<s>" | "<|endoftext|>")
        };
        tokens.filter(move |((_, text), kind)| swallows(text, kind)).map(|((id, _), _)| id)
    }

    /// Ids that end a text: those that the file names, and control tokens that models of these
    /// families end a turn with although the file's `eos_token_id` names another.
    pub(super) fn end_ids(&self, kinds: &[Kind]) -> Vec<u32> {
        let mut ids: Vec<u32> = self.ends.iter().flatten().map(|id| *id as u32).collect();
        for ((id, text), kind) in (0u32..).zip(&self.tokens).zip(kinds) {
            if *kind == Kind::Control && ends_a_turn(text) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Whether a control token of this text ends a turn in the model families that have it.
pub(super) fn ends_a_turn(text: &str) -> bool {
    const TEXTS: [&str; 11] = [
        "</s>",
        "<|endoftext|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
        "<eos>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    ];
    TEXTS.contains(&text)
}
