//! One ledger with every kind of fact, whose accounts add up: what the committed files of earlier
//! schemas hold.

use tally::billing::{
    Accounts, Attempt, ClaimBody, Entry, Errand, ErrandKind, Fact, Purpose, RejectReason,
    SeedOrigin, Subject, TurnEnd, TurnHeader,
};
use tally::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, ClaimSeq, Hash32, Millis, PricePerToken,
    TokenCount, TurnNo, TxHash, WalletNonce,
};

use super::{delivered, ended, entry, job};

fn opened(of: u64, tokens_before: u64) -> Entry {
    entry(
        of,
        Fact::JobOpened {
            depositor: Address::new([0xde; 20]),
            deposit: Amount::new(10u128.pow(18)),
            price: PricePerToken::new(5_000_000_000),
            payment_token: if of == 2 { Address::new([0x20; 20]) } else { Address::ZERO },
            start_time: ChainTime::new(1_760_000_000),
            tokens_before: TokenCount::new(tokens_before),
        },
    )
}

/// The header of a turn.
pub fn started(of: u64, turn: u32) -> Entry {
    let origin = if turn == 0 { SeedOrigin::Client } else { SeedOrigin::Derived };
    let header = TurnHeader {
        turn: TurnNo::new(turn),
        model_spec: Hash32::new([1; 32]),
        tokenizer_spec: Hash32::new([2; 32]),
        decode_spec: Hash32::new([3; 32]),
        engine_spec: 7,
        seed: Hash32::new([4; 32]),
        seed_origin: origin,
        decode: None,
        nonces: None,
        prompt_ids: vec![1, 50_000, 4_000_000_000, turn],
    };
    entry(of, Fact::TurnStarted(header))
}

fn attempt(byte: u8) -> Attempt {
    Attempt {
        hash: TxHash::new([byte; 32]),
        raw: vec![byte; 90],
        fee_max: Amount::new(30_000_000_000),
        tip_max: Amount::new(u128::from(byte)),
        gas_limit: 250_000,
    }
}

fn prepared(of: impl Into<Subject>, nonce: u64, purpose: Purpose) -> Entry {
    let attempt = attempt(u8::try_from(nonce).unwrap());
    let fact = Fact::TxPrepared { nonce: WalletNonce::new(nonce), purpose, attempt };
    Entry { subject: of.into(), at: Millis::new(2_000), fact }
}

fn claim(seq: u32, tokens: u64, cumulative: u64) -> Purpose {
    Purpose::Claim(ClaimBody {
        seq: ClaimSeq::new(seq),
        tokens: TokenCount::new(tokens),
        tokens_cumulative: TokenCount::new(cumulative),
        proof: vec![u8::try_from(seq).unwrap(); 145],
    })
}

fn errand(kind: ErrandKind) -> Purpose {
    let to = Address::new([0x77; 20]);
    Purpose::Errand(Errand { kind, to, value: Amount::new(9), input: vec![1, 2, 3] })
}

fn included(of: impl Into<Subject>, nonce: u64, sighting: u32) -> Entry {
    let fact = Fact::TxIncluded {
        nonce: WalletNonce::new(nonce),
        hash: TxHash::new([u8::try_from(nonce).unwrap(); 32]),
        sighting,
        block: BlockNumber::new(100 + nonce),
        block_hash: BlockHash::new([0xbb; 32]),
        fee: Amount::new(21_000 * 7),
    };
    Entry { subject: of.into(), at: Millis::new(3_000), fact }
}

fn confirmed(of: impl Into<Subject>, nonce: u64, sighting: u32) -> Entry {
    let fact = Fact::TxConfirmed { nonce: WalletNonce::new(nonce), sighting };
    Entry { subject: of.into(), at: Millis::new(4_000), fact }
}

fn closed(of: u64, closing: u32, unclaimable: u64, forfeited: u64) -> Entry {
    let (unclaimable, forfeited) = (TokenCount::new(unclaimable), TokenCount::new(forfeited));
    // Ledgers of that time do not tell the block.
    let block = BlockNumber::ZERO;
    entry(of, Fact::JobClosed { closing, block, unclaimable, forfeited })
}

/// A long session: two claims, one of them reorganised, repriced and mined again, one turn open.
fn job_one() -> Vec<Entry> {
    let mut entries = vec![opened(1, 40), entry(1, Fact::OwnerProven), started(1, 0)];
    entries.extend((0..20).map(|n| delivered(1, 0, n * 8, 8)));
    entries.extend([ended(1, 0), prepared(job(1), 5, claim(1, 100, 100))]);
    entries.extend([included(job(1), 5, 0), confirmed(job(1), 5, 0), started(1, 1)]);
    entries.extend((0..13).map(|n| delivered(1, 1, n * 8, 8)));
    entries.extend([delivered(1, 1, 104, 3), prepared(job(1), 6, claim(2, 160, 260))]);
    entries.push(entry(1, Fact::TxRepriced { nonce: WalletNonce::new(6), attempt: attempt(0x61) }));
    entries.push(included(job(1), 6, 0));
    entries.push(entry(1, Fact::TxReorged { nonce: WalletNonce::new(6), sighting: 0 }));
    entries.push(included(job(1), 6, 1));
    entries
}

/// A session that ended twice: its first ending was reorganised away.
fn job_two() -> Vec<Entry> {
    let nonce = WalletNonce::new(7);
    vec![
        opened(2, 0),
        started(2, 0),
        delivered(2, 0, 0, 130),
        entry(2, Fact::TurnEnded { turn: TurnNo::ZERO, end: TurnEnd::DepositExhausted }),
        prepared(job(2), 7, claim(1, 100, 100)),
        entry(2, Fact::TxCancelled { nonce, attempt: attempt(0x71) }),
        entry(
            2,
            Fact::TxRejected {
                nonce,
                first: TxHash::new([7; 32]),
                reason: RejectReason::Cancelled,
                fee: Amount::new(21_000),
            },
        ),
        closed(2, 0, 0, 130),
        entry(2, Fact::JobReopened { closing: 0 }),
        prepared(job(2), 8, claim(1, 100, 100)),
        included(job(2), 8, 0),
        confirmed(job(2), 8, 0),
        prepared(job(2), 9, Purpose::Complete),
        included(job(2), 9, 0),
        confirmed(job(2), 9, 0),
        closed(2, 1, 30, 0),
    ]
}

/// A session that was halted in the middle of an answer.
fn job_three() -> Vec<Entry> {
    let halted =
        Fact::JobHalted { why: "chain counts 300 tokens used, ledger 200 — \"look\"".into() };
    vec![opened(3, 0), started(3, 0), delivered(3, 0, 0, 8), entry(3, halted)]
}

fn wallet() -> Vec<Entry> {
    let (of, token, amount) = (Subject::Wallet, Address::ZERO, Amount::new(10u128.pow(17)));
    let cold = Address::new([0xcd; 20]);
    vec![
        prepared(of, 10, Purpose::Fill),
        included(of, 10, 0),
        prepared(of, 11, errand(ErrandKind::Withdraw { token, amount, cold: None })),
        included(of, 11, 0),
        confirmed(of, 11, 0),
        prepared(of, 12, errand(ErrandKind::Forward { token, amount, cold })),
        prepared(of, 13, errand(ErrandKind::Registry { name: "registerNode".into() })),
    ]
}

/// Every kind of fact, jobs interleaved as a node writes them.
pub fn every_kind() -> Vec<Entry> {
    let mut lines = [job_one(), job_two(), job_three(), wallet()].map(Vec::into_iter);
    let mut entries = Vec::new();
    loop {
        let before = entries.len();
        entries.extend(lines.iter_mut().filter_map(Iterator::next));
        if entries.len() == before {
            return entries;
        }
    }
}

/// The accounts that entries give.
pub fn fold(entries: &[Entry]) -> Accounts {
    let mut accounts = Accounts::default();
    for entry in entries {
        accounts.apply(entry).unwrap();
    }
    accounts
}
