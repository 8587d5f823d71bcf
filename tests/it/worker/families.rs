//! `tally worker` on safetensors folders of several families: the same wire, one frame for each
//! token, and the same words in every run, alone or beside others.

use serde_json::{Value, json};

use super::process::{NOBODY, Worker, command, whole};
use crate::support::http::{call, get};
use crate::support::tiny::{Family, folder};
use crate::support::worker::{JSON, frames, job, said};

/// A worker on a small model, and its folder.
fn worker(family: Family, more: &[&str]) -> (Worker, tempfile::TempDir) {
    let folder = folder(family);
    let path = folder.path().display().to_string();
    let (mut worker, _) = Worker::spawn(command(&[&whole(&path, NOBODY), more].concat()));
    worker.read_log("Worker ready, starting HTTP server");
    (worker, folder)
}

async fn run(worker: &Worker, extra: Value) -> Vec<Value> {
    let answer = call(worker.addr, ("POST", "/execute"), &[JSON], &job(extra).to_string()).await;
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    frames(&answer.events())
}

#[tokio::test]
async fn every_family_in_safetensors_streams_its_jobs_alone_as_in_a_batch() {
    let mut texts = Vec::new();
    for family in Family::ALL {
        let (worker, folder) = worker(family, &["--slots", "4"]);
        let name = folder.path().file_name().unwrap().to_str().unwrap();
        let ask = |id: &str| json!({"job_id": id, "temperature": 0, "max_tokens": 24});
        let alone = run(&worker, ask("alone")).await;
        assert_eq!(alone[0]["model"], name, "{family:?}");
        let end = alone.last().unwrap();
        assert_eq!(end["type"], "end", "{family:?}: {end}");
        assert_eq!(end["tokens_out"], alone.len() - 2, "{family:?}");
        assert!(!said(&alone).is_empty(), "{family:?}");
        let drawn = |id: &str| json!({"job_id": id, "max_tokens": 60, "prompt": "one two"});
        let (a, b, c) =
            tokio::join!(run(&worker, ask("a")), run(&worker, drawn("b")), run(&worker, ask("c")),);
        assert_eq!([said(&a), said(&c)], [said(&alone), said(&alone)], "{family:?}");
        assert_eq!(said(&run(&worker, drawn("d")).await), said(&b), "{family:?}");
        assert_eq!(get(worker.addr, "/health").await.status, 200);
        texts.push(said(&alone));
    }
    texts.dedup();
    assert_eq!(texts.len(), Family::ALL.len(), "no family speaks for another: {texts:?}");
}

#[tokio::test]
async fn a_prompt_up_to_gpt_2s_positions_is_served_and_one_beyond_is_refused() {
    let (worker, _folder) = worker(Family::Gpt2, &[]);
    // One byte, one token: no merge of the vocabulary joins these.
    let prompt = |tokens: usize| json!({"prompt": "\u{1}".repeat(tokens), "max_tokens": 50});
    let last = run(&worker, prompt(127)).await;
    let end = last.last().unwrap();
    assert_eq!((&end["stop_reason"], &end["tokens_out"]), (&json!("MAX_TOKENS"), &json!(1)));
    let body = job(prompt(128)).to_string();
    let refused = call(worker.addr, ("POST", "/execute"), &[JSON], &body).await;
    assert_eq!(refused.status, 400);
    let words = refused.json().to_string();
    assert!(words.contains("does not fit a context of 128"), "{words}");
}
