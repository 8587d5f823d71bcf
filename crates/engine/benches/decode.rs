//! Speed of decode and prefill, and of candle-transformers' quantised Llama in the same run.
//!
//! ```text
//! TALLY_TEST_MODEL=model.gguf cargo bench -p tally-engine --bench decode [-- THREADS [ROUNDS]]
//! ```
//! Rounds go ours, theirs, ours, theirs…: machines are shared and noisy, so quote the ratio of
//! medians beside the numbers. Under `cargo test` it runs one short round.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod kit;

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use kit::{Ours, tokens};
use tally_engine::kv::BlockTable;

const PROMPT: usize = 512;

struct Theirs(ModelWeights);

impl Theirs {
    fn load(path: &Path) -> Theirs {
        let mut file = std::fs::File::open(path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        Theirs(ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap())
    }

    fn forward(&mut self, tokens: &[u32], start: usize) -> f64 {
        let begin = Instant::now();
        let x = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        self.0.forward(&x, start).unwrap();
        begin.elapsed().as_secs_f64()
    }
}

#[derive(Default)]
struct Samples {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Samples {
    fn print(&mut self, what: &str) {
        let ours = median(&mut self.ours);
        let spread = (self.ours[0], self.ours[self.ours.len() - 1]);
        print!("{what:<28} {ours:8.1} tok/s ({:.1} to {:.1})", spread.0, spread.1);
        match self.theirs.is_empty() {
            true => println!(),
            false => {
                let theirs = median(&mut self.theirs);
                println!("   candle {theirs:7.1}   ratio {:.2}", ours / theirs);
            }
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let threads = numbers.first().copied().unwrap_or(2);
    let rounds = numbers.get(1).copied().unwrap_or(if is_bench { 7 } else { 1 });
    let path: PathBuf = std::env::var_os("TALLY_TEST_MODEL")
        .expect("TALLY_TEST_MODEL must name the model file")
        .into();
    let tokens = tokens(PROMPT);
    let mut ours = Ours::load(&path, threads, None);
    let mut theirs = Theirs::load(&path);
    println!("{:?}, {threads} threads, {rounds} rounds, medians", ours.model.isa());
    let tables: Vec<BlockTable> = (0..8).map(|_| ours.kv.allocate(PROMPT * 2).unwrap()).collect();
    let (mut prefill, mut decode, mut deep) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut four, mut eight) = (Samples::default(), Samples::default());
    let steps = 32;
    for _ in 0..rounds {
        prefill.ours.push(PROMPT as f64 / ours.prefill(&tables[0], &tokens, 128));
        prefill.theirs.push(64.0 / theirs.forward(&tokens[..64], 0));
        decode.ours.push(steps as f64 / ours.decode(&tables[..1], 16, steps));
        theirs.forward(&tokens[..4], 0);
        let seconds: f64 = (0..8).map(|i| theirs.forward(&tokens[..1], 4 + i)).sum();
        decode.theirs.push(8.0 / seconds);
        deep.ours.push(steps as f64 / ours.decode(&tables[..1], PROMPT, steps));
        four.ours.push(4.0 * steps as f64 / ours.decode(&tables[..4], 16, steps));
        eight.ours.push(8.0 * steps as f64 / ours.decode(&tables, 16, steps));
    }
    prefill.print("prefill 512 (theirs 64)");
    decode.print("decode, depth 16");
    deep.print("decode, depth 512");
    four.print("decode, 4 sequences");
    eight.print("decode, 8 sequences");
}
