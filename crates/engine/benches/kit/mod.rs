//! The engine as the benchmarks drive it: a model with a cache, and what is timed on it.
#![allow(dead_code)] // No benchmark needs all of it.

use std::path::Path;
use std::time::Instant;

use tally_engine::Isa;
use tally_engine::kv::{BlockTable, KvPool};
use tally_engine::model::{Batch, Logits, Model, Segment};

/// A loaded model and its cache.
pub struct Ours {
    /// The model.
    pub model: Model,
    /// Its cache.
    pub kv: KvPool,
}

impl Ours {
    /// Loads `path` for `threads` threads, on `isa` or the best instruction set there is.
    pub fn load(path: &Path, threads: usize, isa: Option<Isa>) -> Ours {
        let model = Model::load(path, threads, isa).unwrap();
        let kv = KvPool::new(model.config(), 512 << 20);
        Ours { model, kv }
    }

    /// Seconds to read `tokens` from the start in chunks of `chunk`.
    pub fn prefill(&mut self, table: &BlockTable, tokens: &[u32], chunk: usize) -> f64 {
        let begin = Instant::now();
        for (i, part) in tokens.chunks(chunk).enumerate() {
            let is_last = (i + 1) * chunk >= tokens.len();
            let logits = if is_last { Logits::Last } else { Logits::None };
            let segment = Segment { tokens: part, start: i * chunk, table, logits };
            self.model.forward(&Batch { segments: vec![segment] }, &mut self.kv).unwrap();
        }
        begin.elapsed().as_secs_f64()
    }

    /// Seconds for `steps` steps of one token for each table, from position `start`.
    pub fn decode(&mut self, tables: &[BlockTable], start: usize, steps: usize) -> f64 {
        let begin = Instant::now();
        for start in start..start + steps {
            let segment = |table| Segment { tokens: &[338], start, table, logits: Logits::Last };
            let batch = Batch { segments: tables.iter().map(segment).collect() };
            self.model.forward(&batch, &mut self.kv).unwrap();
        }
        begin.elapsed().as_secs_f64()
    }
}

/// Tokens of no meaning, all of them in any vocabulary of more than 4000.
pub fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 300 + i * 7 % 3571).collect()
}
