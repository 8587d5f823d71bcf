//! Transactions that have become pointless give their nonce away, and nobody waits behind them.

use tally::billing::{Lost, RejectReason, TxState};
use tally::session::Phase;
use tally::units::TokenCount;

use super::harness::{GRACE, World, claims_of};
use super::tap::Silence;
use crate::support::anvil::{CLIENT, OpenSession, STRANGER};

const CANCELLED: TxState = TxState::Rejected(RejectReason::Cancelled);

#[tokio::test]
async fn a_claim_of_a_session_that_ended_is_cancelled_in_place_and_later_claims_go_through() {
    let mut world = World::start().await;
    let (ended, good) = (world.open(1000).await, world.open(1000).await);
    world.deliver(ended, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    world.deliver(good, 120).await;
    world.tick().await;
    world.devnet.complete(CLIENT, ended).await;
    world.tap.set(Silence::None);
    world.tick().await;
    let account = world.account(ended);
    let tx = &account.txs()[0];
    assert_eq!((tx.attempts.len(), tx.cancelled_from), (2, Some(1)), "under its own nonce");
    world.settle().await;
    let account = world.account(ended);
    assert_eq!(claims_of(&account), vec![(0, 150, CANCELLED)]);
    assert!(account.txs()[0].fee.get() > 0, "what it cost is recorded");
    assert_eq!(account.lost().map(Lost::total), Some(TokenCount::new(150)));
    assert_eq!(world.claims(ended).await, Vec::<u64>::new());
    assert_eq!(world.claims(good).await, vec![120]);
    assert_eq!(claims_of(&world.account(good)), vec![(1, 120, TxState::Confirmed)]);
    world.replay_is_live();
}

#[tokio::test]
async fn a_claim_that_is_mined_before_its_cancellation_counts() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    // One block holds it, the next one the session's end: settlement meets both at once.
    world.mine(1).await;
    world.devnet.complete(CLIENT, job).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    let account = world.account(job);
    assert_eq!(claims_of(&account), vec![(0, 150, TxState::Confirmed)]);
    assert_eq!(account.lost().map(Lost::total), Some(TokenCount::ZERO));
    world.replay_is_live();
}

#[tokio::test]
async fn a_completion_after_a_strangers_is_cancelled_in_place() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.devnet.increase_time(400).await;
    world.settle().await;
    world.advance(GRACE.idle);
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    assert!(world.account(job).completion().is_some());
    world.devnet.complete(STRANGER, job).await;
    world.tap.set(Silence::None);
    world.settle().await;
    let account = world.account(job);
    assert_eq!(account.txs()[1].state, CANCELLED);
    assert_eq!((world.phase(job), account.confirmed().get()), (Phase::Completed, 150));
}

#[tokio::test]
async fn a_cancelled_claims_tokens_are_claimed_again_where_the_sessions_end_is_taken_back() {
    let mut world = World::start().await;
    let open = OpenSession { deposit: 10_000_000, ..super::harness::opening() };
    let job = world.open_as(open).await;
    world.mine(5).await;
    world.deliver(job, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    world.devnet.complete(CLIENT, job).await;
    world.tick().await; // The empty transfer is signed, and lost as well.
    let account = world.account(job);
    assert_eq!(account.txs()[0].cancelled_from, Some(1));
    world.devnet.rpc("anvil_reorg", serde_json::json!([1, []])).await;
    world.tap.set(Silence::None);
    world.settle().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(world.account(job).confirmed().get(), 150);
    world.replay_is_live();
}
