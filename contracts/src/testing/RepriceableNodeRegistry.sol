// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistryV5} from "../NodeRegistryV5.sol";

/// @title A registry whose prices can be changed, and whose stake goes by another name
/// @notice For tests of `tally update` against registries that were deployed with setters for the
/// two prices, and of those that call the stake's ERC-20 `fabToken`.
contract RepriceableNodeRegistry is NodeRegistryV5 {
    constructor(address stakeToken_, address modelRegistry_)
        NodeRegistryV5(stakeToken_, modelRegistry_)
    {}

    /// @notice Replaces the caller's lowest price in native coin, not zero.
    function updatePricingNative(uint256 newMinPrice) external onlyRegistered {
        require(newMinPrice != 0, "Invalid price");
        _prices[msg.sender].native = newMinPrice;
    }

    /// @notice Replaces the caller's lowest price in any ERC-20, not zero.
    function updatePricingStable(uint256 newMinPrice) external onlyRegistered {
        require(newMinPrice != 0, "Invalid price");
        _prices[msg.sender].stable = newMinPrice;
    }

    /// @notice The ERC-20 of the stake.
    function fabToken() external view returns (address) {
        return super.stakeToken();
    }

    /// @notice Answers as a function that is not there.
    function stakeToken() public pure override returns (address) {
        revert();
    }
}
