// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IContractWallet} from "../marketplace/Vouchers.sol";

/// @title A wallet that is a contract
/// @notice For tests of EIP-1271: it takes as its signature the one answer that it was told to,
/// and gives that answer back, right or wrong. When it is paid it can call back, whatever comes of
/// it.
contract ContractWallet is IContractWallet {
    /// @notice What it accepts.
    bytes32 public accepted;
    /// @notice Whether the newest call back succeeded.
    bool public calledBack;
    /// @notice What it answers then.
    bytes4 public answer;

    address private _target;
    bytes private _onMoney;

    receive() external payable {
        if (_target == address(0)) return;
        // A refusal is what the test wants to see by its state: the money is taken all the same.
        (bool ok,) = _target.call(_onMoney);
        calledBack = ok;
    }

    /// @notice Chooses what is called whenever money comes.
    function callOnMoney(address target, bytes calldata data) external {
        _target = target;
        _onMoney = data;
    }

    /// @notice Sets the hash of digest ‖ signature that is accepted, and the answer to it.
    function set(bytes32 accepted_, bytes4 answer_) external {
        accepted = accepted_;
        answer = answer_;
    }

    /// @notice The answer for what is accepted; a revert for anything else.
    function isValidSignature(bytes32 digest, bytes calldata signature)
        external
        view
        returns (bytes4)
    {
        require(keccak256(abi.encodePacked(digest, signature)) == accepted, "Unknown signature");
        return answer;
    }

    /// @notice Makes any call in this contract's name with the value sent; reverts as it does.
    function execute(address target, bytes calldata data) external payable {
        (bool ok, bytes memory returned) = target.call{value: msg.value}(data);
        if (ok) return;
        assembly ("memory-safe") {
            revert(add(returned, 32), mload(returned))
        }
    }
}
