//! The end of a session: when it is completed, and what a late prompt meets.

use serde_json::json;
use tally::session::{Phase, Refusal};
use tally::units::{JobId, Millis};

use super::harness::{GRACE, World, request, tokens};
use super::tap::{Death, Silence};
use crate::support::anvil::CLIENT;

/// A session past its dispute window with a final claim.
async fn claimed() -> (World, JobId) {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.devnet.increase_time(400).await;
    world.settle().await;
    (world, job)
}

fn just_before(grace: Millis) -> Millis {
    grace.saturating_sub(Millis::new(1))
}

#[tokio::test]
async fn a_goodbye_a_drop_and_plain_silence_have_their_own_patience() {
    for (end, grace) in [("close", GRACE.closed), ("drop", GRACE.dropped), ("idle", GRACE.idle)] {
        let (mut world, job) = claimed().await;
        world.deliver(job, 20).await;
        let connection = (end != "idle").then(|| world.sessions().attach(job));
        world.advance(GRACE.idle);
        match (end, connection) {
            ("close", Some(connection)) => connection.close_clean(),
            (_, connection) => drop(connection),
        }
        if end == "idle" {
            // Its last prompt is what counts.
            world.deliver(job, 1).await;
        }
        world.advance(just_before(grace));
        world.tick().await;
        assert!(world.account(job).completion().is_none(), "{end}: too early");
        world.advance(Millis::new(1));
        world.tick().await;
        assert!(world.account(job).completion().is_some(), "{end}");
        world.settle().await;
        assert_eq!(world.phase(job), Phase::Completed, "{end}");
    }
}

#[tokio::test]
async fn a_connection_without_prompts_keeps_its_session_open() {
    let (mut world, job) = claimed().await;
    let connection = world.sessions().attach(job);
    world.advance(GRACE.idle);
    world.settle().await;
    assert_eq!(world.phase(job), Phase::Active);
    connection.close_clean();
    assert_eq!(world.phase(job), Phase::Draining);
}

#[tokio::test]
async fn a_prompt_while_draining_brings_the_session_back() {
    let (mut world, job) = claimed().await;
    world.sessions().attach(job).close_clean();
    assert_eq!(world.phase(job), Phase::Draining);
    world.engine.set_script(tokens(100));
    let reply = world.sessions().begin(request(job, 100)).await.unwrap();
    assert_eq!(world.phase(job), Phase::Active);
    world.advance(GRACE.idle);
    world.tick().await;
    assert!(world.account(job).completion().is_none(), "a request runs");
    world.read(job, reply).await;
    world.settle_ledger().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150, 100]);
}

#[tokio::test]
async fn a_prompt_after_the_completion_was_signed_is_refused() {
    let (mut world, job) = claimed().await;
    world.advance(GRACE.idle);
    world.tap.die(Death::BeforeBroadcast);
    world.tick_until_death().await;
    assert_eq!(world.phase(job), Phase::Settling);
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
    world.restart().await;
    assert_eq!(world.phase(job), Phase::Settling, "signed is signed");
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
    world.settle().await;
    assert_eq!(world.phase(job), Phase::Completed);
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 0)]);
}

#[tokio::test]
async fn a_completion_that_is_not_signed_opens_the_door_again() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.settle().await;
    world.advance(GRACE.idle);
    // Quiet for long, but the dispute window is open for minutes yet.
    world.tick().await;
    assert!(world.account(job).completion().is_none());
    world.deliver(job, 10).await;
    assert_eq!(world.account(job).recorded().get(), 160);
}

#[tokio::test]
async fn a_depositor_who_completes_first_ends_the_session_with_what_is_proven() {
    let (mut world, job) = claimed().await;
    world.deliver(job, 120).await;
    world.devnet.complete(CLIENT, job).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 120)]);
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
}

#[tokio::test]
async fn two_completions_at_once_close_the_session_once() {
    let (mut world, job) = claimed().await;
    world.advance(GRACE.idle);
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    world.devnet.complete(CLIENT, job).await;
    world.tap.set(Silence::None);
    world.settle().await;
    world.settle().await;
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 0)]);
    assert_eq!(world.account(job).txs_open().count(), 0);
}

#[tokio::test]
async fn a_reorg_of_the_completion_does_not_reopen_the_door() {
    let (mut world, job) = claimed().await;
    world.advance(GRACE.idle);
    world.tick().await;
    world.mine(1).await;
    world.tick().await;
    world.devnet.rpc("anvil_reorg", json!([1, []])).await;
    world.tick().await;
    assert_eq!(world.phase(job), Phase::Settling);
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
    world.settle().await;
    assert_eq!(world.phase(job), Phase::Completed);
}

#[tokio::test]
async fn a_session_is_followed_by_its_events_between_two_sweeps() {
    let mut world = World::with_rules(tally::settlement::SettlementRules {
        sweep_every: Millis::new(u64::MAX),
        ..super::harness::rules()
    })
    .await;
    let job = world.open(1000).await;
    world.deliver(job, 20).await;
    world.tick().await;
    world.devnet.complete(CLIENT, job).await;
    world.settle().await;
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 20)]);
}

#[tokio::test]
async fn a_session_that_ended_while_the_node_was_away_is_closed_at_the_next_start() {
    let (mut world, job) = claimed().await;
    world.devnet.complete(CLIENT, job).await;
    world.mine(100).await;
    world.restart().await;
    world.settle().await;
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 0)]);
}
