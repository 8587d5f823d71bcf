//! Call data of `submitProofOfWork`, by version.
//!
//! Never decides what is claimed. From v4 on a proof is taken apart: its first word is
//! `proofHash`, the rest stands in `proofCID` ([`content`]), and `deltaCID` is empty. Relies on
//! docs/spec/contract.md section 2 (rule 4) and docs/spec/proof.md ("Proof bytes").

use alloy::primitives::{B256, Bytes, U256, eip191_hash_message, keccak256};
use alloy::sol_types::SolCall;

use super::content;
use crate::chain::evm::bindings::{v3, v4, v5, v6, v7};
use crate::chain::evm::version::ContractVersion;
use crate::chain::evm::wire::hash_of;
use crate::chain::{PrepareError, Wallet};
use crate::units::{JobId, TokenCount};

/// What is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain::evm) struct Claim<'a> {
    /// The job.
    pub job: JobId,
    /// The delta.
    pub tokens: TokenCount,
    /// The proof bytes.
    pub proof: &'a [u8],
}

/// The call data. Contracts between v4 and v7 check the hash and, of v5 and v6, the signature.
///
/// # Errors
/// [`PrepareError`]: no first word, or no signature.
pub(super) fn encode(
    version: ContractVersion,
    claim: &Claim<'_>,
    wallet: &dyn Wallet,
) -> Result<Vec<u8>, PrepareError> {
    use ContractVersion as V;
    let job = U256::from(claim.job.get());
    let tokens = U256::from(claim.tokens.get());
    let split = || Split::of(claim);
    Ok(match version {
        V::V3a | V::V3 => {
            let proof = Bytes::copy_from_slice(claim.proof);
            v3::submitProofOfWorkCall { jobId: job, tokensClaimed: tokens, proof }.abi_encode()
        }
        V::V4 => split()?.v4(job, tokens).abi_encode(),
        V::V5 => {
            let split = split()?;
            let signature = sign(split.word, tokens, wallet)?;
            split.v5(job, tokens, signature).abi_encode()
        }
        V::V6 => {
            let split = split()?;
            let signature = sign(split.word, tokens, wallet)?;
            split.v6(job, tokens, signature).abi_encode()
        }
        V::V7 => split()?.v7(job, tokens).abi_encode(),
    })
}

/// The proof bytes of call data, put together again where a version takes them apart; `None` for
/// another call, and for a content id that does not hold its content.
pub(super) fn decode(version: ContractVersion, input: &[u8]) -> Option<Vec<u8>> {
    use ContractVersion as V;
    let whole = |word: B256, rest: &str| Some([&word[..], &content::read(rest)?].concat());
    match version {
        V::V3a | V::V3 => Some(v3::submitProofOfWorkCall::abi_decode(input).ok()?.proof.to_vec()),
        V::V4 => {
            let call = v4::submitProofOfWorkCall::abi_decode(input).ok()?;
            whole(call.proofHash, &call.proofCID)
        }
        V::V5 => {
            let call = v5::submitProofOfWorkCall::abi_decode(input).ok()?;
            whole(call.proofHash, &call.proofCID)
        }
        V::V6 => {
            let call = v6::submitProofOfWorkCall::abi_decode(input).ok()?;
            whole(call.proofHash, &call.proofCID)
        }
        V::V7 => {
            let call = v7::submitProofOfWorkCall::abi_decode(input).ok()?;
            whole(call.proofHash, &call.proofCID)
        }
    }
}

/// A proof in two parts, which together are the whole of it.
struct Split {
    /// Its first 32 bytes.
    word: B256,
    /// The others, as a content id.
    rest: String,
}

impl Split {
    fn of(claim: &Claim<'_>) -> Result<Self, PrepareError> {
        let Some((word, rest)) = claim.proof.split_first_chunk::<32>() else {
            let (job, bytes) = (claim.job, claim.proof.len());
            return Err(PrepareError(format!("job {job}: a proof of {bytes} bytes has no word")));
        };
        Ok(Self { word: B256::new(*word), rest: content::inline(rest) })
    }

    fn v4(self, job: U256, tokens: U256) -> v4::submitProofOfWorkCall {
        v4::submitProofOfWorkCall {
            jobId: job,
            tokensClaimed: tokens,
            proofHash: self.word,
            proofCID: self.rest,
        }
    }

    fn v5(self, job: U256, tokens: U256, signature: Bytes) -> v5::submitProofOfWorkCall {
        v5::submitProofOfWorkCall {
            jobId: job,
            tokensClaimed: tokens,
            proofHash: self.word,
            signature,
            proofCID: self.rest,
        }
    }

    fn v6(self, job: U256, tokens: U256, signature: Bytes) -> v6::submitProofOfWorkCall {
        v6::submitProofOfWorkCall {
            jobId: job,
            tokensClaimed: tokens,
            proofHash: self.word,
            signature,
            proofCID: self.rest,
            deltaCID: String::new(),
        }
    }

    fn v7(self, job: U256, tokens: U256) -> v7::submitProofOfWorkCall {
        v7::submitProofOfWorkCall {
            jobId: job,
            tokensClaimed: tokens,
            proofHash: self.word,
            proofCID: self.rest,
            deltaCID: String::new(),
        }
    }
}

/// Rule 4: an EIP-191 personal signature over keccak256(proofHash | host | tokensClaimed), packed.
/// Deterministic, as RFC 6979 has it.
fn sign(word: B256, tokens: U256, wallet: &dyn Wallet) -> Result<Bytes, PrepareError> {
    let host = wallet.address();
    let tokens = tokens.to_be_bytes::<32>();
    let packed = keccak256([&word[..], host.bytes(), &tokens].concat());
    let signature = wallet.sign_digest(hash_of(eip191_hash_message(packed)))?;
    Ok(Bytes::copy_from_slice(signature.bytes()))
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::chain::evm::EvmWallet;

    /// The first of anvil's well-known accounts, 0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266.
    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    /// What ethers v6 signs for that key, 32 bytes of 0xab and 120 tokens: `signMessage` over the
    /// bytes of `solidityPackedKeccak256(["bytes32", "address", "uint256"], …)`.
    const SIGNATURE: &str = "522db45e73a1488bb908152e586cae460bdda0e872e0d36742f0a43ee2321e3810\
        9193718531955f6965cbf80e9a958f392d706e0867a548382b69c14411e6461b";

    /// 32 bytes of 0xab, then 33 of 0x01.
    fn proof() -> Vec<u8> {
        [[0xab; 32].to_vec(), vec![1; 33]].concat()
    }

    /// `proof()`'s rest as a content id: 51 characters (Python's base64, multiformats' tables).
    const CONTENT: &str = "uAVUAIQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ";

    fn encoded(version: ContractVersion, proof: &[u8]) -> Result<Vec<u8>, PrepareError> {
        let wallet = EvmWallet::from_key(&SecretString::from(KEY)).unwrap();
        let claim = Claim { job: JobId::new(7).unwrap(), tokens: TokenCount::new(120), proof };
        encode(version, &claim, &wallet)
    }

    fn number(value: usize) -> String {
        format!("{value:064x}")
    }

    /// Length and bytes, padded to words with zeros.
    fn bytes(hex_digits: &str) -> String {
        let words = hex_digits.len().div_ceil(64);
        format!("{}{hex_digits:0<width$}", number(hex_digits.len() / 2), width = words * 64)
    }

    #[test]
    fn a_claim_is_its_selector_the_delta_and_the_proof_word_by_word() {
        use ContractVersion as V;
        let word = "ab".repeat(32);
        let (whole, cid) = (bytes(&hex::encode(proof())), bytes(&hex::encode(CONTENT)));
        assert_eq!(CONTENT.len(), 51, "two words, and one of length");
        let signature = bytes(SIGNATURE); // 65 bytes: three words, and one of length.
        let head = format!("{} {}", number(7), number(120));
        let (head_hash, none) = (format!("{head} {word}"), number(0));
        let at = |words: usize| number(words * 32);
        let (three, four, five, six) = (at(3), at(4), at(5), at(6));
        let table = [
            (V::V3a, format!("c8c664ee {head} {three} {whole}")),
            (V::V3, format!("c8c664ee {head} {three} {whole}")),
            (V::V4, format!("ace083b3 {head_hash} {four} {cid}")),
            (V::V5, format!("8dbe53aa {head_hash} {five} {} {signature} {cid}", at(9))),
            (
                V::V6,
                format!(
                    "3338f1e5 {head_hash} {six} {} {} {signature} {cid} {none}",
                    at(10),
                    at(13)
                ),
            ),
            (V::V7, format!("7c5cb561 {head_hash} {five} {} {cid} {none}", at(8))),
        ];
        for (version, words) in table {
            let found = hex::encode(encoded(version, &proof()).unwrap());
            assert_eq!(found, words.replace(' ', ""), "{version}");
        }
    }

    #[test]
    fn the_same_claim_gives_the_same_bytes() {
        for version in ContractVersion::ALL {
            assert_eq!(encoded(version, &proof()), encoded(version, &proof()), "{version}");
        }
    }

    #[test]
    fn a_proof_without_a_first_word_is_refused_where_the_word_is_an_argument() {
        use ContractVersion as V;
        for version in [V::V4, V::V5, V::V6, V::V7] {
            assert!(encoded(version, &[1; 31]).is_err(), "{version}");
            assert!(encoded(version, &[1; 32]).is_ok(), "{version}");
        }
    }

    #[test]
    fn what_was_sent_is_read_back_on_every_version() {
        let wallet = EvmWallet::from_key(&SecretString::from(KEY)).unwrap();
        let (job, tokens) = (JobId::new(7).unwrap(), TokenCount::new(120));
        let whole: Vec<u8> = (0..145).collect();
        for version in ContractVersion::ALL {
            let claim = Claim { job, tokens, proof: &whole };
            let input = encode(version, &claim, &wallet).unwrap();
            assert_eq!(decode(version, &input), Some(whole.clone()), "{version}");
            assert_eq!(decode(version, &input[1..]), None, "{version}");
            assert_eq!(decode(version, &input[..40]), None, "{version}");
        }
    }
}
