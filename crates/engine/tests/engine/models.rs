//! Small models that tests make: tensors by HuggingFace's names, written as GGUF files.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};

/// A network of candle's: tokens and the position of the first to the last one's logits.
pub type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

/// Candle's logits of every row, tokens one by one.
pub fn one_by_one(mut forward: Forward, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut row = |at: usize| {
        let x = Tensor::new(&ids[at..=at], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        forward(&x, at).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    (0..ids.len()).map(&mut row).collect()
}

/// Knuth's MMIX generator; its upper bits are good enough for weights.
pub struct Noise(pub u64);

impl Noise {
    /// `count` values evenly between `offset` − `scale` and `offset` + `scale`.
    pub fn floats(&mut self, count: usize, offset: f64, scale: f64) -> Vec<f32> {
        let value = |_| {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let uniform = (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0;
            (offset + scale * uniform) as f32
        };
        (0..count).map(value).collect()
    }
}

/// A model's settings, as a `config.json` has them, and its tensors.
pub struct Made {
    pub config: serde_json::Value,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Made {
    pub fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap_or_else(|| panic!("{key} is missing")) as usize
    }

    pub fn architecture(&self) -> &str {
        match self.config["architectures"][0].as_str().unwrap() {
            "LlamaForCausalLM" | "MistralForCausalLM" => "llama",
            "Qwen2ForCausalLM" => "qwen2",
            "Qwen3ForCausalLM" => "qwen3",
            "Phi3ForCausalLM" => "phi3",
            "Gemma3ForCausalLM" => "gemma3",
            other => panic!("{other}"),
        }
    }

    fn head_dim(&self) -> usize {
        match self.config["head_dim"].as_u64() {
            Some(dim) => dim as usize,
            None => self.size("hidden_size") / self.size("num_attention_heads"),
        }
    }

    /// Seeded weights, large enough that attention chooses and the logits differ.
    pub fn random(config: serde_json::Value, seed: u64) -> Made {
        let mut made = Made { config, tensors: BTreeMap::new() };
        let mut noise = Noise(seed);
        for (name, shape) in made.shapes() {
            let (offset, scale) = match name.as_str() {
                name if name.ends_with("norm.weight") => (1.0, 0.3),
                name if name.ends_with("bias") => (0.0, 0.5),
                "model.embed_tokens.weight" => (0.0, 1.5),
                _ => (0.0, 2.5 / (shape[shape.len() - 1] as f64).sqrt()),
            };
            let values = noise.floats(shape.iter().product(), offset, scale);
            made.tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        }
        made
    }

    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (width, ff) = (self.size("hidden_size"), self.size("intermediate_size"));
        let vocab = self.size("vocab_size");
        let query = self.size("num_attention_heads") * self.head_dim();
        let kv = self.size("num_key_value_heads") * self.head_dim();
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, width]),
            ("model.norm.weight".to_owned(), vec![width]),
        ];
        if self.config["tie_word_embeddings"] != true {
            shapes.push(("lm_head.weight".to_owned(), vec![vocab, width]));
        }
        for layer in 0..self.size("num_hidden_layers") {
            let mut add = |part: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[width]);
            add("post_attention_layernorm.weight", &[width]);
            for (part, rows) in [("q", query), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{part}_proj.weight"), &[rows, width]);
                if self.architecture() == "qwen2" {
                    add(&format!("self_attn.{part}_proj.bias"), &[rows]);
                }
            }
            if self.architecture() == "qwen3" {
                add("self_attn.q_norm.weight", &[self.head_dim()]);
                add("self_attn.k_norm.weight", &[self.head_dim()]);
            }
            add("self_attn.o_proj.weight", &[width, query]);
            add("mlp.gate_proj.weight", &[ff, width]);
            add("mlp.up_proj.weight", &[ff, width]);
            add("mlp.down_proj.weight", &[width, ff]);
        }
        shapes
    }

    /// The tensor as a GGUF file holds it: a Llama's query and key rows with neighbours paired.
    fn gguf_tensor(&self, name: &str) -> Tensor {
        let tensor = &self.tensors[name];
        let is_paired = name.contains("q_proj") || name.contains("k_proj");
        if !is_paired || self.architecture() != "llama" {
            return tensor.clone();
        }
        let (rows, cols) = tensor.dims2().unwrap();
        let dim = self.head_dim();
        let halves = tensor.reshape((rows / dim, 2, dim / 2, cols)).unwrap();
        halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
    }

    /// The tensors under GGUF's names, matrices quantised to `format`.
    pub fn quantised(&self, format: GgmlDType) -> BTreeMap<String, QTensor> {
        let quantise = |name: &String| {
            let tensor = self.gguf_tensor(name);
            let format = if tensor.rank() == 2 { format } else { GgmlDType::F32 };
            (self.gguf_name(name), QTensor::quantize(&tensor, format).unwrap())
        };
        self.tensors.keys().map(quantise).collect()
    }

    fn gguf_name(&self, name: &str) -> String {
        // Gemma norms on both sides of a step; others only call it so.
        let norm = match self.architecture() {
            "gemma3" => "post_attention_norm",
            _ => "ffn_norm",
        };
        let name = &name.replace("post_attention_layernorm", norm);
        const PARTS: [(&str, &str); 18] = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
            ("input_layernorm", "attn_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
            ("self_attn.qkv_proj", "attn_qkv"),
            ("mlp.gate_up_proj", "ffn_up"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        PARTS.iter().fold(name.to_owned(), |name, (theirs, ggufs)| name.replace(theirs, ggufs))
    }

    /// Keys of the GGUF file, without the rotary scaling.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let arch = self.architecture();
        let number = |key: &str| self.config[key].as_f64().unwrap() as f32;
        let tokens = (0..self.size("vocab_size")).map(|id| Value::String(format!("t{id}")));
        let sizes = [
            ("block_count", self.size("num_hidden_layers")),
            ("embedding_length", self.size("hidden_size")),
            ("feed_forward_length", self.size("intermediate_size")),
            ("attention.head_count", self.size("num_attention_heads")),
            ("attention.head_count_kv", self.size("num_key_value_heads")),
            ("attention.key_length", self.head_dim()),
            ("attention.value_length", self.head_dim()),
            ("rope.dimension_count", self.head_dim()),
            ("context_length", self.size("max_position_embeddings")),
        ];
        let mut keys: Vec<(String, Value)> =
            sizes.map(|(key, n)| (format!("{arch}.{key}"), Value::U32(n as u32))).into();
        keys.push(("general.architecture".into(), Value::String(arch.into())));
        keys.push(("tokenizer.ggml.tokens".into(), Value::Array(tokens.collect())));
        let eps = Value::F32(number("rms_norm_eps"));
        keys.push((format!("{arch}.attention.layer_norm_rms_epsilon"), eps));
        keys.push((format!("{arch}.rope.freq_base"), Value::F32(number("rope_theta"))));
        keys
    }

    /// Writes a GGUF file with matrices in `format` and `extra` keys, and names it.
    pub fn write(
        &self,
        folder: &Path,
        name: &str,
        format: GgmlDType,
        extra: Vec<(String, Value)>,
    ) -> PathBuf {
        write_gguf(folder, name, &[self.metadata(), extra].concat(), &self.quantised(format))
    }
}

pub fn write_gguf(
    folder: &Path,
    name: &str,
    keys: &[(String, Value)],
    tensors: &BTreeMap<String, QTensor>,
) -> PathBuf {
    let path = folder.join(format!("{name}.gguf"));
    let keys: Vec<(&str, &Value)> = keys.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    write(&mut File::create(&path).unwrap(), &keys, &tensors).unwrap();
    path
}

/// Logits of all rows of `ids`, read in chunks of `chunk`.
pub fn logits(model: &mut Model, ids: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let vocab = model.config().vocab_size;
    let mut kv = KvPool::new(model.config(), 16 << 20);
    // Blocks in another order than usual: the table must not matter.
    let spacer = kv.allocate(chunk).unwrap();
    let table = kv.allocate(ids.len()).unwrap();
    kv.release(spacer);
    let mut rows = Vec::new();
    for (i, tokens) in ids.chunks(chunk).enumerate() {
        let start = i * chunk;
        let segment = Segment { tokens, start, table: &table, logits: Logits::All };
        let out = model.forward(&Batch { segments: vec![segment] }, &mut kv).unwrap();
        rows.extend(out.logits.chunks_exact(vocab).map(<[f32]>::to_vec));
    }
    rows
}
