// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeDirectory} from "./NodeDirectory.sol";

/// @title Hosts, where they answer and what they offer (v3 shape: no prices)
/// @notice docs/spec/contract.md, section 4. Marketplaces before v5 do not ask it before they open
/// a session; clients and preflights read it.
contract NodeRegistry is NodeDirectory {
    constructor(address stakeToken_, address modelRegistry_)
        NodeDirectory(stakeToken_, modelRegistry_)
    {}

    /// @notice Registers the caller as a host and takes its stake.
    /// @param metadata JSON text; clients read hardware, capabilities, location, maxConcurrent and
    /// publicKey from it. Only its presence is checked here.
    /// @param apiUrl where clients reach the host.
    /// @param modelIds at least one, each approved by the model registry.
    function registerNode(
        string calldata metadata,
        string calldata apiUrl,
        bytes32[] calldata modelIds
    ) external {
        _register(metadata, apiUrl, modelIds);
    }

    /// @notice All six fields of a host; zeros and empty values where it is not registered.
    function getNodeFullInfo(address operator)
        external
        view
        returns (address, uint256, bool, string memory, string memory, bytes32[] memory)
    {
        Node storage n = _nodes[operator];
        return (n.operator, n.stakedAmount, n.active, n.metadata, n.apiUrl, n.supportedModels);
    }
}
