//! The OpenAI API: shapes, errors, who pays. What an answer says is compared over all front-ends
//! in `conformance.rs`.

use serde_json::{Value, json};
use tally::chain::fixed::{DEPOSITOR, FixedWallet};
use tally::engine::EngineFinish;
use tally::engine::scripted::Script;
use tally::session::LegacyAccess;

use crate::support::http::{Answer, Client, call, get, post, text};
use crate::support::ledger::Tallied;
use crate::support::node::{Setup, TestNode, eventually, job};

const PATH: &str = "/v1/chat/completions";

/// A chat of one turn with other or further fields.
fn chat(extra: Value) -> Value {
    let mut fields = json!({
        "model": "scripted",
        "messages": [{"role": "user", "content": "count to five"}],
        "max_tokens": 50,
        "job_id": 139,
    });
    let map = fields.as_object_mut().unwrap();
    map.extend(extra.as_object().unwrap().clone());
    fields
}

/// The error shape, checked, as (status, type, param, code).
fn refused(answer: &Answer) -> (u16, String, Option<String>, String) {
    let body = answer.json();
    let error = body["error"].as_object().unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys, ["code", "message", "param", "type"], "{body}");
    assert!(answer.header("x-request-id").is_some());
    let text = |key: &str| error[key].as_str().map(str::to_owned);
    (answer.status, text("type").unwrap(), text("param"), text("code").unwrap())
}

fn values(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn an_answer_has_openais_fields_and_its_tokens_are_recorded() {
    let node = TestNode::plain().await;
    let headers = [("x-request-id", "r-7")];
    let body = chat(json!({})).to_string();
    let answer = call(node.addr, ("POST", PATH), &headers, &body).await;
    assert_eq!(answer.status, 200);
    let mut found = answer.json();
    assert!(found["created"].as_u64().unwrap() > 1_700_000_000, "seconds since 1970");
    found["created"] = 0.into();
    let expected = json!({
        "id": "chatcmpl-r-7",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{
            "index": 0,
            "message": {
                "role": "assistant", "content": "one two three four five", "refusal": null,
            },
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 9,
            "context_window_size": 64,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "tally": {"finish_reason": "stop", "tokens_used": 5, "job_id": 139, "chain_id": 31337},
    });
    assert_eq!(found, expected);
    eventually(|| node.ledger.ids(job(139)) == [100, 101, 102, 103, 104]).await;
}

#[tokio::test]
async fn a_stream_is_role_and_text_then_the_reason_then_the_usage_then_done() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let mut client = Client::connect(node.addr).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    client.send(&text("POST", PATH, &[], &chat(options).to_string())).await;
    for count in 1..=5 {
        node.engine.release(1);
        // The role's chunk comes with the first text.
        let events = client.read_events(count + 1).await;
        let found = values(&events[count..=count]).remove(0);
        assert_eq!(found["object"], "chat.completion.chunk");
        assert_eq!(found["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(found["usage"], Value::Null);
        let words = ["one ", "two ", "three ", "four ", "five"];
        assert_eq!(found["choices"][0]["delta"], json!({"content": words[count - 1]}));
    }
    let answer = client.answer().await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = answer.events();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let found = values(events);
    assert_eq!(found.len(), 8);
    assert_eq!(found[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(found[6]["choices"][0]["finish_reason"], "stop");
    assert_eq!(found[6]["choices"][0]["delta"], json!({}));
    assert_eq!((&found[7]["choices"], &found[7]["usage"]["total_tokens"]), (&json!([]), &json!(9)));
    for chunk in &found {
        let same = ["id", "created", "model"].map(|key| chunk[key] == found[0][key]);
        assert_eq!(same, [true; 3]);
    }
    eventually(|| node.ledger.recorded(job(139)) == 5).await;
}

#[tokio::test]
async fn usage_is_told_in_a_stream_only_where_it_is_asked_for() {
    let node = TestNode::plain().await;
    let answer = post(node.addr, PATH, &chat(json!({"stream": true}))).await;
    let events = answer.events();
    assert!(values(&events[..events.len() - 1]).iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn an_answer_without_a_token_is_a_whole_stream_all_the_same() {
    let node = TestNode::start(Setup { script: Script::words("five"), ..Setup::default() }).await;
    let answer = post(node.addr, PATH, &chat(json!({"stream": true, "stop": "five"}))).await;
    let events = answer.events();
    let found = values(&events[..events.len() - 1]);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(found[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn what_the_client_asks_of_sampling_reaches_the_engine() {
    let node = TestNode::plain().await;
    let fields = json!({"ignore_eos": true, "temperature": 0, "seed": 7, "frequency_penalty": 0.5,
        "presence_penalty": -0.5, "logit_bias": {"9": -100}, "logprobs": true, "top_logprobs": 2});
    let answer = post(node.addr, PATH, &chat(fields)).await;
    let told = &answer.json()["choices"][0]["logprobs"]["content"];
    assert_eq!(told.as_array().map(Vec::len), Some(5), "one for each token");
    assert_eq!(told[0]["token"], "one ");
    assert_eq!(told[0]["top_logprobs"][0]["bytes"], json!(b"one ".to_vec()));
    let started = &node.engine.starts()[0];
    assert!(started.ignore_eos);
    let sampling = &started.sampling;
    assert_eq!((sampling.temperature, sampling.logprobs), (0.0, Some(2)));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (0.5, -0.5));
    assert_eq!(sampling.logit_bias.get(&9), Some(&-100.0));
    post(node.addr, PATH, &chat(json!({}))).await;
    assert!(!node.engine.starts()[1].ignore_eos);
    assert_eq!(node.engine.starts()[1].sampling.temperature, 1.0, "OpenAI's default");
}

#[tokio::test]
async fn errors_of_every_kind_have_openais_shape() {
    let node = TestNode::plain().await;
    let kind = "invalid_request_error";
    let invalid =
        |param: &str| (400, kind.to_owned(), Some(param.to_owned()), "validation_error".to_owned());
    for (extra, param) in [
        (json!({"best_of": 2}), "best_of"),
        (json!({"n": 2}), "n"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
        (json!({"job_id": "abc"}), "job_id"),
        (json!({"model": ""}), "model"),
    ] {
        assert_eq!(refused(&post(node.addr, PATH, &chat(extra)).await), invalid(param));
    }
    let malformed = call(node.addr, ("POST", PATH), &[], "{\"messages\":").await;
    let code = |code: &str| (kind.to_owned(), None, code.to_owned());
    let (status, kind, param, name) = refused(&malformed);
    assert_eq!((status, (kind, param, name)), (400, code("invalid_request")));
    let (status, kind, param, name) = refused(&get(node.addr, PATH).await);
    assert_eq!((status, (kind, param, name)), (405, code("method_not_allowed")));
    let unknown = post(node.addr, PATH, &chat(json!({"model": "gpt-9"}))).await;
    let (status, kind, param, name) = refused(&unknown);
    assert_eq!((status, (kind, param, name)), (404, code("model_not_found")));
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn a_failed_generation_is_an_error_in_the_stream_and_never_an_ended_answer() {
    let script = Script { end: EngineFinish::Failed("broken".to_owned()), ..Script::words("a b") };
    let node = TestNode::start(Setup { script, ..Setup::default() }).await;
    let streamed = post(node.addr, PATH, &chat(json!({"stream": true}))).await;
    let events = streamed.events();
    let found = values(&events[..events.len() - 1]);
    assert_eq!(found.last().unwrap()["error"]["type"], "server_error");
    let reasons = found.iter().filter(|chunk| chunk["choices"][0]["finish_reason"].is_string());
    assert_eq!(reasons.count(), 0);
    let whole = post(node.addr, PATH, &chat(json!({}))).await;
    assert_eq!(refused(&whole).0, 500);
    eventually(|| node.ledger.turns_ended(job(139)) == 2).await;
    assert_eq!(node.ledger.recorded(job(139)), 2, "what the stream delivered");
}

#[tokio::test]
async fn a_cut_ends_a_running_stream_with_its_reason() {
    let node = TestNode::plain().await;
    node.engine.hold();
    node.engine.release(2);
    let mut client = Client::connect(node.addr).await;
    client.send(&text("POST", PATH, &[], &chat(json!({"stream": true})).to_string())).await;
    client.read_events(2).await;
    node.stops.drain.cancel();
    node.stops.cut.cancel();
    let events = client.answer().await.events();
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["tally"]["finish_reason"], "cancelled");
    node.served.await.unwrap().unwrap();
    assert_eq!(last["tally"]["tokens_used"], node.ledger.recorded(job(139)));
}

#[tokio::test]
async fn a_token_names_the_job_that_pays_and_so_do_a_header_and_a_field() {
    let node = TestNode::start(Setup { legacy: LegacyAccess::Off, ..Setup::default() }).await;
    let challenge = post(node.addr, "/v1/sessions/139/challenge", &json!({})).await;
    let signature = hex::encode(FixedWallet::signature_of(DEPOSITOR).bytes());
    let body = json!({"challenge": challenge.json()["challenge"], "signature": signature});
    let token = post(node.addr, "/v1/sessions/139/token", &body).await.json();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let with = |extra: &[(&'static str, &'static str)], job: Value| {
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(extra);
        let mut body = chat(json!({}));
        body["job_id"] = job;
        let (addr, body) = (node.addr, body.to_string());
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        async move {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            call(addr, ("POST", PATH), &headers, &body).await
        }
    };
    for (served, (headers, field)) in (1..).zip([
        (&[][..], Value::Null),
        (&[("x-tally-job", "139n")], Value::Null),
        (&[("x-tally-job", "140")], json!(139)),
    ]) {
        assert_eq!(with(headers, field).await.status, 200);
        eventually(|| node.ledger.recorded(job(139)) == served * 5).await;
    }
    // The token is good for its own job only, whoever names another.
    for (headers, field) in [(&[][..], json!(140)), (&[("x-tally-job", "140")], Value::Null)] {
        assert_eq!(refused(&with(headers, field).await).0, 401);
    }
    let (status, _, param, _) = refused(&with(&[("x-tally-job", "mine")], Value::Null).await);
    assert_eq!((status, param.as_deref()), (400, Some("x-tally-job")));
    let mut nobody = chat(json!({}));
    nobody["job_id"] = Value::Null;
    let (status, _, param, _) = refused(&post(node.addr, PATH, &nobody).await);
    assert_eq!((status, param.as_deref()), (400, Some("job_id")));
    assert_eq!(node.ledger.recorded(job(140)), 0);
}

#[tokio::test]
async fn a_free_node_serves_any_client_that_has_a_key_of_another_service() {
    let node = TestNode::start(Setup { is_free: true, ..Setup::default() }).await;
    let mut fields = chat(json!({}));
    fields["job_id"] = Value::Null;
    let headers = [("authorization", "Bearer sk-none"), ("x-tally-job", "my-chat")];
    let answer = call(node.addr, ("POST", PATH), &headers, &fields.to_string()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["tally"]["job_id"], Value::Null);
}

#[tokio::test]
async fn a_client_that_leaves_stops_its_own_answer_and_nobody_elses() {
    let node = TestNode::plain().await;
    node.engine.hold();
    let request = text("POST", PATH, &[], &chat(json!({"stream": true})).to_string());
    let mut leaver = Client::connect(node.addr).await;
    leaver.send(&request).await;
    eventually(|| node.engine.starts().len() == 1).await;
    let mut stayer = Client::connect(node.addr).await;
    stayer.send(&request).await;
    eventually(|| node.engine.starts().len() == 2).await;
    node.engine.release(1);
    leaver.read_events(2).await;
    drop(leaver);
    eventually(|| node.engine.cancelled() == 1).await;
    node.engine.release_all();
    let events = stayer.answer().await.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    eventually(|| node.ledger.recorded(job(139)) == 6).await;
    assert_eq!(node.engine.cancelled(), 1);
}

#[tokio::test]
async fn a_silent_stream_says_now_and_then_that_it_lives() {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::support::node::ManualClock;

    let clock = Arc::new(ManualClock::default());
    let mut setup = Setup { clock: clock.clone(), ..Setup::default() };
    setup.settings.sse_keepalive = Duration::from_secs(34);
    let half = Duration::from_secs(17); // No other wait lasts as long.
    let node = TestNode::start(setup).await;
    node.engine.hold();
    let mut client = Client::connect(node.addr).await;
    client.send(&text("POST", PATH, &[], &chat(json!({"stream": true})).to_string())).await;
    for _ in 0..2 {
        eventually(|| clock.is_awaited(half)).await;
        clock.advance(half);
        eventually(|| clock.is_awaited(half)).await;
    }
    // A half in which a token went out is followed by no comment.
    node.engine.release(1);
    client.read_events(2).await;
    clock.advance(half);
    eventually(|| clock.is_awaited(half)).await;
    node.engine.release_all();
    let body = client.answer().await.body;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(body.matches(": waiting\n\n").count(), 2, "{body}");
}
