//! The cache and the scheduler together, with a pretended forward pass that notices every wrong
//! block: a token's cell holds a digest of all ids up to it, and is read again for every later
//! token.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::kernels::attention::Heads;
use crate::scheduler::{HEADROOM_TOKENS, Running, Scheduler, State, Waiting};

const HEADS: Heads = Heads { query: 1, kv: 1, dim: 16 };
const OURS: Option<Scope> = Some([1; 32]);
const THEIRS: Option<Scope> = Some([2; 32]);

fn cache(blocks: usize) -> KvCache {
    KvCache::new(KvPool::with_blocks(HEADS, 1, (KvType::F16, blocks)))
}

/// Where the pretended value of a position lies in its block.
fn cell(table: &BlockTable, at: usize) -> usize {
    table.blocks[at / BLOCK_TOKENS] as usize * HEADS.block_values() + at % BLOCK_TOKENS
}

fn digest(ids: &[u32]) -> u16 {
    let sum = ids.iter().fold(7u64, |sum, id| {
        sum.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(*id) + 1)
    });
    (sum >> 40) as u16
}

/// Computes the tokens `from..ids.len()`, each of which reads all before it.
fn compute(kv: &mut KvPool, table: &BlockTable, ids: &[u32], from: usize) {
    assert!(from / BLOCK_TOKENS >= table.shared, "a shared block is written to");
    assert!(table.capacity() >= ids.len());
    let Memory::F16(cells) = &mut kv.memory else { panic!("halves") };
    for at in 0..ids.len() {
        let place = cell(table, at);
        if at >= from {
            cells[place] = digest(&ids[..=at]);
        }
        assert_eq!(cells[place], digest(&ids[..=at]), "position {at} holds something else");
    }
}

/// Runs ids through the cache as a sequence that ends; gives the tokens found there.
fn run(kv: &mut KvCache, scope: Option<Scope>, ids: &[u32]) -> usize {
    let (mut table, cached) = kv.begin(scope, ids, ids.len()).unwrap();
    compute(&mut kv.pool, &table, ids, cached);
    kv.keep(&mut table, ids);
    kv.end(table, ids);
    assert_eq!(kv.available_blocks(), kv.pool.total_blocks(), "a block was lost");
    cached
}

fn ids(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

fn ids_then(range: std::ops::Range<u32>, then: &[u32]) -> Vec<u32> {
    range.chain(then.iter().copied()).collect()
}

#[test]
fn the_longest_cached_beginning_is_found_to_the_token() {
    let mut kv = cache(16);
    assert_eq!(run(&mut kv, OURS, &ids(0..40)), 0);
    // The same again: all but the last token, whose logits are wanted.
    assert_eq!(run(&mut kv, OURS, &ids(0..40)), 39);
    for (prompt, found) in [
        (ids(0..41), 40),
        (ids(0..90), 40),
        (ids(0..40), 39),
        (ids(0..33), 32),
        (ids(0..32), 31),
        (ids(0..17), 16),
        (ids(0..16), 15),
        (ids(0..2), 1),
        (ids(0..1), 0),
        (ids(1..40), 0),
        // It goes another way within a block.
        (ids_then(0..5, &[99, 98]), 5),
        (ids_then(0..16, &[99, 98]), 16),
        (ids_then(0..21, &[0, 98]), 21),
        (ids_then(0..38, &[99, 98]), 38),
    ] {
        let mut kv = cache(16);
        run(&mut kv, OURS, &ids(0..40));
        assert_eq!(run(&mut kv, OURS, &prompt), found, "{prompt:?}");
        // What was shared or copied is as it was.
        assert_eq!(run(&mut kv, OURS, &ids(0..40)), 39, "{prompt:?}");
    }
}

#[test]
fn scopes_share_nothing_and_no_scope_shares_nothing() {
    let mut kv = cache(16);
    for scope in [OURS, None, THEIRS] {
        assert_eq!(run(&mut kv, scope, &ids(0..40)), 0, "{scope:?}");
    }
    assert_eq!(run(&mut kv, None, &ids(0..40)), 0);
    for scope in [OURS, THEIRS] {
        assert_eq!(run(&mut kv, scope, &ids(0..40)), 39);
    }
}

#[test]
fn a_running_sequence_shares_its_full_blocks_at_once() {
    let mut kv = cache(8);
    let text = ids(0..40);
    let (mut first, _) = kv.begin(OURS, &text, 40).unwrap();
    compute(&mut kv.pool, &first, &text, 0);
    assert_eq!(kv.known(OURS, &text), Known::default(), "what isn't kept isn't known");
    kv.keep(&mut first, &text);
    assert_eq!(kv.known(OURS, &text), Known { tokens: 32, blocks_in_use: 2 });
    let (second, cached) = kv.begin(OURS, &text, 40).unwrap();
    assert_eq!((cached, &second.blocks[..2]), (32, &first.blocks[..2]));
    assert_ne!(first.blocks[2], second.blocks[2]);
    assert_eq!(kv.available_blocks(), 8 - 4);
    kv.end(second, &text[..cached]);
    kv.end(first, &text);
    assert_eq!((kv.available_blocks(), kv.pool.free_blocks()), (8, 5));
}

#[test]
fn two_that_compute_the_same_end_up_with_one_copy() {
    let mut kv = cache(8);
    let text = ids(0..40);
    let mut tables: Vec<BlockTable> =
        (0..2).map(|_| kv.begin(OURS, &text, 40).unwrap().0).collect();
    for table in &mut tables {
        compute(&mut kv.pool, table, &text, 0);
        kv.keep(table, &text);
        compute(&mut kv.pool, table, &text, 40);
    }
    assert_eq!(tables[0].blocks[..2], tables[1].blocks[..2]);
    tables.into_iter().for_each(|table| kv.end(table, &text));
    // Two full blocks and one part of a block.
    assert_eq!(kv.idle_blocks(), 3);
    assert_eq!(kv.available_blocks(), 8);
}

#[test]
fn the_least_recently_used_ends_are_evicted_first() {
    let mut kv = cache(6);
    let (old, new) = (ids(0..32), ids(100..132));
    run(&mut kv, OURS, &old);
    run(&mut kv, OURS, &new);
    assert_eq!(run(&mut kv, OURS, &old), 31);
    // Two blocks of each: the copy that was made for the last token says no more than its model.
    assert_eq!(kv.idle_blocks(), 4);
    // Three are needed and two are free: the end of the new one has to go.
    assert_eq!(run(&mut kv, None, &ids(200..248)), 0);
    assert_eq!(kv.known(OURS, &new).tokens, 16);
    assert_eq!(kv.known(OURS, &old).tokens, 31);
    // The rest of the new one, then the end of the old one.
    assert_eq!(run(&mut kv, None, &ids(200..280)), 0);
    assert_eq!(kv.known(OURS, &new).tokens, 0);
    assert_eq!(kv.known(OURS, &old).tokens, 16);
    assert_eq!(kv.counts().evictions, 3);
    kv.clear();
    assert_eq!((kv.idle_blocks(), kv.pool.free_blocks()), (0, 6));
}

#[test]
fn what_is_in_use_is_never_evicted() {
    let mut kv = cache(4);
    let text = ids(0..40);
    let (mut held, _) = kv.begin(OURS, &text, 40).unwrap();
    compute(&mut kv.pool, &held, &text, 0);
    kv.keep(&mut held, &text);
    assert_eq!(kv.available_blocks(), 1);
    assert!(kv.begin(None, &ids(100..117), 17).is_none());
    assert!(kv.begin(OURS, &ids_then(0..16, &ids(50..90)), 56).is_none());
    assert!(!kv.grow(&mut held, 65));
    assert_eq!((kv.available_blocks(), held.blocks.len()), (1, 3));
    run_beside(&mut kv, 16);
    compute(&mut kv.pool, &held, &text, 40);
    kv.end(held, &text);
    assert_eq!(kv.available_blocks(), 4);
}

/// Something else that takes the rest of the pool.
fn run_beside(kv: &mut KvCache, tokens: u32) {
    let other = ids(500..500 + tokens);
    let (table, cached) = kv.begin(THEIRS, &other, tokens as usize).unwrap();
    compute(&mut kv.pool, &table, &other, cached);
    kv.end(table, &other);
}

#[test]
fn a_block_that_has_to_be_evicted_is_not_copied_from() {
    let mut kv = cache(1);
    assert_eq!(run(&mut kv, OURS, &ids(0..10)), 0);
    // The only block is the one that holds its beginning.
    assert_eq!(run(&mut kv, OURS, &ids(0..12)), 0);
    assert_eq!(run(&mut kv, OURS, &ids(0..12)), 0);
    let mut kv = cache(2);
    assert_eq!(run(&mut kv, OURS, &ids(0..10)), 0);
    assert_eq!(run(&mut kv, OURS, &ids(0..12)), 10);
}

#[test]
fn a_longer_part_takes_the_place_of_a_shorter_one() {
    let mut kv = cache(8);
    for end in 1..=16 {
        assert_eq!(run(&mut kv, OURS, &ids(0..end)), end as usize - 1);
        assert_eq!(kv.idle_blocks(), 1, "{end}");
    }
    assert_eq!(run(&mut kv, OURS, &ids(0..3)), 2);
    assert_eq!(run(&mut kv, OURS, &ids_then(0..3, &[70])), 3);
    assert_eq!(kv.idle_blocks(), 2);
}

/// A later turn finds prompt and answer of the one before.
#[test]
fn a_conversation_grows_on_what_it_left() {
    let mut kv = cache(64);
    let mut history = Vec::new();
    for turn in 0..8u32 {
        let known = history.len();
        history.extend(turn * 1000..turn * 1000 + 21);
        assert_eq!(run(&mut kv, OURS, &history), known);
    }
}

#[derive(Debug, Clone)]
struct Request {
    prompt: Vec<u32>,
    answer: usize,
    scope: Option<Scope>,
    /// The step that it arrives in.
    arrives: usize,
    /// Steps of its life in which its reader takes nothing, of every 8.
    pauses: u8,
    /// It is cancelled after so many steps.
    lives: usize,
}

fn request() -> impl Strategy<Value = Request> {
    // Few ids and few lengths, so that beginnings meet.
    let prompt = (0..3u32, 1..60u32, prop::collection::vec(0..2u32, 0..20))
        .prop_map(|(of, shared, own)| (0..shared).map(|id| of + id).chain(own).collect());
    let scope = prop_oneof![Just(OURS), Just(OURS), Just(THEIRS), Just(None)];
    let lives = prop_oneof![3 => Just(usize::MAX), 1 => 1..60usize];
    (prompt, 1..90usize, scope, 0..40usize, any::<u8>(), lives).prop_map(
        |(prompt, answer, scope, arrives, pauses, lives)| {
            let pauses = if pauses < 200 { 0 } else { pauses & 0x7f };
            Request { prompt, answer, scope, arrives, pauses, lives }
        },
    )
}

/// A sequence as the runner keeps it, without a model, a sampler and a sink.
struct Pretended {
    request: Request,
    ids: Vec<u32>,
    cached: usize,
    table: Option<BlockTable>,
    age: usize,
}

impl Pretended {
    fn tokens_max(&self) -> usize {
        self.request.prompt.len() + self.request.answer
    }
    fn first_tokens(&self) -> usize {
        (self.ids.len() + HEADROOM_TOKENS).min(self.tokens_max())
    }
    fn is_ready(&self) -> bool {
        self.request.pauses >> (self.age % 8) & 1 == 0
    }
    fn has_ended(&self) -> bool {
        self.ids.len() == self.tokens_max() || self.age >= self.request.lives
    }
}

struct World {
    kv: KvCache,
    scheduler: Scheduler,
    waiting: BTreeMap<u64, Pretended>,
    running: BTreeMap<u64, Pretended>,
    answers: BTreeMap<u64, Vec<u32>>,
    preemptions: usize,
}

impl World {
    fn state(&self) -> State {
        let waiting = self.waiting.iter().map(|(id, sequence)| {
            let known = self.kv.known(sequence.request.scope, &sequence.ids);
            let blocks = KvPool::blocks_for(sequence.first_tokens());
            let kv_blocks = blocks - known.blocks_in_use;
            Waiting { id: *id, kv_blocks, tokens_left: sequence.ids.len() - known.tokens }
        });
        let running = self.running.iter().map(|(id, sequence)| {
            let held = sequence.table.as_ref().unwrap().blocks.len();
            Running {
                id: *id,
                tokens_left: sequence.ids.len() - sequence.cached,
                kv_blocks_lacking: KvPool::blocks_for(sequence.ids.len()).saturating_sub(held),
                may_grow: KvPool::blocks_for(sequence.tokens_max()) > held,
                is_ready: sequence.is_ready(),
            }
        });
        let (waiting, running) = (waiting.collect(), running.collect());
        State { waiting, running, kv_blocks_free: self.kv.available_blocks() }
    }

    fn end(&mut self, mut sequence: Pretended) -> Pretended {
        if let Some(table) = sequence.table.take() {
            self.kv.end(table, &sequence.ids[..sequence.cached]);
        }
        sequence.cached = 0;
        sequence
    }

    /// One step as the runner takes it.
    fn step(&mut self) {
        let plan = self.scheduler.plan(&self.state());
        if let Some(id) = plan.preempt {
            let victim = self.running.remove(&id).unwrap();
            let victim = self.end(victim);
            self.waiting.insert(id, victim);
            self.preemptions += 1;
        }
        for id in &plan.admit {
            let mut sequence = self.waiting.remove(id).unwrap();
            let tokens = sequence.first_tokens();
            let begun = self.kv.begin(sequence.request.scope, &sequence.ids, tokens);
            let (table, cached) = begun.expect("the plan counted the blocks");
            (sequence.table, sequence.cached) = (Some(table), cached);
            self.running.insert(*id, sequence);
        }
        let rows = plan.decode.iter().map(|id| (*id, 1)).chain(plan.prefill.iter().copied());
        for (id, count) in rows {
            let sequence = self.running.get_mut(&id).unwrap();
            let (table, from) = (sequence.table.as_mut().unwrap(), sequence.cached);
            let end = (from + count).min(sequence.ids.len());
            assert!(self.kv.grow(table, end), "the plan counted the blocks");
            compute(&mut self.kv.pool, table, &sequence.ids[..end], from);
            sequence.cached = end;
            if end == sequence.ids.len() {
                sequence.ids.push(u32::from(digest(&sequence.ids)) % 5);
            }
            self.kv.keep(table, &sequence.ids[..end]);
        }
    }

    fn clear_ended(&mut self) {
        for lane in [true, false] {
            let all = if lane { &mut self.running } else { &mut self.waiting };
            let ended: Vec<u64> = all
                .iter()
                .filter(|(_, sequence)| sequence.has_ended())
                .map(|(id, _)| *id)
                .collect();
            let ended: Vec<_> =
                ended.into_iter().map(|id| (id, all.remove(&id).unwrap())).collect();
            for (id, sequence) in ended {
                let sequence = self.end(sequence);
                self.answers.insert(id, sequence.ids);
            }
        }
    }

    /// The oldest that runs, if its reader is there, and how far it is.
    fn oldest(&self) -> Option<(u64, usize)> {
        let (id, sequence) = self.running.first_key_value()?;
        sequence.is_ready().then_some((*id, sequence.ids.len() + sequence.cached))
    }
}

/// Runs the requests to their ends; checks every step. Gives preemptions and evictions.
fn serve(
    requests: &[Request],
    blocks: usize,
    scheduler: Scheduler,
) -> Result<(usize, u64), TestCaseError> {
    let (waiting, running, answers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let kv = cache(blocks);
    let mut world = World { kv, scheduler, waiting, running, answers, preemptions: 0 };
    let mut stalled = 0;
    for now in 0.. {
        for (id, request) in requests.iter().enumerate().filter(|(_, r)| r.arrives == now) {
            let (request, ids) = (request.clone(), request.prompt.clone());
            let new = Pretended { request, ids, cached: 0, table: None, age: 0 };
            world.waiting.insert(now as u64 * 1000 + id as u64, new);
        }
        world.clear_ended();
        if world.answers.len() == requests.len() {
            break;
        }
        let oldest = world.oldest();
        world.step();
        // At worst everybody younger is preempted first, one in each step.
        if let Some((id, progress)) = oldest {
            let after = world.running.get(&id).map(|s| s.ids.len() + s.cached);
            stalled = if after.is_some_and(|after| after > progress) { 0 } else { stalled + 1 };
            prop_assert!(stalled <= world.scheduler.running_max, "the oldest stands still");
        }
        prop_assert!(now < 40_000, "not all ended");
        let held = world.running.values().flat_map(|s| &s.table.as_ref().unwrap().blocks);
        let held = held.collect::<BTreeSet<_>>().len();
        prop_assert_eq!(world.kv.available_blocks() + held, blocks, "a block was lost");
        world.running.values_mut().chain(world.waiting.values_mut()).for_each(|s| s.age += 1);
    }
    prop_assert_eq!(world.kv.available_blocks(), blocks, "a block was lost");
    world.kv.clear();
    prop_assert_eq!(world.kv.pool.free_blocks(), blocks, "a block was lost");
    let mut free: Vec<u32> = std::iter::from_fn(|| world.kv.pool.take()).collect();
    free.sort_unstable();
    prop_assert_eq!(free, (0..blocks as u32).collect::<Vec<_>>(), "a block is there twice");
    for (id, ids) in &world.answers {
        let request = &requests[(*id % 1000) as usize];
        let mut alone = request.prompt.clone();
        while alone.len() < ids.len() {
            alone.push(u32::from(digest(&alone)) % 5);
        }
        prop_assert_eq!(ids, &alone, "another text than alone");
        let whole = request.prompt.len() + request.answer;
        prop_assert!(request.lives < usize::MAX || ids.len() == whole);
    }
    Ok((world.preemptions, world.kv.counts().evictions))
}

#[test]
fn what_is_preempted_is_read_again_and_says_the_same() {
    let request = |of: u32| Request {
        prompt: (of..of + 20).collect(),
        answer: 140,
        scope: OURS,
        arrives: 0,
        pauses: 0,
        lives: usize::MAX,
    };
    let requests: Vec<Request> = (0..4).map(|of| request(of * 100)).collect();
    // Each comes to 10 blocks; three begin with 6.
    let scheduler = Scheduler { running_max: 4, prefill_chunk: 64 };
    let (preemptions, evictions) = serve(&requests, 18, scheduler).unwrap();
    assert!((1..20).contains(&preemptions), "{preemptions}");
    assert!(evictions > 0);
    assert_eq!(serve(&requests, 40, scheduler).unwrap(), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_ends_as_it_would_alone_and_no_block_is_lost(
        requests in prop::collection::vec(request(), 1..24),
        more_blocks in 0..24usize,
        running_max in 1..9usize,
        prefill_chunk in 16..100usize,
    ) {
        // The least in which each fits alone, and some more.
        let longest = requests.iter().map(|r| r.prompt.len() + r.answer).max().unwrap_or(1);
        let blocks = KvPool::blocks_for(longest) + more_blocks;
        serve(&requests, blocks, Scheduler { running_max, prefill_chunk })?;
    }
}
