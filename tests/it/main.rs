//! The one integration-test binary: whole parts of the node against real counterparts.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on has failed.

mod support;

mod chain_evm;
mod cli;
mod model_pull;
mod settings;
