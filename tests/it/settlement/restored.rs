//! A ledger out of a backup: claims of the lost tail are on the chain and not in the ledger, and
//! none of their tokens is claimed again.

use tally::chain::Chain;
use tally::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions, back_up, restore};
use tally::node::ledger_care::{RestoredError, admit_restored};
use tally::session::Phase;

use super::harness::World;
use crate::support::anvil::HOST;

/// A backup, then a claim of 150 tokens that it does not know, then the backup in its place.
async fn claimed_after_the_backup(world: &mut World, is_mined: bool) -> tally::units::JobId {
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    let copy = world.ledger_file().with_extension("copy");
    back_up(&world.ledger_file(), &copy).unwrap();
    world.tick().await;
    assert_eq!(world.tap.sent().len(), 1);
    if is_mined {
        world.mine(1).await;
    }
    world.restart_after(|path| assert!(restore(&copy, path, true).unwrap().is_behind)).await;
    assert_eq!(world.account(job).claims().count(), 0, "the ledger knows of no claim");
    job
}

/// The world's ledger once more, for the question a starting node asks.
fn ledger(world: &World) -> SqliteLedger {
    let binding = LedgerBinding {
        chain_id: world.tap.chain_id(),
        contract: world.tap.marketplace(),
        wallet: HOST.address(),
    };
    SqliteLedger::open(&world.ledger_file(), SqliteOptions::new(binding)).unwrap()
}

async fn nothing_is_claimed_again(world: &mut World, job: tally::units::JobId) {
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    assert_eq!(world.phase(job), Phase::Halted, "a human looks before more is claimed");
}

#[tokio::test]
async fn a_claim_mined_after_the_backup_halts_its_job_and_is_not_made_again() {
    let mut world = World::start().await;
    let job = claimed_after_the_backup(&mut world, true).await;
    admit_restored(&ledger(&world), &*world.tap).await.unwrap();
    nothing_is_claimed_again(&mut world, job).await;
}

#[tokio::test]
async fn a_restored_ledger_waits_until_the_wallet_has_nothing_in_flight() {
    let mut world = World::start().await;
    let job = claimed_after_the_backup(&mut world, false).await;
    let ledger = ledger(&world);
    for _ in 0..2 {
        let refused = admit_restored(&ledger, &*world.tap).await;
        assert!(matches!(refused, Err(RestoredError::InFlight { .. })), "{refused:?}");
    }
    world.mine(1).await;
    admit_restored(&ledger, &*world.tap).await.unwrap();
    assert!(!ledger.is_restored().unwrap());
    nothing_is_claimed_again(&mut world, job).await;
}
