//! What is read of the endpoint's JSON, and how big numbers become ours.
//!
//! Never asks for a field it does not need: second-layer chains add and change the others. A
//! number that our types cannot hold is an error, never a cut. Relies on nothing.

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256};
use serde::Deserialize;

use crate::chain::ChainError;
use crate::units::{Address, Hash32, JobId};

/// `eth_getBlockByNumber`, transactions as hashes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    pub number: U256,
    pub hash: B256,
    pub timestamp: U256,
    /// Absent before London.
    pub base_fee_per_gas: Option<U256>,
}

impl Block {
    /// Its height; `None` past u64.
    pub fn height(&self) -> Option<u64> {
        u64::try_from(self.number).ok()
    }

    /// Its timestamp, seconds; `None` past u64.
    pub fn time(&self) -> Option<u64> {
        u64::try_from(self.timestamp).ok()
    }
}

/// `eth_feeHistory`.
#[derive(Debug, Deserialize)]
pub(super) struct FeeHistory {
    #[serde(default)]
    pub reward: Vec<Vec<U256>>,
}

/// `eth_getTransactionByHash`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Transaction {
    pub hash: B256,
    #[serde(default)]
    pub input: Bytes,
}

/// `eth_getTransactionReceipt`. Some servers answer one without a block for pooled transactions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Receipt {
    pub transaction_hash: B256,
    pub block_number: Option<U256>,
    pub block_hash: Option<B256>,
    pub status: Option<U256>,
    pub gas_used: U256,
    pub effective_gas_price: Option<U256>,
    /// What rollups of the OP family charge on top for their data, wei.
    pub l1_fee: Option<U256>,
    #[serde(default)]
    pub logs: Vec<Log>,
}

/// One entry of `eth_getLogs` or of a receipt.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Log {
    pub address: EvmAddress,
    pub topics: Vec<B256>,
    pub data: Bytes,
    pub block_number: Option<U256>,
    pub log_index: Option<U256>,
    pub transaction_hash: Option<B256>,
    /// Set on a log that a reorg took back.
    #[serde(default)]
    pub removed: bool,
}

/// `value` as u64.
///
/// # Errors
/// [`ChainError::Unexpected`] naming `what` where it does not fit.
pub(super) fn u64_of(value: U256, what: &str) -> Result<u64, ChainError> {
    u64::try_from(value).map_err(|_| too_large(value, what))
}

/// `value` as u128.
///
/// # Errors
/// [`ChainError::Unexpected`] naming `what` where it does not fit.
pub(super) fn u128_of(value: U256, what: &str) -> Result<u128, ChainError> {
    u128::try_from(value).map_err(|_| too_large(value, what))
}

/// `value` as a job's number.
///
/// # Errors
/// [`ChainError::Unexpected`] for 0 and for what does not fit.
pub(super) fn job_of(value: U256) -> Result<JobId, ChainError> {
    let number = u64_of(value, "job id")?;
    JobId::new(number).ok_or_else(|| ChainError::Unexpected("job id 0 in an event".into()))
}

fn too_large(value: U256, what: &str) -> ChainError {
    ChainError::Unexpected(format!("{what} {value} is larger than any real one"))
}

/// The chain library's address as ours.
pub(super) fn address_of(address: EvmAddress) -> Address {
    Address::new(address.into_array())
}

/// Our address as the chain library's.
pub(super) fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(*address.bytes())
}

/// The chain library's digest as ours.
pub(super) fn hash_of(hash: B256) -> Hash32 {
    Hash32::new(hash.0)
}
