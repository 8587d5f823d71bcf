// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodePrices} from "../NodeRegistryV5.sol";
import {LaterMarketplace} from "./LaterMarketplace.sol";
import {MarketplaceCore} from "./MarketplaceCore.sol";
import {PlainOpening} from "./PlainOpening.sol";
import {Session, SessionStatus, Terms} from "./Sessions.sol";

/// @title Claims that carry the host's signature (v5 and v6)
/// @notice docs/spec/contract.md, section 2, rule 4, and the session of 17 outputs.
abstract contract SignedProofs is LaterMarketplace, PlainOpening {
    uint256 private constant SIGNATURE_BYTES = 65;
    /// @dev Half the order of secp256k1. Above it, a signature is the twin of another one.
    uint256 private constant HALF_ORDER =
        0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    /// @notice A session by its id. An unknown id reads as zeros: Active, with host 0x0. Number and
    /// order of the outputs are part of the interface.
    function sessionJobs(uint256 jobId)
        external
        view
        returns (
            uint256 id,
            address depositor,
            address host,
            address paymentToken,
            uint256 deposit,
            uint256 pricePerToken,
            uint256 tokensUsed,
            uint256 maxDuration,
            uint256 startTime,
            uint256 lastProofTime,
            uint256 proofInterval,
            SessionStatus status,
            uint256 withdrawnByHost,
            uint256 refundedToUser,
            string memory conversationCID,
            bytes32 lastProofHash,
            string memory lastProofCID
        )
    {
        Session storage session = _sessions[jobId];
        id = session.id;
        depositor = session.depositor;
        host = session.host;
        paymentToken = session.paymentToken;
        deposit = session.deposit;
        pricePerToken = session.pricePerToken;
        tokensUsed = session.tokensUsed;
        maxDuration = session.maxDuration;
        startTime = session.startTime;
        lastProofTime = session.lastProofTime;
        proofInterval = session.proofInterval;
        status = session.status;
        withdrawnByHost = session.withdrawnByHost;
        refundedToUser = session.refundedToUser;
        conversationCID = session.conversationCID;
        lastProofHash = session.lastProofHash;
        lastProofCID = session.lastProofCID;
    }

    /// @dev All rules of a claim in their order, and its record.
    function _claim(
        uint256 jobId,
        uint256 tokensClaimed,
        bytes32 proofHash,
        bytes calldata signature,
        string calldata proofCID
    ) internal {
        Session storage session = _hostedSession(jobId, "Only host can submit proof");
        _checkMinimum(tokensClaimed);
        _checkSignature(proofHash, tokensClaimed, signature);
        _checkAllowance(session, tokensClaimed);
        // Rule 8. (Rule 7 belongs to v3.) The hash is the first word of what is registered.
        bytes memory proof = abi.encodePacked(proofHash, signature);
        require(
            proofSystem.verifyAndMarkComplete(proof, msg.sender, tokensClaimed),
            "Proof already used"
        );
        _recordProof(session, tokensClaimed, proofHash, proofCID);
    }

    function _rate(Session storage) internal pure override returns (uint256) {
        return 2000;
    }

    function _checkTerms(Terms memory terms)
        internal
        view
        override(MarketplaceCore, LaterMarketplace)
    {
        super._checkTerms(terms);
        require(
            terms.pricePerToken
                >= INodePrices(nodeRegistry).getNodePricing(terms.host, terms.token),
            "Price below host minimum"
        );
    }

    /// @dev Rule 4: an EIP-191 personal signature of the caller, who is the session's host.
    function _checkSignature(bytes32 proofHash, uint256 tokensClaimed, bytes calldata signature)
        private
        view
    {
        require(signature.length == SIGNATURE_BYTES, "Invalid signature length");
        (bytes32 r, bytes32 s) = (bytes32(signature[:32]), bytes32(signature[32:64]));
        uint8 v = uint8(signature[64]);
        require(v == 27 || v == 28, "Invalid signature v");
        require(uint256(s) <= HALF_ORDER, "Invalid signature");
        bytes32 claim = keccak256(abi.encodePacked(proofHash, msg.sender, tokensClaimed));
        bytes32 digest = keccak256(abi.encodePacked("\x19Ethereum Signed Message:\n32", claim));
        address signer = ecrecover(digest, v, r, s);
        // A signature of nobody recovers to zero, which is no sender.
        require(signer == msg.sender, "Invalid signature");
    }
}
