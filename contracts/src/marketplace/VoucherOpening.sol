// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplaceV3a} from "../JobMarketplaceV3a.sol";
import {IERC20, TokenTransfer} from "../TokenTransfer.sol";
import {Session, Terms} from "./Sessions.sol";
import {VoucherState} from "./Vouchers.sol";

/// @title Opening and ending sessions that pay by the user's vouchers alone
/// @notice docs/spec/contract.md, section 7. Plain sessions beside these stay v3a's, with its
/// traps; none of the traps reaches a voucher session.
abstract contract VoucherOpening is JobMarketplaceV3a {
    /// @notice What is kept of a voucher session; zeros for any other.
    mapping(uint256 jobId => VoucherState) public voucherState;
    /// @notice Deposits of open voucher sessions, by token: nothing else can be paid from them.
    mapping(address token => uint256) public voucherFunds;

    /// @notice Beside the event of the plain opening.
    event VoucherSessionCreated(uint256 indexed jobId);

    error VouchersOnly(uint256 jobId);
    error VoucherFundsTouched(address token);

    /// @notice Opens a voucher session in native coin; the value sent is its deposit. Terms and
    /// reverts of the three ways are those of the plain calls, see `PlainOpening`.
    function createVoucherSession(
        address host,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external payable nonReentrant returns (uint256 jobId) {
        jobId = _createWithVouchers(
            Terms(
                msg.sender, host, address(0), msg.value, pricePerToken, maxDuration, proofInterval
            )
        );
        _checkVoucherFunds(address(0));
        emit SessionJobCreated(jobId, msg.sender, host, msg.value);
    }

    /// @notice Opens a voucher session in an accepted ERC-20, pulled from the caller.
    function createVoucherSessionWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant returns (uint256 jobId) {
        require(token != address(0), "Token not accepted");
        jobId = _createWithVouchers(
            Terms(msg.sender, host, token, deposit, pricePerToken, maxDuration, proofInterval)
        );
        TokenTransfer.pull(token, msg.sender, deposit);
        _checkVoucherFunds(token);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    /// @notice Opens a voucher session with funds that the caller deposited before.
    /// @param paymentToken 0x0 for native coin.
    function createVoucherSessionFromDeposit(
        address host,
        address paymentToken,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant returns (uint256 sessionId) {
        sessionId = _createWithVouchers(
            Terms(
                msg.sender, host, paymentToken, deposit, pricePerToken, maxDuration, proofInterval
            )
        );
        _spendDeposit(msg.sender, paymentToken, deposit);
        _checkVoucherFunds(paymentToken);
        emit SessionCreatedByDepositor(sessionId, msg.sender, host, deposit);
    }

    /// @notice Whether a session pays by vouchers alone; after its end too.
    function isVoucherSession(uint256 jobId) external view returns (bool) {
        return _sessions[jobId].vouchers;
    }

    function _checkPlain(Session storage session) internal view override {
        if (session.vouchers) revert VouchersOnly(session.id);
    }

    function _proven(Session storage session) internal view override returns (uint256) {
        return session.vouchers ? voucherState[session.id].paidTokens : session.tokensUsed;
    }

    function _lastProof(Session storage session) internal view override returns (uint256) {
        return session.vouchers ? voucherState[session.id].lastClaimTime : session.lastProofTime;
    }

    function _closeInline(Session storage session) internal override {
        if (!session.vouchers) {
            super._closeInline(session);
            return;
        }
        // Nobody claims from here on; what was paid stays readable.
        voucherState[session.id].host = address(0);
        voucherFunds[session.paymentToken] -= session.deposit;
    }

    /// @dev Plain sessions may be left unfunded (`EarlyMarketplace`): no payment of theirs comes
    /// out of the deposits of voucher sessions.
    function _push(address token, address to, uint256 amount, string memory failure)
        internal
        override
    {
        super._push(token, to, amount, failure);
        _checkVoucherFunds(token);
    }

    function _createWithVouchers(Terms memory terms) private returns (uint256 jobId) {
        jobId = _create(terms);
        _sessions[jobId].vouchers = true;
        voucherState[jobId].host = terms.host;
        voucherState[jobId].lastClaimTime = uint32(block.timestamp);
        voucherFunds[terms.token] += terms.deposit;
        emit VoucherSessionCreated(jobId);
    }

    /// @dev Every promise of a voucher session is covered: also where a balance was spent that the
    /// plain sessions' hole had emptied, or where a token arrived short.
    function _checkVoucherFunds(address token) private view {
        uint256 held =
            token == address(0) ? address(this).balance : IERC20(token).balanceOf(address(this));
        if (held < voucherFunds[token]) revert VoucherFundsTouched(token);
    }
}
