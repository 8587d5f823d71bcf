//! What it costs to derive an answer again, beside what it cost to generate it.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use tally_engine::{
    ClaimedEnd, ClaimedTurn, Engine, EngineOptions, Event, EventSink, Replay, Sampling,
    SequenceRequest,
};

use crate::kit::tokens;

/// Tokens of the prompt.
const PROMPT: usize = 64;
const ROUNDS: u8 = 5;
/// Rows of a step of the derivation.
const ROWS: usize = 128;

struct Timed(Sender<(Instant, Event)>);

impl EventSink for Timed {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        self.0.send((Instant::now(), event)).unwrap();
    }
}

/// Generates `size` tokens as a node does, one stream alone, and derives them again. Prints the
/// seconds of both, prompts left out, and their ratio.
pub fn compare(path: &Path, options: EngineOptions, size: usize) {
    let engine = Engine::load(path, options.clone()).unwrap();
    let mut replay = Replay::load(path, EngineOptions { prefill_chunk: ROWS, ..options }).unwrap();
    let (mut generated, mut derived) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let sampling =
            Sampling { temperature: 0.8, top_p: 0.95, seed: [round; 32], ..Sampling::greedy() };
        let request = SequenceRequest {
            prompt_ids: tokens(PROMPT),
            max_tokens: size as u32,
            sampling,
            stop: Vec::new(),
            ignore_eos: true,
            owner: None,
        };
        let (seconds, output_ids) = generate(&engine, request.clone());
        generated.push(seconds);
        let turn = ClaimedTurn { request, output_ids, end: ClaimedEnd::Length };
        if round == 0 {
            // The prompt is in the cache from then on.
            replay.turn(&turn).unwrap();
        }
        let begin = Instant::now();
        let found = replay.turn(&turn).unwrap();
        derived.push(begin.elapsed().as_secs_f64());
        assert!(found.fault.is_none() && found.state_digests.len() == size, "{:?}", found.fault);
    }
    let ratio: Vec<f64> = derived.iter().zip(&generated).map(|(d, g)| d / g).collect();
    println!("{:.4} {:.4} {:.4}", median(generated), median(derived), median(ratio));
}

/// Seconds from the first token to the last, as if the first had cost as much; and the ids.
fn generate(engine: &Engine, request: SequenceRequest) -> (f64, Vec<u32>) {
    let (sender, events) = channel();
    let _handle = engine.start(request, Box::new(Timed(sender))).unwrap();
    let (mut ids, mut times) = (Vec::new(), Vec::new());
    for (time, event) in events {
        if let Event::Token { id, .. } = event {
            ids.push(id);
            times.push(time);
        }
    }
    let between = times[times.len() - 1] - times[0];
    (between.as_secs_f64() * ids.len() as f64 / (ids.len() - 1) as f64, ids)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
