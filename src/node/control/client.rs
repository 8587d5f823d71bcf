//! Asking a running node.
//!
//! Never starts one and never waits for one to start. An answer may take as long as a transaction
//! takes to become final.

use std::io;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::wire::{Answer, Command, parse_answer};
use super::{LINE_BYTES_MAX, socket_path};

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No node serves this data folder.
    #[error("no node runs on this data folder")]
    NotRunning,
    /// It was asked and hung up: what was ordered may be under way.
    #[error("the node ended before it answered; `tally status` tells what became of it: {0}")]
    Lost(String),
    /// The socket is there and cannot be used, for example because it is another user's.
    #[error("control socket {path}: {error}")]
    Socket {
        /// Its path.
        path: String,
        /// Why.
        error: io::Error,
    },
}

/// Sends one command and waits for its answer.
///
/// # Errors
/// [`AskError`]; a refusal is an answer.
pub async fn ask(data_dir: &Path, command: &Command) -> Result<Answer, AskError> {
    let path = socket_path(data_dir);
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) => return Err(not_connected(&path, error)),
    };
    let line = format!("{}\n", command.to_line());
    let lost = |error: io::Error| AskError::Lost(error.to_string());
    stream.write_all(line.as_bytes()).await.map_err(lost)?;
    let mut answer = Vec::new();
    let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    stream.take(most).read_to_end(&mut answer).await.map_err(lost)?;
    let text = String::from_utf8_lossy(&answer);
    parse_answer(text.trim_end()).ok_or_else(|| AskError::Lost("no answer came".into()))
}

fn not_connected(path: &Path, error: io::Error) -> AskError {
    match error.kind() {
        // A socket that a killed node left behind refuses.
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::NotRunning,
        // Longer than a socket's address may be: no node can have made it.
        io::ErrorKind::InvalidInput => AskError::NotRunning,
        _ => AskError::Socket { path: path.display().to_string(), error },
    }
}
