// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IModelRegistry} from "./ModelRegistry.sol";
import {TokenTransfer} from "./TokenTransfer.sol";

/// @notice What a marketplace asks of the registry, from v5 on.
interface INodeDirectory {
    function isActiveNode(address operator) external view returns (bool);
    function nodeSupportsModel(address operator, bytes32 modelId) external view returns (bool);
    function modelRegistry() external view returns (IModelRegistry);
}

/// @title What every version of the node registry does alike
/// @notice docs/spec/contract.md, section 4: hosts, where they answer and what they offer.
abstract contract NodeDirectory is INodeDirectory {
    struct Node {
        address operator;
        uint256 stakedAmount;
        bool active;
        string metadata;
        string apiUrl;
        bytes32[] supportedModels;
    }

    /// @notice Units of the stake token that a host locks: 1000 whole tokens of 18 decimals.
    uint256 public constant MIN_STAKE = 1000 ether;
    /// @notice Knows which models may be offered.
    IModelRegistry public immutable modelRegistry;

    /// @dev Its getter's name differs.
    address private immutable _stakeToken;

    mapping(address operator => Node) internal _nodes;
    mapping(address operator => mapping(bytes32 modelId => bool)) internal _supports;

    event NodeRegistered(
        address indexed operator, string metadata, string apiUrl, bytes32[] modelIds
    );
    event NodeUnregistered(address indexed operator, uint256 returnedStake);
    event MetadataUpdated(address indexed operator, string metadata);
    event ApiUrlUpdated(address indexed operator, string apiUrl);
    event SupportedModelsUpdated(address indexed operator, bytes32[] modelIds);

    modifier onlyRegistered() {
        require(_nodes[msg.sender].active, "Not registered");
        _;
    }

    constructor(address stakeToken_, address modelRegistry_) {
        _stakeToken = stakeToken_;
        modelRegistry = IModelRegistry(modelRegistry_);
    }

    /// @notice Removes the caller and returns its stake.
    function unregisterNode() external onlyRegistered {
        Node storage node = _nodes[msg.sender];
        uint256 stake = node.stakedAmount;
        _clearModels(node);
        delete _nodes[msg.sender];
        TokenTransfer.push(_stakeToken, msg.sender, stake, "Stake return failed");
        emit NodeUnregistered(msg.sender, stake);
    }

    /// @notice Replaces the caller's metadata.
    function updateMetadata(string calldata metadata) external onlyRegistered {
        require(bytes(metadata).length != 0, "Empty metadata");
        _nodes[msg.sender].metadata = metadata;
        emit MetadataUpdated(msg.sender, metadata);
    }

    /// @notice Replaces the caller's URL.
    function updateApiUrl(string calldata apiUrl) external onlyRegistered {
        require(bytes(apiUrl).length != 0, "Empty API URL");
        _nodes[msg.sender].apiUrl = apiUrl;
        emit ApiUrlUpdated(msg.sender, apiUrl);
    }

    /// @notice Replaces the caller's list of models; the same demands as at registration.
    function updateSupportedModels(bytes32[] calldata modelIds) external onlyRegistered {
        Node storage node = _nodes[msg.sender];
        _clearModels(node);
        _setModels(node, modelIds);
        emit SupportedModelsUpdated(msg.sender, modelIds);
    }

    /// @notice The ERC-20 of the stake. The host approves this contract first.
    function stakeToken() public view virtual returns (address) {
        return _stakeToken;
    }

    /// @notice Whether the account is a registered host.
    function isActiveNode(address operator) external view returns (bool) {
        return _nodes[operator].active;
    }

    /// @notice The host's URL; empty where it is not registered.
    function getNodeApiUrl(address operator) external view returns (string memory) {
        return _nodes[operator].apiUrl;
    }

    /// @notice Whether the host lists the model.
    function nodeSupportsModel(address operator, bytes32 modelId) external view returns (bool) {
        return _supports[operator][modelId];
    }

    /// @dev Registers the caller as a host and takes its stake.
    function _register(
        string calldata metadata,
        string calldata apiUrl,
        bytes32[] calldata modelIds
    ) internal {
        require(!_nodes[msg.sender].active, "Already registered");
        require(bytes(metadata).length != 0, "Empty metadata");
        require(bytes(apiUrl).length != 0, "Empty API URL");
        Node storage node = _nodes[msg.sender];
        node.operator = msg.sender;
        node.stakedAmount = MIN_STAKE;
        node.active = true;
        node.metadata = metadata;
        node.apiUrl = apiUrl;
        _setModels(node, modelIds);
        TokenTransfer.pull(_stakeToken, msg.sender, MIN_STAKE);
        emit NodeRegistered(msg.sender, metadata, apiUrl, modelIds);
    }

    function _setModels(Node storage node, bytes32[] calldata modelIds) private {
        require(modelIds.length != 0, "No models");
        for (uint256 i = 0; i < modelIds.length; i++) {
            require(modelRegistry.isModelApproved(modelIds[i]), "Model not approved");
            _supports[msg.sender][modelIds[i]] = true;
        }
        node.supportedModels = modelIds;
    }

    function _clearModels(Node storage node) private {
        for (uint256 i = 0; i < node.supportedModels.length; i++) {
            _supports[msg.sender][node.supportedModels[i]] = false;
        }
        delete node.supportedModels;
    }
}
