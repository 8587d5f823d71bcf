//! Whole-node simulation: every run follows from one seed. Build with `--features test-support`.
//!
//! The node's own code runs (sessions, tracker, settlement, restart); chain, engine, disk, clients
//! and time are simulated, in one thread, and an auditor that shares no arithmetic with the node
//! checks every step. A seed that fails is printed and replays exactly:
//! `TALLY_SIM_REPLAY=<seed> cargo test --features test-support --test sim replay -- --nocapture`.
#![cfg(feature = "test-support")]
// A run that cannot go on has failed; what it says is for whoever looks at it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod auditor;
mod client;
mod clock;
mod found;
mod mix;
mod mutants;
mod node;
mod runs;
mod world;
