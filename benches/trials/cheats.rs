//! Cheats: honest claims made false in one way, by a host that knows what is checked.
//!
//! Root, count, flags and signature are always made anew, so that nothing but the lie itself is
//! wrong; and whether it is a lie at all is asked of the engine, never of the auditor.

use std::collections::{BTreeMap, BTreeSet};

use tally::node::verify::{Check, Outcome, Verdict, verify};
use tally::proof::Blob;

use crate::auditors::Auditors;
use crate::lies;
use crate::lots::Lots;
use crate::record::{Record, claim_of};
use crate::tallies::Tallies;
use crate::workshop::{Found, Lie, Workshop};

type Make = fn(&mut Workshop<'_>, &mut Lots) -> Option<Lie>;

/// Every cheat of docs/spec/proof.md.
pub const KINDS: [(&str, Make); 10] = [
    ("another_model", lies::another_model),
    ("another_quantisation", lies::another_quantisation),
    ("prompt_token", lies::prompt_token),
    ("output_token", lies::output_token),
    ("cheaper_sampler", lies::cheaper_sampler),
    ("padded_tokens", lies::padded_tokens),
    ("tokens_after_eos", lies::tokens_after_eos),
    ("edited_text", lies::edited_text),
    ("another_seed", lies::another_seed),
    ("other_count", lies::other_count),
];

/// Draws from which no lie came of a kind, at most: a changed prompt may give the same answer.
const DRAWS_MAX: u64 = 2000;

/// Tries every kind `count` times.
pub fn run(
    (workshop, auditors): (&mut Workshop<'_>, &mut Auditors),
    (seed, count): (u64, usize),
    tallies: &mut Tallies,
) {
    for (kind, make) in KINDS {
        tallies.cheats.insert(kind, Default::default());
        for number in 0..count as u64 {
            let name = format!("{kind} {number} of seed {seed}");
            let mut lots = Lots::of(seed, kind, number);
            let made = (0..DRAWS_MAX).find_map(|_| {
                let (subject, record) = pick(workshop, &mut lots);
                let lie = make(&mut Workshop { records: record, ..reborrow(workshop) }, &mut lots);
                lie.map(|lie| (subject, &record[0], lie))
            });
            let Some((subject, record, lie)) = made else {
                panic!("{name}: nothing to make it of");
            };
            tallies.tried(kind);
            tallies.count(format!("cheats against {}", workshop.subjects[subject].name));
            tallies.count(format!("{kind}: to be found by {}", word(&lie.found)));
            let model = auditors.of(&workshop.subjects[subject].path, record);
            let told = Record { texts: lie.texts.clone(), proof: lie.proof, ..copy(record, &lie) };
            let mut claim = claim_of(&told);
            let is_paper = matches!(lie.found, Found::Paper(_) | Found::Seed);
            // Turns beside the false one are as true as they were.
            if is_paper {
                claim.sample = Some(BTreeSet::new());
            } else if lots.is(75) {
                claim.sample = Some(BTreeSet::from([lie.turn]));
            }
            let blob = Blob::decode(&lie.blob.encode()).unwrap_or_else(|error| {
                panic!("{name}: the lie has no bytes: {error}");
            });
            let verdict = verify(&blob, &claim, model).unwrap();
            if verdict.is_ok() {
                tallies.accepted(kind, &name, (&blob, &verdict));
            } else if !is_found(&lie, &verdict) {
                eprintln!("{name}: wanted {:?} in turn {}", lie.found, lie.turn);
                tallies.wrong_reason(&name, (&blob, &verdict));
            }
        }
        eprintln!("{kind}: {count} tried, {} accepted", tallies.cheats[kind].accepted);
    }
}

fn reborrow<'a>(workshop: &'a mut Workshop<'_>) -> Workshop<'a> {
    let Workshop { subjects, records, speakers } = workshop;
    Workshop { subjects, records, speakers }
}

fn copy(record: &Record, lie: &Lie) -> Record {
    let Record { subject, kv_type, .. } = *record;
    let (proof, texts) = (lie.proof, BTreeMap::new());
    Record { subject, kv_type, blob: lie.blob.clone(), proof, texts }
}

/// A record at random; of the real model in one case of twelve.
fn pick<'a>(workshop: &Workshop<'a>, lots: &mut Lots) -> (usize, &'a [Record]) {
    let wants_real = lots.is(8);
    let records: &'a [Record] = workshop.records;
    loop {
        let place = lots.below(records.len());
        let subject = records[place].subject;
        if workshop.subjects[subject].is_real == wants_real {
            return (subject, &records[place..=place]);
        }
    }
}

fn word(found: &Found) -> String {
    match found {
        Found::Tokens { .. } => "tokens".into(),
        Found::States => "states".into(),
        Found::Text => "text".into(),
        Found::Seed => "seed".into(),
        Found::Paper(what) => what.join(" and "),
    }
}

/// Whether the checks that fail are those that must, and no others.
fn is_found(lie: &Lie, verdict: &Verdict) -> bool {
    let fails = |check: &&Check| check.outcome == Outcome::Fails;
    let failed: Vec<&Check> = verdict.checks.iter().filter(fails).collect();
    if let Found::Paper(wanted) = &lie.found {
        let what: Vec<&str> = failed.iter().map(|check| check.what).collect();
        return what == *wanted;
    }
    let [one] = failed[..] else { return false };
    let what = match &lie.found {
        Found::Tokens { position, or_behind } => {
            let is_there = |found| found == *position || (*or_behind && found > *position);
            return one.what == "tokens"
                && one.turn == Some(lie.turn)
                && one.position.is_some_and(is_there);
        }
        other => word(other),
    };
    one.what == what && one.turn == Some(lie.turn)
}
