//! What is read from a model's settings, and what is refused by name.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};
use serde_json::{Value as Json, json};
use tally_engine::config::{ModelConfig, Pairing, RopeScaling};
use tally_engine::model::Model;

use crate::families::settings;
use crate::kit::shared;
use crate::models::{Made, write_gguf};

const LLAMA: &str = "LlamaForCausalLM";

/// The error of a GGUF file of `architecture` with some keys and tensors more.
fn refusal(architecture: &str, keys: Vec<(&str, Value)>, tensors: &[(&str, usize)]) -> String {
    let files = tempfile::tempdir().unwrap();
    let mut made = Made::random(settings(architecture), 1);
    for (name, len) in tensors {
        let tensor = Tensor::ones(*len, candle_core::DType::F32, &Device::Cpu).unwrap();
        made.tensors.insert((*name).into(), tensor);
    }
    let mut metadata = made.metadata();
    for (key, value) in keys {
        metadata.retain(|(known, _)| known != key);
        metadata.push((key.into(), value));
    }
    let tensors = made.quantised(GgmlDType::F32);
    let path = write_gguf(files.path(), "model", &metadata, &tensors);
    match Model::load(&path, 1, None) {
        Err(error) => error.to_string(),
        Ok(model) => panic!("served: {}", model.config().canonical_text()),
    }
}

#[test]
fn what_a_gguf_file_announces_and_the_forward_pass_does_not_do_is_refused_by_name() {
    let text = |text: &str| Value::String(text.into());
    let table: [(&str, Value, &str); 15] = [
        ("general.architecture", text("mamba"), "mamba"),
        ("llama.expert_count", Value::U32(8), "experts"),
        ("llama.rope.scaling.type", text("longrope"), "longrope"),
        ("llama.rope.scaling.type", Value::U32(1), "not a text"),
        ("llama.rope.scaling.type", text("yarn"), "llama.rope.scaling.factor"),
        ("llama.rope.scaling.factor", Value::F32(0.5), "factor below 1"),
        ("llama.rope.scaling.yarn_log_multiplier", Value::F32(0.1), "YaRN multiplier"),
        ("llama.rope.dimension_count", Value::U32(8), "over the whole head"),
        ("llama.rope.freq_base", Value::F32(1.0), "rotary base above 1"),
        ("llama.attention.value_length", Value::U32(32), "values as long as keys"),
        ("llama.attention.key_length", Value::U32(24), "over the whole head"),
        ("llama.attention.sliding_window", Value::U32(1 << 25), "sliding_window"),
        ("llama.attention.sliding_window_pattern", Value::U32(2), "some layers only"),
        ("llama.attention.temperature_scale", Value::F32(0.1), "attention temperature"),
        ("llama.final_logit_softcapping", Value::F32(30.0), "capped logits"),
    ];
    for (key, value, wanted) in table {
        let found = refusal(LLAMA, vec![(key, value)], &[]);
        assert!(found.contains(wanted), "{key}: {found}");
    }
}

#[test]
fn a_tensor_that_the_forward_pass_does_not_use_is_refused_by_name() {
    for name in ["blk.1.attn_output.bias", "output.bias", "blk.0.attn_q_norm.weight"] {
        let found = refusal(LLAMA, Vec::new(), &[(name, 16)]);
        assert!(found.contains(name) && found.contains("no use"), "{found}");
    }
    let found = refusal("Qwen3ForCausalLM", Vec::new(), &[("blk.2.attn_v.bias", 32)]);
    assert!(found.contains("blk.2.attn_v.bias"), "{found}");
    // One bias alone makes the others missing, not zero.
    let found = refusal(LLAMA, Vec::new(), &[("blk.0.attn_q.bias", 96)]);
    assert!(found.contains("blk.0.attn_k.bias"), "{found}");
    let yarn = ("llama.rope.scaling.factor", Value::F32(2.0));
    let found = refusal(LLAMA, vec![yarn], &[("rope_freqs.weight", 7)]);
    assert!(found.contains("rope_freqs.weight"), "{found}");
}

#[test]
fn a_gguf_files_keys_are_read() {
    let files = tempfile::tempdir().unwrap();
    let load = |architecture: &str, keys: Vec<(&str, Value)>| {
        let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let made = Made::random(settings(architecture), 1);
        let path = made.write(files.path(), "model", GgmlDType::Q8_0, keys);
        Model::load(&path, 1, None).unwrap().config().clone()
    };
    let llama = load(LLAMA, Vec::new());
    assert_eq!((llama.pairing, llama.window, llama.is_tied), (Pairing::Neighbours, None, false));
    assert_eq!(llama.rope_scaling, RopeScaling::None);
    let qwen2 = load("Qwen2ForCausalLM", Vec::new());
    assert_eq!((qwen2.pairing, qwen2.has_qkv_bias), (Pairing::Halves, true));
    let qwen3 = load("Qwen3ForCausalLM", Vec::new());
    assert_eq!((qwen3.pairing, qwen3.has_qk_norm), (Pairing::Halves, true));
    let windowed = load(LLAMA, vec![("llama.attention.sliding_window", Value::U32(12))]);
    assert_eq!(windowed.window, Some(12));
    let zero = load(LLAMA, vec![("llama.attention.sliding_window", Value::U32(0))]);
    assert_eq!(zero, llama);
    // The key's name before there was a type beside it.
    let linear = load(LLAMA, vec![("llama.rope.scale_linear", Value::F32(4.0))]);
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    let yarn = vec![
        ("llama.rope.scaling.type", Value::String("yarn".into())),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("llama.rope.scaling.attn_factor", Value::F32(0.5)),
    ];
    let (factor, original, fast, slow) = (4.0, 128.0, 32.0, 1.0);
    let magnitude = (0.1 * 4f64.ln() + 1.0) * 0.5;
    match load(LLAMA, yarn).rope_scaling {
        RopeScaling::Yarn { factor: f, original: o, fast: b, slow: s, magnitude: m } => {
            assert_eq!((f, o, b, s), (factor, original, fast, slow));
            assert!((m - magnitude).abs() < 1e-12);
        }
        other => panic!("{other:?}"),
    }
}

/// The small settings with some keys changed; null takes a key away.
fn changed(architecture: &str, changes: Json) -> Json {
    let mut config = settings(architecture);
    for (key, value) in changes.as_object().unwrap() {
        match value.is_null() {
            true => config.as_object_mut().unwrap().remove(key),
            false => config.as_object_mut().unwrap().insert(key.clone(), value.clone()),
        };
    }
    config
}

#[test]
fn what_a_config_json_announces_and_the_forward_pass_does_not_do_is_refused_by_name() {
    let table = [
        (json!({"architectures": ["BertLMHeadModel"]}), "BertLMHeadModel"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"use_sliding_window": true}), "use_sliding_window"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "factor"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}), "factor below 1"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}), "mscale"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 1.0, "original_max_position_embeddings": 64}}),
            "wrong order",
        ),
        (json!({"hidden_size": 100}), "multiple of 32"),
        (json!({"num_key_value_heads": 4}), "multiple of the key heads"),
        (json!({"hidden_size": -1}), "hidden_size"),
        (json!({"rms_norm_eps": null}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e39}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e-46}), "rms_norm_eps"),
        (json!({"tie_word_embeddings": "true"}), "tie_word_embeddings"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"num_hidden_layers": 4096}), "1024 layers"),
    ];
    for (changes, wanted) in table {
        let found = match ModelConfig::from_hf(&changed(LLAMA, changes.clone())) {
            Err(error) => error.to_string(),
            Ok(config) => panic!("{changes} is served: {}", config.canonical_text()),
        };
        assert!(found.contains(wanted), "{changes}: {found}");
    }
    for nonsense in [json!(null), json!([]), json!({"architectures": 5}), json!("LLAMA")] {
        assert!(ModelConfig::from_hf(&nonsense).is_err(), "{nonsense}");
    }
}

#[test]
fn a_config_json_is_read_with_its_classes_defaults() {
    let read = |architecture: &str, changes: Json| {
        ModelConfig::from_hf(&changed(architecture, changes)).unwrap()
    };
    let llama = read(LLAMA, json!({"num_key_value_heads": null, "head_dim": null}));
    assert_eq!((llama.kv_heads, llama.head_dim, llama.window), (6, 16, None));
    assert_eq!((llama.pairing, llama.rope_base), (Pairing::Halves, 10_000.0));
    // Mistral's class has a window unless it is told otherwise; others have none.
    let window = |config: Json| ModelConfig::from_hf(&config).unwrap().window;
    let mut mistral = settings("MistralForCausalLM");
    assert_eq!(window(mistral.clone()), Some(4096));
    mistral["sliding_window"] = json!(null);
    assert_eq!(window(mistral.clone()), None);
    mistral["sliding_window"] = json!(100);
    assert_eq!(window(mistral), Some(100));
    assert_eq!(read("Qwen2ForCausalLM", json!({"sliding_window": 4096})).window, None);
    assert_eq!(read("Qwen3ForCausalLM", json!({"head_dim": null})).head_dim, 128);
    // Where transformers 5 keeps it.
    let rope = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
    let five = read(LLAMA, json!({"rope_theta": null, "rope_parameters": rope}));
    assert_eq!((five.rope_base, five.rope_scaling), (5e5, RopeScaling::Linear { factor: 2.0 }));
    let default = read(LLAMA, json!({"rope_scaling": {"rope_type": "default"}}));
    assert_eq!(default.rope_scaling, RopeScaling::None);
}

#[test]
fn the_canonical_text_tells_configurations_apart_and_keeps_its_old_form() {
    assert_eq!(
        shared().info().config_digest_input,
        "llama layers=30 width=576 ff=1536 heads=9 kv_heads=3 head_dim=64 context=8192 vocab=49152 \
         eps_bits=3727c5ac rope_base_bits=40f86a0000000000"
    );
    let scaled = |factor: f64| json!({"rope_scaling": {"rope_type": "linear", "factor": factor}});
    let configs = [
        settings(LLAMA),
        settings("MistralForCausalLM"),
        settings("Qwen2ForCausalLM"),
        settings("Qwen3ForCausalLM"),
        changed(LLAMA, json!({"tie_word_embeddings": true})),
        changed(LLAMA, scaled(2.0)),
        changed(LLAMA, scaled(4.0)),
        changed(LLAMA, json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})),
    ];
    let texts = configs.map(|config| ModelConfig::from_hf(&config).unwrap().canonical_text());
    for (i, text) in texts.iter().enumerate() {
        assert!(!texts[..i].contains(text), "{text}");
    }
    assert!(texts[2].starts_with("qwen2 layers=3 width=96 "), "{}", texts[2]);
    let end = "pairs=halves rope=none window=0 qkv_bias=true qk_norm=false tied=false";
    assert!(texts[2].ends_with(end), "{}", texts[2]);
}
