// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TokenTransfer} from "../TokenTransfer.sol";
import {MarketplaceCore} from "./MarketplaceCore.sol";
import {Terms} from "./Sessions.sol";

/// @title Opening a session that names no model (v3a to v6)
/// @notice docs/spec/contract.md, sections 1 and 3.
abstract contract PlainOpening is MarketplaceCore {
    /// @notice Opens a session in native coin; the value sent is its deposit.
    /// @param host who will serve; before v5 not checked against the registry.
    /// @param pricePerToken wei per LLM token (v5 and v6: a thousandth of a wei), not zero.
    /// @param maxDuration seconds, 1…`MAX_DURATION`.
    /// @param proofInterval LLM tokens, at least 100 and at most what the deposit buys; times 3 it
    /// is also the number of *seconds* of silence after which anyone may trigger the timeout.
    function createSessionJob(
        address host,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external payable nonReentrant whenRunning returns (uint256 jobId) {
        jobId = _create(
            Terms(
                msg.sender, host, address(0), msg.value, pricePerToken, maxDuration, proofInterval
            )
        );
        _bookInline(jobId, address(0), msg.value);
        emit SessionJobCreated(jobId, msg.sender, host, msg.value);
    }

    /// @notice Opens a session in an accepted ERC-20, pulled from the caller. Price and deposit are
    /// in that token's units.
    function createSessionJobWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant whenRunning returns (uint256 jobId) {
        require(token != address(0), "Token not accepted");
        jobId = _create(
            Terms(msg.sender, host, token, deposit, pricePerToken, maxDuration, proofInterval)
        );
        _bookInline(jobId, token, deposit);
        TokenTransfer.pull(token, msg.sender, deposit);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    /// @notice Opens a session with funds that the caller deposited before.
    /// @param paymentToken 0x0 for native coin.
    function createSessionFromDeposit(
        address host,
        address paymentToken,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant whenRunning returns (uint256 sessionId) {
        sessionId = _create(
            Terms(
                msg.sender, host, paymentToken, deposit, pricePerToken, maxDuration, proofInterval
            )
        );
        _spendDeposit(msg.sender, paymentToken, deposit);
        emit SessionCreatedByDepositor(sessionId, msg.sender, host, deposit);
    }
}
