//! Many claims through an endpoint that loses, delays, throttles and misremembers: each counts
//! exactly once.
//!
//! `TALLY_STORM_CLAIMS`, `TALLY_STORM_JOBS`, `TALLY_STORM_ENDPOINTS` and `TALLY_STORM_SEED` make
//! the first one larger or other (`scripts/storm.sh`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tally::billing::TxState;
use tally::session::Grace;
use tally::settlement::SettlementRules;
use tally::units::{JobId, Millis};

use super::harness::{GRACE, World, request, rules, tokens};
use crate::support::storm::{Mishap, Storm};

/// The node's bound for one answer. Only how long the storm lasts depends on it, not how it ends:
/// an answer that comes too late is one more that was lost.
const PATIENCE: Duration = Duration::from_millis(800);

/// Passes of settlement after which a round of claims must be through. One pass in two is cut
/// short by the weather, a claim needs three, and a gap of nonces some more.
const PASSES_MAX: u64 = 400;

/// Time between two passes. An endpoint that asked for a pause of a second gets it.
const PASS: Millis = Millis::new(1_100);

/// Rounds between two deaths of the process.
const ROUNDS_PER_LIFE: u64 = 3;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// For `scripts/storm.sh`, which prints the last of it.
#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}

/// However long the weather lasts, nobody takes a client's silence for the end.
fn patient() -> SettlementRules {
    SettlementRules { grace: Grace { idle: Millis::new(u64::MAX), ..GRACE }, ..rules() }
}

struct Sea {
    world: World,
    /// Each endpoint's own weather.
    storms: Vec<Arc<Storm>>,
    /// Tokens delivered and claims due, by job.
    due: BTreeMap<JobId, (u64, usize)>,
    passes: u64,
}

impl Sea {
    async fn new(size: Size, seed: u64) -> Self {
        let Size { jobs, rounds, endpoints } = size;
        let mut world = World::patient(patient(), PATIENCE, endpoints - 1).await;
        let mut due = BTreeMap::new();
        for _ in 0..jobs {
            // More than is used: a last claim would wait so as to carry the rest.
            due.insert(world.open(rounds * 130 + 1000).await, (0, 0));
        }
        let mut storms = Vec::new();
        for proxy in std::iter::once(&world.proxy).chain(&world.others) {
            let storm = Arc::new(Storm::new(seed + storms.len() as u64));
            proxy.brew(storm.clone());
            storms.push(storm);
        }
        Self { world, storms, due, passes: 0 }
    }

    /// How often each thing happened, over all endpoints.
    fn counts(&self) -> BTreeMap<Mishap, u64> {
        let mut sums = BTreeMap::new();
        for (mishap, count) in self.storms.iter().flat_map(|storm| storm.counts()) {
            *sums.entry(mishap).or_insert(0) += count;
        }
        sums
    }

    /// Every client gets one answer that is worth a claim.
    async fn deliver(&mut self, round: u64) {
        let jobs: Vec<JobId> = self.due.keys().copied().collect();
        for job in jobs {
            let count = 100 + (job.get() * 7 + round * 11) % 30;
            self.world.engine.set_script(tokens(count));
            let reply = loop {
                // Its first prompt waits until the chain could be read.
                if let Ok(reply) = self.world.sessions().begin(request(job, count)).await {
                    break reply;
                }
                self.world.advance(PASS);
            };
            self.world.read(job, reply).await;
            let due = self.due.get_mut(&job).unwrap();
            *due = (due.0 + count, due.1 + 1);
        }
        self.world.settle_ledger().await;
    }

    /// Passes and blocks until every claim of the round is in the chain.
    async fn claim(&mut self) {
        for _ in 0..PASSES_MAX {
            self.world.try_tick().await.unwrap();
            self.world.advance(PASS);
            self.world.devnet.increase_time(10).await;
            self.passes += 1;
            if self.is_claimed().await {
                return;
            }
        }
        let late = self.late().await;
        panic!("not claimed in {PASSES_MAX} passes: {late:?}; {:?}", self.counts());
    }

    async fn is_claimed(&self) -> bool {
        self.late().await.is_empty()
    }

    /// Jobs whose claims are not what is due: the claims, and the job's account.
    async fn late(&self) -> Vec<(JobId, Vec<u64>, String)> {
        let mut late = Vec::new();
        for (job, (tokens, count)) in &self.due {
            let claims = self.world.claims(*job).await;
            let sum: u64 = claims.iter().sum();
            assert!(sum <= *tokens, "job {job}: {claims:?} of {tokens}");
            if (sum, claims.len()) != (*tokens, *count) {
                let account = self.world.account(*job);
                let open: Vec<_> =
                    account.txs_open().map(|tx| (tx.nonce.get(), tx.state)).collect();
                late.push((*job, claims, format!("{:?} {open:?}", account.halted())));
            }
        }
        late
    }

    /// The weather clears, and everything becomes final.
    async fn calm(&mut self) {
        self.storms.iter().for_each(|storm| storm.set_calm(true));
        // Longer than an endpoint rests that contradicted others.
        for _ in 0..60 {
            self.world.tick().await;
            self.world.advance(PASS);
            self.world.devnet.increase_time(10).await;
        }
        for job in self.due.keys() {
            let account = self.world.account(*job);
            assert_eq!(account.halted(), None, "job {job}");
            let (claims, confirmed): (Vec<_>, Vec<_>) = account
                .claims()
                .filter(|(_, tx)| !matches!(tx.state, TxState::Rejected(_)))
                .map(|(claim, tx)| (claim.tokens.get(), tx.state == TxState::Confirmed))
                .unzip();
            assert_eq!(claims, self.world.claims(*job).await, "job {job}: ledger and chain");
            assert!(confirmed.iter().all(|is_final| *is_final), "job {job}: {account:?}");
        }
    }
}

/// How large a storm is.
#[derive(Clone, Copy)]
struct Size {
    jobs: u64,
    rounds: u64,
    endpoints: usize,
}

/// One storm, from the first prompt to the last confirmation; what happened, as JSON.
async fn sail(size: Size, seed: u64) -> Value {
    say(&format!("storm of {} claims, seed {seed}", size.jobs * size.rounds));
    let mut sea = Sea::new(size, seed).await;
    for round in 0..size.rounds {
        sea.deliver(round).await;
        sea.claim().await;
        sea.world.audit().await;
        if round % ROUNDS_PER_LIFE == ROUNDS_PER_LIFE - 1 {
            sea.world.restart().await;
        }
    }
    sea.calm().await;
    let counts = sea.counts();
    let kinds = counts.keys().filter(|mishap| **mishap != Mishap::None).count();
    assert!(kinds >= 8, "the storm was one: {counts:?}");
    let requests: u64 = counts.values().sum();
    json!({
        "ok": true, "claims": size.jobs * size.rounds, "double_claims": 0, "lost_claims": 0,
        "seed": seed, "endpoints": size.endpoints, "requests": requests,
        "faults": requests - counts[&Mishap::None], "passes": sea.passes,
        "by_fault": counts.iter().map(|(kind, count)| (format!("{kind:?}"), *count))
            .collect::<BTreeMap<_, _>>(),
    })
}

#[tokio::test]
async fn every_claim_counts_once_whatever_the_endpoint_loses_or_misremembers() {
    let jobs = setting("TALLY_STORM_JOBS", 10);
    let rounds = setting("TALLY_STORM_CLAIMS", 60).div_ceil(jobs);
    let endpoints = usize::try_from(setting("TALLY_STORM_ENDPOINTS", 1)).unwrap();
    let size = Size { jobs, rounds, endpoints };
    say(&sail(size, setting("TALLY_STORM_SEED", 20_261_122)).await.to_string());
}

#[tokio::test]
async fn three_endpoints_in_three_weathers_count_every_claim_once() {
    say(&sail(Size { jobs: 5, rounds: 4, endpoints: 3 }, 7).await.to_string());
}

#[tokio::test]
async fn an_endpoint_that_forgets_transactions_makes_no_claim_twice_and_stops_no_job() {
    let mut world = World::patient(patient(), PATIENCE, 0).await;
    let job = world.open(10_000).await;
    let storm = Arc::new(Storm::new(1));
    storm.set_calm(true);
    world.proxy.brew(storm.clone());
    world.deliver(job, 150).await;
    world.tick().await;
    world.mine(1).await;
    // The nonce is used, the contract has counted, and nobody knows the transaction.
    storm.set_blind(true);
    for _ in 0..10 {
        world.tick().await;
        world.devnet.increase_time(10).await;
    }
    assert_eq!(world.claims(job).await, vec![150]);
    storm.set_blind(false);
    world.settle().await;
    world.deliver(job, 120).await;
    world.settle().await;
    assert_eq!(world.account(job).halted(), None);
    assert_eq!(world.claims(job).await, vec![150, 120]);
}
