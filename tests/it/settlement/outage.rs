//! Events that could not be read: the log is back-filled, and state is looked at meanwhile.

use tally::chain::JobStatus;
use tally::session::Refusal;
use tally::settlement::SettlementRules;
use tally::units::{JobId, Millis};

use super::harness::{World, rules};
use crate::support::anvil::CLIENT;

async fn open_with_sweeps(every: Millis) -> (World, JobId) {
    let mut world = World::with_rules(SettlementRules { sweep_every: every, ..rules() }).await;
    let job = world.open(1000).await;
    world.deliver(job, 20).await;
    world.passes(2).await;
    (world, job)
}

fn closed(world: &World) -> Vec<(JobId, u64)> {
    world.news.closed.lock().unwrap().clone()
}

#[tokio::test]
async fn the_log_is_read_on_from_where_it_ended_after_an_outage() {
    let (mut world, job) = open_with_sweeps(Millis::new(30_000)).await;
    world.tap.set_deaf(true);
    world.devnet.complete(CLIENT, job).await;
    world.mine(1200).await;
    world.passes(3).await;
    let before = world.tap.heard().len();
    world.tap.set_deaf(false);
    world.passes(8).await;
    let heard = world.tap.heard();
    for pair in heard.windows(2) {
        let ((_, ended), (from, to)) = (pair[0], pair[1]);
        assert!(from <= ended + 1, "a gap between {ended} and {from}");
        assert!(to - from <= 500, "{from} to {to} in one piece");
    }
    assert!(heard.len() >= before + 3);
    let phase = |world: &World| world.tracker().snapshot(job).unwrap().job.status;
    assert_eq!(phase(&world), JobStatus::Completed, "no sweep was due: the log told");
    for _ in 0..2 {
        world.advance(Millis::new(30_000));
        world.passes(2).await;
    }
    assert_eq!(closed(&world), vec![(job, 20)]);
}

#[tokio::test]
async fn an_end_that_no_event_told_of_is_found_by_the_sweep() {
    let (mut world, job) = open_with_sweeps(Millis::new(30_000)).await;
    world.tap.set_deaf(true);
    world.devnet.complete(CLIENT, job).await;
    world.passes(3).await;
    assert_eq!(closed(&world), vec![]);
    world.advance(Millis::new(30_000));
    world.passes(1).await;
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
    for _ in 0..3 {
        world.advance(Millis::new(30_000));
        world.passes(1).await;
    }
    assert_eq!(closed(&world), vec![(job, 20)]);
}

#[tokio::test]
async fn an_end_that_an_event_told_of_is_not_served_on_an_older_reading() {
    let (mut world, job) = open_with_sweeps(Millis::new(u64::MAX)).await;
    world.advance(Millis::new(30_000));
    world.passes(1).await;
    world.deliver(job, 5).await;
    world.devnet.complete(CLIENT, job).await;
    world.tick().await;
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
}

#[tokio::test]
async fn a_log_that_cannot_be_read_makes_old_readings_worthless() {
    let (mut world, job) = open_with_sweeps(Millis::new(u64::MAX)).await;
    world.tap.set_deaf(true);
    world.advance(world.session_rules.snapshot_age_max);
    world.advance(Millis::new(1));
    world.devnet.complete(CLIENT, job).await;
    world.tick().await;
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job), "it is read again");
}
