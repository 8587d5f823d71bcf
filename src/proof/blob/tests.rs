//! Blobs come back from their bytes, have the claim's root, are small, and say nothing else.

use proptest::prelude::*;

use super::*;
use crate::billing::{Attempt, ClaimBody, Decode, Purpose, SeedOrigin, TurnNonces};
use crate::proof::preimage::keccak256;
use crate::proof::spec::{derived_user_nonce, seed};
use crate::units::{Address, Amount, Millis, TxHash, WalletNonce};

fn job() -> JobId {
    JobId::new(7).unwrap()
}

fn domain() -> VoucherDomain {
    VoucherDomain { chain_id: 31_337, marketplace: Address::new([9; 20]) }
}

fn hash(of: impl std::fmt::Display) -> Hash32 {
    keccak256(of.to_string().as_bytes())
}

fn decode(turn: u32) -> Decode {
    Decode {
        temperature: 0.7,
        top_k: turn % 2,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.1,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: (0..turn % 3).map(|id| (id * 1_000, -0.5)).collect(),
        max_tokens: 256,
        stop: if turn.is_multiple_of(5) { vec!["Ende 🦉".into(), String::new()] } else { vec![] },
        ignore_eos: turn % 7 == 6,
    }
}

/// A chat: each prompt is the one before with its answer and a few words more.
struct Chat {
    entries: Vec<Entry>,
    history: Vec<u32>,
    turn: u32,
    tokens: u64,
    claims: u32,
    ids_max: u32,
}

impl Chat {
    fn new(ids_max: u32) -> Self {
        Self { entries: Vec::new(), history: Vec::new(), turn: 0, tokens: 0, claims: 0, ids_max }
    }

    fn push(&mut self, fact: Fact) {
        self.entries.push(Entry { subject: job().into(), at: Millis::ZERO, fact });
    }

    fn ids(&self, count: u32, mark: &str) -> Vec<u32> {
        let id = |at| {
            let digest = hash(format!("{mark} {} {at}", self.turn));
            u32::from_le_bytes(std::array::from_fn(|i| digest.bytes()[i])) % self.ids_max
        };
        (0..count).map(id).collect()
    }

    /// A turn of so many new prompt and output tokens; `way` says where its seed came from.
    fn turn(&mut self, added: u32, made: u32, way: u32) {
        let (no, own) = (TurnNo::new(self.turn), way.is_multiple_of(4));
        self.history.extend(self.ids(added, "prompt"));
        let prompt_ids = self.history.clone();
        let host = hash(format!("host {no}"));
        let user = way.is_multiple_of(2).then(|| hash(format!("user {no}")));
        let derived = seed(host, user.unwrap_or_else(|| derived_user_nonce(&prompt_ids)), no);
        let is_old = way == 5;
        let settings = decode(self.turn);
        self.push(Fact::TurnStarted(TurnHeader {
            turn: no,
            model_spec: hash("model"),
            tokenizer_spec: hash("tokenizer"),
            decode_spec: decode_spec(&settings),
            decode: (!is_old).then(|| Box::new(settings)),
            engine_spec: 1,
            seed: if own || is_old { hash(format!("seed {no}")) } else { derived },
            seed_origin: if own { SeedOrigin::Client } else { SeedOrigin::Derived },
            nonces: (!is_old).then_some(TurnNonces { host, user }),
            prompt_ids,
        }));
        let ids = self.ids(made, "answer");
        for (at, eight) in ids.chunks(8).enumerate() {
            let states = if is_old { vec![] } else { eight.iter().map(hash).collect() };
            let position = u32::try_from(at * 8).unwrap();
            let delivered = Fact::Delivered { turn: no, position, ids: eight.to_vec(), states };
            self.push(delivered);
        }
        self.history.extend(ids);
        self.tokens += u64::from(made);
        self.turn += 1;
        if way != 3 {
            self.push(Fact::TurnEnded { turn: no, end: TurnEnd::Stop });
        }
    }

    fn claim(&mut self, tokens: u64) {
        self.claims += 1;
        let body = ClaimBody {
            seq: ClaimSeq::new(self.claims),
            tokens: TokenCount::ZERO,
            tokens_cumulative: TokenCount::new(tokens),
            proof: Vec::new(),
        };
        let attempt = Attempt {
            hash: TxHash::new([0; 32]),
            raw: Vec::new(),
            fee_max: Amount::ZERO,
            tip_max: Amount::ZERO,
            gas_limit: 0,
        };
        let nonce = WalletNonce::new(u64::from(self.claims));
        self.push(Fact::TxPrepared { nonce, purpose: Purpose::Claim(body), attempt });
    }

    fn blob(&self, seq: u32) -> Blob {
        Blob::of_claim(domain(), job(), ClaimSeq::new(seq), &self.entries).unwrap()
    }

    fn root(&self, seq: u32) -> Hash32 {
        let transcript = Transcript::from_entries(job(), &self.entries);
        let seq = ClaimSeq::new(seq);
        root(job(), seq, &transcript.cut_of(seq).unwrap())
    }
}

fn chat(turns: &[(u32, u32, u32)], ids_max: u32) -> Chat {
    let mut chat = Chat::new(ids_max);
    for (index, (added, made, way)) in turns.iter().enumerate() {
        chat.turn(*added, *made, *way);
        // Some claims end within the turn that was just made.
        let tokens = chat.tokens.saturating_sub(u64::from(*way)).max(1);
        if index % 2 == 1 && chat.tokens > 0 {
            chat.claim(tokens.min(chat.tokens));
        }
    }
    if chat.tokens == 0 {
        chat.turn(3, 5, 1);
    }
    chat.claim(chat.tokens);
    chat
}

fn turns() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
    proptest::collection::vec((0..40_u32, 0..90_u32, 0..6_u32), 1..7)
}

#[test]
fn settings_have_the_form_in_which_they_are_hashed() {
    let chat = chat(&[(3, 5, 1)], 49_152);
    let plain = chat.blob(chat.claims);
    let with = |change: fn(&mut Decode)| {
        let mut blob = plain.clone();
        change(blob.turns[0].header.decode.as_mut().unwrap());
        blob
    };
    let zeros = with(|decode| {
        decode.presence_penalty = -0.0;
        decode.logit_bias.insert(70_000, -0.0);
    });
    assert_eq!(zeros.encode(), plain.encode());
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut blob = plain.clone();
        blob.turns[0].header.decode.as_mut().unwrap().temperature = wrong;
        assert!(Blob::decode(&blob.encode()).is_err(), "{wrong}");
    }
    assert!(Blob::decode(&plain.encode()).is_ok());
}

#[test]
fn a_turn_that_no_leaf_reaches_is_refused() {
    let chat = chat(&[(3, 5, 1), (3, 5, 1)], 49_152);
    let mut blob = chat.blob(chat.claims);
    let root = blob.root();
    let mut more = blob.turns[1].clone();
    more.header.turn = TurnNo::new(9);
    blob.turns.push(more);
    assert_eq!(blob.root(), root);
    assert!(Blob::decode(&blob.encode()).is_err());
}

proptest! {
    #[test]
    fn a_blob_comes_back_from_its_bytes_with_the_claims_root(
        turns in turns(),
        is_wide in any::<bool>(),
    ) {
        let chat = chat(&turns, if is_wide { u32::MAX } else { 49_152 });
        for seq in 1..=chat.claims {
            let blob = chat.blob(seq);
            prop_assert_eq!(blob.root(), Ok(chat.root(seq)));
            prop_assert_eq!(Blob::decode(&blob.encode()), Ok(blob));
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_seen(
        turns in turns(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let chat = chat(&turns, 49_152);
        let blob = chat.blob(chat.claims);
        let mut bytes = blob.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(other) = Blob::decode(&bytes) {
            prop_assert_ne!(&other, &blob);
            // What the root does not cover: where it is claimed, ends, and where seeds came from.
            let mut told = other.clone();
            told.domain = blob.domain;
            for (turn, known) in told.turns.iter_mut().zip(&blob.turns) {
                turn.end = known.end;
                turn.header.seed_origin = known.header.seed_origin;
                turn.header.nonces = known.header.nonces;
            }
            prop_assert!(told == blob || other.root() != blob.root());
        }
    }

    #[test]
    fn what_is_cut_short_or_goes_on_is_refused(
        turns in turns(),
        at in any::<prop::sample::Index>(),
    ) {
        let chat = chat(&turns, 49_152);
        let mut bytes = chat.blob(chat.claims).encode();
        let short = Blob::decode(&bytes[..at.index(bytes.len())]);
        prop_assert!(short.is_err());
        bytes.push(0);
        prop_assert!(Blob::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"TLYB\x01\x01".to_vec();
        bytes.extend(tail);
        if let Ok(blob) = Blob::decode(&bytes) {
            prop_assert_eq!(blob.encode(), bytes);
        }
    }
}

#[test]
fn a_blob_takes_ten_bytes_a_token_at_most_and_prompts_stand_in_it_once() {
    for (turns, made, added) in [(1, 64, 1), (1, 64, 40), (8, 64, 12), (30, 100, 20)] {
        let chat = chat(&vec![(added, made, 2); turns], 49_152);
        let bytes = chat.blob(chat.claims).encode().len();
        let tokens = turns * (made + added) as usize;
        eprintln!(
            "{turns} turns of {added} + {made} tokens: {:.2} bytes each",
            bytes as f64 / tokens as f64
        );
        assert!(bytes <= 10 * tokens, "{bytes} of {tokens}");
    }
}

#[test]
fn few_bytes_cannot_ask_for_many_ids() {
    // Each turn's prompt is the one before, twice as long by its answer.
    let mut chat = Chat::new(49_152);
    for _ in 0..40 {
        chat.turn(0, 1, 1);
    }
    chat.claim(chat.tokens);
    let blob = chat.blob(1);
    let mut bytes = blob.encode();
    assert!(Blob::decode(&bytes).is_ok());
    // A shared beginning that no turn has.
    let last = blob.turns.last().unwrap().header.prompt_ids.len();
    assert_eq!(last, 39);
    let at = bytes.windows(3).rposition(|three| three == [39, 39, 0]).unwrap();
    bytes[at + 1] = 40;
    assert!(matches!(Blob::decode(&bytes), Err(BlobError::Malformed(..))));
}

#[test]
fn a_blob_whose_parts_do_not_fit_has_no_root() {
    let chat = chat(&[(5, 70, 2), (5, 70, 2)], 49_152);
    let blob = chat.blob(chat.claims);
    let with = |change: &dyn Fn(&mut Blob)| {
        let mut other = blob.clone();
        change(&mut other);
        other.root()
    };
    let fits =
        |root: Result<Hash32, BlobError>| matches!(root, Err(BlobError::Inconsistent { .. }));
    assert!(fits(with(&|blob| blob.chunks[1].position += 1)));
    assert!(fits(with(&|blob| blob.chunks[1].number += 1)));
    assert!(fits(with(&|blob| blob.chunks.swap(0, 1))));
    assert!(fits(with(&|blob| blob.chunks[0].ids.clear())));
    assert!(fits(with(&|blob| blob.chunks[0].ids.push(1))));
    assert!(fits(with(&|blob| blob.chunks[0].turn = TurnNo::new(99))));
    assert!(fits(with(&|blob| blob.turns[1].header.turn = TurnNo::ZERO)));
    let hot = |decode: &mut Decode| decode.temperature = 1.5;
    assert!(fits(with(&|blob| hot(blob.turns[0].header.decode.as_deref_mut().unwrap()))));
    assert_eq!(with(&|blob| blob.chunks.clear()), Err(BlobError::NoSum));
}
