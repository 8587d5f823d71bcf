//! The engine through its public face, on the real model that `TALLY_TEST_MODEL` names.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod adapter;
mod cache;
mod configs;
mod families;
mod folders;
mod golden;
mod gpt2;
mod kit;
mod lifecycle;
mod models;
mod perplexity;
mod reference;
mod replay;
mod sameness;
mod speculation;
mod stream;
mod text;
