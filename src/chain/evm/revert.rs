//! The words of a revert, for logs.
//!
//! Never a basis for decisions: words change between versions and some reverts have none. Relies
//! on Solidity's two standard errors.

use alloy::sol_types::{Panic, Revert, SolError};

use super::rpc::{Refusal, shortened};

/// JSON-RPC code of "execution reverted" with data (geth's, taken over by most).
const CODE_REVERTED: i64 = 3;

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
    match data.first_chunk::<4>() {
        Some(selector) => Some(format!("custom error 0x{}", hex::encode(selector))),
        None => Some(shortened(&refusal.message)),
    }
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
        let table = [
            (refusal(3, "execution reverted", Some(reason.clone())), Some("Exceeds deposit")),
            (refusal(-32000, "VM execution error.", Some(reason)), Some("Exceeds deposit")),
            (refusal(3, "execution reverted", None), Some("execution reverted")),
            (refusal(3, "x", Some(vec![1, 2, 3, 4, 5])), Some("custom error 0x01020304")),
            (refusal(-32005, "rate limited", None), None),
            (refusal(-32000, "insufficient funds for transfer", None), None),
        ];
        for (refusal, expected) in table {
            assert_eq!(words(&refusal).as_deref(), expected, "{refusal:?}");
        }
    }
}
