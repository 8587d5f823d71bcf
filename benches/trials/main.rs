//! Trials of `tally verify`: honest turns must all be found right, and cheats of every kind found
//! out, each by the check that is there for it.
//!
//! ```text
//! scripts/verify-trials.sh --turns N --cheats N --seed S
//! ```
//! Lines go to standard error; the last line of standard output is one JSON object. The seed gives
//! requests, engines and lies; where a client that leaves was when it left, how turns of one job
//! stand in its ledger, and hence what a lie is made of, follows the machine. What should not
//! have happened is kept as a blob in the folder for temporary files, for `tally verify --file`.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::large_futures)]

mod auditors;
mod cheats;
mod costs;
mod gguf;
mod honest;
mod lies;
mod lots;
mod models;
mod node;
mod record;
mod requests;
mod tallies;
#[path = "../../tests/it/support/tiny.rs"]
mod tiny;
mod workshop;

use std::path::PathBuf;

use auditors::Auditors;
use honest::Round;
use models::{Speakers, Subject};
use tallies::Tallies;
use workshop::Workshop;

/// Pairs of generating and deriving for each measured turn, in the quick form and in the full one.
const PAIRS: [usize; 2] = [2, 7];
/// From so many turns on it is the full form.
const FULL: usize = 1000;
/// Of so many rounds one is the real model's.
const REAL_EACH: u64 = 8;

struct Wishes {
    model: PathBuf,
    turns: usize,
    cheats: usize,
    seed: u64,
}

impl Wishes {
    /// `--model FILE --turns N --cheats N --seed S`, all of them.
    fn read() -> Self {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let find = |name: &str| {
            let at = words.iter().position(|word| word == name);
            at.and_then(|at| words.get(at + 1)).unwrap_or_else(|| panic!("{name} is missing"))
        };
        let number = |name: &str| -> u64 { find(name).parse().unwrap() };
        Self {
            model: find("--model").into(),
            turns: number("--turns") as usize,
            cheats: number("--cheats") as usize,
            seed: number("--seed"),
        }
    }
}

fn main() {
    let wishes = Wishes::read();
    let subjects = Subject::all(&wishes.model);
    let (mut speakers, mut auditors) = (Speakers::default(), Auditors::default());
    let (mut tallies, mut records) = (Tallies::default(), Vec::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut number = 0;
    while tallies.honest_turns < wishes.turns {
        let place = match number % REAL_EACH {
            0 => 0,
            other => 1 + (other + number / REAL_EACH) as usize % (subjects.len() - 1),
        };
        let round = Round { number, seed: wishes.seed, subject: (place, &subjects[place]) };
        let round = round.run((&mut speakers, &mut auditors), &mut tallies);
        records.extend(runtime.block_on(round));
        number += 1;
        eprintln!("round {number}: {} honest turns", tallies.honest_turns);
    }
    let mut workshop = Workshop { subjects: &subjects, records: &records, speakers: &mut speakers };
    let wanted = (wishes.seed, wishes.cheats);
    cheats::run((&mut workshop, &mut auditors), wanted, &mut tallies);
    let pairs = PAIRS[usize::from(wishes.turns >= FULL)];
    let costs = runtime.block_on(costs::measure(&wishes.model, pairs));
    tallies.verify_cost_ratio = costs.verify_cost_ratio;
    tallies.blob_bytes_per_token = costs.blob_bytes_per_token;
    eprintln!("{}", tallies.spread());
    let is_ok = tallies.is_ok(wishes.turns, wishes.cheats);
    println!("{}", tallies.report(is_ok));
    if !is_ok {
        std::process::exit(1);
    }
}
