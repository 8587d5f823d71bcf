//! The outputs of `sessionJobs`, by version: which word holds what.
//!
//! Never reads a session of another width: a neighbour's would put the depositor where the host
//! belongs. Never cuts a number. Relies on docs/spec/contract.md section 1; positions are compared
//! with the names in the compiled contracts by the tests below.

use alloy::primitives::U256;

use super::Rate;
use crate::chain::evm::version::ContractVersion;
use crate::chain::evm::wire::{u64_of, u128_of};
use crate::chain::{ChainError, ChainJob, JobStatus};
use crate::units::{Address, Amount, ChainSeconds, ChainTime, JobId, PricePerToken, TokenCount};

/// Bytes of an ABI word.
const WORD: usize = 32;

/// Section 3: silence of 3 × `proofInterval` seconds allows the timeout, before v7.
const INTERVALS_OF_SILENCE: u64 = 3;

/// Section 3: what a `proofTimeoutWindow` of 0 stands for, seconds.
const TIMEOUT_WINDOW_DEFAULT: u64 = 300;

/// The depositor's position, the same in all versions (v3a calls it requester).
const DEPOSITOR_AT: usize = 1;

/// Where a version keeps what. Positions count outputs from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain::evm) struct Layout {
    /// Number of outputs.
    outputs: usize,
    /// The host's position. Behind it, in all versions: payment token, deposit, price, tokens
    /// used, longest duration, start, last proof, interval, and then, of v7, the timeout window.
    host: usize,
    /// Whether the interval is followed by a timeout window of its own.
    has_window: bool,
    /// Positions of the texts.
    texts: &'static [usize],
    /// The greatest number of a status.
    status_max: u8,
}

impl Layout {
    /// The layout of a version.
    pub(in crate::chain::evm) const fn of(version: ContractVersion) -> Self {
        use ContractVersion as V;
        let (outputs, host, texts): (usize, usize, &'static [usize]) = match version {
            V::V3a => (15, 2, &[14]),
            V::V3 => (16, 3, &[15]),
            V::V4 => (18, 3, &[15, 17]),
            V::V5 | V::V6 => (17, 2, &[14, 16]),
            V::V7 => (18, 2, &[15, 17]),
        };
        let status_max = match version {
            V::V3a | V::V3 | V::V4 => 5,
            V::V5 | V::V6 | V::V7 => 2,
        };
        Self { outputs, host, has_window: matches!(version, V::V7), texts, status_max }
    }

    const fn width(&self) -> usize {
        self.outputs.saturating_mul(WORD)
    }

    /// Whether `returned` has this many outputs: the first text starts right behind them.
    pub(in crate::chain::evm) fn is_as_wide_as(&self, returned: &[u8]) -> bool {
        let first = self.texts.first().and_then(|at| word(returned, *at)).and_then(small);
        first == Some(self.width()) && returned.len() >= self.width()
    }

    /// Reads what `sessionJobs(job)` returned; `None` for a job the contract does not know.
    ///
    /// # Errors
    /// [`ChainError::Unexpected`] where shape, a number or the job's id is not as it should be.
    pub(super) fn read(
        &self,
        job: JobId,
        rate: Rate,
        returned: &[u8],
    ) -> Result<Option<ChainJob>, ChainError> {
        let wrong = |what: String| ChainError::Unexpected(format!("job {job}: sessionJobs {what}"));
        if !self.is_as_wide_as(returned) {
            let (outputs, bytes) = (self.outputs, returned.len());
            return Err(wrong(format!("has not this version's {outputs} outputs ({bytes} bytes)")));
        }
        if let Some(text) = self.texts.iter().find(|at| !has_text(returned, **at)) {
            return Err(wrong(format!("does not decode: output {text} is no text")));
        }
        let words = Words { job, returned };
        let host = words.address(self.host, "host")?;
        if host == Address::ZERO {
            return Ok(None);
        }
        let id = words.at(0);
        if id != U256::from(job.get()) {
            return Err(wrong(format!("answers with job {id}")));
        }
        self.fields(&words, host, rate).map(Some)
    }

    fn fields(&self, words: &Words<'_>, host: Address, rate: Rate) -> Result<ChainJob, ChainError> {
        let after = |nth: usize| self.host.saturating_add(nth);
        let status_at = if self.has_window { after(10) } else { after(9) };
        let silence = if self.has_window {
            match words.number(after(9), "proofTimeoutWindow")? {
                0 => TIMEOUT_WINDOW_DEFAULT,
                window => window,
            }
        } else {
            words.number(after(8), "proofInterval")?.saturating_mul(INTERVALS_OF_SILENCE)
        };
        Ok(ChainJob {
            id: words.job,
            depositor: words.address(DEPOSITOR_AT, "depositor")?,
            host,
            payment_token: words.address(after(1), "paymentToken")?,
            deposit: Amount::new(words.money(after(2), "deposit")?),
            price: PricePerToken::new(words.money(after(3), "pricePerToken")?),
            tokens_used: TokenCount::new(words.number(after(4), "tokensUsed")?),
            duration_max: ChainSeconds::new(words.number(after(5), "maxDuration")?),
            start_time: ChainTime::new(words.number(after(6), "startTime")?),
            last_proof_time: ChainTime::new(words.number(after(7), "lastProofTime")?),
            silence_max: ChainSeconds::new(silence),
            rate_per_second: match rate {
                Rate::Same(tokens) => tokens,
                Rate::OfModel => 0,
            },
            model: None,
            status: self.status(words, status_at)?,
        })
    }

    fn status(&self, words: &Words<'_>, at: usize) -> Result<JobStatus, ChainError> {
        let number = words.at(at);
        match u8::try_from(number) {
            Ok(0) => Ok(JobStatus::Active),
            Ok(1) => Ok(JobStatus::Completed),
            Ok(2) => Ok(JobStatus::TimedOut),
            Ok(ended) if ended <= self.status_max => Ok(JobStatus::Ended(ended)),
            _ => {
                let job = words.job;
                let words = format!("job {job}: status {number} is none of this version's");
                Err(ChainError::Unexpected(words))
            }
        }
    }
}

/// The outputs, behind whose number they lie.
struct Words<'a> {
    job: JobId,
    returned: &'a [u8],
}

impl Words<'_> {
    /// The width was checked before, so every position that a layout names is there.
    fn at(&self, nth: usize) -> U256 {
        word(self.returned, nth).map(U256::from_be_slice).unwrap_or_default()
    }

    fn number(&self, nth: usize, what: &str) -> Result<u64, ChainError> {
        u64_of(self.at(nth), &format!("job {}: {what}", self.job))
    }

    fn money(&self, nth: usize, what: &str) -> Result<u128, ChainError> {
        u128_of(self.at(nth), &format!("job {}: {what}", self.job))
    }

    fn address(&self, nth: usize, what: &str) -> Result<Address, ChainError> {
        let bytes = self.at(nth).to_be_bytes::<WORD>();
        match (bytes.starts_with(&[0; 12]), bytes.last_chunk::<20>()) {
            (true, Some(address)) => Ok(Address::new(*address)),
            _ => {
                let words = format!("job {}: {what} is no address", self.job);
                Err(ChainError::Unexpected(words))
            }
        }
    }
}

fn word(bytes: &[u8], nth: usize) -> Option<&[u8]> {
    bytes.chunks_exact(WORD).nth(nth)
}

/// A word's value where it is under 65536.
fn small(word: &[u8]) -> Option<usize> {
    let (high, low) = word.split_at_checked(30)?;
    let low: [u8; 2] = low.try_into().ok()?;
    high.iter().all(|byte| *byte == 0).then(|| usize::from(u16::from_be_bytes(low)))
}

/// Whether output `at` points to a length and that many bytes, padded to words, inside `returned`.
fn has_text(returned: &[u8], at: usize) -> bool {
    let position = |word: &[u8]| usize::try_from(U256::from_be_slice(word)).ok();
    let tail = word(returned, at).and_then(position).and_then(|offset| returned.get(offset..));
    let Some((length, text)) = tail.and_then(|tail| tail.split_at_checked(WORD)) else {
        return false;
    };
    let padded = position(length).and_then(|length| length.checked_next_multiple_of(WORD));
    padded.is_some_and(|bytes| bytes <= text.len())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const JOB: u64 = 7;

    /// Job 7 as the page lists the outputs: a word of 64 digits each, texts behind them.
    fn literal(version: ContractVersion) -> Vec<u8> {
        use ContractVersion as V;
        let number = |value: u64| format!("{value:064x}");
        let address = |byte: &str| format!("{:0>64}", byte.repeat(20));
        // From payment token to proofInterval.
        let terms = [0, 1_000_000, 10, 250, 3600, 1000, 1060, 100].map(number);
        let people = match version {
            V::V3a => vec![address("01"), address("03")],
            V::V3 | V::V4 => vec![address("01"), address("02"), address("03")],
            V::V5 | V::V6 | V::V7 => vec![address("01"), address("03")],
        };
        let mut words = vec![number(JOB)];
        words.extend(people);
        words.extend(terms);
        if version == V::V7 {
            words.push(number(90));
        }
        words.extend([0, 0, 0].map(number)); // Status, withdrawnByHost, refundedToUser.
        let (outputs, texts) = match version {
            V::V3a => (15, 1),
            V::V3 => (16, 1),
            V::V4 | V::V7 => (18, 2),
            V::V5 | V::V6 => (17, 2),
        };
        words.push(number(outputs * 32)); // The conversation, an empty text.
        if texts == 2 {
            words.push("ab".repeat(32));
            words.push(number(outputs * 32 + 32)); // The proof's, of 33 characters.
        }
        words.push(number(0));
        if texts == 2 {
            words.push(number(33));
            words.push("75".repeat(32));
            words.push(format!("75{}", "00".repeat(31)));
        }
        hex::decode(words.concat()).unwrap()
    }

    fn read(version: ContractVersion, bytes: &[u8]) -> Result<Option<ChainJob>, ChainError> {
        Layout::of(version).read(JobId::new(JOB).unwrap(), Rate::Same(20), bytes)
    }

    fn set(bytes: &mut [u8], nth: usize, value: U256) {
        bytes[nth * 32..][..32].copy_from_slice(&value.to_be_bytes::<32>());
    }

    #[test]
    fn every_version_reads_its_own_session_and_the_host_as_host() {
        for version in ContractVersion::ALL {
            let job = read(version, &literal(version)).unwrap().unwrap();
            let silence = if version == ContractVersion::V7 { 90 } else { 300 };
            let expected = ChainJob {
                id: JobId::new(7).unwrap(),
                depositor: Address::new([1; 20]),
                host: Address::new([3; 20]),
                payment_token: Address::ZERO,
                deposit: Amount::new(1_000_000),
                price: PricePerToken::new(10),
                tokens_used: TokenCount::new(250),
                duration_max: ChainSeconds::new(3600),
                start_time: ChainTime::new(1000),
                last_proof_time: ChainTime::new(1060),
                silence_max: ChainSeconds::new(silence),
                rate_per_second: 20,
                model: None,
                status: JobStatus::Active,
            };
            assert_eq!(job, expected, "{version}");
        }
    }

    #[test]
    fn a_timeout_window_of_nothing_is_the_contracts_default() {
        let mut bytes = literal(ContractVersion::V7);
        set(&mut bytes, 11, U256::ZERO);
        let job = read(ContractVersion::V7, &bytes).unwrap().unwrap();
        assert_eq!(job.silence_max, ChainSeconds::new(300));
    }

    #[test]
    fn an_unknown_job_reads_as_zeros_and_is_none() {
        for version in ContractVersion::ALL {
            let layout = Layout::of(version);
            let mut bytes = literal(version);
            for nth in (0..layout.outputs).filter(|nth| !layout.texts.contains(nth)) {
                set(&mut bytes, nth, U256::ZERO);
            }
            assert_eq!(read(version, &bytes), Ok(None), "{version}");
        }
    }

    #[test]
    fn a_session_of_another_width_or_number_is_refused() {
        use ContractVersion as V;
        for version in V::ALL {
            let good = literal(version);
            let other = |other: &V| Layout::of(*other).outputs != Layout::of(version).outputs;
            for other in V::ALL.into_iter().filter(other) {
                assert!(read(version, &literal(other)).is_err(), "{version} read {other}");
            }
            let cut = [&good[..good.len() - 1], &good[..good.len() - 64], &[]];
            for bad in cut {
                assert!(read(version, bad).is_err(), "{version}, {} bytes", bad.len());
            }
            let another = Layout::of(version).read(JobId::new(8).unwrap(), Rate::OfModel, &good);
            assert!(another.is_err(), "{version}: another job's answer");
        }
    }

    #[test]
    fn a_text_that_lies_outside_is_refused() {
        for version in ContractVersion::ALL {
            let last = *Layout::of(version).texts.last().unwrap();
            for offset in [U256::from(u64::MAX), U256::MAX, U256::from(4096)] {
                let mut bad = literal(version);
                set(&mut bad, last, offset);
                assert!(read(version, &bad).is_err(), "{version}, offset {offset}");
            }
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_unexpected_and_never_cut() {
        let over_64 = U256::from(u64::MAX) + U256::from(1);
        let over_128 = U256::from(u128::MAX) + U256::from(1);
        for version in ContractVersion::ALL {
            let host = Layout::of(version).host;
            let table = [
                (host, over_64 << 128, "no address"),
                (host + 1, over_64 << 128, "no address"),
                (host + 2, over_128, "deposit"),
                (host + 3, over_128, "pricePerToken"),
                (host + 4, over_64, "tokensUsed"),
                (host + 5, over_64, "maxDuration"),
                (host + 6, over_64, "startTime"),
                (host + 7, over_64, "lastProofTime"),
            ];
            for (nth, value, what) in table {
                let mut bad = literal(version);
                set(&mut bad, nth, value);
                let error = read(version, &bad).unwrap_err();
                assert!(matches!(&error, ChainError::Unexpected(words) if words.contains(what)));
            }
            let mut largest = literal(version);
            set(&mut largest, host + 2, over_128 - U256::from(1));
            let job = read(version, &largest).unwrap().unwrap();
            assert_eq!(job.deposit, Amount::new(u128::MAX));
        }
    }

    #[test]
    fn every_status_is_read_and_no_other() {
        use ContractVersion as V;
        let three = [JobStatus::Active, JobStatus::Completed, JobStatus::TimedOut];
        for version in V::ALL {
            let at = if version == V::V7 { 12 } else { Layout::of(version).host + 9 };
            let status = |number: U256| {
                let mut bytes = literal(version);
                set(&mut bytes, at, number);
                read(version, &bytes).map(|job| job.unwrap().status)
            };
            for (number, expected) in three.into_iter().enumerate() {
                assert_eq!(status(U256::from(number)), Ok(expected), "{version}");
            }
            let is_early = matches!(version, V::V3a | V::V3 | V::V4);
            for number in 3_u8..=5 {
                let read = status(U256::from(number));
                assert_eq!(read.is_ok(), is_early, "{version} {number}");
                assert!(!is_early || read == Ok(JobStatus::Ended(number)));
            }
            for number in [U256::from(6), U256::from(256), U256::MAX] {
                assert!(matches!(status(number), Err(ChainError::Unexpected(_))), "{version}");
            }
        }
    }

    #[test]
    fn positions_are_those_of_the_names_in_the_compiled_contracts() {
        use ContractVersion as V;
        let contracts = [
            (V::V3a, "JobMarketplaceV3a"),
            (V::V3, "JobMarketplace"),
            (V::V4, "JobMarketplaceV4"),
            (V::V4, "JobMarketplaceV4Late"),
            (V::V5, "JobMarketplaceV5"),
            (V::V6, "JobMarketplaceV6"),
            (V::V7, "JobMarketplaceV7"),
        ];
        for (version, contract) in contracts {
            let root = env!("CARGO_MANIFEST_DIR");
            let path = format!("{root}/contracts/abi/{contract}.json");
            let file: Value =
                serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            let entries = file["abi"].as_array().unwrap();
            let getter = entries.iter().find(|entry| entry["name"] == "sessionJobs").unwrap();
            let outputs = getter["outputs"].as_array().unwrap();
            let layout = Layout::of(version);
            assert_eq!(outputs.len(), layout.outputs, "{contract}");
            let mut expected = vec!["host", "paymentToken", "deposit", "pricePerToken"];
            expected.extend(["tokensUsed", "maxDuration", "startTime", "lastProofTime"]);
            expected.push("proofInterval");
            if layout.has_window {
                expected.push("proofTimeoutWindow");
            }
            expected.push("status");
            for (nth, name) in expected.into_iter().enumerate() {
                assert_eq!(outputs[layout.host + nth]["name"], name, "{contract}");
            }
            let depositor = if version == V::V3a { "requester" } else { "depositor" };
            assert_eq!(outputs[DEPOSITOR_AT]["name"], depositor, "{contract}");
            let is_text = |(_, output): &(usize, &Value)| output["type"] == "string";
            let texts = outputs.iter().enumerate().filter(is_text).map(|(nth, _)| nth);
            assert_eq!(texts.collect::<Vec<_>>(), layout.texts, "{contract}");
        }
    }
}
