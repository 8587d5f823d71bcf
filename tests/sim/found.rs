//! Seeds that found something once, each with what it was. They run with every `cargo test`.
//!
//! A seed names a run of the present simulation: where a change of the simulation gives a seed
//! another run, it stays as one more run, and the tests named here by their rules are what keeps
//! the bug from coming back.

use crate::runs::guarded;

/// The seed, and what it found.
const FOUND: [(u64, &str); 0] = [];

#[test]
fn what_was_found_once_stays_away() {
    for (seed, what) in FOUND {
        if let Err(violation) = guarded(seed) {
            panic!("seed {seed} ({what}) fails again: {violation:?}");
        }
    }
}
