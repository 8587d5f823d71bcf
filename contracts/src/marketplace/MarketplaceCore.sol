// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IHostEarnings} from "../HostEarnings.sol";
import {IProofSystem} from "../ProofSystem.sol";
import {SessionFunds} from "../SessionFunds.sol";
import {Division, Session, SessionStatus, Terms, Wiring} from "./Sessions.sol";

/// @title What every version of the marketplace does alike
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. "Rule n" is
/// rule n of its section 2, "section 3" is its section on money. Sessions, the rules 1, 2, 3, 5 and
/// 6, completion, timeout and the division of a deposit are here; what differs is a hook that a
/// version fills in. It must never be kinder to a host than the version it stands for.
/// @dev `tokensClaimed` is a delta: the contract adds it, so a duplicate claim is a double charge
/// unless a rule of the version stops it.
abstract contract MarketplaceCore is SessionFunds {
    /// @notice Tokens that a claim holds at least (rule 3).
    uint256 public constant MIN_PROVEN_TOKENS = 100;
    /// @notice Tokens that `proofInterval` is at least (section 3).
    uint256 public constant MIN_PROOF_INTERVAL = 100;
    /// @notice Seconds that `maxDuration` is at most; our own bound, so that deadlines never
    /// overflow and lock a deposit.
    uint256 public constant MAX_DURATION = 365 days;

    /// @notice Wei that a native session deposits at least.
    uint256 public immutable MIN_DEPOSIT;
    /// @notice Where hosts register. Before v5 it is not asked: any address can be a host.
    address public immutable nodeRegistry;
    /// @notice Where the hosts' shares go.
    IHostEarnings public immutable hostEarnings;
    /// @notice Who knows which proofs were used (rule 8).
    IProofSystem public proofSystem;

    /// @notice The id that the next session gets. Ids count up from 1.
    uint256 public nextJobId = 1;
    /// @notice Ids of a host's sessions, oldest first.
    mapping(address host => uint256[]) public hostSessions;

    /// @dev Share of a payment that the treasury keeps, in 1/10000; its getter's name differs.
    uint256 internal immutable _feeBasisPoints;
    /// @dev Seconds from a session's start until others than the depositor may complete it.
    uint256 internal immutable _disputeWindow;
    /// @dev A session by its id. An unknown id reads as zeros: Active, with host 0x0.
    mapping(uint256 jobId => Session) internal _sessions;

    event SessionJobCreated(
        uint256 indexed jobId, address indexed depositor, address indexed host, uint256 deposit
    );
    /// @notice The event of a session opened from an earlier deposit.
    event SessionCreatedByDepositor(
        uint256 indexed sessionId, address indexed depositor, address indexed host, uint256 deposit
    );
    /// @notice `hostEarnings` is what the host was credited: the payment less the fee.
    event SessionCompleted(
        uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund
    );
    event SessionTimedOut(uint256 indexed jobId, uint256 hostEarnings, uint256 userRefund);

    /// @dev Holds nothing back before v5.
    modifier whenRunning() {
        _requireRunning();
        _;
    }

    constructor(Wiring memory wiring) SessionFunds(wiring.treasury) {
        require(wiring.feeBasisPoints <= 10_000, "Fee too high");
        require(wiring.minDeposit != 0, "Zero minimum");
        nodeRegistry = wiring.nodeRegistry;
        hostEarnings = IHostEarnings(wiring.hostEarnings);
        proofSystem = IProofSystem(wiring.proofSystem);
        MIN_DEPOSIT = wiring.minDeposit;
        _feeBasisPoints = wiring.feeBasisPoints;
        _disputeWindow = wiring.disputeWindow;
    }

    /// @notice Takes native coin.
    receive() external payable {}

    /// @notice Section 1: a selector that does not exist *succeeds* and does nothing.
    fallback() external payable {}

    /// @notice Sets who knows which proofs were used.
    function setProofSystem(address proofSystem_) external onlyOwner {
        require(proofSystem_ != address(0), "Zero address");
        proofSystem = IProofSystem(proofSystem_);
    }

    /// @notice Ends a session and divides its deposit. The depositor may at any time; who else may,
    /// and when, differs by version. What was not proven before is lost.
    function completeSessionJob(uint256 jobId, string calldata conversationCID)
        external
        nonReentrant
    {
        Session storage session = _activeSession(jobId);
        _checkCompleter(session);
        session.conversationCID = conversationCID;
        uint256 payment = _paymentOnCompletion(session);
        Division memory parts = _settle(session, SessionStatus.Completed, payment);
        emit SessionCompleted(jobId, _proven(session), parts.earned, parts.refund);
        _announceCompletion(session, parts);
    }

    /// @notice Ends a session that ran too long or fell silent. Open to anyone. Proven tokens are
    /// still paid.
    function triggerSessionTimeout(uint256 jobId) external nonReentrant {
        Session storage session = _activeSession(jobId);
        bool expired = block.timestamp > session.startTime + session.maxDuration;
        bool silent = block.timestamp > _lastProof(session) + _silence(session);
        require(expired || silent, "Session not timed out");
        Division memory parts =
            _settle(session, SessionStatus.TimedOut, _cost(session, _proven(session)));
        emit SessionTimedOut(jobId, parts.earned, parts.refund);
    }

    // --- What differs by version ---

    /// @dev Tokens a second that a claim may hold at most (rule 5).
    function _rate(Session storage session) internal view virtual returns (uint256);

    /// @dev Reverts where the caller may not complete the session now.
    function _checkCompleter(Session storage session) internal view virtual;

    /// @dev A version's second event of a completion, where it has one.
    function _announceCompletion(Session storage session, Division memory parts) internal virtual;

    /// @dev Parts of a payment unit in which prices are given: 1, or 1000 where `PRICE_PRECISION`
    /// says so.
    function _pricePrecision() internal view virtual returns (uint256);

    /// @dev Seconds without a proof after which the timeout may be triggered: the number that
    /// counts tokens, taken for seconds, three times (section 3).
    function _silence(Session storage session) internal view virtual returns (uint256) {
        return 3 * session.proofInterval;
    }

    /// @dev Tokens of a session that were proven.
    function _proven(Session storage session) internal view virtual returns (uint256) {
        return session.tokensUsed;
    }

    /// @dev Time of a session's newest proof, of its start where there is none.
    function _lastProof(Session storage session) internal view virtual returns (uint256) {
        return session.lastProofTime;
    }

    /// @dev Further demands of a version on a new session.
    function _checkTerms(Terms memory terms) internal view virtual;

    /// @dev Reverts while the contract is paused, where it can be.
    function _requireRunning() internal view virtual;

    /// @dev Units that the host's side is paid on completion: the proven tokens.
    function _paymentOnCompletion(Session storage session)
        internal
        view
        virtual
        returns (uint256)
    {
        return _cost(session, _proven(session));
    }

    /// @dev What a version books when a deposit came with the session, before it is pulled.
    function _bookInline(uint256 jobId, address token, uint256 amount) internal virtual {}

    /// @dev Undoes `_bookInline` when the session ends.
    function _closeInline(Session storage session) internal virtual {}

    /// @dev Pays a depositor's refund.
    function _refund(Session storage session, uint256 amount) internal virtual {
        address token = session.paymentToken;
        _push(
            token,
            session.depositor,
            amount,
            token == address(0) ? "ETH refund failed" : "Token refund failed"
        );
    }

    // --- What the versions build on ---

    /// @dev Rules 1 and 2. An unknown job reads as Active and fails on rule 2 with `notHost`.
    function _hostedSession(uint256 jobId, string memory notHost)
        internal
        view
        returns (Session storage session)
    {
        session = _sessions[jobId];
        // Rule 1.
        require(session.status == SessionStatus.Active, "Session not active");
        // Rule 2.
        require(msg.sender == session.host, notHost);
    }

    /// @dev Rule 3.
    function _checkMinimum(uint256 tokensClaimed) internal pure {
        require(tokensClaimed >= MIN_PROVEN_TOKENS, "Must claim minimum tokens");
    }

    /// @dev Rules 5 and 6: how much a claim may hold, whoever signed for it.
    function _checkAllowance(Session storage session, uint256 tokensClaimed) internal view {
        // Rule 5. Exactly the allowance passes.
        uint256 elapsed = block.timestamp - session.lastProofTime;
        require(tokensClaimed <= _rate(session) * elapsed, "Excessive tokens claimed");
        // Rule 6.
        require(
            session.tokensUsed + tokensClaimed
                <= _affordable(session.deposit, session.pricePerToken),
            "Exceeds deposit"
        );
    }

    /// @dev Adds an accepted claim. Not clamped and not carried over: allowance that this claim
    /// left unused is lost.
    function _record(Session storage session, uint256 tokensClaimed) internal {
        session.tokensUsed += tokensClaimed;
        session.lastProofTime = block.timestamp;
    }

    /// @dev As `_record`, where the proof is a hash and the address of a document (v4 and later).
    /// Nobody reads the document here.
    function _recordProof(
        Session storage session,
        uint256 tokensClaimed,
        bytes32 proofHash,
        string calldata proofCID
    ) internal {
        _record(session, tokensClaimed);
        session.lastProofHash = proofHash;
        session.lastProofCID = proofCID;
    }

    function _create(Terms memory terms) internal returns (uint256 jobId) {
        require(terms.host != address(0), "Invalid host");
        require(terms.deposit >= _minDeposit(terms.token), "Insufficient deposit");
        require(terms.pricePerToken != 0, "Invalid price");
        require(terms.maxDuration != 0 && terms.maxDuration <= MAX_DURATION, "Invalid duration");
        require(terms.proofInterval >= MIN_PROOF_INTERVAL, "Invalid proof interval");
        require(
            _affordable(terms.deposit, terms.pricePerToken) >= terms.proofInterval,
            "Deposit below interval"
        );
        _checkTerms(terms);

        jobId = nextJobId++;
        Session storage session = _sessions[jobId];
        session.id = jobId;
        session.depositor = terms.depositor;
        session.host = terms.host;
        session.paymentToken = terms.token;
        session.deposit = terms.deposit;
        session.pricePerToken = terms.pricePerToken;
        session.maxDuration = terms.maxDuration;
        session.startTime = block.timestamp;
        // The rate of rule 5 and the silence of section 3 both count from here.
        session.lastProofTime = block.timestamp;
        session.proofInterval = terms.proofInterval;
        hostSessions[terms.host].push(jobId);
    }

    /// @dev Units that tokens of a session cost, rounded down.
    function _cost(Session storage session, uint256 tokens) internal view returns (uint256) {
        return tokens * session.pricePerToken / _pricePrecision();
    }

    /// @dev Tokens that a deposit buys, rounded down: a part of a token cannot be bought.
    function _affordable(uint256 deposit, uint256 pricePerToken) internal view returns (uint256) {
        return deposit * _pricePrecision() / pricePerToken;
    }

    function _minDeposit(address token) private view returns (uint256) {
        if (token == address(0)) return MIN_DEPOSIT;
        require(acceptedTokens[token], "Token not accepted");
        return tokenMinDeposits[token];
    }

    function _activeSession(uint256 jobId) private view returns (Session storage session) {
        session = _sessions[jobId];
        require(session.status == SessionStatus.Active, "Session not active");
        // Zeros would otherwise pass for a session whose window ended long ago.
        require(session.id != 0, "Session not found");
    }

    /// @dev Divides the deposit: the fee of the payment, rounded down, to the treasury; the rest of
    /// it to the host; what is left of the deposit back to the depositor. All of it or nothing: a
    /// part that cannot be paid reverts the whole.
    function _settle(Session storage session, SessionStatus end, uint256 payment)
        private
        returns (Division memory parts)
    {
        uint256 fee = payment * _feeBasisPoints / 10_000;
        parts = Division(payment, payment - fee, session.deposit - payment);
        // Books before money: whoever is paid and calls back finds the session ended.
        session.status = end;
        session.withdrawnByHost = parts.earned;
        session.refundedToUser = parts.refund;

        address token = session.paymentToken;
        _closeInline(session);
        _bookFee(token, fee);
        if (parts.earned != 0) {
            _push(token, address(hostEarnings), parts.earned, "Transfer to HostEarnings failed");
            hostEarnings.creditEarnings(session.host, parts.earned, token);
        }
        if (parts.refund != 0) _refund(session, parts.refund);
    }
}
