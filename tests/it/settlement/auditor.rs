//! The auditor: its own arithmetic over what the chain's log, the ledger's entries and the client
//! say. Shares no sum with the code under test.

use std::collections::BTreeMap;

use alloy::primitives::keccak256;
use serde_json::json;
use tally::billing::{Entry, Fact};
use tally::units::JobId;

use crate::support::anvil::Devnet;
use crate::support::variant::Variant;

/// `ProofSubmitted` of a version (docs/spec/contract.md section 1), as it is declared there.
fn proof_submitted(variant: Variant) -> String {
    let more = match variant {
        Variant::V3a | Variant::V3 => "",
        Variant::V4 | Variant::V4Late | Variant::V5 => ",string",
        Variant::V6 | Variant::V7 => ",string,string",
    };
    keccak256(format!("ProofSubmitted(uint256,address,uint256,bytes32{more})")).to_string()
}

/// What the contract accepted for a job: tokens of each claim, oldest first.
pub async fn claims_on_chain(devnet: &Devnet, job: JobId) -> Vec<u64> {
    let filter = json!([{
        "fromBlock": "0x0",
        "toBlock": "latest",
        "address": devnet.contracts.marketplace.to_string(),
        "topics": [proof_submitted(devnet.variant), format!("0x{:064x}", job.get())],
    }]);
    let logs = devnet.rpc("eth_getLogs", filter).await;
    let tokens = |log: &serde_json::Value| {
        let data = log["data"].as_str().unwrap();
        u64::from_str_radix(&data[2..66], 16).unwrap()
    };
    logs.as_array().unwrap().iter().map(tokens).collect()
}

/// Hands every entry of a ledger to a function.
pub type Replay<'a> = &'a mut dyn FnMut(&mut dyn FnMut(Entry));

/// Tokens that the ledger holds for each job, each position of each turn counted once.
pub fn recorded(replay: Replay<'_>) -> BTreeMap<JobId, u64> {
    let mut positions = BTreeMap::new();
    replay(&mut |entry| {
        if let Fact::Delivered { turn, position, ids, .. } = &entry.fact {
            let job = entry.job().unwrap();
            for offset in 0..u32::try_from(ids.len()).unwrap() {
                let place = (job, turn.get(), position + offset);
                let earlier = positions.insert(place, ids[offset as usize]);
                assert_eq!(earlier, None, "recorded twice: {place:?}");
            }
        }
    });
    let mut sums = BTreeMap::new();
    for (job, _, _) in positions.into_keys() {
        *sums.entry(job).or_insert(0) += 1;
    }
    sums
}

/// The sentence everything serves, for one job.
#[derive(Debug, Clone, Copy)]
pub struct Sentence {
    pub claimed: u64,
    pub recorded: u64,
    pub delivered: u64,
    pub affordable: u64,
}

impl Sentence {
    pub fn check(self, job: JobId) {
        let Self { claimed, recorded, delivered, affordable } = self;
        assert!(claimed <= recorded, "job {job}: {self:?}");
        assert!(recorded <= delivered, "job {job}: {self:?}");
        assert!(delivered <= affordable, "job {job}: {self:?}");
    }
}
