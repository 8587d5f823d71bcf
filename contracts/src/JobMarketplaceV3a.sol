// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplace} from "./JobMarketplace.sol";
import {ByteProofs} from "./marketplace/ByteProofs.sol";
import {MarketplaceCore} from "./marketplace/MarketplaceCore.sol";
import {Division, Session, Wiring} from "./marketplace/Sessions.sol";

/// @title Paid sessions, version v3a: v3 with another session and other completers
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. It has v3's
/// claim, so that a node tells the two apart by the session alone: here the second word is the
/// requester and the third the host.
contract JobMarketplaceV3a is ByteProofs {
    constructor(Wiring memory wiring) MarketplaceCore(wiring) {}

    /// @notice A session by its id. An unknown id reads as zeros: Active, with host 0x0. Number and
    /// order of the outputs are part of the interface.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
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
            string memory conversationCID
        )
    {
        Session storage session = _sessions[jobId];
        id = session.id;
        requester = session.depositor;
        host = session.host;
        paymentToken = session.paymentToken;
        deposit = session.deposit;
        pricePerToken = session.pricePerToken;
        tokensUsed = _proven(session);
        maxDuration = session.maxDuration;
        startTime = session.startTime;
        lastProofTime = _lastProof(session);
        proofInterval = session.proofInterval;
        status = JobMarketplace.SessionStatus(uint8(session.status));
        withdrawnByHost = session.withdrawnByHost;
        refundedToUser = session.refundedToUser;
        conversationCID = session.conversationCID;
    }

    /// @dev Section 3: the requester, or the host after the window; nobody else ever.
    function _checkCompleter(Session storage session) internal view override {
        if (msg.sender == session.depositor) return;
        require(msg.sender == session.host, "Only host or requester");
        require(
            block.timestamp >= session.startTime + _disputeWindow, "Must wait dispute window"
        );
    }

    function _announceCompletion(Session storage, Division memory) internal override {}
}
