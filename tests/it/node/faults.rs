//! A full disk, a ledger that may not be written, a damaged page, a wallet without gas, a chain
//! that is gone: what the running program does, and what it has lost when all is well again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tally::chain::Chain;

use super::process::{Node, Site, set_mode, tokens_in};
use crate::support::anvil::HOST;
use crate::support::http::{Answer, Client, get, post, text};
use crate::support::node::eventually;
use crate::support::proxy::Fault;

/// Tokens that may be written and not recorded (docs/spec/marketplace-api.md).
const CREDIT: u64 = 8;

/// Wei that pay everything here.
const PLENTY: u128 = 1_000_000_000_000_000_000;

/// Gas that pays a claim (some 220 k and the room that is put on an estimate), and not a
/// completion besides.
const GAS_OF_A_CLAIM: u128 = 400_000;

/// No file may grow past this many blocks of 512 bytes; the signal that says so is ignored, so
/// that the write fails as on a full disk.
fn with_room(blocks: u32) -> String {
    format!(r#"trap '' XFSZ; ulimit -f {blocks}; exec "$0" "$@""#)
}

/// Asks until a further claim is due, and waits until it is on the chain: tokens seen.
async fn claimed(site: &Site, node: &Node, recorded: u64) -> u64 {
    let claims = site.claims().await.len();
    let mut seen = 0;
    while seen < 110 {
        seen += site.ask(node, 60).await;
    }
    all_recorded(site, recorded + seen).await;
    assert!(site.all_claimed(recorded + seen).await.len() > claims);
    seen
}

/// Waits for the ledger, which has a whole answer a moment after its client.
async fn all_recorded(site: &Site, recorded: u64) {
    eventually(|| site.recorded() >= recorded).await;
    assert_eq!(site.recorded(), recorded);
}

/// That nothing was claimed twice and all that can be is: ledger and chain agree.
async fn assert_in_order(site: &Site, recorded: u64) -> Vec<u64> {
    all_recorded(site, recorded).await;
    let claims = site.all_claimed(recorded).await;
    let (ok, said) = site.tally(&["audit"]).await;
    assert!(ok && said.contains(" 0 differ"), "{said}");
    claims
}

/// Everything that a stream says until its connection ends or the answer does.
async fn to_its_end(client: &mut Client) -> Vec<String> {
    while client.events().last().is_none_or(|event| event != "[DONE]") && client.read().await {}
    client.events()
}

fn is_failed(events: &[String]) -> bool {
    events.iter().any(|event| event.contains("\"finish_reason\":\"error\""))
}

fn shown(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Requests that the node has begun to read, and that are whole only when the test says so: the
/// port is closed to new ones as soon as a node stops.
struct Begun {
    prompt: Client,
    health: Client,
    rest: String,
}

impl Begun {
    async fn new(site: &Site, node: &Node) -> Self {
        let whole = site.prompt(5, false).to_string();
        let request = text("POST", "/v1/inference", &[("expect", "100-continue")], &whole);
        let (head, rest) = request.split_at(request.len() - whole.len());
        let mut prompt = Client::connect(node.address).await;
        prompt.send(head).await;
        // "100 Continue": somebody waits for the body.
        prompt.skip_head().await;
        let mut health = Client::connect(node.address).await;
        health.send("GET /health HTTP/1.1\r\nhost: node\r\n").await;
        Self { prompt, health, rest: rest.to_owned() }
    }

    /// The answers to the prompt and to the question how the node is.
    async fn end(mut self) -> (Answer, Answer) {
        self.prompt.send(&self.rest).await;
        self.health.send("\r\n").await;
        (self.prompt.answer().await, self.health.answer().await)
    }
}

#[tokio::test]
async fn a_disk_that_fills_in_mid_answer_ends_the_node_and_costs_no_more_than_the_credit() {
    let site = Site::new().await;
    let node = site.start_in(&with_room(1000), 30);
    let mut seen = claimed(&site, &node, 0).await;
    let before = site.claims().await;
    let begun = Begun::new(&site, &node).await;
    // Two answers share the job's credit.
    let mut clients = [site.stream(&node, 1500).await, site.stream(&node, 1500).await];
    for client in &mut clients {
        let events = to_its_end(client).await;
        assert!(is_failed(&events), "{:?}", events.last());
        seen += tokens_in(&events);
    }
    let (prompt, health) = begun.end().await;
    assert_eq!(prompt.status, 503, "{}", shown(&prompt));
    assert_eq!(prompt.json()["error_type"], "service_unavailable");
    assert_eq!(health.status, 503, "{}", shown(&health));
    assert_eq!(health.json()["status"], "unhealthy");
    assert!(shown(&health).contains("the ledger cannot be written"), "{}", shown(&health));
    let (status, log) = node.wait();
    let log = log.join("\n");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("tally: the node stopped: ") && log.contains("the disk"), "{log}");
    let recorded = site.recorded();
    assert!(recorded <= seen && seen <= recorded + CREDIT, "recorded {recorded}, seen {seen}");

    let said = site.refused_in(&with_room(8)).await;
    assert!(said.contains("ledger.sqlite3") && said.contains("the disk"), "{said}");
    assert_eq!(site.recorded(), recorded, "the start without room adds and loses nothing");

    let node = site.start(30);
    let recorded = recorded + site.ask(&node, 60).await;
    let claims = assert_in_order(&site, recorded).await;
    assert!(claims.starts_with(&before), "{before:?} then {claims:?}");
}

/// The files beside the ledger, itself among them, but for the index of its log, which holds
/// nothing that the log does not.
fn contents(site: &Site) -> BTreeMap<PathBuf, Vec<u8>> {
    let ledger = site.ledger();
    let items = fs::read_dir(ledger.parent().unwrap()).unwrap();
    let paths = items.map(|item| item.unwrap().path());
    let kept = paths.filter(|path| !path.to_string_lossy().ends_with("-shm"));
    kept.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[tokio::test]
async fn a_ledger_that_may_not_be_written_starts_no_node_and_stays_as_it_is() {
    let site = Site::of_no_root().await;
    let node = site.start(30);
    let seen = claimed(&site, &node, 0).await;
    // Its newest entries are in the log beside the file.
    node.kill();
    let (file, folder) = (site.ledger(), site.ledger().parent().unwrap().to_owned());
    let before = contents(&site);
    for (of_file, of_folder) in [(0o400, 0o700), (0o400, 0o500), (0o000, 0o700)] {
        set_mode(&file, of_file);
        set_mode(&folder, of_folder);
        let said = site.refused().await;
        assert!(said.contains("ledger.sqlite3"), "{said}");
        let is_clear = ["ermission denied", "may not be written"].iter().any(|w| said.contains(w));
        assert!(is_clear, "{said}");
        set_mode(&folder, 0o700);
        set_mode(&file, 0o600);
        assert_eq!(contents(&site), before);
    }

    let node = site.start(30);
    let more = claimed(&site, &node, seen).await;
    assert_in_order(&site, seen + more).await;
}

/// Overwrites one page.
fn damage(ledger: &Path, page: u64) {
    let mut file = fs::OpenOptions::new().write(true).open(ledger).unwrap();
    file.seek(SeekFrom::Start(page * 4096)).unwrap();
    file.write_all(&[0xee; 4096]).unwrap();
}

#[tokio::test]
async fn a_damaged_ledger_starts_no_node_and_a_backup_claims_on() {
    let site = Site::new().await;
    let backup = site.home().join("backup.db");
    let backup = backup.to_str().unwrap();
    let node = site.start(30);
    let seen = claimed(&site, &node, 0).await;
    let before = site.claims().await;
    let (ok, said) = site.tally(&["ledger", "backup", "--to", backup]).await;
    assert!(ok, "{said}");
    // Recorded after the backup, and not claimed: this is lost to the host.
    let left = seen - before.iter().sum::<u64>();
    assert!(left + 20 < 100, "{left}");
    site.ask(&node, 20).await;
    node.terminate();
    node.wait();
    let ledger = site.ledger();
    let middle = fs::metadata(&ledger).unwrap().len() / 4096 / 2;
    for page in [middle, 0] {
        damage(&ledger, page);
        let damaged = contents(&site);
        let said = site.refused().await;
        for word in ["ledger.sqlite3", "the file is damaged", "`tally ledger restore`"] {
            assert!(said.contains(word), "no {word} in {said}");
        }
        assert_eq!(contents(&site), damaged);
    }
    let damaged = contents(&site);
    let (ok, said) = site.tally(&["ledger", "check"]).await;
    assert!(!ok, "{said}");
    let (ok, said) = site.tally(&["ledger", "restore", "--from", backup]).await;
    assert!(!ok && said.contains("--replace"), "{said}");
    assert_eq!(contents(&site), damaged);

    let (ok, said) = site.tally(&["ledger", "restore", "--from", backup, "--replace"]).await;
    assert!(ok && said.contains(".replaced"), "{said}");
    assert_eq!(site.recorded(), seen);
    let node = site.start(30);
    let more = claimed(&site, &node, seen).await;
    let claims = assert_in_order(&site, seen + more).await;
    assert!(claims.starts_with(&before), "{before:?} then {claims:?}");
}

async fn set_balance(site: &Site, wei: u128) {
    site.devnet.rpc("anvil_setBalance", json!([HOST.address, format!("{wei:#x}")])).await;
}

async fn assert_out_of_gas(site: &Site, node: &Node) {
    const WHY: &str = "the wallet cannot pay the gas of a claim and a completion";
    let answer = post(node.address, "/v1/inference", &site.prompt(1, false)).await;
    assert_eq!(answer.status, 503, "{}", shown(&answer));
    assert_eq!(answer.json()["error_type"], "paused");
    reports(node, "degraded", &[WHY]).await;
    let (ok, said) = site.tally(&["status"]).await;
    assert!(ok && said.contains(&format!("running, no new work: {WHY}")), "{said}");
    // The operator's word does not make up for gas.
    let (ok, said) = site.tally(&["resume", "--json"]).await;
    let told: Value = serde_json::from_str(&said).unwrap();
    assert!(ok && told["paused"] == true, "{said}");
}

#[tokio::test]
async fn a_wallet_without_gas_takes_no_work_and_claims_what_it_can_pay_until_gas_comes() {
    let site = Site::new().await;
    let node = site.start(30);
    let mut seen = site.ask(&node, 5).await;
    let mut client = site.stream(&node, 400).await;
    client.read_events(1).await;
    set_balance(&site, 0).await;
    let events = to_its_end(&mut client).await;
    assert!(!is_failed(&events));
    seen += tokens_in(&events);
    node.wait_for_log("endpoint refuses the transaction");
    node.wait_for_log("no new paid work until it can");
    assert_out_of_gas(&site, &node).await;
    assert_eq!(site.claims().await, Vec::<u64>::new(), "nothing can be paid");
    // A claim that is signed waits for a node: one that starts now takes no work, and sends it.
    node.kill();
    let node = site.start(30);
    node.wait_for_log("no new paid work until it can");
    assert_out_of_gas(&site, &node).await;

    let fees = site.devnet.connect().await.fees().await.unwrap();
    set_balance(&site, fees.fee_max.get() * GAS_OF_A_CLAIM).await;
    while site.claims().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_out_of_gas(&site, &node).await;

    set_balance(&site, PLENTY).await;
    node.wait_for_log("new paid work is taken");
    seen += site.ask(&node, 5).await;
    reports(&node, "healthy", &[]).await;
    assert_in_order(&site, seen).await;
}

/// Waits until `/health` says just this, which is no reason to restart a node.
async fn reports(node: &Node, status: &str, issues: &[&str]) {
    loop {
        let health = get(node.address, "/health").await;
        assert_eq!(health.status, 200, "{}", shown(&health));
        if health.json() == json!({"status": status, "issues": issues}) {
            return;
        }
    }
}

#[tokio::test]
async fn a_chain_that_is_gone_in_mid_answer_costs_the_client_nothing_and_the_host_time() {
    let site = Site::new().await;
    let node = site.start(30);
    let mut seen = claimed(&site, &node, 0).await;
    let mut client = site.stream(&node, 800).await;
    client.read_events(5).await;
    site.proxy.set("", Fault::Lost);
    reports(&node, "degraded", &["the chain does not answer"]).await;
    let before = site.claims().await;
    let events = to_its_end(&mut client).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    assert!(!is_failed(&events), "{events:?}");
    seen += tokens_in(&events);
    // What is known of the session is young enough for one more.
    seen += site.ask(&node, 5).await;
    assert_eq!(site.claims().await, before, "nobody hears of a claim");

    // Allowance for what was streamed since the last claim.
    site.devnet.increase_time(1000).await;
    site.proxy.heal();
    let claims = assert_in_order(&site, seen).await;
    assert!(claims.starts_with(&before), "{before:?} then {claims:?}");
    reports(&node, "healthy", &[]).await;
}
