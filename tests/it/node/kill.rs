//! `kill -9` and `kill -15` in the middle of an answer: what was written, what was recorded, what
//! is claimed.

use super::process::{SECRET_WORD, Site, tokens_in};
use crate::support::anvil::HOST;

/// Tokens that may be written and not recorded (docs/spec/marketplace-api.md).
const CREDIT: u64 = 8;

fn assert_discreet(log: &[String], site: &Site) {
    let whole = log.join("\n");
    let named = format!("\"job\":{}", site.job);
    let prompts = log.iter().filter(|line| line.contains("prompt received"));
    assert!(prompts.clone().count() > 0);
    assert!(prompts.clone().all(|line| line.contains(&named)), "the log names the job");
    assert!(!whole.contains(SECRET_WORD), "the log holds a prompt");
    assert!(!whole.contains(&HOST.key[2..]), "the log holds the key");
}

#[tokio::test]
async fn a_node_killed_in_mid_answer_claims_what_it_recorded_and_nothing_twice() {
    let site = Site::new().await;
    let node = site.start(30);
    let mut seen = 0;
    while seen < 110 {
        seen += site.ask(&node, 60).await;
    }
    let before = site.all_claimed(seen).await;
    assert!(!before.is_empty(), "claims were made before the end");
    let mut client = site.stream(&node, 1500).await;
    client.read_events(20).await;
    let log = node.kill();
    // What was written before the end still arrives.
    while client.read().await {}
    let events = client.events();
    assert!(!events.iter().any(|event| event == "[DONE]"), "killed in mid-answer");
    seen += tokens_in(&events);
    let recorded = site.recorded();
    assert!(recorded <= seen, "recorded {recorded}, written {seen}");
    assert!(seen <= recorded + CREDIT, "recorded {recorded}, written {seen}");
    assert_discreet(&log, &site);
    let named = format!("\"job\":\"{}\"", site.job);
    assert!(log.iter().any(|line| line.contains("claim included") && line.contains(&named)));

    let node = site.start(30);
    assert_eq!(site.recorded(), recorded, "the start adds nothing");
    let mut more = 0;
    while more < 110 {
        more += site.ask(&node, 60).await;
    }
    let recorded = recorded + more;
    let claims = site.all_claimed(recorded).await;
    assert!(claims.starts_with(&before), "{before:?} then {claims:?}");
    assert!(claims.iter().all(|tokens| *tokens >= 100), "{claims:?}");
    // Blocks and looks enough for a second claim of the same tokens, if there were one.
    site.ask(&node, 1).await;
    site.devnet.mine(5).await;
    assert!(site.claims().await.iter().sum::<u64>() <= site.recorded());
}

#[tokio::test]
async fn a_node_that_is_stopped_lets_the_answer_end_and_records_all_of_it() {
    let site = Site::new().await;
    let node = site.start(600);
    let mut client = site.stream(&node, 60).await;
    client.read_events(5).await;
    node.terminate();
    let answer = client.answer().await;
    let events = answer.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    assert_eq!(site.recorded(), tokens_in(&events));
    assert_discreet(&log, &site);
}

#[tokio::test]
async fn a_node_without_grace_cuts_the_answer_and_records_what_was_written() {
    let site = Site::new().await;
    let node = site.start(0);
    let mut client = site.stream(&node, 1500).await;
    client.read_events(20).await;
    node.terminate();
    let answer = client.answer().await;
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    let events = answer.events();
    let ends = events.iter().filter(|event| event.contains("\"finish_reason\":\"cancelled\""));
    assert_eq!(ends.count(), 1, "cut");
    assert_eq!(site.recorded(), tokens_in(&events));
    assert_discreet(&log, &site);
}

#[tokio::test]
async fn a_node_killed_before_a_whole_body_was_written_recorded_nothing_of_it() {
    let site = Site::new().await;
    let node = site.start(30);
    let mut client = site.whole(&node, 1500).await;
    node.wait_for_log("prompt received");
    node.kill();
    assert!(!client.read().await, "nothing was written");
    assert_eq!(site.recorded(), 0);
}
