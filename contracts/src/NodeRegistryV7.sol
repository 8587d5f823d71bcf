// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistryV5} from "./NodeRegistryV5.sol";

/// @notice What v7 asks about a host's prices.
interface IModelPrices {
    function getModelPricing(address operator, bytes32 modelId, address token)
        external
        view
        returns (uint256);
}

/// @title Hosts with a lowest price for each model and token (v7)
/// @notice docs/spec/contract.md, section 4. A model without a price in a token cannot be asked for
/// in that token.
contract NodeRegistryV7 is NodeRegistryV5, IModelPrices {
    mapping(address operator => mapping(bytes32 modelId => mapping(address token => uint256)))
        private _modelPrices;

    event ModelTokenPricingUpdated(
        address indexed operator, bytes32 indexed modelId, address indexed token, uint256 price
    );

    constructor(address stakeToken_, address modelRegistry_)
        NodeRegistryV5(stakeToken_, modelRegistry_)
    {}

    /// @notice Sets the caller's lowest price of a model that it lists, in a token.
    /// @param token 0x0 for native coin.
    /// @param price thousandths of a unit per LLM token, not zero.
    function setModelTokenPricing(bytes32 modelId, address token, uint256 price)
        external
        onlyRegistered
    {
        require(_supports[msg.sender][modelId], "Model not supported");
        require(price != 0, "Invalid price");
        _modelPrices[msg.sender][modelId][token] = price;
        emit ModelTokenPricingUpdated(msg.sender, modelId, token, price);
    }

    /// @notice Lowest price of a host for a model in a token; 0 where it set none or does not list
    /// the model now.
    function getModelPricing(address operator, bytes32 modelId, address token)
        external
        view
        returns (uint256)
    {
        return _supports[operator][modelId] ? _modelPrices[operator][modelId][token] : 0;
    }
}
