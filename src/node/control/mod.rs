//! The control socket: what an operator on the same machine tells a running node.
//!
//! A Unix domain socket, `control.sock` in the data folder, for the user who runs the node and
//! nobody else. One request a connection: one JSON line each way. Never carries a secret, never
//! signs anything itself: orders go to settlement, which keeps the one line of nonces. Relies on
//! the data folder's lock, so that one node serves one socket.

mod client;
mod server;
mod wire;

use std::path::{Path, PathBuf};

pub use client::{AskError, ask};
pub use server::{Control, Door, DoorError, serve};
pub use wire::{Answer, Command, Fault, token, token_text};

/// Longest line that is read from either side, bytes: a registration's call fits many times over.
const LINE_BYTES_MAX: usize = 256 << 10;

/// The socket of the node that uses this data folder.
#[must_use]
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}
