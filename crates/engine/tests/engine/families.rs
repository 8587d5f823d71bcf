//! The families' forward passes against HuggingFace transformers and candle-transformers, on
//! small random models (fixtures/make_reference.py), and their bits against each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use serde::Deserialize;
use serde_json::json;
use sha3::{Digest, Keccak256};
use tally_engine::Isa;
use tally_engine::model::Model;

use crate::models::{Made, logits};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    weights: String,
    config: serde_json::Value,
    ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("families.json")).unwrap();
    let fixture: Fixture = serde_json::from_str(&text).unwrap();
    assert_eq!(fixture.cases.len(), 7);
    fixture.cases
}

impl Case {
    fn made(&self) -> Made {
        let tensors = candle_core::safetensors::load(folder().join(&self.weights), &Device::Cpu);
        let to_f32 = |tensor: Tensor| tensor.to_dtype(DType::F32).unwrap();
        let tensors: BTreeMap<_, _> =
            tensors.unwrap().into_iter().map(|(name, tensor)| (name, to_f32(tensor))).collect();
        Made { config: self.config.clone(), tensors }
    }

    /// Keys of a GGUF file that stand for the rotary scaling and the window.
    fn extra_keys(&self) -> Vec<(String, Value)> {
        let mut keys = Vec::new();
        let scaling = &self.config["rope_scaling"];
        let mut add = |key: &str, value: Value| keys.push((format!("llama.{key}"), value));
        let number = |key: &str| Value::F32(scaling[key].as_f64().unwrap() as f32);
        if let Some(kind @ ("linear" | "yarn")) = scaling["rope_type"].as_str() {
            add("rope.scaling.type", Value::String(kind.into()));
            add("rope.scaling.factor", number("factor"));
        }
        if let Some(original) = scaling["original_max_position_embeddings"].as_u64() {
            add("rope.scaling.original_context_length", Value::U32(original as u32));
        }
        if let Some(window) = self.config["sliding_window"].as_u64()
            && self.config["architectures"][0] == "MistralForCausalLM"
        {
            add("attention.sliding_window", Value::U32(window as u32));
        }
        keys
    }

    /// The model in a GGUF file, its weights as they are.
    fn write(&self, folder: &tempfile::TempDir) -> PathBuf {
        let mut made = self.made();
        if self.config["rope_scaling"]["rope_type"] == "llama3" {
            made.tensors.insert("rope_freqs.weight".into(), llama3_divisors());
        }
        made.write(folder.path(), &self.name, GgmlDType::F32, self.extra_keys())
    }
}

/// What llama.cpp's converter stores for the fixture's llama3 scaling: each frequency's divisor.
fn llama3_divisors() -> Tensor {
    let divisor = |i: i32| {
        let turns = 64.0 * 500_000f64.powf(-f64::from(i) / 8.0) / std::f64::consts::TAU;
        let kept = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / 8.0 + kept)) as f32
    };
    Tensor::from_vec((0..8).map(divisor).collect(), 8, &Device::Cpu).unwrap()
}

fn largest_error(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).fold(0.0, |max, (a, b)| max.max((a - b).abs()))
}

#[test]
fn logits_agree_with_huggingface_transformers() {
    let files = tempfile::tempdir().unwrap();
    for case in cases() {
        let mut model = Model::load(&case.write(&files), 1, None).unwrap();
        let rows = logits(&mut model, &case.ids, case.ids.len());
        let mut largest = 0f32;
        for (position, theirs) in case.positions.iter().zip(&case.logits) {
            largest = largest.max(largest_error(&rows[*position], theirs));
        }
        let scale = case.logits.iter().flatten().fold(0f32, |max, x| max.max(x.abs()));
        println!("{}: largest error {largest:.5} of logits up to {scale:.1}", case.name);
        // Weights and activations are floats on both sides; keys and values are rounded to half
        // precision here, and that is all that is left.
        assert!(largest <= 2e-3 * scale, "{}: {largest} of {scale}", case.name);
    }
}
