// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "./Owned.sol";
import {IERC20, TokenTransfer} from "./TokenTransfer.sol";

/// @notice What the marketplace asks of the earnings contract.
interface IHostEarnings {
    function creditEarnings(address host, uint256 amount, address token) external;
}

/// @title What hosts earned and have not withdrawn
/// @notice docs/spec/contract.md, section 3. It pays the caller, so only the host key itself can
/// withdraw; it must never owe more of a token than it holds. Token 0x0 is the native coin.
contract HostEarnings is Owned, IHostEarnings {
    /// @notice Contracts that may credit earnings: the marketplaces.
    mapping(address => bool) public authorizedCallers;
    /// @notice Units owed to all hosts together, by token.
    mapping(address token => uint256) public totalOwed;

    mapping(address host => mapping(address token => uint256)) private _balances;

    event EarningsCredited(
        address indexed host, address indexed token, uint256 amount, uint256 newBalance
    );
    event EarningsWithdrawn(
        address indexed host, address indexed token, uint256 amount, uint256 remainingBalance
    );
    event AuthorizedCallerUpdated(address indexed caller, bool authorized);

    /// @notice Takes native coin; the marketplace sends it before it credits.
    receive() external payable {}

    /// @notice Allows or forbids a contract to credit earnings.
    function setAuthorizedCaller(address caller, bool authorized) external onlyOwner {
        authorizedCallers[caller] = authorized;
        emit AuthorizedCallerUpdated(caller, authorized);
    }

    /// @notice Adds `amount` units of `token` to what `host` may withdraw. The units have to be
    /// here already: a credit that nothing covers is refused.
    function creditEarnings(address host, uint256 amount, address token) external {
        require(authorizedCallers[msg.sender], "Not authorized");
        uint256 owed = totalOwed[token] + amount;
        require(_held(token) >= owed, "Earnings not funded");
        totalOwed[token] = owed;
        uint256 balance = _balances[host][token] + amount;
        _balances[host][token] = balance;
        emit EarningsCredited(host, token, amount, balance);
    }

    /// @notice Units of `token` that `host` may withdraw.
    function getBalance(address host, address token) external view returns (uint256) {
        return _balances[host][token];
    }

    /// @notice Pays `amount` units of `token` to the caller, whose earnings they are.
    function withdraw(uint256 amount, address token) external {
        _withdraw(amount, token);
    }

    /// @notice Pays all units of `token` that the caller earned to the caller.
    function withdrawAll(address token) external {
        _withdraw(_balances[msg.sender][token], token);
    }

    function _withdraw(uint256 amount, address token) private {
        uint256 balance = _balances[msg.sender][token];
        require(amount != 0, "Nothing to withdraw");
        require(balance >= amount, "Insufficient earnings");
        // Books before money: a host contract that calls back finds its balance spent.
        _balances[msg.sender][token] = balance - amount;
        totalOwed[token] -= amount;
        emit EarningsWithdrawn(msg.sender, token, amount, balance - amount);
        if (token == address(0)) {
            (bool ok,) = msg.sender.call{value: amount}("");
            require(ok, "ETH transfer failed");
        } else {
            TokenTransfer.push(token, msg.sender, amount, "Token transfer failed");
        }
    }

    function _held(address token) private view returns (uint256) {
        return token == address(0) ? address(this).balance : IERC20(token).balanceOf(address(this));
    }
}
