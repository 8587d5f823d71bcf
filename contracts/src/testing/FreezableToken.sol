// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TestToken} from "../TestToken.sol";

/// @title A payment token that can freeze an account
/// @notice For tests of ERC-20 sessions whose refund or payment cannot be moved: as with the
/// dollar tokens, a transfer to or from a frozen account reverts, and with it a whole settlement.
contract FreezableToken is TestToken {
    /// @notice Whether an account's units are stuck. Anyone may switch it: a test contract.
    mapping(address account => bool) public frozen;

    constructor() TestToken("Freezable Test Token", "FTT") {}

    /// @notice Freezes or frees an account.
    function setFrozen(address account, bool frozen_) external {
        frozen[account] = frozen_;
    }

    function _move(address from, address to, uint256 amount) internal override {
        require(!frozen[from] && !frozen[to], "Account is frozen");
        super._move(from, to, amount);
    }
}
