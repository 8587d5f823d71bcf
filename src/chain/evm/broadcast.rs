//! What an endpoint's answer to `eth_sendRawTransaction` means.
//!
//! Never takes an unfamiliar refusal for a final one: words that are not in the table are
//! `Unknown`, and the same bytes are sent again. Relies on the words of geth, erigon, nethermind,
//! besu, reth and anvil; codes differ too much between them to decide on.

use super::rpc::{RpcFailure, shortened};
use crate::chain::Broadcast;
use crate::units::TxHash;

/// Words of a pool that holds this very transaction already.
const ALREADY_KNOWN: [&str; 7] = [
    "already known",
    "already imported",
    "alreadyknown",
    "known transaction",
    "already in mempool",
    "already exists in pool",
    "already in the pool",
];

/// Words of a chain that is past this nonce.
const NONCE_USED: [&str; 5] =
    ["nonce too low", "nonce_too_low", "oldnonce", "nonce is too low", "nonce below current nonce"];

/// Words of a pool that wants more money, to enter or to replace.
const UNDERPRICED: [&str; 12] = [
    "underpriced",
    "feetoolow",
    "fee too low",
    "fees too low",
    "gas price too low",
    "gas price below",
    "below the minimum",
    "less than block base fee",
    "lower than the block base fee",
    "below base fee",
    "replacementnotallowed",
    "could not replace existing",
];

/// Words of a refusal that the same bytes will meet again, for as long as nobody acts.
const REJECTED: [&str; 25] = [
    "insufficient funds",
    "insufficientfunds",
    "insufficient balance",
    "upfront cost exceeds",
    "intrinsic gas too low",
    "gas limit too low",
    "exceeds block gas limit",
    "exceeds the block gas limit",
    "exceeds block limit",
    "gaslimitexceeded",
    "gas limit too high",
    "transaction gas limit",
    "oversized data",
    "invalid sender",
    "invalid signature",
    "invalid chain id",
    "invalidchainid",
    "incorrect chain id",
    "chain id mismatch",
    "type not supported",
    "exceeds the configured cap",
    "max initcode size",
    "priority fee per gas higher than max fee",
    "rlp: ",
    "invalid rlp",
];

/// Reads the endpoint's answer for the transaction `ours`.
pub(super) fn classify(ours: TxHash, answer: Result<TxHash, RpcFailure>) -> Broadcast {
    match answer {
        Ok(hash) if hash == ours => Broadcast::Accepted,
        Ok(hash) => Broadcast::Unknown(format!("endpoint answers {hash} to {ours}")),
        Err(RpcFailure::Silent(words) | RpcFailure::Nonsense(words)) => Broadcast::Unknown(words),
        Err(RpcFailure::Refused(refusal)) => {
            let lower = refusal.message.to_lowercase();
            // Some put the pool's words into `data` or behind a prefix; contains() finds both.
            let says = |table: &[&str]| table.iter().any(|words| lower.contains(words));
            if says(&ALREADY_KNOWN) {
                Broadcast::AlreadyKnown
            } else if says(&NONCE_USED) {
                Broadcast::NonceUsed
            } else if says(&UNDERPRICED) {
                Broadcast::Underpriced
            } else if says(&REJECTED) {
                Broadcast::Rejected(shortened(&refusal.message))
            } else {
                Broadcast::Unknown(refusal.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::evm::rpc::Refusal;

    const OURS: TxHash = TxHash::new([1; 32]);

    fn refused(message: &str) -> Broadcast {
        let refusal = Refusal { code: -32000, message: message.into(), data: None };
        classify(OURS, Err(RpcFailure::Refused(refusal)))
    }

    #[test]
    fn every_clients_words_mean_the_same_thing() {
        let known = [
            "already known",                                            // geth, reth
            "transaction already imported",                             // anvil
            "AlreadyKnown",                                             // nethermind
            "Known transaction",                                        // besu
            "INTERNAL_ERROR: existing tx with same hash already known", // erigon
        ];
        for words in known {
            assert_eq!(refused(words), Broadcast::AlreadyKnown, "{words}");
        }
        let used = [
            "nonce too low",
            "nonce too low: next nonce 8, tx nonce 7",
            "INTERNAL_ERROR: nonce too low",
            "OldNonce, Current nonce: 8, nonce of rejected tx: 7",
            "Nonce too low",
            "NONCE_TOO_LOW",
        ];
        for words in used {
            assert_eq!(refused(words), Broadcast::NonceUsed, "{words}");
        }
        let underpriced = [
            "replacement transaction underpriced",
            "transaction underpriced",
            "transaction underpriced: tip needed 1000000, tip permitted 1",
            "max fee per gas less than block base fee",
            "max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1, baseFee: 7",
            "INTERNAL_ERROR: could not replace existing tx",
            "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 7",
            "ReplacementNotAllowed",
            "Gas price below configured minimum gas price",
        ];
        for words in underpriced {
            assert_eq!(refused(words), Broadcast::Underpriced, "{words}");
        }
    }

    #[test]
    fn a_final_refusal_keeps_its_words() {
        let rejected = [
            "insufficient funds for gas * price + value: balance 0, tx cost 21000",
            "Insufficient funds for gas * price + value",
            "InsufficientFunds, Account balance: 0, cumulative cost: 21000",
            "Upfront cost exceeds account balance",
            "intrinsic gas too low: gas 20000, minimum needed 21000",
            "exceeds block gas limit",
            "oversized data: transaction size 140000, limit 131072",
            "invalid sender",
            "invalid chain id for signer: have 1 want 31337",
            "tx fee (1.50 ether) exceeds the configured cap (1.00 ether)",
            "max priority fee per gas higher than max fee per gas",
        ];
        for words in rejected {
            assert_eq!(refused(words), Broadcast::Rejected(words.into()));
        }
    }

    #[test]
    fn what_says_nothing_for_sure_is_unknown() {
        let unclear = [
            "",
            "internal error",
            "rate limit exceeded",
            "txpool is full",
            "nonce too high",
            "invalid nonce; got 9, expected 7",
            "failed to get chain id",
            "request timed out",
            "context deadline exceeded",
            "header not found",
            "the method eth_sendRawTransaction does not exist/is not available",
            "execution aborted (timeout = 5s)",
        ];
        for words in unclear {
            assert!(matches!(refused(words), Broadcast::Unknown(_)), "{words}");
        }
        let silent = classify(OURS, Err(RpcFailure::Silent("timed out".into())));
        assert_eq!(silent, Broadcast::Unknown("timed out".into()));
        let nonsense = classify(OURS, Err(RpcFailure::Nonsense("a number".into())));
        assert!(matches!(nonsense, Broadcast::Unknown(_)));
        assert!(matches!(classify(OURS, Ok(TxHash::new([2; 32]))), Broadcast::Unknown(_)));
        assert_eq!(classify(OURS, Ok(OURS)), Broadcast::Accepted);
    }
}
