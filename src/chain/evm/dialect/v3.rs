//! Version v3: live from 24 September 2025, the default.
//!
//! Never accepts a session of another width: a neighbour's would put the depositor where the host
//! belongs. Relies on docs/spec/contract.md sections 1 to 3.

use alloy::primitives::{B256, Bytes, LogData, U256};
use alloy::sol_types::{SolCall, SolEvent, SolValue};

use super::{Dialect, Proven};
use crate::chain::evm::bindings::v3::{ProofSubmitted, Session, submitProofOfWorkCall};
use crate::chain::evm::version::ContractVersion;
use crate::chain::evm::wire::{Log, address_of, job_of, u64_of, u128_of};
use crate::chain::{ChainError, ChainJob, JobStatus};
use crate::units::{Amount, ChainSeconds, ChainTime, JobId, PricePerToken, TokenCount};

/// Rule 5 of section 2.
const TOKENS_PER_SECOND: u64 = 20;

/// Section 3: silence of 3 × `proofInterval` seconds allows the timeout.
const INTERVALS_OF_SILENCE: u64 = 3;

/// The offset of the only text: right behind 16 words.
const TEXT_OFFSET: u64 = 16 * 32;

/// Where that offset stands.
const TEXT_AT: usize = 15;

/// The dialect.
#[derive(Debug)]
pub(super) struct V3;

impl Dialect for V3 {
    fn version(&self) -> ContractVersion {
        ContractVersion::V3
    }

    fn claim(&self, job: JobId, tokens: TokenCount, proof: &[u8]) -> Vec<u8> {
        let call = submitProofOfWorkCall {
            jobId: U256::from(job.get()),
            tokensClaimed: U256::from(tokens.get()),
            proof: Bytes::copy_from_slice(proof),
        };
        call.abi_encode()
    }

    fn session(&self, job: JobId, returned: &[u8]) -> Result<Option<ChainJob>, ChainError> {
        let wrong = |what: &str| ChainError::Unexpected(format!("job {job}: sessionJobs {what}"));
        let offset = returned.chunks_exact(32).nth(TEXT_AT).map(U256::from_be_slice);
        if offset != Some(U256::from(TEXT_OFFSET)) {
            return Err(wrong(&format!("has not v3's 16 outputs ({} bytes)", returned.len())));
        }
        let session = Session::abi_decode_params(returned)
            .map_err(|error| wrong(&format!("does not decode: {error}")))?;
        if session.host.is_zero() {
            return Ok(None);
        }
        if session.id != U256::from(job.get()) {
            return Err(wrong(&format!("answers with job {}", session.id)));
        }
        read(job, &session).map(Some)
    }

    fn proven_topic(&self) -> B256 {
        ProofSubmitted::SIGNATURE_HASH
    }

    fn proven(&self, log: &Log) -> Result<Option<Proven>, ChainError> {
        if log.topics.first() != Some(&ProofSubmitted::SIGNATURE_HASH) {
            return Ok(None);
        }
        let raw = LogData::new_unchecked(log.topics.clone(), log.data.clone());
        let event = ProofSubmitted::decode_log_data_validate(&raw)
            .map_err(|error| ChainError::Unexpected(format!("ProofSubmitted: {error}")))?;
        Ok(Some(Proven {
            job: job_of(event.jobId)?,
            host: address_of(event.host),
            tokens: TokenCount::new(u64_of(event.tokensClaimed, "tokensClaimed")?),
        }))
    }
}

fn read(job: JobId, session: &Session) -> Result<ChainJob, ChainError> {
    let number = |value: U256, what: &str| u64_of(value, &format!("job {job}: {what}"));
    let money = |value: U256, what: &str| u128_of(value, &format!("job {job}: {what}"));
    let interval = number(session.proofInterval, "proofInterval")?;
    Ok(ChainJob {
        id: job,
        depositor: address_of(session.depositor),
        host: address_of(session.host),
        payment_token: address_of(session.paymentToken),
        deposit: Amount::new(money(session.deposit, "deposit")?),
        price: PricePerToken::new(money(session.pricePerToken, "pricePerToken")?),
        tokens_used: TokenCount::new(number(session.tokensUsed, "tokensUsed")?),
        duration_max: ChainSeconds::new(number(session.maxDuration, "maxDuration")?),
        start_time: ChainTime::new(number(session.startTime, "startTime")?),
        last_proof_time: ChainTime::new(number(session.lastProofTime, "lastProofTime")?),
        silence_max: ChainSeconds::new(interval.saturating_mul(INTERVALS_OF_SILENCE)),
        rate_per_second: TOKENS_PER_SECOND,
        model: None,
        status: status(job, session.status)?,
    })
}

fn status(job: JobId, number: u8) -> Result<JobStatus, ChainError> {
    match number {
        0 => Ok(JobStatus::Active),
        1 => Ok(JobStatus::Completed),
        2 => Ok(JobStatus::TimedOut),
        3..=5 => Ok(JobStatus::Ended(number)),
        _ => Err(ChainError::Unexpected(format!("job {job}: status {number} is none of v3's"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Address;
    use alloy::primitives::Address as EvmAddress;

    fn session() -> Session {
        Session {
            id: U256::from(7),
            depositor: EvmAddress::repeat_byte(1),
            requester: EvmAddress::repeat_byte(2),
            host: EvmAddress::repeat_byte(3),
            paymentToken: EvmAddress::ZERO,
            deposit: U256::from(1_000_000),
            pricePerToken: U256::from(10),
            tokensUsed: U256::from(250),
            maxDuration: U256::from(3600),
            startTime: U256::from(1000),
            lastProofTime: U256::from(1060),
            proofInterval: U256::from(100),
            status: 0,
            withdrawnByHost: U256::ZERO,
            refundedToUser: U256::ZERO,
            conversationCID: String::new(),
        }
    }

    fn decode(session: &Session) -> Result<Option<ChainJob>, ChainError> {
        V3.session(JobId::new(7).unwrap(), &session.abi_encode_params())
    }

    #[test]
    fn the_host_and_the_depositor_are_never_confused() {
        let job = decode(&session()).unwrap().unwrap();
        assert_eq!(job.depositor, Address::new([1; 20]));
        assert_eq!(job.host, Address::new([3; 20]));
        assert_eq!(job.silence_max, ChainSeconds::new(300));
        assert_eq!(job.tokens_used, TokenCount::new(250));
        assert_eq!(job.last_proof_time, ChainTime::new(1060));
    }

    #[test]
    fn an_unknown_job_reads_as_zeros_and_is_none() {
        let zeros = Session { id: U256::ZERO, host: EvmAddress::ZERO, ..session() };
        assert_eq!(decode(&zeros), Ok(None));
    }

    #[test]
    fn a_session_of_another_width_or_number_is_refused() {
        let good = session().abi_encode_params();
        let id = JobId::new(7).unwrap();
        let mut narrow = good.clone();
        narrow.drain(32..64); // As v3a, which lacks an address.
        for bad in [&narrow[..], &good[..good.len() - 40], &[]] {
            assert!(V3.session(id, bad).is_err());
        }
        assert!(V3.session(JobId::new(8).unwrap(), &good).is_err(), "another job's answer");
    }

    #[test]
    fn a_number_that_does_not_fit_is_unexpected_and_never_cut() {
        let over_64 = U256::from(u64::MAX) + U256::from(1);
        let over_128 = U256::from(u128::MAX) + U256::from(1);
        let table: [fn(&mut Session, U256); 2] =
            [|s, v| s.tokensUsed = v, |s, v| s.maxDuration = v];
        for set in table {
            let mut bad = session();
            set(&mut bad, over_64);
            assert!(matches!(decode(&bad), Err(ChainError::Unexpected(_))));
        }
        let mut bad = session();
        bad.deposit = over_128;
        assert!(matches!(decode(&bad), Err(ChainError::Unexpected(_))));
        bad.deposit = over_128 - U256::from(1);
        assert_eq!(decode(&bad).unwrap().unwrap().deposit, Amount::new(u128::MAX));
    }

    #[test]
    fn every_status_is_read_and_no_other() {
        let read = |number| decode(&Session { status: number, ..session() });
        let status = |number| read(number).unwrap().unwrap().status;
        assert_eq!(status(0), JobStatus::Active);
        assert_eq!(status(1), JobStatus::Completed);
        assert_eq!(status(2), JobStatus::TimedOut);
        for number in 3..=5 {
            assert_eq!(status(number), JobStatus::Ended(number));
        }
        assert!(matches!(read(6), Err(ChainError::Unexpected(_))));
    }

    #[test]
    fn a_claim_starts_with_v3s_selector_and_carries_the_delta() {
        let id = JobId::new(7).unwrap();
        let bytes = V3.claim(id, TokenCount::new(100), &[0xab; 64]);
        assert_eq!(bytes[..4], ContractVersion::V3.claim_selector());
        let call = submitProofOfWorkCall::abi_decode(&bytes).unwrap();
        assert_eq!((call.jobId, call.tokensClaimed), (U256::from(7), U256::from(100)));
        assert_eq!(call.proof.len(), 64);
    }
}
