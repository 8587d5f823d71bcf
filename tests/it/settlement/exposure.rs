//! How much of a job's work may be unclaimed: answers slow down to what can be claimed, or wait.

use std::pin::pin;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tally::session::{
    Beyond, ExposureRule, LegacyAccess, Refusal, Reply, ReplyEvent, SessionRules,
};
use tally::units::{JobId, Millis, TokenCount};

use super::harness::{World, request, rules, tokens};
use crate::support::node::session_rules;

/// v3 lets 20 tokens a second be claimed.
const SLOT: Millis = Millis::new(50);

async fn world(tokens_max: u64, beyond: Beyond) -> World {
    let exposure = ExposureRule { tokens_max: TokenCount::new(tokens_max), beyond };
    let of = session_rules(LegacyAccess::On { cap: None });
    World::with_both(rules(), SessionRules { exposure, ..of }).await
}

async fn idle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// What the client can read before time moves. Each pause gives the credit back.
async fn read_now(world: &mut World, job: JobId, reply: &mut Reply) -> u32 {
    let mut seen = 0;
    loop {
        let before = seen;
        loop {
            tokio::select! {
                biased;
                event = reply.next() => {
                    let ReplyEvent::Frame(frame) = event else { return seen };
                    seen += frame.token_count();
                    world.saw(job, frame.token_count());
                    frame.delivered();
                }
                () = idle() => break,
            }
        }
        world.settle_ledger().await;
        if seen == before {
            return seen;
        }
    }
}

/// Lets time pass until the work is done: what came of it, and how many slots it took.
async fn slots_until<T>(world: &World, work: impl Future<Output = T>) -> (T, u32) {
    let mut work = pin!(work);
    let mut slots = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return (done, slots),
            () = idle() => {}
        }
        world.advance(SLOT);
        slots += 1;
        assert!(slots < 500, "it never ends");
    }
}

#[tokio::test]
async fn beyond_the_limit_an_answer_goes_on_at_the_rate_that_can_be_claimed() {
    let mut world = world(100, Beyond::Slow).await;
    let job = world.open(10_000).await;
    world.engine.set_script(tokens(2_000));
    let mut reply = world.sessions().begin(request(job, 2_000)).await.unwrap();
    let at_once = read_now(&mut world, job, &mut reply).await;
    assert_eq!(at_once, 101, "at full speed up to the limit, and the first turn is at once");
    for second in 0..3 {
        let mut seen = 0;
        for _ in 0..20 {
            world.advance(SLOT);
            seen += read_now(&mut world, job, &mut reply).await;
        }
        assert_eq!(seen, 20, "second {second}");
    }
    world.advance(Millis::new(49));
    assert_eq!(read_now(&mut world, job, &mut reply).await, 0, "not a millisecond early");
    world.advance(Millis::new(1));
    // Polled again and again, as beside a heartbeat: its turn is kept, and taken once.
    let mut seen = 0;
    for _ in 0..10 {
        tokio::select! {
            biased;
            event = reply.next() => {
                let ReplyEvent::Frame(frame) = event else { panic!("the answer ended") };
                seen += frame.token_count();
                world.saw(job, frame.token_count());
                frame.delivered();
            }
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(seen, 1);
    // Claims catch up: after the turn that was given already, full speed again up to the limit.
    world.passes(2).await;
    world.advance(SLOT);
    let after = read_now(&mut world, job, &mut reply).await;
    assert!((90..=101).contains(&after), "{after}: the limit less what the claim left over");
    world.audit().await;
}

#[tokio::test]
async fn two_answers_of_one_job_share_its_rate() {
    let mut world = world(100, Beyond::Slow).await;
    let job = world.open(10_000).await;
    world.engine.set_script(tokens(1_000));
    let mut one = world.sessions().begin(request(job, 1_000)).await.unwrap();
    let mut two = world.sessions().begin(request(job, 1_000)).await.unwrap();
    read_now(&mut world, job, &mut one).await;
    read_now(&mut world, job, &mut two).await;
    let mut seen = [0, 0];
    for _ in 0..40 {
        world.advance(SLOT);
        seen[0] += read_now(&mut world, job, &mut one).await;
        seen[1] += read_now(&mut world, job, &mut two).await;
    }
    assert!((39..=41).contains(&(seen[0] + seen[1])), "{seen:?} in two seconds");
    assert!(seen[0].abs_diff(seen[1]) <= 2, "{seen:?}: each in turn");
}

#[tokio::test]
async fn a_whole_body_is_made_at_that_rate_too() {
    let mut world = world(100, Beyond::Slow).await;
    let job = world.open(10_000).await;
    world.engine.set_script(tokens(141));
    let reply = world.sessions().begin(request(job, 141)).await.unwrap();
    let ((frame, _), steps) = slots_until(&world, reply.whole()).await;
    assert_eq!(frame.token_count(), 141);
    assert_eq!(steps, 40, "the limit's worth at once, then 20 a second");
    world.saw(job, 141);
    frame.delivered();
    world.settle_ledger().await;
    world.settle().await;
    assert_eq!(world.claims(job).await, vec![141]);
}

#[tokio::test]
async fn whole_bodies_made_side_by_side_are_written_one_after_another() {
    let mut world = world(100, Beyond::Slow).await;
    let job = world.open(10_000).await;
    world.engine.set_script(tokens(80));
    let mut begun = Vec::new();
    for _ in 0..3 {
        begun.push(world.sessions().begin(request(job, 80)).await.unwrap());
    }
    let mut all: FuturesUnordered<_> = begun.into_iter().map(Reply::whole).collect();
    let (first, steps) = slots_until(&world, all.next()).await;
    assert_eq!(steps, 0, "80 of 100 are made at full speed");
    for _ in 0..200 {
        tokio::select! {
            biased;
            _ = all.next() => panic!("written before the first one is durable"),
            () = idle() => {}
        }
        world.advance(SLOT);
    }
    // What nobody took is no exposure: as much can be made at full speed again.
    drop(first);
    let (others, _) = slots_until(&world, all.map(drop).count()).await;
    assert_eq!(others, 2);
    world.settle_ledger().await;
    let mut reply = world.sessions().begin(request(job, 80)).await.unwrap();
    assert_eq!(read_now(&mut world, job, &mut reply).await, 80);
}

#[tokio::test]
async fn prompts_are_refused_from_the_limit_on_until_claims_caught_up() {
    for (delivered, is_refused) in [(149, false), (150, true), (151, true)] {
        let mut world = world(150, Beyond::Refuse).await;
        let job = world.open(10_000).await;
        world.deliver(job, delivered).await;
        let refused = world.sessions().begin(request(job, 10)).await.err();
        let expected = is_refused.then_some(Refusal::Exposed(job));
        assert_eq!(refused, expected, "{delivered}");
        if let Some(refusal) = refused {
            assert_eq!(refusal.code(), "exposure_limit");
            world.settle().await;
            assert_eq!(world.claims(job).await, vec![delivered]);
            world.deliver(job, 10).await;
        }
    }
}
