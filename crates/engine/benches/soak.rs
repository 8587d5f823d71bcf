//! Many sessions on one engine for a long time, with readers that leave at random: whether
//! blocks leak, anybody starves, memory grows, or a text changes. `scripts/bench/soak.sh` runs it.
//!
//! ```text
//! soak MODEL THREADS SECONDS [SEED]     prints one JSON object
//! ```
//! Sessions are conversations: each turn's prompt is all that was said before, and something new.
//! The KV memory holds about half of what they come to, so blocks are shared, evicted and taken
//! from running sequences all the time. Under `cargo test` it has no arguments and does nothing.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use tally_engine::{
    Engine, EngineOptions, Event, EventSink, FinishReason, Sampling, SequenceRequest,
};

const SESSIONS: usize = 24;
/// Ids of a conversation before it begins anew.
const HISTORY_MAX: usize = 500;
/// For [`SESSIONS`] conversations of up to [`HISTORY_MAX`] tokens, 23 KB each, by about half.
const KV_MEMORY_BYTES: u64 = 128 << 20;

/// A plain generator, so that a run can be repeated from its seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }
}

struct Tap(Sender<Event>);

impl EventSink for Tap {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        // A reader that left is told nothing.
        let _ = self.0.send(event);
    }
}

/// What a session saw.
#[derive(Default)]
struct Seen {
    requests: u64,
    cancelled: u64,
    tokens: u64,
    cached_tokens: u64,
    errors: u64,
    /// Seconds with a request under way.
    busy_seconds: f64,
    /// One request that was read to its end, and its answer.
    sample: Option<(SequenceRequest, Vec<u32>)>,
}

impl Seen {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.busy_seconds.max(1e-9)
    }
}

/// Runs a request; its ids if it was read to the end.
fn run(engine: &Engine, request: &SequenceRequest, leave_after: u32, seen: &mut Seen) -> Vec<u32> {
    let (sender, events) = channel();
    let begin = Instant::now();
    let handle = engine.start(request.clone(), Box::new(Tap(sender))).unwrap();
    let mut handle = Some(handle);
    let mut ids = Vec::new();
    for event in events {
        match event {
            Event::Prefilled { cached_tokens, .. } => {
                seen.cached_tokens += u64::from(cached_tokens)
            }
            Event::Token { id, .. } => {
                ids.push(id);
                if ids.len() as u32 == leave_after {
                    // Every other one says so, the others are just gone.
                    match leave_after % 2 {
                        0 => handle.as_ref().into_iter().for_each(|handle| handle.cancel()),
                        _ => handle = None,
                    }
                }
            }
            Event::Finished { reason, .. } => {
                seen.errors += u64::from(matches!(reason, FinishReason::Error(_)));
                seen.cancelled += u64::from(reason == FinishReason::Cancelled);
            }
        }
    }
    seen.requests += 1;
    seen.tokens += ids.len() as u64;
    seen.busy_seconds += begin.elapsed().as_secs_f64();
    ids
}

/// Converses until the time is over.
fn converse(engine: &Engine, number: usize, seed: u64, until: Instant) -> Seen {
    let mut draw = Draw(seed.wrapping_mul(1000) + number as u64);
    let mut seen = Seen::default();
    let mut history: Vec<u32> = Vec::new();
    while Instant::now() < until {
        if history.len() > HISTORY_MAX || draw.below(10) == 0 {
            history.clear();
            // What every conversation of an owner begins with.
            history.extend((0..40).map(|i| 400 + i * 11 + number as u32 / 2));
        }
        history.extend((0..5 + draw.below(60)).map(|_| 300 + draw.below(3000)));
        let request = SequenceRequest {
            prompt_ids: history.clone(),
            max_tokens: 10 + draw.below(200),
            sampling: Sampling {
                temperature: 0.8,
                seed: [draw.below(256) as u8; 32],
                ..Sampling::greedy()
            },
            stop: Vec::new(),
            ignore_eos: false,
            owner: Some([(number / 2) as u8; 32]),
        };
        let leave_after = if draw.below(3) == 0 { 1 + draw.below(60) } else { u32::MAX };
        let ids = run(engine, &request, leave_after, &mut seen);
        if leave_after == u32::MAX && draw.below(4) == 0 {
            seen.sample = Some((request, ids.clone()));
        }
        history.extend(ids);
    }
    seen
}

/// Mebibytes that are in memory.
fn rss_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    (pages * 4096) >> 20
}

fn main() {
    let of: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [path, threads, seconds, seed @ ..] = of.as_slice() else { return };
    let seed: u64 = seed.first().map_or(1, |seed| seed.parse().unwrap());
    let seconds: u64 = seconds.parse().unwrap();
    let options = EngineOptions {
        threads: threads.parse().unwrap(),
        kv_memory_bytes: KV_MEMORY_BYTES,
        running_max: 16,
        ..EngineOptions::default()
    };
    let engine = Engine::load(Path::new(path), options).unwrap();
    let begin = Instant::now();
    let until = begin + Duration::from_secs(seconds);
    let (seen, rss_early): (Vec<Seen>, u64) = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let engine = &engine;
                scope.spawn(move || converse(engine, number, seed, until))
            })
            .collect();
        // By then the cache is full, and all that is ever allocated is.
        std::thread::sleep(Duration::from_secs(seconds.div_ceil(4)));
        let rss_early = rss_mib();
        (sessions.into_iter().map(|session| session.join().unwrap()).collect(), rss_early)
    });
    let rss_end = rss_mib();
    while engine.load_state().running + engine.load_state().queued > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let load = engine.load_state();
    report(
        &engine,
        &seen,
        (rss_early, rss_end),
        (load.kv_blocks_total - load.kv_blocks_free, seed),
    );
}

fn report(engine: &Engine, seen: &[Seen], rss: (u64, u64), (leaked_blocks, seed): (usize, u64)) {
    // The cache is left out, and the answers must be the same.
    let again = |(request, ids): &(SequenceRequest, Vec<u32>)| {
        let request = SequenceRequest { owner: None, ..request.clone() };
        run(engine, &request, u32::MAX, &mut Seen::default()) == *ids
    };
    let samples: Vec<bool> =
        seen.iter().filter_map(|seen| seen.sample.as_ref()).map(again).collect();
    let mean = seen.iter().map(Seen::rate).sum::<f64>() / seen.len() as f64;
    let slowest = seen.iter().map(Seen::rate).fold(f64::INFINITY, f64::min);
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let load = engine.load_state();
    println!(
        "{{\"figure\":\"soak\",\"seed\":{seed},\"sessions\":{},\"requests\":{},\"cancelled\":{},\
         \"errors\":{},\"tokens\":{},\"cached_tokens\":{},\"leaked_blocks\":{leaked_blocks},\
         \"rate_mean\":{mean:.2},\"rate_slowest\":{slowest:.2},\"slowest_to_mean\":{:.3},\
         \"rss_mib_early\":{},\"rss_mib_end\":{},\"preemptions\":{},\"evictions\":{},\"hits\":{},\
         \"answers_compared\":{},\"answers_that_differ\":{}}}",
        seen.len(),
        sum(|seen| seen.requests),
        sum(|seen| seen.cancelled),
        sum(|seen| seen.errors),
        sum(|seen| seen.tokens),
        sum(|seen| seen.cached_tokens),
        slowest / mean,
        rss.0,
        rss.1,
        load.preemptions,
        load.cache.evictions,
        load.cache.hits,
        samples.len(),
        samples.iter().filter(|is_same| !**is_same).count(),
    );
}
