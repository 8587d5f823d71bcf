// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {PlainOpening} from "./PlainOpening.sol";
import {Session, Terms} from "./Sessions.sol";

/// @title What v3a, v3 and v4 share
/// @notice docs/spec/contract.md, section 3: any address can be a host, and settings have
/// upper-case names.
/// @dev Their hole is kept on purpose: an inline deposit also counts as its depositor's balance, so
/// the depositor can withdraw it in mid-session and leave the settlement unfunded. A node has to
/// notice that by watching the contract's balance.
abstract contract EarlyMarketplace is PlainOpening {
    mapping(uint256 jobId => bool) private _openInline;

    /// @notice Share of a payment that the treasury keeps, in 1/10000.
    function FEE_BASIS_POINTS() external view returns (uint256) {
        return _feeBasisPoints;
    }

    /// @notice Seconds from a session's start until others than the depositor may complete it.
    function DISPUTE_WINDOW() external view returns (uint256) {
        return _disputeWindow;
    }

    function _rate(Session storage) internal view virtual override returns (uint256) {
        return 20;
    }

    function _pricePrecision() internal view virtual override returns (uint256) {
        return 1;
    }

    function _checkTerms(Terms memory) internal view override {}

    function _requireRunning() internal view override {}

    /// @dev Books a deposit that came with the session, and marks the session as one of these.
    function _bookInline(uint256 jobId, address token, uint256 amount) internal override {
        _openInline[jobId] = true;
        _setBalance(msg.sender, token, _balance(msg.sender, token) + amount);
    }

    /// @dev Takes the inline deposit of a session that ends out of its depositor's balance, so
    /// that it is not paid twice; where the depositor withdrew it, takes what is there.
    function _closeInline(Session storage session) internal virtual override {
        if (!_openInline[session.id]) return;
        _openInline[session.id] = false;
        (address token, uint256 amount) = (session.paymentToken, session.deposit);
        uint256 balance = _balance(session.depositor, token);
        _setBalance(session.depositor, token, balance > amount ? balance - amount : 0);
    }
}
