//! The node's own code, from the ledger up, as one process that can die between any two awaits.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tally::billing::{Account, Lost};
use tally::chain::Limits;
use tally::chain::fixed::FixedWallet;
use tally::chain::sim::SimChain;
use tally::engine::scripted::ScriptedEngine;
use tally::ledger::memory::MemoryLedger;
use tally::node::wiring;
use tally::session::{
    BooksParts, ExposureRule, LegacyAccess, PaidBy, PauseReason, SessionRules, Sessions, Tracker,
};
use tally::settlement::{Observer, Settlement, SettlementError, SettlementParts, SettlementRules};
use tally::units::{JobId, Millis, TokenCount, TxHash};

use crate::client::look;
use crate::clock::SimClock;
use crate::mix::ERC20;

/// What outlives every process.
pub struct Machine {
    pub chain: Arc<SimChain>,
    pub clock: Arc<SimClock>,
    pub engine: Arc<ScriptedEngine>,
    pub limits: Limits,
    pub rules: SettlementRules,
    pub exposure: ExposureRule,
}

/// What the node does with settlement's news: without gas it takes no new work.
struct News(Arc<Sessions>);

impl Observer for News {
    fn claim_included(&self, _job: JobId, _tokens: TokenCount, _tx: TxHash) {}
    fn chain_answers(&self, _answers: bool) {}
    fn session_closed(&self, _job: JobId, _lost: Lost) {}

    fn gas_suffices(&self, suffices: bool) {
        self.0.set_paused(PauseReason::Gas, !suffices);
    }
}

type Tick = Pin<Box<dyn Future<Output = (Box<Settlement>, Result<(), SettlementError>)> + Send>>;

enum Service {
    Resting(Box<Settlement>),
    Ticking(Tick),
    /// It gave up: the node stops.
    Stopped,
}

/// What dies with the process.
pub struct Node {
    pub ledger: Arc<MemoryLedger>,
    pub tracker: Arc<Tracker>,
    pub sessions: Arc<Sessions>,
    service: Service,
}

/// A start that waits for its ledger.
pub type Start = Pin<Box<dyn Future<Output = Result<Node, String>> + Send>>;

impl Machine {
    /// Starts a process on what a ledger holds.
    pub fn start(&self, ledger: Arc<MemoryLedger>) -> Start {
        let (chain, clock) = (self.chain.clone(), self.clock.clone());
        let (engine, limits, rules) = (self.engine.clone(), self.limits, self.rules.clone());
        let exposure = self.exposure;
        Box::pin(async move {
            let restored = wiring::restore(&*ledger, &*clock).await;
            let tracker = restored.map_err(|error| format!("no start: {error}"))?;
            let books = || BooksParts {
                ledger: ledger.clone(),
                tracker: tracker.clone(),
                clock: clock.clone(),
            };
            let paid = PaidBy::new(chain.clone(), Arc::new(FixedWallet), limits, books()).unwrap();
            let rules_of_sessions = session_rules(exposure);
            let sessions = Sessions::new(engine, Some(paid), rules_of_sessions, clock.clone());
            let sessions = Arc::new(sessions);
            let settlement = Settlement::new(SettlementParts {
                chain: chain.clone(),
                wallet: Arc::new(FixedWallet),
                books: books(),
                limits,
                rules,
                observer: Arc::new(News(sessions.clone())),
            });
            let service = Service::Resting(Box::new(settlement));
            Ok(Node { ledger, tracker, sessions, service })
        })
    }
}

fn session_rules(exposure: ExposureRule) -> SessionRules {
    SessionRules {
        price_min: 0,
        aliases: BTreeMap::new(),
        legacy: LegacyAccess::On { cap: None },
        snapshot_age_max: Millis::new(600_000),
        challenge_lifetime: Millis::new(60_000),
        token_lifetime: Millis::new(60_000),
        chain_wait_max: Duration::from_secs(5),
        payment_tokens: BTreeMap::from([(ERC20, 0)]),
        exposure,
        model_ids: BTreeMap::new(),
    }
}

impl Node {
    /// Lets settlement go on until its next await. False once it has given up.
    pub fn nudge(&mut self) -> bool {
        let service = std::mem::replace(&mut self.service, Service::Stopped);
        let mut tick: Tick = match service {
            Service::Stopped => return false,
            Service::Ticking(tick) => tick,
            Service::Resting(mut settlement) => Box::pin(async move {
                let ticked = settlement.tick().await;
                (settlement, ticked)
            }),
        };
        self.service = match look(&mut tick) {
            None => Service::Ticking(tick),
            Some((settlement, Ok(()))) => Service::Resting(settlement),
            Some((_, Err(_))) => Service::Stopped,
        };
        !self.is_stopped()
    }

    /// The pass under way is dropped where it waits.
    pub fn drop_tick(&mut self) {
        self.service = Service::Stopped;
    }

    /// Whether settlement is between two passes.
    pub fn is_resting(&self) -> bool {
        matches!(self.service, Service::Resting(_))
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self.service, Service::Stopped)
    }

    pub fn account(&self, job: JobId) -> Option<Account> {
        self.tracker.account(job)
    }
}
