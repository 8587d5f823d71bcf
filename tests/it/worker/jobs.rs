//! What becomes of a job: streamed as it is made, cancelled, left, late, or just done.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tally::engine::EngineFinish;
use tally::engine::scripted::Script;

use crate::support::http::get;
use crate::support::node::{ManualClock, eventually};
use crate::support::worker::{TestWorker, WorkerSetup, frames, said};

/// Before it, digits are no deadline.
const START: Duration = Duration::from_millis(100_000_000_000);

#[tokio::test]
async fn a_frame_leaves_before_the_next_token_is_made_and_health_answers_in_between() {
    let worker = TestWorker::start(WorkerSetup {
        script: Script::words("1 2 3 4 5 6 7 8 9 10"),
        ..WorkerSetup::default()
    })
    .await;
    worker.engine.hold();
    let mut client = worker.begin(json!({})).await;
    for made in 1..=10 {
        worker.engine.release(1);
        let events = client.read_events(made + 1).await;
        assert_eq!(frames(&events)[made]["i"], made - 1);
        assert_eq!(worker.engine.said(), made as u64, "no later token is made yet");
        assert_eq!(get(worker.addr, "/health").await.status, 200);
    }
    let all = frames(&client.read_events(12).await);
    assert_eq!(all.last().unwrap()["stop_reason"], "EOS");
}

#[tokio::test]
async fn a_cancelled_job_ends_at_once_and_the_next_one_is_unaffected() {
    let worker = TestWorker::plain().await;
    let [mut client, mut waiting] = worker.one_runs_one_waits([&[], &[]]).await;
    worker.engine.release(2);
    client.read_events(3).await;
    assert_eq!(worker.cancel("a").await.status, 202);
    let all = frames(&client.read_events(4).await);
    let expected = json!({"type": "error", "code": "CANCELLED", "retriable": false,
        "message": "the job was cancelled"});
    assert_eq!(all[3], expected);
    assert_eq!(said(&all), "one two ");
    worker.engine.release_all();
    let next = frames(&waiting.answer().await.events());
    assert_eq!(said(&next), "one two three four five");
    for id in ["a", "never seen"] {
        assert_eq!(worker.cancel(id).await.status, 202, "{id}");
    }
    let answer = worker.execute(json!({"job_id": "a"})).await;
    assert_eq!(said(&frames(&answer.events())), "one two three four five");
    assert_eq!(worker.engine.cancelled(), 1);
}

#[tokio::test]
async fn a_cancel_comes_before_tokens_that_wait_to_be_told() {
    let worker = TestWorker::plain().await;
    worker.engine.hold();
    let mut client = worker.begin(json!({})).await;
    client.read_events(1).await;
    worker.jobs.cancel("job-1");
    worker.engine.release_all();
    let all = frames(&client.answer().await.events());
    assert_eq!(all[1]["code"], "CANCELLED");
    assert_eq!(all.len(), 2, "nothing follows a terminal");
}

#[tokio::test]
async fn a_waiting_job_that_is_cancelled_tells_its_end_alone_and_costs_nothing() {
    let worker = TestWorker::plain().await;
    let [_running, mut waiting] = worker.one_runs_one_waits([&[], &[]]).await;
    assert_eq!(worker.cancel("b").await.status, 202);
    let told = frames(&waiting.read_events(1).await);
    assert_eq!((told.len(), told[0]["code"].clone()), (1, "CANCELLED".into()));
    assert_eq!(worker.jobs.load().queued, 0);
    assert_eq!(worker.engine.starts().len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_job_whether_it_runs_or_waits() {
    let worker = TestWorker::plain().await;
    let [running, waiting] = worker.one_runs_one_waits([&[], &[]]).await;
    drop(waiting);
    eventually(|| worker.jobs.load().queued == 0).await;
    drop(running);
    eventually(|| worker.jobs.load().slots_busy == 0).await;
    assert_eq!((worker.engine.cancelled(), worker.engine.starts().len()), (1, 1));
    worker.engine.release_all();
    let answer = worker.execute(json!({"job_id": "a"})).await;
    assert_eq!(frames(&answer.events()).len(), 7);
}

#[tokio::test]
async fn a_deadline_ends_a_job_that_runs_and_one_that_waits() {
    let clock = Arc::new(ManualClock::default());
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    clock.advance(START);
    // One moment in both forms.
    let moments = ["1973-03-03T09:46:45Z", "100000005000"];
    let moments = moments.map(|moment| [("x-request-deadline", moment)]);
    let [mut running, mut waiting] =
        worker.one_runs_one_waits(moments.each_ref().map(|m| &m[..])).await;
    clock.advance(Duration::from_millis(4999));
    worker.engine.release(1);
    let events = running.read_events(2).await;
    assert_eq!(frames(&events)[1]["t"], "one ");
    clock.advance(Duration::from_millis(1));
    let expected = json!({"type": "error", "code": "TIMEOUT", "retriable": true,
        "message": "the job's deadline has passed"});
    assert_eq!(frames(&running.read_events(3).await)[2], expected);
    assert_eq!(frames(&waiting.read_events(1).await), [expected]);
    assert_eq!((worker.engine.cancelled(), worker.engine.starts().len()), (1, 1));
}

#[tokio::test]
async fn a_deadline_that_has_passed_costs_nothing() {
    let clock = Arc::new(ManualClock::default());
    clock.advance(START + Duration::from_secs(60));
    let setup = WorkerSetup { clock: clock.clone(), ..WorkerSetup::default() };
    let worker = TestWorker::start(setup).await;
    for moment in ["100000060000", "100000059999", "100000000000", "1970-01-01T00:01:00Z"] {
        let mut late = worker.begin_with(&[("x-request-deadline", moment)], json!({})).await;
        let told = frames(&late.answer().await.events());
        assert_eq!((told.len(), told[0]["code"].clone()), (1, "TIMEOUT".into()), "{moment}");
    }
    assert!(worker.engine.starts().is_empty());
}

#[tokio::test]
async fn characters_in_pieces_come_whole_with_one_frame_for_each_token() {
    let text = "né 👩‍👩‍👧 漢字!";
    let script = Script::bytes(text, 1);
    let count = script.tokens.len();
    let worker = TestWorker::start(WorkerSetup { script, ..WorkerSetup::default() }).await;
    let answer = worker.execute(json!({"max_tokens": 2048})).await;
    let all = frames(&answer.events());
    assert_eq!(said(&all), text);
    let indices: Vec<_> = all.iter().filter_map(|frame| frame["i"].as_u64()).collect();
    assert_eq!(indices, (0..count as u64).collect::<Vec<_>>());
    assert_eq!(all.last().unwrap()["tokens_out"], count);
}

#[tokio::test]
async fn the_engine_gets_what_was_asked_for() {
    let worker = TestWorker::plain().await;
    let asked = json!({"temperature": 0.5, "seed": u64::MAX, "top_p": 0.25, "top_k": 7,
        "repetition_penalty": 0, "stop": ["never"], "min_p": 0.125, "max_tokens": 3});
    worker.execute(asked).await;
    let spec = worker.engine.starts().pop().unwrap();
    let sampling = spec.sampling;
    assert_eq!((spec.max_tokens, spec.stop), (3, vec!["never".to_owned()]));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.25, 0.125));
    assert_eq!((sampling.top_k, sampling.repetition_penalty), (7, 0.01));
    assert_eq!(sampling.seed.bytes()[..24], [0; 24]);
    assert_eq!(sampling.seed.bytes()[24..], [255; 8]);
}

#[tokio::test]
async fn an_engine_that_dies_fails_its_jobs_and_takes_no_more() {
    let script = Script { tokens: Vec::new(), end: EngineFinish::Stop };
    let worker = TestWorker::start(WorkerSetup { script, ..WorkerSetup::default() }).await;
    assert_eq!(frames(&worker.execute(json!({})).await.events()).len(), 2, "no token is fine");
    worker.engine.set_script(Script::words("a b"));
    worker.engine.hold();
    let mut client = worker.begin(json!({})).await;
    client.read_events(1).await;
    tally::engine::Engine::shutdown(&*worker.engine);
    let told = frames(&client.read_events(2).await);
    assert_eq!(told[1]["code"], "INFERENCE_FAILED");
    let refused = worker.execute(json!({})).await;
    let code = refused.json()["error"]["code"].clone();
    assert_eq!((refused.status, code), (503, "ENGINE_UNAVAILABLE".into()));
    let health = get(worker.addr, "/health").await;
    assert_eq!((health.status, health.json()["model_loaded"].clone()), (503, false.into()));
}
