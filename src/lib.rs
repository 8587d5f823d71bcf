//! Tally: a host node that sells LLM tokens and is paid on chain.
//!
//! Everything serves one sentence: **claimed ≤ recorded ≤ delivered ≤ affordable by the deposit**,
//! at every instant, across every crash. `docs/ARCHITECTURE.md` draws the flow; layers, from the
//! bottom up (imports point down, `tests/tidy/` checks it):
//!
//! - [`units`], [`telemetry`]: numbers and ids as types; names of metrics.
//! - [`billing`], [`claim`], [`proof`]: pure rules. No I/O, no async, no clock.
//! - [`clock`], [`engine`], [`chain`], [`ledger`]: ports, each with its adapters in folders.
//! - [`session`], [`settlement`], [`jobs`]: the services. The first never waits for the chain, the
//!   second never touches a request, the third serves a worker's jobs, which nobody pays for.
//! - [`api`]: bytes to domain and back; thin.
//! - [`node`]: settings, wiring, tasks, shutdown.

pub mod api;
pub mod billing;
pub mod chain;
pub mod claim;
pub mod clock;
pub mod engine;
pub mod jobs;
pub mod ledger;
pub mod node;
pub mod proof;
pub mod session;
pub mod settlement;
pub mod telemetry;
pub mod units;
