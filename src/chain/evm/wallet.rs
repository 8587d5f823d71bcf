//! The host's key: where it is kept, and what it signs.
//!
//! Never shows the key: not in `Debug`, not in errors, not in a copy that outlives its use. Never
//! decides what deserves a signature. Relies on the chain library's local signer and its encrypted
//! JSON keystores (Web3 Secret Storage).

use std::fs;
use std::path::{Path, PathBuf};

use alloy::primitives::{B256, Signature as EvmSignature};
use alloy::signers::SignerSync;
use alloy::signers::k256::elliptic_curve::rand_core::OsRng;
use alloy::signers::local::PrivateKeySigner;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::wire::address_of;
use crate::chain::{PrepareError, Wallet};
use crate::units::{Address, Hash32, Signature};

/// Why a key cannot be had. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 64 hex digits, or zero, or past the curve's order.
    #[error("the private key is not 64 hex digits (with or without 0x) of a valid secp256k1 key")]
    Malformed,
    /// The keystore cannot be opened with this password, or is none.
    #[error("keystore {path}: {reason}")]
    Keystore {
        /// The file.
        path: PathBuf,
        /// What the decoder said: wrong password, or no keystore.
        reason: String,
    },
    /// A keystore of this address is there already; it is never overwritten.
    #[error("keystore {path} exists already and is left alone")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("keystore {path}: {error}")]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
}

/// The host's key in memory. It wipes itself when dropped.
pub struct EvmWallet {
    signer: PrivateKeySigner,
}

impl std::fmt::Debug for EvmWallet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EvmWallet({})", self.address())
    }
}

/// An answer to `POST /v1/auth/challenge` (docs/spec/marketplace-api.md section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChallengeSignature {
    /// r (32 bytes) | s (32 bytes, the lower half).
    pub rs: [u8; 64],
    /// Recovery id, 0 or 1.
    pub recid: u8,
}

impl EvmWallet {
    /// From 64 hex digits, with or without 0x.
    ///
    /// # Errors
    /// [`KeyError::Malformed`], which repeats none of the digits.
    pub fn from_key(key: &SecretString) -> Result<Self, KeyError> {
        let bytes = key_bytes(key)?;
        let signer = PrivateKeySigner::from_slice(&*bytes).map_err(|_| KeyError::Malformed)?;
        Ok(Self { signer })
    }

    /// From an encrypted JSON keystore. Blocks for the key derivation, up to seconds.
    ///
    /// # Errors
    /// [`KeyError::Keystore`] for a wrong password or another file; [`KeyError::Disk`].
    pub fn from_keystore(path: &Path, password: &SecretString) -> Result<Self, KeyError> {
        // Asked first, so that a missing file is not told as a bad keystore.
        fs::metadata(path).map_err(|error| KeyError::Disk { path: path.into(), error })?;
        PrivateKeySigner::decrypt_keystore(path, password.expose_secret())
            .map(|signer| Self { signer })
            .map_err(|error| KeyError::Keystore { path: path.into(), reason: error.to_string() })
    }

    /// The public key, 33 bytes (SEC1 compressed), as the registry's metadata shows it.
    #[must_use]
    pub fn public_key_compressed(&self) -> [u8; 33] {
        let point = self.signer.credential().verifying_key().to_encoded_point(true);
        // A compressed secp256k1 point has 33 bytes by definition; the zeros are never seen.
        point.as_bytes().try_into().unwrap_or([0; 33])
    }

    /// Signs SHA-256 of the challenge's bytes.
    ///
    /// # Errors
    /// [`PrepareError`] when the key refuses.
    pub fn sign_sha256_challenge(
        &self,
        challenge: &[u8],
    ) -> Result<ChallengeSignature, PrepareError> {
        let digest: [u8; 32] = Sha256::digest(challenge).into();
        let signature = self.sign(B256::new(digest))?;
        let mut rs = [0; 64];
        rs.copy_from_slice(signature.as_bytes().get(..64).unwrap_or(&[0; 64]));
        Ok(ChallengeSignature { rs, recid: u8::from(signature.v()) })
    }

    /// The signature in the chain library's form, `s` in the lower half.
    pub(super) fn sign(&self, digest: B256) -> Result<EvmSignature, PrepareError> {
        self.signer.sign_hash_sync(&digest).map_err(|error| PrepareError(error.to_string()))
    }
}

impl Wallet for EvmWallet {
    fn address(&self) -> Address {
        address_of(self.signer.address())
    }

    fn sign_digest(&self, digest: Hash32) -> Result<Signature, PrepareError> {
        self.sign(B256::new(*digest.bytes())).map(|signature| Signature::new(signature.as_bytes()))
    }

    /// `v` may be 27/28 or, as some hardware wallets write it, 0/1.
    fn recover_message(&self, message: &[u8], signature: &Signature) -> Option<Address> {
        if !matches!(signature.bytes().last(), Some(0 | 1 | 27 | 28)) {
            return None;
        }
        let signature = EvmSignature::from_raw_array(signature.bytes()).ok()?;
        signature.recover_address_from_msg(message).ok().map(address_of)
    }
}

impl EvmWallet {
    /// A key that nobody keeps, for connections that only read.
    #[must_use]
    pub fn throwaway() -> Self {
        Self { signer: PrivateKeySigner::random_with(&mut OsRng) }
    }
}

/// The signer of a ready digest; `None` for a malformed signature.
#[must_use]
pub fn recover_digest(digest: Hash32, signature: &Signature) -> Option<Address> {
    if !matches!(signature.bytes().last(), Some(27 | 28)) {
        return None;
    }
    let signature = EvmSignature::from_raw_array(signature.bytes()).ok()?;
    let signer = signature.recover_address_from_prehash(&B256::new(*digest.bytes())).ok()?;
    Some(address_of(signer))
}

/// Makes a new key and stores it as `dir/<address>.json`, readable by the owner only. Blocks for
/// the key derivation.
///
/// # Errors
/// [`KeyError`]; nothing is left behind that could be taken for a key in use.
pub fn keystore_new(dir: &Path, password: &SecretString) -> Result<(PathBuf, Address), KeyError> {
    store(dir, &PrivateKeySigner::random_with(&mut OsRng), password)
}

/// Stores a key that exists, as [`keystore_new`] does.
///
/// # Errors
/// [`KeyError`], [`KeyError::Exists`] where the address has a keystore there.
pub fn keystore_import(
    dir: &Path,
    key: &SecretString,
    password: &SecretString,
) -> Result<(PathBuf, Address), KeyError> {
    store(dir, &EvmWallet::from_key(key)?.signer, password)
}

/// Encrypts the key of the keystore `path` anew under `new`, in its place: at every moment the
/// file opens with the one password or with the other. Blocks for two key derivations.
///
/// # Errors
/// [`KeyError`]; the file is as it was then.
pub fn keystore_change_password(
    path: &Path,
    present: &SecretString,
    new: &SecretString,
) -> Result<Address, KeyError> {
    let wallet = EvmWallet::from_keystore(path, present)?;
    let disk = |error| KeyError::Disk { path: path.into(), error };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made in a folder of its own and read back before it takes the old one's place.
    let workshop = dir.join(format!(".change-password-{}", std::process::id()));
    fs::create_dir(&workshop).map_err(disk)?;
    let replaced = store(&workshop, &wallet.signer, new).and_then(|(made, address)| {
        if EvmWallet::from_keystore(&made, new)?.address() != wallet.address() {
            let reason = "the new file does not hold the same key".to_owned();
            return Err(KeyError::Keystore { path: made, reason });
        }
        fs::rename(&made, path).map_err(disk)?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(disk)?;
        Ok(address)
    });
    // Holds the key still where something failed, under the new password.
    drop(fs::remove_dir_all(&workshop));
    replaced
}

fn store(
    dir: &Path,
    signer: &PrivateKeySigner,
    password: &SecretString,
) -> Result<(PathBuf, Address), KeyError> {
    let address = address_of(signer.address());
    let name = format!("{address}.json");
    let path = dir.join(&name);
    let disk = |error| KeyError::Disk { path: path.clone(), error };
    fs::create_dir_all(dir).map_err(disk)?;
    // Created empty and private first: the library would follow the umask, and would overwrite.
    match private_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(KeyError::Exists { path });
        }
        made => made.map_err(disk)?,
    };
    let bytes = Zeroizing::new(signer.to_bytes().0);
    let secret = password.expose_secret();
    let stored =
        PrivateKeySigner::encrypt_keystore(dir, &mut OsRng, &bytes[..], secret, Some(&name));
    if let Err(error) = stored {
        // Half a file is no key, and would be in the way of the next try.
        let _ = fs::remove_file(&path);
        return Err(KeyError::Keystore { path, reason: error.to_string() });
    }
    fs::File::open(&path).and_then(|file| file.sync_all()).map_err(disk)?;
    Ok((path, address))
}

fn private_file(path: &Path) -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn key_bytes(key: &SecretString) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let text = key.expose_secret().trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, &mut *bytes).map_err(|_| KeyError::Malformed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::signers::k256::ecdsa::{RecoveryId, Signature as EcdsaSignature, VerifyingKey};

    /// The first of anvil's well-known accounts.
    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const ADDRESS: &str = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266";

    fn wallet() -> EvmWallet {
        EvmWallet::from_key(&KEY.into()).unwrap()
    }

    #[test]
    fn a_key_is_read_with_and_without_prefix_and_never_shown() {
        for text in [KEY, &KEY[2..], &format!(" {KEY}\n")] {
            let wallet = EvmWallet::from_key(&SecretString::from(text)).unwrap();
            assert_eq!(wallet.address().to_string(), ADDRESS);
        }
        let shown = format!("{:?}", wallet());
        assert_eq!(shown, format!("EvmWallet({ADDRESS})"));
    }

    #[test]
    fn a_bad_key_is_refused_without_repeating_it() {
        let zero = "0".repeat(64);
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        for bad in ["", "0x", "abcdef", &zero, order, &"g".repeat(64), &format!("{KEY}00")] {
            let error = EvmWallet::from_key(&SecretString::from(bad)).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(bad.len() < 4 || !shown.contains(bad), "{shown}");
        }
    }

    #[test]
    fn a_digest_signature_ends_in_27_or_28_and_names_the_host() {
        let wallet = wallet();
        for byte in 0..8 {
            let digest = Hash32::new([byte; 32]);
            let signature = wallet.sign_digest(digest).unwrap();
            assert!(matches!(signature.bytes()[64], 27 | 28));
            let raw = EvmSignature::from_raw_array(signature.bytes()).unwrap();
            let signer = raw.recover_address_from_prehash(&B256::new(*digest.bytes())).unwrap();
            assert_eq!(address_of(signer), wallet.address());
        }
    }

    #[test]
    fn a_personal_message_names_its_signer_and_nobody_else() {
        let wallet = wallet();
        let message = b"log in to job 7";
        let signed = wallet.signer.sign_message_sync(message).unwrap().as_bytes();
        let good = Signature::new(signed);
        assert_eq!(wallet.recover_message(message, &good), Some(wallet.address()));
        assert_ne!(wallet.recover_message(b"log in to job 8", &good), Some(wallet.address()));
        let with_v = |v| {
            let mut bytes = signed;
            bytes[64] = v;
            wallet.recover_message(message, &Signature::new(bytes))
        };
        assert_eq!(with_v(signed[64] - 27), Some(wallet.address()));
        for v in [2, 26, 29, 35, 255] {
            assert_eq!(with_v(v), None, "v {v}");
        }
        assert_eq!(wallet.recover_message(message, &Signature::new([0; 65])), None);
        let mut past_order = [0xff; 65];
        past_order[64] = 27;
        assert_eq!(wallet.recover_message(message, &Signature::new(past_order)), None);
    }

    #[test]
    fn a_client_recovers_the_hosts_public_key_from_a_challenge() {
        let wallet = wallet();
        let challenge = [7; 32];
        let answer = wallet.sign_sha256_challenge(&challenge).unwrap();
        let signature = EcdsaSignature::from_slice(&answer.rs).unwrap();
        let recid = RecoveryId::from_byte(answer.recid).unwrap();
        let digest = Sha256::digest(challenge);
        let key = VerifyingKey::recover_from_prehash(&digest, &signature, recid).unwrap();
        assert_eq!(key.to_encoded_point(true).as_bytes(), wallet.public_key_compressed());
        assert!(matches!(wallet.public_key_compressed()[0], 2 | 3));
    }

    #[test]
    fn a_keystore_opens_with_its_password_only_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        let password = SecretString::from("correct horse");
        let (path, address) = keystore_import(&keys, &KEY.into(), &password).unwrap();
        assert_eq!(address.to_string(), ADDRESS);
        assert_eq!(EvmWallet::from_keystore(&path, &password).unwrap().address(), address);
        let refused = EvmWallet::from_keystore(&path, &"wrong".into());
        assert!(matches!(refused, Err(KeyError::Keystore { .. })));
        let again = keystore_import(&keys, &KEY.into(), &"other".into());
        assert!(matches!(again, Err(KeyError::Exists { .. })));
        let missing = EvmWallet::from_keystore(&keys.join("none.json"), &password);
        assert!(matches!(missing, Err(KeyError::Disk { .. })));
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&KEY[2..]));
    }

    #[test]
    fn a_changed_password_opens_the_same_key_and_the_old_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["correct horse", "battery staple"].map(SecretString::from);
        let (path, address) = keystore_import(dir.path(), &KEY.into(), &old).unwrap();
        let before = fs::read(&path).unwrap();
        let refused = keystore_change_password(&path, &"wrong".into(), &new);
        assert!(matches!(refused, Err(KeyError::Keystore { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(keystore_change_password(&path, &old, &new).unwrap(), address);
        assert_eq!(EvmWallet::from_keystore(&path, &new).unwrap().address(), address);
        assert!(EvmWallet::from_keystore(&path, &old).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_keystore_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, address) = keystore_new(dir.path(), &"p".into()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(EvmWallet::from_keystore(&path, &"p".into()).unwrap().address(), address);
    }
}
