//! GPT-2's tokenizer as it was published: `vocab.json` and `merges.txt`.
//!
//! For: folders of GPT-2 without a `tokenizer.json`; what it would say is made of the two files.
//! Must never: serve another family, whose files have the same names and whose text is split in
//! another way; guess an id.
//! Relies on: GPT-2's pattern being the `tokenizers` crate's own for byte-level BPE.

use std::path::Path;

use serde_json::{Value, json};

use super::{named_token, read, read_json};
use crate::error::LoadError;

/// The text of the one control token that GPT-2 itself has.
const END: &str = "<|endoftext|>";

/// What `tokenizer.json` would say.
///
/// # Errors
/// [`LoadError::Tokenizer`] says which file is missing or bad.
pub(super) fn describe(folder: &Path) -> Result<Value, LoadError> {
    let bad = |what: String| LoadError::Tokenizer(what);
    let config = read_json(folder, "config.json")?;
    let vocabulary = read_json(folder, "vocab.json")?;
    let merges = read(folder, "merges.txt")?.filter(|_| config["model_type"] == "gpt2");
    let (Some(merges), Value::Object(vocabulary)) = (merges, vocabulary) else {
        let what = "the folder has no tokenizer.json (GPT-2 needs vocab.json and merges.txt then)";
        return Err(bad(what.into()));
    };
    let merges = String::from_utf8(merges).map_err(|e| bad(format!("merges.txt: {e}")))?;
    // The first line tells a version; a merge may begin with the same character.
    let merges = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    let merges: Vec<&str> = merges.collect();
    let settings = read_json(folder, "tokenizer_config.json")?;
    let added = added(folder, (&vocabulary, &settings))?;
    check_places(&vocabulary, &added)?;
    let has_prefix = settings["add_prefix_space"].as_bool().unwrap_or(false);
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": has_prefix, "trim_offsets": true,
        "use_regex": true});
    Ok(json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": bytes, "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "added_tokens": added,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
            "byte_fallback": false, "vocab": vocabulary, "merges": merges},
    }))
}

/// The crate numbers added tokens itself: those that the vocabulary has as it has them, others
/// behind it, one after the other.
fn check_places(
    vocabulary: &serde_json::Map<String, Value>,
    added: &[Value],
) -> Result<(), LoadError> {
    let mut next = vocabulary.len();
    let mut texts = std::collections::BTreeSet::new();
    for token in added {
        let (text, id) = (token["content"].as_str().unwrap_or_default(), &token["id"]);
        if !texts.insert(text) {
            let what = format!("added token {text:?} has two ids, one is {id}");
            return Err(LoadError::Tokenizer(what));
        }
        let wanted = match vocabulary.get(text) {
            Some(known) => known.clone(),
            None => {
                next += 1;
                Value::from(next - 1)
            }
        };
        if *id != wanted {
            let what = format!("added token {text:?} has id {id}, its place is {wanted}");
            return Err(LoadError::Tokenizer(what));
        }
    }
    Ok(())
}

/// Tokens that aren't made of merges: those that `added_tokens.json` and `tokenizer_config.json`
/// list, and the control tokens that are in the vocabulary itself.
fn added(
    folder: &Path,
    (vocabulary, settings): (&serde_json::Map<String, Value>, &Value),
) -> Result<Vec<Value>, LoadError> {
    let mut found = std::collections::BTreeMap::new();
    // Of a token that is listed twice the first has its settings.
    let mut add = |text: &str, id: &Value, settings: Value| {
        let Some(id) = id.as_u64() else {
            let what = format!("the id of {text:?} is {id}, not a number");
            return Err(LoadError::Tokenizer(what));
        };
        let mut token = settings;
        (token["id"], token["content"]) = (id.into(), text.into());
        match found.entry(id).or_insert(token)["content"].as_str() {
            Some(known) if known != text => {
                let what = format!("added tokens {known:?} and {text:?} have one id, {id}");
                Err(LoadError::Tokenizer(what))
            }
            _ => Ok(()),
        }
    };
    if let Some(listed) = settings["added_tokens_decoder"].as_object() {
        for (id, token) in listed {
            let Some(text) = token["content"].as_str() else {
                let what = format!("added token {id} has no text in tokenizer_config.json");
                return Err(LoadError::Tokenizer(what));
            };
            let id = id.parse::<u64>().map_or(Value::Null, Value::from);
            add(text, &id, flags(token)?)?;
        }
    }
    let keys = ["bos_token", "eos_token", "unk_token", "pad_token"];
    let named = keys.into_iter().filter_map(|key| named_token(settings, key));
    for text in named.chain([END.to_owned()]) {
        if let Some(id) = vocabulary.get(&text) {
            add(&text, id, flags(&json!({"special": true}))?)?;
        }
    }
    if let Value::Object(listed) = read_json(folder, "added_tokens.json")? {
        for (text, id) in &listed {
            add(text, id, flags(&json!({"special": text == END}))?)?;
        }
    }
    Ok(found.into_values().collect())
}

/// How an added token is looked for; what isn't said is false.
fn flags(token: &Value) -> Result<Value, LoadError> {
    let mut flags = json!({});
    for key in ["single_word", "lstrip", "rstrip", "normalized", "special"] {
        flags[key] = match &token[key] {
            Value::Null => false.into(),
            Value::Bool(flag) => (*flag).into(),
            found => {
                let (text, what) = (&token["content"], "neither true nor false");
                let what = format!("added token {text}: {key} is {found}, {what}");
                return Err(LoadError::Tokenizer(what));
            }
        };
    }
    Ok(flags)
}
