//! Small random models in folders as Hugging Face lays them out: of each family one that loads in
//! milliseconds and says the same words in every run.

use std::path::Path;

use serde_json::{Map, Value, json};
use sha3::{Digest, Sha3_256};
use tempfile::TempDir;

/// Layers, and the model's context in tokens.
const LAYERS: usize = 2;
const CONTEXT: usize = 128;
const WIDTH: usize = 64;

/// The families that have a small model here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Gpt2,
    Llama,
    Qwen3,
}

impl Family {
    pub const ALL: [Self; 3] = [Self::Gpt2, Self::Llama, Self::Qwen3];

    /// The tokenizer's file among the engine's fixtures.
    fn vocabulary(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Llama => "llama-bpe",
            Self::Qwen3 => "qwen2",
        }
    }

    fn config(self, vocab: usize) -> Value {
        if self == Self::Gpt2 {
            return json!({
                "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab,
                "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_embd": WIDTH,
                "n_head": 4, "n_layer": LAYERS, "n_positions": CONTEXT
            });
        }
        let (name, kind) = match self {
            Self::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
            _ => ("LlamaForCausalLM", "llama"),
        };
        json!({
            "architectures": [name], "model_type": kind, "hidden_act": "silu",
            "vocab_size": vocab, "hidden_size": WIDTH, "intermediate_size": 96, "head_dim": 16,
            "max_position_embeddings": CONTEXT, "num_attention_heads": 4,
            "num_hidden_layers": LAYERS, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true
        })
    }

    /// Names and shapes of the weights, as Hugging Face's classes have them.
    fn shapes(self, vocab: usize) -> Vec<(String, Vec<usize>)> {
        let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: &str, shape: &[usize]| shapes.push((name.to_owned(), shape.to_vec()));
        let (prefix, layer) = if self == Self::Gpt2 {
            add("transformer.wte.weight", &[vocab, WIDTH]);
            add("transformer.wpe.weight", &[CONTEXT, WIDTH]);
            add("transformer.ln_f.weight", &[WIDTH]);
            add("transformer.ln_f.bias", &[WIDTH]);
            ("transformer.h", gpt2_layer())
        } else {
            add("model.embed_tokens.weight", &[vocab, WIDTH]);
            add("model.norm.weight", &[WIDTH]);
            ("model.layers", rotary_layer(self == Self::Qwen3))
        };
        for number in 0..LAYERS {
            layer.iter().for_each(|(name, shape)| add(&format!("{prefix}.{number}.{name}"), shape));
        }
        shapes
    }
}

fn gpt2_layer() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("ln_1.weight", vec![WIDTH]),
        ("ln_1.bias", vec![WIDTH]),
        ("attn.c_attn.weight", vec![WIDTH, 3 * WIDTH]),
        ("attn.c_attn.bias", vec![3 * WIDTH]),
        ("attn.c_proj.weight", vec![WIDTH, WIDTH]),
        ("attn.c_proj.bias", vec![WIDTH]),
        ("ln_2.weight", vec![WIDTH]),
        ("ln_2.bias", vec![WIDTH]),
        ("mlp.c_fc.weight", vec![WIDTH, 4 * WIDTH]),
        ("mlp.c_fc.bias", vec![4 * WIDTH]),
        ("mlp.c_proj.weight", vec![4 * WIDTH, WIDTH]),
        ("mlp.c_proj.bias", vec![WIDTH]),
    ]
}

fn rotary_layer(has_head_norms: bool) -> Vec<(&'static str, Vec<usize>)> {
    let mut layer = vec![
        ("input_layernorm.weight", vec![WIDTH]),
        ("post_attention_layernorm.weight", vec![WIDTH]),
        ("self_attn.q_proj.weight", vec![WIDTH, WIDTH]),
        ("self_attn.k_proj.weight", vec![WIDTH / 2, WIDTH]),
        ("self_attn.v_proj.weight", vec![WIDTH / 2, WIDTH]),
        ("self_attn.o_proj.weight", vec![WIDTH, WIDTH]),
        ("mlp.gate_proj.weight", vec![96, WIDTH]),
        ("mlp.up_proj.weight", vec![96, WIDTH]),
        ("mlp.down_proj.weight", vec![WIDTH, 96]),
    ];
    if has_head_norms {
        layer.push(("self_attn.q_norm.weight", vec![16]));
        layer.push(("self_attn.k_norm.weight", vec![16]));
    }
    layer
}

/// What makes a model's weights others than its family's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Weights drawn anew; 0 for the family's own.
    pub draw: u32,
    /// Low bits of each value's mantissa that are rounded away: 13 leave those of half precision,
    /// 16 those of bfloat16.
    pub bits_rounded: u32,
}

/// A folder with a model of this family; gone when it is dropped.
pub fn folder(family: Family) -> TempDir {
    changed(family, Change::default())
}

/// The same with other weights; tokenizer and configuration are the family's.
pub fn changed(family: Family, change: Change) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/engine/tests/fixtures");
    let text = fixtures.join("vocabularies").join(format!("{}.json", family.vocabulary()));
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(text).unwrap()).unwrap();
    // What the fixture has for GGUF files.
    tokenizer.as_object_mut().unwrap().remove("gguf");
    let plain = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let vocab = plain + tokenizer["added_tokens"].as_array().unwrap().len();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("tokenizer.json", tokenizer.to_string().as_bytes());
    write("config.json", family.config(vocab).to_string().as_bytes());
    write("model.safetensors", &safetensors(&family.shapes(vocab), change));
    folder
}

/// The file: length of the header, header, values in single precision.
fn safetensors(shapes: &[(String, Vec<usize>)], change: Change) -> Vec<u8> {
    let (mut header, mut values) = (Map::new(), Vec::new());
    for (name, shape) in shapes {
        let start = values.len();
        draw((name, shape), change, &mut values);
        let offsets = [start, values.len()];
        header
            .insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &values].concat()
}

/// A tensor's values, drawn from its name; large enough that attention chooses.
fn draw((name, shape): (&str, &[usize]), change: Change, values: &mut Vec<u8>) {
    let inputs = if name.contains(".c_") { shape[0] } else { shape[shape.len() - 1] };
    let (offset, scale) = match name {
        name if name.ends_with("bias") => (0.0, 0.5),
        name if name.contains("norm") || name.contains("ln_") => (1.0, 0.3),
        name if name.contains("embed") || name.contains("wte") => (0.0, 1.0),
        _ => (0.0, 2.5 / (inputs as f32).sqrt()),
    };
    let count: usize = shape.iter().product();
    let salt = if change.draw == 0 { String::new() } else { format!(" {}", change.draw) };
    for block in 0..count.div_ceil(8) {
        let digest = Sha3_256::digest(format!("{name} {block}{salt}"));
        for word in digest.chunks_exact(4).take(count - block * 8) {
            let word = u32::from_le_bytes(word.try_into().unwrap());
            let uniform = (word >> 8) as f32 / (1 << 23) as f32 - 1.0;
            values.extend(rounded(offset + scale * uniform, change.bits_rounded).to_le_bytes());
        }
    }
}

/// The value without so many low bits of its mantissa.
fn rounded(value: f32, bits: u32) -> f32 {
    let half = (1_u32 << bits) >> 1;
    f32::from_bits((value.to_bits() + half) >> bits << bits)
}
