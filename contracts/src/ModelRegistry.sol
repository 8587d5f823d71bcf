// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Owned} from "./Owned.sol";

/// @notice What the node registry asks of the model registry.
interface IModelRegistry {
    function isModelApproved(bytes32 modelId) external view returns (bool);
}

/// @title Models that hosts may offer, with the hash of their weights
/// @notice docs/spec/contract.md, section 4.
contract ModelRegistry is Owned, IModelRegistry {
    struct Model {
        string repo;
        string fileName;
        bytes32 sha256Hash;
        bool approved;
    }

    mapping(bytes32 modelId => Model) internal _models;

    event ModelAdded(bytes32 indexed modelId, string repo, string fileName, bytes32 sha256Hash);
    event ModelApprovalUpdated(bytes32 indexed modelId, bool approved);

    /// @notice keccak256(repo ‖ "/" ‖ fileName), of the bytes as they are.
    function getModelId(string memory repo, string memory fileName) public pure returns (bytes32) {
        return keccak256(abi.encodePacked(repo, "/", fileName));
    }

    /// @notice Adds and approves a model.
    /// @param sha256Hash SHA-256 of the weight file, not zero: hosts compare theirs with it.
    /// @return modelId see `getModelId`.
    function addTrustedModel(string calldata repo, string calldata fileName, bytes32 sha256Hash)
        external
        onlyOwner
        returns (bytes32 modelId)
    {
        require(bytes(repo).length != 0 && bytes(fileName).length != 0, "Empty model name");
        require(sha256Hash != bytes32(0), "Empty model hash");
        modelId = getModelId(repo, fileName);
        require(_models[modelId].sha256Hash == bytes32(0), "Model exists");
        _models[modelId] = Model(repo, fileName, sha256Hash, true);
        emit ModelAdded(modelId, repo, fileName, sha256Hash);
    }

    /// @notice Withdraws or renews the approval of a known model.
    function setModelApproval(bytes32 modelId, bool approved) external onlyOwner {
        require(_models[modelId].sha256Hash != bytes32(0), "Unknown model");
        _models[modelId].approved = approved;
        emit ModelApprovalUpdated(modelId, approved);
    }

    /// @notice Whether hosts may offer the model; false for an unknown one.
    function isModelApproved(bytes32 modelId) external view returns (bool) {
        return _models[modelId].approved;
    }

    /// @notice SHA-256 of the weight file; zero for an unknown model.
    function getModelHash(bytes32 modelId) external view returns (bytes32) {
        return _models[modelId].sha256Hash;
    }

    /// @notice All that is known of a model; empty for an unknown one.
    function getModel(bytes32 modelId) external view returns (Model memory) {
        return _models[modelId];
    }
}
