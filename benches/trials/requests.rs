//! What clients ask, and on which engine: all of it at random.

use std::collections::BTreeMap;

use tally::engine::{Prompt, Turn};
use tally::session::{Credential, PromptInput, PromptRequest, SamplingInput};
use tally::units::JobId;
use tally_engine::{EngineOptions, Isa, KvType, SharePrefixes};

use crate::lots::Lots;

/// How a client reads its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// As a stream, to the end.
    Streams,
    /// As one body.
    Whole,
    /// As a stream; it is gone after so many tokens.
    Leaves(u32),
    /// As a stream; the engine is stopped after so many tokens.
    Stops(u32),
}

const WORDS: [&str; 24] = [
    "river", "the", "of", "lamp", "and", "Rome", "seven", "winter", "blue", "house", "a", "sea",
    "cook", "bread", "who", "runs", "under", "12", "stars,", "ship.", "is", "in", "café", "日本",
];

/// Beginnings that several sessions share.
const BEGINNINGS: [&str; 3] = [
    "The keeper of the lighthouse climbed the stairs and lit the lamp. ",
    "You are a helpful pilot. Answer in one line. ",
    "Once upon a time ",
];

const STOPS: [&str; 8] = ["e", " a", "\n", "th", ".", "in", "er ", "qu"];

fn words(lots: &mut Lots, count: usize) -> String {
    (0..count).map(|_| lots.of_these(&WORDS)).collect::<Vec<_>>().join(" ")
}

/// What a model bears.
pub struct Size {
    pub vocab: usize,
    pub eos_ids: Vec<u32>,
    pub is_real: bool,
    /// Whether only a few tokens may be computed.
    pub is_slow: bool,
}

/// A request of `job`, and how its answer is read.
pub fn ask(lots: &mut Lots, (job, model): (JobId, &str), size: &Size) -> (PromptRequest, Reader) {
    let max_tokens = max_tokens(lots, size);
    let request = PromptRequest {
        job: Some(job),
        credential: Credential::JobNumber,
        chain_id: None,
        model: model.to_owned(),
        input: input(lots, size),
        max_tokens,
        sampling: sampling(lots, size),
        user_nonce: lots.is(40).then(|| lots.hash()),
    };
    let most = max_tokens.min(40) as usize;
    let reader = match lots.below(10) {
        0..5 => Reader::Streams,
        5..8 => Reader::Whole,
        _ => Reader::Leaves(lots.below(most + 1) as u32),
    };
    (request, reader)
}

fn input(lots: &mut Lots, size: &Size) -> PromptInput {
    let (short, long) = if size.is_slow { (1, 3) } else { (1, 14) };
    let count = lots.within(short, long);
    let content = words(lots, count);
    let beginning = lots.of_these(&BEGINNINGS);
    let is_short = size.is_slow || !lots.is(50);
    let text = if is_short { content } else { format!("{beginning}{content}") };
    let role = "user".to_owned();
    match lots.below(10) {
        0..4 => PromptInput::Continue(text),
        4..7 => PromptInput::Complete(Prompt::Chat(vec![Turn { role, content: text }])),
        _ => PromptInput::Complete(Prompt::Raw(text)),
    }
}

fn max_tokens(lots: &mut Lots, size: &Size) -> u64 {
    let wanted = match (size.is_real, lots.below(10)) {
        (_, 0..2) => 1,
        (_, 2..4) => lots.within(2, 8),
        (true, _) => lots.within(9, 72),
        (false, 4..8) => lots.within(9, 60),
        // Up to the end of the context.
        (false, _) => 1000,
    };
    let most = if size.is_slow { 3 } else { 1000 };
    wanted.min(most) as u64
}

fn sampling(lots: &mut Lots, size: &Size) -> SamplingInput {
    let mut sampling = SamplingInput {
        temperature: lots.of_these(&[0.0, 0.0, 0.3, 0.7, 1.0, 1.0, 1.5, 2.0]),
        top_k: lots.of_these(&[0, 0, 0, 1, 5, 40]),
        top_p: lots.of_these(&[1.0, 1.0, 1.0, 0.95, 0.5, 0.0]),
        min_p: lots.of_these(&[0.0, 0.0, 0.0, 0.05, 0.3]),
        repetition_penalty: lots.of_these(&[1.0, 1.0, 1.0, 1.1, 1.5, 0.8]),
        frequency_penalty: lots.of_these(&[0.0, 0.0, 0.0, 0.5, -0.5, 2.0]),
        presence_penalty: lots.of_these(&[0.0, 0.0, 0.0, 0.7, -1.0]),
        logit_bias: BTreeMap::new(),
        logprobs: lots.of_these(&[None, None, None, Some(0), Some(3)]),
        seed: lots.is(30).then(|| lots.next()),
        stop: Vec::new(),
        ignore_eos: lots.is(15),
    };
    if lots.is(25) {
        for _ in 0..lots.within(1, 6) {
            let bias = lots.below(2001) as f64 / 100.0 - 10.0;
            sampling.logit_bias.insert(lots.below(size.vocab) as u32, bias);
        }
    }
    if lots.is(30) && !size.eos_ids.is_empty() {
        let eos = lots.of_these(&size.eos_ids);
        sampling.logit_bias.insert(eos, lots.within(1, 12) as f64);
    }
    if lots.is(25) {
        sampling.stop = (0..lots.within(1, 4)).map(|_| lots.of_these(&STOPS).to_owned()).collect();
    }
    sampling
}

/// Instruction sets that this machine has beside plain Rust; that one where it has no other.
fn fast_isas() -> Vec<Isa> {
    let is_fast = |isa: &Isa| *isa != Isa::Scalar && isa.is_available();
    let fast: Vec<Isa> = Isa::ALL.into_iter().filter(is_fast).collect();
    if fast.is_empty() { vec![Isa::Scalar] } else { fast }
}

/// An engine to serve with.
pub fn options(lots: &mut Lots, is_real: bool) -> EngineOptions {
    // Plain Rust is a hundred times slower: with a real model it has few trials.
    let is_scalar = lots.is(if is_real { 8 } else { 20 });
    let fast = lots.of_these(&fast_isas());
    let isa = if is_scalar { Isa::Scalar } else { fast };
    let tiny_kv = [192 << 10, 1 << 20, 16 << 20];
    EngineOptions {
        threads: lots.within(1, if is_real { 3 } else { 4 }),
        kv_memory_bytes: if is_real { 64 << 20 } else { lots.of_these(&tiny_kv) },
        running_max: lots.of_these(&[1, 2, 4, 8]),
        queue_max: 64,
        prefill_chunk: lots.of_these(&[16, 32, 64, 200]),
        speculation: lots.is(60),
        share_prefixes: lots.of_these(&[
            SharePrefixes::WithinOwner,
            SharePrefixes::Everyone,
            SharePrefixes::Nobody,
        ]),
        isa: Some(isa),
        ..EngineOptions::default()
    }
}

/// What keys and values are stored as: part of what is claimed.
pub fn kv_type(lots: &mut Lots) -> KvType {
    if lots.is(25) { KvType::F32 } else { KvType::F16 }
}
