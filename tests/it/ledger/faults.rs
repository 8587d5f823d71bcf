//! A full disk, a folder that may not be written, damaged pages: the ledger stops and loses
//! nothing it acknowledged.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use tally::billing::Entry;
use tally::ledger::sqlite::{SqliteLedger, SqliteOptions, inspect};
use tally::ledger::{Ledger, LedgerError};

use super::fixture::started;
use super::{append, binding, delivered, open, replayed};

/// Set for the child: the ledger it works on.
const VICTIM: &str = "TALLY_TEST_FAULT_LEDGER";
/// Somebody who owns nothing here.
const NOBODY: u32 = 65_534;

/// One long turn, entry by entry.
fn nth(n: u32) -> Entry {
    n.checked_sub(1).map_or_else(|| started(1, 0), |n| delivered(1, 0, n * 8, 8))
}

/// The child of the tests below; a test run by itself finds nothing to do. Appends until it
/// cannot, and says how far it came and why it ended.
#[test]
fn the_victim_appends_until_it_cannot() {
    let Some(path) = std::env::var_os(VICTIM) else { return };
    let ledger = match SqliteLedger::open(Path::new(&path), SqliteOptions::new(binding())) {
        Ok(ledger) => ledger,
        Err(error) => return say(&format!("refused: {error}")),
    };
    let start = u32::try_from(replayed(&ledger).len()).unwrap();
    for n in start..start + 100_000 {
        if let Err(error) = append(&ledger, &[nth(n)]) {
            let later = append(&ledger, &[nth(n)]);
            assert!(matches!(later, Err(LedgerError::Store(_))), "it is final: {later:?}");
            assert!(!ledger.is_healthy());
            return say(&format!("acknowledged {n}\nrefused: {error}"));
        }
    }
    panic!("it wrote on and on");
}

/// To the test that started the child.
fn say(what: &str) {
    writeln!(std::io::stdout().lock(), "{what}").unwrap();
}

/// Runs the child by a shell line that ends in `"$0" "$@"`; its standard output.
fn victim(path: &Path, shell: &str, uid: Option<u32>) -> String {
    let mut child = Command::new("sh");
    child.args(["-c", shell]).arg(std::env::current_exe().unwrap());
    child.args(["--exact", "ledger::faults::the_victim_appends_until_it_cannot", "--nocapture"]);
    child.env(VICTIM, path).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(uid) = uid {
        child.uid(uid).gid(uid);
    }
    let done = child.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn said<'a>(output: &'a str, what: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.split_once(what));
    line.unwrap_or_else(|| panic!("no {what:?} in {output}")).1
}

#[test]
fn a_full_disk_stops_the_ledger_and_room_lets_it_go_on_with_all_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    // No file may grow past 300 blocks of 512 bytes; the signal that says so is ignored, so that
    // the write fails as on a full disk.
    let full = "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\"";
    let first = victim(&path, full, None);
    let why = said(&first, "refused: ");
    assert!(why.contains("the disk"), "{why}");
    let acknowledged: u32 = said(&first, "acknowledged ").parse().unwrap();
    assert!(acknowledged > 1, "it wrote something");
    // Still no room: it stops again, at once or after what the log has room for.
    let second = victim(&path, full, None);
    assert!(said(&second, "refused: ").contains("the disk"), "{second}");

    let ledger = open(&path);
    let entries = replayed(&ledger);
    assert!(entries.len() >= acknowledged as usize, "{} of {acknowledged}", entries.len());
    let wanted: Vec<Entry> = (0..u32::try_from(entries.len()).unwrap()).map(nth).collect();
    assert_eq!(entries, wanted, "each once, in order");
    append(&ledger, &[nth(u32::try_from(entries.len()).unwrap())]).unwrap();
    ledger.close().unwrap();
    assert_eq!(inspect(&path).unwrap().faults, Vec::<String>::new());
}

#[test]
fn a_file_or_folder_that_may_not_be_written_is_refused_at_the_start() {
    // Root may write anywhere, so the child is somebody else then.
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let uid = is_root.then_some(NOBODY);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    append(&open(&path), &[nth(0), nth(1)]).unwrap();
    let set = |of: &Path, mode| fs::set_permissions(of, fs::Permissions::from_mode(mode)).unwrap();
    let before = fs::read(&path).unwrap();
    // (the file's mode, the folder's mode)
    for (file, of_folder) in [(0o444, 0o777), (0o444, 0o555), (0o000, 0o777)] {
        set(&path, file);
        set(folder.path(), of_folder);
        let output = victim(&path, "exec \"$0\" \"$@\"", uid);
        let why = said(&output, "refused: ");
        assert!(why.contains("ledger.db"), "{why}");
        let is_clear = ["ermission denied", "may not be written"].iter().any(|w| why.contains(w));
        assert!(is_clear, "{why}");
    }
    set(&path, 0o600);
    set(folder.path(), 0o700);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(replayed(&open(&path)), [nth(0), nth(1)]);
}

/// Many pages, all of them out of the log.
fn filled(path: &Path) -> Vec<Entry> {
    let ledger = open(path);
    let group: Vec<Entry> = (0..20_000).map(|turn| delivered(1, turn, 0, 8)).collect();
    append(&ledger, &group).unwrap();
    ledger.close().unwrap();
    group
}

/// Overwrites all pages from `first` on to the end of the file.
fn damage(path: &Path, first: u64) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    file.seek(SeekFrom::Start(first * 4096)).unwrap();
    for _ in first..pages {
        file.write_all(&[0xee; 4096]).unwrap();
    }
}

fn large() -> SqliteOptions {
    SqliteOptions { check_bytes_max: 0, ..SqliteOptions::new(binding()) }
}

#[test]
fn a_page_damaged_while_the_node_runs_stops_the_writer_that_meets_it() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["ledger.db", "copy.db"].map(|name| folder.path().join(name));
    let kept = filled(&path);
    let mut ledger = SqliteLedger::open(&path, large()).unwrap();
    ledger.wait_checked();
    append(&ledger, &[delivered(2, 0, 0, 8)]).unwrap();
    fs::copy(&path, &copy).unwrap();
    damage(&path, 20);
    // A repeat of an old entry must be looked up, on pages that the writer has not seen yet.
    let stopped = kept.iter().find_map(|entry| append(&ledger, std::slice::from_ref(entry)).err());
    let Some(LedgerError::Store(why)) = stopped else { panic!("{stopped:?}") };
    assert!(
        why.contains("`tally ledger check`") && why.contains("`tally ledger restore`"),
        "{why}"
    );
    assert!(!ledger.is_healthy());
    assert!(ledger.submit(vec![nth(1)], Box::new(|_| panic!("was taken"))).is_err());
    // Nothing of it reached the pages that were sound: the file before the damage opens.
    assert!(replayed(&open(&copy)).len() >= kept.len());
}

#[test]
fn a_page_damaged_while_the_node_runs_stops_the_node_when_a_reader_meets_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    filled(&path);
    let ledger = open(&path);
    damage(&path, 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = runtime.block_on(ledger.job_entries(super::job(1)));
    let Err(LedgerError::Store(why)) = read else { panic!("it read") };
    assert!(why.contains("damaged"), "{why}");
    assert!(!ledger.is_healthy(), "the node's watch sees it and stops");
    assert!(ledger.failure().is_some_and(|why| why.contains("damaged")), "and says why");
}

#[test]
fn a_large_ledger_is_checked_beside_the_start_and_damage_stops_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    filled(&path);
    let mut ledger = SqliteLedger::open(&path, large()).unwrap();
    ledger.wait_checked();
    assert!(ledger.is_healthy());
    append(&ledger, &[delivered(2, 0, 0, 8)]).unwrap();
    drop(ledger);
    damage(&path, 20);
    let mut ledger = SqliteLedger::open(&path, large()).unwrap();
    ledger.wait_checked();
    assert!(!ledger.is_healthy());
    drop(ledger);
    let found = inspect(&path);
    assert!(found.is_err() || !found.unwrap().faults.is_empty());
}
