//! The port to whatever makes the text, and its types.
//!
//! Never knows jobs, money or HTTP: it is given ids and a bound, and gives ids and text back.
//! Callers rely on: `start` does not block; dropping a [`Generation`] cancels it.

pub mod local;
#[cfg(feature = "test-support")]
pub mod scripted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use crate::units::Hash32;

/// A model that can be asked for, as clients and the registry see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The name clients send in `model`.
    pub name: String,
    /// Longest prompt plus answer, in tokens.
    pub context_length: u32,
    /// SHA-256 of the weights: of their file, or of the list of several; zero under
    /// `tally worker`, where nobody asks for hashes.
    pub weights_sha256: Hash32,
    /// SHA-256 of the file that describes the tokenizer; often that of the weights too. Zero as
    /// that is.
    pub tokenizer_sha256: Hash32,
    /// Quantisation of the weight file, as its format names it (`Q4_1`).
    pub quantisation: String,
    /// Canonical text of the architecture's configuration, hashed into `modelSpec`.
    pub architecture: String,
    /// Version of the engine's arithmetic; 0 where it is not canonical (docs/spec/numerics.md).
    pub engine_spec: u32,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The words; special tokens inside them are plain text.
    pub content: String,
}

/// A prompt before it becomes ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Turns, rendered through the model's chat template.
    Chat(Vec<Turn>),
    /// A user's turn that follows a history of ids, which is never retokenised.
    Next {
        /// Prompt and answer of the turns before, as the engine saw and made them.
        history_ids: Vec<u32>,
        /// The user's words.
        content: String,
    },
    /// Text that skips the template.
    Raw(String),
}

/// How the next token is chosen (docs/spec/numerics.md, rule 6).
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 … 2; below 1e-6 the most likely token is taken.
    pub temperature: f32,
    /// Candidates kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Candidates kept by cumulated probability, 0 … 1; 1 keeps all.
    pub top_p: f32,
    /// Candidates kept relative to the best, 0 … 1; 0 keeps all.
    pub min_p: f32,
    /// Penalty on tokens already seen, > 0; 1 is none.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time it was generated, −2 … 2; 0 is none.
    pub frequency_penalty: f32,
    /// Taken off a token's logit once it was generated, −2 … 2; 0 is none.
    pub presence_penalty: f32,
    /// Added to the logits of these ids, −100 … 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// How many of the most likely tokens are told with each token, 0 … 20; `None` tells no
    /// probabilities at all. Changes no token.
    pub logprobs: Option<u32>,
    /// The seed: same seed, same text.
    pub seed: Hash32,
}

/// One generation, ready to start.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSpec {
    /// A name from the catalog.
    pub model: String,
    /// The rendered prompt.
    pub prompt_ids: Vec<u32>,
    /// Upper bound on generated tokens, > 0.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
    /// The model never ends the text by itself.
    pub ignore_eos: bool,
    /// Whose prompt it is: what was read before is not read again for prompts of one owner, which
    /// their time to the first token tells.
    pub owner: Hash32,
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineFinish {
    /// The model ended its turn.
    Stop,
    /// This stop string was found.
    StopText(String),
    /// `max_tokens` or the context's end was reached.
    Length,
    /// The generation was cancelled.
    Cancelled,
    /// The engine failed; the text says how, for the log.
    Failed(String),
}

/// How likely a generated token and the most likely ones at its place were, by the model's own
/// distribution: before bias, penalties, temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The generated token.
    pub chosen: Logprob,
    /// The most likely tokens, most likely first; the generated one may be among them.
    pub top: Vec<Logprob>,
}

/// A token's probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// Its text, perhaps a part of a character; empty for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, at most 0.
    pub logprob: f64,
}

/// What a generation tells, in order: `Prefilled`, tokens, one `Finished`.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// The prompt has been read.
    Prefilled {
        /// Tokens of it that were in the cache and were not read again.
        cached_tokens: u32,
    },
    /// One generated, billable token.
    Token {
        /// The id.
        id: u32,
        /// Text that became complete with it; empty for a part of a character.
        text: String,
        /// Digest of the hidden state that produced it; `None` where the engine has none.
        state_digest: Option<Hash32>,
        /// How likely it was, where the generation asked.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The end. Nothing follows.
    Finished {
        /// Why it ended.
        reason: EngineFinish,
        /// Text before a matched stop string that no billed token carried.
        tail_text: String,
    },
}

/// A running generation. Dropping it cancels the work within one step.
pub struct Generation {
    events: mpsc::Receiver<EngineEvent>,
    resume: Arc<dyn Fn() + Send + Sync>,
    _cancel: Box<dyn std::any::Any + Send>,
}

impl Generation {
    /// A generation whose events arrive on `events`.
    ///
    /// `resume` is called after an event was taken, so that an engine paused by a full queue goes
    /// on; `cancel` is dropped with the generation and must stop the work.
    #[must_use]
    pub fn new(
        events: mpsc::Receiver<EngineEvent>,
        resume: Arc<dyn Fn() + Send + Sync>,
        cancel: Box<dyn std::any::Any + Send>,
    ) -> Self {
        Self { events, resume, _cancel: cancel }
    }

    /// The next event; `None` when the engine vanished without a `Finished`. Cancel-safe.
    pub async fn next(&mut self) -> Option<EngineEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Self::next`], for those who share it under a lock.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<EngineEvent>> {
        let event = ready!(self.events.poll_recv(cx));
        (self.resume)();
        Poll::Ready(event)
    }

    /// An event that is already there, without waiting.
    pub fn try_next(&mut self) -> Option<EngineEvent> {
        let event = self.events.try_recv().ok();
        if event.is_some() {
            (self.resume)();
        }
        event
    }
}

/// How busy the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineLoad {
    /// Sequences that make progress.
    pub running: u32,
    /// Sequences that wait for room.
    pub queued: u32,
    /// KV blocks that no sequence uses; the cached ones among them.
    pub kv_block_count_free: u32,
    /// KV blocks that no sequence uses, kept with their tokens until room is needed.
    pub kv_block_count_cached: u32,
    /// All KV blocks.
    pub kv_block_count: u32,
    /// What the cache did since the start.
    pub cache: CacheCounts,
    /// Tokens that were guessed and checked since the start.
    pub guessed_tokens: u64,
    /// Those of them that came true.
    pub guessed_right: u64,
}

/// What the KV cache did since the engine's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// Sequences that found a beginning of theirs in it.
    pub hits: u64,
    /// Tokens that they found.
    pub hit_tokens: u64,
    /// Cached blocks that were given up for lack of room.
    pub evictions: u64,
    /// Times that a sequence gave its blocks to an older one, to be read again later.
    pub preemptions: u64,
}

/// Why a generation could not start. Nothing was generated in any of these cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// No such model; the caller lists what there is.
    #[error("unknown model")]
    UnknownModel,
    /// The prompt leaves no room for a token.
    #[error("prompt of {prompt_tokens} tokens does not fit a context of {context_length}")]
    ContextLength {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// The model's context, in tokens.
        context_length: u32,
    },
    /// All places are taken: retry later.
    #[error("the engine's queue is full")]
    Busy,
    /// The request itself is at fault.
    #[error("{0}")]
    Invalid(String),
    /// Prompt and answer together need more KV memory than there is, whatever else runs.
    #[error("{0}")]
    Memory(String),
    /// A setting is out of a range that only the engine knows, such as its vocabulary.
    #[error("{setting} {reason}")]
    Setting {
        /// Its wire name.
        setting: &'static str,
        /// What was wanted and what was found.
        reason: String,
    },
    /// The engine has stopped or is draining.
    #[error("the engine does not take work")]
    Unavailable,
}

/// Makes text.
pub trait Engine: Send + Sync {
    /// The models that can be asked for.
    fn catalog(&self) -> Vec<ModelCard>;

    /// The prompt as ids. Takes up to some milliseconds of CPU for long prompts.
    ///
    /// # Errors
    /// [`StartError::UnknownModel`] or [`StartError::Invalid`].
    fn render(&self, model: &str, prompt: &Prompt) -> Result<Vec<u32>, StartError>;

    /// Starts a generation; never blocks.
    ///
    /// # Errors
    /// Every [`StartError`].
    fn start(&self, spec: GenerationSpec) -> Result<Generation, StartError>;

    /// How busy it is now.
    fn load(&self) -> EngineLoad;

    /// Whether it takes work at all; false once it was shut down or has failed.
    fn is_healthy(&self) -> bool;

    /// Stops the model's threads; running generations end as failed.
    fn shutdown(&self);
}
