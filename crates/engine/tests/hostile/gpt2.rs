//! Folders of GPT-2: matrices that are turned, and a tokenizer of two files.

use std::path::Path;

use serde_json::{Value, json};
use tally_engine::LoadError;

use crate::mutate::{Random, damage, renumber, seeds};
use crate::safetensors::{end_of, entries, file, header, text, write};
use crate::watched::{folder, load};

const WIDTH: u64 = 32;
const FF: u64 = 64;
const POSITIONS: u64 = 48;
/// The vocabulary of 869 tokens, padded.
const VOCAB: u64 = 896;
const QKV: &str = "transformer.h.0.attn.c_attn.weight";

fn sound() -> Vec<(String, Value)> {
    entries(&[
        ("transformer.wte.weight", &[VOCAB, WIDTH], "F16"),
        ("transformer.wpe.weight", &[POSITIONS, WIDTH], "BF16"),
        ("transformer.h.0.ln_1.weight", &[WIDTH], "F32"),
        ("transformer.h.0.ln_1.bias", &[WIDTH], "F16"),
        (QKV, &[WIDTH, 3 * WIDTH], "F16"),
        ("transformer.h.0.attn.c_attn.bias", &[3 * WIDTH], "F32"),
        ("transformer.h.0.attn.c_proj.weight", &[WIDTH, WIDTH], "BF16"),
        ("transformer.h.0.attn.c_proj.bias", &[WIDTH], "BF16"),
        ("transformer.h.0.ln_2.weight", &[WIDTH], "F16"),
        ("transformer.h.0.ln_2.bias", &[WIDTH], "F16"),
        ("transformer.h.0.mlp.c_fc.weight", &[WIDTH, FF], "F32"),
        ("transformer.h.0.mlp.c_fc.bias", &[FF], "F16"),
        ("transformer.h.0.mlp.c_proj.weight", &[FF, WIDTH], "F16"),
        ("transformer.h.0.mlp.c_proj.bias", &[WIDTH], "F16"),
        ("transformer.ln_f.weight", &[WIDTH], "F16"),
        ("transformer.ln_f.bias", &[WIDTH], "F16"),
    ])
}

/// Names and contents of the folder's files, the weights last.
fn files(entries: &[(String, Value)]) -> Vec<(&'static str, Vec<u8>)> {
    let vocabulary =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vocabularies/gpt-2.json");
    let described: Value = serde_json::from_slice(&std::fs::read(vocabulary).unwrap()).unwrap();
    let merges = described["model"]["merges"].as_array().unwrap().iter();
    let merges = merges
        .map(|pair| format!("{} {}", pair[0].as_str().unwrap(), { pair[1].as_str().unwrap() }));
    let merges = merges.collect::<Vec<_>>().join("\n");
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 1,
        "n_embd": WIDTH, "n_inner": FF, "n_head": 2, "n_positions": POSITIONS,
        "vocab_size": VOCAB, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true, "eos_token_id": 860,
    });
    let added = described["added_tokens"].as_array().unwrap().iter();
    let (listed, others): (Vec<&Value>, Vec<&Value>) =
        added.partition(|token| token["special"] == true);
    let listed: Value = listed.iter().map(|one| (one["id"].to_string(), (*one).clone())).collect();
    let others: Value = others
        .iter()
        .map(|one| (one["content"].as_str().unwrap().to_owned(), one["id"].clone()))
        .collect();
    vec![
        ("config.json", config.to_string().into()),
        ("vocab.json", described["model"]["vocab"].to_string().into()),
        ("merges.txt", format!("#version: 0.2\n{merges}\n").into()),
        ("added_tokens.json", others.to_string().into()),
        ("tokenizer_config.json", json!({"added_tokens_decoder": listed}).to_string().into()),
        ("model.safetensors", file(&header(entries), end_of(entries))),
    ]
}

fn loaded(files: &[(&str, Vec<u8>)], what: &str) -> Result<(), LoadError> {
    let folder = folder();
    for (name, bytes) in files {
        write(folder.path(), name, bytes);
    }
    load(folder.path(), what)
}

#[test]
fn the_sound_folder_of_gpt2_loads_and_runs() {
    loaded(&files(&sound()), "sound").unwrap();
}

#[test]
fn every_spoiled_matrix_that_is_turned_is_refused_by_its_name() {
    let huge = u64::MAX - 7;
    let spoiled = [
        ("dtype", json!("F4")),
        ("dtype", json!("F32")),
        ("shape", json!([])),
        ("shape", json!([0, 96])),
        ("shape", json!([96, 32])),
        ("shape", json!([32, 95])),
        ("shape", json!([32, 32, 3])),
        ("shape", json!([huge, huge])),
        ("data_offsets", json!([huge, huge])),
    ];
    for (key, value) in spoiled {
        let mut entries = sound();
        let (_, entry) = entries.iter_mut().find(|(name, _)| name == QKV).unwrap();
        entry[key] = value.clone();
        let mut files = files(&sound());
        files.last_mut().unwrap().1 = file(&header(&entries), end_of(&sound()));
        let what = format!("{key} of {value}");
        let error = text(loaded(&files, &what), &what);
        assert!(error.contains(QKV) && error.len() < 400, "{what}: {error}");
    }
}

#[test]
fn no_beginning_of_the_two_tokenizer_files_is_read_past_its_end() {
    let sound = files(&sound());
    for at in [1, 2] {
        let whole = sound[at].1.len();
        for length in (0..whole).step_by(whole / 40) {
            let mut files = sound.clone();
            files[at].1.truncate(length);
            let what = format!("{length} bytes of {}", files[at].0);
            // Fewer merges are a tokenizer too; half a vocabulary isn't one.
            if let (Ok(()), "vocab.json") = (loaded(&files, &what), files[at].0) {
                panic!("{what} load");
            }
        }
    }
}

#[test]
fn damaged_folders_of_gpt2_never_panic_and_never_make_a_large_allocation() {
    let entries = sound();
    let sound = files(&entries);
    let mut counts = vec![[0; 2]; sound.len()];
    for seed in seeds(1800) {
        let mut random = Random(seed);
        let mut files = sound.clone();
        let at = random.below(files.len());
        let (name, bytes) = &mut files[at];
        let end = match *name {
            "model.safetensors" => 8 + header(&entries).len(),
            _ => bytes.len(),
        };
        let is_number = *name != "merges.txt" && end == bytes.len() && random.below(2) == 0;
        let done = match is_number {
            true => renumber(bytes, &mut random),
            false => damage(bytes, end, &[], &mut random),
        };
        let what = format!("seed {seed}: {name}: {done}");
        match loaded(&files, &what) {
            Ok(()) => counts[at][1] += 1,
            Err(error) => {
                assert!(error.to_string().len() < 1000, "{what}: a long error");
                counts[at][0] += 1;
            }
        }
    }
    for ((name, _), [refused, accepted]) in sound.iter().zip(&counts) {
        assert!(*refused > 20, "{name}: {refused} refused, {accepted} accepted");
    }
    let accepted = counts.iter().map(|[_, accepted]| accepted).sum::<u64>();
    assert!(accepted > 100, "{counts:?} refused and accepted of each file");
}
