// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ProofSystem} from "./ProofSystem.sol";

/// @notice What v7 asks of the proof system.
interface IProofMarks {
    function markProofUsed(bytes32 proofHash) external returns (bool);
}

/// @title Register of used proof hashes (v7)
/// @notice Rule 8 of docs/spec/contract.md, section 2: the register of `ProofSystem`, with the
/// call that v7 makes. It is open to anyone, as the others are: a stranger can burn a hash.
contract ProofSystemV7 is ProofSystem, IProofMarks {
    /// @notice Takes a hash; false where it is taken.
    function markProofUsed(bytes32 proofHash) external returns (bool) {
        if (verifiedProofs[proofHash]) return false;
        _take(proofHash, msg.sender, 0);
        return true;
    }
}
