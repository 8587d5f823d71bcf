//! The tracker under 64 sessions at once: what one token costs the stream that delivers it.
//!
//! Two shapes. `workers`: the node's own, one thread a core serving all sessions and one, the
//! ledger's, that records. `threads`: one thread a session, each delivering and recording, far
//! more contention than a node has.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use tally::billing::{Account, Entry, Fact, TurnEnd};
use tally::session::Tracker;
use tally::units::{Hash32, Millis, TokenCount, TurnNo, WalletNonce};

use super::traffic;

/// Sessions that contend.
pub const SESSIONS: u64 = 64;
/// Claims each of them has made before.
const CLAIMS: u32 = 100;

/// Nanoseconds a token, over all threads.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
}

fn tracker() -> Tracker {
    let tracker = Tracker::default();
    for number in 1..=SESSIONS {
        let mut account = Account::new(traffic::job(number));
        for fact in earlier(number) {
            account.apply(&entry(number, fact)).expect("it fits");
        }
        tracker.restore(account, Millis::ZERO);
    }
    tracker
}

/// A session that has been busy for a while: 100 claims are final, one turn is open.
fn earlier(number: u64) -> Vec<Fact> {
    let mut facts = vec![traffic::opened()];
    for turn in 0..CLAIMS {
        facts.push(traffic::header(turn));
        facts.extend((0..13).map(|part| traffic::delivered(turn, part)));
        facts.push(Fact::TurnEnded { turn: TurnNo::new(turn), end: TurnEnd::Stop });
        let nonce = number * u64::from(CLAIMS) + u64::from(turn);
        facts.push(traffic::prepared(nonce, turn, 104));
        facts.push(traffic::included(nonce));
        facts.push(Fact::TxConfirmed { nonce: WalletNonce::new(nonce), sighting: 0 });
    }
    facts.push(traffic::header(CLAIMS));
    facts
}

fn entry(number: u64, fact: Fact) -> Entry {
    Entry { subject: traffic::job(number).into(), at: Millis::ZERO, fact }
}

/// One token of a session: delivered, then recorded, as the meter and the ledger do it.
fn token(tracker: &Tracker, number: u64, position: u32) {
    let one = TokenCount::new(1);
    tracker.deliver(traffic::job(number), one);
    let (turn, ids) = (TurnNo::new(CLAIMS), vec![position]);
    let fact = Fact::Delivered { turn, position, ids, states: vec![Hash32::ZERO] };
    tracker.record(&[entry(number, fact)], one, Millis::ZERO).expect("it fits");
}

/// Every one of 64 threads delivers and records `tokens` tokens of its own session.
pub fn threads(tokens: u32) -> Spread {
    let tracker = Arc::new(tracker());
    let start = Arc::new(Barrier::new(SESSIONS as usize));
    let run = |number| {
        let (tracker, start) = (Arc::clone(&tracker), Arc::clone(&start));
        std::thread::spawn(move || {
            let mut took = Vec::with_capacity(tokens as usize);
            start.wait();
            for position in 0..tokens {
                let begin = Instant::now();
                token(&tracker, number, position);
                took.push(nanos(begin));
            }
            took
        })
    };
    let threads: Vec<_> = (1..=SESSIONS).map(run).collect();
    spread(threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect())
}

/// One thread a core serves all sessions in turn.
pub fn workers(tokens: u32) -> Spread {
    let tracker = Arc::new(tracker());
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) as u64;
    let start = Arc::new(Barrier::new(cores as usize));
    let run = |core| {
        let (tracker, start) = (Arc::clone(&tracker), Arc::clone(&start));
        std::thread::spawn(move || {
            let own: Vec<u64> = (1..=SESSIONS).filter(|number| number % cores == core).collect();
            let mut took = Vec::with_capacity(tokens as usize * own.len());
            start.wait();
            for position in 0..tokens {
                for &number in &own {
                    let begin = Instant::now();
                    token(&tracker, number, position);
                    took.push(nanos(begin));
                }
            }
            took
        })
    };
    let threads: Vec<_> = (0..cores).map(run).collect();
    spread(threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect())
}

fn nanos(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn spread(mut took: Vec<u64>) -> Spread {
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 1_000];
    Spread { p50: at(500), p99: at(990), p999: at(999) }
}
