//! The CPU transformer that makes Tally's text.
//!
//! For: a model, several sequences at once, the same bits on every machine.
//! Must never: know of sessions, chains or HTTP; write prompts or text into logs.
//! Relies on: its own kernels for every number (docs/spec/numerics.md); candle for architectures
//! that they don't compute, one sequence at a time and not canonical (`adapter`).
//!
//! ```text
//! Engine::start ─▶ mailbox ─▶ Runner (a thread) ─▶ Scheduler::plan ─▶ Model::forward ─▶ Sampler
//!                                   ▲             (KvCache)              (KvPool)          │
//!                                   └──── EventSink ◀── Sequence: stop strings, text ◀─────┘
//!
//! ModelFiles::open ─▶ header, checked ─▶ Tokenizer, ChatTemplate
//! (a GGUF file, or a folder)          └▶ ModelConfig, Weights (packed side by side, then unmapped)
//! ```
//!
//! Several models on one machine: each an [`Engine`] of its own, with the same [`Turns`].
//!
//! Where to read on: [`model`] is the forward pass on one page, [`kv`] the paged cache and its
//! prefixes, `kernels` the hot loops, `scheduler` who does what, `sequence` what a request goes
//! through, `speculation` how several tokens may come of one step, `replay` how a text that is
//! claimed to be a model's is derived again.

mod adapter;
mod batch;
pub mod config;
mod detokenizer;
mod drawing;
mod engine;
mod error;
mod files;
mod gpt2;
mod kernels;
pub mod kv;
mod loaded;
mod math;
pub mod model;
mod ops;
mod options;
mod philox;
mod probe;
mod replay;
mod rope;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod template;
#[cfg(test)]
mod tests;
mod tokenizer;
mod turns;
mod weights;

use files::gguf;

pub use engine::{Engine, SequenceHandle};
pub use error::{EncodeError, LoadError, StartError};
pub use files::{LoadProgress, ModelFiles, WeightFile};
pub use kernels::Isa;
pub use kv::KvType;
pub use loaded::ModelInfo;
pub use options::{EngineOptions, SharePrefixes};
pub use replay::{ClaimedEnd, ClaimedTurn, Fault, Found, Replay, ReplayError, Replayed};
pub use runner::EngineLoad;
pub use sampler::{LOGPROBS_MAX, Sampling};
pub use sequence::{Event, EventSink, FinishReason, Logprob, SequenceRequest, TokenLogprobs};
pub use template::{ChatFormat, ChatTurn};
pub use turns::Turns;

/// Number of the numeric rules that this engine follows (docs/spec/numerics.md). Any change of
/// bits raises it; 0 stands for models that follow none.
pub const ENGINE_SPEC_VERSION: u32 = 1;
