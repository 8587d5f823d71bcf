//! Many clients at once on a real model, over the OpenAI API.

use serde_json::{Value, json};

use super::process::Node;
use crate::support::http::post;

const PATH: &str = "/v1/chat/completions";
const CLIENTS: u64 = 8;
const TOKENS: usize = 24;

fn chat(client: u64) -> Value {
    json!({
        "model": "smol",
        "messages": [{"role": "user", "content": format!("Tell me story number {client}.")}],
        "max_tokens": TOKENS,
        "temperature": 0.9,
        "seed": client,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// The text of a stream's events, whose usage is checked.
fn said(events: &[String]) -> String {
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let events = events.iter().map(|event| serde_json::from_str(event).unwrap());
    let events: Vec<Value> = events.collect();
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], TOKENS);
    let texts = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    texts.collect()
}

#[tokio::test]
async fn each_of_eight_clients_at_once_is_told_what_it_is_told_alone() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::free(home.path());
    let mut alone = Vec::new();
    for client in 0..CLIENTS {
        alone.push(said(&post(node.address, PATH, &chat(client)).await.events()));
    }
    let asked = (0..CLIENTS)
        .map(|client| async move { said(&post(node.address, PATH, &chat(client)).await.events()) });
    assert_eq!(futures_util::future::join_all(asked).await, alone);
    let different: std::collections::BTreeSet<_> = alone.iter().collect();
    assert_eq!(different.len(), alone.len(), "{alone:?}");
}
