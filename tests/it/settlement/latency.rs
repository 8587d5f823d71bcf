//! Nothing that a client waits for waits for the chain.

use tally::session::TurnEnd;
use tally::units::TokenCount;

use super::harness::{World, request, tokens};
use super::tap::Silence;

#[tokio::test]
async fn a_stream_comes_to_its_end_while_every_call_of_the_chain_hangs() {
    let mut world = World::start().await;
    let job = world.open(10_000).await;
    world.deliver(job, 150).await;
    world.engine.set_script(tokens(300));
    let reply = world.sessions().begin(request(job, 300)).await.unwrap();
    world.tap.set(Silence::Hung);
    // Settlement waits for the chain, and nobody waits for settlement.
    assert_eq!(world.read_beside_a_hung_pass(job, reply).await, TurnEnd::Stop);
    world.settle_ledger().await;
    assert_eq!(world.account(job).recorded(), TokenCount::new(450));
    // So it does for the next prompt of a session that was read a moment ago.
    assert_eq!(world.deliver(job, 50).await, TurnEnd::Stop);
    world.tap.set(Silence::None);
    world.settle().await;
    assert_eq!(world.claims(job).await.iter().sum::<u64>(), 500);
}
