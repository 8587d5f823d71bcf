//! The one integration-test binary: whole parts of the node against real counterparts. Build with
//! `--features test-support`.
#![cfg(feature = "test-support")]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod chain_evm;
mod cli;
mod conformance;
mod delivery;
mod ledger;
mod model_pull;
mod models;
mod money;
mod node;
mod openai;
mod rest;
mod rpc_pool;
mod sampling;
mod settings;
mod settlement;
mod verify;
mod versions;
mod worker;
mod ws;
