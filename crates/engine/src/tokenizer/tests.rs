//! Our tokenizers against Hugging Face's crate, on more than 100,000 strings.
//!
//! Small vocabularies of every kind are committed (fixtures/make_vocabularies.py); the real ones
//! of the test model and of the folder that `TALLY_TEST_TOKENIZERS` names are checked as well
//! where they are there: `<pre>.json` or `sentencepiece….json`, each a `tokenizer.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;

use super::*;
use crate::files::{ModelFiles, ModelKind};

mod folder;
mod hostile;
mod strings;

use strings::Strings;

/// The fields that llama.cpp's converter would write for a `tokenizer.json`.
pub(super) struct Converted {
    model: &'static str,
    pre: Option<String>,
    tokens: Vec<String>,
    merges: Vec<String>,
    scores: Option<Vec<f32>>,
    types: Vec<u64>,
    add_space_prefix: Option<bool>,
    unknown: Option<u64>,
}

impl Converted {
    pub(super) fn new(name: &str, described: &Value) -> Converted {
        let model = &described["model"];
        let is_pieces = model["byte_fallback"] == true;
        let mut tokens = std::collections::BTreeMap::new();
        for (text, id) in model["vocab"].as_object().unwrap() {
            tokens.insert(id.as_u64().unwrap(), (text.clone(), 1));
        }
        for added in described["added_tokens"].as_array().unwrap() {
            let kind = if added["special"] == true { 3 } else { 4 };
            let text = added["content"].as_str().unwrap().to_string();
            tokens.insert(added["id"].as_u64().unwrap(), (text, kind));
        }
        let own = &described["gguf"];
        if is_pieces {
            for (text, kind) in tokens.values_mut() {
                let byte = super::pieces::byte_named(text);
                *kind = if byte.is_some() { 6 } else { *kind };
                *kind = if text == "<unk>" { 2 } else { *kind };
            }
        }
        let merges = model["merges"].as_array().unwrap().iter().map(|merge| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        });
        // Vocabularies without scores of their own are in the order of falling scores, but for
        // runs of spaces, which SentencePiece puts last, all at one score.
        let score = |(id, (text, _)): (&u64, &(String, u64))| {
            let is_spaces = text.chars().count() > 1 && text.chars().all(|c| c == '\u{2581}');
            if is_spaces { -1e9 } else { -(*id as f32) }
        };
        let scores = own["scores"].as_array().map_or_else(
            || tokens.iter().map(score).collect(),
            |scores| scores.iter().map(|score| score.as_f64().unwrap() as f32).collect(),
        );
        Converted {
            model: if is_pieces { "llama" } else { "gpt2" },
            pre: Some(own["pre"].as_str().unwrap_or(name).to_string()),
            merges: if is_pieces { Vec::new() } else { merges.collect() },
            scores: is_pieces.then_some(scores),
            types: tokens.values().map(|(_, kind)| *kind).collect(),
            tokens: tokens.into_values().map(|(text, _)| text).collect(),
            add_space_prefix: own["add_space_prefix"].as_bool(),
            unknown: is_pieces.then_some(0),
        }
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        Fields {
            model: Some(self.model),
            pre: self.pre.as_deref(),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            merges: self.merges.iter().map(String::as_str).collect(),
            scores: self.scores.clone(),
            types: Some(self.types.clone()),
            add_space_prefix: self.add_space_prefix,
            unknown: self.unknown,
            ..Fields::default()
        }
    }
}

/// A vocabulary as its authors read it, and as we do.
struct Pair {
    name: String,
    theirs: HfTokenizer,
    ours: Tokenizer,
}

pub(super) fn committed(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vocabularies");
    read(&folder.join(format!("{name}.json")))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Pair {
    fn new(name: &str, described: &Value) -> Pair {
        let mut plain = described.clone();
        plain.as_object_mut().unwrap().remove("gguf");
        let theirs: HfTokenizer = plain.to_string().parse().unwrap();
        let ours = Tokenizer::new(&Converted::new(name, described).fields()).unwrap();
        Pair { name: name.into(), theirs, ours }
    }

    /// Ids that the reference gives, with control tokens recognised or not.
    fn reference(&mut self, text: &str, has_control: bool) -> Vec<u32> {
        self.theirs.set_encode_special_tokens(!has_control);
        self.theirs.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    fn check(&mut self, text: &str) {
        let (name, shown) = (&self.name.clone(), text.escape_unicode());
        let ids = self.ours.encode_plain(text).unwrap();
        assert_eq!(ids, self.reference(text, false), "{name}: plain {text:?} {shown}");
        let marked = self.ours.encode_marked(text, mark_for(text), Place::Beginning).unwrap();
        assert_eq!(marked, self.reference(text, true), "{name}: template {text:?} {shown}");
    }
}

/// A mark that `text` doesn't have.
fn mark_for(text: &str) -> char {
    ('\u{e000}'..='\u{f8ff}').find(|mark| !text.contains(*mark)).unwrap()
}

const KINDS: [&str; 7] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "default",
    "sentencepiece",
    "sentencepiece-no-prefix",
];

/// Strings for each committed vocabulary: more than 100,000 in all.
const STRINGS: usize = 15_000;

fn check_kind(kind: &str, seed: u64) {
    let mut pair = Pair::new(kind, &committed(kind));
    let mut strings = Strings::new(seed);
    for _ in 0..STRINGS {
        pair.check(&strings.next());
    }
    for text in Strings::written() {
        pair.check(&text);
    }
}

#[test]
fn gpt2_splits_as_the_reference_does() {
    check_kind("gpt-2", 1);
    check_kind("default", 2);
}

#[test]
fn smollm_splits_as_the_reference_does() {
    check_kind("smollm", 3);
}

#[test]
fn llama3_and_qwen2_split_as_the_reference_does() {
    check_kind("llama-bpe", 4);
    check_kind("qwen2", 5);
}

#[test]
fn sentencepiece_merges_as_the_reference_does() {
    check_kind("sentencepiece", 6);
    check_kind("sentencepiece-no-prefix", 7);
}

#[test]
fn unused_pieces_and_collapsed_spaces_are_as_sentencepiece_has_them() {
    let made = committed("sentencepiece-cases");
    let converted = Converted::new("sentencepiece", &committed("sentencepiece"));
    let mut types = converted.types.clone();
    for id in made["unused"].as_array().unwrap() {
        types[id.as_u64().unwrap() as usize] = 5;
    }
    let collapsing = Fields { remove_extra_whitespaces: Some(true), ..converted.fields() };
    let with_unused = Fields { types: Some(types), ..converted.fields() };
    let variants = [
        ("plain", converted.fields()),
        ("remove_extra_whitespaces", collapsing),
        ("with_unused", with_unused),
    ];
    for (name, fields) in variants {
        let tokenizer = Tokenizer::new(&fields).unwrap();
        for case in made[name].as_array().unwrap() {
            let text = case[0].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case[1].clone()).unwrap();
            assert_eq!(tokenizer.encode_plain(text).unwrap(), ids, "{name}: {text:?}");
        }
    }
}

/// Real vocabularies: far too large to commit.
#[test]
fn real_vocabularies_are_read_as_their_authors_read_them() {
    let folder = std::env::var_os("TALLY_TEST_TOKENIZERS").map(PathBuf::from);
    let files = folder.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut pairs = Vec::new();
    for path in files.map(|file| file.unwrap().path()) {
        let (name, described) = (path.file_stem().unwrap().to_str().unwrap(), read(&path));
        let as_folder = Pair { ours: folder::open(&described, &[]), ..Pair::new(name, &described) };
        pairs.extend([Pair::new(name, &described), as_folder]);
    }
    pairs.extend(test_model());
    let count = if folder.is_some() { 100_000 } else { 20_000 };
    for (seed, pair) in (8..).zip(&mut pairs) {
        let mut strings = Strings::new(seed);
        (0..count).for_each(|_| pair.check(&strings.next()));
        Strings::written().iter().for_each(|text| pair.check(text));
    }
}

/// The test model's vocabulary; the reference is built from its fields with SmolLM2's own
/// pre-tokenizer.
fn test_model() -> Option<Pair> {
    let files = ModelFiles::open(Path::new(&std::env::var_os("TALLY_TEST_MODEL")?)).unwrap();
    let ModelKind::Gguf(gguf) = files.kind() else { panic!("the test model is a GGUF file") };
    let fields = Fields::read(gguf).unwrap();
    assert_eq!(fields.pre, Some("smollm"));
    let kinds = fields.types.as_ref().unwrap();
    let mut described = committed("smollm");
    let vocab = (0..).zip(&fields.tokens).map(|(id, text)| (text.to_string(), Value::from(id)));
    described["model"]["vocab"] = Value::Object(vocab.collect());
    described["model"]["merges"] = fields.merges.clone().into();
    let control = (0..).zip(&fields.tokens).zip(kinds).filter(|(_, kind)| **kind == 3);
    let control = control.map(|((id, text), _)| {
        serde_json::json!({
            "id": id, "content": text, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    });
    described["added_tokens"] = Value::Array(control.collect());
    let mut pair = Pair::new("smollm", &described);
    pair.ours = Tokenizer::new(&fields).unwrap();
    Some(pair)
}

#[test]
fn ids_give_back_their_text_at_once_and_piece_by_piece() {
    for kind in KINDS {
        let pair = Pair::new(kind, &committed(kind));
        let mut strings = Strings::new(11);
        for _ in 0..3000 {
            let text = strings.next();
            let ids = pair.ours.encode_plain(&text).unwrap();
            let decoded = pair.ours.decode(&ids);
            assert_eq!(decoded, expected_text(kind, &text), "{kind}: {text:?}");
            check_stream(&pair.ours, &ids, 0);
            // Any ids, in any order: characters cut off, control tokens between.
            let count = pair.ours.texts.len();
            let ids: Vec<u32> = (0..24).map(|_| strings.below(count + 2) as u32).collect();
            check_stream(&pair.ours, &ids, 0);
            check_stream(&pair.ours, &ids, strings.below(ids.len()));
        }
    }
}

/// What a round trip makes of a text: composed, without the bytes that SmolLM's small vocabulary
/// lacks, or with spaces for `▁`.
fn expected_text(kind: &str, text: &str) -> String {
    match kind {
        "smollm" => text.replace(['~', '\u{1}'], ""),
        "sentencepiece" | "sentencepiece-no-prefix" => text.replace('▁', " "),
        "qwen2" => {
            use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};
            let mut normalized = NormalizedString::from(text);
            NFC.normalize(&mut normalized).unwrap();
            normalized.get().to_string()
        }
        _ => text.to_string(),
    }
}

/// Streams `ids[from..]` as an answer to a prompt of the others.
fn check_stream(tokenizer: &Tokenizer, ids: &[u32], from: usize) {
    let mut detokenizer = Detokenizer::default();
    let mut streamed = String::new();
    for at in from..ids.len() {
        let before = at.checked_sub(1).map(|before| ids[before]);
        streamed.push_str(&detokenizer.push(tokenizer.bytes_after(before, ids[at])));
    }
    // A character that isn't whole is dropped by a stream and U+FFFD in a text.
    let tail = if detokenizer.is_within_character() { "\u{fffd}" } else { "" };
    if from == 0 {
        assert_eq!(streamed + tail, tokenizer.decode(ids));
    } else {
        let bytes = |ids: &[u32]| -> Vec<u8> {
            (0..ids.len())
                .flat_map(|at| tokenizer.bytes_after(at.checked_sub(1).map(|b| ids[b]), ids[at]))
                .copied()
                .collect()
        };
        let after = bytes(ids)[bytes(&ids[..from]).len()..].to_vec();
        assert_eq!(streamed + tail, String::from_utf8_lossy(&after));
    }
}

#[test]
fn decoding_is_the_references_where_that_gives_text() {
    for kind in ["gpt-2", "llama-bpe", "sentencepiece", "sentencepiece-no-prefix"] {
        let pair = Pair::new(kind, &committed(kind));
        let mut strings = Strings::new(12);
        for _ in 0..3000 {
            let text = strings.next();
            let ids = pair.ours.encode_plain(&text).unwrap();
            if ids.iter().all(|id| !pair.ours.is_special(*id)) {
                let theirs = pair.theirs.decode(&ids, true).unwrap();
                assert_eq!(pair.ours.decode(&ids), theirs, "{kind}: {text:?}");
            }
        }
    }
}

#[test]
fn marks_join_what_they_stand_between() {
    let pair = Pair::new("gpt-2", &committed("gpt-2"));
    let mark = '\u{f8ff}';
    let marked = |text: &str| pair.ours.encode_marked(text, mark, Place::Beginning).unwrap();
    let plain = |text: &str| pair.ours.encode_plain(text).unwrap();
    assert_eq!(marked("<\u{f8ff}|im_end|> the\u{f8ff} end"), plain("<|im_end|> the end"));
    let end = marked("<|im_end|>");
    assert_eq!(end.len(), 1);
    assert!(pair.ours.bytes(end[0]).is_empty());
    assert_eq!(marked("a<|im_end|>b"), [plain("a"), end, plain("b")].concat());
}

#[test]
fn phi_3_takes_away_what_stands_after_its_special_tokens() {
    let converted = Converted::new("sentencepiece", &committed("sentencepiece"));
    let encode = |architecture: &str, text: &str| {
        let fields = Fields { architecture: Some(architecture), ..converted.fields() };
        Tokenizer::new(&fields).unwrap().encode_marked(text, 'x', Place::Beginning).unwrap()
    };
    let (spaced, close) = ("<|im_start|> \n hi<think>\n", "<|im_start|>hi<think>");
    assert_eq!(encode("phi3", spaced), encode("llama", close));
    assert_ne!(encode("llama", spaced), encode("llama", close));
    // The end of a text takes nothing.
    assert_eq!(encode("phi3", "<|endoftext|> hi"), encode("llama", "<|endoftext|> hi"));
}

#[test]
fn a_first_token_is_put_before_beginnings_only() {
    let described = committed("sentencepiece");
    let converted = Converted::new("sentencepiece", &described);
    for (add_bos, expected) in [(None, true), (Some(true), true), (Some(false), false)] {
        let fields = Fields { bos: Some(1), add_bos, ..converted.fields() };
        let tokenizer = Tokenizer::new(&fields).unwrap();
        let marked = |text, place| tokenizer.encode_marked(text, 'x', place).unwrap();
        let ids = marked("hi", Place::Beginning);
        assert_eq!(ids.first() == Some(&1), expected);
        // A template that writes the token itself gets no second one.
        assert_eq!(marked("<s>hi", Place::Beginning)[1..], ids[usize::from(expected)..]);
        let after = marked("hi", Place::AfterText);
        assert_ne!(after.first(), Some(&1));
        // Text that goes on has no space put before it, text after a control token has.
        assert_eq!(tokenizer.bytes(after[0])[0], b'h');
        assert_eq!(tokenizer.decode(&ids), "hi");
        let after = marked("</s>hi", Place::AfterText);
        assert_eq!(tokenizer.bytes(after[1])[0], b' ');
        assert_eq!(tokenizer.decode(&after), "hi");
    }
    let converted = Converted::new("llama-bpe", &committed("llama-bpe"));
    let fields = Fields { bos: Some(7), ..converted.fields() };
    // Files of that family lack the key and mean yes.
    assert_eq!(Tokenizer::new(&fields).unwrap().encode_plain("").unwrap(), [7]);
    let converted = Converted::new("qwen2", &committed("qwen2"));
    let fields = Fields { bos: Some(7), ..converted.fields() };
    assert!(Tokenizer::new(&fields).unwrap().encode_plain("").unwrap().is_empty());
}
