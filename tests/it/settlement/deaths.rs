//! The process dies at any question to the chain, over a session's whole life.

use tally::billing::{Purpose, TxState};
use tally::session::Phase;
use tally::units::JobId;

use super::harness::{GRACE, World, claims_of};

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

#[tokio::test]
async fn a_death_at_any_question_to_the_chain_leaves_one_claim_and_one_completion() {
    for question in (1..).step_by(3) {
        let mut world = World::start().await;
        let job = world.open(1000).await;
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
        world.replay_is_live();
        assert_eq!(world.claims(job).await, vec![150], "question {question}");
        let account = world.account(job);
        assert_eq!(claims_of(&account), vec![(0, 150, TxState::Confirmed)], "question {question}");
        let completions = account.txs().iter().filter(|tx| tx.purpose == Purpose::Complete).count();
        assert_eq!((completions, account.txs().len()), (1, 2), "question {question}");
        if !has_died {
            assert!(question > 30, "a life has more questions than {question}");
            return;
        }
    }
}
