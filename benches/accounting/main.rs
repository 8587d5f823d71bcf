//! Speed of accounting: tracker, durable ledger, restart, memory of open sessions.
//!
//! ```text
//! scripts/bench/accounting.sh [ENTRIES_MAX]
//! ```
//! Lines go to standard error; the last line of standard output is one JSON object. Under
//! `cargo test` it runs one short round.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod contention;
mod durable;
mod memory;
mod traffic;

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Names the ledger whose sessions the child process measures.
const CHILD: &str = "TALLY_BENCH_SESSIONS";

/// Names a ledger whose restart is measured, and nothing else.
const RESTART: &str = "TALLY_BENCH_RESTART";

fn main() {
    if let Some(path) = std::env::var_os(CHILD) {
        println!("{}", memory::measure(Path::new(&path)));
        return;
    }
    if let Some(path) = std::env::var_os(RESTART) {
        eprintln!("{:?}", durable::restart(Path::new(&path)));
        return;
    }
    // `cargo bench` says so; `cargo test` does not.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let number = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let entries_max = if is_bench { number.unwrap_or(1_000_000) } else { 1_000 };
    let folder =
        tempfile::tempdir_in(std::env::var_os("TALLY_BENCH_DIR").unwrap_or("/var/tmp".into()))
            .expect("a folder");

    let tokens = if is_bench { 20_000 } else { 100 };
    let workers = contention::workers(tokens);
    let threads = contention::threads(tokens);
    for (shape, spread) in [("core", workers), ("session", threads)] {
        let contention::Spread { p50, p99, p999 } = spread;
        eprintln!("tracker, one thread a {shape}: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns");
    }

    let path = folder.path().join("ledger.db");
    let ledger = durable::open(&path);
    let decades: Vec<u64> =
        (3..=7).map(|power| 10u64.pow(power)).filter(|n| *n <= entries_max).collect();
    let stretches = durable::fill(&ledger, &decades);
    for stretch in &stretches {
        eprintln!("{stretch:?}: {:.1} us an entry", stretch.micros_per_entry());
    }
    let counts = ledger.counts();
    eprintln!("{counts:?}");
    // As after `kill -9` rather than after an orderly end: the log is still there.
    let crashed = folder.path().join("crashed");
    std::fs::create_dir(&crashed).expect("a folder");
    for ending in ["", "-wal"] {
        let name = format!("ledger.db{ending}");
        std::fs::copy(folder.path().join(&name), crashed.join(&name)).expect("a copy");
    }
    ledger.close().expect("the ledger closes");
    let restart = durable::restart(&path);
    let after_crash = durable::restart(&crashed.join("ledger.db"));
    eprintln!("restart over {entries_max} entries: {restart:?}; after a crash: {after_crash:?}");
    let bytes = std::fs::metadata(&path).expect("the file").len();
    eprintln!("{:.1} bytes an entry", bytes as f64 / entries_max as f64);

    let rss_mb = if is_bench { sessions_mb(&folder.path().join("sessions.db")) } else { 0.0 };
    eprintln!("10,000 open sessions: {rss_mb:.1} MB");
    let last = stretches.last().expect("a stretch");
    println!(
        "{}",
        json!({
            "tracker_p99_ns": workers.p99.max(threads.p99),
            "tracker_p99_ns_one_thread_a_core": workers.p99,
            "entries_per_s": last.entries_per_s().round(),
            "usage_entries_per_s": last.usage_per_s().round(),
            "rss_mb_10k_sessions": rounded(rss_mb),
            "restart_cpu_ms": restart.cpu_ms,
            "restart_ms": restart.total_ms().round(),
            "restart_after_crash_ms": after_crash.total_ms().round(),
            "entries": last.total,
            "us_per_entry": stretches
                .iter()
                .map(|s| (s.total.to_string(), Value::from(rounded(s.micros_per_entry()))))
                .collect::<serde_json::Map<_, _>>(),
        })
    );
}

/// Tenths are all that such a measurement can say.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Measured by a child, whose memory holds nothing else.
fn sessions_mb(path: &Path) -> f64 {
    memory::write(path);
    let own = std::env::current_exe().expect("our path");
    let child = Command::new(own).env(CHILD, path).output().expect("the child runs");
    let said = String::from_utf8(child.stdout).expect("text");
    said.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{said}{}", String::from_utf8_lossy(&child.stderr)))
}
