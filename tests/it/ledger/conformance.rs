//! What both adapters promise.

use std::sync::Arc;
use std::sync::mpsc::channel;

use tally::billing::{Entry, Fact};
use tally::ledger::memory::MemoryLedger;
use tally::ledger::{Ledger, LedgerError};
use tally::units::{BlockNumber, Millis, TokenCount};

use super::{append, claimed, delivered, ended, entry, job, open, replayed, submit};

/// Runs `check` over every adapter.
fn each_adapter(check: impl Fn(&str, Arc<dyn Ledger>)) {
    let folder = tempfile::tempdir().unwrap();
    check("sqlite", Arc::new(open(&folder.path().join("ledger.db"))));
    check("memory", Arc::new(MemoryLedger::new()));
}

fn conflict(entry: &Entry) -> Result<(), LedgerError> {
    Err(LedgerError::Conflict { key: entry.key() })
}

#[test]
fn what_was_acknowledged_replays_in_order_of_submission() {
    each_adapter(|name, ledger| {
        let first = [entry(1, Fact::OwnerProven), delivered(1, 0, 0, 8)];
        let second = [delivered(2, 0, 0, 3), claimed(1, 5, 100), ended(1, 0)];
        append(&*ledger, &first).unwrap();
        append(&*ledger, &second).unwrap();
        let wanted: Vec<Entry> = first.into_iter().chain(second).collect();
        assert_eq!(replayed(&*ledger), wanted, "{name}");
        assert!(ledger.is_healthy(), "{name}");
    });
}

#[test]
fn a_job_reads_its_own_entries_only() {
    each_adapter(|name, ledger| {
        let group = [delivered(1, 0, 0, 2), delivered(2, 0, 0, 3), delivered(1, 0, 2, 2)];
        append(&*ledger, &group).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |number| runtime.block_on(ledger.job_entries(job(number))).unwrap();
        assert_eq!(read(1), [group[0].clone(), group[2].clone()], "{name}");
        assert_eq!(read(2), [group[1].clone()], "{name}");
        assert_eq!(read(3), [], "{name}");
    });
}

#[test]
fn the_same_fact_twice_is_acknowledged_twice_and_counted_once() {
    each_adapter(|name, ledger| {
        let once = delivered(1, 0, 0, 8);
        let mut later = once.clone();
        later.at = Millis::new(9_999);
        append(&*ledger, std::slice::from_ref(&once)).unwrap();
        append(&*ledger, std::slice::from_ref(&later)).unwrap();
        let next = delivered(1, 0, 8, 8);
        append(&*ledger, &[later, next.clone(), next.clone()]).unwrap();
        assert_eq!(replayed(&*ledger), [once, next], "{name}");
    });
}

#[test]
fn other_content_under_a_key_is_a_conflict_and_its_group_leaves_no_trace() {
    let forfeited = |n| Fact::JobClosed {
        closing: 0,
        block: BlockNumber::ZERO,
        unclaimable: TokenCount::ZERO,
        forfeited: TokenCount::new(n),
    };
    each_adapter(|name, ledger| {
        let first = entry(1, forfeited(10));
        append(&*ledger, std::slice::from_ref(&first)).unwrap();
        let other = entry(1, forfeited(11));
        let group = [delivered(1, 0, 0, 4), other.clone(), delivered(1, 0, 4, 4)];
        assert_eq!(append(&*ledger, &group), conflict(&other), "{name}");
        assert_eq!(replayed(&*ledger), [first], "{name}");
        assert!(ledger.is_healthy(), "{name}: a conflict is the caller's fault");
    });
}

#[test]
fn a_group_that_contradicts_itself_is_a_conflict() {
    each_adapter(|name, ledger| {
        let twice = [delivered(1, 0, 0, 8), delivered(1, 0, 0, 9)];
        assert_eq!(append(&*ledger, &twice), conflict(&twice[1]), "{name}");
        assert_eq!(replayed(&*ledger), [], "{name}");
    });
}

#[test]
fn no_position_of_a_turn_is_recorded_twice() {
    // (position, count), in order; `false`: refused.
    type Steps = &'static [(u32, u32, bool)];
    let table: &[Steps] = &[
        &[(0, 8, true), (8, 8, true), (0, 8, true), (8, 8, true)],
        &[(0, 8, true), (0, 7, false), (0, 9, false), (8, 1, true)],
        &[(0, 8, true), (7, 1, false), (7, 2, false), (1, 3, false), (8, 8, true)],
        &[(8, 8, true), (0, 9, false), (0, 24, false), (15, 1, false), (0, 8, true)],
        &[(0, 8, true), (16, 8, true), (8, 9, false), (8, 8, true), (24, 1, true)],
        &[(0, 8, true), (4, 0, false), (8, 0, true), (8, 4, false), (8, 0, true), (9, 4, true)],
        &[(0, 0, true), (0, 8, false), (0, 0, true), (1, 8, true)],
    ];
    each_adapter(|name, ledger| {
        for (number, steps) in (1..).zip(table) {
            for (position, count, accepted) in *steps {
                let step = delivered(number, 0, *position, *count);
                let got = append(&*ledger, std::slice::from_ref(&step));
                let wanted = if *accepted { Ok(()) } else { conflict(&step) };
                assert_eq!(got, wanted, "{name}: ({position}, {count}) in {steps:?}");
            }
            // Another turn and another job share nothing with it.
            append(&*ledger, &[delivered(number, 1, 0, 5)]).unwrap();
            append(&*ledger, &[delivered(number + 100, 0, 0, 5)]).unwrap();
        }
    });
}

#[test]
fn a_refused_group_does_not_block_the_place_it_wanted() {
    each_adapter(|name, ledger| {
        append(&*ledger, &[delivered(1, 0, 0, 8)]).unwrap();
        let bad = [delivered(1, 0, 8, 8), delivered(1, 0, 4, 8)];
        assert_eq!(append(&*ledger, &bad), conflict(&bad[1]), "{name}");
        append(&*ledger, &[delivered(1, 0, 8, 4), delivered(1, 0, 12, 4)]).unwrap();
    });
}

#[test]
fn an_ended_turn_still_guards_its_positions() {
    each_adapter(|name, ledger| {
        append(&*ledger, &[delivered(1, 0, 0, 8), ended(1, 0)]).unwrap();
        let again = delivered(1, 0, 5, 1);
        assert_eq!(append(&*ledger, std::slice::from_ref(&again)), conflict(&again), "{name}");
    });
}

#[test]
fn acknowledgements_come_in_the_order_of_submission() {
    each_adapter(|name, ledger| {
        let (fates, arrived) = channel();
        for number in 0..200 {
            let group = vec![delivered(1, u32::try_from(number).unwrap(), 0, 1)];
            submit(&*ledger, group, number, &fates).unwrap();
        }
        drop(fates);
        let order: Vec<usize> = arrived.iter().map(|(number, _)| number).collect();
        assert_eq!(order, (0..200).collect::<Vec<_>>(), "{name}");
    });
}

#[test]
fn a_callback_may_submit_again() {
    each_adapter(|name, ledger| {
        let (fates, arrived) = channel();
        let again = Arc::clone(&ledger);
        let chained = Box::new(move |fate: Result<(), LedgerError>| {
            fate.unwrap();
            submit(&*again, vec![delivered(1, 0, 1, 1)], 2, &fates).unwrap();
        });
        ledger.submit(vec![delivered(1, 0, 0, 1)], chained).unwrap();
        assert_eq!(arrived.recv().unwrap(), (2, Ok(())), "{name}");
        assert_eq!(replayed(&*ledger).len(), 2, "{name}");
    });
}

#[test]
fn a_held_ledger_acknowledges_on_release_and_a_crash_forgets_what_waited() {
    let ledger = MemoryLedger::held().queue_capacity(3);
    let (fates, arrived) = channel();
    submit(&ledger, vec![delivered(1, 0, 0, 1)], 0, &fates).unwrap();
    assert!(arrived.try_recv().is_err());
    ledger.release();
    assert_eq!(arrived.try_recv(), Ok((0, Ok(()))));
    for number in 1..=3 {
        submit(&ledger, vec![delivered(number, 0, 1, 1)], 1, &fates).unwrap();
    }
    let refused = submit(&ledger, vec![delivered(9, 0, 0, 1)], 4, &fates);
    assert_eq!((refused, ledger.waiting()), (Err(LedgerError::Full), 3));
    let reopened = ledger.crash();
    assert_eq!(reopened.entries(), [delivered(1, 0, 0, 1)]);
    append(&reopened, &[delivered(1, 0, 1, 1)]).unwrap();
    assert!(arrived.try_recv().is_err());
}

#[test]
fn the_memory_ledger_fails_on_demand_and_stays_failed() {
    let ledger = MemoryLedger::new();
    append(&ledger, &[delivered(1, 0, 0, 1)]).unwrap();
    ledger.fail_next();
    for position in [1, 2] {
        let fate = append(&ledger, &[delivered(1, 0, position, 1)]);
        assert!(matches!(fate, Err(LedgerError::Store(_))), "{fate:?}");
    }
    assert!(!ledger.is_healthy());
    assert_eq!(ledger.crash().entries().len(), 1);
}
