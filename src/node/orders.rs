//! `tally withdraw`, `register`, `update` and `unregister`: orders to the wallet, carried out by
//! the node where one runs, else here.
//!
//! Never signs beside a running node: without one, this process takes the wallet's lock and drives
//! settlement itself until the order is final, which also settles whatever else is due. Relies on
//! settlement for the nonce line and on the ledger for what a crash leaves half done.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::access::{self, WalletError};
use super::console;
use super::control::{AskError, Command, Fault, ask};
use super::ledger_care::{self, RestoredError};
use super::lock::{self, LockError, WalletLock};
use super::operator::{permit, told};
use super::registration::{self, Goal, Plan, PlanError, Wanted};
use super::settings::{InspectSettings, WalletSettings};
use super::wiring::{self, Paid, WiringError};
use crate::billing::Lost;
use crate::chain::evm::{ConnectError, EvmChain, EvmWallet};
use crate::chain::registry::{Registrar, RegistryError, RegistryWrite};
use crate::chain::{Chain, Wallet};
use crate::clock::{Clock, SystemClock};
use crate::settlement::{Observer, Order, OrderOutcome, Settlement, SettlementError};
use crate::units::{Address, JobId, TokenCount, TxHash};

/// Writes of one command: many times what any registry needs, so that one that never says what was
/// written to it ends in an error and not in an empty wallet.
const WRITES_MAX: usize = 64;

/// Passes between two words about what is being waited for.
const PASSES_PER_WORD: u32 = 20;

/// An order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Settings are missing.
    #[error("this needs the chain and the host's key: set {0}")]
    NotSet(&'static str),
    /// Settings that would lose money.
    #[error("{0}")]
    Unfit(String),
    /// The key.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The chain.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no way to what is wanted.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The running node cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The ledger came out of a backup and may not be worked on yet.
    #[error(transparent)]
    Restored(#[from] RestoredError),
    /// It was refused, or failed.
    #[error("not done: {0}")]
    Fault(Fault),
    /// A node holds the wallet and does not listen.
    #[error("no node answers on the control socket, and {0}")]
    Lock(#[from] LockError),
    /// Settlement could not be set up here.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// Settlement had to stop.
    #[error(transparent)]
    Settlement(#[from] SettlementError),
    /// The registry goes on wanting the same.
    #[error("{0} is final and the registry does not show it; nothing more is sent")]
    NoEffect(&'static str),
}

/// What carries orders out.
enum Hand {
    /// The node that runs on this data folder.
    Running(PathBuf),
    /// This process.
    Alone(Box<Alone>),
}

/// Settlement in a process of its own.
struct Alone {
    settlement: Settlement,
    clock: Arc<dyn Clock>,
    poll: Duration,
    _lock: WalletLock,
}

/// The chain and the key, open.
struct Opened {
    chain: Arc<EvmChain>,
    wallet: Arc<EvmWallet>,
}

/// Withdraws all earnings in a currency, and moves them on to the cold address where one is set.
///
/// # Errors
/// [`OrderError`]; nothing earned is one, unless an earlier withdrawal was brought to its end.
pub async fn withdraw(settings: &InspectSettings, token: Address) -> Result<Value, OrderError> {
    permit(&Order::Withdraw { token }, &settings.wallet).map_err(OrderError::Fault)?;
    let mut hand = match running(settings).await? {
        Some(hand) => hand,
        None => Hand::Alone(Box::new(Alone::open(settings, open(settings).await?).await?)),
    };
    let finished = match &mut hand {
        Hand::Running(_) => false,
        Hand::Alone(alone) => alone.finish_errands().await?,
    };
    let command = Command::Withdraw { token };
    match hand.send(Order::Withdraw { token }, command, &settings.wallet).await {
        Err(OrderError::Fault(fault)) if finished && fault.code == "refused" => {
            Ok(json!({"finished_earlier": true}))
        }
        answer => answer,
    }
}

/// What `register` and its kin do.
#[derive(Debug, Clone, Copy)]
pub struct Registering {
    /// What the registry shall say.
    pub goal: Goal,
    /// Only say which calls would be sent.
    pub dry_run: bool,
}

/// Makes the registry say what the settings say; sends only what differs.
///
/// # Errors
/// [`OrderError`]; what was written until then stays written.
pub async fn register(
    settings: &InspectSettings,
    registering: Registering,
) -> Result<Value, OrderError> {
    let Registering { goal, dry_run } = registering;
    let opened = open(settings).await?;
    let wanted = wanted(settings, goal, &opened)?;
    let mut plan = look(goal, &wanted, &opened).await?;
    plan.notes.iter().for_each(|note| console::progress(format!("note: {note}")));
    let notes = plan.notes.clone();
    if dry_run {
        let calls: Result<Vec<_>, _> =
            plan.writes.iter().map(|write| call_json(&opened, write)).collect();
        return Ok(json!({"dry_run": true, "calls": calls?, "notes": notes}));
    }
    let mut done: Vec<Value> = Vec::new();
    let mut hand = None;
    while let Some(write) = plan.writes.first().cloned() {
        if done.len() >= WRITES_MAX {
            return Err(OrderError::NoEffect(write.name()));
        }
        let name = write.name();
        let call = opened.chain.registry_call(&write)?;
        let order = Order::Call { name: name.to_owned(), call: call.clone() };
        permit(&order, &settings.wallet).map_err(OrderError::Fault)?;
        let hand = match &mut hand {
            Some(hand) => hand,
            None => hand.insert(open_hand(settings, &opened).await?),
        };
        console::progress(format!("{name}: sending"));
        let command = Command::Call { name: name.to_owned(), call };
        let mut answer = hand.send(order, command, &settings.wallet).await?;
        console::progress(format!("{name}: final"));
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("name".into(), name.into());
        }
        done.push(answer);
        plan = look(goal, &wanted, &opened).await?;
        if plan.writes.first() == Some(&write) {
            return Err(OrderError::NoEffect(name));
        }
    }
    Ok(json!({"dry_run": false, "calls": done, "notes": notes}))
}

/// Refuses a cold address that is the host's own: what is forwarded to it would be forwarded again
/// and again, for gas.
///
/// # Errors
/// In words.
pub fn check_cold_address(wallet: &WalletSettings, host: Address) -> Result<(), String> {
    if wallet.cold_address == Some(host) {
        return Err(format!("wallet.cold_address is the host's own address {host}"));
    }
    Ok(())
}

async fn open(settings: &InspectSettings) -> Result<Opened, OrderError> {
    let chain = settings.chain.as_ref();
    let chain = chain.ok_or(OrderError::NotSet("chain.rpc_urls, chain.id, chain.marketplace"))?;
    let key = settings.key.as_ref().ok_or(OrderError::NotSet("host.keystore"))?;
    let wallet = access::open_wallet(key)?;
    check_cold_address(&settings.wallet, wallet.address()).map_err(OrderError::Unfit)?;
    let chain = Arc::new(access::connect(chain, Arc::clone(&wallet)).await?);
    Ok(Opened { chain, wallet })
}

fn wanted(settings: &InspectSettings, goal: Goal, opened: &Opened) -> Result<Wanted, OrderError> {
    match goal {
        Goal::Registered | Goal::Updated => {
            let key = opened.wallet.public_key_compressed();
            Ok(registration::wanted(&settings.registration, key)?)
        }
        // Needs none of the settings that only registering needs.
        Goal::Unregistered => {
            Ok(Wanted { listing: Default::default(), model_prices: BTreeMap::new() })
        }
    }
}

async fn look(goal: Goal, wanted: &Wanted, opened: &Opened) -> Result<Plan, OrderError> {
    let found = registration::find(&*opened.chain, wanted).await?;
    Ok(registration::plan(goal, wanted, &found, opened.wallet.address())?)
}

fn call_json(opened: &Opened, write: &RegistryWrite) -> Result<Value, OrderError> {
    let line =
        Command::Call { name: write.name().to_owned(), call: opened.chain.registry_call(write)? };
    let mut shown: Value = serde_json::from_str(&line.to_line()).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.remove("command");
    }
    Ok(shown)
}

async fn open_hand(settings: &InspectSettings, opened: &Opened) -> Result<Hand, OrderError> {
    if let Some(hand) = running(settings).await? {
        return Ok(hand);
    }
    let Opened { chain, wallet } = opened;
    let opened = Opened { chain: Arc::clone(chain), wallet: Arc::clone(wallet) };
    Ok(Hand::Alone(Box::new(Alone::open(settings, opened).await?)))
}

/// The running node, where one answers.
async fn running(settings: &InspectSettings) -> Result<Option<Hand>, OrderError> {
    match ask(&settings.data_dir, &Command::Status).await {
        Ok(Ok(_)) => Ok(Some(Hand::Running(settings.data_dir.clone()))),
        Ok(Err(fault)) => Err(OrderError::Fault(fault)),
        Err(AskError::NotRunning) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Hand {
    async fn send(
        &mut self,
        order: Order,
        command: Command,
        wallet: &WalletSettings,
    ) -> Result<Value, OrderError> {
        permit(&order, wallet).map_err(OrderError::Fault)?;
        let answer = match self {
            Self::Running(data_dir) => ask(data_dir, &command).await?,
            Self::Alone(alone) => told(alone.carry_out(order).await?),
        };
        answer.map_err(OrderError::Fault)
    }
}

impl Alone {
    async fn open(settings: &InspectSettings, opened: Opened) -> Result<Self, OrderError> {
        let Opened { chain, wallet } = opened;
        let host = wallet.address();
        let _lock = WalletLock::take(Some(host), &lock::user_dir(), &settings.data_dir)?;
        console::progress("no node runs: this process settles until the order is final");
        let clock = SystemClock::shared();
        let limits = chain.limits().await.map_err(WiringError::from)?;
        let ledger = wiring::open_ledger(&settings.ledger_path(), &*chain, &*wallet)?;
        ledger_care::admit_restored(&ledger, &*chain).await?;
        let tracker = wiring::restore(&*ledger, &*clock).await?;
        let poll = settings.settlement.poll;
        let paid = Paid { chain, wallet, limits, ledger, tracker, clock: Arc::clone(&clock) };
        let rules = wiring::settlement_rules(&settings.money());
        let settlement = paid.settlement(rules, Arc::new(Words));
        Ok(Self { settlement, clock, poll, _lock })
    }

    /// Brings what an earlier process left half done to its end; false where there was nothing.
    async fn finish_errands(&mut self) -> Result<bool, OrderError> {
        let had_some = self.settlement.has_errands();
        let mut passes = 0_u32;
        while self.settlement.has_errands() {
            self.pass(&mut passes, "an earlier order to become final").await?;
        }
        Ok(had_some)
    }

    async fn carry_out(&mut self, order: Order) -> Result<OrderOutcome, OrderError> {
        let (reply, mut outcome) = oneshot::channel();
        self.settlement.place(order, reply);
        let mut passes = 0_u32;
        loop {
            self.pass(&mut passes, "the order to become final").await?;
            match outcome.try_recv() {
                Ok(outcome) => return Ok(outcome),
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => {
                    return Ok(OrderOutcome::Failed("settlement forgot the order".into()));
                }
            }
        }
    }

    async fn pass(&mut self, passes: &mut u32, what: &str) -> Result<(), OrderError> {
        self.settlement.tick().await?;
        *passes = passes.wrapping_add(1);
        if passes.is_multiple_of(PASSES_PER_WORD) {
            console::progress(format!("waiting for {what}"));
        }
        self.clock.sleep(self.poll).await;
        Ok(())
    }
}

/// What settlement tells a process that only carries out an order.
struct Words;

impl Observer for Words {
    fn claim_included(&self, job: JobId, tokens: TokenCount, tx: TxHash) {
        console::progress(format!("job {job}: claim of {tokens} tokens included in {tx}"));
    }

    fn chain_answers(&self, answers: bool) {
        if !answers {
            console::progress("the chain does not answer: waiting");
        }
    }

    fn session_closed(&self, job: JobId, lost: Lost) {
        console::progress(format!("job {job}: session closed, {} tokens lost", lost.total()));
    }

    fn gas_suffices(&self, suffices: bool) {
        if !suffices {
            console::progress("the wallet can hardly pay gas any more");
        }
    }
}

/// The answer to an order as lines.
#[must_use]
pub fn lines(answer: &Value) -> Vec<String> {
    if answer["finished_earlier"] == true {
        return vec!["an earlier withdrawal was brought to its end; nothing more is earned".into()];
    }
    let Some(calls) = answer["calls"].as_array() else { return vec![tx_line("withdrawn", answer)] };
    if calls.is_empty() {
        return vec!["the registry says all of it already".to_owned()];
    }
    let line = |call: &Value| {
        let name = call["name"].as_str().unwrap_or_default();
        match answer["dry_run"] == true {
            true => format!("would send {name} to {}: {}", text(&call["to"]), text(&call["input"])),
            false => tx_line(name, call),
        }
    };
    calls.iter().map(line).collect()
}

fn tx_line(what: &str, answer: &Value) -> String {
    format!("{what}: {} for {} wei of gas", text(&answer["tx"]), text(&answer["fee_wei"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
