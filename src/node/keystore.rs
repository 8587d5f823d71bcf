//! `tally keystore new|import|change-password`: makes encrypted key files.
//!
//! Never takes a key or a password from the command line, and never prints one. The encryption is
//! the wallet adapter's.

use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::cli::{ChangePassword, ImportKeystore, NewKeystore};
use super::settings;
use crate::chain::evm;
use crate::units::Address;

/// The key file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The secret could not be read.
    #[error("cannot read the {what}: {why}")]
    Input {
        /// Key or password.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// The two entries differ.
    #[error("the two passwords differ; nothing was written")]
    Repeat,
    /// The adapter refused.
    #[error(transparent)]
    Wallet(#[from] evm::KeyError),
}

/// A key file and whose key it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeKeystore {
    /// The file.
    pub path: PathBuf,
    /// The key's address.
    pub address: Address,
}

/// Makes a key and its file. Blocks: asks, then derives for about a second.
///
/// # Errors
/// [`KeystoreError`]; nothing was written then.
pub fn new(task: &NewKeystore) -> Result<MadeKeystore, KeystoreError> {
    let password = password(task.password_file.as_deref())?;
    let (path, address) = evm::keystore_new(&task.dir, &password)?;
    Ok(MadeKeystore { path, address })
}

/// Encrypts a given key into a file. Blocks as [`new`] does.
///
/// # Errors
/// [`KeystoreError`]; nothing was written then.
pub fn import(task: &ImportKeystore) -> Result<MadeKeystore, KeystoreError> {
    let key = match task.key_file.as_deref() {
        Some(path) if path == Path::new("-") => first_line_of_stdin("key")?,
        Some(path) => file_line(path, "key")?,
        None if std::io::stdin().is_terminal() => prompt("key", "Private key (64 hex digits): ")?,
        None => first_line_of_stdin("key")?,
    };
    let password = password(task.target.password_file.as_deref())?;
    let (path, address) = evm::keystore_import(&task.target.dir, &key, &password)?;
    Ok(MadeKeystore { path, address })
}

/// Encrypts the key of a file anew, in its place, under another password. Blocks: asks, then
/// derives twice.
///
/// # Errors
/// [`KeystoreError`]; the file is as it was then.
pub fn change_password(task: &ChangePassword) -> Result<MadeKeystore, KeystoreError> {
    let present = match task.password_file.as_deref() {
        Some(path) => file_line(path, "password")?,
        None => prompt("password", "Present password of the key file: ")?,
    };
    let new = password(task.new_password_file.as_deref())?;
    let address = evm::keystore_change_password(&task.keystore, &present, &new)?;
    Ok(MadeKeystore { path: task.keystore.clone(), address })
}

fn password(file: Option<&Path>) -> Result<SecretString, KeystoreError> {
    if let Some(path) = file {
        return file_line(path, "password");
    }
    let first = prompt("password", "Password of the new key file: ")?;
    let again = prompt("password", "The same again: ")?;
    // A slip here would lock the key away for ever.
    if first.expose_secret() != again.expose_secret() {
        return Err(KeystoreError::Repeat);
    }
    Ok(first)
}

fn file_line(path: &Path, what: &'static str) -> Result<SecretString, KeystoreError> {
    let refuse = |error: settings::KeyError| KeystoreError::Input { what, why: error.to_string() };
    settings::secret_line(path).map_err(refuse)
}

fn prompt(what: &'static str, question: &str) -> Result<SecretString, KeystoreError> {
    let refuse = |error: std::io::Error| KeystoreError::Input { what, why: error.to_string() };
    let text = rpassword::prompt_password(question).map_err(refuse)?;
    filled(what, text)
}

fn first_line_of_stdin(what: &'static str) -> Result<SecretString, KeystoreError> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().read_line(&mut text);
    read.map_err(|error| KeystoreError::Input { what, why: error.to_string() })?;
    filled(what, text.trim().to_owned())
}

fn filled(what: &'static str, text: String) -> Result<SecretString, KeystoreError> {
    if text.is_empty() {
        return Err(KeystoreError::Input { what, why: "it is empty".to_owned() });
    }
    Ok(SecretString::from(text))
}
