// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @dev How a session stands. The numbers are part of the interface (docs/spec/contract.md,
/// section 1); v3a, v3 and v4 know three more that nothing here ever sets.
enum SessionStatus {
    Active,
    Completed,
    TimedOut
}

/// @dev A session with the fields of all versions. Each version's `sessionJobs` shows those that it
/// has, in its order; a field that a version lacks is never written and costs no gas. `vouchers`
/// stands beside the status, in its slot, so that a plain claim reads nothing more for it.
struct Session {
    uint256 id;
    address depositor;
    address host;
    address paymentToken;
    uint256 deposit;
    uint256 pricePerToken;
    uint256 tokensUsed;
    uint256 maxDuration;
    uint256 startTime;
    uint256 lastProofTime;
    uint256 proofInterval;
    uint256 proofTimeoutWindow;
    SessionStatus status;
    bool vouchers;
    uint256 withdrawnByHost;
    uint256 refundedToUser;
    string conversationCID;
    bytes32 lastProofHash;
    string lastProofCID;
}

/// @dev What a depositor chooses at creation, in one value so that all ways to open a session share
/// one check. Token 0x0 is the native coin.
struct Terms {
    address depositor;
    address host;
    address token;
    uint256 deposit;
    uint256 pricePerToken;
    uint256 maxDuration;
    uint256 proofInterval;
}

/// @dev What a marketplace is constructed with: seven words, the same for every version.
/// `nodeRegistry`: read by clients, and by v5 to v7. `hostEarnings` has to authorise the
/// marketplace before the first settlement. `proofSystem`: see rule 8. `treasury` receives the
/// fees. `feeBasisPoints`: 0…10000. `disputeWindow`: seconds from a session's start.
/// `minDeposit`: wei, not zero.
struct Wiring {
    address nodeRegistry;
    address payable hostEarnings;
    address proofSystem;
    address treasury;
    uint256 feeBasisPoints;
    uint256 disputeWindow;
    uint256 minDeposit;
}

/// @dev How a settlement divided a deposit: payment = fee + earned, deposit = payment + refund.
struct Division {
    uint256 payment;
    uint256 earned;
    uint256 refund;
}
