// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MarketplaceCore} from "./marketplace/MarketplaceCore.sol";
import {Wiring} from "./marketplace/Sessions.sol";
import {SignedProofs} from "./marketplace/SignedProofs.sol";

/// @title Paid sessions, version v5: a signed hash for each claim
/// @notice A stand-in for development and tests, written from docs/spec/contract.md.
contract JobMarketplaceV5 is SignedProofs {
    event ProofSubmitted(
        uint256 indexed jobId,
        address indexed host,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string proofCID
    );

    constructor(Wiring memory wiring) MarketplaceCore(wiring) {}

    /// @notice Claims `tokensClaimed` more LLM tokens for the session.
    /// @param tokensClaimed a delta, never a running total.
    /// @param proofHash new in all sessions of all hosts.
    /// @param signature see rule 4.
    /// @param proofCID where the proof can be read; not checked.
    function submitProofOfWork(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        bytes calldata signature,
        string calldata proofCID
    ) external nonReentrant whenRunning {
        _claim(jobId, tokensClaimed, proofHash, signature, proofCID);
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash, proofCID);
    }
}
