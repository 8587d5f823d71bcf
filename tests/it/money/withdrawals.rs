//! Withdrawals on the wallet's one line of nonces: by order, by threshold, across deaths.

use std::collections::BTreeMap;

use tally::billing::{Entry, Errand, ErrandKind, Fact, Purpose};
use tally::settlement::{Order, OrderOutcome, SettlementRules};
use tally::units::{Address, Amount};

use super::earned::{COLD, credit, held, left, withdrawals};
use crate::settlement::harness::{World, rules};
use crate::settlement::tap::Death;

const NATIVE: Address = Address::ZERO;
const AMOUNT: u128 = 123_456_789;

fn to_cold() -> SettlementRules {
    SettlementRules { cold_address: Some(COLD), ..rules() }
}

/// What errands the ledger holds: withdrawn and forwarded amounts.
fn errands(entries: &[Entry]) -> (Vec<u128>, Vec<u128>) {
    let (mut withdrawn, mut forwarded) = (Vec::new(), Vec::new());
    for entry in entries {
        let Fact::TxPrepared { purpose: Purpose::Errand(Errand { kind, .. }), .. } = &entry.fact
        else {
            continue;
        };
        match kind {
            ErrandKind::Withdraw { amount, .. } => withdrawn.push(amount.get()),
            ErrandKind::Forward { amount, .. } => forwarded.push(amount.get()),
            ErrandKind::Registry { .. } => panic!("no call was ordered"),
        }
    }
    (withdrawn, forwarded)
}

async fn all_is_cold(world: &World, token: Address, amount: u128) {
    assert_eq!(left(&world.devnet, token).await, 0);
    assert_eq!(held(&world.devnet, COLD, token).await, amount);
    assert_eq!(withdrawals(&world.devnet).await, 1);
    assert_eq!(errands(&world.entries()), (vec![amount], vec![amount]));
}

#[tokio::test]
async fn an_order_withdraws_everything_and_forwards_exactly_that() {
    for is_native in [true, false] {
        let mut world = World::with_rules(to_cold()).await;
        let token = if is_native { NATIVE } else { world.devnet.contracts.token };
        credit(&world.devnet, token, AMOUNT).await;
        let mut outcome = world.place(Order::Withdraw { token });
        world.settle().await;
        assert!(matches!(outcome.try_recv(), Ok(OrderOutcome::Final { .. })), "{token}");
        all_is_cold(&world, token, AMOUNT).await;
    }
}

#[tokio::test]
async fn claims_and_withdrawals_share_one_line_of_nonces() {
    let mut world = World::with_rules(to_cold()).await;
    let job = world.open(1000).await;
    credit(&world.devnet, NATIVE, AMOUNT).await;
    world.deliver(job, 150).await;
    let _outcome = world.place(Order::Withdraw { token: NATIVE });
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    all_is_cold(&world, NATIVE, AMOUNT).await;
}

#[tokio::test]
async fn nothing_earned_is_refused_and_nothing_is_signed() {
    let mut world = World::with_rules(to_cold()).await;
    let mut outcome = world.place(Order::Withdraw { token: NATIVE });
    world.settle().await;
    assert!(matches!(outcome.try_recv(), Ok(OrderOutcome::Refused(_))));
    assert_eq!(errands(&world.entries()), (vec![], vec![]));
}

#[tokio::test]
async fn a_death_at_any_broadcast_makes_one_withdrawal_and_one_forward() {
    for death in [Death::BeforeBroadcast, Death::AfterBroadcast] {
        for is_forward in [false, true] {
            let mut world = World::with_rules(to_cold()).await;
            credit(&world.devnet, NATIVE, AMOUNT).await;
            let _outcome = world.place(Order::Withdraw { token: NATIVE });
            if is_forward {
                world.tick().await;
                // Final at the next look, which signs the forward.
                world.mine(2).await;
                world.tick().await;
            }
            world.tap.die(death);
            world.tick_until_death().await;
            world.restart().await;
            world.settle().await;
            world.settle().await;
            all_is_cold(&world, NATIVE, AMOUNT).await;
        }
    }
}

#[tokio::test]
async fn a_death_after_every_single_pass_moves_the_money_once() {
    let mut world = World::with_rules(to_cold()).await;
    credit(&world.devnet, NATIVE, AMOUNT).await;
    let _outcome = world.place(Order::Withdraw { token: NATIVE });
    for _ in 0..14 {
        world.tick().await;
        world.restart().await;
        world.mine(1).await;
    }
    all_is_cold(&world, NATIVE, AMOUNT).await;
}

#[tokio::test]
async fn the_threshold_withdraws_by_itself_from_exactly_that_amount_on() {
    let above = BTreeMap::from([(NATIVE, Amount::new(AMOUNT))]);
    let mut world = World::with_rules(SettlementRules { withdraw_above: above, ..to_cold() }).await;
    credit(&world.devnet, NATIVE, AMOUNT - 1).await;
    world.settle().await;
    assert_eq!(errands(&world.entries()), (vec![], vec![]));
    credit(&world.devnet, NATIVE, 1).await;
    world.settle().await;
    world.settle().await;
    all_is_cold(&world, NATIVE, AMOUNT).await;
}
