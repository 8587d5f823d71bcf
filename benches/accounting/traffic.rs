//! What a busy node writes: sessions that answer at once, and their claims.
//!
//! Every turn is one header with a prompt of 64 ids, 13 deliveries of 8 tokens, its end, and one
//! claim of its tokens from signature to confirmation: 18 entries, 13 of them usage. Groups are
//! those the meter and settlement submit; sessions take turns, so that jobs interleave.

use tally::billing::{Attempt, ClaimBody, Entry, Fact, Purpose, SeedOrigin, TurnEnd, TurnHeader};
use tally::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, ClaimSeq, Hash32, JobId, Millis,
    PricePerToken, TokenCount, TurnNo, TxHash, WalletNonce,
};

/// Deliveries of a turn.
const DELIVERIES: u32 = 13;
/// Tokens of a delivery.
pub const TOKENS: u32 = 8;
/// Turns after which a session makes place for another.
const TURNS: u32 = 20;
/// Bytes of a signed claim (v3, measured on the real contract's call data).
const RAW_BYTES: usize = 420;

/// Where one session stands.
struct Session {
    job: JobId,
    turn: u32,
    /// 0: the turn's header; 1 …= 13: deliveries; then end, prepared, included, confirmed.
    step: u32,
}

/// An endless stream of groups.
pub struct Traffic {
    sessions: Vec<Session>,
    at: usize,
    job_next: u64,
}

impl Traffic {
    /// Traffic of this many sessions at once.
    pub fn new(sessions: u64) -> Self {
        let session = |number| Session { job: job(number), turn: 0, step: 0 };
        let live = (1..=sessions).map(session).collect();
        Self { sessions: live, at: 0, job_next: sessions + 1 }
    }

    /// The next group, of one or two entries.
    pub fn next_group(&mut self) -> Vec<Entry> {
        self.at = (self.at + 1) % self.sessions.len();
        let session = &mut self.sessions[self.at];
        let nonce = session.job.get() * u64::from(TURNS) + u64::from(session.turn);
        let mut group = Vec::with_capacity(2);
        let mut say = |fact| {
            group.push(Entry {
                subject: session.job.into(),
                at: Millis::new(1_760_000_000_000),
                fact,
            });
        };
        match session.step {
            0 => {
                if session.turn == 0 {
                    say(opened());
                }
                say(header(session.turn));
            }
            step @ 1..=DELIVERIES => say(delivered(session.turn, step - 1)),
            14 => say(Fact::TurnEnded { turn: TurnNo::new(session.turn), end: TurnEnd::Stop }),
            15 => {
                let tokens = u64::from(DELIVERIES * TOKENS);
                say(prepared(nonce, session.turn, tokens));
            }
            16 => say(included(nonce)),
            _ => {
                let nonce = WalletNonce::new(nonce);
                say(Fact::TxConfirmed { nonce, sighting: 0 });
            }
        }
        self.advance();
        group
    }

    fn advance(&mut self) {
        let session = &mut self.sessions[self.at];
        session.step += 1;
        if session.step < 18 {
            return;
        }
        (session.step, session.turn) = (0, session.turn + 1);
        if session.turn == TURNS {
            *session = Session { job: job(self.job_next), turn: 0, step: 0 };
            self.job_next += 1;
        }
    }
}

pub fn job(number: u64) -> JobId {
    JobId::new(number).expect("jobs count from 1")
}

pub fn opened() -> Fact {
    Fact::JobOpened {
        depositor: Address::new([0xde; 20]),
        deposit: Amount::new(10u128.pow(18)),
        price: PricePerToken::new(5_000_000_000),
        payment_token: Address::ZERO,
        start_time: ChainTime::new(1_760_000_000),
        tokens_before: TokenCount::ZERO,
    }
}

pub fn header(turn: u32) -> Fact {
    Fact::TurnStarted(TurnHeader {
        turn: TurnNo::new(turn),
        model_spec: Hash32::new([1; 32]),
        tokenizer_spec: Hash32::new([2; 32]),
        decode_spec: Hash32::new([3; 32]),
        engine_spec: 1,
        seed: Hash32::new([4; 32]),
        seed_origin: SeedOrigin::Derived,
        decode: None,
        nonces: None,
        prompt_ids: (0..64).map(|n| n * 719).collect(),
    })
}

pub fn delivered(turn: u32, nth: u32) -> Fact {
    let ids: Vec<u32> = (0..TOKENS).map(|n| (nth * TOKENS + n) * 347 % 49_152).collect();
    let states = vec![Hash32::new([5; 32]); ids.len()];
    Fact::Delivered { turn: TurnNo::new(turn), position: nth * TOKENS, ids, states }
}

fn hash(nonce: u64) -> [u8; 32] {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

pub fn prepared(nonce: u64, nth: u32, tokens: u64) -> Fact {
    let body = ClaimBody {
        seq: ClaimSeq::new(nth + 1),
        tokens: TokenCount::new(tokens),
        tokens_cumulative: TokenCount::new(tokens * u64::from(nth + 1)),
        proof: vec![0x77; 145],
    };
    let attempt = Attempt {
        hash: TxHash::new(hash(nonce)),
        raw: vec![0x99; RAW_BYTES],
        fee_max: Amount::new(30_000_000_000),
        tip_max: Amount::new(1_000_000_000),
        gas_limit: 250_000,
    };
    let purpose = Purpose::Claim(body);
    Fact::TxPrepared { nonce: WalletNonce::new(nonce), purpose, attempt }
}

pub fn included(nonce: u64) -> Fact {
    Fact::TxIncluded {
        nonce: WalletNonce::new(nonce),
        hash: TxHash::new(hash(nonce)),
        sighting: 0,
        block: BlockNumber::new(nonce / 4),
        block_hash: BlockHash::new([0xbb; 32]),
        fee: Amount::new(150_000 * 7),
    }
}
