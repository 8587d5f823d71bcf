//! The file: who may open it, what it refuses, what damage looks like.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use tally::ledger::LedgerError;
use tally::ledger::sqlite::{LedgerBinding, SqliteReader};
use tally::units::Address;

use super::{append, binding, delivered, ended, job, open, refusal, replayed};

#[test]
fn a_ledger_of_another_chain_contract_or_wallet_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    append(&open(&path), &[delivered(1, 0, 0, 8)]).unwrap();
    let stranger = Address::new([0xbb; 20]);
    let table = [
        (LedgerBinding { chain_id: 8453, ..binding() }, "belongs to chain 31337"),
        (LedgerBinding { contract: stranger, ..binding() }, "belongs to contract 0xc0c0"),
        (LedgerBinding { wallet: stranger, ..binding() }, "belongs to wallet 0xaaaa"),
    ];
    for (other, wanted) in table {
        let why = refusal(&path, other);
        assert!(why.contains(wanted), "{why}");
    }
    assert_eq!(replayed(&open(&path)).len(), 1);
}

#[test]
fn nobody_edits_or_removes_an_entry_whatever_program_they_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    append(&ledger, &[delivered(1, 0, 0, 8), delivered(1, 0, 8, 8), ended(1, 0)]).unwrap();
    let before = replayed(&ledger);
    let raw = Connection::open(&path).unwrap();
    let texts = "INSERT OR REPLACE INTO entries (id, key, job, at_ms, kind, body, crc) VALUES";
    let deliveries = "INSERT OR REPLACE INTO deliveries \
         (id, job, turn, position, tokens, at_ms, ids, crc) VALUES";
    for statement in [
        "UPDATE entries SET job = 2 WHERE id = 3".to_owned(),
        "DELETE FROM entries WHERE id = 3".to_owned(),
        "DELETE FROM entries".to_owned(),
        "UPDATE deliveries SET at_ms = 0 WHERE id = 1".to_owned(),
        "DELETE FROM deliveries WHERE id = 1".to_owned(),
        "DELETE FROM deliveries".to_owned(),
        format!("{texts} (3, 'x', 1, 1, 'owner_proven', '{{}}', 0)"),
        format!("{texts} (77, '1/turn/0/end', 1, 1, 'turn_ended', '{{}}', 0)"),
        format!("{deliveries} (1, 1, 0, 99, 1, 1, x'01020304', 0)"),
        format!("{deliveries} (77, 1, 0, 8, 1, 1, x'01020304', 0)"),
    ] {
        let error = raw.execute(&statement, []).unwrap_err().to_string();
        assert!(error.contains("append-only"), "{statement}: {error}");
    }
    let lie = "INSERT INTO deliveries (id, job, turn, position, tokens, at_ms, ids, crc) \
         VALUES (77, 1, 0, 99, 2, 1, x'01020304', 0)";
    let error = raw.execute(lie, []).unwrap_err().to_string();
    assert!(error.contains("CHECK"), "tokens are as many as ids: {error}");
    assert_eq!(replayed(&ledger), before);
}

#[test]
fn the_guard_against_overlap_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    append(&open(&path), &[delivered(1, 0, 0, 8), delivered(1, 0, 8, 8)]).unwrap();
    let ledger = open(&path);
    let wrong = delivered(1, 0, 12, 8);
    let conflict = Err(LedgerError::Conflict { key: wrong.key() });
    assert_eq!(append(&ledger, &[wrong]), conflict);
    append(&ledger, &[delivered(1, 0, 8, 8), delivered(1, 0, 16, 8)]).unwrap();
    assert_eq!(replayed(&ledger).len(), 3);
}

#[test]
fn others_read_while_the_node_writes_and_after_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    assert!(SqliteReader::open(&path).is_err());
    assert!(!path.exists(), "a reader creates nothing");
    let ledger = open(&path);
    let reader = SqliteReader::open(&path).unwrap();
    append(&ledger, &[delivered(1, 0, 0, 8), delivered(2, 0, 0, 8)]).unwrap();
    assert_eq!(reader.binding(), binding());
    assert_eq!(reader.job_entries(job(2)).unwrap(), [delivered(2, 0, 0, 8)]);
    drop(reader);
    ledger.close().unwrap();
    let mut count = 0;
    SqliteReader::open(&path).unwrap().replay(&mut |_| count += 1).unwrap();
    assert_eq!(count, 2);
}

#[test]
fn only_the_owner_may_read_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    append(&ledger, &[delivered(1, 0, 0, 8)]).unwrap();
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn what_is_no_ledger_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    fs::write(&path, b"Dear diary, this is no database. ".repeat(200)).unwrap();
    let why = refusal(&path, binding());
    assert!(why.contains("not a database"), "{why}");
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE cake (layer)").unwrap();
    let why = refusal(&path, binding());
    assert!(why.contains("no Tally ledger"), "{why}");
    assert!(refusal(&folder.path().join("missing/ledger.db"), binding()).contains("missing"));
}

/// Enough entries that the file has many pages, all of them out of the log.
fn filled(path: &Path) -> usize {
    let ledger = open(path);
    let group: Vec<_> = (0..2_000).map(|n| delivered(1, n, 0, 8)).collect();
    append(&ledger, &group).unwrap();
    ledger.close().unwrap();
    group.len()
}

#[test]
fn a_damaged_page_stops_the_node_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    filled(&path);
    for page in [0, 3, 40] {
        let copy = folder.path().join(format!("damaged-{page}.db"));
        fs::copy(&path, &copy).unwrap();
        let mut file = fs::OpenOptions::new().write(true).open(&copy).unwrap();
        file.seek(SeekFrom::Start(page * 4096)).unwrap();
        file.write_all(&[0xee; 4096]).unwrap();
        let why = refusal(&copy, binding());
        assert!(why.contains(copy.to_str().unwrap()), "{why}");
    }
    let short = folder.path().join("short.db");
    fs::copy(&path, &short).unwrap();
    let half = fs::metadata(&short).unwrap().len() / 2;
    fs::OpenOptions::new().write(true).open(&short).unwrap().set_len(half).unwrap();
    assert!(refusal(&short, binding()).contains("short.db"));
}

#[test]
fn an_entry_that_was_tampered_with_is_named_on_replay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let group = [delivered(1, 0, 0, 8), delivered(1, 0, 8, 8), ended(1, 0)];
    append(&open(&path), &group).unwrap();
    let texts = ["kind = 'gifted'", "body = '{}'", "at_ms = 9", "job = 2", "crc = 7", "id = 9"];
    let deliveries = ["job = 2", "turn = 3", "position = 24", "at_ms = 9", "crc = 7", "id = 9"];
    let ids = ["ids = zeroblob(32)"];
    let table =
        [("entries", 3, &texts[..]), ("deliveries", 2, &deliveries), ("deliveries", 2, &ids)];
    for (name, id, changes) in table {
        for change in changes {
            let copy = folder.path().join("copy.db");
            fs::copy(&path, &copy).unwrap();
            let raw = Connection::open(&copy).unwrap();
            raw.execute_batch(&format!("DROP TRIGGER {name}_never_change")).unwrap();
            raw.execute(&format!("UPDATE {name} SET {change} WHERE id = {id}"), []).unwrap();
            drop(raw);
            let mut read = 0;
            let result = SqliteReader::open(&copy).unwrap().replay(&mut |_| read += 1);
            let Err(LedgerError::Store(why)) = result else { panic!("{change}: {result:?}") };
            let id = if *change == "id = 9" { 9 } else { id };
            assert!(why.contains(&format!("entry {id} ")), "{change}: {why}");
            assert!(read < group.len(), "{change}");
            fs::remove_file(&copy).unwrap();
        }
    }
}

#[test]
fn a_torn_last_write_loses_that_group_whole_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    append(&ledger, &[delivered(1, 0, 0, 8)]).unwrap();
    let kept = replayed(&ledger);
    let log = |of: &Path| of.with_file_name("ledger.db-wal");
    let whole = fs::metadata(log(&path)).unwrap().len();
    append(&ledger, &[delivered(1, 0, 8, 8), delivered(1, 0, 16, 8)]).unwrap();
    let torn = folder.path().join("torn");
    fs::create_dir(&torn).unwrap();
    let copy = torn.join("ledger.db");
    let end = fs::metadata(log(&path)).unwrap().len();
    for cut in [whole + 1, end - 4096, end - 1] {
        fs::copy(&path, &copy).unwrap();
        fs::copy(log(&path), log(&copy)).unwrap();
        fs::OpenOptions::new().write(true).open(log(&copy)).unwrap().set_len(cut).unwrap();
        let reopened = open(&copy);
        assert_eq!(replayed(&reopened), kept, "cut at {cut} of {end}");
        append(&reopened, &[delivered(1, 0, 8, 8)]).unwrap();
    }
}
