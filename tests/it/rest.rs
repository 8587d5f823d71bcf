//! The REST API: shapes, errors and what surrounds them. What a prompt yields is compared over
//! all front-ends in `conformance.rs`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tally::billing::{Attempt, ClaimBody, Entry, Fact, Purpose, TurnEnd};
use tally::chain::fixed::{DEPOSITOR, FixedWallet};
use tally::ledger::Ledger;
use tally::proof::{Blob, Transcript, root, seed_from_client};
use tally::session::LegacyAccess;
use tally::units::{Address, Amount, ClaimSeq, Hash32, Millis, TokenCount, TxHash, WalletNonce};

use crate::support::http::{Client, call, get, post, text};
use crate::support::ledger::Tallied;
use crate::support::node::{Setup, TestNode, eventually, job, prompt};

/// The error shape, checked, as (status, error_type).
fn refused(answer: &crate::support::http::Answer) -> (u16, String) {
    let body = answer.json();
    let map = body.as_object().unwrap();
    let keys: Vec<&str> = map.keys().map(String::as_str).collect();
    assert_eq!(keys, ["details", "error_type", "message", "request_id"], "{body}");
    assert!(!body["request_id"].as_str().unwrap().is_empty());
    assert!(body["details"].is_object());
    (answer.status, body["error_type"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_answer_has_every_field_and_its_tokens_are_recorded() {
    let node = TestNode::plain().await;
    let body = prompt(json!({"job_id": "139n", "request_id": "r-7", "chain_id": 31337}));
    let answer = post(node.addr, "/v1/inference", &body).await;
    assert_eq!(answer.status, 200);
    let expected = json!({
        "model": "scripted",
        "content": "one two three four five",
        "tokens_used": 5,
        "finish_reason": "stop",
        "request_id": "r-7",
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 9,
            "context_window_size": 64,
        },
        "chain_id": 31337,
        "job_id": 139,
    });
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.header("x-request-id"), Some("r-7"));
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
    assert_eq!(node.ledger.ids(job(139)), [100, 101, 102, 103, 104]);
}

#[tokio::test]
async fn a_stream_has_a_frame_for_each_piece_then_the_fields_then_done() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut client = Client::connect(node.addr).await;
    let body = prompt(json!({"stream": true}));
    client.send(&text("POST", "/v1/inference", &[], &body.to_string())).await;
    for count in 1..=5 {
        node.engine.release(1);
        let events = client.read_events(count).await;
        let event: Value = serde_json::from_str(&events[count - 1]).unwrap();
        assert_eq!(event["tokens"], 1);
        assert_eq!(event["usage"]["completion_tokens"], count);
        assert_eq!(event["finish_reason"], Value::Null);
    }
    let answer = client.answer().await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = answer.events();
    assert_eq!(events.len(), 7);
    let last: Value = serde_json::from_str(&events[5]).unwrap();
    assert_eq!(last["finish_reason"], "stop");
    assert_eq!(last["tokens_used"], 5);
    assert_eq!(last["usage"]["total_tokens"], 9);
    assert_eq!(last["chain_id"], 31337);
    assert_eq!(events[6], "[DONE]");
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
}

#[tokio::test]
async fn several_prompts_add_up_on_one_kept_connection() {
    let node = TestNode::plain().await;
    let mut client = Client::connect(node.addr).await;
    for turn in 1..=4 {
        let body = prompt(json!({"stream": turn % 2 == 0}));
        client.send(&text("POST", "/v1/inference", &[], &body.to_string())).await;
        assert_eq!(client.answer().await.status, 200);
        eventually(|| node.ledger.recorded(job(139)) == 5 * turn).await;
        client.send(&text("GET", "/health", &[], "")).await;
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn errors_of_every_kind_have_the_one_shape() {
    let node = TestNode::plain().await;
    let addr = node.addr;
    assert_eq!(refused(&get(addr, "/v2/nothing").await), (404, "not_found".into()));
    let wrong_method = get(addr, "/v1/inference").await;
    assert_eq!(refused(&wrong_method), (405, "method_not_allowed".into()));
    let malformed = call(addr, ("POST", "/v1/inference"), &[], "{\"prompt\":").await;
    assert_eq!(refused(&malformed), (400, "invalid_request".into()));
    let no_job = post(addr, "/v1/inference", &prompt(json!({"job_id": null}))).await;
    assert_eq!(refused(&no_job), (400, "validation_error".into()));
    assert_eq!(no_job.json()["details"]["field"], "job_id");
    assert_eq!(no_job.header("x-request-id"), no_job.json()["request_id"].as_str());
    let no_model = post(addr, "/v1/inference", &prompt(json!({"model": "gpt-9"}))).await;
    assert_eq!(refused(&no_model), (404, "model_not_found".into()));
    assert_eq!(no_model.json()["details"]["available_models"], json!(["scripted"]));
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn an_over_large_body_is_refused_announced_or_not() {
    let mut setup = Setup::default();
    setup.settings.body_bytes_max = 1000;
    let node = TestNode::start(setup).await;
    let body = prompt(json!({"prompt": "x".repeat(2000)}));
    let announced = post(node.addr, "/v1/inference", &body).await;
    assert_eq!(refused(&announced), (413, "payload_too_large".into()));
    let mut client = Client::connect(node.addr).await;
    let chunk = format!("7d0\r\n{}\r\n", "x".repeat(2000));
    client
        .send(&format!(
            "POST /v1/inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
        ))
        .await;
    assert_eq!(refused(&client.answer().await), (413, "payload_too_large".into()));
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn a_failed_generation_is_an_error_and_costs_nothing() {
    let node = TestNode::plain().await;
    let mut script = tally::engine::scripted::Script::words("some words");
    script.end = tally::engine::EngineFinish::Failed("broken".to_owned());
    node.engine.set_script(script);
    let answer = post(node.addr, "/v1/inference", &prompt(json!({}))).await;
    assert_eq!(refused(&answer), (500, "internal_error".into()));
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    assert_eq!(node.ledger.recorded(job(139)), 0);
}

#[tokio::test]
async fn the_node_tells_who_it_is() {
    let node = TestNode::plain().await;
    for path in ["/health", "/v1/health"] {
        let health = get(node.addr, path).await;
        assert_eq!(
            (health.status, health.json()),
            (200, json!({"status": "healthy", "issues": []}))
        );
    }
    let version = get(node.addr, "/v1/version").await.json();
    assert_eq!(version["chains"], json!([31337]));
    let models = get(node.addr, "/v1/models").await.json();
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "scripted");
    assert_eq!(models["models"][0]["name"], "scripted");
    assert_eq!(models["chain_name"], "devchain");
    let metrics = get(node.addr, "/metrics").await;
    assert_eq!(metrics.body, b"tally_up 1\n");
    node.ledger.fail_next();
    let unrecorded = post(node.addr, "/v1/inference", &prompt(json!({}))).await;
    assert_eq!(refused(&unrecorded), (503, "service_unavailable".into()));
    let health = get(node.addr, "/health").await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("unhealthy")));
}

#[tokio::test]
async fn the_host_signs_the_hash_of_a_challenge_and_nothing_else() {
    use sha2::{Digest, Sha256};
    let node = TestNode::plain().await;
    let challenge = "ab".repeat(32);
    let body = json!({ "challenge": challenge });
    let answer = post(node.addr, "/v1/auth/challenge", &body).await.json();
    let digest = hex::encode(Sha256::digest([0xab; 32]));
    assert_eq!(answer["signature"], format!("{digest}{}", "00".repeat(32)));
    assert_eq!(answer["recid"], 1);
    let short = post(node.addr, "/v1/auth/challenge", &json!({"challenge": "ab"})).await;
    assert_eq!(refused(&short), (400, "validation_error".into()));
}

/// A session token for job 139.
async fn session_token(node: &TestNode) -> String {
    let challenge = post(node.addr, "/v1/sessions/139/challenge", &json!({})).await.json();
    let signature = hex::encode(FixedWallet::signature_of(DEPOSITOR).bytes());
    let body =
        json!({ "challenge": challenge["challenge"], "signature": format!("0x{signature}") });
    let answer = post(node.addr, "/v1/sessions/139/token", &body).await.json();
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_depositors_signature_gives_a_token_that_ends_plain_access() {
    let node = TestNode::start(Setup { legacy: LegacyAccess::Off, ..Setup::default() }).await;
    let plain = post(node.addr, "/v1/inference", &prompt(json!({}))).await;
    assert_eq!(refused(&plain), (401, "unauthorized".into()));
    let sign = |challenge: Value, signer: Address| {
        let signature = hex::encode(FixedWallet::signature_of(signer).bytes());
        json!({ "challenge": challenge, "signature": format!("0x{signature}") })
    };
    let path = "/v1/sessions/139/token";
    let challenge = || async {
        let answer = post(node.addr, "/v1/sessions/139n/challenge", &json!({})).await;
        answer.json()["challenge"].clone()
    };
    let foreign = post(node.addr, path, &sign(challenge().await, Address::ZERO)).await;
    assert_eq!(refused(&foreign), (401, "unauthorized".into()));
    let answer = post(node.addr, path, &sign(challenge().await, DEPOSITOR)).await;
    assert_eq!(answer.status, 200);
    let bearer = format!("Bearer {}", answer.json()["token"].as_str().unwrap());
    let headers = [("authorization", bearer.as_str())];
    let body = prompt(json!({})).to_string();
    let served = call(node.addr, ("POST", "/v1/inference"), &headers, &body).await;
    assert_eq!(served.status, 200);
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
    let report = call(node.addr, ("GET", "/v1/sessions/139"), &headers, "").await.json();
    assert_eq!(report["tokens_recorded"], 5);
    assert_eq!(report["tokens_affordable"], 995);
    assert_eq!(report["mode"], "trusted-host");
    assert_eq!(report["claims"], json!([]));
    assert_eq!(refused(&get(node.addr, "/v1/sessions/139").await), (401, "unauthorized".into()));
}

#[tokio::test]
async fn a_claims_blob_is_for_the_sessions_owner_and_has_the_claims_root() {
    let node = TestNode::plain().await;
    let nonce = format!("0x{}", "5a".repeat(32));
    // A bias of nothing is recorded as none.
    let body = prompt(json!({"user_nonce": nonce, "seed": null, "logit_bias": {"5": 0, "6": 1}}));
    assert_eq!(post(node.addr, "/v1/inference", &body).await.status, 200);
    eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
    let claim = ClaimBody {
        seq: ClaimSeq::new(1),
        tokens: TokenCount::new(5),
        tokens_cumulative: TokenCount::new(5),
        proof: Vec::new(),
    };
    let fact = Fact::TxPrepared {
        nonce: WalletNonce::new(0),
        purpose: Purpose::Claim(claim),
        attempt: Attempt {
            hash: TxHash::new([1; 32]),
            raw: Vec::new(),
            fee_max: Amount::ZERO,
            tip_max: Amount::ZERO,
            gas_limit: 0,
        },
    };
    let claimed = Entry { subject: job(139).into(), at: Millis::ZERO, fact };
    node.ledger.append(vec![claimed]).await.unwrap();
    let path = "/v1/sessions/139/proofs/1";
    assert_eq!(refused(&get(node.addr, path).await), (401, "unauthorized".into()));
    let bearer = format!("Bearer {}", session_token(&node).await);
    let headers = [("authorization", bearer.as_str())];
    let answer = call(node.addr, ("GET", path), &headers, "").await;
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let blob = Blob::decode(&answer.body).unwrap();
    let entries = node.ledger.job_entries(job(139)).await.unwrap();
    let cut = Transcript::from_entries(job(139), &entries).cut_of(ClaimSeq::new(1)).unwrap();
    assert_eq!(blob.root().unwrap(), root(job(139), ClaimSeq::new(1), &cut));
    let header = &blob.turns[0].header;
    assert_eq!(header.nonces.unwrap().user, Hash32::parse(&nonce));
    let decode = header.decode.as_ref().unwrap();
    assert_eq!((decode.max_tokens, &decode.logit_bias), (50, &BTreeMap::from([(6, 1.0)])));
    assert_eq!(blob.turns[0].end, Some(TurnEnd::Stop));
    for (path, status, code) in [
        ("/v1/sessions/139/proofs/2", 404, "proof_not_found"),
        ("/v1/sessions/139/proofs/x", 400, "validation_error"),
        ("/v1/sessions/140/proofs/1", 401, "unauthorized"),
        ("/v1/sessions/7/proofs/1", 404, "session_not_found"),
    ] {
        let answer = call(node.addr, ("GET", path), &headers, "").await;
        assert_eq!(refused(&answer), (status, code.into()), "{path}");
    }
}

#[tokio::test]
async fn a_users_nonce_changes_the_seed_and_only_hex_of_32_bytes_is_one() {
    let node = TestNode::plain().await;
    for nonce in [json!("0x5a"), json!(7), json!("5a".repeat(32) + "zz")] {
        let answer = post(node.addr, "/v1/inference", &prompt(json!({"user_nonce": nonce}))).await;
        assert_eq!(refused(&answer), (400, "validation_error".into()), "{nonce}");
    }
    for nonce in ["01", "02"] {
        let body = prompt(json!({"user_nonce": format!("0x{}", nonce.repeat(32))}));
        assert_eq!(post(node.addr, "/v1/inference", &body).await.status, 200);
    }
    let own = prompt(json!({"user_nonce": format!("0x{}", "01".repeat(32)), "seed": 7}));
    assert_eq!(post(node.addr, "/v1/inference", &own).await.status, 200);
    let seeds: Vec<_> = node.engine.starts().iter().map(|spec| spec.sampling.seed).collect();
    assert_ne!(seeds[0], seeds[1]);
    assert_eq!(seeds[2], seed_from_client(7), "the client's own seed wins");
}

#[tokio::test]
async fn web_pages_of_listed_origins_may_call() {
    let mut setup = Setup::default();
    setup.settings.cors = vec!["https://app.example".to_owned()];
    let node = TestNode::start(setup).await;
    let asked = |origin: &'static str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        let addr = node.addr;
        async move { call(addr, ("OPTIONS", "/v1/inference"), &headers, "").await }
    };
    let listed = asked("https://app.example").await;
    assert_eq!(listed.header("access-control-allow-origin"), Some("https://app.example"));
    let allowed = listed.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization"), "{allowed}");
    let other = asked("https://evil.example").await;
    assert_eq!(other.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_drained_node_finishes_what_runs_and_takes_nothing_new() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut client = Client::connect(node.addr).await;
    let body = prompt(json!({"stream": true})).to_string();
    client.send(&text("POST", "/v1/inference", &[], &body)).await;
    eventually(|| node.engine.starts().len() == 1).await;
    node.sessions.close();
    assert_eq!(get(node.addr, "/health").await.status, 503);
    node.stops.drain.cancel();
    node.engine.release_all();
    let events = client.answer().await.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    node.served.await.unwrap().unwrap();
    assert_eq!(node.ledger.recorded(job(139)), 5);
}

#[tokio::test]
async fn a_cut_ends_a_running_stream_as_cancelled() {
    let node = TestNode::plain().await;
    node.engine.hold();
    node.engine.release(2);
    let mut client = Client::connect(node.addr).await;
    let body = prompt(json!({"stream": true})).to_string();
    client.send(&text("POST", "/v1/inference", &[], &body)).await;
    client.read_events(1).await;
    node.stops.drain.cancel();
    node.stops.cut.cancel();
    let events = client.answer().await.events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["finish_reason"], "cancelled");
    node.served.await.unwrap().unwrap();
    assert_eq!(last["tokens_used"], node.ledger.recorded(job(139)));
}

#[tokio::test]
async fn a_free_node_serves_any_session_name_and_records_nothing() {
    let node = TestNode::start(Setup { is_free: true, ..Setup::default() }).await;
    let body = prompt(json!({"job_id": null, "session_id": "my-chat"}));
    let answer = post(node.addr, "/v1/inference", &body).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["chain_id"], Value::Null);
    assert_eq!(node.engine.starts()[0].owner, Hash32::ZERO, "all is the operator's own");
    let report = get(node.addr, "/v1/sessions/139").await;
    assert_eq!(refused(&report), (503, "service_unavailable".into()));
}
