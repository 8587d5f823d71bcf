//! Every fact survives storage, and a row that was not written by us is refused by name.

use proptest::prelude::*;

use super::*;
use crate::billing::{
    Attempt, ClaimBody, Decode, Errand, ErrandKind, Purpose, RejectReason, SeedOrigin, TurnEnd,
    TurnHeader, TurnNonces,
};
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, ClaimSeq, Hash32, PricePerToken,
    TokenCount, TurnNo, TxHash, WalletNonce,
};

fn hash32() -> impl Strategy<Value = Hash32> {
    any::<[u8; 32]>().prop_map(Hash32::new)
}

fn tx_hash() -> impl Strategy<Value = TxHash> {
    any::<[u8; 32]>().prop_map(TxHash::new)
}

fn address() -> impl Strategy<Value = Address> {
    any::<[u8; 20]>().prop_map(Address::new)
}

fn amount() -> impl Strategy<Value = Amount> {
    any::<u128>().prop_map(Amount::new)
}

fn nonce() -> impl Strategy<Value = WalletNonce> {
    any::<u64>().prop_map(WalletNonce::new)
}

fn turn() -> impl Strategy<Value = TurnNo> {
    any::<u32>().prop_map(TurnNo::new)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..40)
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(any::<u32>(), 0..40)
}

fn attempt() -> impl Strategy<Value = Attempt> {
    (tx_hash(), bytes(), amount(), amount(), any::<u64>()).prop_map(
        |(hash, raw, fee_max, tip_max, gas_limit)| Attempt {
            hash,
            raw,
            fee_max,
            tip_max,
            gas_limit,
        },
    )
}

fn purpose() -> impl Strategy<Value = Purpose> {
    prop_oneof![
        Just(Purpose::Complete),
        Just(Purpose::Fill),
        errand().prop_map(Purpose::Errand),
        (any::<u32>(), any::<u64>(), any::<u64>(), bytes()).prop_map(
            |(seq, tokens, cumulative, proof)| Purpose::Claim(ClaimBody {
                seq: ClaimSeq::new(seq),
                tokens: TokenCount::new(tokens),
                tokens_cumulative: TokenCount::new(cumulative),
                proof,
            })
        ),
    ]
}

fn errand() -> impl Strategy<Value = Errand> {
    let kind =
        prop_oneof![
            (address(), amount(), proptest::option::of(address()))
                .prop_map(|(token, amount, cold)| ErrandKind::Withdraw { token, amount, cold }),
            (address(), amount(), address())
                .prop_map(|(token, amount, cold)| ErrandKind::Forward { token, amount, cold }),
            any::<String>().prop_map(|name| ErrandKind::Registry { name }),
        ];
    (kind, address(), amount(), bytes()).prop_map(|(kind, to, value, input)| Errand {
        kind,
        to,
        value,
        input,
    })
}

fn header() -> impl Strategy<Value = TurnHeader> {
    let specs = (hash32(), hash32(), hash32(), hash32(), any::<u32>());
    let origin = prop_oneof![Just(SeedOrigin::Client), Just(SeedOrigin::Derived)];
    let decode = proptest::option::of(decode_settings());
    let nonces = (hash32(), proptest::option::of(hash32()))
        .prop_map(|(host, user)| TurnNonces { host, user });
    let nonces = proptest::option::of(nonces);
    (turn(), specs, origin, ids(), decode, nonces).prop_map(
        |(turn, specs, seed_origin, prompt_ids, decode, nonces)| {
            let (model_spec, tokenizer_spec, decode_spec, seed, engine_spec) = specs;
            TurnHeader {
                turn,
                model_spec,
                tokenizer_spec,
                decode_spec,
                decode: decode.map(Box::new),
                engine_spec,
                seed,
                seed_origin,
                nonces,
                prompt_ids,
            }
        },
    )
}

/// Floats of every size: what is stored must come back bit for bit.
fn float() -> impl Strategy<Value = f32> {
    use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO | NEGATIVE | POSITIVE
}

fn decode_settings() -> impl Strategy<Value = Decode> {
    let floats = [float(), float(), float(), float(), float(), float()];
    let bias = proptest::collection::btree_map(any::<u32>(), float(), 0..5);
    let stop = proptest::collection::vec(any::<String>(), 0..4);
    (floats, any::<u32>(), bias, any::<u32>(), stop, any::<bool>()).prop_map(
        |(floats, top_k, logit_bias, max_tokens, stop, ignore_eos)| {
            let [temperature, top_p, min_p, repetition_penalty, frequency, presence] = floats;
            Decode {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty,
                frequency_penalty: frequency,
                presence_penalty: presence,
                logit_bias,
                max_tokens,
                stop,
                ignore_eos,
            }
        },
    )
}

/// Ids, with as many states or none.
fn tokens() -> impl Strategy<Value = (Vec<u32>, Vec<Hash32>)> {
    let one = (any::<u32>(), hash32());
    (proptest::collection::vec(one, 0..12), any::<bool>()).prop_map(|(all, has_states)| {
        let states = all.iter().filter(|_| has_states).map(|(_, state)| *state).collect();
        (all.iter().map(|(id, _)| *id).collect(), states)
    })
}

fn job_fact() -> impl Strategy<Value = Fact> {
    let terms = (address(), amount(), any::<u128>(), address(), any::<u64>(), any::<u64>());
    prop_oneof![
        terms.prop_map(|(depositor, deposit, price, payment_token, start, before)| {
            Fact::JobOpened {
                depositor,
                deposit,
                price: PricePerToken::new(price),
                payment_token,
                start_time: ChainTime::new(start),
                tokens_before: TokenCount::new(before),
            }
        }),
        Just(Fact::OwnerProven),
        (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(closing, tail, lost)| {
            Fact::JobClosed {
                closing,
                block: BlockNumber::new(lost),
                unclaimable: TokenCount::new(tail),
                forfeited: TokenCount::new(lost),
            }
        }),
        any::<u32>().prop_map(|closing| Fact::JobReopened { closing }),
        any::<String>().prop_map(|why| Fact::JobHalted { why }),
    ]
}

fn turn_fact() -> impl Strategy<Value = Fact> {
    let end = prop_oneof![
        Just(TurnEnd::Stop),
        Just(TurnEnd::Length),
        Just(TurnEnd::Cancelled),
        Just(TurnEnd::DepositExhausted),
        Just(TurnEnd::Error),
    ];
    prop_oneof![
        header().prop_map(Fact::TurnStarted),
        (turn(), any::<u32>(), tokens()).prop_map(|(turn, position, (ids, states))| {
            Fact::Delivered { turn, position, ids, states }
        }),
        (turn(), end).prop_map(|(turn, end)| Fact::TurnEnded { turn, end }),
    ]
}

fn tx_fact() -> impl Strategy<Value = Fact> {
    let reason = prop_oneof![
        Just(RejectReason::Reverted),
        Just(RejectReason::NonceTaken),
        Just(RejectReason::Cancelled),
    ];
    let block = (any::<u64>(), any::<[u8; 32]>());
    prop_oneof![
        (nonce(), purpose(), attempt()).prop_map(|(nonce, purpose, attempt)| Fact::TxPrepared {
            nonce,
            purpose,
            attempt
        }),
        (nonce(), attempt()).prop_map(|(nonce, attempt)| Fact::TxRepriced { nonce, attempt }),
        (nonce(), attempt()).prop_map(|(nonce, attempt)| Fact::TxCancelled { nonce, attempt }),
        (nonce(), tx_hash(), any::<u32>(), block, amount()).prop_map(
            |(nonce, hash, sighting, (block, block_hash), fee)| Fact::TxIncluded {
                nonce,
                hash,
                sighting,
                block: BlockNumber::new(block),
                block_hash: BlockHash::new(block_hash),
                fee,
            }
        ),
        (nonce(), any::<u32>()).prop_map(|(nonce, sighting)| Fact::TxReorged { nonce, sighting }),
        (nonce(), any::<u32>()).prop_map(|(nonce, sighting)| Fact::TxConfirmed { nonce, sighting }),
        (nonce(), tx_hash(), reason, amount()).prop_map(|(nonce, first, reason, fee)| {
            Fact::TxRejected { nonce, first, reason, fee }
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let fact = prop_oneof![job_fact(), turn_fact(), tx_fact()];
    (any::<u64>(), any::<u64>(), fact).prop_map(|(job, at, fact)| Entry {
        subject: JobId::new(job).map_or(Subject::Wallet, Subject::Job),
        at: Millis::new(at),
        fact,
    })
}

proptest! {
    #[test]
    fn every_fact_survives_storage_unchanged(entry in entry()) {
        let row = encode(&entry).unwrap();
        prop_assert_eq!(decode(1, &row), Ok(entry.clone()));
        let checksum = i64::from(row.checksum(1));
        prop_assert_eq!(decode_checked(1, &row, checksum), Ok(entry.clone()));
        prop_assert!(decode_checked(2, &row, checksum).is_err());
        if let Some(delivery) = Delivery::of(&entry) {
            let checksum = i64::from(delivery.checksum(1));
            prop_assert_eq!(delivery.entry(1, checksum), Ok(entry));
            prop_assert!(delivery.entry(2, checksum).is_err());
        }
    }
}

fn delivered() -> Row<'static> {
    let turn = TurnNo::new(3);
    let fact = Fact::Delivered { turn, position: 8, ids: vec![1, 2], states: vec![] };
    encode(&Entry { subject: JobId::new(7).unwrap().into(), at: Millis::new(5), fact }).unwrap()
}

#[test]
fn the_stored_text_of_version_1_never_changes() {
    let row = delivered();
    assert_eq!(row.body, r#"{"v":1,"fact":{"delivered":{"turn":3,"position":8,"ids":[1,2]}}}"#);
    assert_eq!((&*row.kind, row.tokens), ("delivered", 2));
}

#[test]
fn what_was_not_written_by_us_is_refused_by_row() {
    let good = delivered();
    let with = |change: &dyn Fn(&mut Row<'static>)| {
        let mut row = good.clone();
        change(&mut row);
        let Err(LedgerError::Store(why)) = decode(42, &row) else { panic!("{row:?}") };
        assert!(why.contains("entry 42"), "{why}");
        why
    };
    assert!(
        with(&|row| row.body = row.body.replace("\"v\":1", "\"v\":2").into()).contains("version")
    );
    assert!(with(&|row| row.body = "{".into()).contains("malformed"));
    assert!(
        with(&|row| row.body = row.body.replace("delivered", "gifted").into()).contains("gifted")
    );
    with(&|row| row.kind = "gifted".into());
    with(&|row| row.body = row.body.replace("[1,2]", "[1,2,3]").into());
    with(&|row| row.body = row.body.replace("\"position\":8", "\"position\":9").into());
    with(&|row| row.job = 0);
    with(&|row| row.key = "7/turn/3/at/9".into());
}

#[test]
fn any_changed_bit_is_seen() {
    let row = delivered();
    let checksum = row.checksum(1);
    let (ids, states) = (vec![1, 0, 0, 0].into(), vec![7; 32].into());
    let delivery = Delivery { job: 7, turn: 3, position: 8, at_ms: 5, ids, states };
    let of_delivery = delivery.checksum(1);
    for bit in 0..32 {
        let mut other = delivery.clone();
        other.ids.to_mut()[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(other.checksum(1), of_delivery);
    }
    for bit in 0..256 {
        let mut other = delivery.clone();
        other.states.to_mut()[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(other.checksum(1), of_delivery);
    }
    for at in 0..row.body.len() {
        let mut bytes = row.body.clone().into_owned().into_bytes();
        bytes[at] ^= 1;
        let body = String::from_utf8(bytes).unwrap().into();
        assert_ne!(Row { body, ..row.clone() }.checksum(1), checksum);
    }
    // A byte that wanders from one column to the next is seen too.
    let body = format!("d{}", row.body).into();
    let other = Row { kind: "delivere".into(), body, ..row.clone() };
    assert_ne!(other.checksum(1), checksum);
}
