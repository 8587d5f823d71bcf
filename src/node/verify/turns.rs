//! Turns derived again: every id, every hidden state, every end.
//!
//! Never derives by rules of its own: the engine crate draws, as it drew when the turn was served.

use std::path::Path;

use tally_engine::{
    ClaimedEnd, ClaimedTurn, EngineOptions, KvType, LoadError, ModelFiles, Replay, ReplayError,
    Sampling, SequenceRequest, StartError,
};

use super::{Check, Claim, VerifyError};
use crate::billing::{Decode, TurnEnd, TurnHeader};
use crate::node::file_hash::{sha256_model, sha256_tokenizer};
use crate::proof::{Blob, BlobTurn, act_digest, model_spec, tokenizer_spec};
use crate::units::{Hash32, TurnNo};

/// Rows computed at once: more are hardly faster, and each takes a vocabulary of f32.
const ROWS: usize = 128;

/// A model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// Its hash.
    #[error("its hash could not be taken: {0}")]
    Hash(#[from] std::io::Error),
}

/// A loaded model, and what turns call it.
pub struct Model {
    replay: Replay,
    model_spec: Hash32,
    tokenizer_spec: Hash32,
}

impl Model {
    /// Loads a model as the blob's turns name it: the precision of the KV cache is part of that.
    /// Blocks while it is read.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn load(path: &Path, blob: &Blob) -> Result<Self, ModelError> {
        let files = ModelFiles::open(path)?;
        let weights = sha256_model(&files);
        let tokenizer = match &files.tokenizer_paths()[..] {
            [] => weights,
            apart => sha256_tokenizer(apart)?,
        };
        let with = |kv_type| -> Result<Self, ModelError> {
            let options =
                EngineOptions { kv_type, prefill_chunk: ROWS, ..EngineOptions::default() };
            let replay = Replay::load_files(&files, options)?;
            let info = replay.info();
            let model_spec = model_spec(weights, &info.quantisation, &info.config_digest_input);
            Ok(Self { replay, model_spec, tokenizer_spec: tokenizer_spec(tokenizer) })
        };
        let half = with(KvType::F16)?;
        if half.is_named(blob) {
            return Ok(half);
        }
        drop(half);
        let single = with(KvType::F32)?;
        if single.is_named(blob) { Ok(single) } else { with(KvType::F16) }
    }

    fn is_named(&self, blob: &Blob) -> bool {
        blob.turns.iter().any(|turn| turn.header.model_spec == self.model_spec)
    }

    /// What turns of this model carry as `modelSpec`.
    #[must_use]
    pub fn spec(&self) -> Hash32 {
        self.model_spec
    }
}

/// Checks every chosen turn; tokens that came out again.
pub(super) fn all(
    blob: &Blob,
    claim: &Claim,
    models: &mut [Model],
) -> Result<(Vec<Check>, u64), VerifyError> {
    let (mut checks, mut derived) = (Vec::new(), 0_u64);
    for turn in &blob.turns {
        let no = turn.header.turn;
        let output = blob.output(no);
        let is_chosen = claim.sample.as_ref().is_none_or(|chosen| chosen.contains(&no));
        if output.is_empty() {
            continue;
        }
        if !is_chosen {
            checks.push(Check::not_checked("tokens", "not in the sample").of(no));
            continue;
        }
        let count = u64::try_from(output.len()).unwrap_or(u64::MAX);
        let found = one(blob, (turn, output), claim, models)?;
        if found.iter().all(|check| check.outcome == super::Outcome::Holds) {
            derived = derived.saturating_add(count);
        }
        checks.extend(found);
    }
    Ok((checks, derived))
}

fn one(
    blob: &Blob,
    (turn, output): (&BlobTurn, Vec<u32>),
    claim: &Claim,
    models: &mut [Model],
) -> Result<Vec<Check>, VerifyError> {
    let header = &turn.header;
    let no = header.turn;
    if models.is_empty() {
        return Ok(vec![Check::not_checked("tokens", "no model was given").of(no)]);
    }
    let Some(model) = models.iter_mut().find(|model| model.model_spec == header.model_spec) else {
        let words = format!("it was claimed for another model, {}", header.model_spec);
        return Ok(vec![Check::fails("model", words).of(no)]);
    };
    if model.tokenizer_spec != header.tokenizer_spec {
        return Ok(vec![Check::fails("tokenizer", "it was claimed with another tokenizer").of(no)]);
    }
    let ours = model.replay.info().engine_spec;
    if header.engine_spec != ours {
        let theirs = header.engine_spec;
        let words = format!("made by engine version {theirs}, this program derives {ours}");
        return Ok(vec![Check::not_checked("tokens", words).of(no)]);
    }
    let Some(decode) = header.decode.as_deref() else {
        let words = "how its tokens were chosen was not recorded";
        return Ok(vec![Check::not_checked("tokens", words).of(no)]);
    };
    let count = output.len();
    let claimed = ClaimedTurn {
        request: request(header, decode),
        output_ids: output,
        end: claimed_end(turn.end),
    };
    let replayed = match model.replay.turn(&claimed) {
        Ok(replayed) => replayed,
        Err(ReplayError::Refused(why @ StartError::KvBudget { .. })) => {
            return Err(VerifyError::Failed { turn: no, why: why.to_string() });
        }
        Err(ReplayError::Refused(why)) => {
            let words = format!("no engine takes this request: {why}");
            return Ok(vec![Check::fails("tokens", words).of(no)]);
        }
        Err(why) => return Err(VerifyError::Failed { turn: no, why: why.to_string() }),
    };
    if let Some(fault) = replayed.fault {
        let mut check = Check::fails("tokens", fault.to_string()).of(no);
        check.position = Some(fault.position);
        return Ok(vec![check]);
    }
    let mut checks = vec![Check::holds("tokens", format!("{count} came out again")).of(no)];
    checks.push(states(blob, no, &replayed.state_digests));
    if let Some(told) = claim.texts.get(&no) {
        checks.push(match replayed.text == *told {
            true => Check::holds("text", "what the client read").of(no),
            false => Check::fails("text", "the client read another text").of(no),
        });
    }
    Ok(checks)
}

/// Whether each chunk's digest is that of the states that were computed again.
fn states(blob: &Blob, turn: TurnNo, digests: &[[u8; 32]]) -> Check {
    for chunk in blob.chunks.iter().filter(|chunk| chunk.turn == turn) {
        if chunk.act_digest == Hash32::ZERO {
            return Check::not_checked("states", "the claim carries no digests of them").of(turn);
        }
        let start = usize::try_from(chunk.position).unwrap_or(usize::MAX);
        let own = digests.iter().skip(start).take(chunk.ids.len());
        if act_digest(own.map(|digest| Some(Hash32::new(*digest)))) != chunk.act_digest {
            let words = format!("other hidden states in tokens {start} and on");
            let mut check = Check::fails("states", words).of(turn);
            check.position = Some(chunk.position);
            return check;
        }
    }
    Check::holds("states", "those that were claimed").of(turn)
}

fn request(header: &TurnHeader, decode: &Decode) -> SequenceRequest {
    SequenceRequest {
        prompt_ids: header.prompt_ids.clone(),
        max_tokens: decode.max_tokens,
        sampling: Sampling {
            temperature: decode.temperature,
            top_k: decode.top_k,
            top_p: decode.top_p,
            min_p: decode.min_p,
            repetition_penalty: decode.repetition_penalty,
            frequency_penalty: decode.frequency_penalty,
            presence_penalty: decode.presence_penalty,
            logit_bias: decode.logit_bias.clone(),
            logprobs: None,
            seed: *header.seed.bytes(),
        },
        stop: decode.stop.clone(),
        ignore_eos: decode.ignore_eos,
        owner: None,
    }
}

/// What an end of the ledger says about the text.
const fn claimed_end(end: Option<TurnEnd>) -> ClaimedEnd {
    match end {
        Some(TurnEnd::Stop) => ClaimedEnd::Stop,
        Some(TurnEnd::Length) => ClaimedEnd::Length,
        Some(TurnEnd::DepositExhausted) => ClaimedEnd::Exhausted,
        Some(TurnEnd::Cancelled | TurnEnd::Error) | None => ClaimedEnd::Cut,
    }
}
