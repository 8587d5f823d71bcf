//! `ProofSubmitted`, whose three shapes begin alike.
//!
//! Never reads a log by its topic alone: the number of topics and the least length have to be the
//! shape's. Relies on docs/spec/contract.md section 1.

use alloy::primitives::{B256, U256};
use alloy::sol_types::SolEvent;

use crate::chain::ChainError;
use crate::chain::evm::bindings::{v3, v4, v6};
use crate::chain::evm::version::ContractVersion;
use crate::chain::evm::wire::{Log, job_of, u64_of};
use crate::units::{Address, JobId, TokenCount};

/// A `ProofSubmitted` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain::evm) struct Proven {
    /// The job.
    pub job: JobId,
    /// Who claimed.
    pub host: Address,
    /// The amount the contract added.
    pub tokens: TokenCount,
}

/// One shape: topic 0, and the words that its data has at least (tokens, hash, an offset and a
/// length for each text).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    topic: B256,
    words: usize,
}

const fn shape(version: ContractVersion) -> Shape {
    use ContractVersion as V;
    match version {
        V::V3a | V::V3 => Shape { topic: v3::ProofSubmitted::SIGNATURE_HASH, words: 2 },
        V::V4 | V::V5 => Shape { topic: v4::ProofSubmitted::SIGNATURE_HASH, words: 4 },
        V::V6 | V::V7 => Shape { topic: v6::ProofSubmitted::SIGNATURE_HASH, words: 6 },
    }
}

/// Topic 0 of a version's event.
pub(super) const fn topic(version: ContractVersion) -> B256 {
    shape(version).topic
}

/// Reads a version's event; `None` for any other log.
///
/// # Errors
/// [`ChainError::Unexpected`] where topic 0 fits and the rest does not.
pub(super) fn read(version: ContractVersion, log: &Log) -> Result<Option<Proven>, ChainError> {
    let Shape { topic, words } = shape(version);
    if log.topics.first() != Some(&topic) {
        return Ok(None);
    }
    let wrong = |what: &str| ChainError::Unexpected(format!("ProofSubmitted {what}"));
    let [_, job, host] = log.topics[..] else {
        return Err(wrong(&format!("has {} topics, not 3", log.topics.len())));
    };
    let Some(tokens) = log.data.first_chunk::<32>().filter(|_| log.data.len() >= words * 32) else {
        return Err(wrong(&format!("has {} bytes of data", log.data.len())));
    };
    let host = match (host.0.starts_with(&[0; 12]), host.0.last_chunk::<20>()) {
        (true, Some(host)) => Address::new(*host),
        _ => return Err(wrong("names no host")),
    };
    let tokens = u64_of(U256::from_be_bytes(*tokens), "tokensClaimed")?;
    Ok(Some(Proven { job: job_of(job.into())?, host, tokens: TokenCount::new(tokens) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Topic 0 as docs/spec/contract.md prints it, or begins it.
    const PLAIN: &str = "b4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8";
    const CID: &str = "0b81f467";
    const DELTA: &str = "330d363d69efddb2c24b4f13b34a8f73f88fcc6e07c6b64e8f0c51e78d0d7702";

    fn log(version: ContractVersion, words: usize) -> Log {
        let mut data = vec![0; words * 32];
        data[31] = 120;
        let mut host = [0; 32];
        host[12..].fill(3);
        Log {
            address: Default::default(),
            topics: vec![topic(version), U256::from(7).into(), B256::new(host)],
            data: data.into(),
            block_number: None,
            log_index: None,
            transaction_hash: None,
            removed: false,
        }
    }

    #[test]
    fn each_version_reads_its_own_event_and_no_other_shape() {
        use ContractVersion as V;
        let table = [
            (V::V3a, PLAIN, 2),
            (V::V3, PLAIN, 2),
            (V::V4, CID, 4),
            (V::V5, CID, 4),
            (V::V6, DELTA, 6),
            (V::V7, DELTA, 6),
        ];
        let (job, host) = (JobId::new(7).unwrap(), Address::new([3; 20]));
        let expected = Proven { job, host, tokens: TokenCount::new(120) };
        for (version, printed, words) in table {
            assert!(hex::encode(topic(version)).starts_with(printed), "{version}");
            assert_eq!(read(version, &log(version, words)), Ok(Some(expected)), "{version}");
            assert!(read(version, &log(version, words - 1)).is_err(), "{version}: too short");
            for (other, others, words) in table {
                let read = read(version, &log(other, words));
                assert_eq!(read == Ok(None), printed != others, "{version} reads {other}");
            }
        }
    }

    #[test]
    fn a_log_that_fits_by_its_topic_alone_is_unexpected() {
        let version = ContractVersion::V3;
        let no_host = log(version, 2).topics[0];
        let table: [fn(&mut Log); 5] = [
            |log| log.topics.truncate(2),
            |log| log.topics.push(B256::ZERO),
            |log| log.topics[1] = B256::ZERO,
            |log| log.topics[2] = B256::new([3; 32]),
            |log| log.data = [&[1], &log.data[1..]].concat().into(),
        ];
        for spoil in table {
            let mut bad = log(version, 2);
            spoil(&mut bad);
            assert_eq!(bad.topics[0], no_host);
            assert!(matches!(read(version, &bad), Err(ChainError::Unexpected(_))), "{bad:?}");
        }
    }
}
