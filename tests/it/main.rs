//! The one integration-test binary: whole parts of the node against real counterparts.
//! Build with `--features test-support`.
#![cfg(feature = "test-support")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

mod conformance;
mod delivery;
mod rest;
mod ws;
