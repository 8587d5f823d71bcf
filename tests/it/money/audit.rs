//! `tally audit` and `tally earnings` on what a node really did on a real chain, and on ledgers
//! that lie.

use tally::billing::{Entry, Fact, Purpose, Subject};
use tally::node::audit::{self, Grade, Verdict};
use tally::units::{Address, Amount, JobId, PricePerToken, TokenCount};

use super::earned::left;
use super::site::Site;
use crate::settlement::harness::{World, opening};
use crate::support::anvil::{CLIENT, HOST, OpenSession};
use crate::support::variant::Variant;

async fn verdict(world: &World, entries: Vec<Entry>) -> Verdict {
    let site = Site::with_ledger(&world.devnet, entries).await;
    audit::examine(&site.inspect(), None).await.unwrap()
}

fn shown(verdict: &Verdict) -> String {
    audit::lines(verdict).join("\n")
}

/// Two jobs: one claimed twice and completed by its client, with a tail; one that goes on.
async fn history() -> (World, JobId, JobId) {
    let mut world = World::start().await;
    let (ended, open) = (world.open(1000).await, world.open(1000).await);
    world.deliver(ended, 150).await;
    world.deliver(open, 120).await;
    world.settle().await;
    world.deliver(ended, 130).await;
    world.settle().await;
    world.deliver(ended, 42).await;
    world.deliver(open, 7).await;
    world.devnet.complete(CLIENT, ended).await;
    world.settle().await;
    (world, ended, open)
}

#[tokio::test]
async fn a_ledger_and_its_chain_agree_line_by_line_and_every_token_has_its_column() {
    let (world, ended, open) = history().await;
    let site = Site::with_ledger(&world.devnet, world.entries()).await;
    let run = site.tally(&["audit", "--json"]).await;
    let report = run.json();
    assert!(run.ok, "{report:#}");
    assert_eq!((&report["ok"], &report["differ"]), (&true.into(), &0.into()));
    let lines = report["lines"].as_array().unwrap();
    let claims = lines.iter().filter(|line| line["what"].as_str().unwrap().contains("claim of"));
    assert_eq!(claims.count(), 3, "{report:#}");
    let nonces = lines.iter().find(|line| line["what"] == "nonces").unwrap();
    assert_eq!(nonces["wanted"], "0 to 2: 3 ours, 0 foreign");

    let run = site.tally(&["earnings", "--json"]).await;
    let report = run.json();
    assert!(run.ok, "{}", run.err);
    let row = |job: JobId| {
        let rows = report["rows"].as_array().unwrap().iter();
        rows.clone().find(|row| row["group"] == job.to_string()).unwrap().clone()
    };
    let (ended, open) = (row(ended), row(open));
    assert_eq!(ended["tokens"]["claimed"], 280);
    assert_eq!(ended["tokens"]["unclaimable"], 42);
    assert_eq!(open["tokens"]["claimed"], 120);
    assert_eq!(open["tokens"]["pending"], 7);
    // 10 000 wei a token, a tenth for the treasury.
    assert_eq!(ended["paid"]["claimed"], "2800000");
    assert_eq!(ended["host"]["claimed"], "2520000");
    assert_eq!(ended["treasury_claimed"], "280000");
    // The only session that ended: what the contract credited is what the statement says.
    assert_eq!(left(&world.devnet, Address::ZERO).await, 2_520_000);
    let gas: u128 = ended["gas_wei"].as_str().unwrap().parse().unwrap();
    assert!(gas > 0);
    let net: i128 = ended["net_wei"].as_str().unwrap().parse().unwrap();
    assert_eq!(net, 2_520_000 - i128::try_from(gas).unwrap());

    let run = site.tally(&["earnings", "--by", "day", "--csv"]).await;
    let lines: Vec<&str> = run.out.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.out);
    assert!(lines[1].starts_with("day,1970-01-01,,native,449,400,7,42,0,"), "{}", run.out);
}

#[tokio::test]
async fn what_is_on_its_way_is_pending_and_a_foreign_nonce_is_named() {
    let mut world = World::start().await;
    let job = world.open(1000).await;
    world.deliver(job, 150).await;
    world.settle().await;
    // Another program uses the same key.
    world.devnet.send(HOST, CLIENT.address(), Vec::new(), 1).await;
    world.deliver(job, 150).await;
    // A nonce that jumped is believed when it lasts; what is sent then waits for its block.
    world.tick().await;
    while world.account(job).claims().count() < 2 {
        world.mine(1).await;
        world.tick().await;
    }
    let sent = verdict(&world, world.entries()).await;
    assert_eq!(sent.differences(), 0, "{}", shown(&sent));
    let pending = sent.lines.iter().filter(|line| line.grade == Grade::Pending);
    assert!(pending.clone().any(|line| line.what.contains("claim of 150")), "{}", shown(&sent));
    let foreign: Vec<_> = sent.lines.iter().filter(|line| line.grade == Grade::Foreign).collect();
    assert_eq!(foreign.len(), 1, "{}", shown(&sent));
    assert_eq!(foreign[0].what, "nonce 1");
    // Mined, and the node has not looked yet.
    world.mine(1).await;
    let mined = verdict(&world, world.entries()).await;
    assert_eq!(mined.differences(), 0, "{}", shown(&mined));
    world.settle().await;
    let done = verdict(&world, world.entries()).await;
    assert_eq!(done.differences(), 0, "{}", shown(&done));
    assert!(done.lines.iter().all(|line| line.grade != Grade::Pending), "{}", shown(&done));
}

/// Whether an entry is about a transaction of this nonce.
fn is_of(entry: &Entry, wanted: u64) -> bool {
    let nonce = match &entry.fact {
        Fact::TxPrepared { nonce, .. }
        | Fact::TxIncluded { nonce, .. }
        | Fact::TxConfirmed { nonce, .. } => nonce.get(),
        _ => return false,
    };
    nonce == wanted
}

/// A way to write the ledger wrong, and the line that must tell it.
type Lie = (&'static str, &'static str, fn(&mut Vec<Entry>));

const LIES: [Lie; 9] = [
    ("a claim that is not in the ledger", "event", |entries| {
        entries.retain(|entry| !is_of(entry, 0));
    }),
    ("a claim that is not in the ledger, by the sum", "tokens used", |entries| {
        entries.retain(|entry| !is_of(entry, 0));
    }),
    ("a claim of fewer tokens", "nonce 0, claim of 149 tokens", |entries| {
        for entry in entries {
            if let Fact::TxPrepared { purpose: Purpose::Claim(claim), nonce, .. } = &mut entry.fact
                && nonce.get() == 0
            {
                claim.tokens = TokenCount::new(149);
            }
        }
    }),
    ("a fee that was not paid", "nonce 0, claim of 150 tokens", |entries| {
        for entry in entries {
            if let Fact::TxIncluded { fee, nonce, .. } = &mut entry.fact
                && nonce.get() == 0
            {
                *fee = Amount::new(fee.get() + 1);
            }
        }
    }),
    ("a claim that never was", "nonce 9, claim of 100 tokens", |entries| {
        let first = entries.iter().position(|entry| is_of(entry, 0)).unwrap();
        let mut more: Vec<_> = entries[first..].iter().filter(|e| is_of(e, 0)).cloned().collect();
        for entry in &mut more {
            match &mut entry.fact {
                Fact::TxPrepared { nonce, purpose, attempt } => {
                    *nonce = tally::units::WalletNonce::new(9);
                    attempt.hash = tally::units::TxHash::new([9; 32]);
                    let Purpose::Claim(claim) = purpose else { panic!("a claim") };
                    claim.tokens = TokenCount::new(100);
                }
                Fact::TxIncluded { nonce, hash, .. } => {
                    *nonce = tally::units::WalletNonce::new(9);
                    *hash = tally::units::TxHash::new([9; 32]);
                }
                Fact::TxConfirmed { nonce, .. } => *nonce = tally::units::WalletNonce::new(9),
                _ => panic!("no other entry of a claim"),
            }
        }
        entries.extend(more);
    }),
    ("another price", "terms", |entries| {
        for entry in entries {
            if let Fact::JobOpened { price, .. } = &mut entry.fact {
                *price = PricePerToken::new(price.get() + 1);
            }
        }
    }),
    ("tokens that were never delivered before they were claimed", "ledger", |entries| {
        let cut = entries.iter().position(|e| matches!(e.fact, Fact::Delivered { .. })).unwrap();
        entries.remove(cut);
    }),
    ("a loss that is not what was left", "ledger", |entries| {
        for entry in entries {
            if let Fact::JobClosed { unclaimable, .. } = &mut entry.fact {
                *unclaimable = TokenCount::new(41);
            }
        }
    }),
    ("a session that is closed and runs on chain", "status", |entries| {
        let closed = entries.iter().find(|entry| matches!(entry.fact, Fact::JobClosed { .. }));
        let mut closed = closed.unwrap().clone();
        let Subject::Job(job) = closed.subject else { panic!("a job's") };
        closed.subject = JobId::new(job.get() + 1).unwrap().into();
        entries.push(closed);
    }),
];

#[tokio::test]
async fn no_lie_of_a_ledger_passes() {
    let (world, ..) = history().await;
    let honest = world.entries();
    for (lie, tells, write) in LIES {
        let mut entries = honest.clone();
        write(&mut entries);
        let found = verdict(&world, entries).await;
        let told = found.lines.iter().filter(|line| line.grade == Grade::Differs);
        let told: Vec<_> = told.map(|line| line.what.as_str()).collect();
        assert!(told.contains(&tells), "{lie}: {told:?}\n{}", shown(&found));
    }
    let mut entries = honest.clone();
    (LIES[0].2)(&mut entries);
    let site = Site::with_ledger(&world.devnet, entries).await;
    let run = site.tally(&["audit"]).await;
    assert!(!run.ok && run.out.contains("DIFFERS"), "{}", run.out);
    assert!(run.err.contains("ledger and chain differ"), "{}", run.err);
}

#[tokio::test]
async fn in_every_version_the_statement_is_what_the_contract_credits() {
    use Variant as V;
    for variant in [V::V3a, V::V4, V::V4Late, V::V5, V::V6, V::V7] {
        let mut world = World::on_variant(variant).await;
        // No multiple of a thousandth, so that what is rounded shows.
        let (price, deposit) = (10_003, 20_000_000);
        let job = world.open_as(OpenSession { price, deposit, ..opening() }).await;
        world.deliver(job, 150).await;
        world.settle().await;
        world.deliver(job, 111).await;
        world.settle().await;
        world.devnet.complete(CLIENT, job).await;
        world.settle().await;
        let site = Site::with_ledger(&world.devnet, world.entries()).await;
        let run = site.tally(&["audit"]).await;
        assert!(run.ok, "{variant:?}: {}{}", run.out, run.err);
        let report = site.tally(&["earnings", "--json"]).await.json();
        let total = &report["totals"][0];
        assert_eq!(total["tokens"]["claimed"], 261, "{variant:?}");
        let credited = left(&world.devnet, Address::ZERO).await;
        assert!(credited > 0);
        assert_eq!(total["host"]["claimed"], credited.to_string(), "{variant:?}");
    }
}

#[tokio::test]
async fn without_a_chain_an_audit_proves_nothing_and_earnings_say_what_they_do_not_know() {
    let (mut world, ..) = history().await;
    let site = Site::with_ledger(&world.devnet, world.entries()).await;
    world.devnet.stop();
    let run = site.tally(&["audit"]).await;
    assert!(!run.ok && run.out.is_empty(), "{}", run.out);
    let run = site.tally(&["earnings"]).await;
    assert!(run.ok, "{}", run.err);
    assert!(run.out.contains("money is not known"), "{}", run.out);
    assert!(
        run.out.contains("449 earned = 400 claimed + 7 pending + 42 unclaimable"),
        "{}",
        run.out
    );
}
