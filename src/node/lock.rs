//! One node a wallet: two would sign different transactions under one nonce.
//!
//! Never deletes a lock file: deleting one that another process has just opened would let two
//! hold "the" lock. The kernel frees a lock when its process ends, however it ends. Sees processes
//! of this user on this machine and those that share the data folder; nothing beyond.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::units::Address;

/// The locks of a running node. Dropping it frees them.
#[derive(Debug)]
pub struct WalletLock {
    _files: Vec<File>,
}

/// The locks could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another node runs.
    #[error(
        "another node (process {pid}) holds {}: one node a wallet and a data folder; stop it, or \
         give this one another key and another data_dir",
        path.display()
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The process, or `unknown`.
        pid: String,
    },
    /// The file system refused.
    #[error("cannot lock {}: {error}", path.display())]
    Disk {
        /// The lock file.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
}

impl WalletLock {
    /// Takes the wallet's lock in `user_dir` and the data folder's in `data_dir`, or none.
    /// Both folders are made where they do not exist. Never waits.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that runs already.
    pub fn take(
        wallet: Option<Address>,
        user_dir: &Path,
        data_dir: &Path,
    ) -> Result<Self, LockError> {
        let by_wallet = wallet.map(|wallet| user_dir.join(format!("{wallet}.lock")));
        let paths = by_wallet.into_iter().chain([data_dir.join("node.lock")]);
        let files = paths.map(|path| lock(&path)).collect::<Result<_, _>>()?;
        Ok(Self { _files: files })
    }
}

/// The folder of wallet locks: the same for every node of this user, whatever its data folder.
#[must_use]
pub fn user_dir() -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map_or_else(
        || std::env::temp_dir().join("tally-locks"),
        |home| PathBuf::from(home).join(".local/state/tally/locks"),
    )
}

fn lock(path: &Path) -> Result<File, LockError> {
    let disk = |error| LockError::Disk { path: path.to_owned(), error };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(disk)?;
    }
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(disk)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only to name the process: an unreadable file must not hide that it is held.
            let _ = file.read_to_string(&mut pid);
            let is_pid = !pid.trim().is_empty() && pid.trim().bytes().all(|b| b.is_ascii_digit());
            let pid = if is_pid { pid.trim().to_owned() } else { "unknown".to_owned() };
            return Err(LockError::Held { path: path.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(disk(error)),
    }
    file.set_len(0).map_err(disk)?;
    file.rewind().map_err(disk)?;
    writeln!(file, "{}", std::process::id()).map_err(disk)?;
    file.flush().map_err(disk)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_on_a_wallet_or_a_data_folder_is_refused_by_pid() {
        let dir = tempfile::tempdir().unwrap();
        let [user, one, two] = ["user", "one", "two"].map(|name| dir.path().join(name));
        let wallet = |byte| Some(Address::new([byte; 20]));
        let first = WalletLock::take(wallet(1), &user, &one).unwrap();

        for (again, data) in [(wallet(1), &two), (wallet(2), &one), (None, &one)] {
            let refused = WalletLock::take(again, &user, data).unwrap_err().to_string();
            assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        }
        let other = WalletLock::take(wallet(3), &user, &two).unwrap();
        drop((first, other));
        WalletLock::take(wallet(1), &user, &two).unwrap();
    }
}
