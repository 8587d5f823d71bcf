//! The ledger's file as a file: who may read it, under which names it lies, and what SQLite says
//! about it in an operator's words.
//!
//! Never opens a database.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::ledger::LedgerError;

/// Transcripts and keys of claims are the owner's alone.
const FILE_MODE: u32 = 0o600;

/// What an operator does about a file that makes no sense (docs/ledger.md).
pub(super) const DAMAGED: &str = "the file is damaged: `tally ledger check` looks at all of it, \
                                  `tally ledger restore` puts a backup in its place";

/// Names the file in an error of SQLite.
pub(super) fn at<T>(path: &Path, result: rusqlite::Result<T>) -> Result<T, LedgerError> {
    result.map_err(|error| refuse(path, &in_words(&error)))
}

/// A refusal that names the file.
pub(super) fn refuse(path: &Path, why: &str) -> LedgerError {
    LedgerError::Store(format!("ledger {}: {why}", path.display()))
}

/// Whether SQLite met a page that makes no sense.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// What SQLite said, and what it means for the operator.
pub(super) fn in_words(error: &rusqlite::Error) -> String {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full: make room, then start again",
        Some(ErrorCode::ReadOnly) => "the file or its folder may not be written",
        Some(ErrorCode::CannotOpen) => "the file or its folder is missing or may not be written",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DAMAGED,
        Some(ErrorCode::SystemIoFailure) => "the disk refused: is it full, or broken?",
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}

pub(super) fn holds_data(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates the file before SQLite does, which would let the process's umask decide who reads it.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    let is_new = !path.try_exists()?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    if is_new {
        sync_folder(path)?;
    }
    Ok(())
}

/// The name of a new file is durable only once its folder was synced.
pub(super) fn sync_folder(of: &Path) -> io::Result<()> {
    let folder = of.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// `path`, or `path.2`, `path.3` …: the first that is free.
pub(super) fn free_name(path: &Path) -> PathBuf {
    let numbered = (2_u32..).map(|number| with_ending(path, &format!(".{number}")));
    let mut names = std::iter::once(path.to_owned()).chain(numbered);
    names.find(|name| !name.exists()).unwrap_or_else(|| path.to_owned())
}

pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
