//! Loading under watch: what is allocated, and what comes of it.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use peak_alloc::PeakAlloc;
use tally_engine::model::Model;
use tally_engine::{
    Engine, EngineOptions, Event, EventSink, FinishReason, LoadError, Sampling, SequenceRequest,
};

/// Bytes that a load of one of these tests' files may hold at once, cache and threads included.
/// The sound one takes 1.7 MB, most of it cache, and other tests' own files count too; one count
/// of a file that is believed takes gigabytes.
const PEAK_MAX: usize = 16 << 20;

/// One load at a time: the counters are the process's.
static TURN: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs `load`; the bytes that it held at once, beyond what was there before.
fn watch<T>(load: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let result = load();
    (result, ALLOCATOR.peak_usage().saturating_sub(before))
}

struct Sink(Sender<Event>);

impl EventSink for Sink {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        // The test may have seen enough.
        let _ = self.0.send(event);
    }
}

/// A folder for files that are written and read at once: in memory, where there is such.
pub fn folder() -> tempfile::TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).unwrap()
}

/// Loads the model and, if it loads, generates two tokens with it. Fails the test if too much
/// was allocated, or if a model that loaded can't be run.
pub fn load(path: &Path, what: &str) -> Result<(), LoadError> {
    // A test that failed under the lock says all that there is to say.
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let options =
        EngineOptions { threads: 1, kv_memory_bytes: 1 << 20, ..EngineOptions::default() };
    let (loaded, peak) = watch(|| Engine::load(path, options).and_then(|engine| run(&engine)));
    assert!(peak <= PEAK_MAX, "{what}: {peak} bytes were held at once");
    loaded
}

/// As [`load`], without a tokenizer and without running it.
pub fn watch_model(path: &Path, what: &str) -> Result<(), LoadError> {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let (loaded, peak) = watch(|| Model::load(path, 1, None).map(drop));
    assert!(peak <= PEAK_MAX, "{what}: {peak} bytes were held at once");
    loaded
}

fn run(engine: &Engine) -> Result<(), LoadError> {
    let ids = engine.encode_raw("a b").map_err(|e| LoadError::Tokenizer(e.to_string()))?;
    let (sender, events) = channel();
    let request = SequenceRequest {
        prompt_ids: ids,
        max_tokens: 2,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        ignore_eos: false,
        owner: None,
    };
    // A file may change what text becomes; then the engine refuses the ids, and that is fine.
    let Ok(_handle) = engine.start(request, Box::new(Sink(sender))) else {
        return Ok(());
    };
    let end = events.iter().find_map(|event| match event {
        Event::Finished { reason, .. } => Some(reason),
        _ => None,
    });
    match end {
        // Spoiled weights may give logits that are no numbers; that ends a sequence in order.
        Some(FinishReason::Error(why)) if why.contains("failed") => {
            panic!("a model that loaded fails to run: {why}")
        }
        Some(_) => Ok(()),
        None => panic!("a sequence without an end"),
    }
}
