// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {JobMarketplaceV3a} from "./JobMarketplaceV3a.sol";
import {Session, SessionStatus, Wiring} from "./marketplace/Sessions.sol";
import {VoucherOpening} from "./marketplace/VoucherOpening.sol";
import {
    Delegation,
    DelegationFault,
    SignedVoucher,
    VoucherFault,
    VoucherState,
    Vouchers
} from "./marketplace/Vouchers.sol";

/// @title Paid sessions: v3a's, and beside them sessions that pay by the user's vouchers alone
/// @notice Ours: there is no deployed contract that it stands for (docs/spec/contract.md, section
/// 7). To a reader of v3a it is v3a. A host is never paid a token of a voucher session that a key
/// of the requester's choice has not signed for, and what was signed is paid once.
/// @dev No rate (rule 5) and no register of proofs (rules 7 and 8) in a voucher session: they bound
/// what a host can say by itself, and here it says nothing. A running total replays to nothing.
contract JobMarketplaceVouchers is VoucherOpening {
    /// @notice Seconds after a delegation's expiry in which the host may still claim what was
    /// signed before.
    uint256 public constant CLAIM_GRACE = 1 days;

    event DelegationRegistered(
        uint256 indexed jobId,
        address indexed sessionKey,
        bytes32 model,
        uint64 cap,
        uint64 expiry
    );
    /// @notice A voucher of a batch was refused, and the others were not held up.
    event VoucherSkipped(uint256 indexed jobId, VoucherFault reason);

    error VoucherRefused(uint256 jobId, VoucherFault reason);
    error DelegationRefused(uint256 jobId, DelegationFault reason);

    constructor(Wiring memory wiring) JobMarketplaceV3a(wiring) {}

    // --- Delegation ---

    /// @notice Registers who signs the session's vouchers. Open to the session's host alone: else
    /// a requester could put another key in the place of the one whose vouchers the host holds. A
    /// further delegation takes the place of the first where it expires later; so none returns.
    /// @param signature of the session's requester over the delegation: 65 bytes of its key, or
    /// what its wallet contract takes (EIP-1271).
    function registerDelegation(Delegation calldata delegation, bytes calldata signature)
        external
        nonReentrant
    {
        _register(delegation, signature);
    }

    // --- Claims ---

    /// @notice Claims what a voucher adds to the tokens that were paid. Open to the session's host.
    /// @param cumTokens tokens of the session in all: a running total, not a delta.
    /// @param seq number of the root; signed, not checked.
    /// @param root what the transcript up to there hashes to; signed, not checked.
    /// @param signature the session key's, 65 bytes.
    function submitVoucher(
        uint256 jobId,
        uint64 cumTokens,
        uint32 seq,
        bytes32 root,
        bytes calldata signature
    ) external nonReentrant {
        (bytes32 r, bytes32 s, uint8 v) = Vouchers.split(signature);
        _claimOrRevert(SignedVoucher(jobId, cumTokens, seq, root, r, s, v));
    }

    /// @notice Registers a delegation and claims a voucher, or does neither.
    function submitFirstVoucher(
        Delegation calldata delegation,
        bytes calldata delegationSignature,
        SignedVoucher calldata voucher
    ) external nonReentrant {
        _register(delegation, delegationSignature);
        _claimOrRevert(voucher);
    }

    /// @notice Claims vouchers of many sessions, one after the other. One that is refused is
    /// announced and skipped.
    /// @return accepted how many were paid.
    function submitVouchers(SignedVoucher[] calldata vouchers)
        external
        nonReentrant
        returns (uint256 accepted)
    {
        bytes32 domain = Vouchers.domain();
        for (uint256 i = 0; i < vouchers.length; i++) {
            VoucherFault fault = _claim(domain, vouchers[i]);
            if (fault == VoucherFault.None) accepted++;
            else emit VoucherSkipped(vouchers[i].jobId, fault);
        }
    }

    // --- Reading ---

    /// @notice The EIP-712 domain {name "Tally", version "1", chainId, verifyingContract}.
    function domainSeparator() external view returns (bytes32) {
        return Vouchers.domain();
    }

    /// @notice What the requester's wallet signs.
    function delegationDigest(Delegation calldata delegation) external view returns (bytes32) {
        return Vouchers.delegationDigest(Vouchers.domain(), delegation);
    }

    /// @notice What the session key signs.
    function voucherDigest(
        uint256 jobId,
        uint64 cumTokens,
        uint32 seq,
        bytes32 root,
        bytes32 model
    ) external view returns (bytes32) {
        SignedVoucher memory voucher = SignedVoucher(jobId, cumTokens, seq, root, 0, 0, 0);
        return Vouchers.voucherDigest(Vouchers.domain(), voucher, model);
    }

    // --- Parts ---

    function _register(Delegation calldata delegation, bytes calldata signature) private {
        uint256 jobId = delegation.jobId;
        DelegationFault fault = _delegationFault(delegation, signature);
        if (fault != DelegationFault.None) revert DelegationRefused(jobId, fault);
        Session storage session = _sessions[jobId];
        uint256 affordable = _affordable(session.deposit, session.pricePerToken);
        VoucherState storage state = voucherState[jobId];
        state.sessionKey = delegation.sessionKey;
        state.limit = uint64(delegation.cap < affordable ? delegation.cap : affordable);
        state.deadline = _deadline(delegation);
        state.model = delegation.model;
        emit DelegationRegistered(
            jobId, delegation.sessionKey, delegation.model, delegation.cap, delegation.expiry
        );
    }

    function _delegationFault(Delegation calldata delegation, bytes calldata signature)
        private
        view
        returns (DelegationFault)
    {
        Session storage session = _sessions[delegation.jobId];
        if (session.status != SessionStatus.Active) return DelegationFault.SessionNotActive;
        if (msg.sender != session.host) return DelegationFault.NotHost;
        if (!session.vouchers) return DelegationFault.NotVoucherSession;
        if (delegation.host != session.host) return DelegationFault.WrongHost;
        if (delegation.price != session.pricePerToken) return DelegationFault.WrongPrice;
        // A host with the key would sign for itself.
        if (delegation.sessionKey == address(0) || delegation.sessionKey == session.host) {
            return DelegationFault.InvalidKey;
        }
        uint32 deadline = _deadline(delegation);
        if (block.timestamp > deadline) return DelegationFault.Expired;
        if (deadline <= voucherState[delegation.jobId].deadline) return DelegationFault.NotLater;
        bytes32 digest = Vouchers.delegationDigest(Vouchers.domain(), delegation);
        if (!Vouchers.isSignedBy(session.depositor, digest, signature)) {
            return DelegationFault.WrongSigner;
        }
        return DelegationFault.None;
    }

    function _deadline(Delegation calldata delegation) private pure returns (uint32) {
        uint256 deadline = uint256(delegation.expiry) + CLAIM_GRACE;
        return deadline < type(uint32).max ? uint32(deadline) : type(uint32).max;
    }

    function _claimOrRevert(SignedVoucher memory voucher) private {
        VoucherFault fault = _claim(Vouchers.domain(), voucher);
        if (fault != VoucherFault.None) revert VoucherRefused(voucher.jobId, fault);
    }

    /// @dev Pays a voucher, or names the first rule that it breaks and changes nothing. It calls
    /// no other contract, so that nobody can hold up a batch.
    function _claim(bytes32 domain, SignedVoucher memory voucher)
        private
        returns (VoucherFault)
    {
        (uint256 jobId, uint64 cumTokens) = (voucher.jobId, voucher.cumTokens);
        VoucherState storage kept = voucherState[jobId];
        VoucherState memory state = kept;
        if (state.host != msg.sender) return _hostFault(jobId);
        if (state.sessionKey == address(0)) return VoucherFault.NoDelegation;
        if (block.timestamp > state.deadline) return VoucherFault.Expired;
        if (cumTokens <= state.paidTokens) return VoucherFault.AlreadyPaid;
        uint256 tokensClaimed = cumTokens - state.paidTokens;
        if (tokensClaimed < MIN_PROVEN_TOKENS) return VoucherFault.BelowMinimum;
        if (cumTokens > state.limit) return _limitFault(jobId, cumTokens);
        if (!Vouchers.isWellFormed(voucher.s, voucher.v)) return VoucherFault.MalformedSignature;
        bytes32 digest = Vouchers.voucherDigest(domain, voucher, state.model);
        // A signature of nobody recovers to zero, which is no session key.
        if (ecrecover(digest, voucher.v, voucher.r, voucher.s) != state.sessionKey) {
            return VoucherFault.WrongSigner;
        }
        _keep(kept, cumTokens);
        emit ProofSubmitted(jobId, msg.sender, tokensClaimed, voucher.root);
        return VoucherFault.None;
    }

    /// @dev Sets `paidTokens` and `lastClaimTime`; the host is the caller. One store, where two
    /// assignments would read and write the word twice: 350 gas of a batch's 20,000.
    function _keep(VoucherState storage kept, uint64 cumTokens) private {
        uint256 word = uint256(uint160(msg.sender)) | uint256(cumTokens) << 160
            | uint256(uint32(block.timestamp)) << 224;
        assembly ("memory-safe") {
            sstore(kept.slot, word)
        }
    }

    /// @dev Why the caller may not claim from the session.
    function _hostFault(uint256 jobId) private view returns (VoucherFault) {
        Session storage session = _sessions[jobId];
        if (session.status != SessionStatus.Active) return VoucherFault.SessionNotActive;
        if (session.host != msg.sender) return VoucherFault.NotHost;
        return VoucherFault.NotVoucherSession;
    }

    /// @dev Which of the two bounds a voucher exceeds; the deposit where it is both.
    function _limitFault(uint256 jobId, uint256 cumTokens) private view returns (VoucherFault) {
        Session storage session = _sessions[jobId];
        return cumTokens > _affordable(session.deposit, session.pricePerToken)
            ? VoucherFault.AboveDeposit
            : VoucherFault.AboveCap;
    }
}
