//! The one integration-test binary: whole parts of the node against real counterparts. Build with
//! `--features test-support`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)] // A test that cannot go on has failed.

mod support;

mod chain_evm;
mod cli;
mod ledger;
mod model_pull;
mod settings;
