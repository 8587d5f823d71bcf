// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EarlyMarketplace} from "./EarlyMarketplace.sol";
import {Division, Session} from "./Sessions.sol";

/// @title Completion open to anyone after the window (v3 and v4)
/// @notice docs/spec/contract.md, sections 1 and 3.
abstract contract OpenCompletion is EarlyMarketplace {
    /// @notice Emitted beside the other one of this name. `paymentAmount` includes the fee.
    event SessionCompleted(
        uint256 indexed jobId,
        address indexed completedBy,
        uint256 tokensUsed,
        uint256 paymentAmount,
        uint256 refundAmount
    );

    function _checkCompleter(Session storage session) internal view override {
        require(
            msg.sender == session.depositor
                || block.timestamp >= session.startTime + _disputeWindow,
            "Must wait dispute window"
        );
    }

    function _announceCompletion(Session storage session, Division memory parts)
        internal
        override
    {
        emit SessionCompleted(
            session.id, msg.sender, session.tokensUsed, parts.payment, parts.refund
        );
    }
}
