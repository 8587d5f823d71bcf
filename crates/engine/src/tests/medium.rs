//! A random model of gpt2-medium's full shape: what needs no reference is checked on it.

use serde_json::json;

use super::harness::{Checkpoint, bits_that_differ, cpu};
use super::small::shapes;
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::kernels::blocks::Format;
use crate::kernels::memory::Arena;
use crate::kernels::pack::PackedMatrix;
use crate::kernels::threads::Crew;
use crate::kv::{KvPool, KvType};
use crate::model::{Batch, Logits, Model, Segment};
use crate::weights::{Naming, Source};

/// Weights that are made as they are asked for: 355 million of them fit no repository.
struct Random {
    names: Vec<(String, Vec<usize>)>,
    arena: Arena,
}

impl Random {
    fn has_shape(&self, name: &str, shape: &[usize]) -> bool {
        self.names.iter().any(|(known, found)| known == name && found == shape)
    }

    /// Random signs and mantissas under one exponent: from ±1 to ±2 times a power of two.
    fn halves(&self, name: &str, count: usize, exponent: u16) -> Vec<u8> {
        let mut state = name.bytes().fold(1u64, |s, byte| s.wrapping_mul(31) + u64::from(byte));
        let mut bytes = Vec::with_capacity(count * 2);
        for _ in 0..count / 4 {
            // Knuth's MMIX generator, its upper bits mixed in: four weights from each number.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mut word = state ^ (state >> 29);
            for _ in 0..4 {
                let bits = (word as u16 & 0x83ff) | exponent << 10;
                bytes.extend_from_slice(&bits.to_le_bytes());
                word >>= 16;
            }
        }
        bytes
    }
}

impl Source for Random {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }
    fn names(&self) -> Vec<String> {
        self.names.iter().map(|(name, _)| name.clone()).collect()
    }
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|(known, _)| known == name)
    }
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<PackedMatrix, LoadError> {
        assert!(self.has_shape(name, &[rows, cols]), "{name} is no [{rows}, {cols}]");
        // Embeddings of ±0.25 to ±0.5.
        let raw = self.halves(name, rows * cols, 13);
        Ok(PackedMatrix::pack(Format::F16, (rows, cols), &raw, &self.arena).unwrap())
    }
    fn transposed(&self, name: &str, rows: usize, cols: usize) -> Result<PackedMatrix, LoadError> {
        assert!(self.has_shape(name, &[cols, rows]), "{name} is no [{cols}, {rows}]");
        // About 1.5/√1024: ±0.031 to ±0.062.
        let raw = self.halves(name, rows * cols, 10);
        Ok(PackedMatrix::pack(Format::F16, (rows, cols), &raw, &self.arena).unwrap())
    }
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        assert!(self.has_shape(name, &[len]), "{name} is no [{len}]");
        let offset = if name.contains(".ln_") && name.ends_with("weight") { 1.0 } else { 0.0 };
        let raw = self.halves(name, len, 12);
        let halves = raw.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32());
        Ok(halves.map(|x| offset + x).collect())
    }
}

fn medium() -> (Model, usize) {
    let config = json!({
        "model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024,
        "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    });
    let source = Random { names: shapes(&config), arena: Arena::default() };
    let parameters = source.names.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let config = ModelConfig::from_hf(&config).unwrap();
    let crew = Crew { count: 2, is_pinned: false };
    (Model::own(&source, config, (cpu(), crew)).unwrap(), parameters)
}

/// Logits of the last row of each of some segments that are computed together.
fn last_rows(model: &mut Model, kv: &mut KvPool, segments: Vec<Segment<'_>>) -> Vec<f32> {
    model.forward(&Batch { segments }, kv).unwrap().logits.to_vec()
}

/// Ten greedy tokens after `prompt`, read in chunks of `chunk`, and all their logits.
fn ten(model: &mut Model, kv: &mut KvPool, prompt: &[u32], chunk: usize) -> (Vec<u32>, Vec<f32>) {
    let table = kv.allocate(prompt.len() + 10).unwrap();
    let (mut all, mut rows) = (prompt.to_vec(), Vec::new());
    let mut from = 0;
    while all.len() < prompt.len() + 10 {
        let end = all.len().min(from + chunk);
        let segment =
            Segment { tokens: &all[from..end], start: from, table: &table, logits: Logits::Last };
        let row = last_rows(model, kv, vec![segment]);
        from = end;
        if end == all.len() {
            let best = (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            all.push(best as u32);
            rows.extend(row);
        }
    }
    kv.release(table);
    (all.split_off(prompt.len()), rows)
}

#[test]
fn checkpoint_medium_shape_without_a_reference() {
    let (mut model, parameters) = medium();
    assert_eq!(parameters, 354_823_168, "gpt2-medium's parameters");
    let config = model.config().clone();
    assert_eq!((config.head_dim, config.ff_width, config.context_length), (64, 4096, 1024));
    let mut kv = KvPool::of_type(&config, KvType::F16, 256 << 20);
    let prompt: Vec<u32> = (0..12).map(|i| (i * i * 4421 + 15496) % 50257).collect();
    let mut checkpoint = Checkpoint::new("medium's shape, logits that are not the bits", 0.0);

    let (chosen, rows) = ten(&mut model, &mut kv, &prompt, 64);
    assert!(rows.iter().all(|x| x.is_finite()));
    for _ in 0..2 {
        let again = ten(&mut model, &mut kv, &prompt, 64);
        assert_eq!(again.0, chosen, "three runs give one text");
        checkpoint.part("three runs", bits_that_differ(&again.1, &rows));
    }
    let chunked = ten(&mut model, &mut kv, &prompt, 5).1;
    checkpoint.part("chunks of 5", bits_that_differ(&chunked, &rows));

    // Without a cache: everything up to the last token anew, and another sequence beside it.
    let all: Vec<u32> = prompt.iter().chain(&chosen).copied().collect();
    let last = &rows[9 * 50257..];
    let tables = [kv.allocate(21).unwrap(), kv.allocate(7).unwrap()];
    let segment = |tokens, table| Segment { tokens, start: 0, table, logits: Logits::Last };
    let alone = last_rows(&mut model, &mut kv, vec![segment(&all[..21], &tables[0])]);
    checkpoint.part("recomputed", bits_that_differ(&alone, last));
    let both = vec![segment(&all[3..10], &tables[1]), segment(&all[..21], &tables[0])];
    let both = last_rows(&mut model, &mut kv, both);
    checkpoint.part("in a batch", bits_that_differ(&both[50257..], last));
    checkpoint.negative("the neighbour in the batch", bits_that_differ(&both[..50257], last));
    let moved = vec![segment(&all[1..21], &tables[0])];
    let moved = last_rows(&mut model, &mut kv, moved);
    checkpoint.negative("one token less before it", bits_that_differ(&moved, last));

    // The last position there is, and the first one that there isn't.
    let table = kv.allocate(1040).unwrap();
    let mut at = |start| {
        let segment = Segment { tokens: &[7], start, table: &table, logits: Logits::Last };
        model.forward(&Batch { segments: vec![segment] }, &mut kv).map(|_| ())
    };
    assert!(at(1023).is_ok());
    let refused = at(1024).unwrap_err().to_string();
    assert!(refused.contains("1024 positions"), "{refused}");
    checkpoint.finish();
}
