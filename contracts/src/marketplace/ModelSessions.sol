// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IModelRegistry} from "../ModelRegistry.sol";
import {INodeDirectory} from "../NodeDirectory.sol";
import {IModelPrices} from "../NodeRegistryV7.sol";
import {TokenTransfer} from "../TokenTransfer.sol";
import {LaterMarketplace} from "./LaterMarketplace.sol";
import {Session, Terms} from "./Sessions.sol";

/// @title Opening a session that names its model (v7)
/// @notice docs/spec/contract.md, sections 1 and 3. There is no other way to open one in v7.
abstract contract ModelSessions is LaterMarketplace {
    /// @notice Seconds that a proof timeout window is at least.
    uint256 public constant MIN_PROOF_TIMEOUT_WINDOW = 60;
    /// @notice Seconds that a proof timeout window is at most.
    uint256 public constant MAX_PROOF_TIMEOUT_WINDOW = 3600;
    /// @notice Seconds that a proof timeout window of 0 stands for.
    uint256 public constant DEFAULT_PROOF_TIMEOUT_WINDOW = 300;

    /// @notice The model that a session pays for; 0x0 for an unknown session.
    mapping(uint256 jobId => bytes32) public sessionModel;

    /// @notice Whether a delegate may open sessions from an account's deposit.
    mapping(address depositor => mapping(address delegate => bool)) public isDelegateAuthorized;

    event DelegateAuthorized(
        address indexed depositor, address indexed delegate, bool authorized
    );
    /// @notice The event of a session that a delegate opened: the third party is not the host.
    event SessionCreatedByDelegate(
        uint256 indexed sessionId, address indexed depositor, address indexed delegate
    );

    error NotDelegate(address depositor, address delegate);
    error ModelNotApproved(bytes32 modelId);
    error ModelNotSupported(address host, bytes32 modelId);
    error ModelNotPriced(address host, bytes32 modelId, address token);
    error PriceBelowMinimum(uint256 price, uint256 minimum);
    error InvalidProofTimeoutWindow(uint256 window);

    /// @notice Opens a session in native coin; the value sent is its deposit.
    /// @param host who will serve; registered, with this model and a price for it.
    /// @param modelId approved by the model registry.
    /// @param pricePerToken a thousandth of a wei per LLM token, at least the host's.
    /// @param maxDuration seconds, 1…`MAX_DURATION`.
    /// @param proofInterval LLM tokens, at least 100 and at most what the deposit buys.
    /// @param proofTimeoutWindow seconds of silence after which anyone may trigger the timeout,
    /// 60…3600; 0 stands for 300.
    function createSessionJobForModel(
        address host,
        bytes32 modelId,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external payable nonReentrant whenRunning returns (uint256 jobId) {
        jobId = _createForModel(
            Terms(
                msg.sender, host, address(0), msg.value, pricePerToken, maxDuration, proofInterval
            ),
            modelId,
            proofTimeoutWindow
        );
        emit SessionJobCreated(jobId, msg.sender, host, msg.value);
    }

    /// @notice Opens a session in an accepted ERC-20, pulled from the caller. Price and deposit are
    /// in that token's units.
    function createSessionJobForModelWithToken(
        address host,
        bytes32 modelId,
        address token,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external nonReentrant whenRunning returns (uint256 jobId) {
        require(token != address(0), "Token not accepted");
        jobId = _createForModel(
            Terms(msg.sender, host, token, deposit, pricePerToken, maxDuration, proofInterval),
            modelId,
            proofTimeoutWindow
        );
        TokenTransfer.pull(token, msg.sender, deposit);
        emit SessionJobCreated(jobId, msg.sender, host, deposit);
    }

    /// @notice Opens a session with funds that the caller deposited before.
    /// @param paymentToken 0x0 for native coin.
    function createSessionFromDepositForModel(
        address host,
        bytes32 modelId,
        address paymentToken,
        uint256 deposit,
        uint256 pricePerToken,
        uint256 maxDuration,
        uint256 proofInterval,
        uint256 proofTimeoutWindow
    ) external nonReentrant whenRunning returns (uint256 sessionId) {
        sessionId = _createForModel(
            Terms(
                msg.sender, host, paymentToken, deposit, pricePerToken, maxDuration, proofInterval
            ),
            modelId,
            proofTimeoutWindow
        );
        _spendDeposit(msg.sender, paymentToken, deposit);
        emit SessionCreatedByDepositor(sessionId, msg.sender, host, deposit);
    }

    /// @notice Allows or forbids an account to open sessions from the caller's deposit.
    function authorizeDelegate(address delegate, bool authorized) external {
        isDelegateAuthorized[msg.sender][delegate] = authorized;
        emit DelegateAuthorized(msg.sender, delegate, authorized);
    }

    /// @notice Opens a session of `terms.depositor` with funds that it deposited before. The
    /// caller has its authority; the refund goes to the depositor.
    function createSessionForModelAsDelegate(
        Terms calldata terms,
        bytes32 modelId,
        uint256 proofTimeoutWindow
    ) external nonReentrant whenRunning returns (uint256 sessionId) {
        if (!isDelegateAuthorized[terms.depositor][msg.sender]) {
            revert NotDelegate(terms.depositor, msg.sender);
        }
        sessionId = _createForModel(terms, modelId, proofTimeoutWindow);
        _spendDeposit(terms.depositor, terms.token, terms.deposit);
        emit SessionCreatedByDelegate(sessionId, terms.depositor, msg.sender);
    }

    /// @notice The registry of the models, as the node registry knows it.
    function modelRegistry() public view returns (address) {
        return address(INodeDirectory(nodeRegistry).modelRegistry());
    }

    function _silence(Session storage session) internal view override returns (uint256) {
        return session.proofTimeoutWindow;
    }

    function _createForModel(Terms memory terms, bytes32 modelId, uint256 window)
        private
        returns (uint256 jobId)
    {
        if (window == 0) window = DEFAULT_PROOF_TIMEOUT_WINDOW;
        if (window < MIN_PROOF_TIMEOUT_WINDOW || window > MAX_PROOF_TIMEOUT_WINDOW) {
            revert InvalidProofTimeoutWindow(window);
        }
        jobId = _create(terms);
        _checkModel(terms, modelId);
        _sessions[jobId].proofTimeoutWindow = window;
        sessionModel[jobId] = modelId;
    }

    function _checkModel(Terms memory terms, bytes32 modelId) private view {
        if (!IModelRegistry(modelRegistry()).isModelApproved(modelId)) {
            revert ModelNotApproved(modelId);
        }
        if (!INodeDirectory(nodeRegistry).nodeSupportsModel(terms.host, modelId)) {
            revert ModelNotSupported(terms.host, modelId);
        }
        uint256 minimum =
            IModelPrices(nodeRegistry).getModelPricing(terms.host, modelId, terms.token);
        if (minimum == 0) revert ModelNotPriced(terms.host, modelId, terms.token);
        if (terms.pricePerToken < minimum) revert PriceBelowMinimum(terms.pricePerToken, minimum);
    }
}
