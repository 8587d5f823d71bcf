//! What an operator and a launcher see of a running node.

use super::process::Site;
use crate::support::http::get;

#[tokio::test]
async fn the_launcher_gets_its_line_and_the_metrics_move() {
    let site = Site::new().await;
    let mut node = site.start(30);
    assert_eq!(node.first_line(), "Fabstir LLM Node is running\n");
    let mut seen = 0;
    while seen < 110 {
        seen += site.ask(&node, 60).await;
    }
    let claimed: u64 = site.all_claimed(seen).await.iter().sum();
    let answer = get(node.address, "/metrics").await;
    let text = String::from_utf8(answer.body).unwrap();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    #[allow(clippy::cast_precision_loss)]
    let (seen, claimed) = (seen as f64, claimed as f64);
    assert!(value("tokens_delivered_total ") >= seen);
    assert!(value("tokens_recorded_total ") >= seen);
    assert!(value("tokens_claimed_total ") >= claimed && claimed >= 100.0);
    assert!(value("claims_total{outcome=\"submitted\"}") >= 1.0);
    assert!(value("ledger_groups_total ") >= 1.0);
    assert!(value("ledger_append_seconds_count") >= 1.0);
    assert!(value("chain_head_block ") >= 1.0);
    assert!(value("requests_total{") >= 1.0);
}
