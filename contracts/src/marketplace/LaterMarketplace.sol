// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeDirectory} from "../NodeDirectory.sol";
import {Pausable} from "../Pausable.sol";
import {MarketplaceCore} from "./MarketplaceCore.sol";
import {Division, Session, Terms} from "./Sessions.sol";

/// @title What v5, v6 and v7 share
/// @notice docs/spec/contract.md: prices in thousandths, settings with lower-case names, only
/// registered hosts, completion by depositor or host alone, a pause.
/// @dev A pause stops new sessions and claims, never an ending: funds stay within reach, and a host
/// that could not prove in time loses what it had not claimed.
abstract contract LaterMarketplace is MarketplaceCore, Pausable {
    /// @notice Parts of a payment unit in which prices are given: payment = tokens × price / 1000,
    /// rounded down.
    uint256 public constant PRICE_PRECISION = 1000;

    /// @notice Share of a payment that the treasury keeps, in 1/10000.
    function feeBasisPoints() external view returns (uint256) {
        return _feeBasisPoints;
    }

    /// @notice Seconds from a session's start until its host may complete it.
    function disputeWindow() external view returns (uint256) {
        return _disputeWindow;
    }

    function _pricePrecision() internal pure override returns (uint256) {
        return PRICE_PRECISION;
    }

    function _requireRunning() internal view override {
        _requireNotPaused();
    }

    function _checkTerms(Terms memory terms) internal view virtual override {
        require(INodeDirectory(nodeRegistry).isActiveNode(terms.host), "Host not registered");
    }

    function _checkCompleter(Session storage session) internal view override {
        if (msg.sender == session.depositor) return;
        require(msg.sender == session.host, "Only host or depositor");
        require(
            block.timestamp >= session.startTime + _disputeWindow, "Must wait dispute window"
        );
    }

    function _announceCompletion(Session storage, Division memory) internal override {}
}
