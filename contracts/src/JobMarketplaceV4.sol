// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplace} from "./JobMarketplace.sol";
import {MarketplaceCore} from "./marketplace/MarketplaceCore.sol";
import {OpenCompletion} from "./marketplace/OpenCompletion.sol";
import {Session, Wiring} from "./marketplace/Sessions.sol";

/// @title Paid sessions, version v4: a hash for each claim, and nobody checks it
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. This is v4 as
/// it began: 20 tokens a second, prices in wei.
/// @dev A replay is accepted, and charged again: rules 7 and 8 have nothing in their place.
contract JobMarketplaceV4 is OpenCompletion {
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
    /// @param proofHash anything; not checked, not even against earlier claims.
    /// @param proofCID where the proof can be read; not checked.
    function submitProofOfWork(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string calldata proofCID
    ) external nonReentrant {
        Session storage session = _hostedSession(jobId, "Only host can submit proof");
        _checkMinimum(tokensClaimed);
        _checkAllowance(session, tokensClaimed);
        _recordProof(session, tokensClaimed, proofHash, proofCID);
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash, proofCID);
    }

    /// @notice A session by its id. An unknown id reads as zeros: Active, with host 0x0. Number and
    /// order of the outputs are part of the interface.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
            address depositor,
            address requester,
            address host,
            address paymentToken,
            uint256 deposit,
            uint256 pricePerToken,
            uint256 tokensUsed,
            uint256 maxDuration,
            uint256 startTime,
            uint256 lastProofTime,
            uint256 proofInterval,
            JobMarketplace.SessionStatus status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID,
            bytes32 lastProofHash,
            string memory lastProofCID
        )
    {
        Session storage session = _sessions[jobId];
        id = session.id;
        depositor = session.depositor;
        requester = session.depositor;
        host = session.host;
        paymentToken = session.paymentToken;
        deposit = session.deposit;
        pricePerToken = session.pricePerToken;
        tokensUsed = session.tokensUsed;
        maxDuration = session.maxDuration;
        startTime = session.startTime;
        lastProofTime = session.lastProofTime;
        proofInterval = session.proofInterval;
        status = JobMarketplace.SessionStatus(uint8(session.status));
        withdrawnByHost = session.withdrawnByHost;
        refundedToUser = session.refundedToUser;
        conversationCID = session.conversationCID;
        lastProofHash = session.lastProofHash;
        lastProofCID = session.lastProofCID;
    }
}
