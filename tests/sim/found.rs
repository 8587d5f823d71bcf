//! Seeds that found something once, each with what it was. They run with every `cargo test`.
//!
//! A seed names a run of the present simulation: where a change of the simulation gives a seed
//! another run, it stays as one more run, and the tests named here by their rules are what keeps
//! the bug from coming back.

use crate::runs::guarded;

/// The seed, and what it found.
const FOUND: [(u64, &str); 13] = [
    (
        15_604_907_480_423_707_800,
        "a rejection was believed above the depth of a reorg, and both claims counted",
    ),
    (5_257_453_228_499_063_394, "the same where the second claim was larger and had another word"),
    (5_883_570_526_021_221_566, "a rejected claim that counted after all halted its job"),
    (
        1_356_163_848_771_664_542,
        "of two final claims that a reorg mined again the older failed, and was not looked at",
    ),
    (
        7_118_519_336_264_472_287,
        "a session whose end was reorganised away after a restart was never looked at again",
    ),
    (
        5_005_048_538_040_860_739,
        "a claim lost after the session was closed did not count as lost tokens",
    ),
    (14_439_677_770_548_460_240, "the same where the claim was the session's only one"),
    (
        8_105_940_569_579_541_473,
        "a hole in the nonces was filled twice over a restart, and the ledger could not be read",
    ),
    (4_298_024_872_876_889_101, "a claim whose nonce a foreign transaction took waited for ever"),
    (
        12_128_078_765_579_202_571,
        "a foreign transaction behind a hole was counted as the node's: the auditor was wrong",
    ),
    (
        13_158_330_152_224_304_072,
        "an older claim that a reorg made fail kept a claim whose nonce was taken waiting for ever",
    ),
    (8_390_067_360_434_163_183, "the same after another course of events"),
    (
        17_395_806_399_278_445_445,
        "an ending was believed, a reorg took it during an outage, and the session was forgotten",
    ),
];

#[test]
fn what_was_found_once_stays_away() {
    for (seed, what) in FOUND {
        if let Err(violation) = guarded(seed) {
            panic!("seed {seed} ({what}) fails again: {violation:?}");
        }
    }
}
