//! Folders with `tokenizer.json`: the same ids, text and rules as the same vocabulary in GGUF.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::strings::Strings;
use super::*;
use crate::tests::harness::write_vocabulary;

/// A folder with `described` and `others`.
fn folder(described: &Value, others: &[(&str, Value)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut described = described.clone();
    described.as_object_mut().unwrap().remove("gguf");
    fs::write(folder.path().join("tokenizer.json"), described.to_string()).unwrap();
    for (name, content) in others {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

pub(super) fn open(described: &Value, others: &[(&str, Value)]) -> Tokenizer {
    Tokenizer::from_hf(folder(described, others).path()).unwrap()
}

#[test]
fn a_folder_gives_what_the_same_vocabulary_in_gguf_gives() {
    for kind in KINDS {
        let described = committed(kind);
        let gguf = Pair::new(kind, &described).ours;
        let hf = open(&described, &[]);
        let mut strings = Strings::new(21);
        for _ in 0..1500 {
            let text = strings.next();
            let ids = gguf.encode_plain(&text).unwrap();
            assert_eq!(hf.encode_plain(&text).unwrap(), ids, "{kind}: {text:?}");
            assert_eq!(hf.decode(&ids), gguf.decode(&ids), "{kind}: {text:?}");
            for place in [Place::Beginning, Place::AfterText] {
                let marked =
                    |tokenizer: &Tokenizer| tokenizer.encode_marked(&text, mark_for(&text), place);
                let (ours, theirs) = (marked(&gguf).unwrap(), marked(&hf).unwrap());
                assert_eq!(theirs, ours, "{kind} {place:?}: {text:?}");
                assert_eq!(hf.decode(&ours), gguf.decode(&ours), "{kind}: {text:?}");
            }
        }
        for id in 0..gguf.texts.len() as u32 + 2 {
            assert_eq!(hf.bytes(id), gguf.bytes(id), "{kind}: {id}");
            assert_eq!(hf.bytes_after(None, id), gguf.bytes_after(None, id), "{kind}: {id}");
        }
    }
}

#[test]
fn first_and_end_tokens_are_those_of_the_configuration() {
    let described = committed("sentencepiece");
    let id = |text: &str| {
        let added = described["added_tokens"].as_array().unwrap();
        let token = added.iter().find(|token| token["content"] == text).unwrap();
        token["id"].as_u64().unwrap() as u32
    };
    let by_look = [2, id("<|endoftext|>"), id("<|im_end|>")];
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true});
    let tokenizer = open(&described, &[("tokenizer_config.json", config)]);
    assert_eq!(tokenizer.eos(), by_look);
    assert_eq!(tokenizer.encode_plain("").unwrap(), [1]);
    // What the pipeline itself adds counts where the configuration is silent.
    let mut adding = described.clone();
    adding["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    let config = ("tokenizer_config.json", json!({"bos_token": "<s>"}));
    assert_eq!(open(&adding, std::slice::from_ref(&config)).encode_plain("").unwrap(), [1]);
    assert!(open(&described, &[config]).encode_plain("").unwrap().is_empty());
    let generation = |ids: Value| [("generation_config.json", json!({"eos_token_id": ids}))];
    assert!(open(&described, &generation(json!([5, 7]))).eos().starts_with(&[2, 5, 7]));
    assert!(open(&described, &generation(json!(9))).eos().starts_with(&[2, 9]));
    let beyond = folder(&described, &generation(json!(99_999)));
    let refused = Tokenizer::from_hf(beyond.path()).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("end token 99999"), "{refused}");
}

#[test]
fn control_tokens_swallow_white_space_where_the_file_says_so() {
    let mut described = committed("gpt-2");
    for token in described["added_tokens"].as_array_mut().unwrap() {
        token["rstrip"] = (token["content"] == "<|im_start|>").into();
        token["lstrip"] = (token["content"] == "<|im_end|>").into();
    }
    let mut pair = Pair::new("gpt-2", &described);
    pair.ours = open(&described, &[]);
    let mut strings = Strings::new(22);
    (0..3000).for_each(|_| pair.check(&strings.next()));
    pair.check("a <|im_start|>  \n b \t <|im_end|> c<|im_start|> <|im_end|>");
}

#[test]
fn a_space_before_the_first_word_only_is_that_and_nothing_else() {
    // How newer files of the Llama 2 kind describe it.
    let mut described = committed("sentencepiece");
    described["normalizer"] = Value::Null;
    described["pre_tokenizer"] = json!({
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false,
    });
    let tokenizer = open(&described, &[]);
    let mut pair = Pair::new("sentencepiece", &described);
    pair.ours = tokenizer;
    let mut strings = Strings::new(23);
    (0..3000).for_each(|_| pair.check(&strings.next()));
    let after = pair.ours.encode_marked("the", 'x', Place::AfterText).unwrap();
    assert_ne!(pair.ours.encode_plain("the").unwrap(), after);
    assert_eq!(pair.ours.bytes_after(Some(after[0]), after[0])[0], b't');
}

#[test]
fn structure_that_is_not_called_special_is_still_out_of_a_clients_reach() {
    let mut described = committed("gpt-2");
    for token in described["added_tokens"].as_array_mut().unwrap() {
        token["special"] = false.into();
    }
    let tokenizer = open(&described, &[]);
    let end = tokenizer.encode_marked("<|im_end|>", 'x', Place::Beginning).unwrap();
    assert_eq!(end.len(), 1);
    assert!(tokenizer.encode_plain("<|im_end|>").unwrap().len() > 1);
    assert_eq!(tokenizer.eos().len(), 2);
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let described = committed("gpt-2");
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut described = described.clone();
        change(&mut described);
        Tokenizer::from_hf(folder(&described, &[]).path()).map(|_| ()).unwrap_err().to_string()
    };
    #[rustfmt::skip]
    let table = [
        (refused(&|d| *d = json!({})), "tokenizer.json: "),
        (refused(&|d| d["model"]["merges"] = json!([["q", "中"]])), "tokenizer.json: "),
        (refused(&|d| d["decoder"] = Value::Null), "decoder [] is unknown"),
        (refused(&|d| d["decoder"] = json!({"type": "WordPiece", "prefix": "#", "cleanup": true})),
            "decoder [\"WordPiece\"]"),
        (refused(&|d| d["model"]["vocab"]["zzz"] = json!(4_000_000_000u32)), "have ids up to"),
    ];
    for (why, expected) in table {
        assert!(why.contains(expected), "{why:?} says not {expected:?}");
    }
    let empty = TempDir::new().unwrap();
    let why = Tokenizer::from_hf(empty.path()).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("no tokenizer.json"), "{why}");
    fs::write(empty.path().join("tokenizer.json"), "{").unwrap();
    let why = Tokenizer::from_hf(empty.path()).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("tokenizer.json: EOF"), "{why}");
    let config = folder(&described, &[]);
    fs::write(config.path().join("tokenizer_config.json"), "[").unwrap();
    let why = Tokenizer::from_hf(config.path()).map(|_| ()).unwrap_err().to_string();
    assert!(why.contains("tokenizer_config.json: "), "{why}");
}

/// A folder of GPT-2 with the two files that it was published with, and `others`.
fn published(model_type: &str, others: &[(&str, Value)]) -> (TempDir, Value) {
    published_as(model_type, committed("gpt-2"), others)
}

fn published_as(model_type: &str, described: Value, others: &[(&str, Value)]) -> (TempDir, Value) {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
    write_vocabulary(folder.path(), &described);
    write("config.json", json!({"model_type": model_type, "eos_token_id": 860}).to_string());
    let added = described["added_tokens"].as_array().unwrap().iter();
    let added: serde_json::Map<String, Value> =
        added.map(|token| (token["id"].to_string(), token.clone())).collect();
    write("tokenizer_config.json", json!({"added_tokens_decoder": added}).to_string());
    for (name, content) in others {
        write(name, content.to_string());
    }
    (folder, described)
}

#[test]
fn gpt2s_two_files_give_what_the_crate_and_our_own_bpe_give_for_the_same_vocabulary() {
    let (folder, described) = published("gpt2", &[]);
    let mut pair = Pair::new("gpt-2", &described);
    pair.ours = Tokenizer::from_hf(folder.path()).unwrap();
    let gguf = Pair::new("gpt-2", &described).ours;
    let mut strings = Strings::new(31);
    let texts = (0..10_000).map(|_| strings.next());
    for text in texts.chain(Strings::written()) {
        let ids = pair.ours.encode_plain(&text).unwrap();
        assert_eq!(ids, pair.reference(&text, false), "{text:?}");
        assert_eq!(ids, gguf.encode_plain(&text).unwrap(), "{text:?}");
        assert_eq!(pair.ours.decode(&ids), gguf.decode(&ids), "{text:?}");
    }
    assert_eq!(pair.ours.eos(), gguf.eos());
    let end = pair.ours.encode_marked("a<|endoftext|>", 'x', Place::Beginning).unwrap();
    assert_eq!(end.last(), Some(&860));
}

#[test]
fn gpt2s_added_tokens_keep_the_settings_that_they_are_listed_with() {
    let settings = [
        ("<|im_start|>", "rstrip"),
        ("<|im_end|>", "lstrip"),
        ("<tool_call>", "single_word"),
        ("<think>", "normalized"),
        ("<think>", "rstrip"),
    ];
    let mut described = committed("gpt-2");
    for (text, setting) in settings {
        let mut added = described["added_tokens"].as_array_mut().unwrap().iter_mut();
        added.find(|token| token["content"] == text).unwrap()[setting] = true.into();
    }
    let (folder, described) = published_as("gpt2", described, &[]);
    let mut pair = Pair::new("gpt-2", &described);
    pair.ours = Tokenizer::from_hf(folder.path()).unwrap();
    let mut strings = Strings::new(32);
    (0..3000).for_each(|_| pair.check(&strings.next()));
    let written = [
        "a <|im_start|>  \n b \t <|im_end|> c<|im_start|> <|im_end|>",
        "a<tool_call>b <tool_call> c <think> \n d<think>e",
    ];
    written.iter().for_each(|text| pair.check(text));
    // Each of them is seen: without it there are other ids.
    let plain = open(&committed("gpt-2"), &[]);
    for text in written {
        let ids = |tokenizer: &Tokenizer| {
            tokenizer.encode_marked(text, mark_for(text), Place::Beginning).unwrap()
        };
        assert_ne!(ids(&plain), ids(&pair.ours), "{text:?}");
    }
}

#[test]
fn the_end_token_of_the_vocabulary_itself_is_a_control_token() {
    // As in the published files: there it is the last of vocab.json.
    let (folder, described) = published("gpt2", &[("tokenizer_config.json", json!({}))]);
    let mut vocabulary = described["model"]["vocab"].clone();
    vocabulary["<|endoftext|>"] = json!(860);
    fs::write(folder.path().join("vocab.json"), vocabulary.to_string()).unwrap();
    let tokenizer = Tokenizer::from_hf(folder.path()).unwrap();
    assert_eq!(tokenizer.eos(), [860]);
    assert!(tokenizer.encode_plain("<|endoftext|>").unwrap().len() > 1);
    assert_eq!(tokenizer.encode_marked("<|endoftext|>", 'x', Place::Beginning).unwrap(), [860]);
    assert_eq!(tokenizer.bytes(860), b"");
}

#[test]
fn a_space_before_the_text_is_put_where_gpt2s_settings_ask_for_it() {
    let with = |settings: Value| {
        let end = ("added_tokens.json", json!({"<|endoftext|>": 860}));
        let (folder, _) = published("gpt2", &[("tokenizer_config.json", settings), end]);
        Tokenizer::from_hf(folder.path()).unwrap()
    };
    let (plain, spaced) = (with(json!({})), with(json!({"add_prefix_space": true})));
    assert_eq!(spaced.encode_plain("the").unwrap(), plain.encode_plain(" the").unwrap());
    assert_ne!(plain.encode_plain("the").unwrap(), plain.encode_plain(" the").unwrap());
}

#[test]
fn two_files_of_another_family_or_damaged_ones_are_refused() {
    let refused =
        |folder: &TempDir| Tokenizer::from_hf(folder.path()).map(|_| ()).unwrap_err().to_string();
    // Qwen's have the same names and another pattern.
    let (folder, _) = published("qwen2", &[]);
    assert!(refused(&folder).contains("no tokenizer.json"));
    let (folder, _) = published("gpt2", &[("vocab.json", json!([]))]);
    assert!(refused(&folder).contains("vocab.json and merges.txt"));
    let (folder, _) = published("gpt2", &[("added_tokens.json", json!({"<x>": "7"}))]);
    assert!(refused(&folder).contains("<x>"));
    let (folder, _) = published("gpt2", &[("added_tokens.json", json!({"<x>": 900}))]);
    assert!(refused(&folder).contains("its place is 869"));
    // Two texts of one id, two ids of one text, a setting that is none, and no text.
    let (folder, _) = published("gpt2", &[("added_tokens.json", json!({"<x>": 868}))]);
    let why = refused(&folder);
    assert!(why.contains("\"<think>x\" and \"<x>\" have one id, 868"), "{why}");
    let (folder, _) = published("gpt2", &[("added_tokens.json", json!({"<think>": 869}))]);
    let why = refused(&folder);
    assert!(why.contains("\"<think>\" has two ids, one is 869"), "{why}");
    let listed = |token: Value| {
        let settings = json!({"added_tokens_decoder": {"860": token}});
        refused(&published("gpt2", &[("tokenizer_config.json", settings)]).0)
    };
    let why = listed(json!({"content": "<x>", "lstrip": "yes"}));
    assert!(why.contains("\"<x>\": lstrip is \"yes\""), "{why}");
    assert!(listed(json!({"special": true})).contains("860 has no text"));
    let (folder, _) = published("gpt2", &[]);
    fs::write(folder.path().join("merges.txt"), [b'a', b' ', 0xff]).unwrap();
    assert!(refused(&folder).contains("merges.txt"));
    // What the crate refuses is said of the two files, not of one that isn't there.
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\nq zzz\n").unwrap();
    let why = refused(&folder);
    assert!(why.contains("vocab.json and merges.txt: ") && !why.contains("r.json"), "{why}");
    let (folder, _) = published(
        "gpt2",
        &[(
            "config.json",
            json!({
                "model_type": "gpt2", "eos_token_id": 99_999,
            }),
        )],
    );
    let why = refused(&folder);
    assert!(why.contains("vocab.json and merges.txt: end token 99999"), "{why}");
}
