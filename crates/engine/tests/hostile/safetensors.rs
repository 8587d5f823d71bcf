//! Folders of safetensors.

use std::path::Path;

use serde_json::{Value, json};
use tally_engine::LoadError;
use tally_engine::model::Model;

use crate::mutate::{Random, damage, seeds};
use crate::watched::{folder, watch_model};

const WIDTH: u64 = 64;
const FF: u64 = 96;
const VOCAB: u64 = 96;
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const NORM: &str = "model.norm.weight";

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": WIDTH,
        "intermediate_size": FF, "max_position_embeddings": 64, "num_attention_heads": 4,
        "num_hidden_layers": 1, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": VOCAB
    })
}

/// A header's entries for tensors that follow each other: name, shape and type.
pub fn entries(tensors: &[(&str, &[u64], &str)]) -> Vec<(String, Value)> {
    let mut end = 0;
    let entry = |(name, shape, dtype): &(&str, &[u64], &str)| {
        let width = if *dtype == "F32" { 4 } else { 2 };
        let start = end;
        end += shape.iter().product::<u64>() * width;
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        (name.to_string(), entry)
    };
    tensors.iter().map(entry).collect()
}

/// The header's entries, in the order in which they are written.
fn sound() -> Vec<(String, Value)> {
    entries(&[
        ("model.embed_tokens.weight", &[VOCAB, WIDTH], "BF16"),
        ("model.layers.0.input_layernorm.weight", &[WIDTH], "F32"),
        (Q, &[WIDTH, WIDTH], "F16"),
        ("model.layers.0.self_attn.k_proj.weight", &[WIDTH / 2, WIDTH], "F32"),
        ("model.layers.0.self_attn.v_proj.weight", &[WIDTH / 2, WIDTH], "BF16"),
        ("model.layers.0.self_attn.o_proj.weight", &[WIDTH, WIDTH], "F16"),
        ("model.layers.0.post_attention_layernorm.weight", &[WIDTH], "BF16"),
        ("model.layers.0.mlp.gate_proj.weight", &[FF, WIDTH], "F16"),
        ("model.layers.0.mlp.up_proj.weight", &[FF, WIDTH], "F16"),
        ("model.layers.0.mlp.down_proj.weight", &[WIDTH, FF], "F16"),
        (NORM, &[WIDTH], "F16"),
    ])
}

pub fn header(entries: &[(String, Value)]) -> Vec<u8> {
    let entry = |(name, value): &(String, Value)| format!("{}:{value}", json!(name));
    let entries: Vec<String> = entries.iter().map(entry).collect();
    format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(",")).into_bytes()
}

fn data_bytes() -> usize {
    end_of(&sound())
}

/// Where the last tensor's data end.
pub fn end_of(entries: &[(String, Value)]) -> usize {
    entries.last().unwrap().1["data_offsets"][1].as_u64().unwrap() as usize
}

/// The file of a header and as many bytes of weights.
pub fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0x11);
    bytes
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn loaded(bytes: &[u8], what: &str) -> Result<(), LoadError> {
    let folder = folder();
    write(folder.path(), "config.json", config().to_string().as_bytes());
    write(folder.path(), "model.safetensors", bytes);
    watch_model(folder.path(), what)
}

pub fn text(result: Result<(), LoadError>, what: &str) -> String {
    result.expect_err(what).to_string()
}

#[test]
fn the_sound_folder_loads() {
    loaded(&file(&header(&sound()), data_bytes()), "sound").unwrap();
    let mut padded = header(&sound());
    padded.extend_from_slice(b"   ");
    loaded(&file(&padded, data_bytes()), "padded").unwrap();
}

#[test]
fn every_spoiled_entry_is_refused_by_its_name() {
    let huge = u64::MAX - 7;
    let spoiled: &[(&str, &str, Value)] = &[
        (Q, "dtype", json!("F4")),
        (Q, "dtype", json!("I16")),
        (Q, "dtype", json!(7)),
        (Q, "shape", json!([])),
        (Q, "shape", json!([0, 64])),
        (Q, "shape", json!([64, 63])),
        (Q, "shape", json!([64, -64])),
        (Q, "shape", json!([32, 128])),
        (Q, "shape", json!([huge, huge])),
        (Q, "shape", json!([64, 64, 1, 1, 1])),
        (Q, "shape", json!(vec![1; 100_000])),
        (Q, "shape", json!([[[[[[64]]]]], 64])),
        // It lies on the embedding now; the one that comes second in the file is named.
        ("model.embed_tokens.weight", "data_offsets", json!([0, 8192])),
        (Q, "data_offsets", json!([8192, 0])),
        (Q, "data_offsets", json!([huge, huge])),
        (Q, "data_offsets", json!([0, huge])),
        (Q, "data_offsets", json!([0])),
        (Q, "extra", json!(1)),
    ];
    for (name, key, value) in spoiled {
        let mut entries = sound();
        let (_, entry) = entries.iter_mut().find(|(found, _)| found == Q).unwrap();
        entry[key] = value.clone();
        let what = format!("{key} of {:.60}", value.to_string());
        let error = text(loaded(&file(&header(&entries), data_bytes()), &what), &what);
        assert!(error.contains(name) && error.len() < 400, "{what}: {error}");
    }
    let doubled = [sound(), sound()[2..3].to_vec()].concat();
    let error = text(loaded(&file(&header(&doubled), data_bytes()), "doubled"), "doubled");
    assert!(error.contains(Q), "{error}");
    let without: Vec<_> = sound().into_iter().filter(|(name, _)| name != NORM).collect();
    let error = text(loaded(&file(&header(&without), data_bytes() - 128), "short"), "short");
    assert!(error.contains(NORM), "{error}");
}

#[test]
fn a_header_that_lies_about_itself_is_refused() {
    let sound = file(&header(&sound()), data_bytes());
    for length in [0, 1, sound.len() as u64, 100_000_001, 1 << 62, u64::MAX] {
        let mut bytes = sound.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let what = format!("a header of {length}");
        let error = text(loaded(&bytes, &what), &what);
        assert!(error.contains("header") && error.contains("model.safetensors"), "{error}");
    }
    let nested = "[".repeat(100_000);
    for bad in [&b"not json"[..], b"[]", b"{\"a\":", b"{\"\xff\":{}}", nested.as_bytes()] {
        assert!(loaded(&file(bad, 64), "bad header").is_err());
    }
    let mut longer = sound.clone();
    longer.push(0);
    assert!(loaded(&longer, "a byte too many").is_err());
    for length in (0..sound.len()).step_by(97) {
        assert!(loaded(&sound[..length], "cut short").is_err(), "{length} bytes load");
    }
}

#[test]
fn an_index_leads_to_files_of_the_folder_and_to_nothing_else() {
    let index = |map: Value| json!({"metadata": {}, "weight_map": map}).to_string();
    let secret = folder();
    write(secret.path(), "outside.safetensors", &file(&header(&sound()), data_bytes()));
    let outside = secret.path().join("outside.safetensors");
    let outside = outside.to_str().unwrap();
    let cases = [
        (index(json!({NORM: outside})), "names a file"),
        (index(json!({NORM: "../outside.safetensors"})), "names a file"),
        (index(json!({NORM: "model.bin"})), "names a file"),
        (index(json!({NORM: ""})), "names a file"),
        (index(json!({})), "names 0 files"),
        (index(json!({NORM: 5})), "model.safetensors.index.json"),
        (index(json!({NORM: "absent.safetensors"})), "absent.safetensors"),
        (index(json!({"model.other": "part.safetensors"})), "model.other"),
        ("{".into(), "model.safetensors.index.json"),
    ];
    for (index, wanted) in cases {
        let folder = folder();
        write(folder.path(), "config.json", config().to_string().as_bytes());
        write(folder.path(), "part.safetensors", &file(&header(&sound()), data_bytes()));
        write(folder.path(), "model.safetensors.index.json", index.as_bytes());
        let error = text(watch_model(folder.path(), &index), &index);
        assert!(error.contains(wanted), "{index}: {error}");
    }
}

#[test]
fn a_folder_without_its_parts_is_refused_by_their_names() {
    let empty = folder();
    let missing = |folder: &Path| text(Model::load(folder, 1, None).map(drop), "missing");
    assert!(missing(empty.path()).contains("config.json"));
    write(empty.path(), "config.json", config().to_string().as_bytes());
    assert!(missing(empty.path()).contains("model.safetensors"));
    write(empty.path(), "config.json", &vec![b' '; (1 << 20) + 1]);
    assert!(missing(empty.path()).contains("larger than"));
}

#[test]
fn damaged_folders_never_panic_and_never_make_a_large_allocation() {
    let header = header(&sound());
    let sound = file(&header, data_bytes());
    let (mut refused, mut accepted) = (0, 0);
    for seed in seeds(4000) {
        let mut random = Random(seed);
        let mut bytes = sound.clone();
        let done = damage(&mut bytes, 8 + header.len(), &[], &mut random);
        match loaded(&bytes, &format!("seed {seed}: {done}")) {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert!(error.to_string().len() < 1000, "seed {seed}: a long error");
                refused += 1;
            }
        }
    }
    assert!(refused > 3000 && accepted > 5, "{refused} refused, {accepted} accepted");
}
