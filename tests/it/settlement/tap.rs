//! A hand between settlement and the real chain: crashes it, deafens it, shows it old answers.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tally::chain::evm::EvmChain;
use tally::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Fees, Head, Inclusion,
    Limits, PrepareError, SignedTx, TxSpec, WalletState,
};
use tally::units::{Address, Amount, BlockNumber, JobId, TxHash, WalletNonce};
use tokio::sync::Notify;

/// Where the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// The signed bytes are durable and were not sent.
    BeforeBroadcast,
    /// They were sent, and nobody heard the answer.
    AfterBroadcast,
}

/// What an endpoint that stopped following the chain goes on saying.
#[derive(Debug, Clone)]
pub struct Old {
    head: Head,
    wallet: WalletState,
    job: Option<ChainJob>,
}

/// How an endpoint says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Silence {
    /// It answers.
    #[default]
    None,
    /// It refuses connections.
    Down,
    /// It takes requests and never answers.
    Hung,
    /// It answers reads and loses what is broadcast, before anyone else sees it.
    LosesBroadcasts,
}

#[derive(Default)]
struct State {
    death: Option<Death>,
    /// The moment to go back to.
    kept: Option<Old>,
    old: Option<Old>,
    silence: Silence,
    sent: Vec<TxHash>,
    tokens_shown: Option<u64>,
    hidden: Option<JobId>,
    /// Jobs whose claims get no answer to a dry run.
    untold: Vec<JobId>,
    /// The next answers about the wallet's mined nonce, and how many they are.
    nonce_shown: (u64, u32),
    /// Questions to the chain until the process dies; 0 for no death.
    questions_left: u32,
    /// Blocks by which the next answer about the head is too high.
    head_ahead_once: u64,
    is_deaf: bool,
    heard: Vec<(u64, u64)>,
}

/// The chain as settlement sees it.
pub struct Tap {
    real: EvmChain,
    state: Mutex<State>,
    died: Notify,
}

impl Tap {
    pub fn new(real: EvmChain) -> Arc<Self> {
        Arc::new(Self { real, state: Mutex::default(), died: Notify::new() })
    }

    /// The next broadcast is the last thing that happens.
    pub fn die(&self, death: Death) {
        self.state.lock().unwrap().death = Some(death);
    }

    /// Completes when it has happened.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    pub fn set(&self, silence: Silence) {
        self.state.lock().unwrap().silence = silence;
    }

    /// Keeps this moment, to go back to.
    pub async fn keep(&self, job: JobId) {
        let old = Old {
            head: self.real.head().await.unwrap(),
            wallet: self.real.wallet().await.unwrap(),
            job: self.real.job(job).await.unwrap(),
        };
        self.state.lock().unwrap().kept = Some(old);
    }

    /// From now on the endpoint lives in the moment kept, and knows no transaction at all.
    pub fn go_back(&self) {
        let mut state = self.state.lock().unwrap();
        state.old = state.kept.clone();
    }

    /// It follows the chain again.
    pub fn catch_up(&self) {
        self.state.lock().unwrap().old = None;
    }

    /// From now on the contract seems to count this many tokens used.
    pub fn show_tokens_used(&self, tokens: Option<u64>) {
        self.state.lock().unwrap().tokens_shown = tokens;
    }

    /// From now on the contract seems not to know this job.
    pub fn hide(&self, job: Option<JobId>) {
        self.state.lock().unwrap().hidden = job;
    }

    /// From now on dry runs of claims for these jobs get no answer.
    pub fn say_nothing_of(&self, jobs: &[JobId]) {
        self.state.lock().unwrap().untold = jobs.to_vec();
    }

    /// The next `answers` say that the wallet's next nonce is this one.
    pub fn show_nonce_for(&self, nonce: u64, answers: u32) {
        self.state.lock().unwrap().nonce_shown = (nonce, answers);
    }

    /// The question of this number, from now on, is the last thing that happens.
    pub fn die_at_question(&self, number: u32) {
        self.state.lock().unwrap().questions_left = number;
    }

    fn is_last_question(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let left = state.questions_left;
        state.questions_left = left.saturating_sub(1);
        left == 1
    }

    /// The next answer about the head is this many blocks too high.
    pub fn show_head_ahead_once(&self, blocks: u64) {
        self.state.lock().unwrap().head_ahead_once = blocks;
    }

    /// Whether events are not to be had, while all else is.
    pub fn set_deaf(&self, is_deaf: bool) {
        self.state.lock().unwrap().is_deaf = is_deaf;
    }

    /// Block ranges whose events were read, oldest first.
    pub fn heard(&self) -> Vec<(u64, u64)> {
        self.state.lock().unwrap().heard.clone()
    }

    /// Hashes of all that was broadcast, repeats included.
    pub fn sent(&self) -> Vec<TxHash> {
        self.state.lock().unwrap().sent.clone()
    }

    async fn reach(&self) -> Result<(), ChainError> {
        if self.is_last_question() {
            self.end().await;
        }
        let silence = self.state.lock().unwrap().silence;
        match silence {
            Silence::None | Silence::LosesBroadcasts => Ok(()),
            Silence::Down => Err(ChainError::Unreachable("down for the test".into())),
            Silence::Hung => std::future::pending().await,
        }
    }

    fn old(&self) -> Option<Old> {
        self.state.lock().unwrap().old.clone()
    }

    async fn end(&self) -> ! {
        self.died.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Chain for Tap {
    fn chain_id(&self) -> u64 {
        self.real.chain_id()
    }

    fn marketplace(&self) -> Address {
        self.real.marketplace()
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.reach().await?;
        if let Some(old) = self.old() {
            return Ok(old.head);
        }
        let head = self.real.head().await?;
        let ahead = std::mem::take(&mut self.state.lock().unwrap().head_ahead_once);
        Ok(Head { number: head.number.saturating_add(BlockNumber::new(ahead)), ..head })
    }

    async fn limits(&self) -> Result<Limits, ChainError> {
        self.reach().await?;
        self.real.limits().await
    }

    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError> {
        self.reach().await?;
        if self.state.lock().unwrap().hidden == Some(job) {
            return Ok(None);
        }
        let known = match self.old() {
            Some(old) => old.job,
            None => self.real.job(job).await?,
        };
        let shown = self.state.lock().unwrap().tokens_shown;
        Ok(known.map(|mut known| {
            let tokens = shown.map(tally::units::TokenCount::new);
            known.tokens_used = tokens.unwrap_or(known.tokens_used);
            known
        }))
    }

    async fn events(
        &self,
        from: BlockNumber,
        to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        self.reach().await?;
        if self.state.lock().unwrap().is_deaf {
            return Err(ChainError::Unreachable("deaf for the test".into()));
        }
        let events = self.real.events(from, to).await?;
        self.state.lock().unwrap().heard.push((from.get(), to.get()));
        Ok(events)
    }

    async fn wallet(&self) -> Result<WalletState, ChainError> {
        self.reach().await?;
        if let Some(old) = self.old() {
            return Ok(old.wallet);
        }
        let wallet = self.real.wallet().await?;
        let (shown, answers) = &mut self.state.lock().unwrap().nonce_shown;
        if *answers == 0 {
            return Ok(wallet);
        }
        *answers -= 1;
        Ok(WalletState { nonce_mined: WalletNonce::new(*shown), ..wallet })
    }

    async fn fees(&self) -> Result<Fees, ChainError> {
        self.reach().await?;
        self.real.fees().await
    }

    async fn dry_run(&self, call: &Call) -> Result<DryRun, ChainError> {
        self.reach().await?;
        let untold = self.state.lock().unwrap().untold.clone();
        if let Call::Claim { job, .. } = call
            && untold.contains(job)
        {
            return Err(ChainError::Unreachable("no word of it in the test".into()));
        }
        self.real.dry_run(call).await
    }

    fn prepare(&self, call: &Call, spec: TxSpec) -> Result<SignedTx, PrepareError> {
        self.real.prepare(call, spec)
    }

    async fn broadcast(&self, tx: &SignedTx) -> Broadcast {
        let death = self.state.lock().unwrap().death.take();
        if death == Some(Death::BeforeBroadcast) {
            self.end().await;
        }
        self.state.lock().unwrap().sent.push(tx.hash);
        let is_lost = self.state.lock().unwrap().silence == Silence::LosesBroadcasts;
        if is_lost || self.reach().await.is_err() {
            return Broadcast::Unknown("lost for the test".into());
        }
        let answer = self.real.broadcast(tx).await;
        if death == Some(Death::AfterBroadcast) {
            self.end().await;
        }
        answer
    }

    async fn inclusion(&self, tx: TxHash) -> Result<Inclusion, ChainError> {
        self.reach().await?;
        match self.old() {
            Some(_) => Ok(Inclusion::Absent),
            None => self.real.inclusion(tx).await,
        }
    }

    async fn earnings(&self, token: Address) -> Result<Amount, ChainError> {
        self.reach().await?;
        self.real.earnings(token).await
    }

    fn withdrawal(&self, token: Address, amount: Amount) -> Call {
        self.real.withdrawal(token, amount)
    }

    fn transfer(&self, token: Address, to: Address, amount: Amount) -> Call {
        self.real.transfer(token, to, amount)
    }

    async fn funds(&self, token: Address) -> Result<Amount, ChainError> {
        self.reach().await?;
        self.real.funds(token).await
    }
}
