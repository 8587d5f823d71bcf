//! A pool manager that watches its worker: called once, and only when the worker answers. Needs a
//! model file (TALLY_TEST_MODEL).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::process::{Worker, command, refused, whole};
use crate::models::model;
use crate::support::http::get;
use crate::support::node::eventually;

/// What the pool manager saw of one call.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    path: String,
    body: Value,
    /// What the worker's `/health` answered meanwhile.
    health: u16,
}

/// A pool manager that answers its first calls with 503, or nothing ever.
#[derive(Clone)]
struct Manager {
    calls: Arc<Mutex<Vec<Call>>>,
    refuses: usize,
    is_silent: bool,
}

impl Manager {
    async fn start(refuses: usize) -> (Self, String) {
        Self { calls: Arc::default(), refuses, is_silent: false }.serve().await
    }

    async fn silent() -> (Self, String) {
        Self { calls: Arc::default(), refuses: 0, is_silent: true }.serve().await
    }

    async fn serve(self) -> (Self, String) {
        let manager = self;
        let router = Router::new().fallback(hear).with_state(manager.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (manager, url)
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

async fn hear(State(manager): State<Manager>, request: Request) -> StatusCode {
    let path = format!("{} {}", request.method(), request.uri().path());
    let body: Bytes = axum::body::to_bytes(request.into_body(), 10_000).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let port = body["uri"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let health = get(SocketAddr::from(([127, 0, 0, 1], port)), "/health").await.status;
    let count = {
        let mut calls = manager.calls.lock().unwrap();
        calls.push(Call { path, body, health });
        calls.len()
    };
    if manager.is_silent {
        std::future::pending::<()>().await;
    }
    if count <= manager.refuses { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

/// Reads the log on a thread of its own: the manager runs on this one.
async fn until_ready(mut worker: Worker) -> (Worker, Vec<Value>) {
    let reading = tokio::task::spawn_blocking(move || {
        let lines = worker.read_log("Worker ready, starting HTTP server");
        (worker, lines)
    });
    reading.await.unwrap()
}

async fn called(refuses: usize) -> (Vec<Call>, Vec<Value>) {
    let (manager, url) = Manager::start(refuses).await;
    let model = model();
    let spawning =
        tokio::task::spawn_blocking(move || Worker::spawn(command(&whole(&model, &url))));
    let (worker, mut lines) = spawning.await.unwrap();
    let port = worker.addr.port();
    let (worker, rest) = until_ready(worker).await;
    lines.extend(rest);
    worker.signal("-TERM");
    let end = tokio::task::spawn_blocking(move || worker.wait()).await.unwrap();
    assert_eq!(end.code, Some(0), "{}", end.err);
    let memory = lines.iter().find(|line| line["message"] == "Model loaded").unwrap();
    let expected = json!({"worker_id": "w-1", "vram_bytes": 0,
        "memory_bytes": memory["memory_bytes"], "uri": format!("http://localhost:{port}"),
        "memory_architecture": "cpu", "worker_type": "cpu", "capabilities": ["text-gen"]});
    for call in manager.calls() {
        let found = (call.path.as_str(), &call.body, call.health);
        assert_eq!(found, ("POST /workers/w-1/ready", &expected, 200));
    }
    (manager.calls(), lines)
}

#[tokio::test]
async fn the_pool_manager_is_called_once_and_the_worker_answers_by_then() {
    let (calls, lines) = called(0).await;
    assert_eq!(calls.len(), 1);
    let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    let sent = messages.iter().position(|message| *message == "Callback sent to pool-managerd");
    assert_eq!(sent, Some(messages.len() - 2), "{messages:?}");
}

#[tokio::test]
async fn a_pool_manager_that_is_late_is_called_again_until_it_hears() {
    let (calls, lines) = called(2).await;
    assert_eq!(calls.len(), 3, "two refused, one heard");
    let heard = lines.iter().filter(|line| line["message"] == "Callback sent to pool-managerd");
    assert_eq!(heard.count(), 1);
}

#[tokio::test]
async fn a_pool_manager_that_never_hears_ends_the_worker_after_a_few_tries() {
    let (manager, url) = Manager::start(usize::MAX).await;
    let model = model();
    let ending = tokio::task::spawn_blocking(move || refused(command(&whole(&model, &url))));
    let end = ending.await.unwrap();
    assert_eq!(manager.calls().len(), 5);
    assert_eq!((end.code, end.err.lines().count()), (Some(1), 1), "{}", end.err);
    assert!(end.err.contains("not reached after 5 tries"), "{}", end.err);
    let ready = |line: &&Value| line["message"] == "Worker ready, starting HTTP server";
    assert_eq!(end.log.iter().filter(ready).count(), 0);
}

#[tokio::test]
async fn a_worker_that_cannot_start_calls_nobody() {
    let (manager, url) = Manager::start(0).await;
    let (dir, good) = (tempfile::tempdir().unwrap(), model());
    let bad = dir.path().join("bad.gguf").display().to_string();
    std::fs::write(&bad, b"GGUF but not really").unwrap();
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (model, port, told) in [(&bad, "0", &bad), (&good, &*port, &port)] {
        let mut arguments = whole(model, &url);
        arguments[5] = port;
        let command = command(&arguments);
        let end = tokio::task::spawn_blocking(move || refused(command)).await.unwrap();
        assert_eq!((end.code, end.err.lines().count()), (Some(1), 1), "{}", end.err);
        assert!(end.err.contains(told), "{}", end.err);
    }
    assert_eq!(manager.calls(), []);
}

#[tokio::test]
async fn a_signal_before_the_pool_manager_has_heard_ends_the_worker_in_order() {
    let (manager, url) = Manager::silent().await;
    let model = model();
    let spawning =
        tokio::task::spawn_blocking(move || Worker::spawn(command(&whole(&model, &url))));
    let (worker, _) = spawning.await.unwrap();
    eventually(|| manager.calls().len() == 1).await;
    worker.signal("-TERM");
    let end = tokio::task::spawn_blocking(move || worker.wait()).await.unwrap();
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    let messages: Vec<_> = end.log.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["SIGTERM: stopping", "Worker stopped"]);
    assert_eq!(manager.calls().len(), 1, "who is about to end calls nobody again");
}

#[test]
fn a_pool_manager_that_is_down_ends_the_worker() {
    // A port that was free a moment ago, and that nobody listens on.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let end = refused(command(&whole(&model(), &url)));
    assert_eq!((end.code, end.err.lines().count()), (Some(1), 1), "{}", end.err);
    assert!(end.err.contains("pool manager"), "{}", end.err);
}
