//! Backup, restore, deep check, and putting a finished ledger away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use tally::billing::{Entry, Fact};
use tally::ledger::sqlite::{
    CareError, LedgerBinding, SqliteLedger, SqliteOptions, SqliteReader, back_up, inspect, restore,
    retire,
};
use tally::units::{Address, TokenCount};

use super::fixture::{every_kind, started};
use super::{append, binding, delivered, entry, open, replayed};

fn entries_of(path: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    SqliteReader::open(path).unwrap().replay(&mut |entry| entries.push(entry)).unwrap();
    entries
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| name(e).into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_is_one_moment_of_a_ledger_that_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = Arc::new(open(&path));
    append(&*ledger, &every_kind()).unwrap();
    append(&*ledger, &[started(8, 0), started(9, 0)]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (ledger, stop) = (Arc::clone(&ledger), Arc::clone(&stop));
        move || {
            let mut written = 0;
            while !stop.load(Ordering::Acquire) {
                let group = [delivered(9, 0, written * 8, 8), delivered(8, 0, written * 8, 8)];
                append(&*ledger, &group).unwrap();
                written += 1;
            }
        }
    });
    let copies = folder.path().join("copies");
    fs::create_dir(&copies).unwrap();
    for number in 0..3 {
        let copy = copies.join(format!("{number}.db"));
        let sums = back_up(&path, &copy).unwrap();
        let entries = entries_of(&copy);
        assert_eq!(entries.len() as u64, sums.entries());
        assert_eq!((entries.len() - every_kind().len()) % 2, 0, "a group is all or nothing");
        let mode = fs::metadata(&copy).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    let all = replayed(&*ledger);
    for number in 0..3 {
        let copied = entries_of(&copies.join(format!("{number}.db")));
        assert_eq!(copied, all[..copied.len()], "what came first");
    }
    assert_eq!(names(&copies), ["0.db", "1.db", "2.db"], "nothing else is left");
    let refused = back_up(&path, &copies.join("0.db"));
    assert!(matches!(refused, Err(CareError::Exists { .. })), "{refused:?}");
}

#[test]
fn a_restored_ledger_holds_what_the_backup_held_and_the_old_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["ledger.db", "copy.db"].map(|name| folder.path().join(name));
    let ledger = open(&path);
    append(&ledger, &every_kind()).unwrap();
    back_up(&path, &copy).unwrap();
    ledger.close().unwrap();

    let same = restore(&copy, &path, false).unwrap();
    assert!(!same.is_behind);
    assert_eq!(entries_of(&path), every_kind());
    assert_eq!(entries_of(&same.moved_to.unwrap()), every_kind());
    assert!(!open(&path).is_restored().unwrap(), "nothing can be lost");

    fs::remove_file(&path).unwrap();
    let alone = restore(&copy, &path, false).unwrap();
    assert!(alone.is_behind, "nobody knows what the lost one held");
    let ledger = open(&path);
    assert_eq!((replayed(&ledger), ledger.is_restored().unwrap()), (every_kind(), true));
    ledger.forget_restored().unwrap();
    assert!(!ledger.is_restored().unwrap());
    append(&ledger, &[delivered(3, 0, 8, 8)]).unwrap();
}

#[test]
fn a_backup_that_lacks_entries_replaces_a_ledger_on_demand_only() {
    let folder = tempfile::tempdir().unwrap();
    let [path, copy] = ["ledger.db", "copy.db"].map(|name| folder.path().join(name));
    let ledger = open(&path);
    append(&ledger, &every_kind()).unwrap();
    back_up(&path, &copy).unwrap();
    append(&ledger, &[delivered(3, 0, 8, 8)]).unwrap();
    ledger.close().unwrap();
    let present = entries_of(&path);

    let refused = restore(&copy, &path, false).unwrap_err();
    assert!(matches!(refused, CareError::Behind { .. }), "{refused:?}");
    assert!(refused.to_string().contains("--replace"), "{refused}");
    assert_eq!(entries_of(&path), present);

    let replaced = restore(&copy, &path, true).unwrap();
    assert!(replaced.is_behind && open(&path).is_restored().unwrap());
    assert_eq!(entries_of(&path), every_kind());
    assert_eq!(entries_of(&replaced.moved_to.unwrap()), present);
}

#[test]
fn a_backup_of_another_wallet_or_a_damaged_one_is_never_restored() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other, copy] = ["ledger.db", "other.db", "copy.db"].map(|n| folder.path().join(n));
    append(&open(&path), &every_kind()).unwrap();
    let stranger = LedgerBinding { wallet: Address::new([0xbb; 20]), ..binding() };
    drop(SqliteLedger::open(&other, SqliteOptions::new(stranger)).unwrap());
    let refused = restore(&other, &path, true).unwrap_err();
    assert!(matches!(refused, CareError::Stranger { .. }), "{refused:?}");

    back_up(&path, &copy).unwrap();
    let raw = Connection::open(&copy).unwrap();
    raw.execute_batch("DROP TRIGGER deliveries_never_change").unwrap();
    raw.execute("UPDATE deliveries SET ids = zeroblob(32) WHERE tokens = 8", []).unwrap();
    drop(raw);
    let refused = restore(&copy, &path, true).unwrap_err();
    assert!(refused.to_string().contains("checksum"), "{refused}");
    assert_eq!(entries_of(&path), every_kind());
    assert!(!names(folder.path()).iter().any(|name| name.contains("restoring")));
}

#[test]
fn a_backup_of_the_first_schema_is_restored_as_the_present_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger/v1.db");
    let backups = tempfile::tempdir().unwrap();
    let old = backups.path().join("v1.db");
    fs::copy(kept, &old).unwrap();
    let before = fs::read(&old).unwrap();
    restore(&old, &path, false).unwrap();
    assert_eq!(names(folder.path()), ["ledger.db"]);
    assert_eq!(entries_of(&path), every_kind());
    assert_eq!(fs::read(&old).unwrap(), before, "a backup is only read");
}

#[test]
fn a_deep_check_finds_what_a_start_does_not_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    append(&open(&path), &every_kind()).unwrap();
    let sound = inspect(&path).unwrap();
    assert_eq!((sound.faults.len(), sound.sums.entries()), (0, every_kind().len() as u64));
    let tokens = every_kind().iter().fold(0, |sum, entry| match &entry.fact {
        Fact::Delivered { ids, .. } => sum + ids.len() as u64,
        _ => sum,
    });
    assert_eq!(sound.sums.tokens, TokenCount::new(tokens));
    let damage = [
        (
            "a changed id",
            "UPDATE deliveries SET ids = zeroblob(32) WHERE tokens = 8 AND position = 8",
        ),
        ("a lost delivery", "DELETE FROM deliveries WHERE id = (SELECT min(id) FROM deliveries)"),
        ("a lost fact", "DELETE FROM entries WHERE kind = 'turn_started' AND job = 1"),
    ];
    for (what, sql) in damage {
        let copy = folder.path().join("copy.db");
        fs::copy(&path, &copy).unwrap();
        let raw = Connection::open(&copy).unwrap();
        for name in ["entries_never_go", "deliveries_never_go", "deliveries_never_change"] {
            raw.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        assert!(raw.execute(sql, []).unwrap() > 0, "{what}");
        drop(raw);
        assert_ne!(inspect(&copy).unwrap().faults, Vec::<String>::new(), "{what}");
    }
}

#[test]
fn a_ledger_is_put_away_only_when_nothing_in_it_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    append(&open(&path), &every_kind()).unwrap();
    let refused = retire(&path).unwrap_err().to_string();
    for wanted in ["job 1 is not closed", "job 3 is not closed", "transaction 6 (1)"] {
        assert!(refused.contains(wanted), "{refused}");
    }
    for nonce in [10, 12, 13] {
        assert!(refused.contains(&format!("transaction {nonce} (wallet)")), "{refused}");
    }
    assert!(!refused.contains("job 2"), "{refused}");
    assert_eq!(entries_of(&path), every_kind());

    fs::remove_file(&path).unwrap();
    let of_two = |entry: &Entry| entry.job() == Some(super::job(2));
    let finished: Vec<Entry> = every_kind().into_iter().filter(of_two).collect();
    append(&open(&path), &finished).unwrap();
    let kept = retire(&path).unwrap();
    assert!(kept.to_str().unwrap().contains(&binding().wallet.to_string()));
    assert_eq!(entries_of(&kept), finished);
    assert!(!path.exists());
    // Another key begins its own in the same place.
    let next = LedgerBinding { wallet: Address::new([0xbb; 20]), ..binding() };
    let ledger = SqliteLedger::open(&path, SqliteOptions::new(next)).unwrap();
    append(&ledger, &[entry(1, Fact::OwnerProven)]).unwrap();
}
