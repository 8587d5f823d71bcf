//! The writer thread: grouping, isolation, a full queue, failure, shutdown.

use std::sync::Arc;
use std::sync::mpsc::channel;

use tally::billing::Fact;
use tally::ledger::sqlite::{SqliteLedger, SqliteOptions};
use tally::ledger::{Ledger, LedgerError};

use super::{append, binding, delivered, entry, open, replayed, stall, submit};

#[test]
fn groups_that_wait_share_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { groups_per_commit_max: 10, ..SqliteOptions::new(binding()) };
    let ledger = SqliteLedger::open(&folder.path().join("ledger.db"), options).unwrap();
    let resume = stall(&ledger);
    let (fates, arrived) = channel();
    for number in 0..50_usize {
        let position = u32::try_from(number).unwrap();
        submit(&ledger, vec![delivered(1, 0, position, 1)], number, &fates).unwrap();
    }
    drop((resume, fates));
    assert!(arrived.iter().all(|(_, fate)| fate.is_ok()));
    let counts = ledger.counts();
    assert_eq!((counts.commits, counts.groups, counts.entries), (1 + 5, 51, 51));
}

#[test]
fn a_conflict_spares_the_groups_in_the_same_commit() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.db"));
    let resume = stall(&ledger);
    let (fates, arrived) = channel();
    let bad = vec![delivered(2, 0, 0, 4), delivered(1, 0, 4, 8)];
    let groups = [vec![delivered(1, 0, 0, 8)], bad.clone(), vec![delivered(1, 0, 8, 8)]];
    for (number, group) in groups.iter().enumerate() {
        submit(&ledger, group.clone(), number, &fates).unwrap();
    }
    drop((resume, fates));
    let conflict = Err(LedgerError::Conflict { key: bad[1].key() });
    let fates: Vec<_> = arrived.iter().collect();
    assert_eq!(fates, [(0, Ok(())), (1, conflict), (2, Ok(()))]);
    assert_eq!(ledger.counts().commits, 2);
    let wanted = [entry(999, Fact::OwnerProven), groups[0][0].clone(), groups[2][0].clone()];
    assert_eq!(replayed(&ledger), wanted);
}

#[test]
fn a_full_queue_takes_nothing_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions { queue_capacity: 2, ..SqliteOptions::new(binding()) };
    let ledger = SqliteLedger::open(&folder.path().join("ledger.db"), options).unwrap();
    let resume = stall(&ledger);
    let (fates, arrived) = channel();
    for (number, position) in [(0, 0), (1, 1)] {
        submit(&ledger, vec![delivered(1, 0, position, 1)], number, &fates).unwrap();
    }
    let third = || vec![delivered(1, 0, 2, 1)];
    assert_eq!(submit(&ledger, third(), 2, &fates), Err(LedgerError::Full));
    drop(resume);
    assert_eq!([arrived.recv().unwrap().0, arrived.recv().unwrap().0], [0, 1]);
    submit(&ledger, third(), 3, &fates).unwrap();
    drop(fates);
    // The refused group's callback never runs.
    assert_eq!(arrived.iter().collect::<Vec<_>>(), [(3, Ok(()))]);
    assert_eq!(replayed(&ledger).len(), 4);
}

#[test]
fn a_store_failure_answers_everyone_and_is_final() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    append(&ledger, &[delivered(1, 0, 0, 8)]).unwrap();
    let resume = stall(&ledger);
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch(
            "CREATE TRIGGER breakage BEFORE INSERT ON deliveries WHEN NEW.position = 16
             BEGIN SELECT RAISE(ABORT, 'the disk is gone'); END",
        )
        .unwrap();
    let (fates, arrived) = channel();
    for (number, position) in [8, 16, 24].into_iter().enumerate() {
        submit(&ledger, vec![delivered(1, 0, position, 8)], number, &fates).unwrap();
    }
    drop((resume, fates));
    let fates: Vec<_> = arrived.iter().collect();
    assert_eq!(fates.len(), 3);
    for (number, (name, fate)) in fates.iter().enumerate() {
        let Err(LedgerError::Store(why)) = fate else { panic!("{fate:?}") };
        assert_eq!(*name, number);
        assert!(why.contains("the disk is gone"), "{why}");
    }
    assert!(!ledger.is_healthy());
    let later = ledger.submit(vec![delivered(2, 0, 0, 1)], Box::new(|_| panic!("was taken")));
    assert!(matches!(later, Err(LedgerError::Store(_))));
    // What was acknowledged is there, what was not is not.
    assert_eq!(replayed(&ledger).len(), 2);
    assert!(ledger.close().is_err());
}

#[test]
fn closing_writes_and_acknowledges_what_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let ledger = open(&path);
    let (fates, arrived) = channel();
    for number in 0..300_usize {
        let position = u32::try_from(number).unwrap();
        submit(&ledger, vec![delivered(1, 0, position, 1)], number, &fates).unwrap();
    }
    ledger.close().unwrap();
    drop(fates);
    assert_eq!(arrived.iter().filter(|(_, fate)| fate.is_ok()).count(), 300);
    assert_eq!(replayed(&open(&path)).len(), 300);
}

#[test]
fn the_last_reference_may_be_dropped_inside_a_callback() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Arc::new(open(&folder.path().join("ledger.db")));
    let (done, wait) = channel();
    let (released, may_drop) = channel::<()>();
    let held = Arc::clone(&ledger);
    let on_durable = Box::new(move |_| {
        let _ = may_drop.recv();
        drop(held);
        done.send(()).unwrap();
    });
    ledger.submit(vec![delivered(1, 0, 0, 1)], on_durable).unwrap();
    drop(ledger);
    drop(released);
    wait.recv().unwrap();
}

#[test]
fn a_panicking_callback_marks_the_ledger_broken() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = open(&folder.path().join("ledger.db"));
    let resume = stall(&ledger);
    let (fates, arrived) = channel();
    ledger.submit(vec![delivered(1, 0, 0, 1)], Box::new(|_| panic!("on purpose"))).unwrap();
    submit(&ledger, vec![delivered(1, 0, 1, 1)], 0, &fates).unwrap();
    drop((resume, fates));
    // Its callback was dropped with the writer, which a waiter sees as "the writer is gone".
    assert!(arrived.recv().is_err());
    assert!(ledger.close().is_err());
}
