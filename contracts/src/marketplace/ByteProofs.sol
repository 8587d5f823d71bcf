// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {EarlyMarketplace} from "./EarlyMarketplace.sol";
import {Session} from "./Sessions.sol";

/// @title Claims whose proof is a string of bytes (v3a and v3)
/// @notice docs/spec/contract.md, section 2.
abstract contract ByteProofs is EarlyMarketplace {
    mapping(uint256 jobId => mapping(bytes32 proofHash => bool)) private _proofSeen;

    event ProofSubmitted(
        uint256 indexed jobId, address indexed host, uint256 tokensClaimed, bytes32 proofHash
    );

    /// @notice Claims `tokensClaimed` more LLM tokens for the session. The rules stand in the order
    /// in which they are tested; the first that fails names the revert.
    /// @param tokensClaimed a delta, never a running total.
    /// @param proof at least 64 bytes, the first 32 of them new everywhere.
    function submitProofOfWork(uint256 jobId, uint256 tokensClaimed, bytes calldata proof)
        external
        nonReentrant
    {
        Session storage session = _hostedSession(jobId, "Only host can submit proof");
        _checkPlain(session);
        _checkMinimum(tokensClaimed);
        _checkAllowance(session, tokensClaimed);
        // Rule 7. (Rule 4 belongs to v5 and v6.)
        bytes32 proofHash = keccak256(proof);
        require(!_proofSeen[jobId][proofHash], "Proof already submitted");
        // Rule 8. Taking the word here makes it new everywhere, not for this session only.
        require(
            proofSystem.verifyAndMarkComplete(proof, msg.sender, tokensClaimed), "Invalid proof"
        );
        _proofSeen[jobId][proofHash] = true;
        _record(session, tokensClaimed);
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, proofHash);
    }

    /// @dev Reverts where a host cannot claim from the session by its word alone.
    function _checkPlain(Session storage session) internal view virtual {}
}
