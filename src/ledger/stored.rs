//! The stored form of an entry: one row whose body is versioned JSON.
//!
//! Never shared with a wire protocol: these types change only together with [`VERSION`], and a
//! row once written must be readable for ever. Never guesses: an unknown kind, version, field or
//! a key that does not match its body is an error that names the row. Relies on nothing but serde.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::billing::{
    Attempt, ClaimBody, Entry, Fact, Purpose, RejectReason, SeedOrigin, TurnEnd, TurnHeader,
};
use crate::ledger::LedgerError;
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, ClaimSeq, Hash32, JobId, Millis,
    PricePerToken, TokenCount, TurnNo, TxHash, WalletNonce,
};

/// Version of the bodies this program writes, and the only one it reads.
const VERSION: u32 = 1;

/// The columns of one entry besides its row id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// [`Entry::key`].
    pub key: String,
    /// The job.
    pub job: u64,
    /// Wall-clock milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Name of the fact.
    pub kind: String,
    /// Tokens this entry adds to what was delivered; 0 for all but deliveries.
    pub tokens: u64,
    /// The fact as versioned JSON.
    pub body: String,
}

/// The row of `entry`.
///
/// # Errors
/// [`LedgerError::Store`] when JSON refuses, which no fact makes it do.
pub(super) fn encode(entry: &Entry) -> Result<Row, LedgerError> {
    let body = Body { v: VERSION, fact: StoredFact::from(&entry.fact) };
    let key = entry.key();
    let body = serde_json::to_string(&body)
        .map_err(|error| LedgerError::Store(format!("entry {key} has no stored form: {error}")))?;
    Ok(Row {
        key,
        job: entry.job.get(),
        at_ms: entry.at.get(),
        kind: kind(&entry.fact).to_owned(),
        tokens: tokens(&entry.fact),
        body,
    })
}

/// The entry of row `id`.
///
/// # Errors
/// [`LedgerError::Store`] naming the row, for anything [`encode`] would not have written.
pub(super) fn decode(id: i64, row: &Row) -> Result<Entry, LedgerError> {
    let refuse = |why: String| LedgerError::Store(format!("entry {id} ({}): {why}", row.key));
    let body: Body = serde_json::from_str(&row.body).map_err(|error| match version(&row.body) {
        Some(found) if found != VERSION => {
            refuse(format!("stored as version {found}, this program reads {VERSION}"))
        }
        Some(_) | None => refuse(format!("malformed {} body: {error}", row.kind)),
    })?;
    if body.v != VERSION {
        return Err(refuse(format!("stored as version {}, this program reads {VERSION}", body.v)));
    }
    let fact = Fact::from(body.fact);
    if kind(&fact) != row.kind {
        return Err(refuse(format!("kind {:?} holds a {:?} body", row.kind, kind(&fact))));
    }
    let job = JobId::new(row.job).ok_or_else(|| refuse("job 0 does not exist".into()))?;
    let entry = Entry { job, at: Millis::new(row.at_ms), fact };
    if entry.key() != row.key || tokens(&entry.fact) != row.tokens {
        return Err(refuse(format!("its body is that of {}", entry.key())));
    }
    Ok(entry)
}

/// The name of a fact in the `kind` column.
pub(super) fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::JobOpened { .. } => "job_opened",
        Fact::OwnerProven => "owner_proven",
        Fact::TurnStarted(_) => "turn_started",
        Fact::Delivered { .. } => "delivered",
        Fact::TurnEnded { .. } => "turn_ended",
        Fact::TxPrepared { .. } => "tx_prepared",
        Fact::TxRepriced { .. } => "tx_repriced",
        Fact::TxIncluded { .. } => "tx_included",
        Fact::TxReorged { .. } => "tx_reorged",
        Fact::TxConfirmed { .. } => "tx_confirmed",
        Fact::TxRejected { .. } => "tx_rejected",
        Fact::JobClosed { .. } => "job_closed",
        Fact::JobHalted { .. } => "job_halted",
    }
}

fn tokens(fact: &Fact) -> u64 {
    let Fact::Delivered { ids, .. } = fact else { return 0 };
    u64::try_from(ids.len()).unwrap_or(u64::MAX)
}

fn version(body: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    serde_json::from_str::<Versioned>(body).ok().map(|found| found.v)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    v: u32,
    fact: StoredFact,
}

/// A value stored as text: hashes and addresses in 0x-hex, 128-bit amounts in decimal, since
/// JSON readers other than ours round numbers past 2^53.
struct Text<T>(T);

trait Parse: Sized {
    fn parse_text(text: &str) -> Option<Self>;
}

macro_rules! parse_by {
    ($($name:ident),*) => {
        $(impl Parse for $name {
            fn parse_text(text: &str) -> Option<Self> {
                Self::parse(text)
            }
        })*
    };
}
parse_by!(Hash32, TxHash, BlockHash, Address);

impl Parse for Amount {
    fn parse_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::new)
    }
}

impl Parse for PricePerToken {
    fn parse_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::new)
    }
}

/// Bytes of any length, as 0x-hex.
struct Bytes(Vec<u8>);

impl Parse for Bytes {
    fn parse_text(text: &str) -> Option<Self> {
        hex::decode(text.strip_prefix("0x")?).ok().map(Self)
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{}", hex::encode(&self.0))
    }
}

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: Parse> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wanted = || de::Error::custom(format!("{text:?} is no {}", std::any::type_name::<T>()));
        T::parse_text(&text).map(Self).ok_or_else(wanted)
    }
}

/// Declares the stored twin of an enum without fields.
macro_rules! mirror {
    ($twin:ident of $name:ident { $($variant:ident),* }) => {
        #[derive(Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum $twin { $($variant),* }

        impl From<$name> for $twin {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),* }
            }
        }

        impl From<$twin> for $name {
            fn from(value: $twin) -> Self {
                match value { $($twin::$variant => Self::$variant),* }
            }
        }
    };
}
mirror!(StoredOrigin of SeedOrigin { Client, Derived });
mirror!(StoredEnd of TurnEnd { Stop, Length, Cancelled, DepositExhausted, Error });
mirror!(StoredReason of RejectReason { Reverted, NonceTaken });

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredHeader {
    turn: u32,
    model_spec: Text<Hash32>,
    tokenizer_spec: Text<Hash32>,
    decode_spec: Text<Hash32>,
    engine_spec: u32,
    seed: Text<Hash32>,
    seed_origin: StoredOrigin,
    prompt_ids: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StoredPurpose {
    Claim { seq: u32, tokens: u64, tokens_cumulative: u64, proof: Text<Bytes> },
    Complete,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAttempt {
    hash: Text<TxHash>,
    raw: Text<Bytes>,
    fee_max: Text<Amount>,
    tip_max: Text<Amount>,
    gas_limit: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTerms {
    depositor: Text<Address>,
    deposit: Text<Amount>,
    price: Text<PricePerToken>,
    payment_token: Text<Address>,
    start_time: u64,
    tokens_before: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredInclusion {
    nonce: u64,
    hash: Text<TxHash>,
    sighting: u32,
    block: u64,
    block_hash: Text<BlockHash>,
    fee: Text<Amount>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StoredFact {
    JobOpened(StoredTerms),
    OwnerProven,
    TurnStarted(StoredHeader),
    Delivered { turn: u32, position: u32, ids: Vec<u32> },
    TurnEnded { turn: u32, end: StoredEnd },
    TxPrepared { nonce: u64, purpose: StoredPurpose, attempt: StoredAttempt },
    TxRepriced { nonce: u64, attempt: StoredAttempt },
    TxIncluded(StoredInclusion),
    TxReorged { nonce: u64, sighting: u32 },
    TxConfirmed { nonce: u64 },
    TxRejected { nonce: u64, first: Text<TxHash>, reason: StoredReason },
    JobClosed { forfeited: u64 },
    JobHalted { why: String },
}

impl From<&TurnHeader> for StoredHeader {
    fn from(header: &TurnHeader) -> Self {
        Self {
            turn: header.turn.get(),
            model_spec: Text(header.model_spec),
            tokenizer_spec: Text(header.tokenizer_spec),
            decode_spec: Text(header.decode_spec),
            engine_spec: header.engine_spec,
            seed: Text(header.seed),
            seed_origin: header.seed_origin.into(),
            prompt_ids: header.prompt_ids.clone(),
        }
    }
}

impl From<StoredHeader> for TurnHeader {
    fn from(stored: StoredHeader) -> Self {
        Self {
            turn: TurnNo::new(stored.turn),
            model_spec: stored.model_spec.0,
            tokenizer_spec: stored.tokenizer_spec.0,
            decode_spec: stored.decode_spec.0,
            engine_spec: stored.engine_spec,
            seed: stored.seed.0,
            seed_origin: stored.seed_origin.into(),
            prompt_ids: stored.prompt_ids,
        }
    }
}

impl From<&Purpose> for StoredPurpose {
    fn from(purpose: &Purpose) -> Self {
        match purpose {
            Purpose::Complete => Self::Complete,
            Purpose::Claim(body) => Self::Claim {
                seq: body.seq.get(),
                tokens: body.tokens.get(),
                tokens_cumulative: body.tokens_cumulative.get(),
                proof: Text(Bytes(body.proof.clone())),
            },
        }
    }
}

impl From<StoredPurpose> for Purpose {
    fn from(stored: StoredPurpose) -> Self {
        match stored {
            StoredPurpose::Complete => Self::Complete,
            StoredPurpose::Claim { seq, tokens, tokens_cumulative, proof } => {
                Self::Claim(ClaimBody {
                    seq: ClaimSeq::new(seq),
                    tokens: TokenCount::new(tokens),
                    tokens_cumulative: TokenCount::new(tokens_cumulative),
                    proof: proof.0.0,
                })
            }
        }
    }
}

impl From<&Attempt> for StoredAttempt {
    fn from(attempt: &Attempt) -> Self {
        Self {
            hash: Text(attempt.hash),
            raw: Text(Bytes(attempt.raw.clone())),
            fee_max: Text(attempt.fee_max),
            tip_max: Text(attempt.tip_max),
            gas_limit: attempt.gas_limit,
        }
    }
}

impl From<StoredAttempt> for Attempt {
    fn from(stored: StoredAttempt) -> Self {
        Self {
            hash: stored.hash.0,
            raw: stored.raw.0.0,
            fee_max: stored.fee_max.0,
            tip_max: stored.tip_max.0,
            gas_limit: stored.gas_limit,
        }
    }
}

impl From<&Fact> for StoredFact {
    fn from(fact: &Fact) -> Self {
        match fact {
            Fact::JobOpened {
                depositor,
                deposit,
                price,
                payment_token,
                start_time,
                tokens_before,
            } => Self::JobOpened(StoredTerms {
                depositor: Text(*depositor),
                deposit: Text(*deposit),
                price: Text(*price),
                payment_token: Text(*payment_token),
                start_time: start_time.get(),
                tokens_before: tokens_before.get(),
            }),
            Fact::OwnerProven => Self::OwnerProven,
            Fact::TurnStarted(header) => Self::TurnStarted(header.into()),
            Fact::Delivered { turn, position, ids } => {
                Self::Delivered { turn: turn.get(), position: *position, ids: ids.clone() }
            }
            Fact::TurnEnded { turn, end } => {
                Self::TurnEnded { turn: turn.get(), end: (*end).into() }
            }
            Fact::TxPrepared { nonce, purpose, attempt } => Self::TxPrepared {
                nonce: nonce.get(),
                purpose: purpose.into(),
                attempt: attempt.into(),
            },
            Fact::TxRepriced { nonce, attempt } => {
                Self::TxRepriced { nonce: nonce.get(), attempt: attempt.into() }
            }
            Fact::TxIncluded { nonce, hash, sighting, block, block_hash, fee } => {
                Self::TxIncluded(StoredInclusion {
                    nonce: nonce.get(),
                    hash: Text(*hash),
                    sighting: *sighting,
                    block: block.get(),
                    block_hash: Text(*block_hash),
                    fee: Text(*fee),
                })
            }
            Fact::TxReorged { nonce, sighting } => {
                Self::TxReorged { nonce: nonce.get(), sighting: *sighting }
            }
            Fact::TxConfirmed { nonce } => Self::TxConfirmed { nonce: nonce.get() },
            Fact::TxRejected { nonce, first, reason } => Self::TxRejected {
                nonce: nonce.get(),
                first: Text(*first),
                reason: (*reason).into(),
            },
            Fact::JobClosed { forfeited } => Self::JobClosed { forfeited: forfeited.get() },
            Fact::JobHalted { why } => Self::JobHalted { why: why.clone() },
        }
    }
}

impl From<StoredTerms> for Fact {
    fn from(terms: StoredTerms) -> Self {
        Self::JobOpened {
            depositor: terms.depositor.0,
            deposit: terms.deposit.0,
            price: terms.price.0,
            payment_token: terms.payment_token.0,
            start_time: ChainTime::new(terms.start_time),
            tokens_before: TokenCount::new(terms.tokens_before),
        }
    }
}

impl From<StoredInclusion> for Fact {
    fn from(seen: StoredInclusion) -> Self {
        Self::TxIncluded {
            nonce: WalletNonce::new(seen.nonce),
            hash: seen.hash.0,
            sighting: seen.sighting,
            block: BlockNumber::new(seen.block),
            block_hash: seen.block_hash.0,
            fee: seen.fee.0,
        }
    }
}

impl From<StoredFact> for Fact {
    fn from(stored: StoredFact) -> Self {
        match stored {
            StoredFact::JobOpened(terms) => terms.into(),
            StoredFact::OwnerProven => Self::OwnerProven,
            StoredFact::TurnStarted(header) => Self::TurnStarted(header.into()),
            StoredFact::Delivered { turn, position, ids } => {
                Self::Delivered { turn: TurnNo::new(turn), position, ids }
            }
            StoredFact::TurnEnded { turn, end } => {
                Self::TurnEnded { turn: TurnNo::new(turn), end: end.into() }
            }
            StoredFact::TxPrepared { nonce, purpose, attempt } => Self::TxPrepared {
                nonce: WalletNonce::new(nonce),
                purpose: purpose.into(),
                attempt: attempt.into(),
            },
            StoredFact::TxRepriced { nonce, attempt } => {
                Self::TxRepriced { nonce: WalletNonce::new(nonce), attempt: attempt.into() }
            }
            StoredFact::TxIncluded(seen) => seen.into(),
            StoredFact::TxReorged { nonce, sighting } => {
                Self::TxReorged { nonce: WalletNonce::new(nonce), sighting }
            }
            StoredFact::TxConfirmed { nonce } => {
                Self::TxConfirmed { nonce: WalletNonce::new(nonce) }
            }
            StoredFact::TxRejected { nonce, first, reason } => Self::TxRejected {
                nonce: WalletNonce::new(nonce),
                first: first.0,
                reason: reason.into(),
            },
            StoredFact::JobClosed { forfeited } => {
                Self::JobClosed { forfeited: TokenCount::new(forfeited) }
            }
            StoredFact::JobHalted { why } => Self::JobHalted { why },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    fn header() -> impl Strategy<Value = TurnHeader> {
        let specs = (hash32(), hash32(), hash32(), hash32());
        let origin = prop_oneof![Just(SeedOrigin::Client), Just(SeedOrigin::Derived)];
        (turn(), specs, any::<u32>(), origin, ids()).prop_map(
            |(turn, (model_spec, tokenizer_spec, decode_spec, seed), engine_spec, origin, ids)| {
                TurnHeader {
                    turn,
                    model_spec,
                    tokenizer_spec,
                    decode_spec,
                    engine_spec,
                    seed,
                    seed_origin: origin,
                    prompt_ids: ids,
                }
            },
        )
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
            any::<u64>().prop_map(|n| Fact::JobClosed { forfeited: TokenCount::new(n) }),
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
            (turn(), any::<u32>(), ids()).prop_map(|(turn, position, ids)| Fact::Delivered {
                turn,
                position,
                ids
            }),
            (turn(), end).prop_map(|(turn, end)| Fact::TurnEnded { turn, end }),
        ]
    }

    fn tx_fact() -> impl Strategy<Value = Fact> {
        let reason = prop_oneof![Just(RejectReason::Reverted), Just(RejectReason::NonceTaken),];
        let block = (any::<u64>(), any::<[u8; 32]>());
        prop_oneof![
            (nonce(), purpose(), attempt())
                .prop_map(|(nonce, purpose, attempt)| Fact::TxPrepared { nonce, purpose, attempt }),
            (nonce(), attempt()).prop_map(|(nonce, attempt)| Fact::TxRepriced { nonce, attempt }),
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
            (nonce(), any::<u32>())
                .prop_map(|(nonce, sighting)| Fact::TxReorged { nonce, sighting }),
            nonce().prop_map(|nonce| Fact::TxConfirmed { nonce }),
            (nonce(), tx_hash(), reason).prop_map(|(nonce, first, reason)| Fact::TxRejected {
                nonce,
                first,
                reason
            }),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let fact = prop_oneof![job_fact(), turn_fact(), tx_fact()];
        (1..=u64::MAX, any::<u64>(), fact).prop_map(|(job, at, fact)| Entry {
            job: JobId::new(job).unwrap(),
            at: Millis::new(at),
            fact,
        })
    }

    proptest! {
        #[test]
        fn every_fact_survives_storage_unchanged(entry in entry()) {
            let row = encode(&entry).unwrap();
            prop_assert_eq!(decode(1, &row), Ok(entry));
        }
    }

    fn delivered() -> Row {
        let turn = TurnNo::new(3);
        let fact = Fact::Delivered { turn, position: 8, ids: vec![1, 2] };
        encode(&Entry { job: JobId::new(7).unwrap(), at: Millis::new(5), fact }).unwrap()
    }

    #[test]
    fn the_stored_text_of_version_1_never_changes() {
        let row = delivered();
        assert_eq!(row.body, r#"{"v":1,"fact":{"delivered":{"turn":3,"position":8,"ids":[1,2]}}}"#);
        assert_eq!((row.kind.as_str(), row.tokens), ("delivered", 2));
    }

    #[test]
    fn what_was_not_written_by_us_is_refused_by_row() {
        let good = delivered();
        let with = |change: &dyn Fn(&mut Row)| {
            let mut row = good.clone();
            change(&mut row);
            let Err(LedgerError::Store(why)) = decode(42, &row) else { panic!("{row:?}") };
            assert!(why.contains("entry 42"), "{why}");
            why
        };
        assert!(with(&|row| row.body = row.body.replace("\"v\":1", "\"v\":2")).contains("version"));
        assert!(with(&|row| row.body = "{".into()).contains("malformed"));
        assert!(with(&|row| row.body = row.body.replace("delivered", "gifted")).contains("gifted"));
        with(&|row| row.kind = "gifted".into());
        with(&|row| row.body = row.body.replace("[1,2]", "[1,2,3]"));
        with(&|row| row.body = row.body.replace("\"position\":8", "\"position\":9"));
        with(&|row| row.job = 0);
        with(&|row| row.key = "7/turn/3/at/9".into());
    }
}
