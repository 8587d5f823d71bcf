//! What a session must bring to be served, and when no session is: currency, price, funds, gas.

use tally::session::{LegacyAccess, PauseReason, Phase, Refusal, SessionRules, TurnEnd};
use tally::settlement::SettlementRules;
use tally::units::{Address, JobId, Millis};

use super::calls::{balance, bring_deposit, open_with_token, set_balance, take_deposit_back};
use super::harness::{GRACE, World, opening, request, rules, tokens};
use crate::support::anvil::{CLIENT, HOST, OpenSession};
use crate::support::node::session_rules;
use crate::support::variant::{MODEL_RATE, Variant};

const NATIVE: u128 = 10_000_000;

#[tokio::test]
async fn a_pause_by_hand_refuses_prompts_and_holds_up_neither_answers_nor_claims() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.engine.set_script(tokens(150));
    let reply = world.sessions().begin(request(job, 150)).await.unwrap();
    world.sessions().set_paused(PauseReason::ByHand, true);
    let refusal = world.refusal(job).await;
    assert_eq!((refusal.code(), &refusal), ("paused", &Refusal::Paused(PauseReason::ByHand)));
    assert_eq!(world.read(job, reply).await, TurnEnd::Stop);
    world.settle_ledger().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
    world.sessions().set_paused(PauseReason::Gas, true);
    world.sessions().set_paused(PauseReason::ByHand, false);
    assert_eq!(world.refusal(job).await, Refusal::Paused(PauseReason::Gas), "each for itself");
    world.sessions().set_paused(PauseReason::Gas, false);
    world.deliver(job, 10).await;
}

#[tokio::test]
async fn a_wallet_that_cannot_pay_a_claim_and_a_completion_says_so_until_it_can() {
    let mut world = World::start().await;
    world.tick().await;
    assert_eq!(*world.news.gas_suffices.lock().unwrap(), Some(true));
    let before = balance(&world.devnet, HOST.address()).await;
    set_balance(&world.devnet, HOST.address(), 1_000_000_000).await;
    world.tick().await;
    assert_eq!(*world.news.gas_suffices.lock().unwrap(), Some(false));
    set_balance(&world.devnet, HOST.address(), before).await;
    world.tick().await;
    assert_eq!(*world.news.gas_suffices.lock().unwrap(), Some(true));
}

#[tokio::test]
async fn a_deposit_taken_back_in_mid_session_ends_its_service_until_it_is_brought_again() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 20).await;
    world.tick().await;
    take_deposit_back(&world.devnet, NATIVE).await;
    world.tick().await;
    // Once may be a session that was paid out a moment ago.
    world.tick().await;
    let refusal = world.refusal(job).await;
    assert_eq!((refusal.code(), &refusal), ("payment_required", &Refusal::Unfunded(job)));
    bring_deposit(&world.devnet, NATIVE).await;
    world.tick().await;
    world.deliver(job, 10).await;
}

#[tokio::test]
async fn the_end_of_one_session_does_not_look_like_missing_funds_of_another() {
    let mut world = World::start().await;
    let (over, other) = (world.open(1000).await, world.open(1000).await);
    world.deliver(over, 20).await;
    world.deliver(other, 20).await;
    world.tick().await;
    world.devnet.complete(CLIENT, over).await;
    for _ in 0..4 {
        world.tick().await;
        let refused = world.sessions().begin(request(other, 5)).await.err();
        assert_eq!(refused, None);
        world.mine(1).await;
    }
}

#[tokio::test]
async fn a_halted_session_that_ended_does_not_look_like_missing_funds_of_another() {
    let mut world = World::start().await;
    let (bad, good) = (world.open(1000).await, world.open(1000).await);
    world.deliver(bad, 20).await;
    world.deliver(good, 20).await;
    world.tap.hide(Some(bad));
    world.passes(8).await;
    assert_eq!(world.phase(bad), Phase::Halted);
    world.tap.hide(None);
    world.devnet.complete(CLIENT, bad).await;
    world.passes(6).await;
    let refused = world.sessions().begin(request(good, 5)).await.err();
    assert_eq!(refused, None);
}

fn in_token(price: u128) -> OpenSession {
    OpenSession { deposit: price * 1000, price, proof_interval: 1000, ..opening() }
}

/// A session in the devnet's ERC-20, on a node that accepts it from this price on.
async fn with_token(
    price: u128,
    accepted_from: Option<u128>,
    worth: Option<f64>,
) -> (World, JobId) {
    let mut world = World::start().await;
    let token = world.devnet.contracts.token;
    let of = session_rules(LegacyAccess::On { cap: None });
    let payment_tokens = accepted_from.map(|price_min| (token, price_min)).into_iter().collect();
    world.session_rules = SessionRules { payment_tokens, ..of };
    let share = if worth.is_some() { 0.5 } else { rules().fee_share_max };
    world.rules = SettlementRules {
        wei_per_unit: worth.map(|worth| (token, worth)).into_iter().collect(),
        fee_share_max: share,
        ..rules()
    };
    world.restart().await;
    let job = open_with_token(&world.devnet, in_token(price)).await;
    world.watch(job, in_token(price));
    world.devnet.increase_time(60).await;
    (world, job)
}

#[tokio::test]
async fn a_currency_is_refused_unless_the_operator_accepts_it_at_that_price() {
    for (accepted_from, is_served) in
        [(None, false), (Some(1_001), false), (Some(1_000), true), (Some(999), true)]
    {
        let (world, job) = with_token(1_000, accepted_from, None).await;
        let refused = world.sessions().begin(request(job, 10)).await.err();
        assert_eq!(refused.is_none(), is_served, "{accepted_from:?}");
        if let Some(refusal) = refused {
            assert_eq!(refusal.code(), "payment_required");
            let token = world.devnet.contracts.token;
            let expected = match accepted_from {
                Some(price_min) => Refusal::PriceTooLow { job, price_min },
                None => Refusal::TokenNotAccepted { job, token },
            };
            assert_eq!(refusal, expected);
        }
    }
}

#[tokio::test]
async fn a_claim_in_a_currency_is_weighed_by_what_the_operator_says_it_is_worth() {
    // 150 tokens are 150 000 units; a claim costs some 10^14 wei.
    for (worth, claims) in [(1.0, vec![]), (1e12, vec![150])] {
        let (mut world, job) = with_token(1_000, Some(0), Some(worth)).await;
        world.deliver(job, 150).await;
        world.settle().await;
        assert_eq!(world.claims(job).await, claims, "{worth}");
    }
}

/// A native session whose claim of 150 tokens is worth `value` wei, and fees that stand still.
async fn worth(value: u128, rules: SettlementRules) -> (World, JobId) {
    let mut world = World::with_rules(rules).await;
    world.mine(200).await;
    let price = value / 150;
    let open = OpenSession { deposit: price * 1000, price, proof_interval: 100, ..opening() };
    let job = world.open_as(open).await;
    world.deliver(job, 150).await;
    (world, job)
}

#[tokio::test]
async fn a_claim_forced_by_its_deadline_costs_no_more_than_it_brings() {
    let dear = || SettlementRules { fee_share_max: 0.5, ..rules() };
    // A claim's gas at one gwei is 2.2 * 10^14 wei: more than half of one, more than all of the
    // other.
    for (value, claims) in [(300_000_000_000_000, vec![150]), (200_000_000_000_000, vec![])] {
        let (mut world, job) = worth(value, dear()).await;
        world.passes(3).await;
        assert_eq!(world.claims(job).await, Vec::<u64>::new(), "{value}: not yet");
        world.devnet.increase_time(200).await; // Silence ends it 300 s after its start.
        world.passes(3).await;
        assert_eq!(world.claims(job).await, claims, "{value}");
    }
}

#[tokio::test]
async fn a_completion_that_pays_out_less_than_its_fee_is_left_to_the_client() {
    let thrifty = || SettlementRules { complete_at_a_loss: false, fee_share_max: 1.0, ..rules() };
    for (value, is_completed) in [(1_000_000_000_000_000, true), (150_000, false)] {
        let (mut world, job) = worth(value, thrifty()).await;
        world.passes(4).await;
        world.devnet.increase_time(400).await;
        world.advance(GRACE.idle);
        world.passes(6).await;
        assert_eq!(world.phase(job) == Phase::Completed, is_completed, "{value}");
    }
    let mut lavish = World::start().await;
    let job = lavish.open(1000).await;
    lavish.deliver(job, 20).await;
    lavish.devnet.increase_time(400).await;
    lavish.advance(GRACE.idle);
    lavish.passes(6).await;
    assert_eq!(lavish.phase(job), Phase::Completed, "unless the operator wants it done");
    assert_ne!(lavish.devnet.contracts.token, Address::ZERO);
}

#[tokio::test]
async fn a_session_whose_model_has_no_claim_rate_is_refused_until_it_has_one() {
    let mut world = World::on_variant(Variant::V7).await;
    world.devnet.set_model_rate(0).await;
    let job = world.open(1000).await;
    let refusal = world.refusal(job).await;
    assert_eq!((refusal.code(), &refusal), ("rate_unset", &Refusal::RateUnset(job)));
    world.devnet.set_model_rate(MODEL_RATE).await;
    // A rate is kept for a minute of the chain's time, a reading of a session for two seconds.
    world.devnet.increase_time(60).await;
    world.advance(Millis::new(2_001));
    world.deliver(job, 150).await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![150]);
}

#[tokio::test]
async fn a_session_for_another_model_is_refused_whatever_its_rate() {
    let mut world = World::on_variant(Variant::V7).await;
    let job = world.open(1000).await;
    // Its model is served here under another name than the one that is asked for.
    for name in world.session_rules.model_ids.values_mut() {
        *name = "dearer".into();
    }
    world.restart().await;
    assert_eq!(world.refusal(job).await, Refusal::OtherModel(job));
    world.session_rules.model_ids.clear();
    world.restart().await;
    for rate in [MODEL_RATE, 0] {
        world.devnet.set_model_rate(rate).await;
        world.devnet.increase_time(60).await;
        world.advance(Millis::new(2_001));
        let refusal = world.refusal(job).await;
        let expected = ("model_not_found", &Refusal::OtherModel(job));
        assert_eq!((refusal.code(), &refusal), expected, "{rate}");
    }
}

#[tokio::test]
async fn late_v4_is_claimed_at_the_rate_of_v4_as_it_began() {
    // Its contract takes 2000 tokens a second, and nothing in it says so.
    let mut world = World::on_variant(Variant::V4Late).await;
    let job = world.open(3000).await;
    world.deliver(job, 150).await;
    world.passes(1).await;
    assert_eq!(world.claims(job).await, vec![150]);
    world.deliver(job, 1500).await;
    world.passes(3).await;
    assert_eq!(world.claims(job).await, vec![150], "1500 tokens take 75 s");
    world.devnet.increase_time(75).await;
    world.passes(3).await;
    assert_eq!(world.claims(job).await, vec![150, 1500]);
}
