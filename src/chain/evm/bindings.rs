//! Solidity signatures of the functions and events that are used, and nothing more.
//!
//! Never holds a version's choice: which of these a deployment speaks is for `dialect`. Relies on
//! `contracts/abi/*.json` (checked by the tests below) and docs/spec/contract.md section 1.
#![allow(missing_docs)] // The macro's output has no documentation of its own.

use alloy::sol;

sol! {
    // The same in every version.
    function completeSessionJob(uint256 jobId, string conversationCID) external;
    function sessionJobs(uint256 jobId) external view;
    function nextJobId() external view returns (uint256);
    function hostEarnings() external view returns (address);
    function nodeRegistry() external view returns (address);

    function MIN_PROVEN_TOKENS() external view returns (uint256);
    // Two spellings each: the first is older.
    function DISPUTE_WINDOW() external view returns (uint256);
    function disputeWindow() external view returns (uint256);
    function FEE_BASIS_POINTS() external view returns (uint256);
    function feeBasisPoints() external view returns (uint256);
    function PRICE_PRECISION() external view returns (uint256);

    event SessionJobCreated(
        uint256 indexed jobId, address indexed depositor, address indexed host, uint256 deposit
    );
    event SessionCreatedByDepositor(
        uint256 indexed sessionId, address indexed depositor, address indexed host, uint256 deposit
    );
    event SessionTimedOut(uint256 indexed jobId, uint256 hostEarnings, uint256 userRefund);
}

/// The event that says what the host was credited.
pub(super) mod completed {
    alloy::sol! {
        event SessionCompleted(
            uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund
        );
    }
}

/// v3's and v4's second event of the same name, emitted beside the other.
pub(super) mod completed_by {
    alloy::sol! {
        event SessionCompleted(
            uint256 indexed jobId,
            address indexed completedBy,
            uint256 tokensUsed,
            uint256 paymentAmount,
            uint256 refundAmount
        );
    }
}

/// What only v3 has in this shape.
pub(super) mod v3 {
    alloy::sol! {
        function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes proof) external;

        event ProofSubmitted(
            uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash
        );

        /// The 16 outputs of `sessionJobs`, in order.
        struct Session {
            uint256 id;
            address depositor;
            address requester;
            address host;
            address paymentToken;
            uint256 deposit;
            uint256 pricePerToken;
            uint256 tokensUsed;
            uint256 maxDuration;
            uint256 startTime;
            uint256 lastProofTime;
            uint256 proofInterval;
            uint8 status;
            uint256 withdrawnByHost;
            uint256 refundedToUser;
            string conversationCID;
        }
    }
}

/// The contract beside the marketplace that holds what hosts earned.
pub(super) mod earnings {
    alloy::sol! {
        function getBalance(address host, address token) external view returns (uint256);
        function withdraw(uint256 amount, address token) external;
    }
}

/// A payment token.
pub(super) mod erc20 {
    alloy::sol! {
        function balanceOf(address owner) external view returns (uint256);
        function transfer(address to, uint256 amount) external returns (bool);
    }
}

/// Registries of hosts and models; their shape is that of v3 (reads are the same later).
pub(super) mod registries {
    alloy::sol! {
        function isActiveNode(address operator) external view returns (bool);
        function getNodeApiUrl(address operator) external view returns (string);
        function nodeSupportsModel(address operator, bytes32 modelId) external view returns (bool);
        function isModelApproved(bytes32 modelId) external view returns (bool);
        function getModelHash(bytes32 modelId) external view returns (bytes32);
    }
}

/// The contract that v3 asks about a proof's first word. Its selectors are known here so that it
/// can be refused by name where it is configured as the marketplace.
pub(super) mod proof_system {
    alloy::sol! {
        function verifyEKZL(bytes proof, address prover, uint256 claimedTokens)
            external view returns (bool);
        function verifyAndMarkComplete(bytes proof, address prover, uint256 claimedTokens)
            external returns (bool);
        function recordVerifiedProof(bytes32 proofHash) external;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use alloy::primitives::keccak256;
    use alloy::sol_types::{SolCall, SolEvent};
    use serde_json::Value;

    use super::*;
    use crate::chain::evm::ContractVersion;

    #[test]
    fn every_selector_of_the_specification_is_the_hash_of_its_signature() {
        let table = [
            ("submitProofOfWork(uint256,uint256,bytes)", "c8c664ee"),
            ("submitProofOfWork(uint256,uint256,bytes32,string)", "ace083b3"),
            ("submitProofOfWork(uint256,uint256,bytes32,bytes,string)", "8dbe53aa"),
            ("submitProofOfWork(uint256,uint256,bytes32,bytes,string,string)", "3338f1e5"),
            ("submitProofOfWork(uint256,uint256,bytes32,string,string)", "7c5cb561"),
            ("completeSessionJob(uint256,string)", "040138dd"),
            ("triggerSessionTimeout(uint256)", "14a4ffa5"),
            ("sessionJobs(uint256)", "ef39d372"),
            ("nextJobId()", "b0c2aa5e"),
            ("createSessionJob(address,uint256,uint256,uint256)", "366e2177"),
        ];
        for (signature, selector) in table {
            assert_eq!(hex::encode(&keccak256(signature)[..4]), selector, "{signature}");
        }
    }

    #[test]
    fn every_topic_of_the_specification_is_the_hash_of_its_signature() {
        let table = [
            (
                "SessionJobCreated(uint256,address,address,uint256)",
                "513b4fec3e6ae39000befae860b986c341242d8f5137c9ffafc229557420c42f",
            ),
            (
                "SessionCompleted(uint256,uint256,uint256,uint256)",
                "dc98ea7ca5b8998396967b6d0c1da6e05a17b467b15bdda0f07f6b84dfd31e71",
            ),
            (
                "SessionTimedOut(uint256,uint256,uint256)",
                "fa2b97569bd8b93c0adf89bf1f6903b10d258aec3bbfc759b7656034179660da",
            ),
            (
                "ProofSubmitted(uint256,address,uint256,bytes32)",
                "b4c5c92500782d044d3f3d15b5bdc795913a997874aa9ba898f5b24754d4b7f8",
            ),
            ("ProofSubmitted(uint256,address,uint256,bytes32,string)", "0b81f467"),
            (
                "ProofSubmitted(uint256,address,uint256,bytes32,string,string)",
                "330d363d69efddb2c24b4f13b34a8f73f88fcc6e07c6b64e8f0c51e78d0d7702",
            ),
        ];
        for (signature, topic) in table {
            let hash = hex::encode(keccak256(signature));
            assert!(hash.starts_with(topic), "{signature}: {hash}");
        }
    }

    #[test]
    fn versions_know_their_own_claim_selector() {
        use ContractVersion as V;
        let table = [
            (V::V3a, "c8c664ee"),
            (V::V3, "c8c664ee"),
            (V::V4, "ace083b3"),
            (V::V5, "8dbe53aa"),
            (V::V6, "3338f1e5"),
            (V::V7, "7c5cb561"),
        ];
        for (version, selector) in table {
            assert_eq!(hex::encode(version.claim_selector()), selector, "{version}");
        }
        assert_eq!(v3::submitProofOfWorkCall::SELECTOR, V::V3.claim_selector());
    }

    /// `contracts/abi/<contract>.json`'s list of entries.
    fn abi(contract: &str) -> Vec<Value> {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/contracts/abi/{contract}.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file: Value = serde_json::from_str(&text).unwrap();
        file["abi"].as_array().unwrap().clone()
    }

    /// `name(type,…)` of every entry of a kind, followed by ` -> type,…` for view functions.
    fn signatures(contract: &str, kind: &str) -> BTreeSet<String> {
        let types = |list: &Value| -> String {
            let list = list.as_array().unwrap().iter();
            list.map(|item| item["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(",")
        };
        let entries = abi(contract).into_iter().filter(|entry| entry["type"] == kind);
        let lines = entries.map(|entry| {
            let name = entry["name"].as_str().unwrap();
            let mut line = format!("{name}({})", types(&entry["inputs"]));
            if entry["stateMutability"] == "view" {
                line = format!("{line} -> {}", types(&entry["outputs"]));
            }
            line
        });
        lines.collect()
    }

    fn check(contract: &str, kind: &str, used: &[(&str, &str)]) {
        let known = signatures(contract, kind);
        for (signature, outputs) in used {
            let line = match *outputs {
                "" => (*signature).to_owned(),
                outputs => format!("{signature} -> {outputs}"),
            };
            assert!(known.contains(&line), "{contract} has no {kind} {line}");
        }
    }

    #[test]
    fn the_marketplace_bindings_are_what_the_compiled_contract_says() {
        let session = "uint256,address,address,address,address,uint256,uint256,uint256,uint256,\
                       uint256,uint256,uint256,uint8,uint256,uint256,string";
        let functions = [
            (v3::submitProofOfWorkCall::SIGNATURE, ""),
            (completeSessionJobCall::SIGNATURE, ""),
            (sessionJobsCall::SIGNATURE, session),
            (nextJobIdCall::SIGNATURE, "uint256"),
            (hostEarningsCall::SIGNATURE, "address"),
            (nodeRegistryCall::SIGNATURE, "address"),
            (MIN_PROVEN_TOKENSCall::SIGNATURE, "uint256"),
            (DISPUTE_WINDOWCall::SIGNATURE, "uint256"),
            (FEE_BASIS_POINTSCall::SIGNATURE, "uint256"),
        ];
        check("JobMarketplace", "function", &functions);
        let events = [
            (v3::ProofSubmitted::SIGNATURE, ""),
            (SessionJobCreated::SIGNATURE, ""),
            (SessionCreatedByDepositor::SIGNATURE, ""),
            (SessionTimedOut::SIGNATURE, ""),
            (completed::SessionCompleted::SIGNATURE, ""),
            (completed_by::SessionCompleted::SIGNATURE, ""),
        ];
        check("JobMarketplace", "event", &events);
    }

    #[test]
    fn the_other_bindings_are_what_the_compiled_contracts_say() {
        check("HostEarnings", "function", &[(earnings::getBalanceCall::SIGNATURE, "uint256")]);
        let nodes = [
            (registries::isActiveNodeCall::SIGNATURE, "bool"),
            (registries::getNodeApiUrlCall::SIGNATURE, "string"),
            (registries::nodeSupportsModelCall::SIGNATURE, "bool"),
        ];
        check("NodeRegistry", "function", &nodes);
        let models = [
            (registries::isModelApprovedCall::SIGNATURE, "bool"),
            (registries::getModelHashCall::SIGNATURE, "bytes32"),
        ];
        check("ModelRegistry", "function", &models);
        let proofs = [
            (proof_system::verifyEKZLCall::SIGNATURE, "bool"),
            (proof_system::verifyAndMarkCompleteCall::SIGNATURE, ""),
            (proof_system::recordVerifiedProofCall::SIGNATURE, ""),
        ];
        check("ProofSystem", "function", &proofs);
    }
}
