//! The tokenizer of a safetensors folder: `tokenizer.json` and what lies beside it, or the two
//! files that GPT-2 had before there was such a thing.
//!
//! For: models that come without a GGUF file; the pipeline is the file's own, run by Hugging
//! Face's crate.
//! Must never: recognise control tokens in plain text; add a space or a first token where a
//! text goes on; trust the files: sizes and ids are checked.
//! Relies on: the `tokenizers` crate for everything but finding control tokens.

mod gpt2;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;
use tokenizers::{
    AddedToken, Model as _, NormalizerWrapper, OffsetType, PreTokenizer as _, PreTokenizerWrapper,
    Tokenizer as HfTokenizer,
};

use super::bytes::Alphabet;
use super::pieces::byte_named;
use super::special::SpecialTokens;
use super::table::Texts;
use super::vocabulary::{ends_a_turn, looks_like_control};
use super::{Model, SpacePrefix, Swallows, Tokenizer};
use crate::error::{EncodeError, LoadError};
use crate::files::read_small;

/// Bytes that a file of the folder may have: several times the largest known.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A pipeline.
pub(super) struct HfModel {
    tokenizer: HfTokenizer,
    /// The same steps without any that add a space before the text.
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    prefix: SpacePrefix,
}

impl HfModel {
    /// Adds the ids of text without control tokens. `is_start` if it begins the text or follows
    /// a special token, `is_first` if it begins the text.
    pub(super) fn encode(
        &self,
        text: &str,
        (is_start, is_first): (bool, bool),
        ids: &mut Vec<u32>,
    ) -> Result<(), EncodeError> {
        let bad = |e: tokenizers::Error| EncodeError::Tokenizer(e.to_string());
        let has_prefix = match self.prefix {
            SpacePrefix::Never => true,
            SpacePrefix::Beginning => is_first,
            SpacePrefix::EveryPart => is_start,
        };
        let (normalizer, pre_tokenizer) = match has_prefix {
            true => (self.tokenizer.get_normalizer(), self.tokenizer.get_pre_tokenizer()),
            false => (self.normalizer.as_ref(), self.pre_tokenizer.as_ref()),
        };
        let added = self.tokenizer.get_added_vocabulary();
        let mut parts = added.extract_and_normalize(normalizer, text);
        if let Some(pre_tokenizer) = pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut parts).map_err(bad)?;
        }
        let model = self.tokenizer.get_model();
        parts.tokenize(|part| model.tokenize(part.get())).map_err(bad)?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None).map_err(bad)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

/// Reads the folder.
pub(super) fn open(folder: &Path) -> Result<Tokenizer, LoadError> {
    let json = read(folder, "tokenizer.json")?;
    // Errors name the files that there are.
    let files = if json.is_some() { "tokenizer.json" } else { "vocab.json and merges.txt" };
    let bad = |what: String| LoadError::Tokenizer(format!("{files}: {what}"));
    let mut described: Value = match json {
        Some(json) => serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?,
        None => gpt2::describe(folder)?,
    };
    let (control, user_defined) = take_added(&mut described);
    let tokenizer = HfTokenizer::from_bytes(described.to_string());
    let mut tokenizer = tokenizer.map_err(|e| bad(e.to_string()))?;
    tokenizer.set_encode_special_tokens(true);
    let config = read_json(folder, "tokenizer_config.json")?;
    let prefix = prefix(&described);
    let part = |key: &str| without_prefix(&described[key]);
    let model = HfModel {
        normalizer: parsed(part("normalizer")).map_err(|e| bad(e.to_string()))?,
        pre_tokenizer: parsed(part("pre_tokenizer")).map_err(|e| bad(e.to_string()))?,
        prefix,
        tokenizer,
    };
    let tokenizer = &model.tokenizer;
    let control: Vec<(&str, u32)> = ids_of(tokenizer, &control);
    let user_defined = ids_of(tokenizer, &user_defined);
    let (texts, is_special) = texts(tokenizer, &described["decoder"], &control).map_err(bad)?;
    let token = |key: &str| named_token(&config, key).and_then(|text| tokenizer.token_to_id(&text));
    let bos = token("bos_token").filter(|bos| adds_bos(tokenizer, &config, *bos));
    let mut ends: Vec<u32> = token("eos_token").into_iter().collect();
    for file in ["generation_config.json", "config.json"] {
        ends.extend(end_ids(&read_json(folder, file)?));
    }
    ends.extend(control.iter().filter(|(text, _)| ends_a_turn(text)).map(|(_, id)| *id));
    ends.sort_unstable();
    ends.dedup();
    if let Some(id) = ends.iter().find(|id| **id as usize >= texts.len()) {
        return Err(bad(format!("end token {id}, there are {} tokens", texts.len())));
    }
    let decoder = described["decoder"].to_string();
    let is_stripping = decoder.contains("\"Strip\"") || decoder.contains("\"Metaspace\"");
    Ok(Tokenizer {
        texts,
        control: SpecialTokens::new(control),
        user_defined: SpecialTokens::new(user_defined),
        is_special,
        swallows: swallows(tokenizer),
        bos,
        ends,
        prefix: if is_stripping { prefix } else { SpacePrefix::Never },
        model: Model::Hf(Box::new(model)),
    })
}

/// The chat template that the folder has, with its first and end tokens' texts.
pub(crate) struct HfTemplate {
    /// Jinja.
    pub(crate) source: Option<String>,
    /// Empty if there is none.
    pub(crate) bos: String,
    /// Empty if there is none.
    pub(crate) eos: String,
}

/// Reads `chat_template.jinja`, else `tokenizer_config.json`.
pub(crate) fn read_template(folder: &Path) -> Result<HfTemplate, LoadError> {
    let config = read_json(folder, "tokenizer_config.json")?;
    let file = read(folder, "chat_template.jinja")?;
    let file = file.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    // Some configurations hold several templates by name.
    let by_name = config["chat_template"]
        .as_array()
        .and_then(|templates| templates.iter().find(|template| template["name"] == "default"));
    let own = by_name.map_or(&config["chat_template"], |template| &template["template"]);
    Ok(HfTemplate {
        source: file.or_else(|| own.as_str().map(str::to_string)),
        bos: named_token(&config, "bos_token").unwrap_or_default(),
        eos: named_token(&config, "eos_token").unwrap_or_default(),
    })
}

/// The bytes of a file of the folder, if it is there.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, LoadError> {
    match read_small(&folder.join(name), FILE_BYTES_MAX) {
        Err(LoadError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// A file of the folder as JSON; null if it isn't there.
fn read_json(folder: &Path, name: &str) -> Result<Value, LoadError> {
    let Some(bytes) = read(folder, name)? else { return Ok(Value::Null) };
    serde_json::from_slice(&bytes).map_err(|e| LoadError::Tokenizer(format!("{name}: {e}")))
}

fn parsed<T: serde::de::DeserializeOwned>(step: Value) -> Result<Option<T>, serde_json::Error> {
    if step.is_null() { Ok(None) } else { serde_json::from_value(step).map(Some) }
}

/// The text of `bos_token` and the like: a string, or an object with its content.
fn named_token(config: &Value, key: &str) -> Option<String> {
    let token = &config[key];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_string)
}

/// `eos_token_id`: one, several or none.
fn end_ids(config: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &config["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// Whether prompts begin with `bos`: as the configuration says, else as the pipeline does.
fn adds_bos(tokenizer: &HfTokenizer, config: &Value, bos: u32) -> bool {
    config["add_bos_token"].as_bool().unwrap_or_else(|| {
        let empty = tokenizer.encode("", true);
        empty.is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos))
    })
}

/// Every step of a pipeline's part, through nested sequences.
fn steps(part: &Value) -> Vec<&Value> {
    let inner = ["normalizers", "pretokenizers", "decoders"];
    match inner.iter().find_map(|key| part[key].as_array()) {
        Some(parts) => parts.iter().flat_map(steps).collect(),
        None => vec![part],
    }
}

/// Where the pipeline puts a space before a text.
fn prefix(described: &Value) -> SpacePrefix {
    let steps = ["normalizer", "pre_tokenizer"].map(|key| steps(&described[key]));
    let found = steps.iter().flatten().map(|step| {
        let scheme = step["prepend_scheme"].as_str();
        match step["type"].as_str() {
            Some("Prepend") => SpacePrefix::EveryPart,
            Some("Metaspace") if scheme == Some("first") => SpacePrefix::Beginning,
            Some("Metaspace") if scheme == Some("never") => SpacePrefix::Never,
            Some("Metaspace") if step["add_prefix_space"] == false => SpacePrefix::Never,
            Some("Metaspace") => SpacePrefix::EveryPart,
            Some("ByteLevel") if step["add_prefix_space"] == true => SpacePrefix::EveryPart,
            _ => SpacePrefix::Never,
        }
    });
    let mut found = found.filter(|prefix| *prefix != SpacePrefix::Never);
    found.next().unwrap_or(SpacePrefix::Never)
}

/// A pipeline's part without what puts a space before a text.
fn without_prefix(part: &Value) -> Value {
    let mut part = part.clone();
    for key in ["normalizers", "pretokenizers"] {
        if let Some(parts) = part[key].as_array() {
            let parts = parts.iter().map(without_prefix).filter(|part| !part.is_null());
            part[key] = Value::Array(parts.collect());
        }
    }
    match part["type"].as_str() {
        Some("Prepend") => return Value::Null,
        Some("Metaspace") => {
            part["prepend_scheme"] = "never".into();
            part["add_prefix_space"] = false.into();
        }
        Some("ByteLevel") => part["add_prefix_space"] = false.into(),
        _ => (),
    }
    part
}

fn swallows(tokenizer: &HfTokenizer) -> HashMap<u32, Swallows> {
    let added = tokenizer.get_added_tokens_decoder();
    let swallowing = added.iter().filter(|(_, token)| token.lstrip || token.rstrip);
    let swallows = |token: &AddedToken| Swallows { before: token.lstrip, after: token.rstrip };
    swallowing.map(|(id, token)| (*id, swallows(token))).collect()
}

/// Added tokens that only a template may write, and those that stand for their text wherever it
/// occurs. From now on the crate takes both for special ones, which it is told not to look for.
///
/// Tokens that are looked for in normalised text, or as words of their own, stay with the crate.
fn take_added(described: &mut Value) -> (Vec<String>, Vec<String>) {
    let (mut control, mut user_defined) = (Vec::new(), Vec::new());
    for token in described["added_tokens"].as_array_mut().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default().to_string();
        let is_plain = token["normalized"] == false && token["single_word"] == false;
        match token["special"] == true || looks_like_control(&content) {
            true => control.push(content),
            false if is_plain => user_defined.push(content),
            false => continue,
        }
        token["special"] = true.into();
    }
    (control, user_defined)
}

fn ids_of<'a>(tokenizer: &HfTokenizer, texts: &'a [String]) -> Vec<(&'a str, u32)> {
    let id = |text: &'a String| Some((text.as_str(), tokenizer.token_to_id(text)?));
    texts.iter().filter_map(id).collect()
}

/// What each id stands for, and which are added tokens; the reason, where that isn't known.
fn texts(
    tokenizer: &HfTokenizer,
    decoder: &Value,
    control: &[(&str, u32)],
) -> Result<(Texts, Vec<bool>), String> {
    let kinds: Vec<&str> = steps(decoder).iter().filter_map(|s| s["type"].as_str()).collect();
    let alphabet = kinds.contains(&"ByteLevel").then(Alphabet::new);
    let has_spaces = ["Metaspace", "Replace"].iter().any(|kind| kinds.contains(kind));
    let has_bytes = kinds.contains(&"ByteFallback");
    if alphabet.is_none() && !has_spaces {
        return Err(format!("decoder {kinds:?} is unknown"));
    }
    let vocabulary = tokenizer.get_vocab(true);
    let count = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
    if count > 2 * vocabulary.len() + 4096 {
        return Err(format!("{} tokens have ids up to {}", vocabulary.len(), count - 1));
    }
    let mut tokens = vec![""; count];
    for (text, id) in &vocabulary {
        tokens[*id as usize] = text;
    }
    let added = tokenizer.get_added_tokens_decoder();
    let mut texts = Texts::default();
    for (id, text) in (0u32..).zip(&tokens) {
        match (added.get(&id), &alphabet, byte_named(text).filter(|_| has_bytes)) {
            (Some(_), _, _) if control.contains(&(*text, id)) => texts.push(b""),
            (Some(_), _, _) => texts.push(text.as_bytes()),
            (None, Some(alphabet), _) => texts.push_with(|bytes| {
                alphabet.decode(text, bytes);
            }),
            (None, None, Some(byte)) => texts.push(&[byte]),
            (None, None, None) => texts.push(text.replace('\u{2581}', " ").as_bytes()),
        }
    }
    Ok((texts, (0..count as u32).map(|id| added.contains_key(&id)).collect()))
}
