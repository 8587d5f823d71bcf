// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "./Owned.sol";

/// @title A contract that its owner can halt
/// @notice docs/spec/contract.md, sections 2 and 3 (v5 and later). What a pause holds back is the
/// using contract's choice.
abstract contract Pausable is Owned {
    /// @notice Whether the contract is halted.
    bool public paused;

    event Paused(address account);
    event Unpaused(address account);

    error EnforcedPause();
    error ExpectedPause();

    /// @notice Halts the contract.
    function pause() external onlyOwner {
        _requireNotPaused();
        paused = true;
        emit Paused(msg.sender);
    }

    /// @notice Ends the halt.
    function unpause() external onlyOwner {
        if (!paused) revert ExpectedPause();
        paused = false;
        emit Unpaused(msg.sender);
    }

    function _requireNotPaused() internal view {
        if (paused) revert EnforcedPause();
    }
}
