//! Model files: mapped into memory, checked to the last offset, and only then believed.
//!
//! For: everything that the engine reads from disk.
//! Must never: trust a number in a file: each count, length, type and offset is compared with the
//! file's size before anything is allocated or read by it; panic over a file.
//! Relies on: nothing but the formats' own specifications.

pub(crate) mod gguf;
mod map;
mod reader;
mod stored;
mod tensor;
