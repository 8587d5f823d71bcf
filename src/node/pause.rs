//! `tally pause` and `tally resume`: no new paid work until told otherwise, restarts included.
//!
//! Never stops anything that runs: answers finish and claims go on. The order is a file in the data
//! folder, so that it holds whether the node runs or not; a running node is told by its control
//! socket and writes the file itself.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::control::{AskError, Command, Fault, ask};
use super::small_file;

/// The order could not be given.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// The file.
    #[error("{}: {error}", path.display())]
    Disk {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The running node cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The running node refused.
    #[error("the node refused: {0}")]
    Refused(Fault),
}

/// Whether the operator paused the nodes of this data folder. Blocks on a small file.
#[must_use]
pub fn is_paused(data_dir: &Path) -> bool {
    path(data_dir).exists()
}

/// Writes the order down, or takes it back; durable on return. Blocks.
///
/// # Errors
/// What the file system says.
pub fn write(data_dir: &Path, pause: bool) -> io::Result<()> {
    let path = path(data_dir);
    if pause {
        small_file::write(&path, b"by hand; `tally resume` ends it\n")
    } else {
        small_file::remove(&path)
    }
}

/// Gives the order: to the node where one runs, else to the file that it reads when it starts.
///
/// # Errors
/// [`PauseError`].
pub async fn order(data_dir: &Path, pause: bool) -> Result<Value, PauseError> {
    let command = if pause { Command::Pause } else { Command::Resume };
    match ask(data_dir, &command).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(fault)) => Err(PauseError::Refused(fault)),
        Err(AskError::NotRunning) => {
            let disk = |error| PauseError::Disk { path: path(data_dir), error };
            write(data_dir, pause).map_err(disk)?;
            Ok(json!({"paused": pause, "running": false}))
        }
        Err(error) => Err(error.into()),
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("paused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_to_a_node_that_does_not_run_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert!(!is_paused(&data));
        let answer = order(&data, true).await.unwrap();
        assert_eq!(answer, json!({"paused": true, "running": false}));
        assert!(is_paused(&data));
        order(&data, true).await.unwrap();
        order(&data, false).await.unwrap();
        assert!(!is_paused(&data));
    }
}
