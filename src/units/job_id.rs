//! The number of a session on chain, in every spelling clients use.
//!
//! Never guesses: a text that is no number is an error, not job 0. Source of the spellings:
//! docs/spec/marketplace-api.md section 1 (web clients render a JavaScript BigInt as `139n`).

/// The on-chain record a session is paid from. Counted from 1 by the contract, so 0 is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// Why a text is no job id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job id is a decimal number from 1, with or without a trailing \"n\"")]
pub struct JobIdError;

impl JobId {
    /// Wraps a number; `None` for 0, which the contract never gives out.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        if value == 0 { None } else { Some(Self(value)) }
    }

    /// The raw number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads `139` or `139n`, surrounding blanks ignored.
    ///
    /// # Errors
    /// [`JobIdError`] for anything else: signs, decimals, hex, 0, numbers past 2^64 - 1.
    pub fn parse(text: &str) -> Result<Self, JobIdError> {
        let trimmed = text.trim();
        let digits = trimmed.strip_suffix('n').unwrap_or(trimmed);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(JobIdError);
        }
        digits.parse().ok().and_then(Self::new).ok_or(JobIdError)
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_spelling_means_the_same_job() {
        for text in ["139", "139n", " 139 ", "0139"] {
            assert_eq!(JobId::parse(text), Ok(JobId(139)), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_never_becomes_a_job() {
        for text in ["", "n", "0", "0n", "-1", "+1", "1.5", "0x8b", "abc", "139nn", "1 2"] {
            assert_eq!(JobId::parse(text), Err(JobIdError), "{text}");
        }
        assert_eq!(JobId::parse("18446744073709551615").map(JobId::get), Ok(u64::MAX));
        assert_eq!(JobId::parse("18446744073709551616"), Err(JobIdError));
    }
}
