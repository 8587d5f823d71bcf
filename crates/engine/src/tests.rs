//! The forward passes, stage by stage, against hooks on HuggingFace's own (docs/validation.md).
//!
//! `cargo test -p tally-engine checkpoint` runs them all and prints a line for each.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod gpt2;
mod harness;
mod medium;
mod negatives;
mod rotary;
mod small;
