// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IHostEarnings} from "./HostEarnings.sol";
import {IProofSystem} from "./ProofSystem.sol";
import {SessionFunds} from "./SessionFunds.sol";

/// @title Paid sessions: a deposit, proofs of work, a settlement (version v3)
/// @notice A stand-in for development and tests, written from docs/spec/contract.md. "Rule n" is
/// rule n of its section 2, "section 3" is its section on money. It enforces what v3 enforces, in
/// v3's order and words, and keeps v3's traps; it must never be kinder to a host than v3 is.
/// @dev `tokensClaimed` is a delta: the contract adds it, so a duplicate claim is a double charge
/// unless rule 5, 6, 7 or 8 stops it.
contract JobMarketplace is SessionFunds {
    /// @dev The numbers are part of the interface (section 1).
    enum SessionStatus {
        Active,
        Completed,
        TimedOut,
        Disputed,
        Abandoned,
        Cancelled
    }

    /// @dev Field order and types are part of the interface: the 16 outputs of `sessionJobs`.
    struct SessionJob {
        uint256 id;
        address depositor;
        address requester;
        address host;
        address paymentToken;
        uint256 deposit;
        uint256 pricePerToken;
        uint256 tokensUsed;
        uint256 maxDuration;
        uint256 startTime;
        uint256 lastProofTime;
        uint256 proofInterval;
        SessionStatus status;
        uint256 withdrawnByHost;
        uint256 refundedToUser;
        string conversationCID;
    }

    /// @dev What a depositor chooses at creation, in one value so that the three ways to open a
    /// session share one check.
    struct Terms {
        address host;
        address token;
        uint256 deposit;
        uint256 pricePerToken;
        uint256 maxDuration;
        uint256 proofInterval;
    }

    /// @notice Tokens that a claim holds at least (rule 3).
    uint256 public constant MIN_PROVEN_TOKENS = 100;
    /// @notice Tokens a second that a claim may hold at most (rule 5, v3: 20).
    uint256 public constant MAX_TOKENS_PER_SECOND = 20;
    /// @notice Tokens that `proofInterval` is at least (section 3).
    uint256 public constant MIN_PROOF_INTERVAL = 100;
    /// @notice Seconds that `maxDuration` is at most; our own bound, so that deadlines never
    /// overflow and lock a deposit.
    uint256 public constant MAX_DURATION = 365 days;

    /// @notice Share of a payment that the treasury keeps, in 1/10000.
    uint256 public immutable FEE_BASIS_POINTS;
    /// @notice Seconds from a session's start after which anyone may complete it (section 3).
    uint256 public immutable DISPUTE_WINDOW;
    /// @notice Wei that a native session deposits at least.
    uint256 public immutable MIN_DEPOSIT;

    /// @notice Where hosts register. v3 does not ask it: any address can be a session's host.
    address public immutable nodeRegistry;
    /// @notice Where the hosts' shares go.
    IHostEarnings public immutable hostEarnings;
    /// @notice Who knows the first words of proofs (rule 8).
    IProofSystem public proofSystem;

    /// @notice The id that the next session gets. Ids count up from 1.
    uint256 public nextJobId = 1;
    /// @notice A session by its id. An unknown id reads as zeros: Active, with host 0x0.
    mapping(uint256 jobId => SessionJob) public sessionJobs;
    /// @notice Ids of a host's sessions, oldest first.
    mapping(address host => uint256[]) public hostSessions;

    mapping(uint256 jobId => mapping(bytes32 proofHash => bool)) private _proofSeen;

    event SessionJobCreated(
        uint256 indexed jobId, address indexed depositor, address indexed host, uint256 deposit
    );
    /// @notice The event of a session opened from an earlier deposit.
    event SessionCreatedByDepositor(
        uint256 indexed sessionId, address indexed depositor, address indexed host, uint256 deposit
    );
    event ProofSubmitted(
        uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash
    );
    /// @notice `hostEarnings` is what the host was credited: the payment less the fee.
    event SessionCompleted(
        uint256 indexed jobId, uint256 totalTokensUsed, uint256 hostEarnings, uint256 userRefund
    );
    /// @notice Emitted beside the other one of this name. `paymentAmount` includes the fee.
    event SessionCompleted(
        uint256 indexed jobId,
        address indexed completedBy,
        uint256 tokensUsed,
        uint256 paymentAmount,
        uint256 refundAmount
    );
    event SessionTimedOut(uint256 indexed jobId, uint256 hostEarnings, uint256 userRefund);

    /// @param nodeRegistry_ address that clients read; not called from here.
    /// @param hostEarnings_ has to authorise this contract before the first settlement.
    /// @param proofSystem_ see rule 8.
    /// @param treasury_ receives the fees.
    /// @param feeBasisPoints_ 0…10000.
    /// @param disputeWindow_ seconds from a session's start.
    /// @param minDeposit_ wei, not zero.
    constructor(
        address nodeRegistry_,
        address payable hostEarnings_,
        address proofSystem_,
        address treasury_,
        uint256 feeBasisPoints_,
        uint256 disputeWindow_,
        uint256 minDeposit_
    ) SessionFunds(treasury_) {
        require(feeBasisPoints_ <= 10_000, "Fee too high");
        require(minDeposit_ != 0, "Zero minimum");
        nodeRegistry = nodeRegistry_;
        hostEarnings = IHostEarnings(hostEarnings_);
        proofSystem = IProofSystem(proofSystem_);
        FEE_BASIS_POINTS = feeBasisPoints_;
        DISPUTE_WINDOW = disputeWindow_;
        MIN_DEPOSIT = minDeposit_;
    }

    /// @notice Takes native coin.
    receive() external payable {}

    /// @notice Section 1: a selector that does not exist *succeeds* and does nothing, as in v3.
    fallback() external payable {}

    /// @notice Sets who knows the first words of proofs.
    function setProofSystem(address proofSystem_) external onlyOwner {
        require(proofSystem_ != address(0), "Zero address");
        proofSystem = IProofSystem(proofSystem_);
    }

    // --- Opening a session (section 3) ---

    /// @notice Opens a session in native coin; the value sent is its deposit.
    /// @param host who will serve; not checked against the registry.
    /// @param pricePerToken wei per LLM token, not zero.
    /// @param maxDuration seconds, 1…`MAX_DURATION`.
    /// @param proofInterval LLM tokens, at least 100 and at most what the deposit buys; times 3 it
    /// is also the number of *seconds* of silence after which anyone may trigger the timeout.
    function createSessionJob(
        address host,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external payable nonReentrant returns (uint256 jobId) {
        jobId = _create(
            Terms(host, address(0), msg.value, pricePerToken, maxDuration, proofInterval)
        );
        _bookInline(jobId, address(0), msg.value);
        emit SessionJobCreated(jobId, msg.sender, host, msg.value);
    }

    /// @notice Opens a session in an accepted ERC-20, pulled from the caller. Price and deposit are
    /// in that token's units.
    function createSessionJobWithToken(
        address host,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant returns (uint256 jobId) {
        require(token != address(0), "Token not accepted");
        jobId = _create(Terms(host, token, deposit, pricePerToken, maxDuration, proofInterval));
        _pullInline(jobId, token, deposit);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    /// @notice Opens a session with funds that the caller deposited before.
    /// @param paymentToken 0x0 for native coin.
    function createSessionFromDeposit(
        address host,
        address paymentToken,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval
    ) external nonReentrant returns (uint256 sessionId) {
        sessionId = _create(
            Terms(host, paymentToken, deposit, pricePerToken, maxDuration, proofInterval)
        );
        _spendDeposit(msg.sender, paymentToken, deposit);
        emit SessionCreatedByDepositor(sessionId, msg.sender, host, deposit);
    }

    // --- Proofs (section 2) ---

    /// @notice Claims `tokensClaimed` more LLM tokens for the session. The rules stand in the order
    /// in which they are tested; the first that fails names the revert.
    /// @param tokensClaimed a delta, never a running total.
    /// @param proof at least 64 bytes, the first 32 of them new everywhere.
    function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes calldata proof)
        external
        nonReentrant
    {
        SessionJob storage session = sessionJobs[jobId];
        // Rule 1. An unknown job reads as Active and fails on rule 2.
        require(session.status == SessionStatus.Active, "Session not active");
        // Rule 2.
        require(msg.sender == session.host, "Only host can submit proof");
        _checkClaim(session, tokensClaimed);
        // Rule 7. (Rule 4 belongs to v5 and v6.)
        bytes32 proofHash = keccak256(proof);
        require(!_proofSeen[jobId][proofHash], "Proof already submitted");
        // Rule 8. Taking the word here makes it new everywhere, not for this session only.
        require(
            proofSystem.verifyAndMarkComplete(proof, msg.sender, tokensClaimed), "Invalid proof"
        );

        _proofSeen[jobId][proofHash] = true;
        // Not clamped and not carried over: allowance that this claim left unused is lost.
        session.tokensUsed += tokensClaimed;
        session.lastProofTime = block.timestamp;
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash);
    }

    /// @dev Rules 3, 5 and 6: how much a claim may hold, whoever signed for it.
    function _checkClaim(SessionJob storage session, uint256 tokensClaimed) internal view {
        // Rule 3.
        require(tokensClaimed >= MIN_PROVEN_TOKENS, "Must claim minimum tokens");
        // Rule 5. Exactly the allowance passes.
        uint256 elapsed = block.timestamp - session.lastProofTime;
        require(tokensClaimed <= MAX_TOKENS_PER_SECOND * elapsed, "Excessive tokens claimed");
        // Rule 6. The division rounds down: a part of a token cannot be bought.
        require(
            session.tokensUsed + tokensClaimed <= session.deposit / session.pricePerToken,
            "Exceeds deposit"
        );
    }

    // --- Ending a session (section 3) ---

    /// @notice Ends a session and divides its deposit. The depositor may at any time, anyone else
    /// once `DISPUTE_WINDOW` seconds passed since its *start*. What was not proven before is lost.
    function completeSessionJob(uint256 jobId, string calldata conversationCID)
        external
        nonReentrant
    {
        SessionJob storage session = _activeSession(jobId);
        require(
            msg.sender == session.depositor
                || block.timestamp >= session.startTime + DISPUTE_WINDOW,
            "Must wait dispute window"
        );
        session.conversationCID = conversationCID;
        (uint256 payment, uint256 earned, uint256 refund) =
            _settle(session, SessionStatus.Completed);
        emit SessionCompleted(jobId, session.tokensUsed, earned, refund);
        emit SessionCompleted(jobId, msg.sender, session.tokensUsed, payment, refund);
    }

    /// @notice Ends a session that ran too long or fell silent. Open to anyone. Proven tokens are
    /// still paid.
    function triggerSessionTimeout(uint256 jobId) external nonReentrant {
        SessionJob storage session = _activeSession(jobId);
        bool expired = block.timestamp > session.startTime + session.maxDuration;
        bool silent = block.timestamp > session.lastProofTime + 3 * session.proofInterval;
        require(expired || silent, "Session not timed out");
        (, uint256 earned, uint256 refund) = _settle(session, SessionStatus.TimedOut);
        emit SessionTimedOut(jobId, earned, refund);
    }

    function _create(Terms memory terms) private returns (uint256 jobId) {
        require(terms.host != address(0), "Invalid host");
        require(terms.deposit >= _minDeposit(terms.token), "Insufficient deposit");
        require(terms.pricePerToken != 0, "Invalid price");
        require(terms.maxDuration != 0 && terms.maxDuration <= MAX_DURATION, "Invalid duration");
        require(terms.proofInterval >= MIN_PROOF_INTERVAL, "Invalid proof interval");
        require(
            terms.deposit / terms.pricePerToken >= terms.proofInterval, "Deposit below interval"
        );

        jobId = nextJobId++;
        SessionJob storage session = sessionJobs[jobId];
        session.id = jobId;
        session.depositor = msg.sender;
        session.requester = msg.sender;
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

    function _minDeposit(address token) private view returns (uint256) {
        if (token == address(0)) return MIN_DEPOSIT;
        require(acceptedTokens[token], "Token not accepted");
        return tokenMinDeposits[token];
    }

    function _activeSession(uint256 jobId) private view returns (SessionJob storage session) {
        session = sessionJobs[jobId];
        require(session.status == SessionStatus.Active, "Session not active");
        // Zeros would otherwise pass for a session whose window ended long ago.
        require(session.id != 0, "Session not found");
    }

    /// @dev Divides the deposit: payment = tokens × price; the fee of it, rounded down, to the
    /// treasury; the rest of it to the host; what is left of the deposit back to the depositor.
    /// All of it or nothing: a part that cannot be paid reverts the whole.
    function _settle(SessionJob storage session, SessionStatus end)
        private
        returns (uint256 payment, uint256 earned, uint256 refund)
    {
        payment = session.tokensUsed * session.pricePerToken;
        uint256 fee = payment * FEE_BASIS_POINTS / 10_000;
        earned = payment - fee;
        refund = session.deposit - payment;
        // Books before money: whoever is paid and calls back finds the session ended.
        session.status = end;
        session.withdrawnByHost = earned;
        session.refundedToUser = refund;

        address token = session.paymentToken;
        _closeInline(session.id, session.depositor, token, session.deposit);
        _bookFee(token, fee);
        if (earned != 0) {
            _push(token, address(hostEarnings), earned, "Transfer to HostEarnings failed");
            hostEarnings.creditEarnings(session.host, earned, token);
        }
        if (refund != 0) {
            string memory failure =
                token == address(0) ? "ETH refund failed" : "Token refund failed";
            _push(token, session.depositor, refund, failure);
        }
    }
}
