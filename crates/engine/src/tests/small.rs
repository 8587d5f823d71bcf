//! The small GPT-2 of the fixtures: its weights, drawn again, and what hooks saw of it.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde_json::{Value, json as object};
use sha3::{Digest, Sha3_256};

use super::harness::{Tensors, ids, json, write_vocabulary};
use crate::probe::Stage;

/// Layers whose stages the fixture has.
pub const WHOLE: [usize; 2] = [0, 3];
/// Heads and their size.
pub const HEADS: usize = 4;
pub const DIM: usize = 64;

/// The rule of `fixtures/make_gpt2.py`: FNV-1a of the name, splitmix64 of that and the index.
pub fn drawn(name: &str, shape: &[usize]) -> impl Iterator<Item = f32> + use<> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let inputs = (shape[0] as f64).sqrt();
    let (offset, scale) = match name {
        name if name.ends_with("bias") => (0.0, 0.5),
        name if name.contains(".ln_") => (1.0, 0.5),
        name if name.contains(".wte.") => (0.0, 0.5),
        name if name.contains(".wpe.") => (0.0, 0.375),
        name if name.contains(".mlp.c_proj.") => (0.0, 12.0 / inputs),
        _ => (0.0, 2.5 / inputs),
    };
    let value = move |index: u64| {
        let mut x = state.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        let uniform = (x >> 40) as f64 / f64::from(1 << 23) - 1.0;
        (offset + scale * uniform) as f32
    };
    let count = shape.iter().product::<usize>() as u64;
    (1..=count).map(value)
}

/// [`drawn`] as a tensor.
pub fn draw(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(drawn(name, shape).collect(), shape, &Device::Cpu).unwrap()
}

/// What the script calls a stage of a layer that has only one name.
pub fn part_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::AttentionNorm => Some("ln_1"),
        Stage::Mixed => Some("mixed"),
        Stage::Attention => Some("attention"),
        Stage::Middle => Some("middle"),
        Stage::FeedForwardNorm => Some("ln_2"),
        Stage::Hidden => Some("hidden"),
        Stage::Active => Some("active"),
        Stage::FeedForward => Some("mlp"),
        Stage::Out => Some("out"),
        Stage::Embedded | Stage::Qkv | Stage::Turned | Stage::State | Stage::Logits => None,
    }
}

/// Names and shapes of a GPT-2's parameters, as HuggingFace's class has them.
pub fn shapes(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let d = size("n_embd");
    let mut shapes = vec![
        ("transformer.wte.weight".to_owned(), vec![size("vocab_size"), d]),
        ("transformer.wpe.weight".to_owned(), vec![size("n_positions"), d]),
        ("transformer.ln_f.weight".to_owned(), vec![d]),
        ("transformer.ln_f.bias".to_owned(), vec![d]),
    ];
    for layer in 0..size("n_layer") {
        let parts = [
            ("attn.c_attn", vec![d, 3 * d]),
            ("attn.c_proj", vec![d, d]),
            ("mlp.c_fc", vec![d, 4 * d]),
            ("mlp.c_proj", vec![4 * d, d]),
            ("ln_1", vec![d]),
            ("ln_2", vec![d]),
        ];
        for (part, shape) in parts {
            let name = format!("transformer.h.{layer}.{part}");
            shapes.push((format!("{name}.bias"), vec![*shape.last().unwrap()]));
            shapes.push((format!("{name}.weight"), shape));
        }
    }
    shapes
}

/// The small model and what HuggingFace's forward pass has given for it.
pub struct Small {
    pub fixture: Value,
    pub config: Value,
    pub ids: Vec<u32>,
    pub weights: Tensors,
    pub theirs: Tensors,
}

impl Small {
    pub fn new() -> Small {
        let fixture = json("checkpoints/gpt2.json");
        let config = fixture["config"].clone();
        let drawn: BTreeMap<String, Tensor> = shapes(&config)
            .into_iter()
            .map(|(name, shape)| (name.clone(), draw(&name, &shape)))
            .collect();
        let weights = Tensors(drawn);
        let mut hash = Sha3_256::new();
        for name in weights.0.keys() {
            weights.get(name).iter().for_each(|x| hash.update(x.to_le_bytes()));
        }
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(fixture["weights_sha3_256"], digest, "the weights that the hooks saw");
        let theirs = Tensors::of("checkpoints/gpt2.safetensors");
        Small { ids: ids(&fixture["ids"]), fixture, config, weights, theirs }
    }

    /// The configuration with one key changed.
    pub fn with(&self, key: &str, value: impl Into<Value>) -> Value {
        let mut config = self.config.clone();
        config[key] = value.into();
        config
    }

    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// What the hooks saw of a stage; of layers that are not [`WHOLE`] the fixture has the
    /// stream alone. Panics where it lacks what it should have.
    pub fn stage(&self, stage: Stage, layer: usize) -> Option<Vec<f32>> {
        let is_there = stage == Stage::Out || WHOLE.contains(&layer);
        match (stage, part_of(stage)) {
            (Stage::Embedded, _) => Some(self.theirs.get("h.0.in")),
            (Stage::State, _) => Some(self.theirs.get("ln_f")),
            (Stage::Logits, _) => Some(self.theirs.get("logits")),
            (_, None) => is_there.then(|| self.qkv(layer)),
            (_, Some(part)) => is_there.then(|| self.theirs.get(&format!("h.{layer}.{part}"))),
        }
    }

    /// Puts what the hooks saw in the place of some stages.
    pub fn forced(&self, stages: &[Stage]) -> impl FnMut(Stage, usize, &mut [f32]) + '_ {
        let stages = stages.to_vec();
        move |stage, layer, values| {
            if stages.contains(&stage)
                && let Some(theirs) = self.stage(stage, layer)
            {
                values.copy_from_slice(&theirs);
            }
        }
    }

    /// Queries, keys and values that HuggingFace's attention was called with, `[heads, rows, 64]`
    /// each, as rows of ours: `[rows][query | key | value]`, heads one after the other.
    pub fn qkv(&self, layer: usize) -> Vec<f32> {
        let parts = ["query", "key", "value"].map(|p| self.theirs.get(&format!("h.{layer}.{p}")));
        let mut rows = Vec::new();
        for row in 0..self.rows() {
            for part in &parts {
                for head in 0..HEADS {
                    rows.extend(&part[(head * self.rows() + row) * DIM..][..DIM]);
                }
            }
        }
        rows
    }

    /// The model's folder with the tokenizer's two files beside it.
    pub fn folder(&self) -> tempfile::TempDir {
        let folder = self.weights.lay_out(&self.config);
        write_vocabulary(folder.path(), &json("vocabularies/gpt-2.json"));
        let added = object!({"<|endoftext|>": 860}).to_string();
        std::fs::write(folder.path().join("added_tokens.json"), added).unwrap();
        folder
    }
}

/// What HuggingFace saved on disk itself: names, shapes and orientation are its own.
pub fn saved() -> (std::path::PathBuf, Vec<u32>, Vec<Vec<f32>>) {
    let expected = json("checkpoints/saved/expected.json");
    let logits = serde_json::from_value(expected["logits"].clone()).unwrap();
    (super::harness::fixture("checkpoints/saved"), ids(&expected["ids"]), logits)
}
