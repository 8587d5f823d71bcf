//! What an operator tells a running node by its control socket.

use serde_json::Value;
use tally::chain::registry::Registry;
use tally::units::{Address, Hash32};

use super::process::{Node, Site, tokens_in};
use crate::money::earned::{credit, held, left};
use crate::support::anvil::{HOST, TrustedModel};
use crate::support::http::{get, post};

/// The code of a refused prompt.
async fn refusal(site: &Site, node: &Node) -> (u16, String) {
    let answer = post(node.address, "/v1/inference", &site.prompt(5, false)).await;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    (answer.status, body)
}

async fn assert_paused(site: &Site, node: &Node) {
    let (status, body) = refusal(site, node).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("\"paused\""), "{body}");
}

#[tokio::test]
async fn a_paused_node_refuses_prompts_finishes_answers_and_claims_on_also_after_a_restart() {
    let site = Site::new().await;
    let node = site.start(30);
    let mut seen = site.ask(&node, 60).await;
    let mut client = site.stream(&node, 200).await;
    client.read_events(5).await;
    let (ok, said) = site.tally(&["pause"]).await;
    assert!(ok && said.contains("paused: no new paid work"), "{said}");
    assert_paused(&site, &node).await;
    let health = get(node.address, "/health").await;
    let health = String::from_utf8(health.body).unwrap();
    assert!(health.contains("the operator has paused this node"), "{health}");
    let (ok, said) = site.tally(&["status"]).await;
    assert!(ok && said.contains("running, no new work: the operator has paused"), "{said}");
    let events = client.answer().await.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    seen += tokens_in(&events);
    assert!(seen >= 100, "{seen}");
    assert!(!site.all_claimed(seen).await.is_empty(), "claims go on");

    node.terminate();
    node.wait();
    let (ok, said) = site.tally(&["status"]).await;
    assert!(ok && said.contains("not running, paused"), "{said}");
    let node = site.start(30);
    assert_paused(&site, &node).await;
    let (ok, said) = site.tally(&["resume", "--json"]).await;
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert!(ok && answer["paused"] == false, "{said}");
    site.ask(&node, 5).await;
}

#[tokio::test]
async fn a_running_node_withdraws_and_calls_the_registry_between_its_claims() {
    let site = Site::new().await;
    let model = TrustedModel { repo: "o/r", file: "m.gguf", sha256: Hash32::new([1; 32]) };
    site.devnet.register_host("http://host.example", model).await;
    credit(&site.devnet, Address::ZERO, 777).await;
    let node = site.start(30);
    let (ok, said) = site.tally(&["withdraw", "--json"]).await;
    assert!(ok && said.contains("\"tx\":\"0x"), "{said}");
    assert_eq!(left(&site.devnet, Address::ZERO).await, 0);
    let (ok, said) = site.tally(&["withdraw"]).await;
    assert!(!ok && said.contains("nothing is earned") && said.contains("refused"), "{said}");
    let mut seen = 0;
    while seen < 300 {
        // What moves between two readings of an audit is no difference.
        let (more, (ok, said)) = tokio::join!(site.ask(&node, 60), site.tally(&["audit"]));
        assert!(ok, "{said}");
        seen += more;
    }
    assert!(!site.all_claimed(seen).await.is_empty());
    let (ok, said) = site.tally(&["unregister"]).await;
    assert!(ok && said.contains("unregisterNode: 0x"), "{said}");
    let chain = site.devnet.connect().await;
    assert!(!chain.host_standing().await.unwrap().active);
    assert!(held(&site.devnet, HOST.address(), site.devnet.contracts.token).await > 0);
    let (ok, said) = site.tally(&["audit"]).await;
    assert!(ok && said.contains(" 0 foreign, 0 differ"), "{said}");
}
