//! The stored twins of what facts are made of: headers, purposes, attempts.
//!
//! Never shared with a wire protocol. Relies on `text` for numbers that JSON cannot hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::text::{Bytes, Text};
use crate::billing::{
    Attempt, ClaimBody, Decode, Errand, ErrandKind, Purpose, RejectReason, SeedOrigin, TurnEnd,
    TurnHeader, TurnNonces,
};
use crate::units::{Address, Amount, ClaimSeq, Hash32, TokenCount, TurnNo, TxHash};

/// Declares the stored twin of an enum without fields.
macro_rules! mirror {
    ($twin:ident of $name:ident { $($variant:ident),* }) => {
        #[derive(Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(super) enum $twin { $($variant),* }

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
mirror!(StoredReason of RejectReason { Reverted, NonceTaken, Cancelled });

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredHeader {
    turn: u32,
    model_spec: Text<Hash32>,
    tokenizer_spec: Text<Hash32>,
    decode_spec: Text<Hash32>,
    engine_spec: u32,
    seed: Text<Hash32>,
    seed_origin: StoredOrigin,
    prompt_ids: Vec<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decode: Option<Box<StoredDecode>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonces: Option<StoredNonces>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredNonces {
    host: Text<Hash32>,
    user: Option<Text<Hash32>>,
}

/// Floats are written as JSON's shortest text that reads back as the same bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredDecode {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: BTreeMap<u32, f32>,
    max_tokens: u32,
    stop: Vec<String>,
    ignore_eos: bool,
}

/// Carries every field of a struct over into its twin.
macro_rules! twins {
    ($twin:ident, $name:ident { $($field:ident),* $(,)? }) => {
        impl From<&$name> for $twin {
            fn from(value: &$name) -> Self {
                Self { $($field: value.$field.clone()),* }
            }
        }

        impl From<$twin> for $name {
            fn from(value: $twin) -> Self {
                Self { $($field: value.$field),* }
            }
        }
    };
}
twins!(
    StoredDecode,
    Decode {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        max_tokens,
        stop,
        ignore_eos,
    }
);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum StoredPurpose {
    Claim { seq: u32, tokens: u64, tokens_cumulative: u64, proof: Text<Bytes> },
    Complete,
    Fill,
    Errand(StoredErrand),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredErrand {
    kind: StoredErrandKind,
    to: Text<Address>,
    value: Text<Amount>,
    input: Text<Bytes>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum StoredErrandKind {
    Withdraw { token: Text<Address>, amount: Text<Amount>, cold: Option<Text<Address>> },
    Forward { token: Text<Address>, amount: Text<Amount>, cold: Text<Address> },
    Registry { name: String },
}

impl From<&Errand> for StoredErrand {
    fn from(errand: &Errand) -> Self {
        let kind = match &errand.kind {
            ErrandKind::Withdraw { token, amount, cold } => StoredErrandKind::Withdraw {
                token: Text(*token),
                amount: Text(*amount),
                cold: cold.map(Text),
            },
            ErrandKind::Forward { token, amount, cold } => StoredErrandKind::Forward {
                token: Text(*token),
                amount: Text(*amount),
                cold: Text(*cold),
            },
            ErrandKind::Registry { name } => StoredErrandKind::Registry { name: name.clone() },
        };
        let input = Text(Bytes(errand.input.clone()));
        Self { kind, to: Text(errand.to), value: Text(errand.value), input }
    }
}

impl From<StoredErrand> for Errand {
    fn from(stored: StoredErrand) -> Self {
        let kind = match stored.kind {
            StoredErrandKind::Withdraw { token, amount, cold } => ErrandKind::Withdraw {
                token: token.0,
                amount: amount.0,
                cold: cold.map(|cold| cold.0),
            },
            StoredErrandKind::Forward { token, amount, cold } => {
                ErrandKind::Forward { token: token.0, amount: amount.0, cold: cold.0 }
            }
            StoredErrandKind::Registry { name } => ErrandKind::Registry { name },
        };
        Self { kind, to: stored.to.0, value: stored.value.0, input: stored.input.0.0 }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredAttempt {
    hash: Text<TxHash>,
    raw: Text<Bytes>,
    fee_max: Text<Amount>,
    tip_max: Text<Amount>,
    gas_limit: u64,
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
            decode: header.decode.as_deref().map(|decode| Box::new(decode.into())),
            nonces: header.nonces.map(|nonces| StoredNonces {
                host: Text(nonces.host),
                user: nonces.user.map(Text),
            }),
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
            decode: stored.decode.map(|decode| Box::new((*decode).into())),
            nonces: stored.nonces.map(|nonces| TurnNonces {
                host: nonces.host.0,
                user: nonces.user.map(|user| user.0),
            }),
        }
    }
}

impl From<&Purpose> for StoredPurpose {
    fn from(purpose: &Purpose) -> Self {
        match purpose {
            Purpose::Complete => Self::Complete,
            Purpose::Fill => Self::Fill,
            Purpose::Errand(errand) => Self::Errand(errand.into()),
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
            StoredPurpose::Fill => Self::Fill,
            StoredPurpose::Errand(errand) => Self::Errand(errand.into()),
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
