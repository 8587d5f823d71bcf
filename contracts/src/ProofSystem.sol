// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What the marketplace asks of the proof system.
interface IProofSystem {
    function verifyAndMarkComplete(bytes calldata proof, address prover, uint256 claimedTokens)
        external
        returns (bool);
}

/// @title Register of the first words of proofs
/// @notice Second half of rule 8 of docs/spec/contract.md, section 2. It checks that a proof is
/// long enough and new by its first 32 bytes, and nothing about inference.
/// @dev Registering is open to anyone, on purpose: that is how v3 behaves. A stranger who sees
/// pending bytes can burn their first word; the host's remedy is a new first word.
contract ProofSystem is IProofSystem {
    /// @notice Bytes that a proof has at least (rule 8).
    uint256 public constant MIN_PROOF_BYTES = 64;

    /// @notice Whether a first word is taken.
    mapping(bytes32 firstWord => bool) public verifiedProofs;

    /// @notice A first word was taken. `tokens` is 0 where nobody claimed any with it.
    event ProofVerified(bytes32 indexed proofHash, address indexed prover, uint256 tokens);

    /// @notice Whether rule 8 would accept these bytes now. Changes nothing.
    function verifyEKZL(bytes calldata proof, address prover, uint256 claimedTokens)
        public
        view
        returns (bool)
    {
        if (prover == address(0) || claimedTokens == 0) return false;
        return proof.length >= MIN_PROOF_BYTES && !verifiedProofs[bytes32(proof[:32])];
    }

    /// @notice Rule 8: takes the first word of `proof`; false where the proof is too short or the
    /// word is taken. Open to anyone.
    function verifyAndMarkComplete(bytes calldata proof, address prover, uint256 claimedTokens)
        external
        returns (bool)
    {
        if (!verifyEKZL(proof, prover, claimedTokens)) return false;
        _take(bytes32(proof[:32]), prover, claimedTokens);
        return true;
    }

    /// @notice Takes a first word without a proof. Open to anyone; a taken word stays taken.
    function recordVerifiedProof(bytes32 proofHash) external {
        _take(proofHash, msg.sender, 0);
    }

    function _take(bytes32 firstWord, address prover, uint256 tokens) internal {
        verifiedProofs[firstWord] = true;
        emit ProofVerified(firstWord, prover, tokens);
    }
}
