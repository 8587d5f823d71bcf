//! What a blob says by itself and against the proof bytes: no model is needed.
//!
//! Never takes the blob's word for what the chain says. Relies on docs/spec/proof.md.

use std::collections::BTreeSet;

use super::{Check, Claim};
use crate::billing::SeedOrigin;
use crate::chain::evm::recover_digest;
use crate::proof::{
    self, Blob, FLAG_CANONICAL, FLAG_NONCE_DERIVED, FLAG_USER_VOUCHER, ProofBytes, Voucher,
};
use crate::units::{Address, Hash32};

/// Root, sum, signature, seeds.
pub(super) fn all(blob: &Blob, claim: &Claim) -> Vec<Check> {
    let root = blob.root();
    let mut checks = vec![match &root {
        Ok(root) => Check::holds("blob", format!("its parts fit; root {root}")),
        Err(why) => Check::fails("blob", why.to_string()),
    }];
    checks.push(place(blob, claim));
    match (&claim.proof, root) {
        (Some(proof), Ok(root)) => checks.extend(against(blob, (proof, root), claim)),
        (Some(_), Err(_)) => {}
        (None, _) => checks.push(Check::not_checked("root", "no proof bytes to compare with")),
    }
    checks.extend(blob.turns.iter().filter_map(|turn| seed(&turn.header)));
    checks
}

/// Whether it was claimed where the checker thinks.
fn place(blob: &Blob, claim: &Claim) -> Check {
    let told = (blob.domain.chain_id, blob.domain.marketplace);
    let words = format!("chain {}, marketplace {}", told.0, told.1);
    match claim.marketplace {
        None => Check::not_checked("place", format!("{words}: the blob's own word")),
        Some(wanted) if wanted == told => Check::holds("place", words),
        Some((chain, marketplace)) => Check::fails(
            "place",
            format!("{words}, wanted chain {chain}, marketplace {marketplace}"),
        ),
    }
}

fn against(blob: &Blob, (proof, root): (&ProofBytes, Hash32), claim: &Claim) -> Vec<Check> {
    let mut checks = vec![
        compare("root", proof.root, root),
        compare("seq", proof.seq, blob.seq),
        compare("count", proof.tokens_cumulative, blob.tokens()),
    ];
    checks.push(flags(blob, proof));
    checks.push(signature(blob, proof, claim));
    checks
}

fn compare<T: PartialEq + std::fmt::Display>(what: &'static str, claimed: T, found: T) -> Check {
    if claimed == found {
        return Check::holds(what, claimed.to_string());
    }
    Check::fails(what, format!("{claimed} is claimed, the blob has {found}"))
}

/// Flags that say more than the blob holds.
fn flags(blob: &Blob, proof: &ProofBytes) -> Check {
    let covered = |turn| blob.chunks.iter().any(|chunk| chunk.turn == turn);
    let headers = || blob.turns.iter().map(|turn| &turn.header).filter(|it| covered(it.turn));
    let has_states = blob.chunks.iter().all(|chunk| chunk.act_digest != Hash32::ZERO);
    let is_canonical = has_states && headers().all(|header| header.engine_spec > 0);
    let lacks_nonce = headers().any(|header| {
        header.seed_origin == SeedOrigin::Derived
            && header.nonces.is_none_or(|it| it.user.is_none())
    });
    let is = |flag| proof.flags & flag != 0;
    match (is(FLAG_CANONICAL), is(FLAG_NONCE_DERIVED)) {
        (canonical, _) if canonical != is_canonical => {
            Check::fails("flags", format!("canonical: {canonical} is claimed"))
        }
        (_, derived) if derived != lacks_nonce => {
            Check::fails("flags", format!("a user's nonce was missing: {derived} is claimed"))
        }
        _ => Check::holds("flags", format!("{:#04x}", proof.flags)),
    }
}

fn signature(blob: &Blob, proof: &ProofBytes, claim: &Claim) -> Check {
    // The voucher names the model of the last covered token, and chunks that one cut closed stand
    // in the order of their turns: where turns of several models ran at once it may be any.
    let models: BTreeSet<Hash32> = blob
        .chunks
        .iter()
        .filter_map(|chunk| blob.header(chunk.turn))
        .map(|header| header.model_spec)
        .collect();
    let signer = |model: &Hash32| {
        let voucher = Voucher {
            job: blob.job,
            tokens_cumulative: proof.tokens_cumulative,
            seq: proof.seq,
            root: proof.root,
            model: *model,
        };
        recover_digest(proof::voucher_digest(&blob.domain, &voucher), &proof.signature)
    };
    let signers: Vec<Address> = models.iter().filter_map(signer).collect();
    let whose = if proof.flags & FLAG_USER_VOUCHER != 0 { "session key" } else { "host" };
    match (signers.first(), claim.signer) {
        (None, _) => Check::fails("signature", "it is none"),
        (Some(_), Some(wanted)) if signers.contains(&wanted) => {
            Check::holds("signature", format!("the {whose}'s, by {wanted}"))
        }
        (Some(found), Some(wanted)) => {
            Check::fails("signature", format!("by {found}, wanted {wanted}"))
        }
        (Some(found), None) => {
            let words = format!("the {whose}'s, by {found}: --signer not given");
            Check::not_checked("signature", words)
        }
    }
}

/// Whether a derived seed is what both nonces give; nothing to say where it is.
fn seed(header: &crate::billing::TurnHeader) -> Option<Check> {
    let turn = header.turn;
    if header.seed_origin == SeedOrigin::Client {
        let words = "the client's own, by the blob's word";
        return Some(Check::holds("seed", words).of(turn));
    }
    let Some(nonces) = header.nonces else {
        let zero = Hash32::ZERO;
        let is_right = proof::seed(zero, zero, turn) == header.seed;
        let words = "derived before nonces were recorded";
        return Some(if is_right {
            Check::not_checked("seed", words).of(turn)
        } else {
            Check::fails("seed", "not derived from zero nonces").of(turn)
        });
    };
    let user = nonces.user.unwrap_or_else(|| proof::derived_user_nonce(&header.prompt_ids));
    let is_right = proof::seed(nonces.host, user, turn) == header.seed;
    (!is_right).then(|| Check::fails("seed", "it does not follow from the nonces").of(turn))
}
