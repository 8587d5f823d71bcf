//! `tally ledger …` and `tally keystore change-password` from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tally::node::lock::WalletLock;

use super::fixture::every_kind;
use super::{append, binding, open, replayed};

/// The end of a run.
struct Run {
    ok: bool,
    out: String,
    err: String,
}

/// The program in a folder whose data folder is `data`.
fn tally(dir: &Path, arguments: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    command.args(arguments).env_clear().env("HOME", dir).env("TALLY_DATA_DIR", dir.join("data"));
    let output = command.current_dir(dir).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// Where a node without chain settings looks for its ledger.
fn ledger_in(dir: &Path) -> PathBuf {
    let path = dir.join("data/free/ledger.sqlite3");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

#[test]
fn a_ledger_is_backed_up_beside_its_node_and_restored_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["ledger", "backup", "--to", "copy.db"]);
    assert!(!run.ok && run.err.contains("there is no ledger"), "{}", run.err);
    let path = ledger_in(dir.path());
    let ledger = open(&path);
    append(&ledger, &every_kind()).unwrap();
    let locks = dir.path().join("locks");
    let node = WalletLock::take(None, &locks, &dir.path().join("data")).unwrap();
    let run = tally(dir.path(), &["ledger", "backup", "--to", "copy.db"]);
    assert!(run.ok && run.out.ends_with("copy.db\n"), "{}{}", run.out, run.err);
    let run = tally(dir.path(), &["ledger", "restore", "--from", "copy.db"]);
    assert!(!run.ok && run.err.contains("another node"), "{}", run.err);
    drop((ledger, node));

    fs::remove_file(&path).unwrap();
    let run = tally(dir.path(), &["ledger", "restore", "--from", "copy.db"]);
    assert!(run.ok && run.out.contains("may have been lost"), "{}{}", run.out, run.err);
    let ledger = open(&path);
    assert_eq!(replayed(&ledger), every_kind());
    append(&ledger, &[super::delivered(3, 0, 8, 8)]).unwrap();
    drop(ledger);
    let run = tally(dir.path(), &["ledger", "restore", "--from", "copy.db"]);
    assert!(!run.ok && run.err.contains("--replace"), "{}", run.err);
    let run = tally(dir.path(), &["ledger", "restore", "--from", "copy.db", "--replace"]);
    assert!(run.ok && run.out.contains("ledger.sqlite3.replaced"), "{}{}", run.out, run.err);
}

#[test]
fn a_check_fails_the_command_where_it_finds_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let path = ledger_in(dir.path());
    append(&open(&path), &every_kind()).unwrap();
    let run = tally(dir.path(), &["ledger", "check", "--json"]);
    assert!(run.ok, "{}", run.err);
    let said: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((&said["ok"], &said["entries"]), (&true.into(), &every_kind().len().into()));
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute_batch("DROP TRIGGER deliveries_never_change").unwrap();
    raw.execute("UPDATE deliveries SET at_ms = 1 WHERE position = 0", []).unwrap();
    drop(raw);
    let run = tally(dir.path(), &["ledger", "check", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert!(!run.ok && said["ok"] == false && run.err.contains("not sound"), "{}", run.err);
    let run = tally(dir.path(), &["ledger", "check"]);
    assert!(!run.ok && run.out.contains("fault "), "{}", run.out);
}

#[test]
fn an_unfinished_ledger_is_not_put_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = ledger_in(dir.path());
    append(&open(&path), &every_kind()).unwrap();
    let run = tally(dir.path(), &["ledger", "retire"]);
    assert!(!run.ok && run.err.contains("job 1 is not closed"), "{}", run.err);
    fs::remove_file(&path).unwrap();
    drop(open(&path));
    let run = tally(dir.path(), &["ledger", "retire"]);
    let wallet = binding().wallet.to_string();
    assert!(run.ok && run.out.contains(&wallet), "{}{}", run.out, run.err);
    assert!(!path.exists());
}

#[test]
fn a_keystore_gets_another_password_and_keeps_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("old", "correct horse\n");
    write("new", "battery staple\n");
    for name in ["old", "new"] {
        use std::os::unix::fs::PermissionsExt;
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(dir.path().join(name), private).unwrap();
    }
    let made = tally(dir.path(), &["keystore", "new", "--password-file", "old"]);
    assert!(made.ok, "{}", made.err);
    let file = made.out.lines().last().unwrap().to_owned();
    let change = |old: &str, new: &str| {
        let files = ["--password-file", old, "--new-password-file", new];
        tally(dir.path(), &[&["keystore", "change-password", &file][..], &files].concat())
    };
    let refused = change("new", "old");
    assert!(!refused.ok && refused.out.is_empty(), "{}", refused.err);
    let changed = change("old", "new");
    assert!(changed.ok, "{}", changed.err);
    assert_eq!(changed.out, made.out, "the same address and file");
    assert!(!change("old", "new").ok && change("new", "old").ok);
}
