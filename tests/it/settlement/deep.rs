//! Reorgs deeper than the confirmations: what was final goes back, and counts once again.

use serde_json::json;
use tally::billing::{Lost, Purpose, RejectReason, TxState};
use tally::proof::ProofBytes;
use tally::session::{Phase, Refusal};
use tally::settlement::SettlementRules;
use tally::units::{JobId, TokenCount, TxHash};

use super::harness::{GRACE, World, claims_of, rules};
use super::tap::Silence;
use crate::support::anvil::{CLIENT, HOST, STRANGER};

/// A session past its dispute window with a final claim, far above its own block.
async fn claimed(rules: SettlementRules) -> (World, JobId, TxHash) {
    let mut world = World::with_rules(rules).await;
    let job = world.open(1000).await;
    world.devnet.increase_time(400).await;
    world.mine(5).await;
    world.deliver(job, 150).await;
    world.passes(4).await;
    let account = world.account(job);
    assert_eq!(claims_of(&account), vec![(0, 150, TxState::Confirmed)]);
    let claim = account.txs()[0].first();
    (world, job, claim)
}

fn earned_is_whole(world: &World, job: JobId) {
    let account = world.account(job);
    let lost = account.lost().map_or(TokenCount::ZERO, Lost::total);
    assert!(account.is_closed());
    assert_eq!(account.recorded().get(), account.confirmed().get() + lost.get());
}

#[tokio::test]
async fn a_final_claim_that_left_its_block_is_sent_again_as_it_was() {
    let (mut world, job, claim) = claimed(rules()).await;
    world.passes(4).await;
    world.unmine(claim).await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new(), "the chain forgot it");
    world.tick().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Prepared)]);
    world.replay_is_live();
    world.settle().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Confirmed)]);
    assert!(world.tap.sent().iter().all(|hash| *hash == claim), "the same bytes");
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(world.account(job).halted(), None);
    world.replay_is_live();
}

#[tokio::test]
async fn a_closed_session_whose_claim_and_completion_left_their_blocks_is_closed_again() {
    let (mut world, job, claim) = claimed(rules()).await;
    world.advance(GRACE.idle);
    world.passes(6).await;
    assert_eq!(world.phase(job), Phase::Completed);
    let sent = world.tap.sent();
    world.unmine(claim).await;
    world.tick().await;
    world.replay_is_live();
    world.tick().await;
    assert!(!world.account(job).is_closed(), "it runs again");
    world.replay_is_live();
    world.settle().await;
    world.settle().await;
    assert_eq!(world.phase(job), Phase::Completed);
    assert_eq!(world.account(job).closings(), 2);
    assert_eq!(world.claims(job).await, vec![150]);
    assert!(world.tap.sent().iter().all(|hash| sent.contains(hash)), "nothing new was signed");
    earned_is_whole(&world, job);
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
    world.replay_is_live();
    world.restart().await;
    earned_is_whole(&world, job);
}

#[tokio::test]
async fn a_claim_that_lost_its_place_to_the_sessions_end_is_forfeited_not_forgotten() {
    let (mut world, job, claim) = claimed(rules()).await;
    world.devnet.complete(CLIENT, job).await;
    world.passes(5).await;
    earned_is_whole(&world, job);
    world.unmine(claim).await;
    // This time the depositor is first.
    world.devnet.complete(CLIENT, job).await;
    world.settle().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new());
    let cancelled = TxState::Rejected(RejectReason::Cancelled);
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, cancelled)]);
    earned_is_whole(&world, job);
    world.replay_is_live();
}

#[tokio::test]
async fn a_session_is_completed_only_where_no_reorg_reaches_its_claims() {
    let deep = SettlementRules { reorg_depth: 8, ..rules() };
    let (mut world, job, claim) = claimed(deep).await;
    world.advance(GRACE.idle);
    let block = world.account(job).txs()[0].mined_in.unwrap();
    loop {
        world.tick().await;
        let head = world.devnet.rpc("eth_blockNumber", json!([])).await;
        let head = u64::from_str_radix(&head.as_str().unwrap()[2..], 16).unwrap();
        let depth = head - block.get() + 1;
        assert_eq!(world.account(job).completion().is_some(), depth >= 8, "depth {depth}");
        if depth == 8 {
            break;
        }
        world.mine(1).await;
    }
    assert!(world.tap.sent().contains(&claim));
}

#[tokio::test]
async fn a_reverted_claim_frees_its_tokens_only_where_no_reorg_reaches() {
    let mut world = World::with_rules(SettlementRules { reorg_depth: 6, ..rules() }).await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    let account = world.account(job);
    let (body, tx) = account.claims().next().unwrap();
    let first = ProofBytes::decode(&body.proof).unwrap();
    world.devnet.rpc("anvil_dropTransaction", json!([tx.first().to_string()])).await;
    world.devnet.burn_first_word(STRANGER, body.proof[..32].try_into().unwrap()).await;
    world.tick().await;
    for depth in 1..=5 {
        world.mine(1).await;
        world.tick().await;
        assert_eq!(world.account(job).unclaimed().get(), 0, "depth {depth}");
    }
    world.mine(1).await;
    world.tick().await;
    let reverted = TxState::Rejected(RejectReason::Reverted);
    assert_eq!(claims_of(&world.account(job))[0], (0, 150, reverted));
    assert!(world.account(job).txs()[0].fee.get() > 0, "a revert is paid for");
    world.settle().await;
    world.settle().await;
    let account = world.account(job);
    let (body, _) = account.claims().last().unwrap();
    let second = ProofBytes::decode(&body.proof).unwrap();
    assert_eq!((second.root, second.seq), (first.root, first.seq));
    assert_ne!(second.salt, first.salt, "its word is burnt");
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_claim_whose_nonce_was_taken_is_claimed_again_with_the_same_bytes_of_proof() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    world.devnet.send(HOST, STRANGER.address(), vec![], 0).await;
    world.tap.set(Silence::None);
    world.settle().await;
    let account = world.account(job);
    let proofs: Vec<_> = account.claims().map(|(claim, _)| claim.proof.clone()).collect();
    assert_eq!(proofs.len(), 2);
    assert_eq!(proofs[0], proofs[1], "the chain can count one of the two at most");
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_completion_that_is_dropped_with_its_block_waits_for_no_fee_rise() {
    let (mut world, job, _) = claimed(rules()).await;
    world.advance(GRACE.idle);
    world.passes(2).await;
    let account = world.account(job);
    let completion = account.txs().iter().find(|tx| tx.purpose == Purpose::Complete).unwrap();
    world.unmine(completion.first()).await;
    world.settle().await;
    assert_eq!(world.phase(job), Phase::Completed);
    let account = world.account(job);
    let completion = account.completion().unwrap();
    assert_eq!((completion.attempts.len(), completion.state), (1, TxState::Confirmed));
    world.replay_is_live();
}
