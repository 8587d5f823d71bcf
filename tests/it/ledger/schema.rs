//! Versions of the tables: older ones are read for ever, newer ones are left alone.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tally::ledger::sqlite::{SqliteLedger, SqliteOptions, SqliteReader, inspect};

use super::fixture::{every_kind, fold};
use super::{append, binding, delivered, entry, open, refusal, replayed};

/// A copy of the committed ledger of the first schema.
fn first_schema(folder: &Path) -> PathBuf {
    of_schema(1, folder)
}

fn of_schema(version: u32, folder: &Path) -> PathBuf {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = kept.join(format!("tests/fixtures/ledger/v{version}.db"));
    let path = folder.join("ledger.db");
    fs::copy(kept, &path).unwrap();
    path
}

fn version(path: &Path) -> String {
    let sql = "SELECT value FROM meta WHERE name = 'schema_version'";
    Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

fn kept_copy(path: &Path) -> PathBuf {
    path.with_file_name("ledger.db.schema-1")
}

#[test]
fn a_ledger_of_an_older_schema_opens_and_says_the_same() {
    for older in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = of_schema(older, folder.path());
        let ledger = open(&path);
        assert_eq!(version(&path), "3");
        assert_eq!(replayed(&ledger), every_kind());
        assert_eq!(fold(&replayed(&ledger)), fold(&every_kind()));
        // It goes on where it was: repeats are known, new entries follow.
        append(&ledger, &every_kind()).unwrap();
        append(&ledger, &[delivered(3, 0, 8, 8)]).unwrap();
        assert_eq!(replayed(&ledger).len(), every_kind().len() + 1);
        ledger.close().unwrap();
        let found = inspect(&path).unwrap();
        assert_eq!((found.faults, found.jobs), (vec![], 3));
    }
}

#[test]
fn an_older_file_is_copied_before_it_is_migrated_and_no_copy_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    for wanted in ["ledger.db.schema-1", "ledger.db.schema-1.2"] {
        let path = first_schema(folder.path());
        drop(open(&path));
        let kept = folder.path().join(wanted);
        assert_eq!(version(&kept), "1", "{wanted}");
        assert_eq!(replayed(&open(&kept)), every_kind(), "{wanted}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_migration_that_fails_leaves_the_old_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = first_schema(folder.path());
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("DROP TRIGGER entries_never_change").unwrap();
    let last = "UPDATE entries SET body = '{}' WHERE id = (SELECT max(id) FROM entries)";
    raw.execute(last, []).unwrap();
    let rows = |raw: &Connection| -> Vec<(i64, String, String)> {
        let mut all = raw.prepare("SELECT id, key, body FROM entries ORDER BY id").unwrap();
        let rows = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let before = rows(&raw);
    drop(raw);
    for _ in 0..2 {
        let why = refusal(&path, binding());
        assert!(why.contains(&format!("entry {} ", before.len())), "{why}");
        assert_eq!(version(&path), "1");
        assert_eq!(rows(&Connection::open(&path).unwrap()), before);
    }
}

#[test]
fn a_crash_in_the_middle_of_a_migration_costs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = first_schema(folder.path());
    // What a crash leaves: half of the copy, and in the log a transaction that never committed.
    fs::write(kept_copy(&path).with_extension("schema-1.partial"), b"half a copy").unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("PRAGMA journal_mode = WAL; PRAGMA cache_size = 2; BEGIN").unwrap();
    raw.execute_batch("DROP TABLE entries; CREATE TABLE deliveries (id)").unwrap();
    let torn = folder.path().join("torn");
    fs::create_dir(&torn).unwrap();
    for name in ["ledger.db", "ledger.db-wal"] {
        fs::copy(folder.path().join(name), torn.join(name)).unwrap();
    }
    drop(raw);
    assert_eq!(replayed(&open(&torn.join("ledger.db"))), every_kind());
    assert_eq!(replayed(&open(&path)), every_kind());
}

#[test]
fn a_newer_schema_is_refused_by_name_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    append(&ledger, &[entry(1, tally::billing::Fact::OwnerProven)]).unwrap();
    ledger.close().unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.execute("UPDATE meta SET value = '4' WHERE name = 'schema_version'", []).unwrap();
    raw.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    drop(raw);
    let before = fs::read(&path).unwrap();
    let why = refusal(&path, binding());
    assert!(why.contains("schema is version 4, this program knows 3"), "{why}");
    assert!(SqliteReader::open(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(!path.with_file_name("ledger.db-wal").exists());
}

#[test]
fn a_reader_says_who_migrates_an_older_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = first_schema(folder.path());
    let Err(error) = SqliteReader::open(&path) else { panic!("it opened") };
    assert!(error.to_string().contains("`tally serve` migrates it"), "{error}");
    let stranger = tally::units::Address::new([0xbb; 20]);
    let other = tally::ledger::sqlite::LedgerBinding { wallet: stranger, ..binding() };
    let refused = SqliteLedger::open(&path, SqliteOptions::new(other));
    assert!(refused.is_err());
    assert_eq!(version(&path), "1", "a stranger's file is not migrated");
}
