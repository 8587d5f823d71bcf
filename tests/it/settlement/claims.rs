//! When claims are made, of how many tokens, and what becomes of them in a rough world.

use serde_json::json;
use tally::billing::{RejectReason, TxState};
use tally::ledger::Ledger;
use tally::ledger::memory::MemoryLedger;
use tally::proof::{self, ProofBytes, Transcript};
use tally::session::{Phase, Refusal, TurnEnd};
use tally::settlement::SettlementError;
use tally::units::{ClaimSeq, Millis, TokenCount};

use super::harness::{GRACE, World, claims_of, request, rules, tokens};
use super::tap::{Death, Silence};
use crate::support::anvil::{HOST, OpenSession, STRANGER};

fn count(tokens: u64) -> TokenCount {
    TokenCount::new(tokens)
}

#[tokio::test]
async fn a_hundred_tokens_are_claimed_and_ninety_nine_wait() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 99).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new());
    world.deliver(job, 1).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![100]);
    assert_eq!(*world.news.included.lock().unwrap(), vec![(job, 100)]);
}

#[tokio::test]
async fn several_prompts_and_sessions_add_up_each_on_its_own() {
    let mut world = World::start().await;
    let (one, two) = (world.open(1000).await, world.open(1000).await);
    for _ in 0..4 {
        world.deliver(one, 30).await;
        world.deliver(two, 40).await;
    }
    world.settle().await;
    assert_eq!(world.claims(one).await, vec![120]);
    assert_eq!(world.claims(two).await, vec![160]);
    let nonces: Vec<u64> = [one, two]
        .iter()
        .flat_map(|job| claims_of(&world.account(*job)))
        .map(|(nonce, ..)| nonce)
        .collect();
    assert_eq!(nonces, vec![0, 1], "one wallet, one line of nonces");
}

#[tokio::test]
async fn the_rate_limit_is_kept_with_the_chains_clock() {
    let mut world = World::start().await;
    let job = world.open(10_000).await;
    world.deliver(job, 150).await;
    world.settle().await;
    // 180 s at 20 tokens a second since the claim is 3600: it stays under what was delivered.
    world.deliver(job, 5000).await;
    for _ in 0..40 {
        world.tick().await;
        world.devnet.increase_time(10).await;
    }
    let claims = world.claims(job).await;
    assert_eq!(claims.iter().sum::<u64>(), 5150, "{claims:?}");
    let account = world.account(job);
    let rejected = claims_of(&account).iter().any(|(.., s)| matches!(s, TxState::Rejected(_)));
    assert!(!rejected, "no claim was ever more than the contract took");
}

#[tokio::test]
async fn the_last_claim_carries_the_rest_of_the_deposit() {
    let mut world = World::start().await;
    let job = world.open(250).await;
    world.deliver(job, 100).await;
    world.settle().await;
    world.deliver(job, 100).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![100], "the other 50 could never be claimed alone");
    assert_eq!(world.deliver(job, 80).await, TurnEnd::DepositExhausted);
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![100, 150]);
    let refused = Refusal::PaymentRequired { job, tokens_left: count(0) };
    assert_eq!(world.refusal(job).await, refused);
}

#[tokio::test]
async fn a_larger_target_waits_and_yields_to_the_deadline() {
    let larger = tally::settlement::SettlementRules { claim_at: count(500), ..rules() };
    let mut world = World::with_rules(larger).await;
    let job = world.open(1000).await;
    world.deliver(job, 300).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new());
    // 3000 s of silence end the session; the claim comes before.
    world.devnet.increase_time(2770).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![300]);
}

#[tokio::test]
async fn a_claim_out_of_its_block_is_sent_again_as_it_was() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    world.mine(1).await;
    world.tick().await;
    assert_eq!(world.account(job).included(), count(150));
    world.devnet.rpc("anvil_reorg", json!([1, []])).await;
    assert_eq!(world.claims(job).await, Vec::<u64>::new(), "the chain forgot it");
    world.tick().await;
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Prepared)]);
    assert_eq!(world.account(job).unclaimed(), count(0));
    world.settle().await;
    let sent = world.tap.sent();
    assert!(sent.len() >= 2 && sent.iter().all(|hash| *hash == sent[0]), "the same bytes");
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Confirmed)]);
}

#[tokio::test]
async fn a_burnt_first_word_costs_a_new_salt_and_keeps_the_root() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    let seen = world.account(job);
    let (body, tx) = seen.claims().next().unwrap();
    let first = ProofBytes::decode(&body.proof).unwrap();
    world.devnet.rpc("anvil_dropTransaction", json!([tx.first().to_string()])).await;
    world.devnet.burn_first_word(STRANGER, body.proof[..32].try_into().unwrap()).await;
    world.settle().await;
    world.settle().await;
    let account = world.account(job);
    let (body, tx) = account.claims().last().unwrap();
    let second = ProofBytes::decode(&body.proof).unwrap();
    assert_eq!((first.root, first.seq), (second.root, second.seq));
    assert_ne!((first.salt, first.claim()), (second.salt, second.claim()));
    assert_eq!(tx.state, TxState::Confirmed);
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_word_burnt_before_it_was_signed_costs_no_transaction() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    let transcript = Transcript::from_entries(job, &world.entries());
    let root = proof::root(job, ClaimSeq::new(1), &transcript.cut_at(count(150)).unwrap());
    let word = proof::claim_word(root, 0);
    world.devnet.burn_first_word(STRANGER, *word.bytes()).await;
    world.tick().await;
    assert!(world.tap.sent().is_empty(), "the dry run says so before any fee is paid");
    world.settle().await;
    let account = world.account(job);
    let (body, tx) = account.claims().next().unwrap();
    let sent = ProofBytes::decode(&body.proof).unwrap();
    assert_eq!((sent.root, sent.salt, tx.nonce.get()), (root, 1, 0));
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_foreign_transaction_on_our_nonce_moves_the_tokens_to_the_next_once() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    // Somebody else holds the key: nonce 0 goes to an empty transfer.
    world.devnet.send(HOST, STRANGER.address(), vec![], 0).await;
    world.tap.set(Silence::None);
    world.tick().await;
    assert_eq!(world.account(job).unclaimed(), count(0), "not before it is final");
    world.settle().await;
    let taken = TxState::Rejected(RejectReason::NonceTaken);
    let expected = vec![(0, 150, taken), (1, 150, TxState::Confirmed)];
    assert_eq!(claims_of(&world.account(job)), expected);
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_silent_endpoint_during_a_whole_stream_delays_no_token_and_loses_no_claim() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 10).await;
    world.tap.set(Silence::Down);
    // The session is open already: the next prompt is admitted on what was read before.
    world.advance(Millis::new(30_000));
    assert_eq!(world.deliver(job, 200).await, TurnEnd::Stop);
    for _ in 0..5 {
        world.tick().await;
    }
    assert_eq!(world.account(job).recorded(), count(210));
    world.tap.set(Silence::None);
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![210]);
}

#[tokio::test]
async fn a_session_timed_out_by_a_stranger_is_closed_without_endless_retries() {
    let mut world = World::start().await;
    let job = world
        .open_as(OpenSession {
            deposit: 10_000_000,
            price: 10_000,
            proof_interval: 100,
            ..OpenSession::default()
        })
        .await;
    world.deliver(job, 150).await;
    world.settle().await;
    world.deliver(job, 120).await;
    // The claim is signed and does not get out before 300 s of silence are over.
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await;
    world.devnet.increase_time(400).await;
    world.devnet.time_out(STRANGER, job).await;
    world.tap.set(Silence::None);
    world.settle().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(*world.news.closed.lock().unwrap(), vec![(job, 120)]);
    let sent = world.tap.sent().len();
    world.settle().await;
    assert_eq!(world.tap.sent().len(), sent, "nothing more is tried");
    assert_eq!(world.refusal(job).await, Refusal::SessionClosed(job));
}

#[tokio::test]
async fn a_ledger_that_fails_stops_settlement_before_anything_is_sent() {
    let mut world = World::in_memory().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.memory().fail_next();
    let stopped = world.try_tick().await;
    assert!(matches!(stopped, Err(SettlementError::Ledger(_))), "{stopped:?}");
    assert!(world.tap.sent().is_empty());
    assert!(matches!(world.refusal(job).await, Refusal::Unavailable(_)));
    world.restart().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_ledger_whose_queue_is_full_is_no_reason_to_stop() {
    let mut world = World::on(MemoryLedger::new().queue_capacity(1)).await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    let ledger = world.memory();
    ledger.hold();
    ledger.submit(Vec::new(), Box::new(drop)).unwrap();
    world.tick().await;
    assert!(world.tap.sent().is_empty(), "nothing is sent that is not durable");
    ledger.let_go();
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(claims_of(&world.account(job)), vec![(0, 150, TxState::Confirmed)]);
    assert!(world.wallet_txs().is_empty(), "its nonce was free all the time");
}

#[tokio::test]
async fn claims_of_many_jobs_go_out_in_one_pass_and_a_death_in_it_loses_none() {
    for death in [None, Some(Death::BeforeBroadcast), Some(Death::AfterBroadcast)] {
        let mut world = World::start().await;
        let jobs = world.owing(3).await;
        if let Some(death) = death {
            world.tap.die(death);
            world.tick_until_death().await;
            world.restart().await;
        } else {
            world.tick().await;
            assert_eq!(world.tap.sent().len(), 3);
        }
        world.settle().await;
        for (nonce, job) in (0..).zip(jobs) {
            assert_eq!(world.claims(job).await, vec![150], "{death:?}");
            let claims = claims_of(&world.account(job));
            assert_eq!(claims, vec![(nonce, 150, TxState::Confirmed)], "{death:?}");
        }
        world.audit().await;
    }
}

#[tokio::test]
async fn what_is_durable_goes_out_although_the_ledger_broke_behind_it() {
    let mut world = World::in_memory().await;
    let jobs = world.owing(2).await;
    world.memory().fail_after(1);
    assert!(world.try_tick().await.is_err());
    assert_eq!(world.tap.sent().len(), 1, "the next start may be after the deadline");
    world.restart().await;
    world.settle().await;
    for job in jobs {
        assert_eq!(world.claims(job).await, vec![150]);
    }
}

#[tokio::test]
async fn a_claim_the_chain_says_nothing_about_takes_no_place_from_others() {
    let mut world = World::start().await;
    let jobs = world.owing(17).await;
    // All but the last, which is the least urgent: the most that are tried at once.
    let (last, silent) = jobs.split_last().unwrap();
    world.tap.say_nothing_of(silent);
    world.tick().await;
    assert!(world.tap.sent().is_empty());
    world.tick().await;
    assert_eq!(world.tap.sent().len(), 1);
    world.mine(1).await;
    assert_eq!(world.claims(*last).await, vec![150]);
    world.tap.say_nothing_of(&[]);
    world.settle().await;
    for job in silent {
        assert_eq!(world.claims(*job).await, vec![150]);
    }
}

#[tokio::test]
async fn a_lasting_difference_halts_the_job_and_a_passing_one_does_not() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.settle().await;
    world.tap.show_tokens_used(Some(90));
    world.tick().await;
    world.mine(2).await;
    world.tick().await;
    world.tap.show_tokens_used(None);
    world.tick().await;
    assert_eq!(world.account(job).halted(), None);
    world.tap.show_tokens_used(Some(90));
    world.settle().await;
    let account = world.account(job);
    assert_eq!(account.halted(), Some("chain counts 90 tokens used, ledger 150"));
    world.tap.show_tokens_used(None);
    assert_eq!(world.refusal(job).await, Refusal::Halted(job));
    assert_eq!(world.phase(job), Phase::Halted);
    world.advance(GRACE.idle);
    world.settle().await;
    assert_eq!(world.account(job), account, "nothing more is done until a human looked");
}

#[tokio::test]
async fn a_halted_job_does_not_hold_up_the_wallets_other_claims() {
    let mut world = World::start().await;
    let (bad, good) = (world.open(1000).await, world.open(1000).await);
    world.deliver(bad, 150).await;
    world.tap.set(Silence::LosesBroadcasts);
    world.tick().await; // Nonce 0 is signed, and nobody has it.
    world.tap.set(Silence::None);
    world.tap.hide(Some(bad));
    for _ in 0..6 {
        world.tick().await;
        world.mine(1).await;
    }
    assert!(world.account(bad).halted().is_some());
    world.deliver(good, 150).await;
    world.settle().await;
    assert_eq!(world.claims(good).await, vec![150], "nonce 1 waits for nonce 0");
    assert_eq!(world.claims(bad).await, vec![150]);
}

#[tokio::test]
async fn a_prompt_of_a_job_under_settlement_waits_for_nobody() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.tick().await;
    world.engine.set_script(tokens(50));
    let reply = world.sessions().begin(request(job, 50)).await.unwrap();
    world.mine(1).await;
    world.tick().await;
    assert_eq!(world.read(job, reply).await, TurnEnd::Stop);
    world.settle_ledger().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150], "50 more wait for company");
}
