//! The wallet's nonce line: holes are filled, each nonce is signed for once, nothing is stuck.

use serde_json::json;
use tally::billing::{Purpose, RejectReason, TxState};
use tally::units::{JobId, TxHash};

use super::harness::{World, claims_of};
use super::tap::Silence;
use crate::support::anvil::{HOST, STRANGER};

/// A job with 150 tokens to claim, far above the blocks that are taken back.
async fn delivered() -> (World, JobId) {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.mine(5).await;
    world.deliver(job, 150).await;
    (world, job)
}

/// Somebody else with the key takes the next nonce.
async fn foreign(world: &World) -> TxHash {
    let receipt = world.devnet.send(HOST, STRANGER.address(), vec![], 1).await;
    let hash: alloy::primitives::B256 =
        receipt["transactionHash"].as_str().unwrap().parse().unwrap();
    TxHash::new(hash.0)
}

fn fills(world: &World) -> Vec<(u64, TxState)> {
    let txs = world.wallet_txs();
    let fills = txs.iter().filter(|tx| tx.purpose == Purpose::Fill);
    fills.map(|tx| (tx.nonce.get(), tx.state)).collect()
}

#[tokio::test]
async fn a_hole_left_by_a_vanished_foreign_transaction_is_filled_and_the_claim_counts_once() {
    let (mut world, job) = delivered().await;
    let theirs = foreign(&world).await;
    for _ in 0..2 {
        world.tick().await;
        assert_eq!(world.account(job).claims().count(), 0, "one answer may be wrong");
    }
    world.tick().await;
    assert_eq!(claims_of(&world.account(job)), vec![(1, 150, TxState::Prepared)]);
    world.unmine(theirs).await;
    world.tick().await;
    assert_eq!(fills(&world), vec![], "whoever used it may use it again");
    world.settle().await;
    world.settle().await;
    assert_eq!(fills(&world), vec![(0, TxState::Confirmed)]);
    assert_eq!(claims_of(&world.account(job)), vec![(1, 150, TxState::Confirmed)]);
    assert_eq!(world.claims(job).await, vec![150]);
    world.replay_is_live();
}

#[tokio::test]
async fn a_nonce_answered_too_high_costs_fills_and_no_claim() {
    let (mut world, job) = delivered().await;
    world.tap.show_nonce_for(3, 3);
    world.passes(3).await;
    assert_eq!(claims_of(&world.account(job))[0].0, 3, "believed, since it lasted");
    world.settle().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    let other = world.open(1000).await;
    world.deliver(other, 120).await;
    world.settle().await;
    assert_eq!(world.claims(other).await, vec![120], "the line goes on");
    assert!(world.wallet_txs().iter().all(|tx| tx.state == TxState::Confirmed));
    world.replay_is_live();
}

#[tokio::test]
async fn an_absurd_nonce_answer_does_not_spend_the_wallet_on_empty_transfers() {
    let (mut world, job) = delivered().await;
    world.tap.show_nonce_for(1_000_000, 1);
    world.passes(8).await;
    let count = fills(&world).len();
    assert!(count <= 16, "{count} fills");
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_fill_that_waits_over_a_restart_is_signed_once() {
    let (mut world, job) = delivered().await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await; // Nonce 0 is the claim's, and nobody has it.
    let theirs = foreign(&world).await;
    world.passes(4).await;
    let taken = TxState::Rejected(RejectReason::NonceTaken);
    assert_eq!(claims_of(&world.account(job))[0], (0, 150, taken));
    world.unmine(theirs).await;
    world.passes(4).await;
    assert_eq!(fills(&world), vec![(0, TxState::Prepared)]);
    world.restart().await;
    world.devnet.rpc("anvil_setNextBlockBaseFeePerGas", json!(["0x77359400"])).await;
    world.passes(5).await;
    assert_eq!(fills(&world), vec![(0, TxState::Prepared)]);
    world.replay_is_live();
    world.tap.set(Silence::None);
    world.restart().await;
    world.settle().await;
    world.settle().await;
    assert_eq!(fills(&world), vec![(0, TxState::Confirmed)]);
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_fill_whose_nonce_was_taken_and_given_back_is_another_transaction() {
    let (mut world, job) = delivered().await;
    // Fees that do not move any more.
    world.mine(200).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tap.show_nonce_for(1, 3);
    world.passes(6).await;
    assert_eq!(fills(&world), vec![(0, TxState::Prepared)]);
    let theirs = foreign(&world).await;
    world.passes(4).await;
    let taken = TxState::Rejected(RejectReason::NonceTaken);
    assert_eq!(fills(&world), vec![(0, taken)]);
    world.unmine(theirs).await;
    world.tap.set(Silence::None);
    world.settle().await;
    world.settle().await;
    assert_eq!(fills(&world), vec![(0, taken), (0, TxState::Confirmed)]);
    assert_eq!(world.claims(job).await, vec![150]);
    world.replay_is_live();
    world.restart().await;
}

#[tokio::test]
async fn a_head_answered_too_high_does_not_keep_holes_from_being_filled() {
    let (mut world, job) = delivered().await;
    world.tick().await; // Nonce 0 is believed.
    world.tap.show_head_ahead_once(1_000_000);
    world.tick().await;
    world.passes(2).await;
    let other = world.open(1000).await;
    let theirs = foreign(&world).await;
    world.deliver(other, 120).await;
    world.passes(3).await;
    assert_eq!(claims_of(&world.account(other))[0].0, 2, "behind theirs");
    world.unmine(theirs).await;
    world.settle().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(world.claims(other).await, vec![120]);
}
