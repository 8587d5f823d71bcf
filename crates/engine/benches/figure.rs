//! One figure of the engine's speed, in a process of its own, as `llama-bench` measures its own:
//! `scripts/bench/engine.sh` runs the two in turn.
//!
//! ```text
//! figure MODEL THREADS WORK [ISA]     prints tokens a second
//!   WORK: decode-DEPTH, prefill-TOKENS, batch-SEQUENCES or replay-TOKENS
//!   ISA:  scalar, avx2, avx512 or amx (default: the best there is)
//! ```
//! Of `replay` it prints the seconds in which an answer of so many tokens is generated and in
//! which it is derived again, each without its prompt, and their ratio: medians of five rounds.
//! Under `cargo test` it has no arguments and does nothing.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod kit;
#[path = "kit/replay.rs"]
mod replay;

use std::path::Path;

use kit::{Ours, tokens};
use tally_engine::kv::BlockTable;
use tally_engine::{EngineOptions, Isa};

/// Tokens to a prefill chunk; the node's default is 64.
const CHUNK: usize = 128;
/// Steps of a decode: as many as the peer is asked for.
const STEPS: usize = 64;

fn main() {
    let of: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [path, threads, work, isa @ ..] = of.as_slice() else { return };
    let isa = isa.first().map(|name| match name.as_str() {
        "scalar" => Isa::Scalar,
        "avx2" => Isa::Avx2,
        "avx512" => Isa::Avx512Vnni,
        "amx" => Isa::Amx,
        other => panic!("no instruction set is called {other}"),
    });
    let threads = threads.parse().unwrap();
    let (work, size) = work.split_once('-').expect("WORK-SIZE");
    let size: usize = size.parse().unwrap();
    if work == "replay" {
        let options = EngineOptions { threads, isa, ..EngineOptions::default() };
        return replay::compare(Path::new(path), options, size);
    }
    let mut ours = Ours::load(Path::new(path), threads, isa);
    let speed = match work {
        "decode" => {
            let table = ours.kv.allocate(size + STEPS).unwrap();
            if size > 0 {
                ours.prefill(&table, &tokens(size), CHUNK);
            }
            // A first token wakes threads and caches, as the peer's warm-up does.
            ours.decode(std::slice::from_ref(&table), size, 1);
            STEPS as f64 / ours.decode(&[table], size, STEPS)
        }
        "prefill" => {
            let table = ours.kv.allocate(size).unwrap();
            ours.prefill(&table, &tokens(CHUNK), CHUNK);
            size as f64 / ours.prefill(&table, &tokens(size), CHUNK)
        }
        "batch" => {
            let tables: Vec<BlockTable> =
                (0..size).map(|_| ours.kv.allocate(CHUNK + STEPS).unwrap()).collect();
            for table in &tables {
                ours.prefill(table, &tokens(CHUNK), CHUNK);
            }
            (size * STEPS) as f64 / ours.decode(&tables, CHUNK, STEPS)
        }
        other => panic!("no work is called {other}"),
    };
    println!("{speed:.2}");
}
