//! Clients that come and go in every rude way leave nothing behind. Needs a model file
//! (TALLY_TEST_MODEL).

use std::fs::read_dir;

use serde_json::json;

use super::process::Worker;
use crate::support::http::{Client, get, text};
use crate::support::worker::{JSON, job};

const CLIENTS: usize = 200;

/// Threads that the runtime keeps for a while for prompts and bodies that are long.
const THREADS_BESIDE: usize = 16;

/// A small generator (splitmix64); its seed replays a run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

/// What a worker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    slots_busy: String,
    queued: String,
    blocks_free: String,
    files: usize,
    threads: usize,
}

fn count(worker: &Worker, folder: &str) -> usize {
    read_dir(format!("/proc/{}/{folder}", worker.id())).unwrap().count()
}

/// What it holds when nobody is connected; waits until its connections are closed, at most a while.
async fn held(worker: &Worker, files: usize) -> Held {
    let answer = get(worker.addr, "/metrics").await;
    let text = String::from_utf8(answer.body).unwrap();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {text}")).to_owned()
    };
    for _ in 0..1000 {
        if count(worker, "fd") <= files {
            break;
        }
        tokio::task::yield_now().await;
    }
    Held {
        slots_busy: value("worker_slots_busy"),
        queued: value("worker_jobs_queued"),
        blocks_free: value("kv_block_count_free"),
        files: count(worker, "fd"),
        threads: count(worker, "task"),
    }
}

/// One client, up to the moment when it leaves.
async fn rude(worker: &Worker, number: usize, random: &mut Random) -> Client {
    let mut client = Client::connect(worker.addr).await;
    // Some prompts are rendered, and some bodies parsed, on threads of their own.
    let (words, padding) = match random.below(8) {
        0 => (5 * 1024 / 17 + 1, 0),
        1 => (1, 70 * 1024),
        _ => (1 + random.below(20) as usize, 0),
    };
    let (prompt, padding) = ("Once upon a time ".repeat(words), " ".repeat(padding));
    let id = format!("job-{number}");
    let fields = json!({"job_id": id, "prompt": prompt, "max_tokens": 1 + random.below(200),
        "padding": padding});
    let request = text("POST", "/execute", &[JSON], &job(fields).to_string());
    match random.below(6) {
        0 => {}
        1 => client.send(&request[..1 + random.below(request.len() as u64 - 1) as usize]).await,
        2 => client.send(&request).await,
        way => {
            client.send(&request).await;
            let is_streamed = client.read_status().await == 200;
            for count in 1..random.below(8) as usize {
                if is_streamed && !has_ended(&client) {
                    client.read_events(count).await;
                }
            }
            if way == 5 {
                let body = json!({"job_id": id}).to_string();
                let mut other = Client::connect(worker.addr).await;
                other.send(&text("POST", "/cancel", &[JSON], &body)).await;
                other.answer().await;
            }
        }
    }
    client
}

fn has_ended(client: &Client) -> bool {
    client.events().iter().any(|event| event.contains("\"end\"") || event.contains("\"error\""))
}

#[tokio::test]
async fn two_hundred_rude_clients_leave_no_slot_block_thread_or_file_behind() {
    let seed = std::env::var("TALLY_LEAK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(20_261_122);
    eprintln!("TALLY_LEAK_SEED={seed}");
    let mut random = Random(seed);
    let worker = Worker::ready(&["--slots", "2", "--queue", "3"]);
    let files = count(&worker, "fd");
    let threads = count(&worker, "task");
    let before = held(&worker, files).await;
    assert_eq!(before.files, files);
    let mut open: Vec<Client> = Vec::new();
    for number in 0..CLIENTS {
        open.push(rude(&worker, number, &mut random).await);
        if open.len() > random.below(6) as usize {
            open.swap_remove(random.below(open.len() as u64) as usize);
        }
    }
    drop(open);
    // A test that hangs here has failed: something was not given back.
    let after = loop {
        let after = held(&worker, files).await;
        let is_back = after.blocks_free == before.blocks_free && after.slots_busy == "0";
        if is_back && after.files <= files && after.threads <= threads + THREADS_BESIDE {
            break after;
        }
    };
    eprintln!("before {before:?}, after {after:?}");
    assert_eq!((after.queued.as_str(), after.files), ("0", files));
    let all = job(json!({"prompt": "Once upon a time", "max_tokens": 4})).to_string();
    let answer = crate::support::http::call(worker.addr, ("POST", "/execute"), &[JSON], &all).await;
    assert_eq!(answer.status, 200);
}
