//! The words of a revert, for logs.
//!
//! Never a basis for decisions: words change between versions and some reverts have none. Relies
//! on Solidity's two standard errors, and knows by name the custom ones that a claim or a
//! completion may meet from v5 on (docs/spec/contract.md section 2).

use alloy::primitives::keccak256;
use alloy::sol_types::{Panic, Revert, SolError};

use super::rpc::{Refusal, shortened};

/// JSON-RPC code of "execution reverted" with data (geth's, taken over by most).
const CODE_REVERTED: i64 = 3;

/// Custom errors: those of the common contract library, which later versions inherit, and those of
/// v7 (its marketplace's, and our stand-in's). Any other is shown by its selector.
const CUSTOM: [&str; 14] = [
    "EnforcedPause()",
    "ExpectedPause()",
    "ReentrancyGuardReentrantCall()",
    "OwnableUnauthorizedAccount(address)",
    "AddressInsufficientBalance(address)",
    "AddressEmptyCode(address)",
    "FailedInnerCall()",
    "FailedCall()",
    "SafeERC20FailedOperation(address)",
    "ERC20InsufficientBalance(address,uint256,uint256)",
    "ERC20InsufficientAllowance(address,uint256,uint256)",
    "ProofAlreadyUsed(bytes32)",
    "ModelNotApproved(bytes32)",
    "ModelNotSupported(address,bytes32)",
];

/// The revert's words, where the refusal is one; `None` where the endpoint refused for a reason of
/// its own.
pub(super) fn words(refusal: &Refusal) -> Option<String> {
    let lower = refusal.message.to_lowercase();
    let causes = ["revert", "vm execution error", "invalid opcode", "out of gas", "outofgas"];
    if refusal.code != CODE_REVERTED && !causes.iter().any(|cause| lower.contains(cause)) {
        return None;
    }
    let data: &[u8] = refusal.data.as_ref().map_or(&[], |data| data);
    if let Ok(revert) = Revert::abi_decode(data) {
        return Some(shortened(&revert.reason));
    }
    if let Ok(panic) = Panic::abi_decode(data) {
        return Some(format!("panic {:#x}", panic.code));
    }
    match data.split_first_chunk::<4>() {
        Some((selector, arguments)) => Some(custom(*selector, arguments)),
        None => Some(shortened(&refusal.message)),
    }
}

/// A custom error: its name and, as they stand, the words it carries.
fn custom(selector: [u8; 4], arguments: &[u8]) -> String {
    let is_it = |signature: &&str| keccak256(signature).starts_with(&selector);
    let Some(signature) = CUSTOM.into_iter().find(is_it) else {
        return format!("custom error 0x{}", hex::encode(selector));
    };
    let name = signature.split('(').next().unwrap_or(signature);
    let words = arguments.chunks(32).map(|word| format!("0x{}", hex::encode(word)));
    shortened(&format!("{name}({})", words.collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: i64, message: &str, data: Option<Vec<u8>>) -> Refusal {
        Refusal { code, message: message.into(), data: data.map(Into::into) }
    }

    #[test]
    fn a_reverts_words_come_from_its_data_and_else_from_the_message() {
        let reason = Revert::from("Exceeds deposit").abi_encode();
        let used = [&[0x4a, 0xe5, 0x50, 0x5e][..], &[0xab; 32]].concat();
        let used_words = format!("ProofAlreadyUsed(0x{})", "ab".repeat(32));
        let table = [
            (refusal(3, "execution reverted", Some(reason.clone())), Some("Exceeds deposit")),
            (refusal(-32000, "VM execution error.", Some(reason)), Some("Exceeds deposit")),
            (refusal(3, "execution reverted", None), Some("execution reverted")),
            (refusal(3, "x", Some(vec![1, 2, 3, 4, 5])), Some("custom error 0x01020304")),
            // Selectors as other tools print them.
            (refusal(3, "x", Some(vec![0xd9, 0x3c, 0x06, 0x65])), Some("EnforcedPause()")),
            (refusal(3, "x", Some(used)), Some(&used_words)),
            (refusal(-32005, "rate limited", None), None),
            (refusal(-32000, "insufficient funds for transfer", None), None),
        ];
        for (refusal, expected) in table {
            assert_eq!(words(&refusal).as_deref(), expected, "{refusal:?}");
        }
    }
}
