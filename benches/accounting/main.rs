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
    let place = std::env::var_os("TALLY_BENCH_DIR").unwrap_or("/var/tmp".into());
    let folder = tempfile::tempdir_in(place).expect("a folder");
    let mut report = tracker(if is_bench { 20_000 } else { 100 });
    report.append(&mut ledger(folder.path(), entries_max));
    let rss_mb = if is_bench { sessions_mb(&folder.path().join("sessions.db")) } else { 0.0 };
    eprintln!("10,000 open sessions: {rss_mb:.1} MB");
    report.insert("rss_mb_10k_sessions".into(), rounded(rss_mb).into());
    println!("{}", Value::from(report));
}

type Report = serde_json::Map<String, Value>;

fn tracker(tokens: u32) -> Report {
    let (workers, threads) = (contention::workers(tokens), contention::threads(tokens));
    for (shape, spread) in [("core", workers), ("session", threads)] {
        let contention::Spread { p50, p99, p999 } = spread;
        eprintln!("tracker, one thread a {shape}: p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns");
    }
    let worst = workers.p99.max(threads.p99);
    Report::from_iter([("tracker_p99_ns".to_owned(), worst.into())])
}

fn ledger(folder: &Path, entries_max: u64) -> Report {
    let narrow = durable::open(&folder.join("narrow.db"));
    let of_256 = durable::fill(&narrow, 256, &[entries_max.min(100_000)], drop);
    let of_256 = of_256.first().expect("a stretch").entries_per_s();
    eprintln!("256 outstanding: {of_256:.0} entries/s");
    drop(narrow);

    let path = folder.join("ledger.db");
    let ledger = durable::open(&path);
    let powers = (3..=7).map(|power| 10u64.pow(power));
    let decades: Vec<u64> = powers.filter(|total| *total <= entries_max).collect();
    let million = folder.join("million");
    let keep = |total| {
        if total == entries_max.min(1_000_000) {
            copy_as_crashed(folder, &million);
        }
    };
    let stretches = durable::fill(&ledger, durable::OUTSTANDING, &decades, keep);
    for stretch in &stretches {
        eprintln!("{stretch:?}: {:.1} us an entry", stretch.micros_per_entry());
    }
    eprintln!("{:?}", ledger.counts());
    ledger.close().expect("the ledger closes");
    let bytes = std::fs::metadata(&path).expect("the file").len();
    let after_crash = durable::restart(&million.join("ledger.db"));
    let orderly = durable::restart(&million.join("ledger.db"));
    let whole = durable::restart(&path);
    eprintln!("restart: {orderly:?}; after a crash: {after_crash:?}; of all: {whole:?}");

    let last = stretches.last().expect("a stretch");
    let costs =
        stretches.iter().map(|s| (s.total.to_string(), Value::from(rounded(s.micros_per_entry()))));
    let report = json!({
        "entries_per_s": last.entries_per_s().round(),
        "outstanding": durable::OUTSTANDING,
        "entries_per_s_256_outstanding": of_256.round(),
        "usage_entries_per_s": last.usage_per_s().round(),
        "us_per_entry": costs.collect::<Report>(),
        "entries": last.total,
        "bytes_per_entry": bytes / last.total,
        "restart_ms_1m": orderly.total_ms().round(),
        "restart_after_crash_ms_1m": after_crash.total_ms().round(),
        "restart_cpu_ms_1m": orderly.cpu_ms,
        "restart_ms_all": whole.total_ms().round(),
    });
    report.as_object().cloned().unwrap_or_default()
}

/// The ledger as `kill -9` leaves it rather than an orderly end: with its log.
fn copy_as_crashed(folder: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a folder");
    for name in ["ledger.db", "ledger.db-wal"] {
        std::fs::copy(folder.join(name), to.join(name)).expect("a copy");
    }
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
