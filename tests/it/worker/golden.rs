//! The wire, byte by byte: a change here is a change of the protocol.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tally::engine::scripted::Script;
use tally::engine::{EngineFinish, StartError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::node::ManualClock;
use crate::support::worker::{TestWorker, WorkerSetup, job};

/// Everything a worker sends for one request on a connection of its own, its date taken out.
async fn sent(worker: &TestWorker, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(worker.addr).await.unwrap();
    let length = body.len();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut raw = String::new();
    stream.read_to_string(&mut raw).await.unwrap();
    let lines = raw.split_inclusive("\r\n").filter(|line| !line.starts_with("date: "));
    lines.collect()
}

/// A worker at the time 0.
async fn worker(script: Script) -> TestWorker {
    let clock = Arc::new(ManualClock::default());
    TestWorker::start(WorkerSetup { script, clock, ..WorkerSetup::default() }).await
}

/// The answer that streams these frames, one chunk each.
fn streamed(frames: &[&str]) -> String {
    let mut raw = String::from(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
         x-accel-buffering: no\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    for frame in frames {
        raw.push_str(&format!("{:X}\r\n{frame}\r\n", frame.len()));
    }
    raw + "0\r\n\r\n"
}

const STARTED: &str = "event: started\ndata: {\"type\":\"started\",\"job_id\":\"job-1\",\
                       \"model\":\"scripted\",\"started_at\":\"0\"}\n\n";

async fn hold_stream(script: Script, extra: Value, frames: &[&str]) {
    let worker = worker(script).await;
    let found = sent(&worker, "POST /execute", &job(extra).to_string()).await;
    assert_eq!(found, streamed(frames));
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let frames = [
        STARTED,
        "event: token\ndata: {\"type\":\"token\",\"t\":\"a \\\"b\\\"\\n\",\"i\":0}\n\n",
        "event: token\ndata: {\"type\":\"token\",\"t\":\"\",\"i\":1}\n\n",
        "event: token\ndata: {\"type\":\"token\",\"t\":\"é\",\"i\":2}\n\n",
        "event: end\ndata: {\"type\":\"end\",\"tokens_out\":3,\"decode_time_ms\":0,\
         \"stop_reason\":\"EOS\",\"stop_sequence_matched\":null}\n\n",
    ];
    let tokens = ["a \"b\"\n", "", "é"].map(str::to_owned);
    let tokens = (7..).zip(tokens).collect();
    let script = Script { tokens, end: EngineFinish::Stop };
    hold_stream(script, json!({}), &frames).await;
}

#[tokio::test]
async fn each_end_is_these_bytes() {
    let one = "event: token\ndata: {\"type\":\"token\",\"t\":\"one \",\"i\":0}\n\n";
    let bound = "event: end\ndata: {\"type\":\"end\",\"tokens_out\":1,\"decode_time_ms\":0,\
                 \"stop_reason\":\"MAX_TOKENS\",\"stop_sequence_matched\":null}\n\n";
    let max = json!({"max_tokens": 1});
    hold_stream(Script::words("one two"), max, &[STARTED, one, bound]).await;

    let tail = "event: token\ndata: {\"type\":\"token\",\"t\":\"t\",\"i\":1}\n\n";
    let stopped = "event: end\ndata: {\"type\":\"end\",\"tokens_out\":2,\"decode_time_ms\":0,\
                   \"stop_reason\":\"STOP_SEQUENCE\",\"stop_sequence_matched\":\"wo t\"}\n\n";
    let stop = json!({"stop": ["never", "wo t"]});
    hold_stream(Script::words("one two three"), stop, &[STARTED, one, tail, stopped]).await;

    let failed = "event: error\ndata: {\"type\":\"error\",\"code\":\"INFERENCE_FAILED\",\
                  \"message\":\"the inference failed\",\"retriable\":true}\n\n";
    let end = EngineFinish::Failed("secret detail".to_owned());
    let script = Script { end, ..Script::words("one ") };
    hold_stream(script, json!({}), &[STARTED, one, failed]).await;
}

#[tokio::test]
async fn a_job_that_the_engine_refuses_is_started_and_ended_in_these_bytes() {
    let table = [
        (
            StartError::Memory("too much".to_owned()),
            "event: error\ndata: {\"type\":\"error\",\"code\":\"OUT_OF_MEMORY\",\
             \"message\":\"too much\",\"retriable\":false}\n\n",
        ),
        (
            StartError::Invalid("no such thing".to_owned()),
            "event: error\ndata: {\"type\":\"error\",\"code\":\"INVALID_REQUEST\",\
             \"message\":\"no such thing\",\"retriable\":false}\n\n",
        ),
        (
            StartError::Setting { setting: "top_k", reason: "is too much".to_owned() },
            "event: error\ndata: {\"type\":\"error\",\"code\":\"INVALID_REQUEST\",\
             \"message\":\"top_k is too much\",\"retriable\":false}\n\n",
        ),
        (
            StartError::UnknownModel,
            "event: error\ndata: {\"type\":\"error\",\"code\":\"INFERENCE_FAILED\",\
             \"message\":\"the inference failed\",\"retriable\":true}\n\n",
        ),
    ];
    for (error, frame) in table {
        let worker = worker(Script::words("never said")).await;
        worker.engine.refuse_starts([error]);
        let found = sent(&worker, "POST /execute", &job(json!({})).to_string()).await;
        assert_eq!(found, streamed(&[STARTED, frame]));
        assert_eq!(worker.jobs.load().slots_busy, 0);
    }
}

#[tokio::test]
async fn decode_time_counts_from_the_prompts_last_token() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    worker.engine.hold();
    clock.advance(Duration::from_secs(7));
    let mut client = worker.begin(json!({})).await;
    worker.engine.release(1);
    client.read_events(2).await;
    clock.advance(Duration::from_millis(1234));
    worker.engine.release_all();
    let last = client.answer().await.events().pop().unwrap();
    let expected = "{\"type\":\"end\",\"tokens_out\":5,\"decode_time_ms\":1234,\
                    \"stop_reason\":\"EOS\",\"stop_sequence_matched\":null}";
    assert_eq!(last, expected);
}

#[tokio::test]
async fn a_bug_in_a_handler_is_told_in_the_protocols_shape() {
    let setup = WorkerSetup { metrics: Arc::new(|| panic!("secret")), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    let expected = json_answer(
        "500 Internal Server Error",
        "",
        "{\"error\":{\"code\":\"INTERNAL_ERROR\",\"message\":\"internal error\"}}",
    );
    assert_eq!(sent(&worker, "GET /metrics", "").await, expected);
    assert_eq!(sent(&worker, "GET /metrics", "").await, expected, "the worker lives");
}

/// An answer with a JSON body.
fn json_answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn health_and_refusals_are_these_bytes() {
    let table = [
        (
            "GET /health",
            json!(null),
            json_answer(
                "200 OK",
                "",
                "{\"status\":\"healthy\",\"model_loaded\":true,\"vram_bytes\":0,\
                 \"memory_type\":\"cpu\"}",
            ),
        ),
        ("POST /cancel", json!({"job_id": "x"}), {
            json_answer("202 Accepted", "", "{\"job_id\":\"x\"}")
        }),
        (
            "POST /execute",
            job(json!({"temperature": 2.1, "prompt": ""})),
            json_answer(
                "400 Bad Request",
                "",
                "{\"errors\":[{\"field\":\"prompt\",\"constraint\":\"non_empty\",\
                 \"message\":\"prompt must not be empty\"},{\"field\":\"temperature\",\
                 \"constraint\":\"range(0.0..=2.0)\",\
                 \"message\":\"temperature must be at most 2.0 (got 2.1)\",\"value\":\"2.1\"}]}",
            ),
        ),
        (
            "POST /execute",
            job(json!({"prompt": "w ".repeat(64)})),
            json_answer(
                "400 Bad Request",
                "",
                "{\"errors\":[{\"field\":\"prompt\",\"constraint\":\"context_length\",\
                 \"message\":\"prompt of 64 tokens does not fit a context of 64\"}]}",
            ),
        ),
        (
            "POST /execute",
            job(json!({"prompt": null})),
            json_answer(
                "422 Unprocessable Entity",
                "",
                "{\"error\":{\"code\":\"INVALID_BODY\",\
                 \"message\":\"missing field `prompt` at line 1 column 34\"}}",
            ),
        ),
    ];
    for (head, body, expected) in table {
        let worker = worker(Script::words("never said")).await;
        let sent_body = if body.is_null() { String::new() } else { body.to_string() };
        assert_eq!(sent(&worker, head, &sent_body).await, expected, "{head} {body}");
        assert_eq!(worker.engine.starts().len(), 0);
    }
}
