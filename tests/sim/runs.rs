//! Many runs, on all cores, and their sum as one line.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tally::chain::sim::Rng;

use crate::world::{Outcome, Violation, run};

/// Runs of every `cargo test`.
const RUNS: u64 = 1_000;
/// Their base seed.
const SEED: u64 = 1;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// The seed of a run: neighbours have nothing in common.
fn seed_of(base: u64, index: u64) -> u64 {
    Rng::new(base.wrapping_add(index.wrapping_mul(0x2545_f491_4f6c_dd1d))).draw()
}

/// A run; a panic of the node's is a violation like any other.
pub fn guarded(seed: u64) -> Result<Outcome, Violation> {
    let caught = catch_unwind(AssertUnwindSafe(|| run(seed, false)));
    caught.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation { seed, step: 0, what: format!("panic: {words:?}") })
    })
}

/// Runs `runs` seeds, or up to the first that fails where `TALLY_SIM_STOP` is set.
fn run_all(base: u64, runs: u64) -> (Vec<Outcome>, Vec<Violation>) {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    let cores =
        usize::try_from(setting("TALLY_SIM_THREADS", u64::try_from(cores).unwrap())).unwrap();
    let stops = setting("TALLY_SIM_STOP", 0) > 0;
    let next = AtomicU64::new(0);
    let work = || {
        let mut results = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= runs {
                return results;
            }
            let result = guarded(seed_of(base, index));
            if stops && result.is_err() {
                next.fetch_max(runs, Ordering::Relaxed);
            }
            results.push((index, result));
        }
    };
    let mut results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    let (mut outcomes, mut violations) = (Vec::new(), Vec::new());
    for (_, result) in results {
        match result {
            Ok(outcome) => outcomes.push(outcome),
            Err(violation) => violations.push(violation),
        }
    }
    (outcomes, violations)
}

#[test]
fn no_seed_breaks_the_sentence() {
    let (runs, seed) = (setting("TALLY_SIM_RUNS", RUNS), setting("TALLY_SIM_SEED", SEED));
    let (outcomes, violations) = run_all(seed, runs);
    for violation in &violations {
        let Violation { seed, step, what } = violation;
        println!("seed {seed} fails after step {step}: {what}");
    }
    let steps: u64 = outcomes.iter().map(|outcome| outcome.steps).sum();
    let mut counts = BTreeMap::new();
    for (what, count) in outcomes.iter().flat_map(|outcome| &outcome.counts) {
        *counts.entry(*what).or_insert(0) += count;
    }
    let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
    println!("events: {}", counts.join(", "));
    let first = violations.first().map_or("null".to_owned(), |first| first.seed.to_string());
    println!(
        "{{\"ok\":{},\"runs\":{runs},\"steps\":{steps},\"violations\":{},\"first_seed\":{first}}}",
        violations.is_empty(),
        violations.len(),
    );
    assert!(violations.is_empty(), "{} of {runs} runs failed", violations.len());
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for index in 0..10 {
        let seed = seed_of(SEED, index);
        assert_eq!(guarded(seed), guarded(seed), "seed {seed}");
    }
}

/// Whether the run of `TALLY_SIM_ONLY` is clean; without it, a seed of no distinction.
#[test]
fn one_seed_is_clean() {
    let seed = setting("TALLY_SIM_ONLY", 7);
    if let Err(Violation { step, what, .. }) = guarded(seed) {
        println!("seed {seed} fails after step {step}: {what}");
        panic!("a violation");
    }
}

/// Runs `TALLY_SIM_REPLAY` and prints what happens in it; without it, a seed of no distinction.
#[test]
fn replay() {
    let seed = setting("TALLY_SIM_REPLAY", 7);
    let is_printed = std::env::var("TALLY_SIM_REPLAY").is_ok();
    if is_printed {
        let log = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
        log.with_max_level(tracing::Level::DEBUG).init();
    }
    if let Err(violation) = run(seed, is_printed) {
        panic!("step {}: {}", violation.step, violation.what);
    }
}
