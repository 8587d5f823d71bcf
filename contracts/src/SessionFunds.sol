// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "./Owned.sol";
import {TokenTransfer} from "./TokenTransfer.sol";

/// @title Money that the marketplace holds and that no session has divided yet
/// @notice Depositors' balances, accepted tokens, the treasury's fees (docs/spec/contract.md,
/// section 3). Token 0x0 is the native coin. It must never decide about a session.
abstract contract SessionFunds is Owned {
    /// @notice Who receives the fees.
    address public immutable treasuryAddress;
    /// @notice Native fees not yet withdrawn, wei.
    uint256 public accumulatedTreasuryNative;
    /// @notice Fees in an ERC-20 not yet withdrawn.
    mapping(address token => uint256) public accumulatedTreasuryTokens;
    /// @notice Wei that an account may withdraw or open sessions from.
    mapping(address account => uint256) public userDepositsNative;
    /// @notice Token units that an account may withdraw or open sessions from.
    mapping(address account => mapping(address token => uint256)) public userDepositsToken;
    /// @notice Whether sessions may be paid in the token.
    mapping(address token => bool) public acceptedTokens;
    /// @notice Units that a session in the token deposits at least.
    mapping(address token => uint256) public tokenMinDeposits;

    bool private transient _entered;

    event DepositReceived(address indexed depositor, uint256 amount, address indexed token);
    event WithdrawalProcessed(address indexed depositor, uint256 amount, address indexed token);
    event TokenAccepted(address indexed token, uint256 minDeposit);
    event TreasuryWithdrawal(address indexed token, uint256 amount);

    error ReentrancyGuardReentrantCall();

    modifier nonReentrant() {
        if (_entered) revert ReentrancyGuardReentrantCall();
        _entered = true;
        _;
        _entered = false;
    }

    modifier onlyTreasury() {
        require(msg.sender == treasuryAddress, "Only treasury");
        _;
    }

    constructor(address treasury_) {
        require(treasury_ != address(0), "Zero address");
        treasuryAddress = treasury_;
    }

    /// @notice Accepts an ERC-20 for sessions.
    /// @param minDeposit token units, not zero.
    function addAcceptedToken(address token, uint256 minDeposit) external onlyOwner {
        require(token != address(0), "Zero address");
        require(minDeposit != 0, "Zero minimum");
        acceptedTokens[token] = true;
        tokenMinDeposits[token] = minDeposit;
        emit TokenAccepted(token, minDeposit);
    }

    /// @notice Adds the value sent to the caller's balance.
    function depositNative() external payable {
        require(msg.value != 0, "Zero deposit");
        userDepositsNative[msg.sender] += msg.value;
        emit DepositReceived(msg.sender, msg.value, address(0));
    }

    /// @notice Pulls approved units of an accepted token into the caller's balance.
    function depositToken(address token, uint256 amount) external nonReentrant {
        require(acceptedTokens[token], "Token not accepted");
        require(amount != 0, "Zero deposit");
        userDepositsToken[msg.sender][token] += amount;
        TokenTransfer.pull(token, msg.sender, amount);
        emit DepositReceived(msg.sender, amount, token);
    }

    /// @notice Pays wei of the caller's balance back; before v5 the inline deposits of open
    /// sessions are part of it.
    function withdrawNative(uint256 amount) external nonReentrant {
        _withdraw(address(0), amount);
    }

    /// @notice Pays token units of the caller's balance back, as `withdrawNative`.
    function withdrawToken(address token, uint256 amount) external nonReentrant {
        require(token != address(0), "Token not accepted");
        _withdraw(token, amount);
    }

    /// @notice Balance of an account in a token, 0x0 for native coin.
    function getDepositBalance(address account, address token) external view returns (uint256) {
        return _balance(account, token);
    }

    /// @notice Pays all native fees to the treasury, which is the caller.
    function withdrawTreasuryNative() external nonReentrant onlyTreasury {
        uint256 amount = accumulatedTreasuryNative;
        accumulatedTreasuryNative = 0;
        _push(address(0), treasuryAddress, amount, "ETH transfer failed");
        emit TreasuryWithdrawal(address(0), amount);
    }

    /// @notice Pays all fees of a token to the treasury, which is the caller.
    function withdrawTreasuryTokens(address token) external nonReentrant onlyTreasury {
        uint256 amount = accumulatedTreasuryTokens[token];
        accumulatedTreasuryTokens[token] = 0;
        _push(token, treasuryAddress, amount, "Token transfer failed");
        emit TreasuryWithdrawal(token, amount);
    }

    function _spendDeposit(address account, address token, uint256 amount) internal {
        uint256 balance = _balance(account, token);
        require(balance >= amount, "Insufficient balance");
        _setBalance(account, token, balance - amount);
    }

    function _bookFee(address token, uint256 fee) internal {
        if (fee == 0) return;
        if (token == address(0)) accumulatedTreasuryNative += fee;
        else accumulatedTreasuryTokens[token] += fee;
    }

    function _push(address token, address to, uint256 amount, string memory failure)
        internal
        virtual
    {
        if (token == address(0)) {
            (bool ok,) = to.call{value: amount}("");
            require(ok, failure);
        } else {
            TokenTransfer.push(token, to, amount, failure);
        }
    }

    function _withdraw(address token, uint256 amount) private {
        require(amount != 0, "Zero withdrawal");
        _spendDeposit(msg.sender, token, amount);
        string memory failure =
            token == address(0) ? "ETH transfer failed" : "Token transfer failed";
        _push(token, msg.sender, amount, failure);
        emit WithdrawalProcessed(msg.sender, amount, token);
    }

    function _balance(address account, address token) internal view returns (uint256) {
        if (token == address(0)) return userDepositsNative[account];
        return userDepositsToken[account][token];
    }

    function _setBalance(address account, address token, uint256 amount) internal {
        if (token == address(0)) userDepositsNative[account] = amount;
        else userDepositsToken[account][token] = amount;
    }
}
