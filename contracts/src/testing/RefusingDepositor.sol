// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplace} from "../JobMarketplace.sol";

/// @title A depositor that can refuse its refund
/// @notice For tests of "ETH refund failed" (docs/spec/contract.md, section 3): while `accepts` is
/// false, any settlement of its sessions that owes a refund reverts as a whole; v7 credits it.
contract RefusingDepositor {
    /// @notice Whether native coin is taken. Anyone may switch it: a test contract.
    bool public accepts;

    receive() external payable {
        require(accepts, "Refused");
    }

    /// @notice Chooses whether refunds are taken.
    function setAccepts(bool accepts_) external {
        accepts = accepts_;
    }

    /// @notice Opens a session of which this contract is the depositor, with the value sent.
    function open(
        JobMarketplace marketplace,
        address host,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external payable returns (uint256) {
        return marketplace.createSessionJob{value: msg.value}(
            host, pricePerToken, maxDuration, proofInterval
        );
    }

    /// @notice Completes a session as its depositor.
    function complete(JobMarketplace marketplace, uint256 jobId) external {
        marketplace.completeSessionJob(jobId, "");
    }

    /// @notice Makes any call in this contract's name with the value sent: other versions open
    /// sessions in other ways. Reverts as the call does.
    function execute(address target, bytes calldata data) external payable {
        (bool ok, bytes memory answer) = target.call{value: msg.value}(data);
        if (ok) return;
        assembly ("memory-safe") {
            revert(add(answer, 32), mload(answer))
        }
    }
}
