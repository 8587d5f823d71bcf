//! Metered delivery: tokens seen ≤ recorded ≤ written, whatever the client does to its socket.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tally::engine::EngineFinish;
use tally::engine::scripted::Script;

use crate::support::http::{Client, text};
use crate::support::ledger::Tallied;
use crate::support::node::{ManualClock, Setup, TestNode, eventually, job, prompt};
use crate::support::ws::{Socket, tokens};

/// Tokens of 32 KiB each: a few of them fill every buffer on the way.
const TOKEN_BYTES: usize = 32 * 1024;
const TOKEN_COUNT: u32 = 64;

fn heavy() -> Setup {
    let piece = "x".repeat(TOKEN_BYTES);
    let tokens = (1..=TOKEN_COUNT).map(|id| (id, piece.clone())).collect();
    let script = Script { tokens, end: EngineFinish::Stop };
    Setup { script, send_buffer: Some(16 * 1024), ..Setup::default() }
}

fn post(stream: bool) -> String {
    let body = prompt(json!({"stream": stream, "max_tokens": TOKEN_COUNT}));
    text("POST", "/v1/inference", &[], &body.to_string())
}

/// Tokens in complete events.
fn seen(events: &[String]) -> u64 {
    let values = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    values.filter_map(|value| value["tokens"].as_u64()).sum()
}

#[tokio::test]
async fn a_stream_that_is_read_slowly_is_paid_for_as_it_is_written() {
    let node = TestNode::start(heavy()).await;
    let mut client = Client::connect_narrow(node.addr).await;
    client.send(&post(true)).await;
    client.read_events(3).await;
    let recorded = || node.ledger.recorded(job(139));
    let at_least = seen(&client.events());
    eventually(|| recorded() >= at_least).await;
    assert!(recorded() <= node.engine.said());
    assert!(recorded() < u64::from(TOKEN_COUNT), "what nobody took is not recorded");
    let events = client.answer().await.events();
    assert_eq!(seen(&events), u64::from(TOKEN_COUNT));
    eventually(|| recorded() == u64::from(TOKEN_COUNT)).await;
}

#[tokio::test]
async fn a_client_that_vanishes_mid_stream_pays_for_what_was_written() {
    let node = TestNode::start(heavy()).await;
    let mut client = Client::connect_narrow(node.addr).await;
    client.send(&post(true)).await;
    let events = client.read_events(3).await;
    drop(client);
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    let recorded = node.ledger.recorded(job(139));
    assert!(seen(&events) <= recorded && recorded <= node.engine.said());
    assert!(recorded < u64::from(TOKEN_COUNT));
    assert_eq!(node.engine.cancelled(), 1, "nobody reads: the model stops");
}

#[tokio::test]
async fn a_socket_that_vanishes_mid_stream_pays_for_what_was_written() {
    let node = TestNode::start(heavy()).await;
    let mut socket = Socket::connect_narrow(node.addr).await;
    socket.init(139).await;
    let request = prompt(json!({"max_tokens": TOKEN_COUNT}));
    socket.send(json!({"type": "prompt", "request": request, "id": 1})).await;
    let first = socket.recv().await;
    let read = tokens(&[first]);
    drop(socket);
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    let recorded = node.ledger.recorded(job(139));
    assert!(read <= recorded && recorded <= node.engine.said());
    assert!(recorded < u64::from(TOKEN_COUNT));
    assert_eq!(node.engine.cancelled(), 1);
}

#[tokio::test]
async fn a_whole_answer_is_paid_for_with_its_last_byte_and_not_before() {
    let node = TestNode::start(heavy()).await;
    let mut client = Client::connect_narrow(node.addr).await;
    client.send(&post(false)).await;
    assert!(client.read().await);
    assert_eq!(node.engine.said(), u64::from(TOKEN_COUNT));
    assert_eq!(node.ledger.recorded(job(139)), 0, "most of it is still here");
    drop(client);
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    assert_eq!(node.ledger.recorded(job(139)), 0);
    let mut client = Client::connect_narrow(node.addr).await;
    client.send(&post(false)).await;
    assert_eq!(client.answer().await.json()["tokens_used"], TOKEN_COUNT);
    eventually(|| node.ledger.recorded(job(139)) == u64::from(TOKEN_COUNT)).await;
}

#[tokio::test]
async fn a_client_that_leaves_before_a_whole_answer_stops_the_model_and_pays_nothing() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut client = Client::connect(node.addr).await;
    client.send(&post(false)).await;
    eventually(|| node.engine.starts().len() == 1).await;
    drop(client);
    eventually(|| node.engine.cancelled() == 1).await;
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    assert_eq!(node.ledger.recorded(job(139)), 0);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_cut_off_and_pays_for_what_was_written() {
    let clock = Arc::new(ManualClock::default());
    let mut setup = Setup { clock: clock.clone(), ..heavy() };
    let patience = Duration::from_secs(31); // No other wait lasts as long.
    setup.settings.stream.stall_max = patience;
    let node = TestNode::start(setup).await;
    let mut client = Client::connect_narrow(node.addr).await;
    client.send(&post(true)).await;
    eventually(|| clock.is_awaited(patience)).await;
    while node.ledger.turns_ended(job(139)) == 0 {
        clock.advance(patience);
        tokio::task::yield_now().await;
    }
    let recorded = node.ledger.recorded(job(139));
    assert!(recorded < u64::from(TOKEN_COUNT));
    while client.read().await {}
    assert!(seen(&client.events()) <= recorded);
}

#[tokio::test]
async fn no_more_than_the_credit_is_written_while_the_ledger_is_slow() {
    let script = Script::words("a b c d e f g h i j k l m n o p q r s t ");
    let node = TestNode::start(Setup { script, ..Setup::default() }).await;
    let mut client = Client::connect(node.addr).await;
    client.send(&post(true)).await;
    client.answer().await;
    eventually(|| node.ledger.recorded(job(139)) == 20).await;
    node.ledger.hold();
    client.send(&post(true)).await;
    while seen(&client.events()) < 8 {
        assert!(client.read().await);
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(seen(&client.events()), 8);
    assert_eq!(node.ledger.recorded(job(139)), 20);
    let all_recorded = eventually(|| {
        node.ledger.release();
        node.ledger.recorded(job(139)) == 40
    });
    let (answer, ()) = tokio::join!(client.answer(), all_recorded);
    assert_eq!(seen(&answer.events()), 20);
}

#[tokio::test]
async fn responses_of_one_connection_are_told_apart() {
    let node = TestNode::plain().await;
    let mut client = Client::connect(node.addr).await;
    // Sent at once: a head-only answer, an error, an interim head, and three prompts.
    let body = prompt(json!({})).to_string();
    let requests = [
        "HEAD /health HTTP/1.1\r\nhost: node\r\n\r\n".to_owned(),
        text("GET", "/nothing", &[], ""),
        text("POST", "/v1/inference", &[("expect", "100-continue")], &body),
        post(true),
        text("POST", "/v1/inference", &[], "{"),
        post(false),
    ];
    client.send(&requests.concat()).await;
    // The answer to HEAD announces a body that does not follow; its head ends it.
    client.skip_head().await;
    let mut statuses = Vec::new();
    for _ in 1..requests.len() {
        statuses.push(client.answer().await.status);
    }
    assert_eq!(statuses, [404, 200, 200, 400, 200]);
    eventually(|| node.ledger.recorded(job(139)) == 15).await;
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let clock = Arc::new(ManualClock::default());
    let node = TestNode::start(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let mut client = Client::connect(node.addr).await;
    client.send("GET /health HT").await;
    let patience = Duration::from_secs(60);
    eventually(|| clock.is_awaited(patience)).await;
    clock.advance(patience);
    while client.read().await {}
}
