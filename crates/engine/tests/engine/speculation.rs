//! Drafts change how many steps a text takes, and nothing else.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use tally_engine::{
    Engine, EngineOptions, Event, FinishReason, Sampling, SequenceHandle, SequenceRequest,
};

use crate::kit::{Answer, Tap, answer, collect, load, options, request, shared, user};

const PARAGRAPH: &str = "The keeper of the lighthouse climbed the hundred and twelve steps every \
    evening, lit the lamp, and wrote the weather into a book with a blue cover. On the ninth of \
    March he found a bottle at the door.";

fn plain() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| load(EngineOptions { speculation: false, ..options() })).clone()
}

/// A prompt that the model goes on with by copying.
fn copying(max_tokens: u32) -> SequenceRequest {
    let text = format!("{PARAGRAPH}\n\n{PARAGRAPH}\n\nThe keeper of");
    request(shared().encode_raw(&text).unwrap(), max_tokens)
}

fn chatting(max_tokens: u32) -> SequenceRequest {
    let turns = [user("Write a short poem about the sea, and explain it.")];
    request(shared().encode_chat(&turns).unwrap(), max_tokens)
}

/// Ways to draw tokens, each with the logarithms of twenty probabilities at every place: they
/// depend on every bit of nearly all logits.
fn samplings() -> [Sampling; 3] {
    let told = Sampling { logprobs: Some(20), ..Sampling::greedy() };
    let warm = Sampling { temperature: 0.4, top_p: 0.9, seed: [5; 32], ..told.clone() };
    let penalised = Sampling {
        repetition_penalty: 1.05,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        ..warm.clone()
    };
    [told, warm, penalised]
}

#[test]
fn a_text_is_the_same_with_and_without_drafts() {
    for base in [copying(120), chatting(120)] {
        for sampling in samplings() {
            let request = SequenceRequest { sampling, ..base.clone() };
            let expected = answer(&plain(), request.clone());
            assert_eq!(answer(&shared(), request), expected);
        }
    }
}

#[test]
fn a_copy_takes_far_fewer_steps_than_it_has_tokens() {
    let engine = load(options());
    let copy = answer(&engine, copying(100));
    assert_eq!(copy.counted, 100);
    let load = engine.load_state();
    assert!(load.guessed_right <= load.guessed_tokens, "{load:?}");
    // Each token that was guessed right is a step less.
    assert!(100 - load.guessed_right < 30, "{load:?}");
    assert_eq!(plain().load_state().guessed_tokens, 0);
}

#[test]
fn limits_and_stop_strings_hold_in_the_middle_of_a_draft() {
    for max_tokens in 1..=24 {
        assert_eq!(answer(&shared(), copying(max_tokens)), answer(&plain(), copying(max_tokens)));
    }
    let whole = answer(&plain(), copying(60)).text();
    for at in (1..whole.len() - 12).step_by(17) {
        // Inside a token or across several, and after tokens that were held back for it.
        let stop = vec![whole[at..at + 9].to_string(), "hundred and thirteen".into()];
        let request = SequenceRequest { stop, ..copying(60) };
        let expected = answer(&plain(), request.clone());
        assert!(matches!(expected.reason, FinishReason::StopString(_)));
        assert_eq!(answer(&shared(), request), expected);
    }
}

#[test]
fn the_models_end_ends_a_draft_too() {
    // The question was answered before, with an end that the draft would go on behind.
    let turns = [user("Say hello.")];
    let mut ids = shared().encode_chat(&turns).unwrap();
    ids.extend(answer(&plain(), request(ids.clone(), 100)).ids);
    ids.extend(shared().encode_continuation("Say hello.").unwrap());
    let expected = answer(&plain(), request(ids.clone(), 100));
    assert_eq!(expected.reason, FinishReason::Stop);
    assert_eq!(answer(&shared(), request(ids, 100)), expected);
}

#[test]
fn a_reader_with_little_room_gets_the_same_events() {
    let expected = answer(&plain(), copying(40));
    let engine = shared();
    let (tap, events) = Tap::new(1);
    let room = std::sync::Arc::clone(&tap.room);
    let _handle = engine.start(copying(40), Box::new(tap)).unwrap();
    let mut ids = Vec::new();
    loop {
        match events.recv().unwrap() {
            Event::Prefilled { .. } => {}
            Event::Token { id, .. } => ids.push(id),
            Event::Finished { reason, .. } => {
                assert_eq!((ids, reason), (expected.ids, expected.reason));
                return;
            }
        }
        room.fetch_add(1, Ordering::SeqCst);
        engine.wake();
    }
}

#[test]
fn a_cancel_ends_a_text_within_a_draft_of_where_it_was() {
    let expected = answer(&plain(), copying(200)).ids;
    let engine = shared();
    for after in [1, 9, 20] {
        let (tap, events) = Tap::new(usize::MAX / 2);
        let handle = engine.start(copying(200), Box::new(tap)).unwrap();
        let mut ids = Vec::new();
        for event in &events {
            match event {
                Event::Prefilled { .. } => {}
                Event::Token { id, .. } => {
                    ids.push(id);
                    if ids.len() == after {
                        handle.cancel();
                    }
                }
                Event::Finished { reason, completion_tokens, .. } => {
                    // It may have been done before it was told.
                    let is_whole = reason == FinishReason::Length && ids.len() == 200;
                    assert!(reason == FinishReason::Cancelled || is_whole, "{reason:?}");
                    assert_eq!(completion_tokens as usize, ids.len());
                }
            }
        }
        assert_eq!(ids, expected[..ids.len()]);
    }
}

#[test]
fn drafts_beside_other_sequences_change_nothing() {
    let requests: Vec<SequenceRequest> = (0..5u8)
        .map(|i| {
            let base = if i % 2 == 0 { copying(40) } else { chatting(40) };
            let sampling = Sampling { seed: [i; 32], ..samplings()[usize::from(i % 3)].clone() };
            SequenceRequest { sampling, ..base }
        })
        .collect();
    let alone: Vec<Answer> = requests.iter().map(|r| answer(&plain(), r.clone())).collect();
    // Two make drafts together; of five the first ones do again when the others are done.
    for count in [2, 5] {
        let started: Vec<_> = requests[..count]
            .iter()
            .map(|request| {
                let (tap, events) = Tap::new(usize::MAX / 2);
                let handle: SequenceHandle =
                    shared().start(request.clone(), Box::new(tap)).unwrap();
                (handle, events)
            })
            .collect();
        for ((_handle, events), alone) in started.iter().zip(&alone) {
            assert_eq!(&collect(events), alone);
        }
    }
}

#[test]
fn wrong_guesses_are_in_nobodys_cached_prefix() {
    let engine = load(options());
    let mut history = copying(1).prompt_ids;
    for turn in 0..6 {
        // Warm enough that drafts fail, and of lengths that end anywhere in a block.
        let sampling = Sampling { temperature: 0.9, seed: [turn; 32], ..samplings()[0].clone() };
        let request = SequenceRequest {
            sampling,
            owner: Some([1; 32]),
            ..request(history.clone(), 30 + u32::from(turn))
        };
        let warm = answer(&engine, request.clone());
        // The last turn's last token was drawn and never read.
        let known = if turn == 0 { 0 } else { history.len() - 1 };
        assert!(warm.cached as usize >= known.saturating_sub(16), "{} {known}", warm.cached);
        let cold = answer(&plain(), SequenceRequest { owner: None, ..request });
        assert_eq!(Answer { cached: 0, ..warm.clone() }, cold, "{turn}");
        history.extend(&warm.ids);
    }
    let load = engine.load_state();
    assert!(load.guessed_right > 0 && load.guessed_right < load.guessed_tokens, "{load:?}");
    assert!(load.cache.hits >= 5, "{load:?}");
}
