// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @dev What the requester's wallet signs once: `sessionKey` may sign for it what `host` is paid
/// for session `jobId`, up to `cap` tokens in all (a running total), until `expiry` (Unix seconds).
/// `model` is the modelSpec of docs/spec/proof.md, `price` the session's price per token.
struct Delegation {
    uint256 jobId;
    address sessionKey;
    address host;
    bytes32 model;
    uint256 price;
    uint64 cap;
    uint64 expiry;
}

/// @dev What the session key signs, with its signature: `cumTokens` is a running total, `root` the
/// root of the transcript up to there, `seq` its number. Seven words and no offsets: of a batch
/// most of what a caller can save is here.
struct SignedVoucher {
    uint256 jobId;
    uint64 cumTokens;
    uint32 seq;
    bytes32 root;
    bytes32 r;
    bytes32 s;
    uint8 v;
}

/// @dev What the contract keeps of a voucher session: three words, of which a claim writes one.
/// `host` is who may claim, zero before the opening and after the end. `sessionKey` is zero until a
/// delegation is registered; `limit` is the lower of its cap and what the deposit buys, `deadline`
/// the last second of a claim. Times hold until 2106.
struct VoucherState {
    address host;
    uint64 paidTokens;
    uint32 lastClaimTime;
    address sessionKey;
    uint64 limit;
    uint32 deadline;
    bytes32 model;
}

/// @dev Why a voucher is refused, in the order in which it is tested. The numbers are part of the
/// interface.
enum VoucherFault {
    None,
    SessionNotActive,
    NotHost,
    NotVoucherSession,
    NoDelegation,
    Expired,
    AlreadyPaid,
    BelowMinimum,
    AboveCap,
    AboveDeposit,
    MalformedSignature,
    WrongSigner
}

/// @dev Why a delegation is refused, in the order in which it is tested. The numbers are part of
/// the interface.
enum DelegationFault {
    None,
    SessionNotActive,
    NotHost,
    NotVoucherSession,
    WrongHost,
    WrongPrice,
    InvalidKey,
    Expired,
    NotLater,
    WrongSigner
}

/// @notice The answer of a wallet that is a contract (EIP-1271).
interface IContractWallet {
    function isValidSignature(bytes32 digest, bytes calldata signature)
        external
        view
        returns (bytes4);
}

/// @title What is hashed and who signed it (EIP-712)
/// @notice docs/spec/proof.md, "Vouchers". It must never accept a second form of a signature: what
/// counts is 65 bytes, v 27 or 28, s in the lower half of the order.
library Vouchers {
    bytes32 private constant DOMAIN_TYPE = keccak256(
        "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    );
    bytes32 private constant DELEGATION_TYPE = keccak256(
        "Delegation(uint256 jobId,address sessionKey,address host,bytes32 model,uint256 price,"
        "uint64 cap,uint64 expiry)"
    );
    bytes32 private constant VOUCHER_TYPE =
        keccak256("Voucher(uint256 jobId,uint64 cumTokens,uint32 seq,bytes32 root,bytes32 model)");
    bytes32 private constant NAME = keccak256("Tally");
    bytes32 private constant VERSION = keccak256("1");

    uint256 private constant SIGNATURE_BYTES = 65;
    /// @dev Half the order of secp256k1. Above it, a signature is the twin of another one.
    uint256 private constant HALF_ORDER =
        0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    /// @dev Asked anew each time, so that a fork of the chain gets a domain of its own.
    function domain() internal view returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPE, NAME, VERSION, block.chainid, address(this)));
    }

    function delegationDigest(bytes32 domain_, Delegation calldata delegation)
        internal
        pure
        returns (bytes32)
    {
        // The fields are words in the order of the type, so the struct encodes as they do.
        return _digest(domain_, keccak256(abi.encode(DELEGATION_TYPE, delegation)));
    }

    function voucherDigest(bytes32 domain_, SignedVoucher memory voucher, bytes32 model)
        internal
        pure
        returns (bytes32)
    {
        return _digest(
            domain_,
            keccak256(
                abi.encode(
                    VOUCHER_TYPE,
                    voucher.jobId,
                    voucher.cumTokens,
                    voucher.seq,
                    voucher.root,
                    model
                )
            )
        );
    }

    /// @dev The parts of 65 bytes; of any other number v = 0, which is no signature.
    function split(bytes calldata signature)
        internal
        pure
        returns (bytes32 r, bytes32 s, uint8 v)
    {
        if (signature.length != SIGNATURE_BYTES) return (0, 0, 0);
        return (bytes32(signature[:32]), bytes32(signature[32:64]), uint8(signature[64]));
    }

    /// @dev Whether a signature has the one form that counts. Whose it is, `ecrecover` says, with
    /// zero for nobody.
    function isWellFormed(bytes32 s, uint8 v) internal pure returns (bool) {
        return (v == 27 || v == 28) && uint256(s) <= HALF_ORDER;
    }

    /// @dev Whether an account signed: by its key, or, where it has code, by its own word. An
    /// account with code may still have a key (EIP-7702), so the key is asked first.
    function isSignedBy(address account, bytes32 digest, bytes calldata signature)
        internal
        view
        returns (bool)
    {
        (bytes32 r, bytes32 s, uint8 v) = split(signature);
        // An account is never zero, so a signature of nobody is not its.
        if (isWellFormed(s, v) && ecrecover(digest, v, r, s) == account) return true;
        if (account.code.length == 0) return false;
        (bool ok, bytes memory answer) = account.staticcall(
            abi.encodeCall(IContractWallet.isValidSignature, (digest, signature))
        );
        return ok && answer.length >= 32
            && bytes32(answer) == bytes32(IContractWallet.isValidSignature.selector);
    }

    function _digest(bytes32 domain_, bytes32 structHash) private pure returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", domain_, structHash));
    }
}
