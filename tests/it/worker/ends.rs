//! Ends that come while nobody reads, turns in line, and an engine that is full.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tally::api::ApiSettings;
use tally::engine::scripted::Script;
use tally::engine::{EngineFinish, StartError};
use tally::jobs::{JobEvent, JobRequest, JobSampling};
use tally::node::worker::finish;

use crate::support::http::{Client, text};
use crate::support::node::{ManualClock, eventually};
use crate::support::worker::{JSON, TestWorker, WorkerSetup, frames, job};

/// Tokens of 32 KiB each: a few of them fill every buffer on the way.
const TOKEN_BYTES: usize = 32 * 1024;
/// No other wait of a worker lasts as long.
const STALL: Duration = Duration::from_secs(101);

/// A worker, and a client of its job `job-1` that has read two frames and reads no more; what it
/// was sent fills every buffer.
async fn unread(headers: &[(&str, &str)]) -> (TestWorker, Arc<ManualClock>, Client) {
    let clock = Arc::new(ManualClock::default());
    let piece = "x".repeat(TOKEN_BYTES);
    let tokens = (1..=50).map(|id| (id, piece.clone())).collect();
    let mut settings = ApiSettings::default();
    settings.stream.stall_max = STALL;
    let worker = TestWorker::start(WorkerSetup {
        script: Script { tokens, end: EngineFinish::Stop },
        clock: clock.clone(),
        settings,
        send_buffer: Some(16 * 1024),
        ..WorkerSetup::default()
    })
    .await;
    let mut client = Client::connect_narrow(worker.addr).await;
    let headers = [&[JSON], headers].concat();
    client.send(&text("POST", "/execute", &headers, &job(json!({})).to_string())).await;
    client.read_events(2).await;
    eventually(|| clock.is_awaited(STALL)).await;
    assert!(worker.engine.said() < 50, "the client took all of it");
    assert_eq!(worker.jobs.load().slots_busy, 1);
    (worker, clock, client)
}

/// Slot, engine and name are free, though the client has not read; then it reads its end.
async fn hold_end(worker: &TestWorker, mut client: Client, code: &str) {
    assert_eq!(worker.jobs.load().slots_busy, 0);
    assert_eq!(worker.engine.cancelled(), 1);
    assert_eq!(worker.execute(json!({"max_tokens": 1})).await.status, 200);
    let all = frames(&client.answer().await.events());
    let last = all.last().unwrap();
    assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!(code)));
    assert!(all.len() < 50);
}

#[tokio::test]
async fn a_cancel_ends_a_job_whose_client_does_not_read() {
    let (worker, _clock, client) = unread(&[]).await;
    assert_eq!(worker.cancel("job-1").await.status, 202);
    hold_end(&worker, client, "CANCELLED").await;
}

#[tokio::test]
async fn a_deadline_ends_a_job_whose_client_does_not_read() {
    let (worker, clock, client) = unread(&[("x-request-deadline", "1970-01-01T00:00:05Z")]).await;
    clock.advance(Duration::from_millis(4999));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(worker.jobs.load().slots_busy, 1);
    clock.advance(Duration::from_millis(1));
    eventually(|| worker.jobs.load().slots_busy == 0).await;
    hold_end(&worker, client, "TIMEOUT").await;
}

#[tokio::test]
async fn the_workers_stop_ends_a_job_whose_client_does_not_read() {
    let (worker, _clock, client) = unread(&[]).await;
    worker.jobs.cut();
    hold_end(&worker, client, "CANCELLED").await;
}

#[tokio::test]
async fn the_job_behind_one_whose_client_does_not_read_starts_when_that_is_cancelled() {
    let (worker, _clock, _client) = unread(&[]).await;
    let mut waiting = worker.begin(json!({"job_id": "b", "max_tokens": 1})).await;
    eventually(|| worker.jobs.load().queued == 1).await;
    assert_eq!(worker.cancel("job-1").await.status, 202);
    assert_eq!(frames(&waiting.answer().await.events()).last().unwrap()["type"], "end");
}

#[tokio::test]
async fn a_worker_ends_within_its_bounds_though_a_client_does_not_read() {
    let (worker, clock, client) = unread(&[]).await;
    let TestWorker { jobs, drain, served, engine, .. } = worker;
    let (own, time) = (jobs.clone(), clock.clone());
    let finishing = tokio::spawn(async move {
        finish(&own, &*time, drain, async {
            served.await.unwrap().unwrap();
        })
        .await;
    });
    eventually(|| clock.is_awaited(Duration::from_secs(28))).await;
    assert!(jobs.is_draining());
    clock.advance(Duration::from_secs(27));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(jobs.load().slots_busy, 1, "a second of patience is left");
    clock.advance(Duration::from_secs(1));
    eventually(|| jobs.load().slots_busy == 0).await;
    assert_eq!(engine.cancelled(), 1);
    eventually(|| clock.is_awaited(Duration::from_secs(2))).await;
    assert!(!finishing.is_finished(), "its last frames have time to leave");
    clock.advance(Duration::from_secs(2));
    finishing.await.unwrap();
    drop(client);
}

#[tokio::test]
async fn a_job_that_does_not_end_in_time_is_told_that_the_worker_stops() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    let [mut running, mut waiting] = worker.one_runs_one_waits([&[], &[]]).await;
    let TestWorker { jobs, drain, served, .. } = worker;
    let cut = async {
        eventually(|| clock.is_awaited(Duration::from_secs(28))).await;
        clock.advance(Duration::from_secs(28));
        let expected = json!({"type": "error", "code": "CANCELLED", "retriable": true,
            "message": "the worker is shutting down"});
        assert_eq!(frames(&running.read_events(2).await)[1], expected);
        assert_eq!(frames(&waiting.read_events(1).await), [expected]);
        drop((running, waiting));
    };
    let serving = async {
        served.await.unwrap().unwrap();
    };
    tokio::join!(finish(&jobs, &*clock, drain, serving), cut);
}

/// A job as a front-end makes it.
fn request(id: &str) -> JobRequest {
    let sampling = JobSampling {
        temperature: 1.0,
        seed: 42,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        min_p: 0.0,
    };
    let (id, prompt) = (id.to_owned(), "count".to_owned());
    JobRequest { id, prompt, max_tokens: 5, sampling, stop: Vec::new(), deadline: None }
}

#[tokio::test]
async fn jobs_start_in_the_order_in_which_they_were_taken_whoever_reads_first() {
    let worker = TestWorker::plain().await;
    worker.engine.hold();
    let mut first = worker.jobs.admit(request("a")).await.unwrap();
    let mut second = worker.jobs.admit(request("b")).await.unwrap();
    let mut third = worker.jobs.admit(request("c")).await.unwrap();
    assert!(matches!(first.next().await, Some(JobEvent::Started { .. })));
    drop(first);
    let started = tokio::select! {
        biased;
        told = third.next() => ("c", told),
        told = second.next() => ("b", told),
    };
    assert!(matches!(started, ("b", Some(JobEvent::Started { .. }))), "{started:?}");
    worker.jobs.cancel("b");
    assert!(matches!(third.next().await, Some(JobEvent::Started { .. })));
}

#[tokio::test]
async fn an_engine_that_is_full_for_a_moment_fails_no_job() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    let pause = Duration::from_millis(10);
    worker.engine.refuse_starts(vec![StartError::Busy; 3]);
    let mut client = worker.begin(json!({})).await;
    for left in [2, 1, 0] {
        eventually(|| clock.is_awaited(pause)).await;
        assert_eq!(worker.engine.refusals_left(), left);
        let load = worker.jobs.load();
        assert_eq!((load.slots_busy, load.queued), (1, 0), "its slot is kept");
        clock.advance(pause);
    }
    let all = frames(&client.answer().await.events());
    assert_eq!((all.len(), all[6]["type"].clone()), (7, "end".into()));
}

#[tokio::test]
async fn a_job_that_a_full_engine_has_not_taken_can_be_cancelled() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    worker.engine.refuse_starts([StartError::Busy]);
    let mut client = worker.begin(json!({})).await;
    eventually(|| clock.is_awaited(Duration::from_millis(10))).await;
    assert_eq!(worker.cancel("job-1").await.status, 202);
    let all = frames(&client.answer().await.events());
    assert_eq!((all.len(), all[0]["code"].clone()), (1, "CANCELLED".into()));
    assert!(worker.engine.starts().is_empty());
    assert_eq!(worker.execute(json!({})).await.status, 200);
}
