// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ModelRegistry} from "./ModelRegistry.sol";

/// @notice What v7 asks about the rate of a model.
interface IModelRates {
    function getModelRateLimit(bytes32 modelId) external view returns (uint256);
}

/// @title Models with the rate at which their tokens may be claimed (v7)
/// @notice docs/spec/contract.md, section 3.
contract ModelRegistryV7 is ModelRegistry, IModelRates {
    mapping(bytes32 modelId => uint256) private _rates;

    event ModelRateLimitUpdated(bytes32 indexed modelId, uint256 tokensPerSecond);

    /// @notice Sets how many tokens a second may be claimed of a known model. It holds at once, for
    /// open sessions too.
    function setModelRateLimit(bytes32 modelId, uint256 tokensPerSecond) external onlyOwner {
        require(_models[modelId].sha256Hash != bytes32(0), "Unknown model");
        _rates[modelId] = tokensPerSecond;
        emit ModelRateLimitUpdated(modelId, tokensPerSecond);
    }

    /// @notice Tokens a second that may be claimed of a model; 0, that is none at all, until the
    /// owner set it.
    function getModelRateLimit(bytes32 modelId) external view returns (uint256) {
        return _rates[modelId];
    }
}
