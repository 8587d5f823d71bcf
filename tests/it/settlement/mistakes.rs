//! Every mistake of docs/spec/contract.md section 5 has a test named after it.
//!
//! | mistake | test |
//! |---|---|
//! | claiming the running total | [`claiming_the_running_total_instead_of_the_delta`] |
//! | padding a small claim | [`padding_a_small_claim_up_to_the_minimum`], `claim::plan` |
//! | a timed-out broadcast | [`a_timed_out_broadcast_is_neither_success_nor_failure`] |
//! | retrying under a new nonce | [`a_retry_keeps_its_nonce`] |
//! | "sent" taken for "paid" | [`sent_is_not_paid_without_the_receipts_status`] |
//! | completing too early | [`a_session_is_not_completed_while_a_proof_is_in_flight`] |
//! | deleting the counter | [`the_counter_survives_until_its_last_claim_is_mined_and_after`] |
//! | serving unchecked | [`a_session_nobody_checked_is_not_served`], `conformance` |
//! | serving for free | `cli::a_node_without_settings_stops_with_the_list_of_what_is_missing` |
//! | | `settings::a_paid_node_names_everything_that_is_missing` |
//! | a tracker in memory | [`the_tracker_survives_a_restart`], `ledger::kill` |
//! | the wrong address | `settings::the_proof_system_is_not_taken_for_the_marketplace` |
//! | | `chain_evm::the_proof_system_in_place_of_the_marketplace_is_refused_by_name` |
//! | awaiting the chain | [`the_token_loop_never_awaits_the_chain`] |
//! | one endpoint as the truth | [`a_lagging_or_dead_endpoint_is_not_the_truth`] |

use serde_json::json;
use tally::billing::{Lost, RejectReason, TxState};
use tally::session::{Phase, Refusal, TurnEnd};
use tally::units::{JobId, Millis, TokenCount};

use super::harness::{GRACE, World, claims_of, opening, request, tokens};
use super::tap::Silence;
use crate::support::anvil::{CLIENT, OpenSession, STRANGER};
use crate::support::proxy::Fault;

fn count(tokens: u64) -> TokenCount {
    TokenCount::new(tokens)
}

#[tokio::test]
async fn claiming_the_running_total_instead_of_the_delta() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    for (delivered, claims) in [(150, vec![150]), (120, vec![150, 120]), (101, vec![150, 120, 101])]
    {
        world.deliver(job, delivered).await;
        world.settle().await;
        assert_eq!(world.claims(job).await, claims);
    }
    let account = world.account(job);
    assert_eq!((account.recorded(), account.confirmed()), (count(371), count(371)));
}

#[tokio::test]
async fn padding_a_small_claim_up_to_the_minimum() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 99).await;
    world.settle().await;
    // The deadline is near, then the session is over: nothing makes 99 tokens worth 100.
    world.devnet.increase_time(2800).await;
    world.tick().await;
    world.advance(GRACE.idle);
    world.settle().await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new());
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 99)]);
    assert_eq!(world.account(job).lost().map(Lost::total), Some(count(99)));
}

#[tokio::test]
async fn a_timed_out_broadcast_is_neither_success_nor_failure() {
    for fault in [Fault::Closed, Fault::BadGateway] {
        let mut world = World::start().await;
        let job = world.open(1000).await;
        world.deliver(job, 150).await;
        world.proxy.set("eth_sendRawTransaction", fault);
        world.tick().await;
        let account = world.account(job);
        assert_eq!(claims_of(&account), vec![(0, 150, TxState::Prepared)], "{fault:?}");
        // Not a failure: its tokens stay bound. Not a success: nothing is included.
        assert_eq!((account.unclaimed(), account.included()), (count(0), count(0)));
        // The pool has it; more is delivered and may not be claimed beside it.
        world.deliver(job, 150).await;
        world.tick().await;
        assert_eq!(world.account(job).claims().count(), 1);
        world.proxy.set("", Fault::None);
        world.settle().await;
        assert_eq!(world.claims(job).await, vec![150, 150]);
        assert_eq!(world.account(job).confirmed(), count(300));
    }
}

#[tokio::test]
async fn a_retry_keeps_its_nonce() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    for _ in 0..3 {
        world.tick().await;
        world.mine(1).await;
    }
    let sent = world.tap.sent();
    assert!(sent.len() >= 3, "sent again while nobody knows it");
    assert!(sent.iter().all(|hash| *hash == sent[0]), "the same bytes each time");
    // It arrives, and its fee turns out too low for too long: other bytes, the same nonce.
    world.tap.set(Silence::None);
    world.tick().await;
    world.tick().await;
    world.advance(world.rules.reprice_after);
    world.tick().await;
    let account = world.account(job);
    let (_, tx) = account.claims().next().unwrap();
    assert_eq!(tx.attempts.len(), 2);
    assert_ne!(tx.attempts[0].hash, tx.attempts[1].hash);
    assert!(tx.attempts[1].fee_max > tx.attempts[0].fee_max);
    world.settle().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Confirmed)]);
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn sent_is_not_paid_without_the_receipts_status() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    assert_eq!(world.account(job).included(), count(0), "sent and not mined");
    // The pool forgets it, a stranger takes its first word, and it is sent again: it reverts.
    let account = world.account(job);
    let (body, tx) = account.claims().next().unwrap();
    world.devnet.rpc("anvil_dropTransaction", json!([tx.first().to_string()])).await;
    world.devnet.burn_first_word(STRANGER, body.proof[..32].try_into().unwrap()).await;
    world.tick().await;
    world.mine(1).await;
    world.tick().await;
    // In a block and reverted: not paid, and not free to be claimed again before it is final.
    let account = world.account(job);
    assert_eq!((account.included(), account.confirmed()), (count(0), count(0)));
    assert_eq!(account.unclaimed(), count(0));
    assert!(world.news.included.lock().unwrap().is_empty());
    world.mine(1).await;
    world.tick().await;
    let rejected = TxState::Rejected(RejectReason::Reverted);
    assert_eq!(claims_of(&world.account(job))[0], (0, 150, rejected));
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150], "claimed again, counted once");
    assert_eq!(world.account(job).confirmed(), count(150));
}

#[tokio::test]
async fn a_session_is_not_completed_while_a_proof_is_in_flight() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.devnet.increase_time(400).await; // The dispute window is over.
    world.advance(GRACE.idle); // Nobody has asked for long.
    world.tick().await;
    let is_proof_open = |world: &World| {
        let account = world.account(job);
        account.completion().is_none() && account.txs_open().count() == 1
    };
    for _ in 0..3 {
        world.tick().await;
        assert!(is_proof_open(&world), "in the pool");
    }
    world.mine(1).await;
    world.tick().await;
    assert!(is_proof_open(&world), "in a block that is not final");
    assert_ne!(world.phase(job), Phase::Settling);
    world.mine(1).await;
    world.tick().await;
    let account = world.account(job);
    assert_eq!(account.confirmed(), count(150));
    assert!(account.completion().is_some(), "final: now it may");
    world.settle().await;
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 0)]);
}

#[tokio::test]
async fn the_counter_survives_until_its_last_claim_is_mined_and_after() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.sessions().attach(job).close_clean();
    world.advance(GRACE.closed);
    world.devnet.increase_time(400).await;
    let recorded = |world: &World| world.account(job).recorded();
    world.tick().await;
    assert_eq!(recorded(&world), count(150), "the client is gone, the claim is in the pool");
    world.restart().await;
    assert_eq!(recorded(&world), count(150));
    world.settle().await;
    world.advance(GRACE.idle);
    world.settle().await;
    let account = world.account(job);
    assert!(account.is_closed());
    assert_eq!((account.recorded(), account.confirmed()), (count(150), count(150)));
    world.restart().await;
    assert_eq!(world.account(job), account, "nothing is forgotten after the end either");
}

#[tokio::test]
async fn a_session_nobody_checked_is_not_served() {
    let mut world = World::start().await;
    let unknown = JobId::new(77).unwrap();
    let foreign = world.open_as(OpenSession { host: STRANGER, ..opening() }).await;
    let closed = world.open(1000).await;
    world.devnet.complete(CLIENT, closed).await;
    let spent = world.open(100).await;
    assert_eq!(world.deliver(spent, 100).await, TurnEnd::Stop);
    let starts = world.engine.starts().len();
    assert_eq!(world.refusal(unknown).await, Refusal::SessionNotFound(unknown));
    assert_eq!(world.refusal(foreign).await, Refusal::OtherHost(foreign));
    assert_eq!(world.refusal(closed).await, Refusal::SessionClosed(closed));
    let empty = Refusal::PaymentRequired { job: spent, tokens_left: count(0) };
    assert_eq!(world.refusal(spent).await, empty);
    assert_eq!(world.engine.starts().len(), starts, "the model was never asked");
    world.tick().await;
}

#[tokio::test]
async fn the_tracker_survives_a_restart() {
    let mut world = World::start().await;
    let job = world.open(200).await;
    world.deliver(job, 60).await;
    world.restart().await;
    world.deliver(job, 70).await;
    let before = world.account(job);
    assert_eq!(before.recorded(), count(130));
    world.restart().await;
    assert_eq!(world.account(job), before);
    assert_eq!(world.tracker().left(job, count(200)), count(70));
    assert_eq!(world.deliver(job, 100).await, TurnEnd::DepositExhausted);
    world.settle().await;
    assert_eq!(world.claims(job).await.iter().sum::<u64>(), 200);
}

#[tokio::test]
async fn the_token_loop_never_awaits_the_chain() {
    for silence in [Silence::Down, Silence::Hung] {
        let mut world = World::start().await;
        let job = world.open(1000).await;
        world.engine.set_script(tokens(300));
        let reply = world.sessions().begin(request(job, 300)).await.unwrap();
        world.tap.set(silence);
        // An answer that waited for the chain would never come to its end here.
        assert_eq!(world.read(job, reply).await, TurnEnd::Stop);
        world.settle_ledger().await;
        assert_eq!(world.account(job).recorded(), count(300), "{silence:?}");
        world.tap.set(Silence::None);
        world.settle().await;
        assert_eq!(world.claims(job).await, vec![300]);
    }
}

#[tokio::test]
async fn a_lagging_or_dead_endpoint_is_not_the_truth() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.keep(job).await;
    world.settle().await;
    world.deliver(job, 120).await;
    // The endpoint has gone back to before the first claim: nonce 0, nothing used.
    world.tap.go_back();
    world.tick().await;
    world.tick().await;
    let account = world.account(job);
    assert_eq!(account.confirmed(), count(150), "what is final stays final");
    assert!(account.claims().all(|(_, tx)| tx.nonce.get() == 0 || tx.nonce.get() == 1));
    assert!(account.halted().is_none(), "a lag of no blocks is no disagreement");
    world.tap.catch_up();
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150, 120]);
    // Dead: nothing is decided, nothing is lost.
    world.deliver(job, 130).await;
    world.tap.set(Silence::Down);
    let before = world.account(job);
    for _ in 0..5 {
        world.tick().await;
        world.advance(Millis::new(60_000));
    }
    assert_eq!(world.account(job), before);
    world.tap.set(Silence::None);
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150, 120, 130]);
}
