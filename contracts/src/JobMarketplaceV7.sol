// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IModelRates} from "./ModelRegistryV7.sol";
import {IProofMarks} from "./ProofSystemV7.sol";
import {MarketplaceCore} from "./marketplace/MarketplaceCore.sol";
import {ModelSessions} from "./marketplace/ModelSessions.sol";
import {Session, SessionStatus, Wiring} from "./marketplace/Sessions.sol";

/// @title Paid sessions, version v7: each session is bound to a model
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. The page
/// knows v7 from its ABI and documents only, so a node takes nothing here for granted.
contract JobMarketplaceV7 is ModelSessions {
    /// @notice LLM tokens that a depositor pays who completes before any proof.
    uint256 public minTokensFee = 100;

    event ProofSubmitted(
        uint256 indexed jobId,
        address indexed host,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string proofCID,
        string deltaCID
    );
    event MinTokensFeeUpdated(uint256 tokens);
    /// @notice A refund that its depositor refused, and may withdraw with `withdrawNative`.
    event RefundCredited(uint256 indexed jobId, address indexed depositor, uint256 amount);

    error ProofAlreadyUsed(bytes32 proofHash);

    constructor(Wiring memory wiring) MarketplaceCore(wiring) {}

    /// @notice Sets what a depositor pays who completes before any proof; 0 for nothing.
    function setMinTokensFee(uint256 tokens) external onlyOwner {
        minTokensFee = tokens;
        emit MinTokensFeeUpdated(tokens);
    }

    /// @notice Claims `tokensClaimed` more LLM tokens for the session.
    /// @param tokensClaimed a delta, never a running total.
    /// @param proofHash new in all sessions of all hosts.
    /// @param proofCID where the proof can be read; not checked.
    /// @param deltaCID where what was added can be read; announced and not kept.
    function submitProofOfWork(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string calldata proofCID,
        string calldata deltaCID
    ) external nonReentrant whenRunning {
        Session storage session = _hostedSession(jobId, "Not host");
        _checkMinimum(tokensClaimed);
        _checkAllowance(session, tokensClaimed);
        // Rule 8. (Rule 4 belongs to v5 and v6, rule 7 to v3.)
        if (!IProofMarks(address(proofSystem)).markProofUsed(proofHash)) {
            revert ProofAlreadyUsed(proofHash);
        }
        _recordProof(session, tokensClaimed, proofHash, proofCID);
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash, proofCID, deltaCID);
    }

    /// @notice A session by its id. An unknown id reads as zeros: Active, with host 0x0. Number and
    /// order of the outputs are part of the interface.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
            address depositor,
            address host,
            address paymentToken,
            uint256 deposit,
            uint256 pricePerToken,
            uint256 tokensUsed,
            uint256 maxDuration,
            uint256 startTime,
            uint256 lastProofTime,
            uint256 proofInterval,
            uint256 proofTimeoutWindow,
            SessionStatus status,
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
        host = session.host;
        paymentToken = session.paymentToken;
        deposit = session.deposit;
        pricePerToken = session.pricePerToken;
        tokensUsed = session.tokensUsed;
        maxDuration = session.maxDuration;
        startTime = session.startTime;
        lastProofTime = session.lastProofTime;
        proofInterval = session.proofInterval;
        proofTimeoutWindow = session.proofTimeoutWindow;
        status = session.status;
        withdrawnByHost = session.withdrawnByHost;
        refundedToUser = session.refundedToUser;
        conversationCID = session.conversationCID;
        lastProofHash = session.lastProofHash;
        lastProofCID = session.lastProofCID;
    }

    /// @dev Asked anew for each claim: the rate may change under an open session.
    function _rate(Session storage session) internal view override returns (uint256) {
        return IModelRates(modelRegistry()).getModelRateLimit(sessionModel[session.id]);
    }

    /// @dev The fee for nothing is due from the depositor alone, and is never more than it
    /// deposited.
    function _paymentOnCompletion(Session storage session)
        internal
        view
        override
        returns (uint256)
    {
        if (session.tokensUsed != 0 || msg.sender != session.depositor) {
            return _cost(session, session.tokensUsed);
        }
        uint256 fee = _cost(session, minTokensFee);
        return fee < session.deposit ? fee : session.deposit;
    }

    /// @dev A depositor that refuses native coin does not hold up the host: it is credited.
    function _refund(Session storage session, uint256 amount) internal override {
        if (session.paymentToken != address(0)) {
            super._refund(session, amount);
            return;
        }
        address depositor = session.depositor;
        (bool ok,) = depositor.call{value: amount}("");
        if (ok) return;
        _setBalance(depositor, address(0), _balance(depositor, address(0)) + amount);
        emit RefundCredited(session.id, depositor, amount);
    }
}
