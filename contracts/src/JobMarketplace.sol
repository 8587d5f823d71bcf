// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ByteProofs} from "./marketplace/ByteProofs.sol";
import {MarketplaceCore} from "./marketplace/MarketplaceCore.sol";
import {OpenCompletion} from "./marketplace/OpenCompletion.sol";
import {Session, Wiring} from "./marketplace/Sessions.sol";

/// @title Paid sessions: a deposit, proofs of work, a settlement (version v3, the default)
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. It enforces
/// what v3 enforces, in v3's order and words, and keeps v3's traps.
contract JobMarketplace is ByteProofs, OpenCompletion {
    /// @dev The numbers are part of the interface (section 1).
    enum SessionStatus {
        Active,
        Completed,
        TimedOut,
        Disputed,
        Abandoned,
        Cancelled
    }

    /// @notice Tokens a second that a claim may hold at most (rule 5, v3: 20).
    uint256 public constant MAX_TOKENS_PER_SECOND = 20;

    /// @dev The parameters are those of `Wiring`.
    constructor(
        address nodeRegistry_,
        address payable hostEarnings_,
        address proofSystem_,
        address treasury_,
        uint256 feeBasisPoints_,
        uint256 disputeWindow_,
        uint256 minDeposit_
    )
        MarketplaceCore(
            Wiring(
                nodeRegistry_,
                hostEarnings_,
                proofSystem_,
                treasury_,
                feeBasisPoints_,
                disputeWindow_,
                minDeposit_
            )
        )
    {}

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
            SessionStatus status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID
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
        status = SessionStatus(uint8(session.status));
        withdrawnByHost = session.withdrawnByHost;
        refundedToUser = session.refundedToUser;
        conversationCID = session.conversationCID;
    }

    function _rate(Session storage) internal pure override returns (uint256) {
        return MAX_TOKENS_PER_SECOND;
    }
}
