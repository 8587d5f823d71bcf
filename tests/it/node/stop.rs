//! `kill -15` while the chain says nothing: the node ends by its own rules, not by the network's.

use super::process::Site;
use crate::support::node::eventually;
use crate::support::proxy::Fault;

/// Lines of a log between the stop signal and the end.
fn after_the_signal(log: &[String]) -> String {
    let at = log.iter().position(|line| line.contains("SIGTERM: stopping"));
    log[at.unwrap_or_else(|| panic!("no stop in:\n{}", log.join("\n")))..].join("\n")
}

/// A wait that ended by the bound of a request leaves a word about it in the log.
fn assert_waited_for_nobody(log: &[String]) {
    let end = after_the_signal(log);
    assert!(end.contains("\"stopped\""), "{end}");
    for late in ["chain not readable", "broadcast unknown", "events not read", "not settled"] {
        assert!(!end.contains(late), "it waited for the endpoint's bound:\n{end}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_chain_that_hangs() {
    let site = Site::new().await;
    let node = site.start(30);
    site.ask(&node, 5).await;
    site.proxy.set("", Fault::Held);
    eventually(|| site.proxy.held() > 0).await;
    node.terminate();
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    assert_waited_for_nobody(&log);
    assert_eq!(site.recorded(), 5);
}

#[tokio::test]
async fn a_claim_whose_broadcast_hangs_at_the_stop_is_sent_once_more_and_counts_once() {
    let site = Site::new().await;
    site.devnet.set_automine(false).await;
    let node = site.start(30);
    site.proxy.set("eth_sendRawTransaction", Fault::Held);
    let mut seen = 0;
    while seen < 110 {
        seen += site.ask(&node, 60).await;
    }
    eventually(|| site.proxy.held() > 0).await;
    node.terminate();
    let (status, log) = node.wait();
    assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
    assert_waited_for_nobody(&log);

    site.proxy.set("", Fault::None);
    let node = site.start(30);
    let claims = site.all_claimed(seen).await;
    assert_eq!(claims.len(), 1, "{claims:?}");
    site.ask(&node, 1).await;
    site.devnet.mine(5).await;
    assert_eq!(site.claims().await, claims);
}
