//! The ledger's promises: one table for both adapters, then what only a file can break.

mod care;
mod commands;
mod conformance;
mod faults;
mod file;
mod fixture;
mod kill;
mod schema;
mod writer;

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use tally::billing::{Attempt, ClaimBody, Entry, Fact, Purpose, TurnEnd};
use tally::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions};
use tally::ledger::{Ledger, LedgerError};
use tally::units::{
    Address, Amount, ClaimSeq, JobId, Millis, TokenCount, TurnNo, TxHash, WalletNonce,
};

fn job(number: u64) -> JobId {
    JobId::new(number).unwrap()
}

fn entry(of: u64, fact: Fact) -> Entry {
    Entry { subject: job(of).into(), at: Millis::new(1_000), fact }
}

/// Ids are their own positions, so that content follows from place.
fn delivered(of: u64, turn: u32, position: u32, count: u32) -> Entry {
    let ids = (position..position + count).collect();
    entry(of, Fact::Delivered { turn: TurnNo::new(turn), position, ids, states: Vec::new() })
}

fn ended(of: u64, turn: u32) -> Entry {
    entry(of, Fact::TurnEnded { turn: TurnNo::new(turn), end: TurnEnd::Stop })
}

fn claimed(of: u64, nonce: u64, tokens: u64) -> Entry {
    let body = ClaimBody {
        seq: ClaimSeq::new(1),
        tokens: TokenCount::new(tokens),
        tokens_cumulative: TokenCount::new(tokens),
        proof: vec![7; 145],
    };
    let attempt = Attempt {
        hash: TxHash::new([9; 32]),
        raw: vec![2, 3],
        fee_max: Amount::new(30),
        tip_max: Amount::new(1),
        gas_limit: 250_000,
    };
    let nonce = WalletNonce::new(nonce);
    entry(of, Fact::TxPrepared { nonce, purpose: Purpose::Claim(body), attempt })
}

fn binding() -> LedgerBinding {
    LedgerBinding {
        chain_id: 31_337,
        contract: Address::new([0xc0; 20]),
        wallet: Address::new([0xaa; 20]),
    }
}

fn open(path: &Path) -> SqliteLedger {
    SqliteLedger::open(path, SqliteOptions::new(binding())).unwrap()
}

/// Why the ledger at `path` does not open.
fn refusal(path: &Path, binding: LedgerBinding) -> String {
    match SqliteLedger::open(path, SqliteOptions::new(binding)) {
        Err(LedgerError::Store(why)) => why,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it opened"),
    }
}

fn append(ledger: &dyn Ledger, group: &[Entry]) -> Result<(), LedgerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(ledger.append(group.to_vec()))
}

fn replayed(ledger: &dyn Ledger) -> Vec<Entry> {
    let mut entries = Vec::new();
    ledger.replay(&mut |entry| entries.push(entry)).unwrap();
    entries
}

/// Submits `group`; its fate arrives on `fates` under `name`.
fn submit(
    ledger: &dyn Ledger,
    group: Vec<Entry>,
    name: usize,
    fates: &Sender<(usize, Result<(), LedgerError>)>,
) -> Result<(), LedgerError> {
    let fates = fates.clone();
    ledger.submit(group, Box::new(move |fate| drop(fates.send((name, fate)))))
}

/// Stops the writer inside a callback; it goes on when the returned sender is dropped.
fn stall(ledger: &dyn Ledger) -> Sender<()> {
    let (inside, entered): (Sender<()>, Receiver<()>) = channel();
    let (resume, resumed): (Sender<()>, Receiver<()>) = channel();
    let on_durable = Box::new(move |fate: Result<(), LedgerError>| {
        fate.unwrap();
        inside.send(()).unwrap();
        // An error is the signal: the test dropped its end.
        let _ = resumed.recv();
    });
    ledger.submit(vec![entry(999, Fact::OwnerProven)], on_durable).unwrap();
    entered.recv().unwrap();
    resume
}
