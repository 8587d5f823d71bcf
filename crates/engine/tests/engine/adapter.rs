//! Models that candle computes: served one sequence at a time, and said not to be canonical.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_phi, quantized_phi3};
use tally_engine::model::Model;
use tally_engine::{Engine, EngineOptions, Replay, ReplayError, SharePrefixes};

use crate::families::cases;
use crate::kit::{Tap, answer, collect, model_path, options, request};
use crate::models::{Forward, Noise, logits, one_by_one, write_gguf};

const PHIS: [&str; 2] = ["phi2", "phi3"];
const VOCAB: usize = 72;

/// Names and shapes of a small network's tensors: width 64, four heads of 16, two layers.
fn shapes(architecture: &str, vocab: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![vocab, 64]),
        ("output_norm.weight".to_owned(), vec![64]),
    ];
    let layer: &[(&str, &[usize])] = match architecture {
        "gemma3" => &[
            ("attn_q.weight", &[64, 64]),
            ("attn_k.weight", &[32, 64]),
            ("attn_v.weight", &[32, 64]),
            ("attn_output.weight", &[64, 64]),
            ("attn_q_norm.weight", &[16]),
            ("attn_k_norm.weight", &[16]),
            ("attn_norm.weight", &[64]),
            ("post_attention_norm.weight", &[64]),
            ("ffn_norm.weight", &[64]),
            ("post_ffw_norm.weight", &[64]),
            ("ffn_gate.weight", &[96, 64]),
            ("ffn_up.weight", &[96, 64]),
            ("ffn_down.weight", &[64, 96]),
        ],
        "phi2" => &[
            ("attn_qkv.weight", &[192, 64]),
            ("attn_qkv.bias", &[192]),
            ("attn_output.weight", &[64, 64]),
            ("attn_output.bias", &[64]),
            ("attn_norm.weight", &[64]),
            ("attn_norm.bias", &[64]),
            ("ffn_up.weight", &[96, 64]),
            ("ffn_up.bias", &[96]),
            ("ffn_down.weight", &[64, 96]),
            ("ffn_down.bias", &[64]),
        ],
        _ => &[
            ("attn_qkv.weight", &[128, 64]),
            ("attn_output.weight", &[64, 64]),
            ("attn_norm.weight", &[64]),
            ("ffn_norm.weight", &[64]),
            ("ffn_up.weight", &[192, 64]),
            ("ffn_down.weight", &[64, 96]),
        ],
    };
    for i in 0..2 {
        shapes.extend(layer.iter().map(|(name, s)| (format!("blk.{i}.{name}"), s.to_vec())));
    }
    if architecture != "gemma3" {
        shapes.push(("output.weight".into(), vec![vocab, 64]));
    }
    if architecture == "phi2" {
        shapes.push(("output.bias".into(), vec![vocab]));
        shapes.push(("output_norm.bias".into(), vec![64]));
    }
    shapes
}

fn keys(architecture: &str) -> Vec<(String, Value)> {
    let kv_heads = if architecture == "phi2" { 4 } else { 2 };
    let sizes = [
        ("block_count", 2),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", 16),
        ("attention.value_length", 16),
        ("attention.sliding_window", 128),
        ("rope.dimension_count", if architecture == "phi2" { 8 } else { 16 }),
        ("context_length", 512),
    ];
    let key = |name: &str| format!("{architecture}.{name}");
    let mut keys: Vec<_> = sizes.map(|(name, n)| (key(name), Value::U32(n))).into();
    keys.push(("general.architecture".into(), Value::String(architecture.into())));
    for eps in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"] {
        keys.push((key(eps), Value::F32(1e-5)));
    }
    keys
}

/// A small random network in a GGUF file; with `tokens` as its vocabulary's keys.
fn write(folder: &Path, architecture: &str, tokens: Vec<(String, Value)>) -> PathBuf {
    let Some(Value::Array(texts)) =
        tokens.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").map(|(_, value)| value)
    else {
        panic!("no tokens");
    };
    let mut noise = Noise(3);
    let mut tensors = BTreeMap::new();
    for (name, shape) in shapes(architecture, texts.len()) {
        let (offset, scale) = match name.contains("norm.weight") {
            true => (1.0, 0.3),
            false => (0.0, 2.5 / (shape[shape.len() - 1] as f64).sqrt()),
        };
        let values = noise.floats(shape.iter().product(), offset, scale);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        tensors.insert(name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap());
    }
    write_gguf(folder, architecture, &[keys(architecture), tokens].concat(), &tensors)
}

fn plain_tokens() -> Vec<(String, Value)> {
    let tokens = (0..VOCAB).map(|id| Value::String(format!("t{id}")));
    vec![("tokenizer.ggml.tokens".into(), Value::Array(tokens.collect()))]
}

/// Candle's own logits of every row, tokens one by one.
fn candle(path: &Path, architecture: &str, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let cpu = &Device::Cpu;
    let forward: Forward = match architecture {
        "phi2" => {
            let model = quantized_phi::ModelWeights::from_gguf(content, &mut file, cpu);
            let mut model = model.unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        _ => {
            let model = quantized_phi3::ModelWeights::from_gguf(false, content, &mut file, cpu);
            let mut model = model.unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
    };
    one_by_one(forward, ids)
}

fn ids(seed: u32) -> Vec<u32> {
    (0..100).map(|i| (i * i * 11 + i * seed + seed) % VOCAB as u32).collect()
}

/// Logits of the last row alone.
fn last_of(model: &mut Model, ids: &[u32], chunk: usize) -> Vec<f32> {
    use tally_engine::kv::KvPool;
    use tally_engine::model::{Batch, Logits, Segment};
    let mut kv = KvPool::new(model.config(), 16 << 20);
    let table = kv.allocate(ids.len()).unwrap();
    let mut last = Vec::new();
    for (i, tokens) in ids.chunks(chunk).enumerate() {
        let start = i * chunk;
        let is_last = start + tokens.len() == ids.len();
        let wanted = if is_last { Logits::Last } else { Logits::None };
        let segment = Segment { tokens, start, table: &table, logits: wanted };
        last = model.forward(&Batch { segments: vec![segment] }, &mut kv).unwrap().logits.to_vec();
        assert_eq!(last.len(), if is_last { model.config().vocab_size } else { 0 });
    }
    last
}

fn assert_close(ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

#[test]
fn candles_networks_are_served_with_their_own_logits() {
    let files = tempfile::tempdir().unwrap();
    for architecture in PHIS {
        let path = write(files.path(), architecture, plain_tokens());
        let mut model = Model::load(&path, 1, None).unwrap();
        // Phi 3's context ends with the window that candle doesn't have.
        let context = if architecture == "phi3" { 128 } else { 512 };
        assert_eq!((model.engine_spec(), model.config().context_length), (0, context));
        assert!(model.config().canonical_text().ends_with("adapted=candle"));
        // One sequence after another: nothing of the first is left in the second.
        for seed in [1, 5] {
            let theirs = candle(&path, architecture, &ids(seed));
            for (ours, theirs) in logits(&mut model, &ids(seed), 100).iter().zip(&theirs) {
                assert_close(ours, theirs);
            }
            for chunk in [1, 7, 48, 100] {
                assert_close(&last_of(&mut model, &ids(seed), chunk), &theirs[99]);
            }
        }
    }
}

#[test]
fn adapted_logits_agree_with_huggingface_transformers() {
    let files = tempfile::tempdir().unwrap();
    let cases = cases("adapted.json");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let mut made = case.made();
        if case.name == "gemma3" {
            // GGUF's converter adds the 1 that Gemma's norms multiply with.
            for (name, tensor) in &mut made.tensors {
                if name.ends_with("norm.weight") {
                    *tensor = (&*tensor + 1.0).unwrap();
                }
            }
        }
        let window = case.config["sliding_window"].as_u64().unwrap_or(256) as u32;
        let key = format!("{}.attention.sliding_window", case.name);
        let extra = vec![(key, Value::U32(window))];
        let path = made.write(files.path(), &case.name, GgmlDType::F32, extra);
        let mut model = Model::load(&path, 1, None).unwrap();
        let rows = logits(&mut model, &case.ids, 80);
        for (position, theirs) in case.positions.iter().zip(&case.logits) {
            assert_close(&rows[*position], theirs);
        }
        // Longer than the window, in chunks and at once, after another sequence.
        for chunk in [1, 7, 48, 80] {
            assert_close(&last_of(&mut model, &case.ids, chunk), &rows[79]);
        }
    }
}

#[test]
fn a_network_steps_back_by_reading_again_and_refuses_two_sequences_at_once() {
    use tally_engine::kv::KvPool;
    use tally_engine::model::{Batch, Logits, Segment};
    let files = tempfile::tempdir().unwrap();
    let path = write(files.path(), "phi3", plain_tokens());
    let mut model = Model::load(&path, 1, None).unwrap();
    let mut kv = KvPool::new(model.config(), 16 << 20);
    let (table, other) = (kv.allocate(100).unwrap(), kv.allocate(100).unwrap());
    let all = ids(2);
    let segment = |start: usize, end: usize, table| Segment {
        tokens: &all[start..end],
        start,
        table,
        logits: Logits::Last,
    };
    let mut run = |segments| {
        let batch = Batch { segments };
        model.forward(&batch, &mut kv).map(|out| out.logits.to_vec()).map_err(|e| e.to_string())
    };
    let whole = run(vec![segment(0, 60, &table)]).unwrap();
    run(vec![segment(60, 90, &table)]).unwrap();
    assert_close(&run(vec![segment(40, 60, &table)]).unwrap(), &whole);
    let two = run(vec![segment(60, 61, &table), segment(0, 1, &other)]).unwrap_err();
    assert!(two.contains("2 sequences at once"), "{two}");
    let ahead = run(vec![segment(70, 71, &table)]).unwrap_err();
    assert!(ahead.contains("begins at 70"), "{ahead}");
    // A refusal leaves the sequence as it was.
    assert_close(&run(vec![segment(40, 60, &table)]).unwrap(), &whole);
}

#[test]
fn what_candle_would_compute_wrongly_is_refused_by_name() {
    let files = tempfile::tempdir().unwrap();
    let table = [
        ("gemma3", "gemma3.rope.scaling.factor", Value::F32(8.0), "rope scaling"),
        ("gemma3", "gemma3.final_logit_softcapping", Value::F32(30.0), "capped logits"),
        ("phi3", "phi3.rope.freq_base", Value::F32(1e6), "rotary base"),
        ("phi3", "phi3.attention.head_count", Value::U32(0), "head_count"),
        // Candle divides by it; a size that doesn't fit its tensors is its error, not a panic.
        ("phi3", "phi3.attention.head_count_kv", Value::U32(1 << 20), "phi3"),
        ("phi2", "phi2.rope.dimension_count", Value::U32(1 << 25), "phi2"),
    ];
    for (architecture, key, value, wanted) in table {
        let mut keys = plain_tokens();
        keys.push((key.into(), value));
        let path = write(files.path(), architecture, keys);
        let found = Model::load(&path, 1, None).map(|mut model| {
            let _ = logits(&mut model, &ids(1), 100);
        });
        let found = found.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(found.contains(wanted), "{key}: {found}");
    }
}

#[test]
fn an_adapted_model_serves_several_requests_in_turn() {
    // The real vocabulary and template with a network of no sense.
    let mut file = std::fs::File::open(model_path()).unwrap();
    let tokens = Content::read(&mut file).unwrap().metadata.into_iter();
    let tokens = tokens.filter(|(key, _)| key.starts_with("tokenizer.")).collect();
    let files = tempfile::tempdir().unwrap();
    let path = write(files.path(), "phi3", tokens);
    let everyone = SharePrefixes::Everyone;
    let engine =
        Engine::load(&path, EngineOptions { share_prefixes: everyone, ..options() }).unwrap();
    assert_eq!(engine.info().engine_spec, 0);
    assert_eq!(engine.info().architecture, "phi3");
    assert_eq!(engine.info().running_max, 1, "whatever the options allow");
    // What another machine may write otherwise can't be held against anybody.
    let refusal = Replay::load(&path, options()).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refusal, ReplayError::NotCanonical { architecture } if architecture == "phi3")
    );
    let prompts: Vec<Vec<u32>> = ["one two three", "one two four five", "one two three"]
        .map(|text| engine.encode_raw(&text.repeat(8)).unwrap())
        .into();
    let alone: Vec<_> =
        prompts.iter().map(|prompt| answer(&engine, request(prompt.clone(), 12))).collect();
    let started: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let (tap, events) = Tap::new(usize::MAX / 2);
            (engine.start(request(prompt.clone(), 12), Box::new(tap)).unwrap(), events)
        })
        .collect();
    for ((_handle, events), alone) in started.iter().zip(alone) {
        assert_eq!(collect(events), alone);
    }
    // Each wrong guess would have it read everything again.
    assert_eq!(engine.load_state().guessed_tokens, 0);
}
