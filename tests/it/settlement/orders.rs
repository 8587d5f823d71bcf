//! Orders to the wallet: withdrawals, forwards to the cold address, calls of the operator.

use tally::billing::{ErrandKind, Purpose, TxState};
use tally::chain::Chain;
use tally::settlement::{Order, OrderOutcome, SettlementRules};
use tally::units::{Address, Amount, JobId};
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use super::calls::{balance, set_balance};
use super::harness::{World, opening, rules};
use super::tap::{Death, Silence};
use crate::support::anvil::{CLIENT, HOST, OpenSession, STRANGER};

const WITHDRAW: Order = Order::Withdraw { token: Address::ZERO };
/// 150 tokens at 10^15 wei, less the treasury's tenth.
const EARNED: u128 = 135_000_000_000_000_000;

fn cold() -> Address {
    Address::new([0xc0; 20])
}

fn with_cold() -> SettlementRules {
    SettlementRules { cold_address: Some(cold()), ..rules() }
}

fn dear() -> OpenSession {
    let price = 1_000_000_000_000_000;
    OpenSession { deposit: price * 1000, price, proof_interval: 1000, ..opening() }
}

/// A host that has earned from one session.
async fn earned(rules: SettlementRules) -> (World, JobId) {
    let mut world = World::with_rules(rules).await;
    let job = world.open_as(dear()).await;
    world.deliver(job, 150).await;
    world.passes(4).await;
    world.devnet.complete(CLIENT, job).await;
    world.passes(3).await;
    (world, job)
}

/// Errands that were not rejected, by kind.
fn errands(world: &World) -> (usize, usize) {
    let txs = world.wallet_txs();
    let count = |wanted: fn(&ErrandKind) -> bool| {
        let is = |purpose: &Purpose| matches!(purpose, Purpose::Errand(of) if wanted(&of.kind));
        let live = txs.iter().filter(|tx| !matches!(tx.state, TxState::Rejected(_)));
        live.filter(|tx| is(&tx.purpose)).count()
    };
    let withdrawals = count(|kind| matches!(kind, ErrandKind::Withdraw { .. }));
    (withdrawals, count(|kind| matches!(kind, ErrandKind::Forward { .. })))
}

fn is_final(outcome: &mut Receiver<OrderOutcome>) -> bool {
    matches!(outcome.try_recv(), Ok(OrderOutcome::Final { .. }))
}

#[tokio::test]
async fn a_withdrawal_moves_what_is_earned_to_the_wallet_once() {
    let (mut world, _) = earned(rules()).await;
    assert_eq!(world.tap.earnings(Address::ZERO).await.unwrap().get(), EARNED);
    let before = balance(&world.devnet, HOST.address()).await;
    let mut outcome = world.place(WITHDRAW);
    world.tick().await;
    assert_eq!(outcome.try_recv(), Err(TryRecvError::Empty), "signed is not final");
    world.passes(4).await;
    let Ok(OrderOutcome::Final { fee, .. }) = outcome.try_recv() else { panic!("not final") };
    assert_eq!(balance(&world.devnet, HOST.address()).await, before + EARNED - fee.get());
    assert_eq!(world.tap.earnings(Address::ZERO).await.unwrap(), Amount::ZERO);
    assert_eq!(errands(&world), (1, 0));
    let mut again = world.place(WITHDRAW);
    world.tick().await;
    assert!(matches!(again.try_recv(), Ok(OrderOutcome::Refused(_))), "nothing is earned");
    world.replay_is_live();
}

#[tokio::test]
async fn a_second_withdrawal_while_one_is_on_its_way_is_refused() {
    let (mut world, _) = earned(with_cold()).await;
    let (mut one, mut two) = (world.place(WITHDRAW), world.place(WITHDRAW));
    world.passes(6).await;
    assert!(is_final(&mut one));
    assert!(matches!(two.try_recv(), Ok(OrderOutcome::Refused(_))));
    assert_eq!(balance(&world.devnet, cold()).await, EARNED);
    assert_eq!(errands(&world), (1, 1));
}

#[tokio::test]
async fn a_death_at_any_step_of_a_withdrawal_brings_it_to_the_cold_address_once() {
    for death in [Death::BeforeBroadcast, Death::AfterBroadcast] {
        for passes in [0, 2] {
            let (mut world, _) = earned(with_cold()).await;
            let outcome = world.place(WITHDRAW);
            world.passes(passes).await;
            world.tap.die(death);
            world.tick_until_death().await;
            let expected = if passes == 0 { (1, 0) } else { (1, 1) };
            assert_eq!(errands(&world), expected, "{death:?} after {passes}");
            drop(outcome);
            world.restart().await;
            world.passes(8).await;
            assert_eq!(balance(&world.devnet, cold()).await, EARNED, "{death:?} after {passes}");
            assert_eq!(errands(&world), (1, 1));
            assert_eq!(world.tap.earnings(Address::ZERO).await.unwrap(), Amount::ZERO);
            world.replay_is_live();
        }
    }
}

#[tokio::test]
async fn a_restart_between_withdrawal_and_forward_goes_on_with_the_forward() {
    let (mut world, _) = earned(with_cold()).await;
    drop(world.place(WITHDRAW));
    world.passes(2).await;
    assert_eq!(errands(&world), (1, 0));
    world.restart().await;
    world.passes(6).await;
    assert_eq!(balance(&world.devnet, cold()).await, EARNED);
    assert_eq!(errands(&world), (1, 1));
}

#[tokio::test]
async fn earnings_above_their_threshold_are_withdrawn_once_without_being_told() {
    let threshold = |wei| SettlementRules {
        withdraw_above: [(Address::ZERO, Amount::new(wei))].into_iter().collect(),
        ..with_cold()
    };
    for (wei, count) in [(EARNED, 1), (EARNED + 1, 0)] {
        let (mut world, _) = earned(threshold(wei)).await;
        world.passes(8).await;
        assert_eq!(errands(&world), (count, count), "{wei}");
        assert_eq!(balance(&world.devnet, cold()).await, EARNED * count as u128);
    }
}

#[tokio::test]
async fn native_money_is_forwarded_only_where_the_gas_for_it_remains() {
    let (mut world, _) = earned(with_cold()).await;
    drop(world.place(WITHDRAW));
    world.passes(2).await;
    // The withdrawal is in a block; what the wallet has beside it pays for no transaction.
    set_balance(&world.devnet, HOST.address(), EARNED + 1_000).await;
    world.passes(2).await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.passes(4).await;
    assert_eq!(world.claims(job).await, vec![150], "claims do not wait for the forward");
    set_balance(&world.devnet, HOST.address(), EARNED * 3).await;
    world.passes(6).await;
    assert_eq!(balance(&world.devnet, cold()).await, EARNED);
}

#[tokio::test]
async fn a_call_that_was_ordered_is_answered_when_it_is_final_or_failed() {
    let (mut world, _) = earned(rules()).await;
    let call = world.tap.transfer(Address::ZERO, STRANGER.address(), Amount::new(5));
    let mut outcome = world.place(Order::Call { name: "gift".into(), call });
    world.passes(4).await;
    assert!(is_final(&mut outcome));
    // Two that pass their dry runs, of which the chain allows one.
    let call = world.tap.withdrawal(Address::ZERO, Amount::new(EARNED));
    let order = || Order::Call { name: "withdraw".into(), call: call.clone() };
    world.tap.set(Silence::LosesBroadcasts);
    let (mut one, mut two) = (world.place(order()), world.place(order()));
    world.tick().await;
    world.tick().await;
    world.tap.set(Silence::None);
    world.passes(6).await;
    assert!(is_final(&mut one));
    let failed = OrderOutcome::Failed("it was mined and reverted".into());
    assert_eq!(two.try_recv(), Ok(failed));
    // One that would revert costs nothing.
    let mut refused = world.place(order());
    world.tick().await;
    assert!(matches!(refused.try_recv(), Ok(OrderOutcome::Refused(_))));
    world.replay_is_live();
}

#[tokio::test]
async fn a_ninth_order_that_would_wait_is_refused() {
    let mut world = World::start().await;
    let mut orders: Vec<_> = (0..9).map(|_| world.place(WITHDRAW)).collect();
    let ninth = orders.pop().unwrap().try_recv();
    assert!(matches!(ninth, Ok(OrderOutcome::Refused(_))), "{ninth:?}");
    for order in &mut orders {
        assert_eq!(order.try_recv(), Err(TryRecvError::Empty));
    }
    world.passes(8).await;
    for order in &mut orders {
        assert!(matches!(order.try_recv(), Ok(OrderOutcome::Refused(_))), "answered, each of them");
    }
}

#[tokio::test]
async fn every_order_is_answered_also_where_forwards_wait() {
    let (mut world, _) = earned(with_cold()).await;
    let mut one = world.place(WITHDRAW);
    world.passes(2).await;
    // The forward has to wait: the wallet holds less than was withdrawn.
    set_balance(&world.devnet, HOST.address(), EARNED / 10).await;
    world.passes(2).await;
    let job = world.open_as(dear()).await;
    world.deliver(job, 100).await;
    world.passes(4).await;
    world.devnet.complete(CLIENT, job).await;
    world.passes(3).await;
    let mut two = world.place(WITHDRAW);
    world.passes(4).await;
    set_balance(&world.devnet, HOST.address(), EARNED * 4).await;
    world.passes(6).await;
    assert_eq!(balance(&world.devnet, cold()).await, EARNED / 15 * 25);
    assert!(is_final(&mut one), "the first order");
    assert!(is_final(&mut two), "the second");
}
