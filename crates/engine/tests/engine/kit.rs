//! What the tests share: the model, channels as sinks, requests.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use tally_engine::{
    ChatTurn, Engine, EngineLoad, EngineOptions, Event, EventSink, FinishReason, Sampling,
    SequenceRequest, TokenLogprobs,
};

/// As much room for events as anybody needs.
pub const ROOM: usize = usize::MAX / 2;

/// The model file; a missing variable fails the test with its name.
pub fn model_path() -> PathBuf {
    std::env::var_os("TALLY_TEST_MODEL")
        .expect(
            "TALLY_TEST_MODEL must name SmolLM2-135M-Instruct.Q4_1.gguf (scripts/fetch-model.sh)",
        )
        .into()
}

pub fn options() -> EngineOptions {
    EngineOptions { threads: 2, kv_memory_bytes: 256 << 20, ..EngineOptions::default() }
}

pub fn load(options: EngineOptions) -> Engine {
    Engine::load(&model_path(), options).unwrap()
}

/// One engine for all tests that only start sequences.
pub fn shared() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| load(options())).clone()
}

/// A sink with as much room as a test gives it.
pub struct Tap {
    sender: Sender<Event>,
    pub room: Arc<AtomicUsize>,
    pub closed: Arc<AtomicBool>,
}

impl Tap {
    pub fn new(room: usize) -> (Tap, Receiver<Event>) {
        let (sender, receiver) = channel();
        let room = Arc::new(AtomicUsize::new(room));
        (Tap { sender, room, closed: Arc::default() }, receiver)
    }
}

impl EventSink for Tap {
    fn is_ready(&self) -> bool {
        self.room.load(Ordering::SeqCst) > 0
    }
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
    fn emit(&mut self, event: Event) {
        assert!(self.room.fetch_sub(1, Ordering::SeqCst) > 0, "an event without room");
        // The test may have seen enough.
        let _ = self.sender.send(event);
    }
}

/// What a sequence gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Prompt tokens that were not computed again.
    pub cached: u32,
    pub ids: Vec<u32>,
    pub texts: Vec<String>,
    /// Digests of the hidden states, of each token.
    pub states: Vec<Option<[u8; 32]>>,
    /// Of each token; `None` where they weren't asked for.
    pub logprobs: Vec<Option<Box<TokenLogprobs>>>,
    pub reason: FinishReason,
    pub tail: String,
    pub counted: u32,
}

impl Answer {
    pub fn text(&self) -> String {
        self.texts.concat() + &self.tail
    }
}

/// Reads events to the end; checks their order and count.
pub fn collect(events: &Receiver<Event>) -> Answer {
    let (mut ids, mut texts, mut states, mut logprobs) = (vec![], vec![], vec![], vec![]);
    let (mut prefilled, mut cached) = (0, 0);
    for event in events {
        match event {
            Event::Prefilled { cached_tokens, .. } => {
                cached = cached_tokens;
                assert!(ids.is_empty(), "prefill is told before tokens");
                prefilled += 1;
            }
            Event::Token { id, text, logprobs: told, state_digest } => {
                states.push(state_digest);
                logprobs.push(told);
                ids.push(id);
                texts.push(text);
            }
            Event::Finished { reason, tail_text: tail, completion_tokens: counted } => {
                assert_eq!(counted as usize, ids.len(), "counted are the tokens that came");
                assert!(prefilled == 1 || ids.is_empty());
                assert!(events.try_recv().is_err(), "nothing comes after the end");
                return Answer { cached, ids, texts, states, logprobs, reason, tail, counted };
            }
        }
    }
    panic!("the sink was dropped without an end");
}

pub fn user(content: &str) -> ChatTurn {
    ChatTurn { role: "user".into(), content: content.into() }
}

pub fn request(prompt_ids: Vec<u32>, max_tokens: u32) -> SequenceRequest {
    let (sampling, stop) = (Sampling::greedy(), Vec::new());
    SequenceRequest { prompt_ids, max_tokens, sampling, stop, ignore_eos: false, owner: None }
}

/// Starts a request with endless room and waits for its end.
pub fn answer(engine: &Engine, request: SequenceRequest) -> Answer {
    let (tap, events) = Tap::new(ROOM);
    let _handle = engine.start(request, Box::new(tap)).unwrap();
    collect(&events)
}

/// Waits until the engine's load satisfies `until`; the engine publishes it every step.
pub fn wait_for(engine: &Engine, until: impl Fn(EngineLoad) -> bool) -> EngineLoad {
    loop {
        let load = engine.load_state();
        if until(load) {
            return load;
        }
        std::thread::yield_now();
    }
}

/// Nothing runs, nothing waits, and no block is held.
pub fn is_empty(load: EngineLoad) -> bool {
    load.running == 0 && load.queued == 0 && load.kv_blocks_free == load.kv_blocks_total
}
