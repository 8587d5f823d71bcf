//! `tally withdraw` as a process: alone, killed in the middle, and where it must refuse.

use tally::billing::{Errand, ErrandKind, Fact, Purpose};
use tally::ledger::sqlite::SqliteReader;
use tally::node::lock::WalletLock;
use tally::units::Address;

use super::earned::{COLD, credit, held, left, withdrawals};
use super::site::Site;
use crate::support::anvil::{Devnet, HOST};

const NATIVE: Address = Address::ZERO;
const AMOUNT: u128 = 1_000_000_000;

/// Withdrawals and forwards that were ever signed.
fn signed(site: &Site, devnet: &Devnet) -> (usize, usize) {
    let mut counts = (0, 0);
    if !site.ledger(devnet).exists() {
        return counts;
    }
    let count = &mut |entry: tally::billing::Entry| {
        if let Fact::TxPrepared { purpose: Purpose::Errand(Errand { kind, .. }), .. } = entry.fact {
            match kind {
                ErrandKind::Withdraw { .. } => counts.0 += 1,
                ErrandKind::Forward { .. } => counts.1 += 1,
                ErrandKind::Registry { .. } => {}
            }
        }
    };
    SqliteReader::open(&site.ledger(devnet)).unwrap().replay(count).unwrap();
    counts
}

#[tokio::test]
async fn without_a_node_the_command_settles_the_withdrawal_itself() {
    let devnet = Devnet::start().await;
    let mut site = Site::on(&devnet);
    site.set("TALLY_WALLET_COLD_ADDRESS", &COLD.to_string());
    let run = site.tally(&["withdraw"]).await;
    assert!(!run.ok && run.err.contains("nothing is earned"), "{}", run.err);
    let erc20 = devnet.contracts.token;
    credit(&devnet, NATIVE, AMOUNT).await;
    credit(&devnet, erc20, AMOUNT + 1).await;
    let run = site.tally(&["withdraw", "--json"]).await;
    assert!(run.ok, "{}", run.err);
    assert!(run.json()["tx"].as_str().unwrap().starts_with("0x"));
    assert_eq!(held(&devnet, COLD, NATIVE).await, AMOUNT);
    assert_eq!((left(&devnet, NATIVE).await, left(&devnet, erc20).await), (0, AMOUNT + 1));
    let run = site.tally(&["withdraw", "--token", &erc20.to_string()]).await;
    assert!(run.ok && run.out.contains("withdrawn: 0x"), "{}{}", run.out, run.err);
    assert_eq!(held(&devnet, COLD, erc20).await, AMOUNT + 1);
    assert_eq!(signed(&site, &devnet), (2, 2));
    let run = site.tally(&["audit"]).await;
    assert!(run.ok && run.out.contains("0 to 3: 4 ours, 0 foreign"), "{}", run.out);
    let status = site.tally(&["status", "--json"]).await.json();
    let purposes: Vec<_> =
        status["wallet"].as_array().unwrap().iter().map(|tx| tx["purpose"].clone()).collect();
    assert_eq!(purposes, ["withdraw", "forward", "withdraw", "forward"]);
    assert_eq!(status["node"]["running"], false);
}

#[tokio::test]
async fn killed_between_withdrawal_and_forward_the_next_command_forwards_once() {
    let devnet = Devnet::start().await;
    let mut site = Site::on(&devnet);
    site.set("TALLY_WALLET_COLD_ADDRESS", &COLD.to_string());
    // In its first block a withdrawal is not final yet, so that no forward is signed.
    site.set("TALLY_SETTLEMENT_CONFIRMATIONS", "2");
    credit(&devnet, NATIVE, AMOUNT).await;
    let mut command = site.command(&["withdraw"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    while withdrawals(&devnet).await == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it waits for the next block");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(signed(&site, &devnet), (1, 0));
    assert_eq!(held(&devnet, COLD, NATIVE).await, 0);
    let again = site.tally(&["withdraw", "--json"]);
    let mut again = std::pin::pin!(again);
    let run = loop {
        tokio::select! {
            biased;
            run = &mut again => break run,
            () = devnet.mine(1) => {}
        }
    };
    assert!(run.ok, "{}", run.err);
    assert_eq!(run.json()["finished_earlier"], true);
    assert_eq!(held(&devnet, COLD, NATIVE).await, AMOUNT);
    assert_eq!((withdrawals(&devnet).await, signed(&site, &devnet)), (1, (1, 1)));
}

#[tokio::test]
async fn what_would_lose_money_or_is_forbidden_is_refused_before_anything_is_signed() {
    let devnet = Devnet::start().await;
    credit(&devnet, NATIVE, AMOUNT).await;
    let contract = devnet.contracts.marketplace.to_string();
    let token = devnet.contracts.token.to_string();
    let cold = ("TALLY_WALLET_COLD_ADDRESS", COLD.to_string());
    let claims = ("TALLY_WALLET_DUTIES", "claims".to_owned());
    let table = [
        ("withdraw", vec![("TALLY_WALLET_COLD_ADDRESS", HOST.address.to_owned())], "own address"),
        (
            "withdraw",
            vec![("TALLY_WALLET_COLD_ADDRESS", Address::ZERO.to_string())],
            "wallet.cold_address",
        ),
        ("withdraw", vec![("TALLY_WALLET_COLD_ADDRESS", contract)], "chain.marketplace"),
        (
            "withdraw",
            vec![
                ("TALLY_WALLET_COLD_ADDRESS", token.clone()),
                ("TALLY_WALLET_WITHDRAW_ABOVE", format!("{token}=1")),
            ],
            "currency's contract",
        ),
        (
            "withdraw",
            vec![claims.clone(), ("TALLY_WALLET_WITHDRAW_ABOVE", "native=1".to_owned())],
            "wallet.withdraw_above",
        ),
        ("withdraw", vec![cold.clone(), ("TALLY_WALLET_WITHDRAW_ABOVE", "native=0".into())], "0"),
        ("withdraw", vec![cold, ("TALLY_WALLET_WITHDRAW_ABOVE", "eth=1".into())], "eth=1"),
        ("withdraw", vec![claims.clone()], "(duties)"),
        ("unregister", vec![claims], "(duties)"),
    ];
    register(&devnet).await;
    for (command, env, says) in table {
        let mut site = Site::on(&devnet);
        env.iter().for_each(|(name, text)| site.set(name, text));
        let run = site.tally(&[command]).await;
        assert!(!run.ok && run.out.is_empty(), "{env:?}: {}", run.out);
        assert!(run.err.contains(says), "{env:?}: {}", run.err);
        assert_eq!(signed(&site, &devnet), (0, 0), "{env:?}");
    }
    assert_eq!(left(&devnet, NATIVE).await, AMOUNT);
    assert!(devnet.rpc("eth_call", is_active(&devnet)).await.as_str().unwrap().ends_with('1'));
}

async fn register(devnet: &Devnet) {
    let sha256 = tally::units::Hash32::new([1; 32]);
    let model = crate::support::anvil::TrustedModel { repo: "o/r", file: "m.gguf", sha256 };
    devnet.register_host("http://host.example", model).await;
}

fn is_active(devnet: &Devnet) -> serde_json::Value {
    let selector = &alloy::primitives::keccak256("isActiveNode(address)")[..4];
    let data = format!("0x{}{:0>64}", hex::encode(selector), &HOST.address[2..]);
    serde_json::json!([{"to": devnet.contracts.node_registry.to_string(), "data": data}, "latest"])
}

#[tokio::test]
async fn a_node_that_holds_the_wallet_and_does_not_answer_is_named() {
    let devnet = Devnet::start().await;
    let site = Site::on(&devnet);
    credit(&devnet, NATIVE, AMOUNT).await;
    let _lock = WalletLock::take(None, site.home.path(), &site.data_dir()).unwrap();
    let run = site.tally(&["withdraw"]).await;
    assert!(!run.ok && run.err.contains("no node answers on the control socket"), "{}", run.err);
    assert!(run.err.contains(&format!("process {}", std::process::id())), "{}", run.err);
    assert_eq!(left(&devnet, NATIVE).await, AMOUNT);
}
