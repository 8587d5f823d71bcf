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

/// Claims and proofs of v3a and v3.
pub(super) mod v3 {
    alloy::sol! {
        function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes proof) external;

        event ProofSubmitted(
            uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash
        );
    }
}

/// Claims and proofs of v4.
pub(super) mod v4 {
    alloy::sol! {
        function submitProofOfWork(
            uint256 jobId, uint256 tokensClaimed, bytes32 proofHash, string proofCID
        ) external;

        event ProofSubmitted(
            uint256 indexed jobId,
            address indexed host,
            uint256 tokensClaimed,
            bytes32 proofHash,
            string proofCID
        );
    }
}

/// Claims of v5; its proofs are v4's.
pub(super) mod v5 {
    alloy::sol! {
        function submitProofOfWork(
            uint256 jobId,
            uint256 tokensClaimed,
            bytes32 proofHash,
            bytes signature,
            string proofCID
        ) external;
    }
}

/// Claims and proofs of v6.
pub(super) mod v6 {
    alloy::sol! {
        function submitProofOfWork(
            uint256 jobId,
            uint256 tokensClaimed,
            bytes32 proofHash,
            bytes signature,
            string proofCID,
            string deltaCID
        ) external;

        event ProofSubmitted(
            uint256 indexed jobId,
            address indexed host,
            uint256 tokensClaimed,
            bytes32 proofHash,
            string proofCID,
            string deltaCID
        );
    }
}

/// Claims of v7, whose proofs are v6's, and what its sessions say about their model.
pub(super) mod v7 {
    alloy::sol! {
        function submitProofOfWork(
            uint256 jobId,
            uint256 tokensClaimed,
            bytes32 proofHash,
            string proofCID,
            string deltaCID
        ) external;
        function sessionModel(uint256 jobId) external view returns (bytes32);
        function modelRegistry() external view returns (address);
        function getModelRateLimit(bytes32 modelId) external view returns (uint256);
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
            (V::V3a, "c8c664ee", v3::submitProofOfWorkCall::SELECTOR),
            (V::V3, "c8c664ee", v3::submitProofOfWorkCall::SELECTOR),
            (V::V4, "ace083b3", v4::submitProofOfWorkCall::SELECTOR),
            (V::V5, "8dbe53aa", v5::submitProofOfWorkCall::SELECTOR),
            (V::V6, "3338f1e5", v6::submitProofOfWorkCall::SELECTOR),
            (V::V7, "7c5cb561", v7::submitProofOfWorkCall::SELECTOR),
        ];
        for (version, selector, bound) in table {
            assert_eq!(hex::encode(version.claim_selector()), selector, "{version}");
            assert_eq!(bound, version.claim_selector(), "{version}");
        }
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
    fn the_marketplace_bindings_are_what_the_compiled_contracts_say() {
        let (early, late) = (
            [DISPUTE_WINDOWCall::SIGNATURE, FEE_BASIS_POINTSCall::SIGNATURE],
            [disputeWindowCall::SIGNATURE, feeBasisPointsCall::SIGNATURE],
        );
        let (plain, cid) = (v3::ProofSubmitted::SIGNATURE, v4::ProofSubmitted::SIGNATURE);
        let delta = v6::ProofSubmitted::SIGNATURE;
        let table = [
            ("JobMarketplaceV3a", early, v3::submitProofOfWorkCall::SIGNATURE, plain),
            ("JobMarketplace", early, v3::submitProofOfWorkCall::SIGNATURE, plain),
            ("JobMarketplaceV4", early, v4::submitProofOfWorkCall::SIGNATURE, cid),
            ("JobMarketplaceV4Late", early, v4::submitProofOfWorkCall::SIGNATURE, cid),
            ("JobMarketplaceV5", late, v5::submitProofOfWorkCall::SIGNATURE, cid),
            ("JobMarketplaceV6", late, v6::submitProofOfWorkCall::SIGNATURE, delta),
            ("JobMarketplaceV7", late, v7::submitProofOfWorkCall::SIGNATURE, delta),
        ];
        for (contract, [window, fee], claim, proof) in table {
            let functions = [
                (claim, ""),
                (completeSessionJobCall::SIGNATURE, ""),
                (nextJobIdCall::SIGNATURE, "uint256"),
                (hostEarningsCall::SIGNATURE, "address"),
                (nodeRegistryCall::SIGNATURE, "address"),
                (MIN_PROVEN_TOKENSCall::SIGNATURE, "uint256"),
                (window, "uint256"),
                (fee, "uint256"),
            ];
            check(contract, "function", &functions);
            let events = [
                (proof, ""),
                (SessionJobCreated::SIGNATURE, ""),
                (SessionCreatedByDepositor::SIGNATURE, ""),
                (SessionTimedOut::SIGNATURE, ""),
                (completed::SessionCompleted::SIGNATURE, ""),
            ];
            check(contract, "event", &events);
        }
        check("JobMarketplace", "event", &[(completed_by::SessionCompleted::SIGNATURE, "")]);
        check("JobMarketplaceV4", "event", &[(completed_by::SessionCompleted::SIGNATURE, "")]);
        for contract in ["JobMarketplaceV4Late", "JobMarketplaceV5", "JobMarketplaceV7"] {
            let precision = [(PRICE_PRECISIONCall::SIGNATURE, "uint256")];
            check(contract, "function", &precision);
        }
        let model = [
            (v7::sessionModelCall::SIGNATURE, "bytes32"),
            (v7::modelRegistryCall::SIGNATURE, "address"),
        ];
        check("JobMarketplaceV7", "function", &model);
        check("NodeRegistryV7", "function", &model[1..]);
        let rate = [(v7::getModelRateLimitCall::SIGNATURE, "uint256")];
        check("ModelRegistryV7", "function", &rate);
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
