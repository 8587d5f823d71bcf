//! What is refused over HTTP: by status and code, always as JSON, and never at the engine's cost.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tally::engine::StartError;
use tally::jobs::JobLimits;

use crate::support::http::{Client, call, call_bytes, get, text};
use crate::support::node::{ManualClock, eventually};
use crate::support::worker::{JSON, TestWorker, WorkerSetup, frames, job};

/// Method, path, headers, body; status and code.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

#[tokio::test]
async fn every_refusal_has_its_status_its_code_and_a_json_body() {
    let worker = TestWorker::plain().await;
    let good = job(json!({})).to_string();
    let too_long = "x".repeat(2 * 1024 * 1024 + 1);
    let text_plain = ("content-type", "text/plain");
    let deadline = ("x-request-deadline", "soon");
    let huge = job(json!({"temperature": "huge"})).to_string().replace("\"huge\"", "1e400");
    let surrogate = job(json!({"x": "half"})).to_string().replace("job-1", "\\ud800");
    let top_k = job(json!({"top_k": 1_u64 << 32})).to_string();
    let long_cancel = format!("{{\"job_id\": {}}}", " ".repeat(100_000));
    let seconds = ("x-request-deadline", "1790000000");
    let table: [Case<'_>; 19] = [
        ("POST", "/execute", &[], &good, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/execute", &[text_plain], &good, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/execute", &[JSON], "{\"job_id\":", 400, "MALFORMED_JSON"),
        ("POST", "/execute", &[JSON], "", 400, "MALFORMED_JSON"),
        ("POST", "/execute", &[JSON], "{}", 422, "INVALID_BODY"),
        ("POST", "/execute", &[JSON], "[]", 422, "INVALID_BODY"),
        ("POST", "/execute", &[JSON], &huge, 422, "INVALID_BODY"),
        ("POST", "/execute", &[JSON], &surrogate, 422, "INVALID_BODY"),
        ("POST", "/execute", &[JSON], &top_k, 422, "INVALID_BODY"),
        ("POST", "/cancel", &[JSON], &long_cancel, 400, "MALFORMED_JSON"),
        ("POST", "/execute", &[JSON], &too_long, 413, "PAYLOAD_TOO_LARGE"),
        ("POST", "/execute", &[JSON, deadline], &good, 400, "INVALID_HEADER"),
        ("POST", "/execute", &[JSON, seconds], &good, 400, "INVALID_HEADER"),
        ("GET", "/execute", &[], "", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/cancel", &[], "", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", &[], "", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/cancel", &[JSON], "{}", 422, "INVALID_BODY"),
        ("GET", "/", &[], "", 404, "NOT_FOUND"),
        ("POST", "/v1/execute", &[JSON], &good, 404, "NOT_FOUND"),
    ];
    for (method, path, headers, body, status, code) in table {
        let answer = call(worker.addr, (method, path), headers, body).await;
        let case = format!("{method} {path} {code}");
        assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (status, code.into()));
        assert_eq!(answer.header("content-type"), Some("application/json"), "{case}");
        assert!(answer.json()["error"]["message"].is_string(), "{case}");
    }
    let empty = worker.post("/cancel", &[], "{\"job_id\":\"\"}").await;
    assert_eq!((empty.status, empty.json()["errors"][0]["field"].clone()), (400, "job_id".into()));
    assert_eq!(worker.engine.starts().len(), 0);
}

#[tokio::test]
async fn who_sent_a_body_that_is_not_read_is_told_that_the_connection_ends() {
    let worker = TestWorker::plain().await;
    let good = job(json!({})).to_string();
    let too_long = "x".repeat(2 * 1024 * 1024 + 1);
    for (path, headers, body, status, told) in [
        ("/execute", &[JSON][..], &*too_long, 413, Some("close")),
        ("/execute", &[], &good, 415, Some("close")),
        ("/nowhere", &[JSON], &good, 404, Some("close")),
        ("/nowhere", &[JSON], "", 404, None),
        ("/execute", &[JSON], "{}", 422, None),
        ("/execute", &[JSON], &good, 200, None),
    ] {
        let answer = call(worker.addr, ("POST", path), headers, body).await;
        assert_eq!((answer.status, answer.header("connection")), (status, told), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_utf_8_is_no_json_wherever_the_bytes_are() {
    let worker = TestWorker::plain().await;
    let body = job(json!({"unknown": "?"})).to_string().into_bytes();
    let body: Vec<u8> = body.iter().map(|byte| if *byte == b'?' { 0xff } else { *byte }).collect();
    let answer = call_bytes(worker.addr, "/execute", &body).await;
    let code = answer.json()["error"]["code"].clone();
    assert_eq!((answer.status, code), (400, "MALFORMED_JSON".into()));
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_told_so() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    let body = job(json!({})).to_string();
    let request = text("POST", "/execute", &[JSON], &body);
    let mut client = Client::connect(worker.addr).await;
    client.send(&request[..request.len() - 1]).await;
    let patience = Duration::from_secs(30);
    eventually(|| clock.is_awaited(patience)).await;
    clock.advance(patience);
    let answer = client.answer().await;
    let code = answer.json()["error"]["code"].clone();
    assert_eq!((answer.status, code), (408, "BODY_TIMEOUT".into()));
    assert!(worker.engine.starts().is_empty());
}

#[tokio::test]
async fn a_prompt_that_cannot_be_made_into_tokens_is_a_field_error() {
    let worker = TestWorker::plain().await;
    worker.engine.refuse_prompts(StartError::Invalid("a lone byte".to_owned()));
    for _ in 0..2 {
        let refused = worker.execute(json!({})).await;
        let expected = json!({"errors": [{"field": "prompt", "constraint": "encodable",
            "message": "prompt cannot be read: a lone byte"}]});
        assert_eq!((refused.status, refused.json()), (400, expected));
    }
}

#[tokio::test]
async fn a_body_of_two_mebibytes_is_read_and_one_byte_more_is_not() {
    let worker = TestWorker::plain().await;
    let frame = "{\"job_id\":\"\"}".len();
    for (more, status) in [(0, 202), (1, 413)] {
        let id = "x".repeat(2 * 1024 * 1024 - frame + more);
        let answer = worker.post("/cancel", &[], &format!("{{\"job_id\":\"{id}\"}}")).await;
        assert_eq!(answer.status, status);
    }
}

#[tokio::test]
async fn json_of_any_spelling_is_taken() {
    let worker = TestWorker::plain().await;
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/ld+json"] {
        let body = job(json!({})).to_string();
        let answer =
            call(worker.addr, ("POST", "/execute"), &[("content-type", kind)], &body).await;
        assert_eq!(answer.status, 200, "{kind}");
    }
}

#[tokio::test]
async fn with_a_token_jobs_are_for_those_who_know_it_and_health_is_for_all() {
    let setup = WorkerSetup { token: Some("correct horse"), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    for path in ["/execute", "/cancel"] {
        for wrong in ["Bearer correct", "Bearer correct horse2", "Basic correct horse", ""] {
            let headers = [JSON, ("authorization", wrong)];
            let answer =
                call(worker.addr, ("POST", path), &headers, &job(json!({})).to_string()).await;
            let code = answer.json()["error"]["code"].clone();
            assert_eq!((answer.status, code), (401, "UNAUTHORIZED".into()), "{path} {wrong}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(worker.engine.starts().len(), 0);
    let headers = [("authorization", "Bearer correct horse")];
    let answer = worker.post("/execute", &headers, &job(json!({})).to_string()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(get(worker.addr, "/health").await.status, 200);
    assert_eq!(get(worker.addr, "/metrics").await.status, 200);
}

#[tokio::test]
async fn jobs_beyond_the_slots_wait_in_order_and_one_more_is_refused() {
    let limits = JobLimits { slots: 1, queue_max: 2 };
    let worker = TestWorker::start(WorkerSetup { limits, ..WorkerSetup::default() }).await;
    worker.engine.hold();
    let mut clients = Vec::new();
    for (index, id) in ["a", "b", "c"].into_iter().enumerate() {
        let prompt = "w ".repeat(index + 1);
        clients.push(worker.begin(json!({"job_id": id, "prompt": prompt})).await);
        eventually(|| worker.jobs.load().queued == index as u32).await;
    }
    eventually(|| worker.engine.starts().len() == 1).await;
    let refused = worker.execute(json!({"job_id": "d"})).await;
    assert_eq!(refused.status, 503);
    let expected = json!({"error": {"code": "ALL_SLOTS_BUSY", "slots_total": 1, "slots_busy": 1,
        "message": "all slots are busy and the queue is full; try again later"}});
    assert_eq!(refused.json(), expected);
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(worker.engine.starts().len(), 1, "two wait");
    worker.engine.release_all();
    for mut client in clients {
        assert_eq!(client.answer().await.status, 200);
    }
    let order: Vec<_> = worker.engine.starts().iter().map(|spec| spec.prompt_ids.len()).collect();
    assert_eq!(order, [1, 2, 3]);
    assert_eq!(worker.execute(json!({"job_id": "d"})).await.status, 200);
}

#[tokio::test]
async fn as_many_jobs_run_at_once_as_there_are_slots() {
    let limits = JobLimits { slots: 3, queue_max: 0 };
    let worker = TestWorker::start(WorkerSetup { limits, ..WorkerSetup::default() }).await;
    worker.engine.hold();
    let mut clients = Vec::new();
    for id in ["a", "b", "c"] {
        let mut client = worker.begin(json!({"job_id": id})).await;
        client.read_events(1).await;
        clients.push(client);
    }
    assert_eq!(worker.engine.starts().len(), 3);
    let refused = worker.execute(json!({"job_id": "d"})).await;
    assert_eq!((refused.status, refused.json()["error"]["slots_busy"].clone()), (503, 3.into()));
}

#[tokio::test]
async fn a_job_id_that_is_running_is_a_conflict_and_free_again_after_its_end() {
    let worker = TestWorker::plain().await;
    worker.engine.hold();
    let mut first = worker.begin(json!({})).await;
    first.read_events(1).await;
    let second = worker.execute(json!({})).await;
    let code = second.json()["error"]["code"].clone();
    assert_eq!((second.status, code), (409, "DUPLICATE_JOB_ID".into()));
    worker.engine.release_all();
    let events = first.read_events(7).await;
    assert_eq!(frames(&events).last().unwrap()["type"], "end");
    assert_eq!(worker.execute(json!({})).await.status, 200);
}

#[tokio::test]
async fn a_refused_job_leaves_its_name_and_its_place_free() {
    let limits = JobLimits { slots: 1, queue_max: 0 };
    let worker = TestWorker::start(WorkerSetup { limits, ..WorkerSetup::default() }).await;
    for prompt in ["w ".repeat(64), "w ".repeat(4000)] {
        let refused = worker.execute(json!({"prompt": prompt})).await;
        assert_eq!(refused.json()["errors"][0]["constraint"], Value::from("context_length"));
    }
    assert_eq!(worker.execute(json!({"prompt": "w ".repeat(63)})).await.status, 200);
}

#[tokio::test]
async fn a_draining_worker_refuses_jobs_by_an_answer_and_ends_the_others() {
    let worker = TestWorker::plain().await;
    let [mut running, mut waiting] = worker.one_runs_one_waits([&[], &[]]).await;
    worker.jobs.close();
    let refused = worker.execute(json!({"job_id": "c"})).await;
    let code = refused.json()["error"]["code"].clone();
    assert_eq!((refused.status, code), (503, "SHUTTING_DOWN".into()));
    let health = get(worker.addr, "/health").await;
    assert_eq!((health.status, health.json()["status"].clone()), (503, "draining".into()));
    worker.engine.release(5);
    let events = running.read_events(7).await;
    assert_eq!(frames(&events).last().unwrap()["type"], "end");
    worker.engine.release_all();
    let events = waiting.read_events(7).await;
    assert_eq!(frames(&events).last().unwrap()["type"], "end");
    worker.jobs.finished().await;
    worker.drain.cancel();
    drop((running, waiting));
    worker.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_job_that_is_cut_may_be_sent_to_another_worker() {
    let worker = TestWorker::plain().await;
    worker.engine.hold();
    let mut client = worker.begin(json!({})).await;
    client.read_events(1).await;
    worker.jobs.cut();
    let last = frames(&client.read_events(2).await).pop().unwrap();
    let expected = json!({"type": "error", "code": "CANCELLED", "retriable": true,
        "message": "the worker is shutting down"});
    assert_eq!(last, expected);
    eventually(|| worker.engine.cancelled() == 1).await;
}

#[tokio::test]
async fn two_requests_on_one_connection_are_answered_one_after_the_other() {
    let worker = TestWorker::plain().await;
    let mut client = Client::connect(worker.addr).await;
    for id in ["a", "b"] {
        let body = job(json!({"job_id": id})).to_string();
        client.send(&text("POST", "/execute", &[JSON], &body)).await;
    }
    for id in ["a", "b"] {
        let answer = client.answer().await;
        assert_eq!(frames(&answer.events())[0]["job_id"], id);
    }
}
