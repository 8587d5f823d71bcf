//! A worker on a real socket, with an engine that says what the test wrote down.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tally::api::ApiSettings;
use tally::api::worker::{WorkerApp, WorkerToken, serve};
use tally::clock::{Clock, SystemClock};
use tally::engine::scripted::{Script, ScriptedEngine};
use tally::jobs::{JobLimits, Jobs};
use tokio::net::TcpSocket;
use tokio_util::sync::CancellationToken;

use super::http::{Answer, Client, call, text};
use super::node::eventually;

/// How a test worker differs from the plain one.
pub struct WorkerSetup {
    pub script: Script,
    pub limits: JobLimits,
    pub token: Option<&'static str>,
    pub clock: Arc<dyn Clock>,
    pub settings: ApiSettings,
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Size of the kernel's send buffer, where a test must fill it.
    pub send_buffer: Option<u32>,
}

impl Default for WorkerSetup {
    fn default() -> Self {
        Self {
            script: Script::words("one two three four five"),
            limits: JobLimits { slots: 1, queue_max: 8 },
            token: None,
            clock: SystemClock::shared(),
            settings: ApiSettings::default(),
            metrics: Arc::new(|| "worker_slots 1\n".to_owned()),
            send_buffer: None,
        }
    }
}

/// A running worker.
pub struct TestWorker {
    pub addr: SocketAddr,
    pub engine: Arc<ScriptedEngine>,
    pub jobs: Arc<Jobs>,
    pub drain: CancellationToken,
    pub served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl TestWorker {
    pub async fn start(setup: WorkerSetup) -> Self {
        let engine = ScriptedEngine::new(setup.script);
        let jobs = Jobs::new(engine.clone(), setup.limits, setup.clock.clone()).unwrap();
        let drain = CancellationToken::new();
        let app = WorkerApp {
            jobs: jobs.clone(),
            clock: setup.clock,
            settings: setup.settings,
            token: setup.token.map(|token| WorkerToken::new(token.to_owned().into())),
            metrics: setup.metrics,
            drain: drain.clone(),
        };
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = setup.send_buffer {
            socket.set_send_buffer_size(size).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(64).unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(serve(listener, Arc::new(app)));
        Self { addr, engine, jobs, drain, served }
    }

    pub async fn plain() -> Self {
        Self::start(WorkerSetup::default()).await
    }

    /// A job's whole stream, or its refusal.
    pub async fn execute(&self, extra: Value) -> Answer {
        self.post("/execute", &[], &job(extra).to_string()).await
    }

    /// A job whose stream the test reads itself.
    pub async fn begin(&self, extra: Value) -> Client {
        self.begin_with(&[], extra).await
    }

    pub async fn begin_with(&self, headers: &[(&str, &str)], extra: Value) -> Client {
        let mut client = Client::connect(self.addr).await;
        let headers = [&[JSON], headers].concat();
        client.send(&text("POST", "/execute", &headers, &job(extra).to_string())).await;
        client
    }

    /// Job `a` runs, its first frame read, and `b` waits for its slot; each with these headers. The
    /// engine makes no token until the test lets it.
    pub async fn one_runs_one_waits(&self, headers: [&[(&str, &str)]; 2]) -> [Client; 2] {
        self.engine.hold();
        let mut running = self.begin_with(headers[0], json!({"job_id": "a"})).await;
        running.read_events(1).await;
        let waiting = self.begin_with(headers[1], json!({"job_id": "b"})).await;
        eventually(|| self.jobs.load().queued == 1).await;
        [running, waiting]
    }

    pub async fn cancel(&self, id: &str) -> Answer {
        self.post("/cancel", &[], &json!({"job_id": id}).to_string()).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        call(self.addr, ("POST", path), &[&[JSON], headers].concat(), body).await
    }
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// A job with other or further fields; null takes one away.
pub fn job(extra: Value) -> Value {
    let mut fields = json!({"job_id": "job-1", "prompt": "count to five", "max_tokens": 50});
    let map = fields.as_object_mut().unwrap();
    for (key, value) in extra.as_object().unwrap() {
        map.insert(key.clone(), value.clone());
    }
    map.retain(|_, value| !value.is_null());
    fields
}

/// The frames of a stream as values.
pub fn frames(events: &[String]) -> Vec<Value> {
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// The text of all token frames.
pub fn said(frames: &[Value]) -> String {
    frames.iter().filter_map(|frame| frame["t"].as_str()).collect()
}
