//! Model files that are damaged or made to do harm: refused by name, without a panic and without
//! a large allocation.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gguf;
mod gguf_file;
mod gpt2;
mod mutate;
mod safetensors;
mod watched;
