//! A small GGUF model, written field by field so that each field can be spoiled.

/// Where a number stands in the file, and how wide it is.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pub at: usize,
    pub bytes: usize,
}

/// A file and the places of its numbers.
#[derive(Clone)]
pub struct GgufFile {
    pub bytes: Vec<u8>,
    pub marks: Vec<Mark>,
}

/// A tensor's description.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Innermost first, as in the file.
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
    pub size: u64,
}

/// What the file is made of; tests change a part and write it.
#[derive(Clone)]
pub struct Parts {
    pub magic: [u8; 4],
    pub version: u32,
    /// Key and bytes of the value, its type included.
    pub keys: Vec<(Vec<u8>, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: u64,
    /// Instead of the numbers of keys and tensors.
    pub counts: Option<(u64, u64)>,
}

pub const U32: u32 = 4;
pub const TEXT: u32 = 8;
pub const LIST: u32 = 9;

const WIDTH: u64 = 64;
const FF: u64 = 96;
const KV: u64 = 32;
const F32: (u32, u64, u64) = (0, 1, 4);
const F16: (u32, u64, u64) = (1, 1, 2);
const Q4_0: (u32, u64, u64) = (2, 32, 18);
const Q4_1: (u32, u64, u64) = (3, 32, 20);
const Q8_0: (u32, u64, u64) = (8, 32, 34);

pub fn typed(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

pub fn u32_value(x: u32) -> Vec<u8> {
    typed(U32, &x.to_le_bytes())
}

pub fn counted(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn text(text: &str) -> Vec<u8> {
    typed(TEXT, &counted(text.as_bytes()))
}

pub fn list(of: u32, count: u64, items: &[u8]) -> Vec<u8> {
    typed(LIST, &[&of.to_le_bytes()[..], &count.to_le_bytes(), items].concat())
}

fn texts(items: &[String]) -> Vec<u8> {
    let bytes: Vec<u8> = items.iter().flat_map(|item| counted(item.as_bytes())).collect();
    list(TEXT, items.len() as u64, &bytes)
}

/// The 256 characters that stand for bytes, some pairs of them, and control tokens.
fn vocabulary() -> (Vec<String>, Vec<String>, Vec<u8>) {
    let mut next = 0x100;
    let mut tokens: Vec<String> = (0..=255u32)
        .map(|byte| {
            let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable { byte } else { next };
            next += u32::from(!printable);
            char::from_u32(code).unwrap().to_string()
        })
        .collect();
    let pairs = ["t h", "h e", "a n", "i n", "th e"];
    let merges: Vec<String> = pairs.iter().map(|pair| pair.to_string()).collect();
    tokens.extend(pairs.iter().map(|pair| pair.replace(' ', "")));
    let plain = tokens.len();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from));
    let types = (0..tokens.len()).map(|id| if id < plain { 1u32 } else { 3 });
    let types: Vec<u8> = types.flat_map(u32::to_le_bytes).collect();
    (tokens, merges, types)
}

impl Parts {
    /// A Llama of two layers that loads and runs.
    pub fn sound() -> Parts {
        let (tokens, merges, types) = vocabulary();
        let vocab = tokens.len() as u64;
        let mut keys: Vec<(&str, Vec<u8>)> = vec![
            ("general.architecture", text("llama")),
            ("general.alignment", u32_value(32)),
            ("llama.block_count", u32_value(2)),
            ("llama.context_length", u32_value(64)),
            ("llama.embedding_length", u32_value(WIDTH as u32)),
            ("llama.feed_forward_length", u32_value(FF as u32)),
            ("llama.attention.head_count", u32_value(4)),
            ("llama.attention.head_count_kv", u32_value(2)),
            ("llama.attention.layer_norm_rms_epsilon", typed(6, &1e-5f32.to_le_bytes())),
            ("llama.rope.freq_base", typed(12, &1e4f64.to_le_bytes())),
            ("llama.rope.dimension_count", u32_value(16)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
        ];
        keys.push(("tokenizer.ggml.tokens", texts(&tokens)));
        keys.push(("tokenizer.ggml.merges", texts(&merges)));
        keys.push(("tokenizer.ggml.token_type", list(5, vocab, &types)));
        keys.push(("tokenizer.ggml.add_bos_token", typed(7, &[0])));
        keys.push(("tokenizer.ggml.bos_token_id", u32_value(vocab as u32 - 2)));
        keys.push(("tokenizer.ggml.eos_token_id", u32_value(vocab as u32 - 1)));
        let keys = keys.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value)).collect();
        let mut parts = Parts {
            magic: *b"GGUF",
            version: 3,
            keys,
            tensors: Vec::new(),
            alignment: 32,
            counts: None,
        };
        parts.add("token_embd.weight", &[WIDTH, vocab], Q8_0);
        for layer in 0..2 {
            let mut add = |part: &str, dims: &[u64], form| {
                parts.add(&format!("blk.{layer}.{part}.weight"), dims, form);
            };
            add("attn_norm", &[WIDTH], F32);
            add("attn_q", &[WIDTH, WIDTH], Q4_0);
            add("attn_k", &[WIDTH, KV], Q4_1);
            add("attn_v", &[WIDTH, KV], F16);
            add("attn_output", &[WIDTH, WIDTH], Q8_0);
            add("ffn_norm", &[WIDTH], F32);
            add("ffn_gate", &[WIDTH, FF], Q4_0);
            add("ffn_up", &[WIDTH, FF], Q4_1);
            add("ffn_down", &[FF, WIDTH], Q8_0);
        }
        parts.add("output_norm.weight", &[WIDTH], F32);
        parts
    }

    pub fn add(&mut self, name: &str, dims: &[u64], (kind, block, bytes): (u32, u64, u64)) {
        let end = self.tensors.last().map_or(0, |last| last.offset + last.size);
        let offset = end.next_multiple_of(self.alignment);
        let size = dims.iter().product::<u64>() / block * bytes;
        let dims = dims.to_vec();
        self.tensors.push(Tensor { name: name.into(), dims, kind, offset, size });
    }

    /// The tensor of this name, to be changed.
    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// Gives a key another value, or adds it.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        match self.keys.iter_mut().find(|(name, _)| name == key.as_bytes()) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.as_bytes().to_vec(), value)),
        }
    }

    /// The file, with the weights that belong to it.
    pub fn write(&self) -> GgufFile {
        let mut file = GgufFile { bytes: Vec::new(), marks: Vec::new() };
        file.bytes.extend_from_slice(&self.magic);
        file.u32(self.version);
        let (keys, tensors) =
            self.counts.unwrap_or((self.keys.len() as u64, self.tensors.len() as u64));
        file.u64(tensors);
        file.u64(keys);
        for (key, value) in &self.keys {
            file.text(key);
            file.value(value);
        }
        for tensor in &self.tensors {
            file.text(tensor.name.as_bytes());
            file.u32(tensor.dims.len() as u32);
            tensor.dims.iter().for_each(|dim| file.u64(*dim));
            file.u32(tensor.kind);
            file.u64(tensor.offset);
        }
        let padded = file.bytes.len().next_multiple_of(self.alignment.max(1) as usize);
        file.bytes.resize(padded, 0);
        let data = Parts::data_bytes();
        file.bytes.extend((0..data).map(|at| weight_byte(at as usize)));
        file
    }

    /// Bytes of the sound model's weights.
    fn data_bytes() -> u64 {
        static BYTES: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        *BYTES.get_or_init(|| {
            let parts = Parts::sound();
            let last = parts.tensors.last().unwrap();
            last.offset + last.size
        })
    }
}

/// Bytes that are small finite numbers in every format: half and single precision alike.
fn weight_byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x2f
}

impl GgufFile {
    fn u32(&mut self, x: u32) {
        self.marks.push(Mark { at: self.bytes.len(), bytes: 4 });
        self.bytes.extend_from_slice(&x.to_le_bytes());
    }

    fn u64(&mut self, x: u64) {
        self.marks.push(Mark { at: self.bytes.len(), bytes: 8 });
        self.bytes.extend_from_slice(&x.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.marks.push(Mark { at: self.bytes.len(), bytes: 8 });
        self.bytes.extend(counted(text));
    }

    /// A value: its type, what a list is of and how long, and the number or length itself.
    fn value(&mut self, value: &[u8]) {
        let at = self.bytes.len();
        let width = if value.len() >= 12 { 8 } else { value.len().saturating_sub(4).min(4) };
        self.marks.push(Mark { at, bytes: 4 });
        if value.starts_with(&LIST.to_le_bytes()) {
            self.marks.push(Mark { at: at + 4, bytes: 4 });
            self.marks.push(Mark { at: at + 8, bytes: 8 });
        } else if matches!(width, 4 | 8) {
            self.marks.push(Mark { at: at + 4, bytes: width });
        }
        self.bytes.extend_from_slice(value);
    }
}
