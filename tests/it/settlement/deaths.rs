//! The process dies at any question to the chain, over a session's whole life: in native coin on v3
//! and in an ERC-20 on v7, whose claims, words of proofs and reads of a session are others.

use tally::billing::{Account, Purpose, TxState};
use tally::chain::Chain;
use tally::session::Phase;
use tally::units::{Address, Amount, JobId};

use super::harness::{GRACE, World, claims_of, opening};
use super::tap::Death;
use crate::support::anvil::OpenSession;
use crate::support::variant::Variant;

/// What a session is paid in, and by which contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paid {
    NativeOnV3,
    TokenOnV7,
}

impl Paid {
    /// A world, and a session of 1000 tokens in it.
    async fn begin(self) -> (World, JobId) {
        if self == Self::NativeOnV3 {
            let mut world = World::start().await;
            let job = world.open(1000).await;
            return (world, job);
        }
        let mut world = World::on_variant(Variant::V7).await;
        world.session_rules.payment_tokens.insert(world.devnet.contracts.token, 0);
        world.restart().await;
        let of = OpenSession { erc20: true, deposit: 10_000_000, silence: 3600, ..opening() };
        let job = world.open_as(of).await;
        // The host's nonces before this ledger are believed when they stay.
        world.passes(4).await;
        (world, job)
    }

    fn token(self, world: &World) -> Address {
        if self == Self::NativeOnV3 { Address::ZERO } else { world.devnet.contracts.token }
    }
}

/// Tokens and states of a job's claims.
fn claims_in(account: &Account) -> Vec<(u64, TxState)> {
    claims_of(account).into_iter().map(|(_, tokens, state)| (tokens, state)).collect()
}

/// Passes until the session is over and final; true where the process died before.
async fn lives_until_death(world: &mut World, job: JobId) -> bool {
    while world.phase(job) != Phase::Completed {
        let tap = world.tap.clone();
        tokio::select! {
            biased;
            () = tap.died() => return true,
            ended = world.try_tick() => ended.unwrap(),
        }
        world.audit().await;
        world.mine(1).await;
    }
    false
}

/// One claim of 150 tokens and one completion, in ledger and chain, paid in the right currency.
async fn one_of_each(world: &World, job: JobId, paid: Paid, when: &str) {
    world.replay_is_live();
    assert_eq!(world.claims(job).await, vec![150], "{when}");
    let account = world.account(job);
    assert_eq!(claims_in(&account), vec![(150, TxState::Confirmed)], "{when}");
    let completions = account.txs().iter().filter(|tx| tx.purpose == Purpose::Complete).count();
    assert_eq!((completions, account.txs().len()), (1, 2), "{when}");
    // 150 tokens at 10 000, less the tenth for the treasury.
    let chain = world.devnet.connect().await;
    let earned = chain.earnings(paid.token(world)).await;
    assert_eq!(earned, Ok(Amount::new(1_350_000)), "{when}");
}

async fn a_death_at_any_question(paid: Paid, questions: impl Iterator<Item = u32>) {
    for question in questions {
        let (mut world, job) = paid.begin().await;
        world.devnet.increase_time(400).await;
        world.deliver(job, 150).await;
        world.advance(GRACE.idle);
        world.tap.die_at_question(question);
        let has_died = lives_until_death(&mut world, job).await;
        if has_died {
            world.restart().await;
            world.advance(GRACE.idle);
            assert!(!lives_until_death(&mut world, job).await);
        }
        one_of_each(&world, job, paid, &format!("{paid:?}, question {question}")).await;
        if !has_died {
            assert!(question > 30, "a life has more questions than {question}");
            return;
        }
    }
}

#[tokio::test]
async fn a_death_at_any_question_to_the_chain_leaves_one_claim_and_one_completion() {
    a_death_at_any_question(Paid::NativeOnV3, (1..).step_by(3)).await;
}

#[tokio::test]
async fn the_same_holds_in_an_erc20_of_v7() {
    a_death_at_any_question(Paid::TokenOnV7, (2..).step_by(3)).await;
}

#[tokio::test]
async fn a_death_between_signature_and_confirmation_sends_the_same_bytes_on_v7_too() {
    let moments = [
        ("signed", Death::BeforeBroadcast, false),
        ("sent", Death::AfterBroadcast, false),
        ("mined", Death::AfterBroadcast, true),
    ];
    for (when, death, is_mined) in moments {
        let (mut world, job) = Paid::TokenOnV7.begin().await;
        world.devnet.increase_time(400).await;
        world.deliver(job, 150).await;
        world.tap.die(death);
        world.tick_until_death().await;
        if is_mined {
            world.mine(1).await;
        }
        world.restart().await;
        assert_eq!(claims_in(&world.account(job)), vec![(150, TxState::Prepared)], "{when}");
        world.settle().await;
        let sent = world.tap.sent();
        assert!(sent.iter().all(|hash| *hash == sent[0]), "{when}: {sent:?}");
        world.advance(GRACE.idle);
        assert!(!lives_until_death(&mut world, job).await, "{when}");
        one_of_each(&world, job, Paid::TokenOnV7, when).await;
    }
}
