//! What a front-end asks of the session service, in domain terms.
//!
//! Never a wire type: front-ends translate their JSON into these.

use secrecy::SecretString;

use crate::engine::Prompt;
use crate::units::JobId;

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
    /// > 0; 1 is none.
    pub repetition_penalty: f64,
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
}
