//! The engine's perplexity on the committed text, by llama-perplexity's rule:
//! `scripts/bench/perplexity.sh` sets the two side by side.
//!
//! ```text
//! perplexity MODEL THREADS     prints one number
//! ```
//! Chunks of 512 tokens, each from an empty cache; the last 255 of each are predicted. Under
//! `cargo test` it has no arguments and does nothing.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod kit;

use std::path::Path;

use kit::Ours;
use tally_engine::model::{Batch, Logits, Segment};
use tally_engine::{Engine, EngineOptions};

const TEXT: &str = include_str!("../tests/fixtures/reference/perplexity.txt");
const CHUNK: usize = 512;

fn main() {
    let of: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [path, threads] = of.as_slice() else { return };
    let (path, threads) = (Path::new(path), threads.parse().unwrap());
    let ids = Engine::load(path, EngineOptions::default()).unwrap().encode_raw(TEXT).unwrap();
    let mut ours = Ours::load(path, threads, None);
    let vocab = ours.model.config().vocab_size;
    let table = ours.kv.allocate(CHUNK).unwrap();
    let (mut surprise, mut predicted) = (0.0, 0.0);
    for chunk in ids.chunks_exact(CHUNK) {
        let segment = Segment { tokens: chunk, start: 0, table: &table, logits: Logits::All };
        let batch = Batch { segments: vec![segment] };
        let logits = ours.model.forward(&batch, &mut ours.kv).unwrap().logits;
        for at in CHUNK / 2..CHUNK - 1 {
            let row = &logits[at * vocab..(at + 1) * vocab];
            let max = row.iter().fold(f32::MIN, |max, x| max.max(*x));
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            surprise += sum.ln() - f64::from(row[chunk[at + 1] as usize] - max);
            predicted += 1.0;
        }
    }
    println!("{:.4}", f64::exp(surprise / predicted));
}
