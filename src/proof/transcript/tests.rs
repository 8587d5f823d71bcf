//! Roots are stable, whatever arrives later and however it was grouped.

use proptest::prelude::*;

use super::super::preimage::keccak256;
use super::*;
use crate::billing::{Attempt, ClaimBody, SeedOrigin, TurnEnd, TurnNonces};
use crate::units::{Amount, Millis, TxHash, WalletNonce};

fn job() -> JobId {
    JobId::new(7).unwrap()
}

fn entry(fact: Fact) -> Entry {
    Entry { subject: job().into(), at: Millis::ZERO, fact }
}

fn started(turn: u32) -> Entry {
    entry(Fact::TurnStarted(TurnHeader {
        turn: TurnNo::new(turn),
        model_spec: Hash32::new([1; 32]),
        tokenizer_spec: Hash32::new([2; 32]),
        decode_spec: Hash32::new([3; 32]),
        engine_spec: 0,
        seed: Hash32::new([5; 32]),
        seed_origin: SeedOrigin::Derived,
        decode: None,
        nonces: None,
        prompt_ids: vec![turn, 1],
    }))
}

/// Ids follow from turn and position.
fn delivered(turn: u32, position: u32, count: u32) -> Entry {
    let ids: Vec<u32> = (position..position + count).map(|at| turn * 100_000 + at).collect();
    let states = ids.iter().map(|id| keccak256(&id.to_le_bytes())).collect();
    entry(Fact::Delivered { turn: TurnNo::new(turn), position, ids, states })
}

fn ended(turn: u32) -> Entry {
    entry(Fact::TurnEnded { turn: TurnNo::new(turn), end: TurnEnd::Stop })
}

fn claimed(seq: u32, tokens_cumulative: u64) -> Entry {
    let body = ClaimBody {
        seq: ClaimSeq::new(seq),
        tokens: TokenCount::ZERO,
        tokens_cumulative: TokenCount::new(tokens_cumulative),
        proof: Vec::new(),
    };
    let attempt = Attempt {
        hash: TxHash::new([0; 32]),
        raw: Vec::new(),
        fee_max: Amount::ZERO,
        tip_max: Amount::ZERO,
        gas_limit: 0,
    };
    let nonce = WalletNonce::new(u64::from(seq));
    entry(Fact::TxPrepared { nonce, purpose: Purpose::Claim(body), attempt })
}

fn cut(entries: &[Entry], tokens: u64) -> Option<Cut> {
    Transcript::from_entries(job(), entries).cut_at(TokenCount::new(tokens))
}

/// One step of random traffic over four turns that run side by side.
#[derive(Debug, Clone)]
enum Op {
    Deliver {
        turn: u32,
        count: u32,
    },
    End {
        turn: u32,
    },
    /// Claims this share of what is recorded, in 1/256.
    Claim {
        share: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => (0..4_u32, 1..50_u32).prop_map(|(turn, count)| Op::Deliver { turn, count }),
        1 => (0..4_u32).prop_map(|turn| Op::End { turn }),
        2 => (1..=256_u64).prop_map(|share| Op::Claim { share }),
    ];
    proptest::collection::vec(op, 1..60)
}

/// The ledger of that traffic. Claims are not monotone: rejected ones are claimed again, with
/// less or more.
fn ledger(ops: &[Op]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut turns: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
    let (mut total, mut seq) = (0, 0);
    for op in ops {
        match op {
            Op::Deliver { turn, count } => {
                let (position, is_over) = *turns.entry(*turn).or_insert_with(|| {
                    entries.push(started(*turn));
                    (0, false)
                });
                if !is_over {
                    entries.push(delivered(*turn, position, *count));
                    turns.insert(*turn, (position + count, false));
                    total += u64::from(*count);
                }
            }
            Op::End { turn } => {
                if let Some((_, is_over @ false)) = turns.get_mut(turn) {
                    *is_over = true;
                    entries.push(ended(*turn));
                }
            }
            Op::Claim { share } => {
                let tokens = total * share / 256;
                if tokens > 0 {
                    seq += 1;
                    entries.push(claimed(seq, tokens));
                }
            }
        }
    }
    entries
}

/// The same tokens in the same order, recorded one by one.
fn one_by_one(entries: &[Entry]) -> Vec<Entry> {
    let split = |each: &Entry| match &each.fact {
        Fact::Delivered { turn, position, ids, states } => (*position..)
            .zip(ids.iter().zip(states))
            .map(|(position, (id, state))| {
                let (turn, ids, states) = (*turn, vec![*id], vec![*state]);
                entry(Fact::Delivered { turn, position, ids, states })
            })
            .collect(),
        _ => vec![each.clone()],
    };
    entries.iter().flat_map(split).collect()
}

proptest! {
    #[test]
    fn a_root_that_is_out_never_changes(ops in ops()) {
        let entries = ledger(&ops);
        let whole = Transcript::from_entries(job(), &entries);
        prop_assert_eq!(whole.fault(), None);
        for (at, each) in entries.iter().enumerate() {
            let Fact::TxPrepared { purpose: Purpose::Claim(claim), .. } = &each.fact else {
                continue;
            };
            // As it was cut before the claim was written, and at every later moment.
            let then = cut(&entries[..at], claim.tokens_cumulative.get());
            prop_assert!(then.is_some());
            prop_assert_eq!(then.map(|cut| cut.tokens), Some(claim.tokens_cumulative));
            for end in at + 1..=entries.len() {
                let later = Transcript::from_entries(job(), &entries[..end]);
                prop_assert_eq!(later.cut_of(claim.seq), then);
            }
            // A second attempt at the same count has the same root.
            prop_assert_eq!(whole.cut_at(claim.tokens_cumulative), then);
        }
    }

    #[test]
    fn how_deliveries_were_grouped_leaves_no_mark(ops in ops(), share in 1..=256_u64) {
        let entries = ledger(&ops);
        let grouped = Transcript::from_entries(job(), &entries);
        let single = Transcript::from_entries(job(), &one_by_one(&entries));
        let tokens = TokenCount::new(grouped.tokens().get() * share / 256);
        prop_assert_eq!(grouped.cut_at(tokens), single.cut_at(tokens));
        prop_assert_eq!(grouped.cut_at(grouped.tokens()), single.cut_at(single.tokens()));
    }

    #[test]
    fn one_changed_token_changes_the_top(ops in ops(), pick in any::<prop::sample::Index>()) {
        let mut entries = ledger(&ops);
        let before = Transcript::from_entries(job(), &entries);
        let mut places: Vec<&mut u32> = entries
            .iter_mut()
            .filter_map(|entry| match &mut entry.fact {
                Fact::Delivered { ids, .. } => Some(ids),
                _ => None,
            })
            .flatten()
            .collect();
        prop_assume!(!places.is_empty());
        let at = pick.index(places.len());
        *places[at] ^= 1 << 31;
        let after = Transcript::from_entries(job(), &entries);
        prop_assert_ne!(before.cut_at(before.tokens()), after.cut_at(after.tokens()));
        // Tokens before it are not touched.
        let earlier = TokenCount::new(u64::try_from(at).unwrap());
        let untouched = |transcript: &Transcript| transcript.cut_at(earlier).map(|cut| cut.top);
        prop_assert_eq!(untouched(&before), untouched(&after));
    }
}

#[test]
fn there_is_no_cut_of_nothing_and_none_past_the_end() {
    let entries = [started(0), delivered(0, 0, 40)];
    assert_eq!(cut(&entries, 0), None);
    assert_eq!(cut(&entries, 40).unwrap().tokens.get(), 40);
    assert_eq!(cut(&entries, 41), None);
    assert_eq!(cut(&[started(0), ended(0)], 1), None);
}

#[test]
fn a_claim_is_canonical_where_every_token_has_its_state_and_a_canonical_engine() {
    let told = |entries: &[Entry], tokens| cut(entries, tokens).unwrap();
    let canonical = |turn| match started(turn).fact {
        Fact::TurnStarted(header) => {
            entry(Fact::TurnStarted(TurnHeader { engine_spec: 1, ..header }))
        }
        other => panic!("{other:?}"),
    };
    let mut bare = delivered(0, 40, 8);
    if let Fact::Delivered { states, .. } = &mut bare.fact {
        states.clear();
    }
    let entries = [canonical(0), delivered(0, 0, 40), bare.clone()];
    assert!(told(&entries, 40).is_canonical);
    assert!(!told(&entries, 41).is_canonical);
    assert!(!told(&[started(0), delivered(0, 0, 40)], 40).is_canonical);
    // A state more or less is another leaf, and a chunk that lacks one has none.
    let whole = [canonical(0), delivered(0, 0, 40), delivered(0, 40, 8)];
    assert_ne!(told(&entries, 48).top, told(&whole, 48).top);
    let chunks = |entries: &[Entry]| {
        Transcript::from_entries(job(), entries).chunks_at(TokenCount::new(48)).unwrap()
    };
    assert_eq!(chunks(&entries)[0], chunks(&whole)[0]);
    assert_eq!(chunks(&entries)[1].act_digest, Hash32::ZERO);
    let ids = chunks(&whole)[1].ids.clone();
    let states = ids.iter().map(|id| Some(keccak256(&id.to_le_bytes())));
    assert_eq!(chunks(&whole)[1].act_digest, act_digest(states));
}

#[test]
fn a_claim_says_where_a_users_nonce_is_missing() {
    let header = |turn, origin, nonces| match started(turn).fact {
        Fact::TurnStarted(header) => {
            entry(Fact::TurnStarted(TurnHeader { seed_origin: origin, nonces, ..header }))
        }
        other => panic!("{other:?}"),
    };
    let host = Hash32::new([8; 32]);
    let given = TurnNonces { host, user: Some(Hash32::new([9; 32])) };
    let missing = TurnNonces { user: None, ..given };
    let lacks = |origin, nonces| {
        let entries = [header(0, origin, nonces), delivered(0, 0, 4)];
        cut(&entries, 4).unwrap().lacks_user_nonce
    };
    assert!(!lacks(SeedOrigin::Derived, Some(given)));
    assert!(lacks(SeedOrigin::Derived, Some(missing)));
    assert!(lacks(SeedOrigin::Derived, None));
    assert!(!lacks(SeedOrigin::Client, Some(missing)), "the client chose the seed itself");
    // A turn of which nothing is covered says nothing.
    let entries = [
        header(0, SeedOrigin::Derived, Some(given)),
        header(1, SeedOrigin::Derived, Some(missing)),
        delivered(0, 0, 4),
        delivered(1, 0, 4),
    ];
    assert!(!cut(&entries, 4).unwrap().lacks_user_nonce);
    assert!(cut(&entries, 5).unwrap().lacks_user_nonce);
}

#[test]
fn an_end_behind_the_last_token_does_not_move_its_chunk() {
    let open = [started(0), started(1), delivered(1, 0, 5), delivered(0, 0, 5)];
    let mut closed = open.to_vec();
    // Were these ends seen, the chunk of turn 1 would close first.
    closed.extend([ended(1), ended(0)]);
    assert_eq!(cut(&open, 10), cut(&closed, 10));
    let early = [started(0), started(1), delivered(1, 0, 5), ended(1), delivered(0, 0, 5)];
    assert_ne!(cut(&open, 10).unwrap().top, cut(&early, 10).unwrap().top);
}

#[test]
fn other_jobs_are_passed_over() {
    let mut entries = vec![started(0), delivered(0, 0, 40)];
    let before = cut(&entries, 40);
    let mut stranger = delivered(0, 0, 9);
    stranger.subject = JobId::new(8).unwrap().into();
    entries.insert(1, stranger);
    assert_eq!(cut(&entries, 40), before);
}

#[test]
fn a_ledger_that_contradicts_itself_is_a_fault_and_hides_what_follows() {
    let (job, turn) = (job(), TurnNo::new(0));
    let gap = |wanted, found| TranscriptError::Gap { job, turn, wanted, found };
    let beyond = TranscriptError::ClaimBeyond {
        job,
        seq: ClaimSeq::new(1),
        claimed: TokenCount::new(41),
        recorded: TokenCount::new(40),
    };
    let table = [
        (vec![started(0)], TranscriptError::StartedTwice { job, turn }),
        (vec![delivered(0, 41, 1)], gap(40, 41)),
        (vec![delivered(0, 39, 1)], gap(40, 39)),
        (vec![ended(0), delivered(0, 40, 1)], TranscriptError::AfterEnd { job, turn }),
        (vec![ended(9)], TranscriptError::UnknownTurn { job, turn: TurnNo::new(9) }),
        (vec![delivered(9, 0, 1)], TranscriptError::UnknownTurn { job, turn: TurnNo::new(9) }),
        (vec![claimed(1, 41)], beyond),
    ];
    for (wrong, fault) in table {
        let mut entries = vec![started(0), delivered(0, 0, 40)];
        entries.extend(wrong);
        entries.extend([started(1), delivered(1, 0, 40)]);
        let transcript = Transcript::from_entries(job, &entries);
        assert_eq!(transcript.fault(), Some(&fault));
        assert_eq!(transcript.tokens().get(), 40);
        assert_eq!(transcript.cut_at(TokenCount::new(41)), None);
        let sound = cut(&entries[..2], 40);
        assert_eq!(transcript.cut_at(TokenCount::new(40)), sound);
    }
}
