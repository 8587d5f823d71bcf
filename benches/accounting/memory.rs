//! Memory of 10,000 open sessions, measured in a process of its own.

use std::path::Path;
use std::sync::Arc;

use tally::billing::{Entry, Fact};
use tally::chain::{ChainJob, JobStatus};
use tally::clock::{Clock, SystemClock};
use tally::ledger::Ledger;
use tally::node::wiring;
use tally::session::Snapshot;
use tally::units::{
    Address, Amount, ChainSeconds, ChainTime, JobId, Millis, PricePerToken, TokenCount, TurnNo,
    WalletNonce,
};

use super::{durable, traffic};

/// Open sessions.
pub const SESSIONS: u64 = 10_000;
/// Claims each of them has made.
pub const CLAIMS: u32 = 3;

/// Writes the ledger of [`SESSIONS`] open sessions.
pub fn write(path: &Path) {
    let ledger = durable::open(path);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for number in 1..=SESSIONS {
        let job = traffic::job(number);
        let entries = facts(number).into_iter();
        let at = Millis::new(1_760_000_000_000);
        let group = entries.map(|fact| Entry { subject: job.into(), at, fact }).collect();
        let submitted = ledger.submit(group, Box::new(|fate| fate.expect("the ledger writes")));
        if submitted.is_err() {
            panic!("the queue is longer than that");
        }
        if number % 1_000 == 0 {
            runtime.block_on(ledger.append(Vec::new())).expect("the ledger writes");
        }
    }
    ledger.close().expect("the ledger closes");
}

/// One turn and its claim, three times; the last claim is not final yet.
fn facts(number: u64) -> Vec<Fact> {
    let mut facts = vec![traffic::opened(), Fact::OwnerProven];
    for nth in 0..CLAIMS {
        facts.push(traffic::header(nth));
        facts.extend((0..13).map(|part| traffic::delivered(nth, part)));
        let turn = TurnNo::new(nth);
        facts.push(Fact::TurnEnded { turn, end: tally::billing::TurnEnd::Stop });
        let nonce = number * u64::from(CLAIMS) + u64::from(nth);
        facts.push(traffic::prepared(nonce, nth, 104));
        facts.push(traffic::included(nonce));
        if nth + 1 < CLAIMS {
            let nonce = WalletNonce::new(nonce);
            facts.push(Fact::TxConfirmed { nonce, sighting: 0 });
        }
    }
    facts
}

/// Resident memory that the sessions of the ledger at `path` take, MB, over that of the process
/// before.
pub fn measure(path: &Path) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let before = resident_kb();
    let ledger = durable::open(path);
    let tracker = runtime.block_on(wiring::restore(&ledger, &*clock)).expect("it adds up");
    for job in tracker.jobs() {
        tracker.observe(Snapshot { job: on_chain(job), read_at: clock.now() });
    }
    assert_eq!(tracker.count_open() as u64, SESSIONS);
    let after = resident_kb();
    drop((tracker, ledger));
    (after - before) / 1_000.0
}

fn on_chain(job: JobId) -> ChainJob {
    ChainJob {
        id: job,
        depositor: Address::new([0xde; 20]),
        host: Address::new([0xaa; 20]),
        payment_token: Address::ZERO,
        deposit: Amount::new(10u128.pow(18)),
        price: PricePerToken::new(5_000_000_000),
        tokens_used: TokenCount::new(312),
        duration_max: ChainSeconds::new(86_400),
        start_time: ChainTime::new(1_760_000_000),
        last_proof_time: ChainTime::new(1_760_000_100),
        silence_max: ChainSeconds::new(3_000),
        rate_per_second: 20,
        model: None,
        status: JobStatus::Active,
    }
}

fn resident_kb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}
