//! Cached prefixes, preemption, and many sequences in little room: nothing of it is seen in a text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use tally_engine::{
    Engine, EngineLoad, EngineOptions, Event, EventSink, FinishReason, KvType, Sampling,
    SequenceHandle, SequenceRequest, SharePrefixes,
};

use crate::kit::{Answer, answer, is_empty, load, options, request, shared, wait_for};

/// Of a block of 16 tokens: 30 layers × 2 × 3 heads × 64 × 16 × 2 bytes.
const BLOCK_BYTES: u64 = 368_640;

const OURS: Option<[u8; 32]> = Some([1; 32]);
const THEIRS: Option<[u8; 32]> = Some([2; 32]);

fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|i| 300 + i * 7 % 3571).collect()
}

fn owned(owner: Option<[u8; 32]>, prompt_ids: Vec<u32>, max_tokens: u32) -> SequenceRequest {
    SequenceRequest { owner, ..request(prompt_ids, max_tokens) }
}

/// What the engine says to a request that nobody shares anything with.
fn cold(request: &SequenceRequest) -> Answer {
    let answer = answer(&shared(), SequenceRequest { owner: None, ..request.clone() });
    assert_eq!(answer.cached, 0);
    answer
}

#[test]
fn prefixes_are_shared_with_whom_the_option_says() {
    for (share_prefixes, within, across, unowned) in [
        (SharePrefixes::Nobody, 0, 0, 0),
        (SharePrefixes::WithinOwner, 39, 0, 0),
        (SharePrefixes::Everyone, 39, 39, 39),
    ] {
        let engine = load(EngineOptions { share_prefixes, ..options() });
        let cached = |owner| answer(&engine, owned(owner, ids(40), 3)).cached;
        assert_eq!(cached(OURS), 0);
        assert_eq!(cached(THEIRS), across, "{share_prefixes:?}");
        assert_eq!(cached(None), unowned, "{share_prefixes:?}");
        assert_eq!(cached(None), unowned, "{share_prefixes:?}");
        assert_eq!([cached(OURS), cached(THEIRS)], [within; 2], "{share_prefixes:?}");
    }
}

#[test]
fn a_cache_in_single_precision_shares_and_says_the_same_warm_and_cold() {
    let engine = load(EngineOptions { kv_type: KvType::F32, ..options() });
    assert!(engine.info().config_digest_input.ends_with(" kv=f32"));
    assert_eq!(
        engine.info().config_digest_input.strip_suffix(" kv=f32"),
        Some(shared().info().config_digest_input.as_str())
    );
    let half = load(EngineOptions { kv_type: KvType::F16, ..options() }).load_state();
    assert_eq!(engine.load_state().kv_blocks_total, half.kv_blocks_total / 2);
    let cold = answer(&engine, owned(None, ids(40), 20));
    assert_eq!(answer(&engine, owned(OURS, ids(40), 20)).cached, 0);
    let warm = answer(&engine, owned(OURS, ids(40), 20));
    assert_eq!((warm.cached, warm.ids), (39, cold.ids));
}

#[test]
fn a_later_turn_finds_the_earlier_ones_and_their_answers() {
    let engine = load(options());
    let mut history = engine.encode_raw("Tell me of ledgers.").unwrap();
    let mut known = 0;
    for turn in 0..4 {
        let sampling = Sampling { temperature: 0.9, seed: [turn; 32], ..Sampling::greedy() };
        let request = SequenceRequest { sampling, ..owned(OURS, history.clone(), 21) };
        let warm = answer(&engine, request.clone());
        let cold = cold(&request);
        assert_eq!((&warm.ids, warm.text()), (&cold.ids, cold.text()));
        assert_eq!(warm.cached, known, "turn {turn}");
        history.extend(&warm.ids);
        // The last token was drawn, and never computed.
        known = history.len() as u32 - 1;
        history.extend(engine.encode_raw(" And then?").unwrap());
    }
}

#[test]
fn evicted_prefixes_are_computed_again_to_the_same_bits() {
    // Room for one of them, and for a part of another.
    let engine = load(EngineOptions { kv_memory_bytes: 10 * BLOCK_BYTES, ..options() });
    let prompts: Vec<_> = (0..3).map(|i| ids(70 + 20 * i)[i as usize * 9..].to_vec()).collect();
    let requests: Vec<_> = prompts.into_iter().map(|ids| owned(OURS, ids, 24)).collect();
    let expected: Vec<_> = requests.iter().map(|request| cold(request).ids).collect();
    for number in [0, 0, 1, 1, 2, 2, 0, 1, 0] {
        assert_eq!(answer(&engine, requests[number].clone()).ids, expected[number]);
        wait_for(&engine, is_empty);
    }
    let load = engine.load_state();
    assert!(load.cache.evictions > 0 && load.cache.hits > 0, "{load:?}");
}

/// Tells whose events come when, and leaves after so many tokens.
struct Numbered {
    number: usize,
    sender: Sender<(usize, Event)>,
    is_open: Arc<AtomicBool>,
    tokens_left: u32,
}

impl EventSink for Numbered {
    fn is_ready(&self) -> bool {
        self.is_open.load(Ordering::SeqCst)
    }
    fn is_closed(&self) -> bool {
        self.tokens_left == 0
    }
    fn emit(&mut self, event: Event) {
        self.tokens_left -= u32::from(matches!(event, Event::Token { .. }));
        let _ = self.sender.send((self.number, event));
    }
}

/// What a crowd was told, in the order in which it was told.
struct Told {
    events: Vec<(usize, Event)>,
    _handles: Vec<SequenceHandle>,
}

impl Told {
    fn ids(&self, of: usize) -> Vec<u32> {
        let id = |(number, event): &(usize, Event)| match event {
            Event::Token { id, .. } if *number == of => Some(*id),
            _ => None,
        };
        self.events.iter().filter_map(id).collect()
    }
}

/// What the engine says to each of the requests, read to the end, without a cache.
fn cold_ids(requests: &[(SequenceRequest, u32)]) -> Vec<Vec<u32>> {
    let cold = |request: &SequenceRequest| SequenceRequest { owner: None, ..request.clone() };
    let requests: Vec<_> = requests.iter().map(|(r, _)| (cold(r), u32::MAX)).collect();
    let told = crowd(&shared(), &requests);
    (0..requests.len()).map(|number| told.ids(number)).collect()
}

/// Starts all requests, lets them go at once, and waits until nobody is left. The second of a
/// pair is after how many tokens the reader leaves.
fn crowd(engine: &Engine, requests: &[(SequenceRequest, u32)]) -> Told {
    let (sender, receiver) = channel();
    let is_open = Arc::new(AtomicBool::new(false));
    let start = |(number, (request, tokens_left)): (usize, &(SequenceRequest, u32))| {
        let (sender, is_open, tokens_left) = (sender.clone(), Arc::clone(&is_open), *tokens_left);
        let sink = Numbered { number, sender, is_open, tokens_left };
        engine.start(request.clone(), Box::new(sink)).unwrap()
    };
    let handles: Vec<_> = requests.iter().enumerate().map(start).collect();
    is_open.store(true, Ordering::SeqCst);
    engine.wake();
    drop(sender);
    // The sinks go with their sequences, and the channel ends with the last of them.
    let events: Vec<_> = receiver.iter().collect();
    Told { events, _handles: handles }
}

#[test]
fn a_preempted_sequence_says_what_it_would_have_said() {
    let request = |i: u8| {
        let sampling = Sampling {
            temperature: 0.8,
            repetition_penalty: 1.1,
            seed: [i; 32],
            ..Sampling::greedy()
        };
        SequenceRequest { sampling, ..owned(OURS, ids(20 + u32::from(i)), 100) }
    };
    let requests: Vec<_> = (0..6).map(|i| (request(i), u32::MAX)).collect();
    let expected = cold_ids(&requests);
    // They come to 8 blocks each and begin with 6; there is room for two and a half of them.
    let kv_memory_bytes = 20 * BLOCK_BYTES;
    let share = [SharePrefixes::Nobody, SharePrefixes::WithinOwner, SharePrefixes::Everyone];
    for (share_prefixes, threads) in share.into_iter().zip([1, 2, 3]) {
        let engine = load(EngineOptions { share_prefixes, threads, kv_memory_bytes, ..options() });
        let told = crowd(&engine, &requests);
        let load = wait_for(&engine, is_empty);
        assert!(load.preemptions > 0, "{load:?}");
        for (number, expected) in expected.iter().enumerate() {
            assert_eq!(&told.ids(number), expected, "{share_prefixes:?}, {number}");
            let of = |event: fn(&Event) -> bool| {
                told.events.iter().filter(|(of, e)| *of == number && event(e)).count()
            };
            assert_eq!(of(|event| matches!(event, Event::Prefilled { .. })), 1);
            assert_eq!(of(|event| matches!(event, Event::Finished { .. })), 1);
        }
    }
}

#[test]
fn many_sequences_in_little_room_all_end_and_lose_no_block() {
    crowd_in_little_room(true);
    // Without drafts they take longer and get in each other's way.
    assert!(crowd_in_little_room(false).preemptions > 0);
}

fn crowd_in_little_room(speculation: bool) -> EngineLoad {
    let options = EngineOptions {
        kv_memory_bytes: 30 * BLOCK_BYTES,
        running_max: 12,
        prefill_chunk: 48,
        speculation,
        ..options()
    };
    let engine = load(options);
    // A plain generator: the same requests and cancels in every run.
    let mut state = 2026u32;
    let mut draw = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let requests: Vec<(SequenceRequest, u32)> = (0..24)
        .map(|_| {
            let owner = [OURS, THEIRS, None][draw(3) as usize];
            let request = owned(owner, ids(1 + draw(120)), 1 + draw(140));
            let leaves_after = if draw(3) == 0 { 1 + draw(40) } else { u32::MAX };
            (request, leaves_after)
        })
        .collect();
    let told = crowd(&engine, &requests);
    let load = wait_for(&engine, is_empty);
    assert!(load.cache.hits > 0 && load.cache.evictions > 0, "{load:?}");
    for (number, mut expected) in cold_ids(&requests).into_iter().enumerate() {
        let leaves_after = requests[number].1 as usize;
        let is_read_to_the_end = expected.len() < leaves_after;
        expected.truncate(leaves_after);
        assert_eq!(told.ids(number), expected, "{number}");
        let end = told.events.iter().rfind(|(of, _)| *of == number);
        match end {
            Some((_, Event::Finished { reason, .. })) if is_read_to_the_end => {
                assert!(matches!(reason, FinishReason::Length | FinishReason::Stop), "{reason:?}");
            }
            end => assert!(!is_read_to_the_end, "{number} ended with {end:?}"),
        }
    }
    load
}

#[test]
fn those_who_run_together_go_on_at_one_pace() {
    let engine = load(EngineOptions { running_max: 24, ..options() });
    // Others' prompts are read meanwhile; the short ones don't wait for them.
    let requests: Vec<_> = (0..24u32)
        .map(|i| (owned(None, ids(if i % 4 == 0 { 200 } else { 8 + i }), 30), u32::MAX))
        .collect();
    let told = crowd(&engine, &requests);
    // Tokens of each since the last one of each.
    let mut since: Vec<Option<[u32; 24]>> = vec![None; 24];
    for (number, event) in &told.events {
        match event {
            Event::Prefilled { .. } => {}
            Event::Token { .. } => {
                since.iter_mut().flatten().for_each(|counts| counts[*number] += 1);
                let most = since[*number].replace([0; 24]);
                let most = most.and_then(|counts| counts.into_iter().max());
                assert!(most.is_none_or(|most| most <= 1), "two tokens while {number} got none");
            }
            Event::Finished { .. } => since[*number] = None,
        }
    }
    assert!((0..24).all(|number| !told.ids(number).is_empty()));
}
