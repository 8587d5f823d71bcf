//! Integration tests, one binary. Build with `--features test-support`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod ledger;
