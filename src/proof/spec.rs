//! The digests in a turn's header, and the header's own hash.
//!
//! Never hashes variable-length fields without their lengths. Layouts: docs/spec/proof.md.

use super::preimage::{Preimage, count, keccak256};
use crate::billing::{Decode, TurnHeader};
use crate::units::{Hash32, JobId, TurnNo};

const TAG_TURN: u8 = 0x01;

/// [`decode_spec`]'s encoding, its first byte, where nothing of version 2 is in use.
const DECODE_PLAIN: u8 = 1;
/// The encoding with frequency and presence penalty, logit bias and flags.
const DECODE_BIASED: u8 = 2;
/// Flag of version 2: no id that ends the text is drawn.
const FLAG_IGNORE_EOS: u32 = 1;

/// Hash of a turn's header; `prev` is that of the turn before it in the ledger, zero for none.
#[must_use]
pub fn turn_hash(job: JobId, header: &TurnHeader, prev: Hash32) -> Hash32 {
    Preimage::tagged(TAG_TURN)
        .job(job)
        .u32(header.turn.get())
        .hash(header.model_spec)
        .hash(header.tokenizer_spec)
        .hash(header.decode_spec)
        .u32(header.engine_spec)
        .hash(header.seed)
        .u32(count(header.prompt_ids.len()))
        .hash(Preimage::new().ids(&header.prompt_ids).finish())
        .hash(prev)
        .finish()
}

/// `decodeSpec`: version byte, then the fields of version 1 (docs/spec/proof.md); floats by their
/// bits (a negative zero as zero), stop strings counted and each preceded by its length in bytes.
///
/// Version 2 goes on with the penalties of generated tokens and the biases, counted, ids
/// ascending, and with the flags, where one is set. It is used only where one of them isn't zero,
/// so that equal ways to choose tokens have equal digests, those recorded before version 2
/// included.
#[must_use]
pub fn decode_spec(spec: &Decode) -> Hash32 {
    let biases: Vec<(u32, f32)> = spec
        .logit_bias
        .iter()
        .map(|(id, bias)| (*id, *bias))
        .filter(|(_, bias)| *bias != 0.0)
        .collect();
    let is_plain = spec.frequency_penalty == 0.0
        && spec.presence_penalty == 0.0
        && biases.is_empty()
        && !spec.ignore_eos;
    let preimage = Preimage::tagged(if is_plain { DECODE_PLAIN } else { DECODE_BIASED })
        .u32(float_bits(spec.temperature))
        .u32(spec.top_k)
        .u32(float_bits(spec.top_p))
        .u32(float_bits(spec.min_p))
        .u32(float_bits(spec.repetition_penalty))
        .u32(spec.max_tokens)
        .u32(count(spec.stop.len()));
    let preimage = spec.stop.iter().fold(preimage, |preimage, stop| preimage.text(stop));
    if is_plain {
        return preimage.finish();
    }
    let preimage = preimage
        .u32(float_bits(spec.frequency_penalty))
        .u32(float_bits(spec.presence_penalty))
        .u32(count(biases.len()));
    let one = |preimage: Preimage, (id, bias)| preimage.u32(id).u32(float_bits(bias));
    let preimage = biases.into_iter().fold(preimage, one);
    if spec.ignore_eos { preimage.u32(FLAG_IGNORE_EOS).finish() } else { preimage.finish() }
}

/// `modelSpec`: SHA-256 of the weight file, then its quantisation and architecture as text, each
/// preceded by its length in bytes.
#[must_use]
pub fn model_spec(weights_sha256: Hash32, quantisation: &str, architecture: &str) -> Hash32 {
    Preimage::new().hash(weights_sha256).text(quantisation).text(architecture).finish()
}

/// `tokenizerSpec`: keccak256 of the SHA-256 of the file that the tokenizer stands in (a GGUF file
/// itself), which fixes every byte of its definition.
#[must_use]
pub fn tokenizer_spec(file_sha256: Hash32) -> Hash32 {
    keccak256(file_sha256.bytes())
}

/// The seed derived from both sides' nonces, which neither side can choose alone.
#[must_use]
pub fn seed(host_nonce: Hash32, user_nonce: Hash32, turn: TurnNo) -> Hash32 {
    Preimage::new().hash(host_nonce).hash(user_nonce).u32(turn.get()).finish()
}

/// What stands for the user's nonce where the client sent none: the host cannot choose it, but who
/// knows the prompt can.
#[must_use]
pub fn derived_user_nonce(prompt_ids: &[u32]) -> Hash32 {
    Preimage::new().ids(prompt_ids).finish()
}

/// A client's own number as a seed: 32 bytes, big-endian.
#[must_use]
pub fn seed_from_client(number: u64) -> Hash32 {
    let mut word = [0; 32];
    for (to, from) in word.iter_mut().rev().zip(number.to_be_bytes().iter().rev()) {
        *to = *from;
    }
    Hash32::new(word)
}

fn float_bits(value: f32) -> u32 {
    if value == 0.0 { 0 } else { value.to_bits() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_clients_seed_is_its_number_big_endian() {
        let text = seed_from_client(0x0102_0304_0506_0708).to_string();
        assert_eq!(text, format!("0x{}0102030405060708", "0".repeat(48)));
    }

    #[test]
    fn no_two_ways_to_choose_tokens_share_a_digest() {
        let strings = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let biased = |id| BTreeMap::from([(id, 1.0)]);
        let base = Decode {
            temperature: 0.7,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.05,
            repetition_penalty: 1.1,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            max_tokens: 100,
            stop: Vec::new(),
            ignore_eos: false,
        };
        let variants = [
            base.clone(),
            Decode { temperature: 0.8, ..base.clone() },
            Decode { top_k: 41, ..base.clone() },
            Decode { top_p: 0.05, min_p: 0.9, ..base.clone() },
            Decode { repetition_penalty: 1.0, ..base.clone() },
            Decode { frequency_penalty: 0.5, ..base.clone() },
            Decode { presence_penalty: 0.5, ..base.clone() },
            Decode { logit_bias: biased(7), ..base.clone() },
            Decode { logit_bias: biased(8), ..base.clone() },
            Decode { max_tokens: 101, ..base.clone() },
            Decode { stop: strings(&["a", "b"]), ..base.clone() },
            Decode { stop: strings(&["ab"]), ..base.clone() },
            Decode { ignore_eos: true, ..base.clone() },
        ];
        let digests: std::collections::HashSet<_> = variants.iter().map(decode_spec).collect();
        assert_eq!(digests.len(), variants.len());
        let zero = Decode { temperature: 0.0, ..base.clone() };
        let negative = Decode { temperature: -0.0, ..base.clone() };
        assert_eq!(decode_spec(&zero), decode_spec(&negative));
        let idle = BTreeMap::from([(7, 0.0)]);
        let same = Decode { presence_penalty: -0.0, logit_bias: idle, ..base.clone() };
        assert_eq!(decode_spec(&same), decode_spec(&base));
    }

    #[test]
    fn every_field_of_a_header_changes_its_hash() {
        let job = JobId::new(7).unwrap();
        let base = TurnHeader {
            turn: TurnNo::new(1),
            model_spec: Hash32::new([1; 32]),
            tokenizer_spec: Hash32::new([2; 32]),
            decode_spec: Hash32::new([3; 32]),
            engine_spec: 4,
            seed: Hash32::new([5; 32]),
            seed_origin: crate::billing::SeedOrigin::Client,
            decode: None,
            nonces: None,
            prompt_ids: vec![6, 7],
        };
        let zero = Hash32::ZERO;
        let changed = [
            TurnHeader { turn: TurnNo::new(2), ..base.clone() },
            TurnHeader { model_spec: zero, ..base.clone() },
            TurnHeader { tokenizer_spec: zero, ..base.clone() },
            TurnHeader { decode_spec: zero, ..base.clone() },
            TurnHeader { engine_spec: 5, ..base.clone() },
            TurnHeader { seed: zero, ..base.clone() },
            TurnHeader { prompt_ids: vec![7, 6], ..base.clone() },
        ];
        let hash = turn_hash(job, &base, zero);
        for other in &changed {
            assert_ne!(turn_hash(job, other, zero), hash, "{other:?}");
        }
        assert_ne!(turn_hash(job, &base, Hash32::new([1; 32])), hash);
        assert_ne!(turn_hash(JobId::new(8).unwrap(), &base, zero), hash);
        // Blob field, not hashed.
        let derived =
            TurnHeader { seed_origin: crate::billing::SeedOrigin::Derived, ..base.clone() };
        assert_eq!(turn_hash(job, &derived, zero), hash);
    }
}
