//! The forward passes, stage by stage, against hooks on HuggingFace's own (docs/validation.md).
//!
//! `cargo test -p tally-engine checkpoint` runs them all and prints a line for each. What several
//! files of tests need is in `harness.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod cache;
mod gpt2;
pub(crate) mod harness;
mod medium;
mod negatives;
mod rotary;
mod sampling;
mod small;
