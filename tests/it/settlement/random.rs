//! Random traffic on a rough chain, with crashes at any step: the sentence always holds, what is
//! replayed is what was live, and in the end everything recorded is paid but a tail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tally::chain::Limits;
use tally::chain::fixed::{FixedChain, FixedWallet};
use tally::engine::scripted::ScriptedEngine;
use tally::ledger::Ledger;
use tally::ledger::memory::MemoryLedger;
use tally::node::wiring;
use tally::session::{BooksParts, LegacyAccess, PaidBy, Reply, ReplyEvent, Sessions, Tracker};
use tally::settlement::{Settlement, SettlementParts};
use tally::units::JobId;

use super::auditor::{self, Sentence};
use super::harness::{GRACE, News, request, rules, tokens};
use super::sim::SimChain;
use crate::support::node::{ManualClock, job, session_rules};

/// Jobs and what their deposits buy: plenty, a few claims with a rest, less than a claim.
const JOBS: [(u64, u64); 3] = [(1, 5_000), (2, 250), (3, 90)];
/// Rejections in a row that halt a job lie above this (src/settlement/submit.rs).
const FOREIGN_MAX: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Prompt { job: usize, wanted: u64 },
    Read { which: usize, frames: usize, written: bool },
    Leave { which: usize },
    Tick,
    Mine { seconds: u64 },
    Advance { ms: u64 },
    Restart,
    HoldLedger(bool),
    Down(bool),
    LoseBroadcasts(bool),
    Reorg,
    Foreign,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..JOBS.len(), 1..400_u64).prop_map(|(job, wanted)| Step::Prompt { job, wanted }),
        12 => (0..4_usize, 1..40_usize, prop::bool::weighted(0.9))
            .prop_map(|(which, frames, written)| Step::Read { which, frames, written }),
        1 => (0..4_usize).prop_map(|which| Step::Leave { which }),
        12 => Just(Step::Tick),
        8 => (1..40_u64).prop_map(|seconds| Step::Mine { seconds }),
        2 => (1..70_000_u64).prop_map(|ms| Step::Advance { ms }),
        2 => Just(Step::Restart),
        2 => any::<bool>().prop_map(Step::HoldLedger),
        1 => any::<bool>().prop_map(Step::Down),
        2 => any::<bool>().prop_map(Step::LoseBroadcasts),
        2 => Just(Step::Reorg),
        1 => Just(Step::Foreign),
    ]
}

/// What dies with the process.
struct Process {
    ledger: Arc<MemoryLedger>,
    tracker: Arc<Tracker>,
    sessions: Sessions,
    settlement: Settlement,
    replies: Vec<(JobId, Reply)>,
}

struct Model {
    chain: Arc<SimChain>,
    clock: Arc<ManualClock>,
    engine: Arc<ScriptedEngine>,
    news: Arc<News>,
    limits: Limits,
    process: Process,
    /// Tokens that clients saw, less those that a crash made the host's gift.
    delivered: BTreeMap<JobId, u64>,
    foreign: usize,
}

async fn boot(
    chain: &Arc<SimChain>,
    clock: &Arc<ManualClock>,
    engine: &Arc<ScriptedEngine>,
    (news, limits): (&Arc<News>, Limits),
    ledger: MemoryLedger,
) -> Process {
    let ledger = Arc::new(ledger);
    let tracker = wiring::restore(&*ledger, &**clock).await.unwrap();
    let books =
        || BooksParts { ledger: ledger.clone(), tracker: tracker.clone(), clock: clock.clone() };
    let paid = PaidBy::new(chain.clone(), Arc::new(FixedWallet), limits, books());
    let open = session_rules(LegacyAccess::On { cap: None });
    let sessions = Sessions::new(engine.clone(), Some(paid), open, clock.clone());
    let settlement = Settlement::new(SettlementParts {
        chain: chain.clone(),
        wallet: Arc::new(FixedWallet),
        books: books(),
        limits,
        rules: rules(),
        observer: news.clone(),
    });
    Process { ledger, tracker, sessions, settlement, replies: Vec::new() }
}

impl Model {
    async fn new() -> Self {
        let opened: Vec<_> = JOBS.iter().map(|(number, buys)| (job(*number), *buys)).collect();
        let chain = SimChain::new(&opened);
        let clock = Arc::<ManualClock>::default();
        let engine = ScriptedEngine::new(tokens(300));
        let news = Arc::<News>::default();
        let limits = FixedChain::fixed_limits();
        let process = boot(&chain, &clock, &engine, (&news, limits), MemoryLedger::new()).await;
        let delivered = opened.iter().map(|(job, _)| (*job, 0)).collect();
        Self { chain, clock, engine, news, limits, process, delivered, foreign: 0 }
    }

    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Prompt { job: index, wanted } => self.prompt(job(JOBS[index].0), wanted).await,
            Step::Read { which, frames, written } => self.read(which, frames, written).await,
            Step::Leave { which } => {
                if which < self.process.replies.len() {
                    self.process.replies.remove(which);
                }
            }
            Step::Tick => self.tick().await,
            Step::Mine { seconds } => self.chain.mine(seconds),
            Step::Advance { ms } => self.clock.advance(Duration::from_millis(ms)),
            Step::Restart => self.restart().await,
            Step::HoldLedger(true) => self.process.ledger.hold(),
            Step::HoldLedger(false) => self.process.ledger.release(),
            Step::Down(is_down) => self.chain.set_down(is_down),
            Step::LoseBroadcasts(loses) => self.chain.set_loses(loses),
            Step::Reorg => self.chain.reorg(),
            Step::Foreign if self.foreign < FOREIGN_MAX => {
                self.foreign += 1;
                self.chain.foreign();
            }
            Step::Foreign => {}
        }
    }

    async fn prompt(&mut self, job: JobId, wanted: u64) {
        let begun = tokio::select! {
            biased;
            begun = self.process.sessions.begin(request(job, wanted)) => begun.ok(),
            // The ledger is held: this client does not wait for it.
            () = std::future::ready(()) => None,
        };
        if self.process.replies.len() < 4 {
            self.process.replies.extend(begun.map(|reply| (job, reply)));
        }
    }

    async fn read(&mut self, which: usize, frames: usize, written: bool) {
        for _ in 0..frames {
            let Some((job, reply)) = self.process.replies.get_mut(which) else { return };
            let event = tokio::select! {
                biased;
                event = reply.next() => event,
                () = std::future::ready(()) => return,
            };
            match event {
                ReplyEvent::Frame(frame) if written => {
                    *self.delivered.get_mut(job).unwrap() += u64::from(frame.token_count());
                    frame.delivered();
                }
                ReplyEvent::Frame(frame) => drop(frame),
                ReplyEvent::End(_) => {
                    self.process.replies.remove(which);
                    return;
                }
            }
        }
    }

    async fn tick(&mut self) {
        let Process { ledger, settlement, .. } = &mut self.process;
        let mut tick = std::pin::pin!(settlement.tick());
        loop {
            tokio::select! {
                biased;
                ticked = &mut tick => return ticked.unwrap(),
                // It waits for a ledger that is held.
                () = std::future::ready(()) => ledger.release(),
            }
        }
    }

    async fn restart(&mut self) {
        let ledger = self.process.ledger.crash();
        for (number, _) in JOBS {
            let job = job(number);
            let recorded = self.recorded(job);
            let delivered = self.delivered.insert(job, recorded).unwrap();
            assert!(delivered <= recorded + 8, "job {job}: {delivered} seen, {recorded} recorded");
        }
        let parts = (&self.news, self.limits);
        self.process = boot(&self.chain, &self.clock, &self.engine, parts, ledger).await;
    }

    fn recorded(&self, job: JobId) -> u64 {
        let ledger = &self.process.ledger;
        let sums = auditor::recorded(&mut |each| ledger.replay(each).unwrap());
        sums.get(&job).copied().unwrap_or(0)
    }

    fn audit(&self) {
        let replayed = wiring::replay(&*self.process.ledger).unwrap();
        for (number, affordable) in JOBS {
            let job = job(number);
            let claims = self.chain.claims(job);
            let claimed = claims.iter().sum();
            let (recorded, delivered) = (self.recorded(job), self.delivered[&job]);
            Sentence { claimed, recorded, delivered, affordable }.check(job);
            assert_eq!(replayed.jobs.get(&job), self.process.tracker.account(job).as_ref());
            let halted = replayed.jobs.get(&job).and_then(|account| account.halted());
            assert_eq!(halted, None, "job {job}");
        }
    }

    /// All is well again, and everybody has gone home.
    async fn come_to_rest(&mut self) {
        self.chain.set_down(false);
        self.chain.set_loses(false);
        self.process.replies.clear();
        self.process.ledger.release();
        self.restart().await;
        self.clock.advance(Duration::from_millis(GRACE.idle.get()));
        for _ in 0..60 {
            self.tick().await;
            self.chain.mine(20);
            self.clock.advance(Duration::from_millis(10_000));
            self.audit();
        }
    }

    fn assert_all_is_paid(&self) {
        for (number, _) in JOBS {
            let job = job(number);
            let Some(account) = self.process.tracker.account(job) else { continue };
            assert!(account.is_closed() && !self.chain.is_active(job), "job {job}: {account:?}");
            let paid: u64 = self.chain.claims(job).iter().sum();
            let tail = account.lost().unwrap().total().get();
            assert_eq!(paid + tail, self.recorded(job), "job {job}");
            assert!(tail < 100, "job {job} lost {tail}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // PROPTEST_CASES asks for more than the 256 of every run.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_traffic_and_no_crash_breaks_the_sentence(steps in prop::collection::vec(step(), 1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in &steps {
                model.take(step).await;
                model.audit();
            }
            model.come_to_rest().await;
            model.assert_all_is_paid();
        });
    }
}
