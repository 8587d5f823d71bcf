//! The process dies between any two steps of a claim, and exactly one claim counts.

use tally::billing::TxState;
use tally::units::TokenCount;

use super::harness::{World, claims_of};
use super::tap::Death;

async fn one_claim_counts(world: &mut World, job: tally::units::JobId) {
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Confirmed)]);
    let sent = world.tap.sent();
    assert!(sent.iter().all(|hash| *hash == sent[0]), "the same bytes each time");
}

#[tokio::test]
async fn a_death_before_the_entry_is_durable_leaves_nothing_behind() {
    let mut world = World::in_memory().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.memory().hold();
    {
        let ledger = world.memory();
        let mut tick = Box::pin(world.try_tick());
        // Until the entry waits for the ledger.
        while ledger.waiting() == 0 {
            tokio::select! {
                biased;
                ended = &mut tick => panic!("settlement did not wait: {ended:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    assert!(world.tap.sent().is_empty(), "nothing is sent that is not durable");
    world.restart().await;
    assert_eq!(world.account(job).claims().count(), 0);
    one_claim_counts(&mut world, job).await;
}

#[tokio::test]
async fn a_death_between_the_entry_and_the_broadcast_sends_it_once() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.die(Death::BeforeBroadcast);
    world.tick_until_death().await;
    assert!(world.tap.sent().is_empty());
    world.restart().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Prepared)]);
    one_claim_counts(&mut world, job).await;
}

#[tokio::test]
async fn a_death_between_broadcast_and_inclusion_sends_the_same_again() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.die(Death::AfterBroadcast);
    world.tick_until_death().await;
    world.restart().await;
    // More work came meanwhile: it is no reason for another claim beside the first.
    world.tick().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Prepared)]);
    one_claim_counts(&mut world, job).await;
}

#[tokio::test]
async fn a_death_between_inclusion_and_its_record_finds_the_receipt() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.die(Death::AfterBroadcast);
    world.tick_until_death().await;
    world.mine(1).await;
    world.restart().await;
    world.tick().await;
    assert_eq!(world.account(job).included(), TokenCount::new(150));
    one_claim_counts(&mut world, job).await;
}

#[tokio::test]
async fn a_death_after_every_single_pass_changes_nothing() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    for _ in 0..8 {
        world.tick().await;
        world.restart().await;
        world.devnet.increase_time(20).await;
    }
    one_claim_counts(&mut world, job).await;
}

#[tokio::test]
async fn a_death_in_mid_answer_loses_no_more_than_the_credit() {
    let mut world = World::in_memory().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.memory().hold();
    let seen = world.read_until_credit_is_used(job).await;
    assert_eq!(seen, 8);
    world.restart().await;
    assert_eq!(world.account(job).recorded(), TokenCount::new(150));
    assert_eq!(world.account(job).turns_open().count(), 0, "the cut turn is ended");
    one_claim_counts(&mut world, job).await;
    world.deliver(job, 100).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150, 100]);
}
