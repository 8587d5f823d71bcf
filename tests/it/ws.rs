//! The WebSocket API: what both generations of clients rely on.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tally::chain::fixed::{DEPOSITOR, FixedWallet};
use tally::engine::EngineFinish;
use tally::engine::scripted::Script;
use tally::session::{Grace, LegacyAccess, Notice, Phase};
use tally::units::{Millis, TokenCount, TxHash};
use tokio::net::TcpStream;

use crate::support::http::{call, get};
use crate::support::ledger::Tallied;
use crate::support::node::{ManualClock, Setup, TestNode, eventually, job, prompt};
use crate::support::ws::{Socket, text, tokens};

fn say(id: &str, extra: Value) -> Value {
    let mut request = prompt(json!({"job_id": null, "stream": true}));
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({"type": "prompt", "prompt": request["prompt"], "request": request, "id": id})
}

#[tokio::test]
async fn both_paths_greet_and_a_plain_get_is_told_what_is_expected() {
    let node = TestNode::plain().await;
    for path in ["/ws", "/v1/ws"] {
        let tcp = TcpStream::connect(node.addr).await.unwrap();
        let mut socket = Socket::open(tcp, path).await;
        let hello = socket.recv().await;
        assert_eq!(hello["type"], "connected");
        assert!(hello["message"].is_string());
    }
    let plain = get(node.addr, "/v1/ws").await;
    assert_eq!((plain.status, plain.json()["error_type"].clone()), (400, json!("invalid_request")));
}

#[tokio::test]
async fn every_answer_echoes_the_id_and_the_end_has_every_field() {
    let node = TestNode::plain().await;
    let mut socket = Socket::connect(node.addr).await;
    let ack = socket.init(139).await;
    let message = ack["message"].clone();
    let expected = json!({"type": "session_init_ack", "status": "success", "session_id": "139n",
        "job_id": 139, "chain_id": 31337, "message": message, "id": "init-1"});
    assert_eq!(ack, expected);
    socket.send(say("p-1", json!({}))).await;
    let messages = socket.recv_until(&["stream_end"]).await;
    assert!(messages.iter().all(|message| message["id"] == "p-1"), "{messages:?}");
    assert_eq!(text(&messages), "one two three four five");
    assert_eq!(tokens(&messages), 5);
    let end = messages.last().unwrap();
    assert_eq!((&end["reason"], &end["finish_reason"]), (&json!("stop"), &json!("stop")));
    assert_eq!((&end["tokens_used"], &end["session_id"]), (&json!(5), &json!("139n")));
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9,
        "context_window_size": 64});
    assert_eq!(end["usage"], usage);
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
}

#[tokio::test]
async fn an_init_before_every_prompt_resets_neither_counts_nor_history() {
    let node = TestNode::plain().await;
    let mut socket = Socket::connect(node.addr).await;
    for turn in 1..=3 {
        assert_eq!(socket.init(139).await["type"], "session_init_ack");
        socket.send(say("p", json!({}))).await;
        socket.recv_until(&["stream_end"]).await;
        eventually(|| node.ledger.turns_ended(job(139)) == turn).await;
        assert_eq!(node.ledger.recorded(job(139)), 5 * turn as u64);
    }
    let starts = node.engine.starts();
    let spoken = [starts[0].prompt_ids.clone(), vec![100, 101, 102, 103, 104]].concat();
    assert!(starts[1].prompt_ids.starts_with(&spoken), "{:?}", starts[1].prompt_ids);
    assert!(starts[2].prompt_ids.starts_with(&starts[1].prompt_ids));
    socket.send(say("fresh", json!({"history": false}))).await;
    socket.recv_until(&["stream_end"]).await;
    assert_eq!(node.engine.starts()[3].prompt_ids, starts[0].prompt_ids);
}

#[tokio::test]
async fn a_dropped_connection_resumes_where_it_was() {
    let node = TestNode::plain().await;
    let mut first = Socket::connect(node.addr).await;
    first.init(139).await;
    first.send(say("p", json!({}))).await;
    first.recv_until(&["stream_end"]).await;
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    drop(first);
    let mut second = Socket::connect(node.addr).await;
    second.init(139).await;
    second.send(say("p", json!({}))).await;
    second.recv_until(&["stream_end"]).await;
    eventually(|| node.ledger.recorded(job(139)) == 10).await;
    assert!(node.engine.starts()[1].prompt_ids.len() > 5, "history is the job's");
}

#[tokio::test]
async fn without_streaming_the_answer_is_one_response() {
    let node = TestNode::plain().await;
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({"stream": false}))).await;
    let response = socket.recv().await;
    assert_eq!(response["type"], "response");
    assert_eq!(response["content"], "one two three four five");
    assert_eq!(response["id"], "p");
    assert_eq!(response["usage"]["completion_tokens"], 5);
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
}

#[tokio::test]
async fn a_cancel_stops_within_one_token_and_tells_what_was_used() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({}))).await;
    node.engine.release(2);
    let mut seen = 0;
    while seen < 2 {
        seen += tokens(&[socket.recv().await]);
    }
    socket.send(json!({"type": "stream_cancel", "session_id": "139n", "reason": "user"})).await;
    let end = socket.recv().await;
    assert_eq!((&end["type"], &end["reason"]), (&json!("stream_end"), &json!("cancelled")));
    assert_eq!((&end["tokens_used"], &end["id"]), (&json!(2), &json!("p")));
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    assert_eq!((node.ledger.recorded(job(139)), node.engine.said()), (2, 2));
    assert_eq!(node.engine.cancelled(), 1);
}

#[tokio::test]
async fn nothing_is_met_with_silence() {
    let node = TestNode::plain().await;
    let mut socket = Socket::connect(node.addr).await;
    socket.send(json!({"type": "ping", "id": 7})).await;
    assert_eq!(socket.recv().await, json!({"type": "pong", "id": 7}));
    let cases = [
        ("{\"type\":", "INVALID_REQUEST"),
        ("[1,2]", "INVALID_REQUEST"),
        ("\"hello\"", "INVALID_REQUEST"),
        (r#"{"type":"dance"}"#, "INVALID_REQUEST"),
        (r#"{"type":"prompt"}"#, "VALIDATION_ERROR"),
        (r#"{"type":"session_init","session_id":"abc"}"#, "VALIDATION_ERROR"),
        (r#"{"type":"session_init","session_id":"139","chain_id":1}"#, "VALIDATION_ERROR"),
        (r#"{"type":"session_init","session_id":"999"}"#, "SESSION_NOT_FOUND"),
        (r#"{"type":"encrypted_message"}"#, "UNSUPPORTED"),
    ];
    for (message, code) in cases {
        socket.send_text(message).await;
        let error = socket.recv().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{message}");
        assert!(error["message"].is_string());
    }
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn an_over_long_prompt_tells_its_numbers() {
    let node = TestNode::plain().await;
    let mut socket = Socket::connect(node.addr).await;
    socket.send(say("p", json!({"prompt": "word ".repeat(80), "job_id": 139}))).await;
    let error = socket.recv().await;
    assert_eq!(error["code"], "TOKEN_LIMIT_EXCEEDED");
    assert_eq!((&error["prompt_tokens"], &error["context_window_size"]), (&json!(81), &json!(64)));
    assert_eq!(error["id"], "p");
}

#[tokio::test]
async fn a_failure_is_an_error_and_then_an_end_that_clients_honour() {
    let node = TestNode::plain().await;
    let script = Script { tokens: Vec::new(), end: EngineFinish::Failed("broken".to_owned()) };
    node.engine.set_script(script);
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({}))).await;
    let messages = socket.recv_until(&["stream_end"]).await;
    let kinds: Vec<&str> = messages.iter().map(|m| m["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["error", "stream_chunk", "stream_end"]);
    assert_eq!(messages[0]["code"], "INTERNAL_ERROR");
    assert_eq!(messages[2]["reason"], "error");
    assert!(messages.iter().all(|message| message["id"] == "p"));
}

#[tokio::test]
async fn an_answer_without_tokens_still_has_a_chunk_before_its_end() {
    let node = TestNode::plain().await;
    node.engine.set_script(Script { tokens: Vec::new(), end: EngineFinish::Stop });
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({}))).await;
    let messages = socket.recv_until(&["stream_end"]).await;
    assert_eq!(messages.len(), 2);
    assert_eq!((&messages[0]["type"], &messages[0]["tokens"]), (&json!("stream_chunk"), &json!(0)));
}

#[tokio::test]
async fn further_prompts_wait_in_order_and_too_many_are_refused() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    for number in 0..6 {
        socket.send(say(&format!("p-{number}"), json!({"history": false}))).await;
    }
    let busy = socket.recv().await;
    assert_eq!((&busy["type"], &busy["code"]), (&json!("error"), &json!("BUSY")));
    assert_eq!(busy["id"], "p-5");
    assert_eq!(node.engine.starts().len(), 1, "one at a time");
    node.engine.release_all();
    for number in 0..5 {
        let messages = socket.recv_until(&["stream_end"]).await;
        let id = format!("p-{number}");
        assert!(messages.iter().all(|message| message["id"] == id.as_str()), "{messages:?}");
    }
}

#[tokio::test]
async fn news_of_settlement_reaches_the_jobs_own_connections_only() {
    let node = TestNode::plain().await;
    let mut own = Socket::connect(node.addr).await;
    own.init(139).await;
    let mut other = Socket::connect(node.addr).await;
    other.init(140).await;
    let tx = TxHash::new([5; 32]);
    let claim = Notice::ClaimIncluded { job: job(139), tokens: TokenCount::new(100), tx };
    node.notices.send(claim).unwrap();
    node.notices.send(Notice::Completed { job: job(139) }).unwrap();
    let news = own.recv().await;
    assert_eq!(news["type"], "checkpoint_submitted");
    assert_eq!((&news["tokens"], &news["tx_hash"]), (&json!(100), &json!(tx.to_string())));
    assert_eq!(own.recv().await["type"], "session_completed");
    other.send(json!({"type": "ping"})).await;
    assert_eq!(other.recv().await["type"], "pong");
}

#[tokio::test]
async fn a_peer_without_a_sign_of_life_is_closed_after_two_heartbeats() {
    let clock = Arc::new(ManualClock::default());
    let node = TestNode::start(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let mut silent = Socket::connect(node.addr).await;
    let beat = Duration::from_secs(20);
    for _ in 0..2 {
        eventually(|| clock.is_awaited(beat)).await;
        clock.advance(beat);
    }
    eventually(|| clock.is_awaited(beat)).await;
    clock.advance(beat);
    assert_eq!(silent.recv_close().await, Some(1008));
}

#[tokio::test]
async fn a_goodbye_and_a_drop_start_different_grace_periods() {
    let clock = Arc::new(ManualClock::default());
    let node = TestNode::start(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let long = Millis::new(1_000_000);
    let clean = Grace { closed: Millis::ZERO, dropped: long, idle: long };
    let dropped = Grace { closed: long, dropped: Millis::ZERO, idle: long };
    let is_quiet = |grace| node.tracker.is_quiet(job(139), Millis::ZERO, grace);
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({}))).await;
    socket.recv_until(&["stream_end"]).await;
    assert!(!is_quiet(clean) && !is_quiet(dropped), "a connection is open");
    socket.close(1000).await;
    eventually(|| is_quiet(clean)).await;
    assert!(!is_quiet(dropped));
    assert_eq!(node.tracker.phase(job(139)), Some(Phase::Draining));
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    assert_eq!(node.tracker.phase(job(139)), Some(Phase::Active));
    drop(socket);
    eventually(|| is_quiet(dropped)).await;
    assert!(!is_quiet(clean));
}

#[tokio::test]
async fn an_over_large_message_is_refused_and_the_connection_closed() {
    let mut setup = Setup::default();
    setup.settings.body_bytes_max = 1000;
    let node = TestNode::start(setup).await;
    let mut socket = Socket::connect(node.addr).await;
    socket.send(say("p", json!({"prompt": "x".repeat(2000), "job_id": 139}))).await;
    assert_eq!(socket.recv().await["code"], "INVALID_REQUEST");
    assert_eq!(socket.recv_close().await, Some(1009));
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn a_drained_node_lets_an_answer_finish_and_then_says_goodbye() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut socket = Socket::connect(node.addr).await;
    socket.init(139).await;
    socket.send(say("p", json!({}))).await;
    eventually(|| node.engine.starts().len() == 1).await;
    node.stops.drain.cancel();
    node.engine.release_all();
    let messages = socket.recv_until(&["stream_end"]).await;
    assert_eq!(tokens(&messages), 5);
    assert_eq!(socket.recv_close().await, Some(1001));
    drop(socket);
    node.served.await.unwrap().unwrap();
    assert_eq!(node.ledger.recorded(job(139)), 5);
}

#[tokio::test]
async fn a_token_in_session_init_opens_what_a_number_alone_does_not() {
    let node = TestNode::start(Setup { legacy: LegacyAccess::Off, ..Setup::default() }).await;
    let challenge = node.sessions.challenge(job(139)).await.unwrap().text;
    let signature = FixedWallet::signature_of(DEPOSITOR);
    let issued = node.sessions.issue_token(job(139), &challenge, &signature).await.unwrap();
    let mut socket = Socket::connect(node.addr).await;
    assert_eq!(socket.init(139).await["code"], "UNAUTHORIZED");
    socket.send(say("p", json!({"job_id": 139}))).await;
    assert_eq!(socket.recv().await["code"], "UNAUTHORIZED");
    let token = issued.token.expose_secret();
    socket.send(json!({"type": "session_init", "session_id": 139, "token": token})).await;
    assert_eq!(socket.recv().await["type"], "session_init_ack");
    // The 2026 client inits before every prompt; the token it gave once still holds.
    assert_eq!(socket.init(139).await["type"], "session_init_ack");
    socket.send(say("p", json!({}))).await;
    assert_eq!(tokens(&socket.recv_until(&["stream_end"]).await), 5);
}

#[tokio::test]
async fn a_web_page_of_an_unlisted_origin_opens_no_socket() {
    let mut setup = Setup::default();
    setup.settings.cors = vec!["https://app.example".to_owned()];
    let node = TestNode::start(setup).await;
    let headers = [
        ("origin", "https://evil.example"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let answer = call(node.addr, ("GET", "/v1/ws"), &headers, "").await;
    assert_eq!((answer.status, answer.json()["error_type"].clone()), (403, json!("forbidden")));
}
