//! What can go wrong, by operation.
//!
//! For: callers that must tell "this file" from "this request" from "not now".
//! Must never: carry prompts or generated text.
//! Relies on: `thiserror`.

/// A model file can't be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a model file, or a damaged one.
    #[error("{path} is not a readable model file: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What was wrong with it.
        reason: String,
    },
    /// A metadata key is missing or of another type.
    #[error("metadata key {key}: {reason}")]
    Metadata {
        /// The key.
        key: String,
        /// What was wanted or found.
        reason: String,
    },
    /// There is no forward pass for this model.
    #[error("architecture not supported: {0}")]
    UnsupportedArchitecture(String),
    /// A tensor is stored in a form without kernels here.
    #[error("tensor {tensor} is {found}, which has no kernels here")]
    UnsupportedQuantisation {
        /// The tensor.
        tensor: String,
        /// Its GGUF type.
        found: String,
    },
    /// A tensor is missing or has another shape.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What was wanted and found.
        reason: String,
    },
    /// The tokenizer can't be built as the file describes it.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An option is out of range, or this machine can't do it.
    #[error("engine option {option}: {reason}")]
    Options {
        /// The option's name.
        option: &'static str,
        /// What was wanted and found.
        reason: String,
    },
}

/// Text can't be turned into ids.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The model's chat template refused the turns (a role it doesn't know, a wrong order).
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

/// A sequence wasn't started; nothing was generated and nothing is held.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StartError {
    /// As many sequences as allowed are running and waiting; later it may work.
    #[error("{waiting} sequences are waiting, which is the limit")]
    QueueFull {
        /// Sequences running or waiting.
        waiting: usize,
    },
    /// The prompt leaves no room for one token.
    #[error("prompt of {prompt_tokens} tokens does not fit the context of {context_length}")]
    ContextTooLong {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens of the model's context.
        context_length: u32,
    },
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The KV cache is smaller than this request needs; it will never fit.
    #[error("request needs {blocks_needed} KV blocks, the cache has {blocks_total}")]
    KvBudget {
        /// Blocks for prompt and completion.
        blocks_needed: usize,
        /// Blocks in all.
        blocks_total: usize,
    },
    /// A sampling setting, a stop string, a token limit or an id is out of range.
    #[error("{setting} {reason}")]
    InvalidSetting {
        /// The setting, by its field's name.
        setting: &'static str,
        /// What was wanted and what was found.
        reason: String,
    },
    /// The engine was shut down or has failed.
    #[error("the engine has stopped")]
    Stopped,
}
