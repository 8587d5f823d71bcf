// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeDirectory} from "./NodeDirectory.sol";

/// @notice What v5 and v6 ask about a host's prices.
interface INodePrices {
    function getNodePricing(address operator, address token) external view returns (uint256);
}

/// @title Hosts with their lowest prices (v5 and v6)
/// @notice docs/spec/contract.md, section 4. Prices are in thousandths of a unit per LLM token.
contract NodeRegistryV5 is NodeDirectory, INodePrices {
    struct Prices {
        uint256 native;
        uint256 stable;
    }

    mapping(address operator => Prices) internal _prices;

    event PricingUpdated(
        address indexed operator, uint256 minPricePerTokenNative, uint256 minPricePerTokenStable
    );

    constructor(address stakeToken_, address modelRegistry_)
        NodeDirectory(stakeToken_, modelRegistry_)
    {}

    /// @notice Registers the caller as a host and takes its stake.
    /// @param metadata JSON text; clients read hardware, capabilities, location, maxConcurrent and
    /// publicKey from it. Only its presence is checked here.
    /// @param apiUrl where clients reach the host.
    /// @param modelIds at least one, each approved by the model registry.
    /// @param minPricePerTokenNative lowest price in native coin, not zero.
    /// @param minPricePerTokenStable lowest price in any ERC-20, not zero.
    function registerNode(
        string calldata metadata,
        string calldata apiUrl,
        bytes32[] calldata modelIds,
        uint256 minPricePerTokenNative,
        uint256 minPricePerTokenStable
    ) external {
        require(minPricePerTokenNative != 0 && minPricePerTokenStable != 0, "Invalid price");
        _prices[msg.sender] = Prices(minPricePerTokenNative, minPricePerTokenStable);
        _register(metadata, apiUrl, modelIds);
        emit PricingUpdated(msg.sender, minPricePerTokenNative, minPricePerTokenStable);
    }

    /// @notice Lowest price of a host in a token, 0x0 for native coin; 0 where it is not
    /// registered.
    function getNodePricing(address operator, address token) external view returns (uint256) {
        if (!_nodes[operator].active) return 0;
        Prices storage prices = _prices[operator];
        return token == address(0) ? prices.native : prices.stable;
    }

    /// @notice All eight fields of a host; zeros and empty values where it is not registered.
    function getNodeFullInfo(address operator)
        external
        view
        returns (
            address,
            uint256,
            bool,
            string memory,
            string memory,
            bytes32[] memory,
            uint256 minPricePerTokenNative,
            uint256 minPricePerTokenStable
        )
    {
        Node storage n = _nodes[operator];
        Prices memory prices = n.active ? _prices[operator] : Prices(0, 0);
        return (
            n.operator,
            n.stakedAmount,
            n.active,
            n.metadata,
            n.apiUrl,
            n.supportedModels,
            prices.native,
            prices.stable
        );
    }
}
