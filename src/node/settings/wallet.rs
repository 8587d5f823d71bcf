//! The host's key and the chain's endpoints: settings that must never be shown.
//!
//! Never decrypts and never signs; it says where the key lies. Passwords come from a file or the
//! environment, never from the command line, where every user of the machine could read them.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// Where the host's key comes from.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// An encrypted keystore file.
    Keystore {
        /// The file.
        path: PathBuf,
        /// How to open it.
        password: PasswordSource,
    },
    /// The key itself, 64 hex digits with or without `0x`, from the environment.
    Env(SecretString),
}

/// Where the keystore's password comes from.
#[derive(Debug, Clone)]
pub enum PasswordSource {
    /// The first line of a file.
    File(PathBuf),
    /// The environment.
    Env(SecretString),
}

/// A file's secret could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret in {}: {why}", path.display())]
pub struct KeyError {
    path: PathBuf,
    why: String,
}

impl PasswordSource {
    /// The password. Blocks on a small file.
    ///
    /// # Errors
    /// [`KeyError`] where the file cannot be read or its first line is empty.
    pub fn read(&self) -> Result<SecretString, KeyError> {
        match self {
            Self::Env(password) => Ok(password.clone()),
            Self::File(path) => secret_line(path),
        }
    }
}

/// The first line of a file, as a secret.
///
/// # Errors
/// [`KeyError`] where it cannot be read or is empty.
pub fn secret_line(path: &Path) -> Result<SecretString, KeyError> {
    let refuse = |why: String| KeyError { path: path.to_owned(), why };
    let text = zeroize::Zeroizing::new(
        std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?,
    );
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(SecretString::from(line.to_owned())),
        _ => Err(refuse("its first line is empty".to_owned())),
    }
}

/// Whether a secret looks like a private key: 64 hex digits, not all zero.
pub(super) fn is_private_key(secret: &SecretString) -> bool {
    let text = secret.expose_secret();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_hex = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex && digits.bytes().any(|byte| byte != b'0')
}

/// A JSON-RPC endpoint. Providers put access keys into its path, so only scheme and host show.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcUrl(String);

impl RpcUrl {
    /// Wraps an address that was checked.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self(url)
    }

    /// The whole address, for the HTTP client only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RpcUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        write!(f, "{scheme}://{host}")
    }
}

impl std::fmt::Debug for RpcUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_shows_its_host_and_no_access_key() {
        for text in ["https://user:pw@rpc.example:8545/v3/k3y", "https://rpc.example:8545?k3y"] {
            assert_eq!(RpcUrl::new(text.to_owned()).to_string(), "https://rpc.example:8545");
        }
    }

    #[test]
    fn a_private_key_is_64_hex_digits_and_not_zero() {
        let fits = |text: &str| is_private_key(&SecretString::from(text.to_owned()));
        let key = "11".repeat(32);
        assert!(fits(&key) && fits(&format!("0x{key}")));
        for bad in ["", "0x", &key[1..], &format!("{key}1"), &"0".repeat(64), &"g".repeat(64)] {
            assert!(!fits(bad), "{bad}");
        }
    }
}
