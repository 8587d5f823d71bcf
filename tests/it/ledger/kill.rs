//! `kill -9`: whatever a process acknowledged before it died is in the file, once.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;

use tally::ledger::Ledger;

use super::{delivered, open, replayed};

/// Set for the child: the ledger it writes to until it is killed.
const VICTIM: &str = "TALLY_TEST_KILL_LEDGER";
/// Tokens of one entry and entries of one group in the child.
const TOKENS: u32 = 8;
const GROUP: u32 = 3;
/// Groups the child lets wait at most: more than one, so that commits carry several.
const IN_FLIGHT: usize = 64;

/// The child of the test below; a test run by itself finds nothing to do.
#[test]
fn the_victim_appends_until_it_is_killed() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let ledger = open(Path::new(&path));
    let start = u32::try_from(replayed(&ledger).len()).unwrap() / GROUP;
    let (take, give) = sync_channel::<()>(IN_FLIGHT);
    let give = std::sync::Arc::new(std::sync::Mutex::new(give));
    for group in start.. {
        take.send(()).unwrap();
        let first = group * GROUP;
        let entries = (first..first + GROUP).map(|n| delivered(1, 0, n * TOKENS, TOKENS)).collect();
        let give = std::sync::Arc::clone(&give);
        let acknowledge = move |fate: Result<(), _>| {
            fate.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "acknowledged {group}").unwrap();
            out.flush().unwrap();
            give.lock().unwrap().recv().unwrap();
        };
        ledger.submit(entries, Box::new(acknowledge)).unwrap();
    }
}

/// Lets a child write until `wanted` groups were acknowledged, kills it, returns the last one.
fn kill_after(path: &Path, wanted: usize) -> u32 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ledger::kill::the_victim_appends_until_it_is_killed", "--nocapture"])
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let number = |line: &str| -> Option<u32> {
        line.strip_suffix('\n')?.strip_prefix("acknowledged ")?.parse().ok()
    };
    let mut last = None;
    let mut seen = 0;
    while seen < wanted {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the child ended by itself");
        if let Some(group) = number(&line) {
            (seen, last) = (seen + 1, Some(group));
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    let later = rest.split_inclusive('\n').filter_map(number).next_back();
    later.or(last).unwrap()
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    for wanted in [1, 40, 150] {
        let last = kill_after(&path, wanted);
        let entries = replayed(&open(&path));
        let count = u32::try_from(entries.len()).unwrap();
        assert!(count >= (last + 1) * GROUP, "acknowledged {last}, found {count} entries");
        assert_eq!(count % GROUP, 0, "a group is all or nothing");
        // Each entry once, in order, with nothing left out.
        for (number, entry) in (0..).zip(&entries) {
            assert_eq!(*entry, delivered(1, 0, number * TOKENS, TOKENS));
        }
    }
}
