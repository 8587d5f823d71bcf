//! `tally worker` as a process: what it logs, when it answers, how it ends. Needs a model file
//! (TALLY_TEST_MODEL).

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::models::model;
use crate::support::http::{Client, call, get, text};
use crate::support::tiny;
use crate::support::worker::{JSON, frames, job, said};

/// Test mode's address: nobody is called.
pub const NOBODY: &str = "http://localhost:9999";

/// The end of a worker's life.
#[derive(Debug)]
pub struct End {
    pub code: Option<i32>,
    /// Its log, from where it was not read yet.
    pub log: Vec<Value>,
    pub err: String,
}

/// A running worker. Dropping it kills the process.
pub struct Worker {
    child: Child,
    log: std::io::Lines<BufReader<std::process::ChildStdout>>,
    pub addr: SocketAddr,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker's command with nothing in its environment.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    // The name alone makes a worker of it.
    command.arg0("llorch-cpud").args(arguments).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The four arguments that a worker needs, on a free port.
pub fn whole<'a>(model: &'a str, callback: &'a str) -> [&'a str; 8] {
    ["--worker-id", "w-1", "--model", model, "--port", "0", "--callback-url", callback]
}

impl Worker {
    /// A worker that starts; its port is not known yet.
    pub fn begin(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, log, addr: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    /// A worker whose port is known; its log is read up to there.
    pub fn spawn(command: Command) -> (Self, Vec<Value>) {
        let mut worker = Self::begin(command);
        let lines = worker.read_log("Listening on a free port");
        let port = lines.last().unwrap()["port"].as_u64().unwrap();
        worker.addr.set_port(port.try_into().unwrap());
        (worker, lines)
    }

    /// A worker that nobody waits for, with these further arguments.
    pub fn ready(more: &[&str]) -> Self {
        let model = model();
        let (mut worker, _) = Self::spawn(command(&[&whole(&model, NOBODY), more].concat()));
        worker.read_log("Worker ready, starting HTTP server");
        worker
    }

    /// Log lines up to one with this message.
    pub fn read_log(&mut self, message: &str) -> Vec<Value> {
        let mut lines: Vec<Value> = Vec::new();
        while lines.last().is_none_or(|line| line["message"] != message) {
            let Some(line) = self.log.next() else {
                let mut err = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
                panic!("ended before \"{message}\": {lines:?}, {err}");
            };
            lines.push(serde_json::from_str(&line.unwrap()).unwrap());
        }
        lines
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let id = self.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for the process to end by itself, and reads nothing of its log.
    pub fn end_unread(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Waits for the process to end by itself.
    pub fn wait(mut self) -> End {
        let log = self.log.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let log = log.collect();
        let mut err = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        End { code: self.child.wait().unwrap().code(), log, err }
    }
}

/// The end of a worker that must not come up.
pub fn refused(mut command: Command) -> End {
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    let log = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    End { code: output.status.code(), log, err: String::from_utf8(output.stderr).unwrap() }
}

fn messages(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["message"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_worker_logs_the_seeds_lines_serves_and_ends_at_a_signal() {
    for signal in ["-TERM", "-INT"] {
        let model = model();
        let (mut worker, mut lines) = Worker::spawn(command(&whole(&model, NOBODY)));
        lines.extend(worker.read_log("Worker ready, starting HTTP server"));
        let expected = [
            "CPU worker starting",
            "Loading model...",
            "Model loaded",
            "Listening on a free port",
            "Test mode: skipping pool manager callback",
            "Worker ready, starting HTTP server",
        ];
        assert_eq!(messages(&lines), expected);
        assert!(lines.iter().all(|line| line["level"] == "INFO"));
        let first = &lines[0];
        assert_eq!((&first["worker_id"], &first["port"]), (&json!("w-1"), &json!(0)));
        assert_eq!((&first["model"], &lines[1]["model"]), (&json!(model), &json!(model)));
        // Weights are mapped and packed: less than half of the file or ten times it would be wrong.
        let file = std::fs::metadata(&model).unwrap().len();
        let measured = lines[2]["memory_bytes"].as_u64().unwrap();
        assert!((file / 2..file * 10).contains(&measured), "{measured} of {file}");
        assert_eq!(get(worker.addr, "/health").await.status, 200);
        let metrics = get(worker.addr, "/metrics").await;
        let metrics = String::from_utf8(metrics.body).unwrap();
        assert!(metrics.contains("\nengine_sequences_running 0\n"), "{metrics}");
        assert!(!metrics.contains("chain_") && !metrics.contains("sessions_"), "{metrics}");
        worker.signal(signal);
        let end = worker.wait();
        assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_signal_while_the_model_is_read_ends_the_worker_without_waiting_for_it() {
    let model = model();
    let mut worker = Worker::begin(command(&whole(&model, NOBODY)));
    // Reading the model takes a hundred times as long as a signal; where it comes too late all the
    // same, the worker ends as an idle one does.
    worker.read_log("Loading model...");
    worker.signal("-TERM");
    let end = worker.wait();
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    assert!(messages(&end.log).contains(&"SIGTERM: stopping"), "{:?}", end.log);
}

#[tokio::test]
async fn a_signal_lets_running_jobs_end_and_refuses_new_ones() {
    let worker = Worker::ready(&[]);
    let mut client = Client::connect(worker.addr).await;
    let body = job(json!({"max_tokens": 256, "prompt": "Once upon a time"})).to_string();
    client.send(&text("POST", "/execute", &[JSON], &body)).await;
    client.read_events(2).await;
    worker.signal("-TERM");
    // Until the signal has arrived jobs are taken; each one asked for costs a token.
    let mut number = 0;
    let code = loop {
        number += 1;
        let other = job(json!({"job_id": format!("new-{number}"), "max_tokens": 1})).to_string();
        let mut asking = Client::connect(worker.addr).await;
        asking.send(&text("POST", "/execute", &[JSON], &other)).await;
        asking.skip_head().await;
        let refused = call(worker.addr, ("POST", "/execute"), &[JSON], &body).await;
        match refused.status {
            409 => {}
            503 => break refused.json()["error"]["code"].clone(),
            other => panic!("{other}"),
        }
    };
    assert_eq!(code, "SHUTTING_DOWN");
    let all = frames(&client.answer().await.events());
    assert_eq!(all.last().unwrap()["type"], "end");
    let end = worker.wait();
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn greedy_runs_repeat_themselves_and_a_seed_repeats_its_text() {
    let worker = Worker::ready(&[]);
    let run = async |extra: Value| {
        let body = job(extra).to_string();
        let answer = call(worker.addr, ("POST", "/execute"), &[JSON], &body).await;
        said(&frames(&answer.events()))
    };
    let story = "Once upon a time";
    let greedy = |prompt: &str| json!({"prompt": prompt, "temperature": 0, "max_tokens": 24});
    let a = run(greedy(story)).await;
    let b = run(greedy("The capital of France is")).await;
    assert_ne!(a, b);
    assert_eq!(run(greedy(story)).await, a);
    let tiny = json!({"prompt": story, "temperature": 9e-7, "max_tokens": 24, "seed": 5});
    assert_eq!(run(tiny).await, a, "below 1e-6 is greedy");
    let drawn = |seed: u64| json!({"prompt": story, "max_tokens": 24, "seed": seed});
    let seeded = run(drawn(7)).await;
    assert_eq!(run(drawn(7)).await, seeded);
    assert_ne!(run(drawn(8)).await, seeded);
    let default = run(json!({"prompt": story, "max_tokens": 24})).await;
    assert_eq!(run(drawn(42)).await, default);
}

#[tokio::test]
async fn a_stop_string_over_several_tokens_is_found_and_not_told() {
    let worker = Worker::ready(&[]);
    let run = async |stop: Value| {
        let body = job(json!({"prompt": "Once upon a time", "temperature": 0, "max_tokens": 24,
            "stop": stop}));
        let answer = call(worker.addr, ("POST", "/execute"), &[JSON], &body.to_string()).await;
        frames(&answer.events())
    };
    let whole = said(&run(json!([])).await);
    // From the middle of a word to the middle of one two words on.
    let start = whole.match_indices(' ').nth(3).unwrap().0 - 2;
    let end = whole.match_indices(' ').nth(5).unwrap().0 + 2;
    let stop = &whole[start..end];
    let stopped = run(json!([stop])).await;
    assert_eq!(said(&stopped), whole[..whole.find(stop).unwrap()]);
    let last = stopped.last().unwrap();
    assert_eq!(
        (&last["stop_reason"], &last["stop_sequence_matched"]),
        (&json!("STOP_SEQUENCE"), &json!(stop))
    );
    assert_eq!(last["tokens_out"], stopped.len() - 2);
}

/// One clear line, and no word of readiness.
fn hold_refusal(end: &End, part: &str) {
    assert_ne!(end.code, Some(0));
    assert!(end.err.contains(part), "{}", end.err);
    assert_eq!(end.err.trim_end().lines().count(), 1, "{}", end.err);
    assert!(messages(&end.log).iter().all(|message| !message.contains("ready")));
}

#[test]
fn a_worker_that_cannot_start_says_why_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("bad.gguf"), b"GGUF but not really").unwrap();
    std::fs::write(path("empty"), b"").unwrap();
    let (missing, bad) = (path("missing.gguf"), path("bad.gguf"));
    let good = model();
    hold_refusal(&refused(command(&whole(&missing, NOBODY))), &missing);
    hold_refusal(&refused(command(&whole(&bad, NOBODY))), &bad);
    hold_refusal(&refused(command(&whole(&good, "pool:9200"))), "--callback-url");
    hold_refusal(&refused(command(&whole(&good, NOBODY)[..6])), "--callback-url");
    let kv = [&whole(&good, NOBODY)[..], &["--engine-kv-memory-bytes", "no"]].concat();
    hold_refusal(&refused(command(&kv)), "--engine-kv-memory-bytes");
    for (name, value) in
        [("TALLY_WORKER_TOKEN_FILE", path("missing")), ("TALLY_WORKER_TOKEN_FILE", path("empty"))]
    {
        let mut command = command(&whole(&good, NOBODY));
        command.env(name, &value);
        hold_refusal(&refused(command), &value);
    }
    for (name, value) in [
        ("TALLY_WORKER_TOKEN", ""),
        ("TALLY_WORKER_TOKEN", "zanzibarberry "),
        ("TALLY_WORKER_TOKEN_FILE", ""),
    ] {
        let mut command = command(&whole(&good, NOBODY));
        command.env(name, value);
        let end = refused(command);
        hold_refusal(&end, name);
        assert!(!end.err.contains("zanzibarberry"));
    }
    let mut misspelt = command(&whole(&good, NOBODY));
    misspelt.env("TALLY_WORKER_TOKENS", "zanzibarberry");
    let end = refused(misspelt);
    hold_refusal(&end, "TALLY_WORKER_TOKENS");
    assert!(!end.err.contains("zanzibarberry"));
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut arguments = whole(&good, NOBODY);
    arguments[5] = &port;
    hold_refusal(&refused(command(&arguments)), &port);
}

#[test]
fn a_kv_cache_that_the_system_does_not_give_is_refused_in_one_line() {
    let model = model();
    let more = ["--engine-kv-memory-bytes", "64GiB", "--engine-threads", "1"];
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_tally");
    command.args(["-c", "ulimit -v 16000000; exec \"$0\" \"$@\"", program, "worker"]);
    let end = refused({
        command.args([&whole(&model, NOBODY)[..], &more].concat());
        command
    });
    hold_refusal(&end, "kv_memory_bytes: 68719476736 bytes, more than the system gives");
    assert_eq!(end.code, Some(1));
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let folder = tiny::folder(tiny::Family::Gpt2);
    let model = folder.path().display().to_string();
    let (worker, _) = Worker::spawn(command(&whole(&model, NOBODY)));
    for number in 0..300 {
        // Two lines with some 400 bytes of name each: more than any pipe holds.
        let id = format!("{number}{}", "\u{1}".repeat(64));
        let body = job(json!({"job_id": id, "max_tokens": 1})).to_string();
        let answer = call(worker.addr, ("POST", "/execute"), &[JSON], &body).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(get(worker.addr, "/health").await.status, 200);
    worker.signal("-TERM");
    assert_eq!(worker.end_unread(), Some(0));
}

#[test]
fn jobs_for_which_there_are_no_files_to_open_are_refused_before_anything_is_read() {
    let arguments = [&whole("missing.gguf", NOBODY)[..], &["--slots", "700"]].concat();
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_tally");
    command.args(["-c", "ulimit -n 1000; exec \"$0\" \"$@\"", program, "worker"]).args(arguments);
    let end = refused(command);
    // 700 slots, 8 in the queue, 256 and 64 to spare.
    hold_refusal(&end, "1028 are needed, 1000 are allowed");
    assert!(end.err.contains("--slots"), "{}", end.err);
}

#[tokio::test]
async fn a_token_comes_from_the_environment_and_is_never_logged() {
    let model = model();
    let mut with_token = command(&whole(&model, NOBODY));
    with_token.env("TALLY_WORKER_TOKEN", "zanzibarberry").env("TALLY_LOG_FILTER", "trace");
    let (worker, lines) = Worker::spawn(with_token);
    let body = job(json!({"prompt": "strawberryfield", "max_tokens": 1})).to_string();
    let without = call(worker.addr, ("POST", "/execute"), &[JSON], &body).await;
    assert_eq!(without.status, 401);
    let headers = [JSON, ("authorization", "Bearer zanzibarberry")];
    let with = call(worker.addr, ("POST", "/execute"), &headers, &body).await;
    assert_eq!(with.status, 200);
    worker.signal("-TERM");
    let end = worker.wait();
    let told = format!("{lines:?}{:?}{}", end.log, end.err);
    assert!(!told.contains("zanzibarberry") && !told.contains("strawberryfield"), "{told}");
}

#[test]
fn a_worker_opens_nothing_but_its_model() {
    let home = tempfile::tempdir().unwrap();
    let model = model();
    let mut command = command(&whole(&model, NOBODY));
    command.env("HOME", home.path()).current_dir(home.path());
    let (worker, _) = Worker::spawn(command);
    let files = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
    assert_eq!(files(home.path()), 0, "no ledger, no lock, no key");
    drop(worker);
    assert_eq!(files(home.path()), 0);
}
