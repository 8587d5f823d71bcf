//! Text to ids and back, by the vocabulary that the GGUF file carries.
//!
//! For: byte-level BPE ("gpt2" in GGUF) with the pre-tokenizers named in [`PreTokenizer`].
//! Must never: split text in another way than the model was trained with: an unknown
//! pre-tokenizer is an error; never read a special token out of a client's own text.
//! Relies on: the `tokenizers` crate for BPE; tested against llama.cpp's tokenizer on a corpus.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer as BpeTokenizer};

use crate::error::{EncodeError, LoadError};
use crate::gguf::Gguf;

/// GGUF token types (GGUF specification, `tokenizer.ggml.token_type`).
const TYPE_CONTROL: u64 = 3;
const TYPE_USER_DEFINED: u64 = 4;

/// How text is cut before BPE (`tokenizer.ggml.pre`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    SmolLm,
    /// Llama 3: digits in groups of three.
    Llama3,
    /// Qwen 2: as Llama 3, digits one by one.
    Qwen2,
}

/// A vocabulary and its rules.
pub(crate) struct Tokenizer {
    bpe: BpeTokenizer,
    /// Bytes of each id; none for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Control tokens, longest text first.
    control: Vec<(String, u32)>,
    /// Tokens that stand for their text wherever it occurs, longest text first.
    user_defined: Vec<(String, u32)>,
    /// Put before every prompt, if the file says so.
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer that the file describes.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, LoadError> {
        let model = gguf.text("tokenizer.ggml.model").unwrap_or("none");
        if model != "gpt2" {
            let what = format!("model {model:?} is not supported, only \"gpt2\" (byte-level BPE)");
            return Err(LoadError::Tokenizer(what));
        }
        let pre = PreTokenizer::named(gguf.text("tokenizer.ggml.pre"))?;
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let merges = gguf.texts("tokenizer.ggml.merges")?;
        let types = gguf.integers("tokenizer.ggml.token_type");
        let types = types.unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            let what = format!("{} token types for {} tokens", types.len(), tokens.len());
            return Err(LoadError::Tokenizer(what));
        }
        let of_type = |wanted: u64| {
            let ids = (0u32..).zip(tokens.iter().zip(&types));
            let mut found: Vec<(String, u32)> = ids
                .filter(|(_, (text, kind))| **kind == wanted && !text.is_empty())
                .map(|(id, (text, _))| (text.to_string(), id))
                .collect();
            found.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.0.cmp(&b.0)));
            found
        };
        let bos = gguf.integer("tokenizer.ggml.bos_token_id").map(|id| id as u32);
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(false);
        Ok(Tokenizer {
            bpe: bpe(&tokens, &merges, pre)?,
            bytes: token_bytes(&tokens, &types),
            control: of_type(TYPE_CONTROL),
            user_defined: of_type(TYPE_USER_DEFINED),
            bos: bos.filter(|_| add_bos),
            eos: end_ids(gguf, &tokens, &types),
        })
    }

    /// Ids that end a text: the file's end-of-sequence and end-of-turn tokens.
    pub(crate) fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Texts of the control tokens, which a client's text must not be able to produce.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.control.iter().map(|(text, _)| text.as_str())
    }

    /// Ids of plain text: control tokens in it are letters like any others.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        self.encode_text(text, &mut ids)?;
        Ok(ids)
    }

    /// Ids of a rendered template: control tokens are recognised, except where `mark` stands
    /// inside them; the mark itself is dropped.
    ///
    /// Text on both sides of a mark is tokenised together, as if it had never been there.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        let mut rest = text;
        loop {
            let found = find_first(rest, &self.control);
            let (plain, next) = match found {
                Some((at, text, id)) => (&rest[..at], Some((at + text.len(), id))),
                None => (rest, None),
            };
            self.encode_text(&plain.replace(mark, ""), &mut ids)?;
            let Some((end, id)) = next else { break };
            ids.push(id);
            rest = &rest[end..];
        }
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Bytes that `id` stands for: none for control tokens and ids beyond the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Text of `ids`, control tokens left out; bytes that aren't UTF-8 become U+FFFD.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.bytes(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        let mut rest = text;
        while let Some((at, text, id)) = find_first(rest, &self.user_defined) {
            self.encode_bpe(&rest[..at], ids)?;
            ids.push(id);
            rest = &rest[at + text.len()..];
        }
        self.encode_bpe(rest, ids)
    }

    fn encode_bpe(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        if !text.is_empty() {
            let encoding = self.bpe.encode_fast(text, false);
            let encoding = encoding.map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(())
    }
}

impl PreTokenizer {
    fn named(name: Option<&str>) -> Result<PreTokenizer, LoadError> {
        match name {
            Some("gpt-2" | "gpt2") => Ok(PreTokenizer::Gpt2),
            Some("smollm") => Ok(PreTokenizer::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(PreTokenizer::Llama3),
            Some("qwen2") => Ok(PreTokenizer::Qwen2),
            other => Err(LoadError::Tokenizer(format!(
                "pre-tokenizer {other:?} (tokenizer.ggml.pre) is unknown; known are gpt-2, \
                 smollm, llama-bpe, qwen2. Text would be split in another way than in training."
            ))),
        }
    }

    fn build(self) -> Result<PreTokenizerWrapper, LoadError> {
        let bytes =
            |own_pattern| PreTokenizerWrapper::from(ByteLevel::new(false, true, own_pattern));
        let first: PreTokenizerWrapper = match self {
            PreTokenizer::Gpt2 => return Ok(bytes(true)),
            PreTokenizer::SmolLm => {
                let parts = vec![Digits::new(true).into(), bytes(true)];
                return Ok(Sequence::new(parts).into());
            }
            PreTokenizer::Llama3 => split(r"\p{N}{1,3}")?.into(),
            PreTokenizer::Qwen2 => split(r"\p{N}")?.into(),
        };
        Ok(Sequence::new(vec![first, bytes(false)]).into())
    }
}

/// The pattern that Llama 3 and Qwen 2 share but for the length of a run of digits.
fn split(digits: &str) -> Result<Split, LoadError> {
    let pattern = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false)
        .map_err(|e| LoadError::Tokenizer(e.to_string()))
}

fn bpe(tokens: &[&str], merges: &[&str], pre: PreTokenizer) -> Result<BpeTokenizer, LoadError> {
    let vocab: Vocab = tokens.iter().map(|text| text.to_string()).zip(0u32..).collect();
    let pair = |merge: &&str| {
        let (left, right) = merge.split_once(' ')?;
        Some((left.to_string(), right.to_string()))
    };
    let merges: Option<Vec<_>> = merges.iter().map(pair).collect();
    let merges = merges.ok_or_else(|| LoadError::Tokenizer("a merge without a space".into()))?;
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        // Llama 3's vocabulary holds words that no merge leads to.
        .ignore_merges(pre == PreTokenizer::Llama3)
        .build()
        .map_err(|e| LoadError::Tokenizer(e.to_string()))?;
    let mut bpe = BpeTokenizer::new(model);
    bpe.with_pre_tokenizer(Some(pre.build()?));
    Ok(bpe)
}

/// The leftmost of `tokens` in `text`, the longest of those that begin there.
fn find_first<'a>(text: &str, tokens: &'a [(String, u32)]) -> Option<(usize, &'a str, u32)> {
    let hits = tokens.iter().filter_map(|(token, id)| Some((text.find(token)?, token, *id)));
    // `tokens` are longest first and `min_by_key` keeps the first of equals.
    hits.min_by_key(|(at, _, _)| *at).map(|(at, token, id)| (at, token.as_str(), id))
}

/// End-of-text ids: the keys that GGUF has for them, and control tokens that models of these
/// families end a turn with although the file's `eos_token_id` names another.
fn end_ids(gguf: &Gguf, tokens: &[&str], types: &[u64]) -> Vec<u32> {
    const KEYS: [&str; 3] = [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ];
    const TEXTS: [&str; 6] =
        ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>"];
    let mut ids: Vec<u32> =
        KEYS.iter().filter_map(|key| gguf.integer(key)).map(|id| id as u32).collect();
    for ((id, text), kind) in (0u32..).zip(tokens).zip(types) {
        if *kind == TYPE_CONTROL && TEXTS.contains(text) {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Bytes of every token. Byte-level vocabularies write each byte as one printable character.
fn token_bytes(tokens: &[&str], types: &[u64]) -> Vec<Box<[u8]>> {
    let alphabet = byte_alphabet();
    let of = |(text, kind): (&&str, &u64)| -> Box<[u8]> {
        match *kind {
            TYPE_CONTROL => Box::default(),
            TYPE_USER_DEFINED => text.as_bytes().into(),
            _ => text
                .chars()
                .flat_map(|c| match alphabet.get(c as usize) {
                    Some(Some(byte)) => vec![*byte],
                    // Not of the alphabet: the character stands for itself.
                    _ => c.to_string().into_bytes(),
                })
                .collect(),
        }
    };
    tokens.iter().zip(types).map(of).collect()
}

/// From character to byte. Source: GPT-2's byte encoder: printable Latin-1 bytes stand for
/// themselves, the other 68 for U+0100 upwards in order.
fn byte_alphabet() -> Vec<Option<u8>> {
    let mut alphabet = vec![None; 0x100 + 68];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let at = if printable { byte as usize } else { next };
        next += usize::from(!printable);
        alphabet[at] = Some(byte);
    }
    alphabet
}
