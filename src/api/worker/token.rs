//! The secret an orchestrator shows before a worker computes for it.
//!
//! Never shown, and never compared in a time that tells how much of a guess is right: digests are
//! compared, all of them, and nobody can choose a digest's bytes one by one.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// A bearer token.
pub struct WorkerToken(SecretString);

impl WorkerToken {
    /// The token that requests must carry.
    #[must_use]
    pub fn new(secret: SecretString) -> Self {
        Self(secret)
    }

    /// Whether a request carries it.
    #[must_use]
    pub fn is_same(&self, given: &str) -> bool {
        let (own, given) = (Sha256::digest(self.0.expose_secret()), Sha256::digest(given));
        let difference = own.iter().zip(given.iter()).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = WorkerToken::new("correct horse".to_owned().into());
        for (given, is_same) in [
            ("correct horse", true),
            ("correct hors", false),
            ("correct horsf", false),
            ("correct horse ", false),
            ("", false),
        ] {
            assert_eq!(token.is_same(given), is_same, "{given}");
        }
    }
}
