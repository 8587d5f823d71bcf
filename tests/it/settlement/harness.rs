//! A node's money half in a test's hand: a real chain, a real ledger, a scripted model, and time
//! that moves when the test says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tally::billing::{Account, Accounts, Entry, Lost, Tx, TxState};
use tally::chain::evm::connect;
use tally::chain::{Chain, Limits};
use tally::clock::{Clock, SystemClock};
use tally::engine::scripted::{Script, ScriptedEngine};
use tally::ledger::memory::MemoryLedger;
use tally::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions};
use tally::ledger::{Ledger, LedgerError};
use tally::node::wiring;
use tally::session::{
    BooksParts, Credential, Grace, LegacyAccess, PaidBy, Phase, Prompt, PromptInput, PromptRequest,
    Refusal, Reply, ReplyEvent, SamplingInput, SessionRules, Sessions, Tracker, TurnEnd,
};
use tally::settlement::{
    Observer, Order, OrderOutcome, Settlement, SettlementError, SettlementParts, SettlementRules,
};
use tally::units::{ChainSeconds, JobId, Millis, TokenCount, TxHash};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::auditor::{self, Sentence};
use super::tap::Tap;
use crate::support::anvil::{Devnet, HOST, OpenSession};
use crate::support::node::{ManualClock, session_rules};
use crate::support::proxy::Proxy;
use crate::support::variant::{MODEL, Variant, model_id};

/// Grace of the tests: after a drop, after a goodbye, without a connection.
pub const GRACE: Grace =
    Grace { dropped: Millis::new(60_000), closed: Millis::new(5_000), idle: Millis::new(600_000) };

/// Claims from 100 tokens, whatever they cost, final in their second block.
pub fn rules() -> SettlementRules {
    SettlementRules {
        claim_at: TokenCount::new(100),
        claim_margin: ChainSeconds::new(60),
        fee_share_max: f64::INFINITY,
        fee_max: None,
        confirmations: 2,
        reorg_depth: 2,
        grace: GRACE,
        reprice_after: Millis::new(60_000),
        sweep_every: Millis::ZERO,
        complete_at_a_loss: true,
        wei_per_unit: BTreeMap::new(),
        cold_address: None,
        withdraw_above: BTreeMap::new(),
    }
}

/// Where the ledger lives.
pub enum Store {
    File(TempDir),
    Memory(Arc<MemoryLedger>),
}

/// What settlement told the node.
#[derive(Default)]
pub struct News {
    pub included: Mutex<Vec<(JobId, u64)>>,
    pub closed: Mutex<Vec<(JobId, u64)>>,
    pub gas_suffices: Mutex<Option<bool>>,
}

impl Observer for News {
    fn claim_included(&self, job: JobId, tokens: TokenCount, _tx: TxHash) {
        self.included.lock().unwrap().push((job, tokens.get()));
    }

    fn chain_answers(&self, _answers: bool) {}

    fn gas_suffices(&self, suffices: bool) {
        *self.gas_suffices.lock().unwrap() = Some(suffices);
    }

    fn session_closed(&self, job: JobId, lost: Lost) {
        self.closed.lock().unwrap().push((job, lost.total().get()));
    }
}

/// What dies with the process.
struct Process {
    ledger: Arc<dyn Ledger>,
    tracker: Arc<Tracker>,
    sessions: Arc<Sessions>,
    settlement: Settlement,
}

/// Everything.
pub struct World {
    pub devnet: Devnet,
    pub proxy: Proxy,
    /// Further endpoints.
    pub others: Vec<Proxy>,
    pub tap: Arc<Tap>,
    pub clock: Arc<ManualClock>,
    pub engine: Arc<ScriptedEngine>,
    pub news: Arc<News>,
    pub rules: SettlementRules,
    pub session_rules: SessionRules,
    limits: Limits,
    store: Store,
    process: Option<Process>,
    /// Tokens that clients saw, and tokens that were affordable, by job.
    seen: BTreeMap<JobId, (u64, u64)>,
}

/// Words enough for `count` tokens.
pub fn tokens(count: u64) -> Script {
    Script::words(&vec!["word"; usize::try_from(count).unwrap()].join(" "))
}

/// A prompt for a job.
pub fn request(job: JobId, max_tokens: u64) -> PromptRequest {
    PromptRequest {
        job: Some(job),
        credential: Credential::JobNumber,
        chain_id: None,
        model: "scripted".into(),
        input: PromptInput::Complete(Prompt::Raw("go on".into())),
        max_tokens,
        sampling: SamplingInput::default(),
        user_nonce: None,
    }
}

/// How a world reaches its chain, and whose time it lives by.
struct Reach {
    /// Endpoints beside the first.
    others: usize,
    /// The longest wait for an answer of the chain.
    patience: Duration,
    /// By which endpoints rest.
    rests: Arc<dyn Clock>,
    /// The node's.
    clock: Arc<ManualClock>,
}

impl Reach {
    fn of_the_machine() -> Self {
        // Long enough for a slow machine's answers, short enough to wait for.
        let patience = Duration::from_secs(10);
        Self { others: 0, patience, rests: SystemClock::shared(), clock: Arc::default() }
    }
}

fn open_rules() -> SessionRules {
    session_rules(LegacyAccess::On { cap: None })
}

impl World {
    /// On a ledger file.
    pub async fn start() -> Self {
        Self::with(rules(), Store::File(tempfile::tempdir().unwrap())).await
    }

    pub async fn with_rules(rules: SettlementRules) -> Self {
        Self::with(rules, Store::File(tempfile::tempdir().unwrap())).await
    }

    /// On a ledger that can be held and broken.
    pub async fn in_memory() -> Self {
        Self::on(MemoryLedger::new()).await
    }

    pub async fn on(ledger: MemoryLedger) -> Self {
        Self::with(rules(), Store::Memory(Arc::new(ledger))).await
    }

    /// On a ledger file, under the operator's wishes for sessions too.
    pub async fn with_both(rules: SettlementRules, session_rules: SessionRules) -> Self {
        let store = Store::File(tempfile::tempdir().unwrap());
        Self::build((rules, session_rules), store, Reach::of_the_machine()).await
    }

    async fn with(rules: SettlementRules, store: Store) -> Self {
        Self::build((rules, open_rules()), store, Reach::of_the_machine()).await
    }

    /// With another bound for each answer of the chain, further endpoints, and all of them
    /// resting by the test's clock.
    pub async fn patient(rules: SettlementRules, patience: Duration, others: usize) -> Self {
        let clock = Arc::<ManualClock>::default();
        let reach = Reach { others, patience, rests: clock.clone(), clock };
        let store = Store::Memory(Arc::new(MemoryLedger::new()));
        Self::build((rules, open_rules()), store, reach).await
    }

    /// On another version of the contract; the model that its hosts offer is served.
    pub async fn on_variant(variant: Variant) -> Self {
        let devnet = Devnet::start_variant(variant, &[]).await;
        let model_ids = [(model_id(MODEL), "scripted".to_owned())].into();
        let session_rules = SessionRules { model_ids, ..open_rules() };
        let store = Store::File(tempfile::tempdir().unwrap());
        Self::build_on(devnet, (rules(), session_rules), store, Reach::of_the_machine()).await
    }

    async fn build(rules: (SettlementRules, SessionRules), store: Store, reach: Reach) -> Self {
        Self::build_on(Devnet::start().await, rules, store, reach).await
    }

    async fn build_on(
        devnet: Devnet,
        (rules, session_rules): (SettlementRules, SessionRules),
        store: Store,
        Reach { others, patience, rests, clock }: Reach,
    ) -> Self {
        devnet.set_automine(false).await;
        let proxy = Proxy::start(devnet.port);
        let mut settings = devnet.settings(HOST);
        settings.rpc_urls = vec![proxy.url.clone()];
        let others: Vec<Proxy> = (0..others).map(|_| Proxy::start(devnet.port)).collect();
        settings.rpc_urls.extend(others.iter().map(|proxy| proxy.url.clone()));
        settings.request_timeout = patience;
        settings.clock = rests;
        let chain = connect(settings).await.unwrap();
        let limits = chain.limits().await.unwrap();
        let mut world = Self {
            devnet,
            proxy,
            others,
            tap: Tap::new(chain),
            clock,
            engine: ScriptedEngine::new(tokens(1)),
            news: Arc::default(),
            rules,
            session_rules,
            limits,
            store,
            process: None,
            seen: BTreeMap::new(),
        };
        world.boot().await;
        world
    }

    /// The ledger's file.
    pub fn ledger_file(&self) -> PathBuf {
        let Store::File(folder) = &self.store else { panic!("this world's ledger is no file") };
        folder.path().join("ledger.db")
    }

    /// The process dies at once, something happens to its ledger, and another one starts.
    pub async fn restart_after(&mut self, between: impl FnOnce(&Path)) {
        self.process = None;
        between(&self.ledger_file());
        self.boot().await;
    }

    /// The process dies at once, and another one starts on what it left.
    pub async fn restart(&mut self) {
        self.process = None;
        if let Store::Memory(ledger) = &self.store {
            self.store = Store::Memory(Arc::new(ledger.crash()));
        }
        self.boot().await;
    }

    async fn boot(&mut self) {
        let ledger: Arc<dyn Ledger> = match &self.store {
            Store::Memory(ledger) => ledger.clone(),
            Store::File(folder) => {
                let binding = LedgerBinding {
                    chain_id: self.tap.chain_id(),
                    contract: self.tap.marketplace(),
                    wallet: HOST.address(),
                };
                let path = folder.path().join("ledger.db");
                Arc::new(SqliteLedger::open(&path, SqliteOptions::new(binding)).unwrap())
            }
        };
        let tracker = wiring::restore(&*ledger, &*self.clock).await.unwrap();
        let books = || BooksParts {
            ledger: ledger.clone(),
            tracker: tracker.clone(),
            clock: self.clock.clone(),
        };
        let paid = PaidBy::new(self.tap.clone(), HOST.wallet(), self.limits, books()).unwrap();
        let rules = self.session_rules.clone();
        let clock = self.clock.clone();
        let sessions = Arc::new(Sessions::new(self.engine.clone(), Some(paid), rules, clock));
        let settlement = Settlement::new(SettlementParts {
            chain: self.tap.clone(),
            wallet: HOST.wallet(),
            books: books(),
            limits: self.limits,
            rules: self.rules.clone(),
            observer: self.news.clone(),
        });
        self.process = Some(Process { ledger, tracker, sessions, settlement });
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    pub fn sessions(&self) -> Arc<Sessions> {
        self.process().sessions.clone()
    }

    pub fn tracker(&self) -> Arc<Tracker> {
        self.process().tracker.clone()
    }

    pub fn memory(&self) -> Arc<MemoryLedger> {
        match &self.store {
            Store::Memory(ledger) => ledger.clone(),
            Store::File(_) => panic!("this world's ledger is a file"),
        }
    }

    pub fn account(&self, job: JobId) -> Account {
        self.process().tracker.account(job).unwrap()
    }

    pub fn phase(&self, job: JobId) -> Phase {
        self.process().tracker.phase(job).unwrap()
    }

    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.process().ledger.replay(&mut |entry| entries.push(entry)).unwrap();
        entries
    }

    /// A session that buys `tokens`, and that may be claimed for at once.
    pub async fn open(&mut self, tokens: u64) -> JobId {
        let deposit = u128::from(tokens) * 10_000;
        self.open_as(OpenSession { deposit, proof_interval: tokens, ..opening() }).await
    }

    pub async fn open_as(&mut self, open: OpenSession) -> JobId {
        let job = self.devnet.open_session(open).await;
        self.watch(job, open);
        // The rate limit counts from here (docs/spec/contract.md section 2, rule 5).
        self.devnet.increase_time(60).await;
        job
    }

    /// Audits a session that was opened elsewhere.
    pub fn watch(&mut self, job: JobId, open: OpenSession) {
        self.seen.insert(job, (0, u64::try_from(open.deposit / open.price).unwrap()));
    }

    /// The client saw so many tokens more.
    pub fn saw(&mut self, job: JobId, tokens: u32) {
        self.seen.get_mut(&job).unwrap().0 += u64::from(tokens);
    }

    /// A prompt whose answer the client reads to its end.
    pub async fn deliver(&mut self, job: JobId, count: u64) -> TurnEnd {
        self.engine.set_script(tokens(count));
        let reply = self.sessions().begin(request(job, count)).await.unwrap();
        let end = self.read(job, reply).await;
        self.settle_ledger().await;
        end
    }

    /// Sessions of 1000 tokens, with 150 delivered in each.
    pub async fn owing(&mut self, count: usize) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for _ in 0..count {
            let job = self.open(1000).await;
            self.deliver(job, 150).await;
            jobs.push(job);
        }
        jobs
    }

    /// The client reads an answer to its end.
    pub async fn read(&mut self, job: JobId, reply: Reply) -> TurnEnd {
        read_all(&mut self.seen.get_mut(&job).unwrap().0, reply).await
    }

    /// As [`Self::read`], while a pass of settlement waits for a chain that hangs.
    pub async fn read_beside_a_hung_pass(&mut self, job: JobId, reply: Reply) -> TurnEnd {
        let seen = &mut self.seen.get_mut(&job).unwrap().0;
        tokio::select! {
            biased;
            _ = self.process.as_mut().unwrap().settlement.tick() => panic!("nothing hangs"),
            end = read_all(seen, reply) => end,
        }
    }

    /// The client reads an answer until nothing more comes, then the process may die. Returns
    /// what it saw.
    pub async fn read_until_credit_is_used(&mut self, job: JobId) -> u64 {
        self.engine.set_script(tokens(100));
        let mut reply = self.sessions().begin(request(job, 100)).await.unwrap();
        let mut seen = 0;
        loop {
            tokio::select! {
                biased;
                event = reply.next() => {
                    let ReplyEvent::Frame(frame) = event else { panic!("the answer ended") };
                    seen += u64::from(frame.token_count());
                    frame.delivered();
                }
                () = tokio::task::yield_now() => break,
            }
        }
        self.seen.get_mut(&job).unwrap().0 += seen;
        seen
    }

    pub async fn refusal(&self, job: JobId) -> Refusal {
        let refused = self.sessions().begin(request(job, 10)).await;
        refused.map(|_| ()).expect_err("the prompt must be refused")
    }

    /// Everything handed to the ledger is durable: groups are answered in order.
    pub async fn settle_ledger(&self) {
        let flushed: Result<(), LedgerError> = self.process().ledger.append(Vec::new()).await;
        flushed.unwrap();
    }

    /// One pass of settlement, audited.
    pub async fn tick(&mut self) {
        self.try_tick().await.unwrap();
        self.audit().await;
    }

    pub async fn try_tick(&mut self) -> Result<(), SettlementError> {
        self.process.as_mut().unwrap().settlement.tick().await
    }

    /// A pass that ends where the tap lets the process die.
    pub async fn tick_until_death(&mut self) {
        let tap = self.tap.clone();
        let tick = self.process.as_mut().unwrap().settlement.tick();
        tokio::select! {
            biased;
            () = tap.died() => {}
            _ = tick => panic!("settlement lived through its death"),
        }
    }

    pub async fn mine(&self, blocks: u64) {
        self.devnet.mine(blocks).await;
    }

    /// Passes and blocks enough for whatever is due to become final.
    pub async fn settle(&mut self) {
        for _ in 0..6 {
            self.tick().await;
            self.devnet.increase_time(20).await;
        }
        self.tick().await;
    }

    /// Passes, each followed by a block.
    pub async fn passes(&mut self, count: u64) {
        for _ in 0..count {
            self.tick().await;
            self.mine(1).await;
        }
    }

    /// Takes the block of a transaction back, and all that follow; in their place come as many
    /// empty ones, and nobody remembers what was in them.
    pub async fn unmine(&self, tx: TxHash) {
        let receipt = self.devnet.rpc("eth_getTransactionReceipt", json!([tx.to_string()])).await;
        let number = |value: &serde_json::Value| {
            u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap()
        };
        let head = number(&self.devnet.rpc("eth_blockNumber", json!([])).await);
        let depth = head - number(&receipt["blockNumber"]) + 1;
        self.devnet.rpc("anvil_reorg", json!([depth, []])).await;
    }

    /// The wallet's own transactions.
    pub fn wallet_txs(&self) -> Vec<Tx> {
        self.process().tracker.wallet().txs().all().to_vec()
    }

    /// What was read back from the ledger is what is live.
    pub fn replay_is_live(&self) {
        let mut accounts = Accounts::default();
        self.entries().iter().for_each(|entry| accounts.apply(entry).unwrap());
        assert_eq!(accounts.wallet, self.process().tracker.wallet());
        for (job, account) in accounts.jobs {
            assert_eq!(account, self.account(job));
        }
    }

    /// Gives the wallet an order.
    pub fn place(&mut self, order: Order) -> oneshot::Receiver<OrderOutcome> {
        let (reply, outcome) = oneshot::channel();
        self.process.as_mut().unwrap().settlement.place(order, reply);
        outcome
    }

    pub fn advance(&self, span: Millis) {
        self.clock.advance(Duration::from_millis(span.get()));
    }

    pub async fn claims(&self, job: JobId) -> Vec<u64> {
        auditor::claims_on_chain(&self.devnet, job).await
    }

    /// The sentence, from three independent sources.
    pub async fn audit(&self) {
        let ledger = &self.process().ledger;
        let recorded = auditor::recorded(&mut |each| ledger.replay(each).unwrap());
        for (job, (delivered, affordable)) in &self.seen {
            let claims = self.claims(*job).await;
            assert!(claims.iter().all(|tokens| *tokens >= 100), "job {job}: {claims:?}");
            let recorded = recorded.get(job).copied().unwrap_or(0);
            let claimed = claims.iter().sum();
            let (delivered, affordable) = (*delivered, *affordable);
            Sentence { claimed, recorded, delivered, affordable }.check(*job);
        }
    }
}

/// A token dear enough that small deposits pass the contract's minimum.
pub fn opening() -> OpenSession {
    OpenSession { price: 10_000, proof_interval: 100, ..OpenSession::default() }
}

/// Reads an answer to its end and counts.
async fn read_all(seen: &mut u64, mut reply: Reply) -> TurnEnd {
    loop {
        match reply.next().await {
            ReplyEvent::Frame(frame) => {
                *seen += u64::from(frame.token_count());
                frame.delivered();
            }
            ReplyEvent::End(end) => return end.reason,
        }
    }
}

/// Claims of an account: nonce, tokens, state.
pub fn claims_of(account: &Account) -> Vec<(u64, u64, TxState)> {
    account.claims().map(|(claim, tx)| (tx.nonce.get(), claim.tokens.get(), tx.state)).collect()
}
