//! Many jobs on one nonce line: who goes first, how many wait, and when settlement is woken.

use serde_json::json;
use tally::billing::TxState;
use tally::chain::Chain;
use tally::session::Tracker;
use tally::settlement::SettlementRules;
use tally::units::{JobId, TokenCount};

use super::harness::{World, claims_of, opening, rules};
use super::tap::Silence;
use crate::support::anvil::{CLIENT, OpenSession, STRANGER};

/// A session whose silence ends it `deadline_s` seconds after `start`.
async fn open_at(world: &mut World, (start, interval): (u64, u64), price: u128) -> JobId {
    world.devnet.rpc("evm_setNextBlockTimestamp", json!([start])).await;
    let deposit = 10_000 * price;
    let open = OpenSession { deposit, price, proof_interval: interval, ..opening() };
    let job = world.devnet.open_session(open).await;
    world.watch(job, open);
    job
}

#[tokio::test]
async fn claims_go_out_by_deadline_and_among_equals_by_value() {
    let mut world = World::start().await;
    let start = world.tap.head().await.unwrap().time.get() + 100;
    // Silence ends a session after three times its interval in seconds.
    let late = open_at(&mut world, (start, 2000), 10_000).await;
    let poor = open_at(&mut world, (start + 3, 999), 10_000).await;
    let rich = open_at(&mut world, (start + 6, 998), 20_000).await;
    let first = open_at(&mut world, (start + 9, 500), 10_000).await;
    let ends = async |job| {
        let known = world.tap.job(job).await.unwrap().unwrap();
        known.last_proof_time.get() + known.silence_max.get()
    };
    assert_eq!(ends(poor).await, ends(rich).await);
    world.devnet.increase_time(60).await;
    for job in [late, poor, rich, first] {
        world.deliver(job, 110).await;
    }
    world.tick().await;
    let nonce = |job| claims_of(&world.account(job))[0].0;
    assert_eq!([first, rich, poor, late].map(nonce), [0, 1, 2, 3]);
}

#[tokio::test]
async fn sixteen_transactions_wait_for_a_block_at_most_and_no_job_starves() {
    let mut world = World::start().await;
    let mut jobs = Vec::new();
    for _ in 0..20 {
        jobs.push(world.open(1000).await);
    }
    for job in &jobs {
        world.deliver(*job, 100).await;
    }
    let signed =
        |world: &World| jobs.iter().map(|job| world.account(*job).claims().count()).sum::<usize>();
    for _ in 0..2 {
        world.tick().await;
        assert_eq!(signed(&world), 16);
    }
    world.mine(1).await;
    world.tick().await;
    assert_eq!(signed(&world), 20, "what is in a block makes room");
    world.settle().await;
    for job in &jobs {
        assert_eq!(world.claims(*job).await, vec![100]);
    }
}

#[tokio::test]
async fn reverts_that_are_not_deep_yet_do_not_hold_up_other_claims() {
    let mut world = World::with_rules(SettlementRules { reorg_depth: 64, ..rules() }).await;
    let mut burnt = Vec::new();
    for _ in 0..16 {
        burnt.push(world.open(1000).await);
    }
    let good = world.open(1000).await;
    for job in &burnt {
        world.deliver(*job, 100).await;
    }
    world.tick().await;
    for job in &burnt {
        let account = world.account(*job);
        let (_, tx) = account.claims().next().unwrap();
        world.devnet.rpc("anvil_dropTransaction", json!([tx.first().to_string()])).await;
    }
    for job in &burnt {
        let account = world.account(*job);
        let (body, _) = account.claims().next().unwrap();
        world.devnet.burn_first_word(STRANGER, body.proof[..32].try_into().unwrap()).await;
    }
    world.passes(2).await;
    world.deliver(good, 100).await;
    world.passes(3).await;
    assert_eq!(world.claims(good).await, vec![100]);
}

#[tokio::test]
async fn sixteen_claims_of_ended_sessions_do_not_hold_up_the_next() {
    let mut world = World::start().await;
    let mut ended = Vec::new();
    for _ in 0..16 {
        ended.push(world.open(1000).await);
    }
    let good = world.open(1000).await;
    for job in &ended {
        world.deliver(*job, 100).await;
    }
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    for job in &ended {
        world.devnet.complete(CLIENT, *job).await;
    }
    world.deliver(good, 100).await;
    world.tap.set(Silence::None);
    world.passes(5).await;
    assert_eq!(world.claims(good).await, vec![100]);
    for job in &ended {
        let account = world.account(*job);
        assert_eq!((account.claimed().get(), account.txs().len()), (0, 1));
    }
}

async fn is_woken(tracker: &Tracker) -> bool {
    tokio::select! {
        biased;
        () = tracker.claim_due() => true,
        () = tokio::task::yield_now() => false,
    }
}

#[tokio::test]
async fn settlement_is_woken_exactly_when_a_claim_becomes_due() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    let tracker = world.tracker();
    world.deliver(job, 99).await;
    assert!(!is_woken(&tracker).await);
    world.deliver(job, 1).await;
    assert!(is_woken(&tracker).await);
    assert!(!is_woken(&tracker).await, "once");
    world.deliver(job, 50).await;
    assert!(!is_woken(&tracker).await, "it knows already");
    world.settle().await;
    world.deliver(job, 99).await;
    assert!(!is_woken(&tracker).await);
    world.deliver(job, 2).await;
    assert!(is_woken(&tracker).await, "again for the next claim");
    let states: Vec<_> = claims_of(&world.account(job)).into_iter().map(|claim| claim.2).collect();
    assert_eq!(states, vec![TxState::Confirmed]);
}

#[tokio::test]
async fn a_larger_target_is_what_wakes_settlement() {
    let larger = SettlementRules { claim_at: TokenCount::new(300), ..rules() };
    let mut world = World::with_rules(larger).await;
    let job = world.open(1000).await;
    let tracker = world.tracker();
    world.deliver(job, 299).await;
    assert!(!is_woken(&tracker).await);
    world.deliver(job, 1).await;
    assert!(is_woken(&tracker).await);
}
