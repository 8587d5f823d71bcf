//! A turn's header: what was asked for, as it is recorded and as the engine gets it.
//!
//! Never says one thing to the engine and another to the ledger: both are made of one draft, so
//! that whoever re-runs a turn from its record does what the engine did.

use super::SamplingInput;
use crate::billing::{Decode, SeedOrigin, TurnHeader, TurnNonces};
use crate::engine::{ModelCard, Sampling};
use crate::proof;
use crate::units::{Hash32, TokenCount, TurnNo};

/// What a header is made of.
pub(super) struct Draft<'a> {
    pub turn: TurnNo,
    pub nonces: TurnNonces,
    pub model: &'a ModelCard,
    pub prompt_ids: &'a [u32],
    pub asked: &'a SamplingInput,
    /// The client's bound, which may pass what the deposit buys.
    pub max_tokens: TokenCount,
}

impl Draft<'_> {
    /// How the engine draws tokens.
    pub fn sampling(&self) -> Sampling {
        sampling(self.asked, self.seed())
    }

    /// The header.
    pub fn header(&self) -> TurnHeader {
        let (model, decode) = (self.model, self.decode());
        let (weights, tokenizer) = (model.weights_sha256, model.tokenizer_sha256);
        let is_own = self.asked.seed.is_some();
        TurnHeader {
            turn: self.turn,
            model_spec: proof::model_spec(weights, &model.quantisation, &model.architecture),
            tokenizer_spec: proof::tokenizer_spec(tokenizer),
            decode_spec: proof::decode_spec(&decode),
            decode: Some(Box::new(decode)),
            engine_spec: model.engine_spec,
            seed: self.seed(),
            seed_origin: if is_own { SeedOrigin::Client } else { SeedOrigin::Derived },
            nonces: Some(self.nonces),
            prompt_ids: self.prompt_ids.to_vec(),
        }
    }

    /// The client's own seed, or the one that neither side can choose alone.
    fn seed(&self) -> Hash32 {
        let derived = || {
            let user = self.nonces.user;
            let user = user.unwrap_or_else(|| proof::derived_user_nonce(self.prompt_ids));
            proof::seed(self.nonces.host, user, self.turn)
        };
        self.asked.seed.map_or_else(derived, proof::seed_from_client)
    }

    fn decode(&self) -> Decode {
        let mut sampling = self.sampling();
        // A bias of zero does nothing: neither digest nor blob has one.
        sampling.logit_bias.retain(|_, bias| *bias != 0.0);
        Decode {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            logit_bias: sampling.logit_bias,
            max_tokens: u32::try_from(self.max_tokens.get()).unwrap_or(u32::MAX),
            stop: self.asked.stop.clone(),
            ignore_eos: self.asked.ignore_eos,
        }
    }
}

/// What was asked for, in the engine's words.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn sampling(asked: &SamplingInput, seed: Hash32) -> Sampling {
    Sampling {
        temperature: asked.temperature as f32,
        top_k: u32::try_from(asked.top_k).unwrap_or(u32::MAX),
        top_p: asked.top_p as f32,
        min_p: asked.min_p as f32,
        repetition_penalty: asked.repetition_penalty as f32,
        frequency_penalty: asked.frequency_penalty as f32,
        presence_penalty: asked.presence_penalty as f32,
        logit_bias: asked.logit_bias.iter().map(|(id, bias)| (*id, *bias as f32)).collect(),
        logprobs: asked.logprobs,
        seed,
    }
}
