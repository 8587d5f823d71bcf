//! Models in folders of safetensors: the weights as they are, in one file or in several.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tally_engine::model::Model;
use tally_engine::{ChatFormat, Engine, EngineOptions};

use crate::kit::{answer, options, request};
use crate::models::{Made, logits};

struct Case {
    name: String,
    config: Value,
    ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
    weights: PathBuf,
}

/// The models of `families.rs`, with what HuggingFace transformers computes for them.
fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference");
    let text = std::fs::read_to_string(folder.join("families.json")).unwrap();
    let fixture: Value = serde_json::from_str(&text).unwrap();
    let case = |case: &Value| Case {
        name: case["name"].as_str().unwrap().into(),
        config: case["config"].clone(),
        ids: serde_json::from_value(case["ids"].clone()).unwrap(),
        positions: serde_json::from_value(case["positions"].clone()).unwrap(),
        logits: serde_json::from_value(case["logits"].clone()).unwrap(),
        weights: folder.join(case["weights"].as_str().unwrap()),
    };
    fixture["cases"].as_array().unwrap().iter().map(case).collect()
}

impl Case {
    fn logits(&self, folder: &Path) -> Vec<Vec<f32>> {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let mut model = Model::load(folder, 2, None).unwrap();
        logits(&mut model, &self.ids, self.ids.len())
    }

    fn single(&self) -> Vec<Vec<f32>> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(&self.weights, folder.path().join("model.safetensors")).unwrap();
        self.logits(folder.path())
    }
}

#[test]
fn a_folder_gives_the_logits_of_huggingface_transformers() {
    for case in cases() {
        let rows = case.single();
        let scale = case.logits.iter().flatten().fold(0f32, |max, x| max.max(x.abs()));
        for (position, theirs) in case.positions.iter().zip(&case.logits) {
            for (ours, theirs) in rows[*position].iter().zip(theirs) {
                let error = (ours - theirs).abs();
                // As in `families.rs`: keys and values are rounded to half precision here.
                assert!(error <= 2e-3 * scale, "{}: {error} of {scale}", case.name);
            }
        }
    }
}

#[test]
fn several_files_with_an_index_give_the_bits_of_one() {
    for case in cases() {
        let tensors = candle_core::safetensors::load(&case.weights, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut parts: BTreeMap<String, std::collections::HashMap<String, Tensor>> =
            BTreeMap::new();
        let mut map = serde_json::Map::new();
        for (name, tensor) in tensors {
            let part = format!("model-0000{}-of-00003.safetensors", name.len() % 3 + 1);
            map.insert(name.clone(), json!(part));
            parts.entry(part).or_default().insert(name, tensor);
        }
        for (part, tensors) in &parts {
            candle_core::safetensors::save(tensors, folder.path().join(part)).unwrap();
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert!(parts.len() > 1);
        assert_eq!(case.logits(folder.path()), case.single(), "{}", case.name);
    }
}

#[test]
fn half_precision_gives_the_bits_of_the_same_values_in_single() {
    for case in cases().into_iter().take(2) {
        let tensors = candle_core::safetensors::load(&case.weights, &Device::Cpu).unwrap();
        let saved = |through: DType, to: DType| {
            let folder = tempfile::tempdir().unwrap();
            let cast = |tensor: &Tensor| tensor.to_dtype(through).unwrap().to_dtype(to).unwrap();
            let tensors =
                tensors.iter().map(|(name, tensor)| (name.clone(), cast(tensor))).collect();
            let path = folder.path().join("model.safetensors");
            candle_core::safetensors::save(&tensors, path).unwrap();
            case.logits(folder.path())
        };
        for half in [DType::F16, DType::BF16] {
            assert_eq!(saved(half, half), saved(half, DType::F32), "{} {half:?}", case.name);
        }
    }
}

#[test]
fn a_folder_with_its_tokenizer_serves_text() {
    let folder = tempfile::tempdir().unwrap();
    let vocabulary =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vocabularies/llama-bpe.json");
    let text = std::fs::read_to_string(vocabulary).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer.as_object_mut().unwrap().remove("gguf");
    let plain = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = tokenizer["added_tokens"].as_array().unwrap().len();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    // As checkpoints pad their vocabulary.
    let vocab = (plain + added).next_multiple_of(64);
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128,
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "vocab_size": vocab
    });
    let made = Made::random(config, 3);
    std::fs::write(folder.path().join("config.json"), made.config.to_string()).unwrap();
    let half = |tensor: &Tensor| tensor.to_dtype(DType::BF16).unwrap();
    let tensors: std::collections::HashMap<String, Tensor> =
        made.tensors.iter().map(|(name, tensor)| (name.clone(), half(tensor))).collect();
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();

    let options = EngineOptions { kv_memory_bytes: 4 << 20, ..options() };
    let engine = Engine::load(folder.path(), options).unwrap();
    let info = engine.info();
    let own = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!((info.name.as_str(), info.architecture.as_str()), (own, "qwen2"));
    assert_eq!((info.quantisation.as_str(), info.vocab_size), ("BF16", vocab as u32));
    let by_tokens = ChatFormat::BuiltIn("chatml");
    assert_eq!(info.chat_format, by_tokens, "no template, but the format's control tokens");
    let ids = engine.encode_raw("The cat sat on the mat.").unwrap();
    assert_eq!(engine.decode(&ids), "The cat sat on the mat.");
    let answer = answer(&engine, request(ids, 8));
    assert!(answer.counted > 0, "{answer:?}");
}
