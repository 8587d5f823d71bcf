// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title One account that may change settings
/// @notice Base of the contracts here. It must never gate a rule of section 2 or 3 of
/// docs/spec/contract.md: the owner sets addresses and lists, and has no say over a session.
abstract contract Owned {
    /// @notice The account that deployed the contract, or the one it handed over to.
    address public owner;

    /// @notice The owner changed.
    event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);

    modifier onlyOwner() {
        require(msg.sender == owner, "Not owner");
        _;
    }

    constructor() {
        owner = msg.sender;
        emit OwnershipTransferred(address(0), msg.sender);
    }

    /// @notice Hands the settings to another account.
    /// @param newOwner not zero: a contract without an owner could not be wired.
    function transferOwnership(address newOwner) external onlyOwner {
        require(newOwner != address(0), "Zero address");
        emit OwnershipTransferred(owner, newOwner);
        owner = newOwner;
    }
}
