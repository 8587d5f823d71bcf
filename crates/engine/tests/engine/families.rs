//! The families' forward passes against HuggingFace transformers and candle-transformers, on
//! small random models (fixtures/make_reference.py), and their bits against each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};
use serde::Deserialize;
use serde_json::json;
use sha3::{Digest, Keccak256};
use tally_engine::Isa;
use tally_engine::model::Model;

use crate::models::{Forward, Made, logits, one_by_one, write_gguf};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    weights: String,
    pub config: serde_json::Value,
    pub ids: Vec<u32>,
    pub positions: Vec<usize>,
    pub logits: Vec<Vec<f32>>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference")
}

pub fn cases(file: &str) -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    serde_json::from_str::<Fixture>(&text).unwrap().cases
}

fn families() -> Vec<Case> {
    let cases = cases("families.json");
    assert_eq!(cases.len(), 7);
    cases
}

impl Case {
    pub fn made(&self) -> Made {
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

    /// The model as HuggingFace lays it out: a folder with the settings and the weights.
    fn lay_out(&self, files: &tempfile::TempDir) -> PathBuf {
        let path = files.path().join(&self.name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("config.json"), self.config.to_string()).unwrap();
        std::fs::copy(folder().join(&self.weights), path.join("model.safetensors")).unwrap();
        path
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
    for case in families() {
        for path in [case.write(&files), case.lay_out(&files)] {
            let mut model = Model::load(&path, 1, None).unwrap();
            let rows = logits(&mut model, &case.ids, case.ids.len());
            let mut largest = 0f32;
            for (position, theirs) in case.positions.iter().zip(&case.logits) {
                largest = largest.max(largest_error(&rows[*position], theirs));
            }
            let scale = case.logits.iter().flatten().fold(0f32, |max, x| max.max(x.abs()));
            println!("{path:?}: largest error {largest:.5} of logits up to {scale:.1}");
            // Weights and activations are floats on both sides; keys and values are rounded to
            // half precision here, and that is all that is left. Measured: at most 1.2e-3.
            assert!(largest <= 2e-3 * scale, "{path:?}: {largest} of {scale}");
        }
    }
}

/// A way to compute: instruction set, threads, tokens to a chunk.
fn ways() -> Vec<(Isa, usize, usize)> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let all = isas.flat_map(|isa| [1, 3].map(|threads| (isa, threads)));
    all.flat_map(|(isa, threads)| [1, 7, 80].map(|chunk| (isa, threads, chunk))).collect()
}

/// Keccak-256 of the logits' bits of all rows of the fixture's ids, little-endian, read from the
/// checkpoint as it is. Any other value is another engine: raise `ENGINE_SPEC_VERSION`.
const GOLDEN: [(&str, &str); 7] = [
    ("llama", "ff9e409c4f9363c2945831b357727795ae7707abc77a47503b8ad08578147e88"),
    ("llama-linear", "3b3d0cde302d621ecc94f3dda0dfe8cf5c2154ac6e79b1ec0ba641ee6c4a553a"),
    ("llama-llama3", "2876b20f54f1507e575e91364e9cc20391bc3b8a1353cb622e09890a31d5f8e4"),
    ("llama-yarn", "b73abdcf8c9f02787091b72954390883e33ec38ce868b16dba9acfd8679f66a7"),
    ("mistral-window", "f43449dbeac5fadc84edba121e4ec121ada03e66163d8365d9b1b03545fc1e46"),
    ("qwen2", "ab25649fede96bda271563a8571215be7f12b7ed2b5dc47fdb079802b1c2267e"),
    ("qwen3", "caf777d0562573856a9c7b8378e78d53439ed42efbbd9f75b1ea344f09edf2b5"),
];

#[test]
fn every_family_has_the_same_bits_on_every_path() {
    let files = tempfile::tempdir().unwrap();
    let mut found = Vec::new();
    for case in families() {
        let path = case.lay_out(&files);
        let mut digests: Vec<String> = Vec::new();
        for (isa, threads, chunk) in ways() {
            let mut model = Model::load(&path, threads, Some(isa)).unwrap();
            let rows = logits(&mut model, &case.ids, chunk);
            let mut hash = Keccak256::new();
            rows.iter().flatten().for_each(|x| hash.update(x.to_bits().to_le_bytes()));
            let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            digests.push(digest);
            assert_eq!(digests.first(), digests.last(), "{path:?} {isa:?} {threads} {chunk}");
        }
        found.push((case.name, digests.swap_remove(0)));
    }
    let found: Vec<(&str, &str)> =
        found.iter().map(|(name, digest)| (&**name, &**digest)).collect();
    assert_eq!(found, GOLDEN);
}

/// √(Σ(ours − theirs)² / Σ theirs²).
fn relative_error(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    let (error, size) = pairs.fold((0.0, 0.0), |(error, size), (a, b)| {
        (error + f64::from(a - b).powi(2), size + f64::from(*b).powi(2))
    });
    (error / size).sqrt()
}

/// Small settings of a family; nothing is a multiple of 256, and three queries share a key.
pub fn settings(architecture: &str) -> serde_json::Value {
    json!({
        "architectures": [architecture], "hidden_size": 96, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": 72, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    })
}

/// Candle's logits of every row, from a file whose weights are floats.
fn candle(path: &std::path::Path, architecture: &str, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let cpu = &Device::Cpu;
    let forward: Forward = match architecture {
        "LlamaForCausalLM" => {
            let mut model =
                quantized_llama::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        "Qwen2ForCausalLM" => {
            let mut model =
                quantized_qwen2::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        _ => {
            let mut model =
                quantized_qwen3::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
    };
    one_by_one(forward, ids)
}

#[test]
fn quantised_files_agree_with_candle_on_their_dequantised_weights() {
    let files = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..40).map(|i| i * i * 7 % 72).collect();
    for architecture in ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let made = Made::random(settings(architecture), 5);
        for format in [GgmlDType::Q4_0, GgmlDType::Q5_1, GgmlDType::Q8_0, GgmlDType::F16] {
            let path = made.write(files.path(), "quantised", format, Vec::new());
            let rows = logits(&mut Model::load(&path, 1, None).unwrap(), &ids, 16);
            let floats = made.quantised(format).into_iter().map(|(name, tensor)| {
                let values = tensor.dequantize(&Device::Cpu).unwrap();
                (name, QTensor::quantize(&values, GgmlDType::F32).unwrap())
            });
            let path = write_gguf(files.path(), "floats", &made.metadata(), &floats.collect());
            let theirs = candle(&path, architecture, &ids);
            let found = relative_error(&rows, &theirs);
            println!("{architecture} {format:?}: relative error {found:.5}");
            // Eight bits of activations are what is between them; half precision of keys and
            // values alone where the weights are floats.
            let bound = if format == GgmlDType::F16 { 2e-3 } else { 0.05 };
            assert!(found <= bound, "{architecture} {format:?}: {found}");
        }
    }
}
