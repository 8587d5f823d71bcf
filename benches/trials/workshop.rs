//! Where lies are made: the honest claims, whoever speaks for a model, and the tools that make a
//! claim whole again around a lie.

use std::collections::BTreeMap;

use tally::billing::{SeedOrigin, TurnEnd, TurnHeader};
use tally::chain::Wallet;
use tally::proof::{
    Blob, BlobTurn, Chunk, FLAG_CANONICAL, FLAG_NONCE_DERIVED, ProofBytes, Voucher, act_digest,
};
use tally::units::{Hash32, TurnNo};
use tally_engine::FinishReason;

use crate::lots::Lots;
use crate::models::{Said, Speakers, Subject};
use crate::node::{host, sign};
use crate::record::Record;

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
