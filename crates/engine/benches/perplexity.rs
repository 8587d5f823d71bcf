//! The engine's perplexity on a text, by llama-perplexity's rule: `scripts/bench/perplexity.sh`
//! sets the two side by side.
//!
//! ```text
//! perplexity MODEL THREADS TEXT CHUNKS     prints one line of JSON
//! ```
//! Chunks of 512 tokens, each from an empty cache; the last 255 of each are predicted. At most
//! CHUNKS of them are read. The line has the perplexity and each chunk's mean surprise in nats a
//! token. Under `cargo test` it has no arguments and does nothing.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod kit;

use std::path::Path;

use kit::Ours;
use tally_engine::kv::BlockTable;
use tally_engine::model::{Batch, Logits, Segment};
use tally_engine::{Engine, EngineOptions};

const CHUNK: usize = 512;

fn main() {
    let of: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [path, threads, text, chunks] = of.as_slice() else { return };
    let (path, threads) = (Path::new(path), threads.parse().unwrap());
    let text = std::fs::read_to_string(text).unwrap();
    let ids = Engine::load(path, EngineOptions::default()).unwrap().encode_raw(&text).unwrap();
    let mut ours = Ours::load(path, threads, None);
    let table = ours.kv.allocate(CHUNK).unwrap();
    let chunks = ids.chunks_exact(CHUNK).take(chunks.parse().unwrap());
    let surprise: Vec<f64> = chunks.map(|chunk| surprise(&mut ours, &table, chunk)).collect();
    let mean = surprise.iter().sum::<f64>() / surprise.len() as f64;
    let perplexity = f64::exp(mean);
    println!("{}", serde_json::json!({"perplexity": perplexity, "surprise": surprise}));
}

/// Mean surprise of the tokens that are predicted in a chunk, nats.
fn surprise(ours: &mut Ours, table: &BlockTable, chunk: &[u32]) -> f64 {
    let vocab = ours.model.config().vocab_size;
    let segment = Segment { tokens: chunk, start: 0, table, logits: Logits::All };
    let batch = Batch { segments: vec![segment] };
    let logits = ours.model.forward(&batch, &mut ours.kv).unwrap().logits;
    let predicted = CHUNK / 2..CHUNK - 1;
    let count = predicted.len() as f64;
    let each = predicted.map(|at| {
        let row = &logits[at * vocab..(at + 1) * vocab];
        let max = row.iter().fold(f32::MIN, |max, x| max.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        sum.ln() - f64::from(row[chunk[at + 1] as usize] - max)
    });
    each.sum::<f64>() / count
}
