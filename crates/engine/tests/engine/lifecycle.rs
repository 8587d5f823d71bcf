//! Starting, refusing, pausing, cancelling, failing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};

use tally_engine::{
    Engine, EngineOptions, Event, EventSink, FinishReason, LoadError, Sampling, SequenceRequest,
    StartError,
};

use crate::kit::{
    ROOM, Tap, answer, collect, is_empty, load, model_path, options, request, shared, wait_for,
};

fn refusal(engine: &Engine, request: SequenceRequest) -> StartError {
    let (tap, events) = Tap::new(ROOM);
    let refused = engine.start(request, Box::new(tap)).err().unwrap();
    assert!(events.recv().is_err(), "a refused request has no events");
    refused
}

#[test]
fn what_can_never_be_served_is_refused_at_the_start() {
    let engine = shared();
    let context = engine.info().context_length;
    assert_eq!(refusal(&engine, request(vec![], 1)), StartError::EmptyPrompt);
    for over in [0, 1] {
        let prompt_tokens = context + over;
        let refused = refusal(&engine, request(vec![5; prompt_tokens as usize], 1));
        let expected = StartError::ContextTooLong { prompt_tokens, context_length: context };
        assert_eq!(refused, expected);
    }
    let vocab_size = engine.info().vocab_size;
    let sampled = |sampling| SequenceRequest { sampling, ..request(vec![5], 1) };
    let stranger = [(vocab_size, 1.0)].into();
    for (name, bad) in [
        ("max_tokens", request(vec![5], 0)),
        ("prompt", request(vec![vocab_size], 1)),
        ("stop", SequenceRequest { stop: vec![String::new()], ..request(vec![5], 1) }),
        ("top_p", sampled(Sampling { top_p: 2.0, ..Sampling::greedy() })),
        ("logit_bias", sampled(Sampling { logit_bias: stranger, ..Sampling::greedy() })),
        ("logprobs", sampled(Sampling { logprobs: Some(21), ..Sampling::greedy() })),
    ] {
        match refusal(&engine, bad) {
            StartError::InvalidSetting { setting, .. } => assert_eq!(setting, name),
            other => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn a_request_larger_than_the_whole_cache_is_refused_and_one_that_fits_runs() {
    // 30 layers × 2 × 3 heads × 64 × 16 tokens × 2 bytes = 368 640 bytes a block.
    let engine = load(EngineOptions { kv_memory_bytes: 2 * 368_640, ..options() });
    let refused = refusal(&engine, request(vec![5; 3], 30));
    assert_eq!(refused, StartError::KvBudget { blocks_needed: 3, blocks_total: 2 });
    assert_eq!(answer(&engine, request(vec![5; 3], 29)).counted, 29);
    wait_for(&engine, is_empty);
}

#[test]
fn the_queue_is_bounded() {
    let engine = load(EngineOptions { running_max: 1, queue_max: 1, ..options() });
    let start = || {
        // Without room nothing moves, so the count below is certain.
        let (tap, _) = Tap::new(0);
        engine.start(request(vec![5; 4], 4), Box::new(tap))
    };
    let (first, second) = (start().unwrap(), start().unwrap());
    let load = wait_for(&engine, |load| load.running + load.queued == 2);
    assert!(load.running <= 1);
    assert_eq!(start().err(), Some(StartError::QueueFull { waiting: 2 }));
    drop((first, second));
    wait_for(&engine, is_empty);
    assert_eq!(answer(&engine, request(vec![5; 4], 4)).counted, 4);
}

#[test]
fn a_sink_without_room_pauses_its_sequence_alone() {
    let engine = load(options());
    let free = answer(&engine, request(vec![5; 4], 10));
    let (tap, events) = Tap::new(3);
    let room = Arc::clone(&tap.room);
    let _handle = engine.start(request(vec![5; 4], 10), Box::new(tap)).unwrap();
    // Prefilled and two tokens; then it waits while another one runs to its end.
    let first: Vec<Event> = (0..3).map(|_| events.recv().unwrap()).collect();
    assert!(matches!(first[0], Event::Prefilled { prompt_tokens: 4, cached_tokens: 0 }));
    assert_eq!(answer(&engine, request(vec![5; 4], 10)), free);
    assert!(events.try_recv().is_err());
    wait_for(&engine, |load| load.running == 1);
    room.store(ROOM, Ordering::SeqCst);
    engine.wake();
    let mut ids: Vec<u32> = Vec::new();
    for event in first.into_iter().chain(&events) {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Finished { reason, completion_tokens, .. } => {
                assert_eq!((reason, completion_tokens), (FinishReason::Length, 10));
                break;
            }
            Event::Prefilled { .. } => {}
        }
    }
    assert_eq!(ids, free.ids);
}

#[test]
fn a_cancelled_sequence_is_told_so_and_gives_its_blocks_back() {
    let engine = load(options());
    let (tap, events) = Tap::new(ROOM);
    let handle = engine.start(request(vec![5; 40], 8000), Box::new(tap)).unwrap();
    while !matches!(events.recv().unwrap(), Event::Token { .. }) {}
    handle.cancel();
    let end = events.iter().find(|event| matches!(event, Event::Finished { .. }));
    let Some(Event::Finished { reason, completion_tokens, .. }) = end else { panic!("no end") };
    assert_eq!(reason, FinishReason::Cancelled);
    assert!((1..8000).contains(&completion_tokens));
    wait_for(&engine, is_empty);
}

#[test]
fn a_dropped_handle_or_a_closed_sink_ends_the_sequence() {
    let engine = load(options());
    for close in [false, true] {
        for room in [ROOM, 2, 0] {
            let (tap, _events) = Tap::new(room);
            let closed = Arc::clone(&tap.closed);
            let handle = engine.start(request(vec![5; 40], 8000), Box::new(tap)).unwrap();
            if close {
                closed.store(true, Ordering::SeqCst);
                engine.wake();
                wait_for(&engine, is_empty);
            }
            drop(handle);
            wait_for(&engine, is_empty);
        }
    }
}

/// The model's file with a context of 48 tokens: the number is patched in its metadata.
fn short_context(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(model_path()).unwrap();
    let key = b"llama.context_length";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // GGUF: value type (4 = u32), then the value, both little-endian.
    assert_eq!(bytes[at..at + 8], [4, 0, 0, 0, 0, 0x20, 0, 0]);
    bytes[at + 4..at + 8].copy_from_slice(&48u32.to_le_bytes());
    let path = folder.join("short.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn generation_ends_at_the_contexts_end() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::load(&short_context(folder.path()), options()).unwrap();
    assert_eq!(engine.info().context_length, 48);
    for prompt in [20, 46, 47] {
        let answer = answer(&engine, request(vec![5; prompt], 100));
        assert_eq!((answer.counted, answer.reason), (48 - prompt as u32, FinishReason::Length));
    }
    let refused = refusal(&engine, request(vec![5; 48], 1));
    assert_eq!(refused, StartError::ContextTooLong { prompt_tokens: 48, context_length: 48 });
}

#[test]
fn several_sequences_make_progress_together() {
    let engine = load(options());
    let start = |tokens| {
        let (tap, events) = Tap::new(ROOM);
        (engine.start(request(vec![5; 20], tokens), Box::new(tap)).unwrap(), events)
    };
    let (_long, long_events) = start(8000);
    while !matches!(long_events.recv().unwrap(), Event::Token { .. }) {}
    // Started later and done earlier: the long one didn't hold it up.
    let (_short, short_events) = start(5);
    assert_eq!(collect(&short_events).counted, 5);
    wait_for(&engine, |load| load.running == 1);
}

#[test]
fn a_shutdown_ends_every_sequence_and_refuses_new_ones() {
    let engine = load(EngineOptions { running_max: 1, ..options() });
    let started: Vec<_> = (0..3)
        .map(|_| {
            let (tap, events) = Tap::new(ROOM);
            (engine.start(request(vec![5; 4], 8000), Box::new(tap)).unwrap(), events)
        })
        .collect();
    engine.shutdown();
    for (_handle, events) in &started {
        assert!(matches!(collect(events).reason, FinishReason::Error(_)));
    }
    assert_eq!(refusal(&engine, request(vec![5], 1)), StartError::Stopped);
}

#[test]
fn a_panic_ends_every_sequence_and_later_starts_are_refused() {
    struct Bomb;
    impl EventSink for Bomb {
        fn is_ready(&self) -> bool {
            true
        }
        fn is_closed(&self) -> bool {
            false
        }
        fn emit(&mut self, _: Event) {
            panic!("on purpose");
        }
    }
    let engine = load(options());
    let (tap, events) = Tap::new(ROOM);
    let _other = engine.start(request(vec![5; 4], 8000), Box::new(tap)).unwrap();
    let _bomb = engine.start(request(vec![5; 4], 8), Box::new(Bomb)).unwrap();
    assert!(matches!(collect(&events).reason, FinishReason::Error(_)));
    assert_eq!(refusal(&engine, request(vec![5], 1)), StartError::Stopped);
}

/// The processors that the calling thread may run on.
fn processors() -> Vec<usize> {
    let mask = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect()
}

#[test]
fn a_model_is_kept_on_a_processor_only_where_that_is_wished() {
    struct Whereabouts(Sender<Vec<usize>>);
    impl EventSink for Whereabouts {
        fn is_ready(&self) -> bool {
            true
        }
        fn is_closed(&self) -> bool {
            false
        }
        fn emit(&mut self, _: Event) {
            self.0.send(processors()).unwrap();
        }
    }
    let own = processors();
    for (pin_threads, wanted) in [(false, &own[..]), (true, &own[..1])] {
        let engine = load(EngineOptions { threads: 1, pin_threads, ..options() });
        let (sender, places) = channel();
        let _handle = engine.start(request(vec![5; 4], 2), Box::new(Whereabouts(sender))).unwrap();
        let places: Vec<_> = places.iter().collect();
        assert_eq!(places, vec![wanted; places.len()], "pinned: {pin_threads}");
        assert!(places.len() > 2, "prefill, tokens, end");
        assert_eq!(processors(), own, "who loads a model stays free");
    }
}

#[test]
fn bad_options_and_files_are_refused_by_name() {
    let refused = |options: EngineOptions| match Engine::load(&model_path(), options).err() {
        Some(LoadError::Options { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(EngineOptions { threads: 0, ..options() }), "threads");
    let (threads, pin_threads) = (processors().len() + 1, true);
    assert_eq!(refused(EngineOptions { threads, pin_threads, ..options() }), "pin_threads");
    assert_eq!(refused(EngineOptions { running_max: 0, ..options() }), "running_max");
    assert_eq!(refused(EngineOptions { prefill_chunk: 15, ..options() }), "prefill_chunk");
    assert_eq!(refused(EngineOptions { kv_memory_bytes: 9, ..options() }), "kv_memory_bytes");
    let folder = tempfile::tempdir().unwrap();
    let missing = Engine::load(&folder.path().join("none.gguf"), options()).err();
    assert!(matches!(missing, Some(LoadError::Io { .. })), "{missing:?}");
    let junk = folder.path().join("junk.gguf");
    std::fs::write(&junk, b"GGUF but not really").unwrap();
    let damaged = Engine::load(&junk, options()).err();
    assert!(matches!(damaged, Some(LoadError::Format { .. })), "{damaged:?}");
    // The real file, cut short.
    let whole = std::fs::read(model_path()).unwrap();
    std::fs::write(&junk, &whole[..whole.len() / 2]).unwrap();
    let cut = Engine::load(&junk, options()).err();
    assert!(matches!(cut, Some(LoadError::Tensor { .. })), "{cut:?}");
}
