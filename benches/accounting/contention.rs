//! The tracker under 64 sessions at once: what one token costs the stream that delivers it.
//!
//! Two shapes. `workers`: the node's own, one thread a core serving all sessions and one, the
//! ledger's, that records. `threads`: one thread a session, each delivering and recording, far
//! more contention than a node has.

use std::sync::{Arc, Barrier};
use std::time::Instant;

use tally::billing::{Account, Entry, Fact};
use tally::session::Tracker;
use tally::units::{Millis, TokenCount, TurnNo};

use super::traffic;

/// Sessions that contend.
pub const SESSIONS: u64 = 64;
/// A token's time is too short for one reading of the clock: it is read around as few as this.
const TOKENS_TIMED: u32 = 1;

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
        let facts = [traffic::opened(), traffic::header(0)];
        for fact in facts {
            account.apply(&entry(number, fact)).expect("it fits");
        }
        tracker.restore(account, Millis::ZERO);
    }
    tracker
}

fn entry(number: u64, fact: Fact) -> Entry {
    Entry { subject: traffic::job(number).into(), at: Millis::ZERO, fact }
}

/// One token of a session: delivered, then recorded, as the meter and the ledger do it.
fn token(tracker: &Tracker, number: u64, position: u32) {
    let one = TokenCount::new(1);
    tracker.deliver(traffic::job(number), one);
    let fact = Fact::Delivered { turn: TurnNo::ZERO, position, ids: vec![position] };
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
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX) / u64::from(TOKENS_TIMED)
}

fn spread(mut took: Vec<u64>) -> Spread {
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 1_000];
    Spread { p50: at(500), p99: at(990), p999: at(999) }
}
