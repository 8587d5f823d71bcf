//! Bans: what a reader will not find, and where the one exception lives.
//!
//! Never judges tests where the rule is about shipped code. Words are matched in code with
//! comments blanked, so a document may name what the code may not.

use crate::paths::paths;
use crate::source::{Finding, Source};

/// The words of a line of code.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// A finding for each live line of `source` that `is_bad` refuses.
fn live_lines(source: &Source, is_bad: impl Fn(&str) -> bool, what: &str) -> Vec<Finding> {
    let bad = source.live().filter(|(_, line)| is_bad(line));
    bad.map(|(at, line)| source.finding(at, format!("{what}: {}", line.trim()))).collect()
}

/// A finding for each path outside tests that begins with one of `prefixes`.
fn live_paths(source: &Source, prefixes: &[&str], what: &str) -> Vec<Finding> {
    let all = paths(&source.live_code());
    let bad = all.iter().filter(|path| prefixes.iter().any(|prefix| path.begins_with(prefix)));
    bad.map(|path| source.finding(path.at, format!("{what}: {}", path.words.join("::")))).collect()
}

/// Tasks start in `node/tasks.rs`, with a name and an owner.
pub fn spawn(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") || source.path == "src/node/tasks.rs" {
        return Vec::new();
    }
    let roots = ["tokio::spawn", "tokio::task::spawn", "task::spawn", "tokio::task::spawn_local"];
    live_paths(source, &roots, "a task starts outside node/tasks.rs")
}

/// Every "now" and every wait comes from `Clock`.
pub fn time(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") || source.path == "src/clock.rs" {
        return Vec::new();
    }
    let roots = [
        "Instant::now",
        "SystemTime::now",
        "std::time::Instant::now",
        "tokio::time",
        "std::time::SystemTime::now",
        "time::Instant::now",
        "time::SystemTime::now",
        "std::thread::sleep",
        "thread::sleep",
    ];
    live_paths(source, &roots, "time outside clock.rs")
}

/// Every queue has a bound.
pub fn unbounded(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for (at, line) in source.live() {
        let is_unbounded = words(line).any(|word| word == "unbounded_channel")
            || words(line).any(|word| word == "unbounded") && line.contains("unbounded(")
            || is_std_channel(line);
        if is_unbounded {
            found.push(source.finding(at, format!("a queue without a bound: {}", line.trim())));
        }
    }
    found
}

/// `mpsc::channel()`, which has no bound, unlike `mpsc::channel(8)`.
fn is_std_channel(line: &str) -> bool {
    line.split("mpsc::channel").skip(1).any(|rest| {
        let rest = match rest.strip_prefix("::<") {
            Some(generic) => generic.rsplit_once(">(").map_or("", |(_, tail)| tail),
            None => rest.strip_prefix('(').unwrap_or_default(),
        };
        rest.starts_with(')')
    })
}

/// alloy stays in `chain/evm`, candle in `crates/engine` and in the program that measures candle
/// itself, dashmap in the tracker.
pub fn confined_crates(source: &Source) -> Vec<Finding> {
    let rooms: [(&str, &[&str]); 3] = [
        ("alloy", &["src/chain/evm", "tests/"]),
        ("candle", &["crates/engine/", "scripts/bench/candle-peer/"]),
        ("dashmap", &["src/session/tracker.rs"]),
    ];
    let mut found = Vec::new();
    for (name, room) in rooms.iter().filter(|(_, room)| !source.is_under(room)) {
        for (at, line) in source.code.iter().enumerate() {
            let is_named = |word: &str| {
                let word = word.to_lowercase();
                word == *name || word.starts_with(&format!("{name}_"))
            };
            if words(line).any(is_named) {
                found.push(source.finding(at, format!("{name} outside {}", room.join(", "))));
            }
        }
    }
    found
}

/// `unsafe` lives in the engine's kernels and its mmap module.
pub fn unsafe_code(source: &Source) -> Vec<Finding> {
    let is_room = source.is_under(&["crates/engine/src/kernels"])
        || (source.path.starts_with("crates/engine/src/") && source.path.ends_with("mmap.rs"));
    if is_room {
        return Vec::new();
    }
    let is_bad = |line: &str| words(line).any(|word| word == "unsafe");
    let lines = source.code.iter().enumerate().filter(|(_, line)| is_bad(line));
    lines.map(|(at, _)| source.finding(at, "unsafe outside kernels and mmap")).collect()
}

/// What would end a thread on purpose is for tests.
pub fn panics(source: &Source) -> Vec<Finding> {
    if !source.is_shipped() {
        return Vec::new();
    }
    let ends = [
        ".unwrap()",
        ".expect(",
        ".unwrap_err()",
        ".expect_err(",
        "panic!(",
        "todo!(",
        "unimplemented!(",
    ];
    live_lines(source, |line| ends.iter().any(|end| line.contains(end)), "panics")
}

/// Done, or an issue: nothing is marked as to be done. Checked in comments too.
pub fn undone(source: &Source) -> Vec<Finding> {
    let marks =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("todo", "!")];
    let mut found = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let has = |mark: &str| match mark.strip_suffix('!') {
            Some(_) => line.contains(&format!("{mark}(")) && !line.contains('"'),
            None => words(line).any(|word| word == mark),
        };
        if let Some(mark) = marks.iter().find(|mark| has(mark)) {
            found.push(source.finding(at, format!("{mark}: an issue, or done")));
        }
    }
    found
}

/// A test runs or does not exist.
pub fn ignored_tests(source: &Source) -> Vec<Finding> {
    let lines = source.code.iter().enumerate().filter(|(_, line)| line.contains("#[ignore"));
    lines.map(|(at, _)| source.finding(at, "an ignored test")).collect()
}

/// Wire types live with their protocol, stored types with the ledger; domain types have neither.
pub fn wire_forms(source: &Source) -> Vec<Finding> {
    let domain = [
        "src/units",
        "src/billing",
        "src/checkpoint",
        "src/claim",
        "src/proof",
        "src/session",
        "src/settlement",
        "src/jobs",
    ];
    if !source.is_under(&domain) {
        return Vec::new();
    }
    let is_bad = |line: &str| words(line).any(|word| word == "Serialize" || word == "Deserialize");
    live_lines(source, is_bad, "a domain type with a wire form")
}

/// Names of the contract's own functions. Names that are ordinary words of ours are not listed.
const CONTRACT_NAMES: &[&str] = &[
    "submitProofOfWork",
    "completeSessionJob",
    "triggerSessionTimeout",
    "sessionJobs",
    "createSessionJob",
    "createSessionJobWithToken",
    "nextJobId",
    "hostSessions",
    "hostEarnings",
    "nodeRegistry",
    "proofSystem",
    "modelRegistry",
    "isActiveNode",
    "getNodeApiUrl",
    "getNodeFullInfo",
    "nodeSupportsModel",
    "isModelApproved",
    "getModelHash",
    "withdrawAll",
    "getBalance",
    "MIN_PROVEN_TOKENS",
    "MIN_DEPOSIT",
    "FEE_BASIS_POINTS",
    "DISPUTE_WINDOW",
    "PRICE_PRECISION",
];

/// Only `chain/evm` knows the contract's names, in code and in text that is shown.
pub fn contract_names(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("src/") || source.is_under(&["src/chain/evm"]) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let lines = source.uncommented.iter().enumerate().filter(|(at, _)| !source.is_test[*at]);
    for (at, line) in lines {
        if let Some(name) = words(line).find(|word| CONTRACT_NAMES.contains(word)) {
            found.push(source.finding(at, format!("contract name outside chain/evm: {name}")));
        }
    }
    found
}

/// The scripted engine, the simulated chain and the ledger in memory are never in a release.
pub fn stand_ins(source: &Source) -> Vec<Finding> {
    let is_stand_in = |line: &str| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        ["mod scripted;", "mod sim;", "mod fixed;", "mod memory;"]
            .iter()
            .any(|end| line.starts_with(end))
    };
    let mut found = Vec::new();
    for (at, _) in source.code.iter().enumerate().filter(|(_, line)| is_stand_in(line)) {
        let mut above = source.uncommented[..at].iter().rev();
        let attributes = above.by_ref().take_while(|line| line.trim_start().starts_with("#["));
        let is_guarded = attributes.into_iter().any(|line| {
            line.contains("cfg(test)") || (line.contains("cfg(") && line.contains("test-support"))
        });
        if source.path.starts_with("src/") && !is_guarded {
            found.push(source.finding(at, "a stand-in without #[cfg(feature = \"test-support\")]"));
        }
    }
    found
}

/// No default feature switches stand-ins on.
pub fn default_features(path: &str, manifest: &str) -> Vec<Finding> {
    let lines = manifest.lines().enumerate();
    let is_default = |line: &str| line.split('=').next().unwrap_or_default().trim() == "default";
    let bad = lines.filter(|(_, line)| is_default(line) && line.contains("test-"));
    bad.map(|(at, _)| Finding {
        path: path.to_owned(),
        line: at + 1,
        what: "test-support is a default feature".to_owned(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (path, text, whether the rule refuses it)
    fn check(rule: fn(&Source) -> Vec<Finding>, table: &[(&str, &str, bool)]) {
        for (path, text, refused) in table {
            let found = rule(&Source::new(path, text));
            assert_eq!(!found.is_empty(), *refused, "{path}: {text}: {found:?}");
        }
    }

    #[test]
    fn a_task_outside_tasks_is_refused() {
        check(
            spawn,
            &[
                ("src/api/a.rs", "tokio::spawn(async {});", true),
                ("src/api/a.rs", "use tokio::{sync::mpsc, spawn};", true),
                ("src/api/a.rs", "use tokio::task;\ntask::spawn(x);", true),
                ("src/api/a.rs", "// tokio::spawn\nlet a = \"tokio::spawn\";", false),
                ("src/node/tasks.rs", "tokio::spawn(async {});", false),
                ("src/api/a.rs", "#[cfg(test)]\nmod tests { fn a() { tokio::spawn(x); } }", false),
            ],
        );
    }

    #[test]
    fn time_that_is_not_the_clocks_is_refused() {
        check(
            time,
            &[
                ("src/api/a.rs", "let a = Instant::now();", true),
                ("src/api/a.rs", "let a = std::time::SystemTime::now();", true),
                ("src/api/a.rs", "use tokio::time::{sleep};", true),
                ("src/api/a.rs", "use std::time::Duration;\nclock.now();", false),
                ("src/clock.rs", "let a = Instant::now();", false),
                ("crates/engine/src/a.rs", "let a = Instant::now();", false),
            ],
        );
    }

    #[test]
    fn a_queue_without_a_bound_is_refused() {
        check(
            unbounded,
            &[
                ("src/a.rs", "let (a, b) = mpsc::unbounded_channel();", true),
                ("src/a.rs", "let (a, b) = futures::channel::mpsc::unbounded();", true),
                ("src/a.rs", "let (a, b) = std::sync::mpsc::channel();", true),
                ("src/a.rs", "let (a, b) = mpsc::channel::<Vec<u8>>();", true),
                ("src/a.rs", "let (a, b) = mpsc::channel::<u8>(8);", false),
                ("src/a.rs", "let (a, b) = oneshot::channel();", false),
            ],
        );
    }

    #[test]
    fn a_crate_outside_its_room_is_refused() {
        check(
            confined_crates,
            &[
                ("src/settlement/a.rs", "use alloy::primitives::U256;", true),
                ("src/chain/evm/a.rs", "use alloy::primitives::U256;", false),
                ("src/engine/local/a.rs", "use candle_core::Tensor;", true),
                ("crates/engine/src/a.rs", "use candle_core::Tensor;", false),
                ("src/session/a.rs", "let a: DashMap<u8, u8>;", true),
                ("src/session/tracker.rs", "use dashmap::DashMap;", false),
            ],
        );
    }

    #[test]
    fn unsafe_outside_its_room_is_refused() {
        check(
            unsafe_code,
            &[
                ("src/a.rs", "unsafe { x() }", true),
                ("crates/engine/src/model.rs", "unsafe fn a() {}", true),
                ("crates/engine/src/kernels/avx2.rs", "unsafe fn a() {}", false),
                ("crates/engine/src/mmap.rs", "unsafe { map() }", false),
                ("src/a.rs", "#![forbid(unsafe_code)]", false),
            ],
        );
    }

    #[test]
    fn a_panic_outside_tests_is_refused() {
        check(
            panics,
            &[
                ("src/a.rs", "a.unwrap();", true),
                ("src/a.rs", "a\n    .expect(\"b\");", true),
                ("crates/engine/src/a.rs", "panic!(\"b\");", true),
                ("src/a.rs", "a.unwrap_or(1); b.unwrap_or_else(c);", false),
                ("src/a.rs", "#[cfg(test)]\nmod tests { fn a() { b.unwrap(); } }", false),
                ("tests/a.rs", "a.unwrap();", false),
            ],
        );
    }

    #[test]
    fn work_left_undone_is_refused() {
        let marked = concat!("// TO", "DO: later");
        let called = concat!("todo", "!()");
        check(
            undone,
            &[
                ("src/a.rs", marked, true),
                ("scripts/a.sh", concat!("# FIX", "ME"), true),
                ("src/a.rs", called, true),
                ("src/a.rs", "// a method of todos", false),
            ],
        );
    }

    #[test]
    fn an_ignored_test_is_refused() {
        check(
            ignored_tests,
            &[
                ("tests/a.rs", "#[test]\n#[ignore]\nfn a() {}", true),
                ("tests/a.rs", "#[ignore = \"slow\"]\nfn a() {}", true),
                ("tests/a.rs", "// #[ignore]\nfn a() {}", false),
            ],
        );
    }

    #[test]
    fn a_domain_type_with_a_wire_form_is_refused() {
        check(
            wire_forms,
            &[
                ("src/units/a.rs", "#[derive(Debug, Serialize)]\nstruct A;", true),
                ("src/session/a.rs", "use serde::Deserialize;", true),
                ("src/api/a.rs", "#[derive(Serialize)]\nstruct A;", false),
            ],
        );
    }

    #[test]
    fn a_contract_name_outside_the_adapter_is_refused() {
        check(
            contract_names,
            &[
                ("src/settlement/a.rs", "let a = \"submitProofOfWork\";", true),
                ("src/settlement/a.rs", "chain.sessionJobs(1);", true),
                (
                    "src/settlement/a.rs",
                    "/// `submitProofOfWork` in the contract.\nfn a() {}",
                    false,
                ),
                ("src/chain/evm/a.rs", "contract.submitProofOfWork(1);", false),
                ("tests/a.rs", "contract.submitProofOfWork(1);", false),
            ],
        );
    }

    #[test]
    fn a_stand_in_in_a_release_is_refused() {
        let guarded = "#[cfg(feature = \"test-support\")]\npub mod memory;";
        check(
            stand_ins,
            &[
                ("src/ledger/mod.rs", "pub mod memory;", true),
                ("src/chain/mod.rs", "#[cfg(unix)]\nmod sim;", true),
                ("src/ledger/mod.rs", guarded, false),
                ("src/chain/mod.rs", "mod simple;", false),
            ],
        );
        let found = default_features("Cargo.toml", "[features]\ndefault = [\"test-support\"]\n");
        assert_eq!(found.len(), 1);
        assert!(default_features("Cargo.toml", "test-support = []\n").is_empty());
    }
}
