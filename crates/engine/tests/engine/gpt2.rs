//! GPT-2 through the engine's public face: its folder, its bits, its refusals. Whether its numbers
//! are right is asked in `src/tests` (checkpoints).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use sha3::{Digest, Keccak256};
use tally_engine::config::{Family, ModelConfig, Pairing};
use tally_engine::kv::{KvCache, KvPool, KvType};
use tally_engine::model::{Batch, Logits, Model, Segment};
use tally_engine::{Engine, EngineOptions, Isa, ModelFiles};

/// The folder that HuggingFace saved (fixtures/make_gpt2.py): 2 layers of 32, 2 heads.
fn saved() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/saved")
}

fn config() -> Value {
    serde_json::from_slice(&std::fs::read(saved().join("config.json")).unwrap()).unwrap()
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(saved().join("model.safetensors"), &Device::Cpu).unwrap()
}

fn ids() -> Vec<u32> {
    (0..36).map(|i| (i * i * 7 + 3) % 48).collect()
}

/// Keccak-256 of the logits' bits of all 36 rows, little-endian, with keys and values in half and
/// in single precision. Any other value is another engine: raise `ENGINE_SPEC_VERSION`.
const GOLDEN: [&str; 2] = [
    "1bd8617c4324e34b5af26dad85806d5c9fc12e976522d328fd23bc4f7e56fbc5",
    "088cdaf85218e4ac840ad00974ca6fe563e607df345bd8d3f627c65786f76c3a",
];

fn digest(rows: &[Vec<f32>]) -> String {
    let mut hash = Keccak256::new();
    rows.iter().flatten().for_each(|x| hash.update(x.to_bits().to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rows(logits: &[f32]) -> impl Iterator<Item = Vec<f32>> {
    logits.chunks_exact(48).map(<[f32]>::to_vec)
}

/// Logits of every row, in chunks, while as many other sequences are read beside it.
fn cold(model: &mut Model, kv_type: KvType, chunk: usize, others: usize) -> Vec<Vec<f32>> {
    let mut kv = KvPool::of_type(model.config(), kv_type, 1 << 20);
    let tables: Vec<_> = (0..=others).map(|_| kv.allocate(40).unwrap()).collect();
    let ids = ids();
    let mut found = Vec::new();
    for (i, tokens) in ids.chunks(chunk).enumerate() {
        let segment = |(n, table)| {
            // Neighbours of other lengths and with other tokens, before and after.
            let tokens = if n == others / 2 { tokens } else { &ids[n..n + tokens.len().min(5)] };
            let start = if n == others / 2 { i * chunk } else { i };
            Segment { tokens, start, table, logits: Logits::All }
        };
        let segments: Vec<Segment<'_>> = tables.iter().enumerate().map(segment).collect();
        let before: usize = segments[..others / 2].iter().map(|s| s.tokens.len()).sum();
        let out = model.forward(&Batch { segments }, &mut kv).unwrap();
        found.extend(rows(out.logits).skip(before).take(tokens.len()));
    }
    found
}

/// The same where the first `known` rows were left in the cache by another sequence.
fn warm(model: &mut Model, known: usize) -> Vec<Vec<f32>> {
    let mut cache = KvCache::new(KvPool::new(model.config(), 1 << 20));
    let ids = ids();
    let other: Vec<u32> = ids[..known].iter().copied().chain([1; 3]).collect();
    let mut found = Vec::new();
    for (ids, wanted) in [(&other, known), (&ids, usize::MAX)] {
        let (table, cached) = cache.begin(Some([1; 32]), ids, ids.len()).unwrap();
        let segment =
            Segment { tokens: &ids[cached..], start: cached, table: &table, logits: Logits::All };
        let out = model.forward(&Batch { segments: vec![segment] }, &mut cache.pool).unwrap();
        found.extend(rows(out.logits).take(wanted));
        cache.end(table, ids);
    }
    found
}

#[test]
fn gpt2_has_the_same_bits_on_every_path() {
    let mut found = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for threads in [1, 2, 3] {
            let mut model = Model::load(&saved(), threads, Some(isa)).unwrap();
            assert_eq!(model.engine_spec(), tally_engine::ENGINE_SPEC_VERSION);
            for (chunk, others) in [(1, 0), (7, 0), (36, 0), (1, 3), (7, 2)] {
                let digests = [KvType::F16, KvType::F32]
                    .map(|kv_type| digest(&cold(&mut model, kv_type, chunk, others)));
                let way = format!("{isa:?}, {threads} threads, chunks of {chunk}, {others} others");
                assert_eq!(*found.first().unwrap_or(&digests), digests, "{way}");
                found.push(digests);
            }
            for known in [1, 16, 35] {
                let digest = digest(&warm(&mut model, known));
                assert_eq!(found[0][0], digest, "{isa:?}, {threads} threads, {known} cached");
            }
        }
    }
    assert_eq!(found[0], GOLDEN);
}

fn lay_out(config: &Value, tensors: &HashMap<String, Tensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn logits(folder: &Path) -> Vec<Vec<f32>> {
    cold(&mut Model::load(folder, 1, None).unwrap(), KvType::F32, 36, 0)
}

#[test]
fn names_without_a_prefix_stored_masks_and_a_second_head_change_nothing() {
    let wanted = logits(&saved());
    let bare = |name: &str| name.strip_prefix("transformer.").unwrap().to_owned();
    let mut tensors: HashMap<String, Tensor> =
        tensors().into_iter().map(|(name, tensor)| (bare(&name), tensor)).collect();
    assert_eq!(logits(lay_out(&config(), &tensors).path()), wanted);
    let mask = Tensor::ones((1, 1, 40, 40), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("h.0.attn.bias".into(), mask.clone());
    tensors.insert("h.1.attn.bias".into(), mask);
    tensors.insert("h.1.attn.masked_bias".into(), Tensor::new(-1e4f32, &Device::Cpu).unwrap());
    tensors.insert("lm_head.weight".into(), (&tensors["wte.weight"] * 2.0).unwrap());
    assert_eq!(logits(lay_out(&config(), &tensors).path()), wanted);
    // Untied, that head is the one.
    let mut untied = config();
    untied["tie_word_embeddings"] = json!(false);
    let doubled = logits(lay_out(&untied, &tensors).path());
    for (double, one) in doubled.iter().flatten().zip(wanted.iter().flatten()) {
        assert_eq!(*double, one * 2.0, "a doubled head doubles each logit exactly");
    }
    tensors.insert("h.0.attn.rotary".into(), Tensor::new(1f32, &Device::Cpu).unwrap());
    let why = Model::load(lay_out(&config(), &tensors).path(), 1, None).map(|_| ()).unwrap_err();
    assert!(why.to_string().contains("h.0.attn.rotary"), "{why}");
}

#[test]
fn half_precision_gives_the_bits_of_the_same_values_in_single() {
    let saved = |through: DType, to: DType| {
        let cast = |tensor: Tensor| tensor.to_dtype(through).unwrap().to_dtype(to).unwrap();
        let tensors = tensors().into_iter().map(|(name, tensor)| (name, cast(tensor))).collect();
        let folder = lay_out(&config(), &tensors);
        digest(&logits(folder.path()))
    };
    for half in [DType::F16, DType::BF16] {
        assert_eq!(saved(half, half), saved(half, DType::F32), "{half:?}");
        assert_ne!(saved(half, half), saved(DType::F32, DType::F32), "{half:?} rounds");
    }
}

#[test]
fn matrices_of_another_shape_or_missing_parts_are_refused_by_name() {
    let table = [
        ("transformer.h.0.attn.c_attn.weight", "[32, 96] is needed, [96, 32] is there"),
        ("transformer.h.1.mlp.c_fc.weight", "[32, 128] is needed, [128, 32] is there"),
        ("transformer.h.1.mlp.c_proj.weight", "[128, 32] is needed, [32, 128] is there"),
        ("transformer.wpe.weight", "[40, 32] is needed, [32, 40] is there"),
    ];
    for (name, wanted) in table {
        let mut tensors = tensors();
        let turned = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.into(), turned);
        let why = Model::load(lay_out(&config(), &tensors).path(), 1, None).map(|_| ());
        let why = why.unwrap_err().to_string();
        assert!(why.contains(name) && why.contains(wanted), "{why}");
    }
    for name in ["transformer.h.1.ln_2.bias", "transformer.h.0.attn.c_proj.bias"] {
        let mut tensors = tensors();
        tensors.remove(name);
        let why = Model::load(lay_out(&config(), &tensors).path(), 1, None).map(|_| ());
        let why = why.unwrap_err().to_string();
        assert!(why.contains(name) && why.contains("missing"), "{why}");
    }
}

#[test]
fn what_a_gpt2_announces_and_the_forward_pass_does_not_do_is_refused_by_name() {
    let read = |changes: &Value| {
        let mut config = config();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelConfig::from_hf(&config)
    };
    let table = [
        (json!({"activation_function": "gelu"}), "activation_function"),
        (json!({"activation_function": "gelu_fast"}), "activation_function"),
        (json!({"scale_attn_weights": false}), "scale_attn_weights"),
        (json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx"),
        (json!({"reorder_and_upcast_attn": true}), "reorder_and_upcast_attn"),
        (json!({"add_cross_attention": true}), "add_cross_attention"),
        (json!({"is_encoder_decoder": true}), "is_encoder_decoder"),
        (json!({"pruned_heads": {"0": [1]}}), "pruned_heads"),
        (json!({"quantization_config": {"bits": 8}}), "quantization_config"),
        (json!({"n_head": 3}), "no multiple of n_head"),
        (json!({"n_head": 4}), "heads of a multiple of 16"),
        (json!({"n_inner": 100}), "feed-forward width that is a multiple of 32"),
        (json!({"n_embd": null}), "n_embd"),
        (json!({"n_positions": 0}), "n_positions"),
        (json!({"layer_norm_epsilon": -1.0}), "layer_norm_epsilon"),
        (json!({"layer_norm_epsilon": 1e300}), "layer_norm_epsilon"),
        (json!({"layer_norm_epsilon": 1e-60}), "layer_norm_epsilon"),
        (json!({"tie_word_embeddings": "false"}), "tie_word_embeddings"),
        (json!({"tie_word_embeddings": 0}), "tie_word_embeddings"),
    ];
    for (changes, wanted) in table {
        let why = read(&changes).map(|config| config.canonical_text()).unwrap_err().to_string();
        assert!(why.contains(wanted), "{changes}: {why}");
    }
    let plain = read(&json!({})).unwrap();
    assert_eq!((plain.family, plain.pairing), (Family::Gpt2, Pairing::None));
    assert_eq!((plain.ff_width, plain.context_length, plain.is_tied), (128, 40, true));
    assert_eq!(read(&json!({"n_inner": 96})).unwrap().ff_width, 96);
    // Each position has a row of weights, so none is cut off.
    assert_eq!(read(&json!({"n_positions": 2_000_000})).unwrap().context_length, 2_000_000);
    assert!(!read(&json!({"tie_word_embeddings": false})).unwrap().is_tied);
    let defaults = json!({"layer_norm_epsilon": null, "activation_function": null,
        "architectures": null, "n_inner": null});
    assert_eq!(read(&defaults).unwrap(), plain);
    let text = plain.canonical_text();
    assert!(text.starts_with("gpt2 layers=2 width=32 ff=128 heads=2 kv_heads=2 head_dim=16"));
    assert!(text.ends_with("positions=learned tied=true"), "{text}");
}

#[test]
fn a_folders_tokenizer_is_one_file_or_two() {
    let names = |folder: &Path| -> Vec<String> {
        let paths = ModelFiles::open(folder).unwrap().tokenizer_paths();
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.iter().map(name).collect()
    };
    let folder = lay_out(&config(), &tensors());
    assert_eq!(names(folder.path()), ["merges.txt", "vocab.json"]);
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert_eq!(names(folder.path()), ["tokenizer.json"]);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() {
    let load = |tokens: u32| {
        let folder = lay_out(&config(), &tensors());
        let name = |id| format!("{}{}", char::from(b'a' + (id % 26) as u8), id / 26);
        let vocabulary: Value = (0..tokens).map(|id| (name(id), json!(id))).collect();
        std::fs::write(folder.path().join("vocab.json"), vocabulary.to_string()).unwrap();
        std::fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").unwrap();
        let options =
            EngineOptions { threads: 1, kv_memory_bytes: 1 << 20, ..EngineOptions::default() };
        Engine::load(folder.path(), options).map(|engine| engine.info().vocab_size)
    };
    // The model has 48 rows; checkpoints pad theirs.
    assert_eq!(load(48).unwrap(), 48);
    assert_eq!(load(40).unwrap(), 48);
    let why = load(49).unwrap_err().to_string();
    assert!(why.contains("49 tokens") && why.contains("48"), "{why}");
}
