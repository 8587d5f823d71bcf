//! What a front-end asks of the session service, in domain terms.
//!
//! Never a wire type: front-ends translate their JSON into these.

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::Refusal;
use crate::engine::Prompt;
use crate::units::{Hash32, JobId};

/// Ids that may have a bias, as OpenAI's API bounds them.
const LOGIT_BIAS_MAX: usize = 300;
/// Most likely tokens that may be told with each token, as OpenAI's API bounds them.
const LOGPROBS_MAX: u32 = 20;

/// How the caller shows that the session is theirs.
#[derive(Debug, Clone, Default)]
pub enum Credential {
    /// Only the job's number: a plain client, served in legacy mode only.
    #[default]
    JobNumber,
    /// A session token given out for the depositor's signature.
    Token(SecretString),
}

/// What the prompt is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInput {
    /// A complete prompt: the caller brought the turns before it, or there are none.
    Complete(Prompt),
    /// A user's turn that follows what this job's WebSocket session said before.
    Continue(String),
}

/// Sampling as asked for, with the protocol's defaults filled in by the front-end.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingInput {
    /// 0 … 2.
    pub temperature: f64,
    /// 0 keeps all.
    pub top_k: u64,
    /// 0 … 1.
    pub top_p: f64,
    /// 0 … 1.
    pub min_p: f64,
    /// 0.01 … 2; 1 is none.
    pub repetition_penalty: f64,
    /// −2 … 2; 0 is none.
    pub frequency_penalty: f64,
    /// −2 … 2; 0 is none.
    pub presence_penalty: f64,
    /// −100 … 100 for each of at most 300 ids.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Most likely tokens told with each token, 0 … 20; `None` tells no probabilities.
    pub logprobs: Option<u32>,
    /// The client's own seed.
    pub seed: Option<u64>,
    /// At most 4 strings of 1 … 100 characters.
    pub stop: Vec<String>,
    /// The model never ends the text by itself: `max_tokens` does, or a stop string.
    pub ignore_eos: bool,
}

impl Default for SamplingInput {
    /// The marketplace API's defaults (docs/spec/marketplace-api.md section 2).
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            seed: None,
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// One prompt.
#[derive(Debug, Clone)]
pub struct PromptRequest {
    /// Whose deposit pays; `None` is served in free mode only.
    pub job: Option<JobId>,
    /// How the caller shows that the job is theirs.
    pub credential: Credential,
    /// The chain the client believes it is on, where it says so.
    pub chain_id: Option<u64>,
    /// A model's name or alias.
    pub model: String,
    /// The prompt.
    pub input: PromptInput,
    /// Upper bound on the answer's tokens, > 0.
    pub max_tokens: u64,
    /// How tokens are chosen.
    pub sampling: SamplingInput,
    /// What the user gives to the seed, where the client has no seed of its own.
    pub user_nonce: Option<Hash32>,
}

/// The ranges of docs/spec/marketplace-api.md section 2, for every front-end; NaN fails each of
/// them. Errors name the field.
pub(super) fn check(sampling: &SamplingInput, max_tokens: u64) -> Result<(), Refusal> {
    if max_tokens == 0 {
        return Err(Refusal::invalid("max_tokens", "max_tokens must be at least 1"));
    }
    let ranges = [
        ("temperature", sampling.temperature, 0.0..=2.0),
        ("top_p", sampling.top_p, 0.0..=1.0),
        ("min_p", sampling.min_p, 0.0..=1.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01..=2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0..=2.0),
        ("presence_penalty", sampling.presence_penalty, -2.0..=2.0),
    ];
    for (field, value, range) in ranges {
        if !range.contains(&value) {
            let (min, max) = (range.start(), range.end());
            let message = format!("{field} must be between {min} and {max} (got {value})");
            return Err(Refusal::invalid(field, message));
        }
    }
    if sampling.logit_bias.len() > LOGIT_BIAS_MAX {
        let message = format!("at most {LOGIT_BIAS_MAX} ids may have a logit_bias");
        return Err(Refusal::invalid("logit_bias", message));
    }
    let mut biases = sampling.logit_bias.iter();
    if let Some((id, bias)) = biases.find(|(_, bias)| !(-100.0..=100.0).contains(*bias)) {
        let message = format!("logit_bias of {id} must be between -100 and 100 (got {bias})");
        return Err(Refusal::invalid("logit_bias", message));
    }
    if let Some(top) = sampling.logprobs.filter(|top| *top > LOGPROBS_MAX) {
        let message = format!("top_logprobs must be between 0 and {LOGPROBS_MAX} (got {top})");
        return Err(Refusal::invalid("top_logprobs", message));
    }
    if sampling.stop.len() > 4 {
        return Err(Refusal::invalid("stop", "at most 4 stop strings are allowed"));
    }
    let sizes = sampling.stop.iter().map(|stop| stop.chars().count());
    if sizes.into_iter().any(|size| !(1..=100).contains(&size)) {
        return Err(Refusal::invalid("stop", "a stop string has 1 to 100 characters"));
    }
    Ok(())
}

/// Bytes of text from which a prompt is rendered beside the runtime, whose threads carry all
/// streams: about a millisecond of work.
const LONG_BYTES: usize = 4 * 1024;

/// Whether making ids of a prompt takes too long for a thread that carries streams.
pub(super) fn is_long(prompt: &Prompt) -> bool {
    let bytes: usize = match prompt {
        Prompt::Raw(text) | Prompt::Next { content: text, .. } => text.len(),
        Prompt::Chat(turns) => turns.iter().map(|turn| turn.content.len()).sum(),
    };
    bytes > LONG_BYTES
}

/// Refuses a prompt that asks nothing.
pub(super) fn check_not_empty(prompt: &Prompt) -> Result<(), Refusal> {
    let is_empty = match prompt {
        Prompt::Raw(text) | Prompt::Next { content: text, .. } => text.is_empty(),
        Prompt::Chat(turns) => turns.last().is_none_or(|turn| turn.content.is_empty()),
    };
    if is_empty {
        return Err(Refusal::invalid("prompt", "prompt must not be empty"));
    }
    Ok(())
}
