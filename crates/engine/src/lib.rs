//! The CPU transformer that makes Tally's text.
//!
//! For: one model file, several sequences at once, the same bits on every machine.
//! Must never: know of sessions, chains or HTTP; write prompts or text into logs.
//! Relies on: candle for GGUF files and tensors; its own kernels for every number
//! (docs/spec/numerics.md).
//!
//! ```text
//! Engine::start ─▶ mailbox ─▶ Runner (a thread) ─▶ Scheduler::plan ─▶ Model::forward ─▶ Sampler
//!                                   ▲             (KvCache)              (KvPool)          │
//!                                   └──── EventSink ◀── Sequence: stop strings, text ◀─────┘
//! ```
//!
//! Where to read on: [`model`] is the forward pass on one page, [`kv`] the paged cache and its
//! prefixes, `kernels` the hot loops, `scheduler` who does what, `sequence` what a request goes
//! through, `speculation` how several tokens may come of one step.

pub mod config;
mod detokenizer;
mod engine;
mod error;
mod gguf;
mod kernels;
pub mod kv;
mod math;
pub mod model;
mod ops;
mod philox;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod speculation;
mod stop;
mod template;
mod tokenizer;
mod weights;

pub use engine::{Engine, EngineOptions, ModelInfo, SequenceHandle, SharePrefixes};
pub use error::{EncodeError, LoadError, StartError};
pub use kernels::Isa;
pub use runner::EngineLoad;
pub use sampler::{LOGPROBS_MAX, Sampling};
pub use sequence::{Event, EventSink, FinishReason, Logprob, SequenceRequest, TokenLogprobs};
pub use template::ChatTurn;

/// Number of the numeric rules that this engine follows. Any change of bits raises it; 0 means
/// that the canonical form isn't settled and claims carry no canonical flag.
pub const ENGINE_SPEC_VERSION: u32 = 0;
