//! A running `tally serve` in a folder of its own, and what its client saw.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};
use tally::ledger::sqlite::SqliteReader;
use tally::units::JobId;
use tempfile::TempDir;

use crate::settlement::auditor;
use crate::support::anvil::{Devnet, HOST, OpenSession};
use crate::support::http::{Client, post, text};
use crate::support::proxy::Proxy;

/// Somebody who owns nothing here.
const NOBODY: u32 = 65_534;

/// A shell line that only becomes the program.
const AS_IT_IS: &str = r#"exec "$0" "$@""#;

/// A word that no log may hold.
pub const SECRET_WORD: &str = "zanzibarberry";

fn model() -> String {
    std::env::var("TALLY_TEST_MODEL")
        .expect("this test needs a model: set TALLY_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// A chain with one session, and a folder that outlives the node.
pub struct Site {
    pub devnet: Devnet,
    pub job: JobId,
    /// Between the node and the chain; does nothing until it is told to.
    pub proxy: Proxy,
    home: TempDir,
    program: PathBuf,
    model: PathBuf,
    /// Who the node is, where it is not who the test is.
    uid: Option<u32>,
}

impl Site {
    /// As [`Site::new`], for a node that may not write wherever it likes. Root may, so the node is
    /// somebody else then, with a program and a model of its own.
    pub async fn of_no_root() -> Self {
        let mut site = Self::new().await;
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            return site;
        }
        site.uid = Some(NOBODY);
        for (place, name) in [(&mut site.program, "tally"), (&mut site.model, "model.gguf")] {
            let copy = site.home.path().join(name);
            std::fs::copy(&*place, &copy).unwrap();
            set_mode(&copy, 0o755);
            *place = copy;
        }
        chown(site.home.path(), site.uid, site.uid).unwrap();
        site
    }

    pub async fn new() -> Self {
        let devnet = Devnet::start().await;
        // A claim is worth more than its fee, and silence ends nothing here.
        let job = devnet
            .open_session(OpenSession {
                host: HOST,
                deposit: 100_000_000_000_000_000_000,
                price: 100_000_000_000_000,
                duration_max: 31_536_000,
                proof_interval: 1_000_000,
                ..OpenSession::default()
            })
            .await;
        // Allowance for every claim of the test (docs/spec/contract.md section 2, rule 5).
        devnet.increase_time(1000).await;
        let proxy = Proxy::start(devnet.port);
        Self {
            devnet,
            job,
            proxy,
            home: tempfile::tempdir().unwrap(),
            program: env!("CARGO_BIN_EXE_tally").into(),
            model: model().into(),
            uid: None,
        }
    }

    /// Where a test may put files of its own.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The ledger's file.
    pub fn ledger(&self) -> PathBuf {
        ledger_in(&self.data_dir())
    }

    /// Starts the node; returns when it listens.
    pub fn start(&self, grace_seconds: u64) -> Node {
        self.start_in(AS_IT_IS, grace_seconds)
    }

    /// As [`Site::start`], by a shell line that ends in `exec "$0" "$@"`.
    pub fn start_in(&self, shell: &str, grace_seconds: u64) -> Node {
        let child = self
            .command_in(shell, &["serve"])
            .env("TALLY_SHUTDOWN_GRACE_SECONDS", grace_seconds.to_string())
            .env("TALLY_LAUNCHER_COMPAT", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Node::listening(child)
    }

    /// Starts a node that must not come up, by a shell line as in [`Site::start_in`]; all that it
    /// said.
    pub async fn refused_in(&self, shell: &str) -> String {
        let mut command = self.command_in(shell, &["serve"]);
        let ended = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ended.unwrap().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains("\"listening\""), "{said}");
        said
    }

    /// Starts a node that must not come up; all that it said.
    pub async fn refused(&self) -> String {
        self.refused_in(AS_IT_IS).await
    }

    /// A command of the operator beside the node: whether it succeeded, and all that it said.
    pub async fn tally(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.command_in(AS_IT_IS, arguments);
        let ended = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ended.unwrap().unwrap();
        let (out, err) = (output.stdout, output.stderr);
        let said = [out, err].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.success(), said)
    }

    fn command_in(&self, shell: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
            .args(["-c", shell])
            .arg(&self.program)
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("TALLY_DATA_DIR", self.data_dir())
            .env("TALLY_LISTEN", "127.0.0.1:0")
            .env("TALLY_MODEL_PATH", &self.model)
            .env("TALLY_MODEL_NAME", "smol")
            .env("TALLY_CHAIN_RPC_URLS", &self.proxy.url)
            .env("TALLY_CHAIN_ID", "31337")
            .env("TALLY_CHAIN_MARKETPLACE", self.devnet.contracts.marketplace.to_string())
            .env("TALLY_HOST_PRIVATE_KEY", HOST.key)
            .env("TALLY_SETTLEMENT_POLL_MILLISECONDS", "20")
            .env("TALLY_SETTLEMENT_CONFIRMATIONS", "1")
            .env("TALLY_LOG_FORMAT", "json")
            .env("TALLY_LOG_FILTER", "info,tally=trace,tally_engine=trace")
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// Tokens in the ledger's file, by the auditor's arithmetic.
    pub fn recorded(&self) -> u64 {
        let reader = SqliteReader::open(&self.ledger()).unwrap();
        let sums = auditor::recorded(&mut |each| reader.replay(each).unwrap());
        sums.get(&self.job).copied().unwrap_or(0)
    }

    pub async fn claims(&self) -> Vec<u64> {
        auditor::claims_on_chain(&self.devnet, self.job).await
    }

    /// Waits until less than a claim's minimum is left of `recorded`; a test that hangs here has
    /// failed.
    pub async fn all_claimed(&self, recorded: u64) -> Vec<u64> {
        loop {
            let claims = self.claims().await;
            let claimed: u64 = claims.iter().sum();
            assert!(claimed <= recorded, "{claims:?} of {recorded}");
            if recorded - claimed < 100 {
                return claims;
            }
            self.devnet.mine(1).await;
        }
    }

    /// A prompt whose answer comes at once; what the client saw of it.
    pub async fn ask(&self, node: &Node, max_tokens: u64) -> u64 {
        let answer = post(node.address, "/v1/inference", &self.prompt(max_tokens, false)).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()["tokens_used"].as_u64().unwrap()
    }

    /// Asks for a stream.
    pub async fn stream(&self, node: &Node, max_tokens: u64) -> Client {
        self.begin(node, &self.prompt(max_tokens, true)).await
    }

    /// Asks for an answer in one body.
    pub async fn whole(&self, node: &Node, max_tokens: u64) -> Client {
        self.begin(node, &self.prompt(max_tokens, false)).await
    }

    async fn begin(&self, node: &Node, prompt: &Value) -> Client {
        let mut client = Client::connect(node.address).await;
        let body = prompt.to_string();
        client.send(&text("POST", "/v1/inference", &[], &body)).await;
        client
    }

    pub fn prompt(&self, max_tokens: u64, stream: bool) -> Value {
        json!({
            "model": "smol",
            "prompt": format!("Write a long story about a {SECRET_WORD}. Once upon a time"),
            "max_tokens": max_tokens,
            "temperature": 0.7,
            "seed": 7,
            "stream": stream,
            "job_id": self.job.get(),
        })
    }
}

pub fn set_mode(of: &Path, mode: u32) {
    std::fs::set_permissions(of, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn ledger_in(folder: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "sqlite3") {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "one ledger: {found:?}");
    found.remove(0)
}

/// Tokens in the events a client read.
pub fn tokens_in(events: &[String]) -> u64 {
    let parsed = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let frames = parsed.filter(|event| event["finish_reason"].is_null());
    frames.map(|event| event["tokens"].as_u64().unwrap()).sum()
}

/// What a node logged so far.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grows: Condvar,
}

/// A running node. Dropping it kills the process.
pub struct Node {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Log>,
    ended: Receiver<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// A node that serves without pay, its data in `home`.
    pub fn free(home: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
        command
            .args(["serve", "--free", "--listen", "127.0.0.1:0", "--model-name", "smol"])
            .env_clear()
            .env("HOME", home)
            .env("TALLY_DATA_DIR", home.join("data"))
            .env("TALLY_MODEL_PATH", model())
            .env("TALLY_LOG_FORMAT", "json")
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::listening(command.spawn().unwrap())
    }

    fn listening(mut child: Child) -> Self {
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::<Log>::default();
        let shared = log.clone();
        let (found, address) = channel();
        let (end, ended) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "listening" {
                    let address: SocketAddr = event["address"].as_str().unwrap().parse().unwrap();
                    let _ = found.send(address);
                }
                shared.lines.lock().unwrap().push(line);
                shared.grows.notify_all();
            }
            drop((found, end));
        });
        let address = address.recv();
        let address =
            address.unwrap_or_else(|_| panic!("{}", log.lines.lock().unwrap().join("\n")));
        Self { child, address, log, ended }
    }

    /// The first line on stdout; waits for it.
    pub fn first_line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line
    }

    /// Waits until a line with this in it was logged.
    pub fn wait_for_log(&self, part: &str) {
        let lines = self.log.lines.lock().unwrap();
        let is_missing = |lines: &mut Vec<String>| !lines.iter().any(|line| line.contains(part));
        drop(self.log.grows.wait_while(lines, is_missing).unwrap());
    }

    /// `kill -9`.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log()
    }

    /// `kill -15`.
    pub fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Waits for the process to end by itself.
    pub fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        (status, self.log())
    }

    /// Everything it logged, once the process is gone.
    fn log(&self) -> Vec<String> {
        // The channel closes when the last line was read.
        let _ = self.ended.recv();
        self.log.lines.lock().unwrap().clone()
    }
}
