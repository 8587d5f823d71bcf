//! Cheats: honest claims made false in one way, by a host that knows what is checked.
//!
//! Root, count, flags and signature are always made anew, so that nothing but the lie itself is
//! wrong; and whether it is a lie at all is asked of the engine, never of the auditor.

use std::collections::{BTreeMap, BTreeSet};

use tally::billing::{SeedOrigin, TurnEnd, TurnHeader};
use tally::chain::Wallet;
use tally::node::verify::{Check, Outcome, Verdict, verify};
use tally::proof::{
    Blob, BlobTurn, Chunk, FLAG_CANONICAL, FLAG_NONCE_DERIVED, ProofBytes, Voucher, act_digest,
};
use tally::units::{Hash32, TurnNo};
use tally_engine::FinishReason;

use crate::auditors::Auditors;
use crate::honest::{Record, claim_of};
use crate::lies;
use crate::lots::Lots;
use crate::models::{Said, Speakers, Subject};
use crate::node::{host, sign};
use crate::tallies::Tallies;

/// Which check must find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The derivation of the tokens, there; further on, where a stop string may have swallowed
    /// some.
    Tokens { position: u32, or_behind: bool },
    /// The digests of the hidden states: the tokens are the true ones.
    States,
    /// The text that the client read.
    Text,
    /// The seed, which does not follow from the nonces.
    Seed,
    /// Claim and blob: exactly these.
    Paper(Vec<&'static str>),
}

/// A false claim.
pub struct Lie {
    pub blob: Blob,
    pub proof: ProofBytes,
    pub texts: BTreeMap<TurnNo, String>,
    /// The turn that is false.
    pub turn: TurnNo,
    pub found: Found,
}

/// What lies are made of.
pub struct Workshop<'a> {
    pub subjects: &'a [Subject],
    pub records: &'a [Record],
    pub speakers: &'a mut Speakers,
}

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

/// A turn of a record, with all that a lie about it needs.
#[derive(Clone)]
pub struct Told {
    pub header: TurnHeader,
    pub ids: Vec<u32>,
    pub end: TurnEnd,
}

/// A turn with tokens and an end that says something about its text.
pub fn some_turn(record: &Record, lots: &mut Lots) -> Option<Told> {
    let told = record.blob.turns.iter().filter_map(|BlobTurn { header, end }| {
        let ids = record.blob.output(header.turn);
        let end = (*end)?;
        let is_usable = matches!(end, TurnEnd::Stop | TurnEnd::Length | TurnEnd::Cancelled);
        (is_usable && !ids.is_empty()).then(|| Told { header: header.clone(), ids, end })
    });
    let told: Vec<Told> = told.collect();
    (!told.is_empty()).then(|| told[lots.below(told.len())].clone())
}

/// Where a claim of these ids and this end is false, given what the model says; `None`: it is
/// true. The second part: only that it is not before.
pub fn first_fault(truth: &Said, ids: &[u32], end: TurnEnd) -> Option<(usize, bool)> {
    let is_stopped = matches!(truth.end, FinishReason::StopString(_));
    let same = truth.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
    if same < ids.len() {
        return Some((same, same == truth.ids.len() && is_stopped));
    }
    let is_as_said = match end {
        TurnEnd::Stop => is_stopped || truth.end == FinishReason::Stop,
        TurnEnd::Length => truth.end == FinishReason::Length,
        _ => true,
    };
    let is_cut = !matches!(end, TurnEnd::Stop | TurnEnd::Length);
    let is_true = is_cut || (same == truth.ids.len() && is_as_said);
    (!is_true).then_some((same, false))
}

/// The end that a turn has in the ledger.
pub fn end_of(reason: &FinishReason) -> TurnEnd {
    match reason {
        FinishReason::Stop | FinishReason::StopString(_) => TurnEnd::Stop,
        FinishReason::Length => TurnEnd::Length,
        _ => TurnEnd::Cancelled,
    }
}

/// A lie about one turn's tokens: `told` in the place of what was served, with these digests.
pub fn lie(record: &Record, told: Told, (states, found): (Vec<Hash32>, Found)) -> Option<Lie> {
    let mut blob = record.blob.clone();
    let turn = told.header.turn;
    let at = blob.turns.iter().position(|it| it.header.turn == turn)?;
    blob.turns[at] = BlobTurn { header: told.header, end: Some(told.end) };
    retell(&mut blob, turn, (&told.ids, &states));
    let mut texts = record.texts.clone();
    // The client's copy of the text would give it away: without it the tokens must.
    texts.remove(&turn);
    let proof = proof_of(&blob, record.proof);
    Some(Lie { blob, proof, texts, turn, found })
}

/// Puts other ids in the place of a turn's own, in as many chunks as they need.
fn retell(blob: &mut Blob, turn: TurnNo, (ids, states): (&[u32], &[Hash32])) {
    let own: Vec<usize> = (0..blob.chunks.len()).filter(|i| blob.chunks[*i].turn == turn).collect();
    let sizes: Vec<usize> = own.iter().map(|place| blob.chunks[*place].ids.len()).collect();
    let last = own.last().copied().unwrap_or_default();
    let (mut at, mut chunks) = (0, Vec::new());
    while at < ids.len() {
        let number = chunks.len();
        let is_inner = number + 1 < sizes.len();
        let size = if is_inner { sizes[number] } else { 32 }.min(ids.len() - at);
        let state = |place: usize| states.get(place).copied();
        chunks.push(Chunk {
            turn,
            number: number as u32,
            position: at as u32,
            ids: ids[at..at + size].to_vec(),
            act_digest: act_digest((at..at + size).map(state)),
        });
        at += size;
    }
    let mut chunks = chunks.into_iter();
    let mut all = Vec::new();
    for (place, chunk) in std::mem::take(&mut blob.chunks).into_iter().enumerate() {
        match (chunk.turn == turn, place == last) {
            (false, _) => all.push(chunk),
            (true, false) => all.extend(chunks.next()),
            (true, true) => all.extend(chunks.by_ref()),
        }
    }
    blob.chunks = all;
}

/// Proof bytes that a host would send with this blob.
pub fn proof_of(blob: &Blob, before: ProofBytes) -> ProofBytes {
    let lacks = blob.turns.iter().any(|BlobTurn { header, .. }| {
        let is_covered = blob.chunks.iter().any(|chunk| chunk.turn == header.turn);
        let is_derived = header.seed_origin == SeedOrigin::Derived;
        is_covered && is_derived && header.nonces.is_none_or(|it| it.user.is_none())
    });
    let has_states = blob.chunks.iter().all(|chunk| chunk.act_digest != Hash32::ZERO);
    let flags = if has_states { FLAG_CANONICAL } else { 0 };
    let flags = flags | if lacks { FLAG_NONCE_DERIVED } else { 0 };
    let (root, tokens_cumulative) = (blob.root().unwrap(), blob.tokens());
    signed(blob, ProofBytes { flags, tokens_cumulative, root, ..before })
}

/// The same, signed by the host.
pub fn signed(blob: &Blob, proof: ProofBytes) -> ProofBytes {
    let last = blob.chunks.last().and_then(|chunk| blob.header(chunk.turn)).unwrap();
    let voucher = Voucher {
        job: blob.job,
        tokens_cumulative: proof.tokens_cumulative,
        seq: proof.seq,
        root: proof.root,
        model: last.model_spec,
    };
    let wallet = host();
    let signature = sign(&*wallet as &dyn Wallet, &blob.domain, &voucher);
    ProofBytes { signature, ..proof }
}
