//! The session service: admits prompts, runs them, meters what was delivered.
//!
//! Never waits for the chain while a request runs (a job whose reading is older than two seconds is
//! read again before anything starts; a silent chain is waited for briefly and then done without),
//! never counts what was not delivered. Front-ends know this module and nothing below it. Relies
//! on the ledger for durability and on settlement to refresh what is known of each job.

mod admission;
mod auth;
mod header;
mod live;
mod notice;
mod pace;
mod refusal;
mod reply;
mod report;
mod request;
mod tracker;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub use auth::{Challenge, IssuedToken};
pub use live::{CREDIT_TOKENS, Grace, Phase, Snapshot};
pub use notice::Notice;
pub use pace::{Beyond, ExposureRule};
pub use refusal::Refusal;
pub use reply::{Frame, Reply, ReplyEnd, ReplyEvent, ReplyInfo, Usage};
pub use report::{ClaimReport, SessionReport};
pub use request::{Credential, PromptInput, PromptRequest, SamplingInput};
pub use tracker::Tracker;
pub(crate) use turn::Books;

pub use crate::billing::{TurnEnd, TxState};
pub use crate::engine::{EngineLoad, Logprob, ModelCard, Prompt, TokenLogprobs, Turn};

use crate::billing::Fact;
use crate::chain::{Chain, ChainJob, Limits, PrepareError, Wallet};
use crate::engine::Engine;
use crate::proof;
use crate::units::{Address, ClaimSeq, Hash32, JobId, Millis, Signature, TokenCount};

/// What plain clients, who send only a job's number, may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyAccess {
    /// They are refused.
    Off,
    /// They are served up to this many tokens a session, `None` for the whole deposit.
    On {
        /// The cap.
        cap: Option<TokenCount>,
    },
}

/// The operator's wishes for sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRules {
    /// Lowest price accepted, in the contract's unit; 0 accepts all.
    pub price_min: u128,
    /// Payment tokens that are accepted besides the native currency, with the lowest price of
    /// each in the contract's unit.
    pub payment_tokens: BTreeMap<Address, u128>,
    /// How much of a job may be unclaimed.
    pub exposure: ExposureRule,
    /// Catalog names of the models served here by the registry's ids. A session opened for one is
    /// served with that one, a session opened for another is refused.
    pub model_ids: BTreeMap<Hash32, String>,
    /// Names clients use, to catalog names.
    pub aliases: BTreeMap<String, String>,
    /// Plain access.
    pub legacy: LegacyAccess,
    /// Oldest reading of a job that new prompts are admitted on while the chain is silent.
    pub snapshot_age_max: Millis,
    /// Life of a challenge.
    pub challenge_lifetime: Millis,
    /// Life of a token.
    pub token_lifetime: Millis,
    /// Longest wait for the chain when a job is seen for the first time.
    pub chain_wait_max: Duration,
}

impl SessionRules {
    /// The catalog's name for what a client calls a model.
    fn name_of<'a>(&'a self, asked: &'a str) -> &'a str {
        self.aliases.get(asked).map_or(asked, String::as_str)
    }

    /// Whether the session was opened for the model of this catalog name, or for any.
    fn is_opened_for(&self, job: &ChainJob, name: &str) -> bool {
        let bound = job.model.and_then(|model| self.model_ids.get(&model));
        bound.is_none_or(|bound| bound == name)
    }
}

/// The chain, as sessions need it; absent in free mode.
#[derive(Clone)]
pub struct PaidBy {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// The host's key.
    pub wallet: Arc<dyn Wallet>,
    /// The contract's limits, read at start.
    pub limits: Limits,
    /// The ledger, tracker and clock.
    pub(crate) books: Books,
    /// What the host gives to seeds.
    nonces: proof::HostNonces,
}

impl PaidBy {
    /// Payment through this chain and ledger.
    ///
    /// # Errors
    /// [`PrepareError`] where the key refuses to sign for the host's nonces.
    pub fn new(
        chain: Arc<dyn Chain>,
        wallet: Arc<dyn Wallet>,
        limits: Limits,
        books: BooksParts,
    ) -> Result<Self, PrepareError> {
        let BooksParts { ledger, tracker, clock } = books;
        let books = Books { ledger, tracker, clock };
        let digest = proof::secret_digest(chain.chain_id(), chain.marketplace());
        let nonces = proof::HostNonces::new(&wallet.sign_digest(digest)?);
        Ok(Self { chain, wallet, limits, books, nonces })
    }
}

impl PaidBy {
    /// Where vouchers of this node's jobs count.
    pub(crate) fn voucher_domain(&self) -> proof::VoucherDomain {
        let (chain_id, marketplace) = (self.chain.chain_id(), self.chain.marketplace());
        proof::VoucherDomain { chain_id, marketplace }
    }
}

/// Where counts are kept.
pub struct BooksParts {
    /// The ledger.
    pub ledger: Arc<dyn crate::ledger::Ledger>,
    /// The live view.
    pub tracker: Arc<Tracker>,
    /// Time.
    pub clock: Arc<dyn crate::clock::Clock>,
}

/// The service.
pub struct Sessions {
    engine: Arc<dyn Engine>,
    paid_by: Option<PaidBy>,
    rules: SessionRules,
    clock: Arc<dyn crate::clock::Clock>,
    auth: auth::AuthDesk,
    /// Held while a turn is numbered and handed to the ledger; never across an await.
    turn_order: std::sync::Mutex<()>,
    is_closed: std::sync::atomic::AtomicBool,
    pauses: std::sync::Mutex<BTreeSet<PauseReason>>,
}

/// Why no new paid work is taken. Running answers go on, and so do claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PauseReason {
    /// The operator said so.
    ByHand,
    /// The wallet cannot pay the gas of a claim and a completion.
    Gas,
}

impl PauseReason {
    /// In words, for refusals and reports.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::ByHand => "the operator has paused this node",
            Self::Gas => "the wallet cannot pay the gas of a claim and a completion",
        }
    }
}

impl Sessions {
    /// A service; `paid_by` is `None` in explicit free mode only.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        paid_by: Option<PaidBy>,
        rules: SessionRules,
        clock: Arc<dyn crate::clock::Clock>,
    ) -> Self {
        let auth = auth::AuthDesk::default();
        let is_closed = std::sync::atomic::AtomicBool::new(false);
        let turn_order = std::sync::Mutex::new(());
        let pauses = std::sync::Mutex::default();
        Self { engine, paid_by, rules, clock, auth, turn_order, is_closed, pauses }
    }

    /// The models that are served.
    #[must_use]
    pub fn models(&self) -> Vec<ModelCard> {
        self.engine.catalog()
    }

    /// How busy the engine is.
    #[must_use]
    pub fn load(&self) -> EngineLoad {
        self.engine.load()
    }

    /// The chain id this node works on; `None` in free mode.
    #[must_use]
    pub fn chain_id(&self) -> Option<u64> {
        self.paid_by.as_ref().map(|paid| paid.chain.chain_id())
    }

    /// The host's address; `None` in free mode.
    #[must_use]
    pub fn host(&self) -> Option<Address> {
        self.paid_by.as_ref().map(|paid| paid.wallet.address())
    }

    /// Reasons why it serves badly or not at all; empty when all is well.
    #[must_use]
    pub fn issues(&self) -> Vec<&'static str> {
        let mut issues = Vec::new();
        if self.is_closed() {
            issues.push("shutting down");
        }
        if !self.engine.is_healthy() {
            issues.push("the engine has stopped");
        }
        if let Some(paid) = &self.paid_by
            && !paid.books.ledger.is_healthy()
        {
            issues.push("the ledger cannot be written");
        }
        issues
    }

    /// Takes no new work for this reason, or takes it again. Whether that changes anything.
    pub fn set_paused(&self, reason: PauseReason, is_paused: bool) -> bool {
        let mut pauses = self.lock_pauses();
        if is_paused { pauses.insert(reason) } else { pauses.remove(&reason) }
    }

    /// Why no new work is taken; empty where it is.
    #[must_use]
    pub fn pauses(&self) -> Vec<PauseReason> {
        self.lock_pauses().iter().copied().collect()
    }

    fn lock_pauses(&self) -> std::sync::MutexGuard<'_, BTreeSet<PauseReason>> {
        self.pauses.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Refuses new prompts from now on; running ones go on.
    pub fn close(&self) {
        self.is_closed.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether new prompts are refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(std::sync::atomic::Ordering::Acquire)
    }

    /// A challenge for the depositor of `job` to sign.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] in free mode, [`Refusal::Busy`] when too many are open, and what
    /// looking the job up can give.
    pub async fn challenge(&self, job: JobId) -> Result<Challenge, Refusal> {
        let paid = self.paid()?;
        self.known_job(paid, job).await?;
        let scope = auth::ChallengeScope {
            job,
            chain_id: paid.chain.chain_id(),
            marketplace: paid.chain.marketplace(),
        };
        let lifetime = self.rules.challenge_lifetime;
        self.auth.challenge(scope, self.clock.unix(), lifetime).ok_or(Refusal::Busy)
    }

    /// A token for the signer of a challenge, who must be the depositor of `job`.
    ///
    /// From then on plain access to this job is over, whatever the node's mode.
    ///
    /// # Errors
    /// [`Refusal::Unauthorized`] for a wrong, used or late challenge and for any other signer.
    pub async fn issue_token(
        &self,
        job: JobId,
        challenge: &str,
        signature: &Signature,
    ) -> Result<IssuedToken, Refusal> {
        let paid = self.paid()?;
        let known = self.known_job(paid, job).await?;
        let now = self.clock.unix();
        if !self.auth.redeem(job, challenge, now) {
            return Err(Refusal::Unauthorized("the challenge is unknown, used or expired"));
        }
        let signer = paid.wallet.recover_message(challenge.as_bytes(), signature);
        if signer != Some(known.depositor) {
            return Err(Refusal::Unauthorized("the signature is not the depositor's"));
        }
        let issued = self.auth.issue(job, now, self.rules.token_lifetime).ok_or(Refusal::Busy)?;
        let account = paid.books.tracker.account(job);
        if !account.is_some_and(|account| account.is_owner_proven()) {
            let facts = self.opening_facts(paid, &known, Some(Fact::OwnerProven));
            paid.books.append(job, facts).await.map_err(|error| {
                tracing::error!(%job, %error, "owner not recorded");
                Refusal::Unavailable("the ledger cannot be written")
            })?;
        }
        Ok(issued)
    }

    /// The job whose session token this is, while it is good: for clients that have one place
    /// for a secret and none for a job's number.
    #[must_use]
    pub fn job_of_token(&self, token: &str) -> Option<JobId> {
        self.auth.job_of(token, self.clock.unix())
    }

    /// A WebSocket connection that speaks for `job`. Dropping it marks a dropped connection.
    #[must_use]
    pub fn attach(&self, job: JobId) -> Attachment {
        let books = self.paid_by.as_ref().map(|paid| paid.books.clone());
        let mut attachment = Attachment { books, job, counted: false, clean: false };
        attachment.count();
        attachment
    }

    /// What the owner of a session may see of it.
    ///
    /// # Errors
    /// As for a prompt: unknown job, another host's, not the owner.
    pub async fn report(
        &self,
        job: JobId,
        credential: &Credential,
    ) -> Result<SessionReport, Refusal> {
        let paid = self.paid()?;
        let known = self.known_job(paid, job).await?;
        self.check_owner(paid, job, credential)?;
        Ok(report::build(&paid.books.tracker, &paid.limits, &known))
    }

    /// The blob of a claim: prompts and answers of the session, so for its owner alone, also where
    /// plain clients are served.
    ///
    /// # Errors
    /// As [`Self::report`]; [`Refusal::Unauthorized`] without a session token,
    /// [`Refusal::ProofNotFound`].
    pub async fn proof(
        &self,
        job: JobId,
        seq: ClaimSeq,
        credential: &Credential,
    ) -> Result<Vec<u8>, Refusal> {
        let paid = self.paid()?;
        self.known_job(paid, job).await?;
        if matches!(credential, Credential::JobNumber) {
            return Err(Refusal::Unauthorized("proofs hold prompts: a session token is required"));
        }
        self.check_owner(paid, job, credential)?;
        let entries = paid.books.ledger.job_entries(job).await.map_err(|error| {
            tracing::error!(%job, %error, "entries not read");
            Refusal::Unavailable("the ledger cannot be read")
        })?;
        let domain = paid.voucher_domain();
        let build = move || proof::Blob::of_claim(domain, job, seq, &entries).map(|it| it.encode());
        // About a microsecond a token: too long for a thread that carries streams.
        let built = tokio::task::spawn_blocking(build).await;
        built.map_err(|_| Refusal::Internal)?.ok_or(Refusal::ProofNotFound { job, seq })
    }

    fn paid(&self) -> Result<&PaidBy, Refusal> {
        self.paid_by.as_ref().ok_or(Refusal::Unavailable("this node serves without a chain"))
    }
}

/// A WebSocket connection's hold on a job's session.
pub struct Attachment {
    books: Option<Books>,
    job: JobId,
    /// Whether the tracker counts it: a job that never had a prompt is not tracked yet.
    counted: bool,
    clean: bool,
}

impl Attachment {
    /// The job.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// Counts the connection, where that was not possible when it was made: the job's first
    /// prompt makes the job known.
    pub fn count(&mut self) {
        if let Some(books) = &self.books
            && !self.counted
        {
            self.counted = books.tracker.connect(self.job);
        }
    }

    /// The client closed with code 1000: the short grace period applies.
    pub fn close_clean(mut self) {
        self.clean = true;
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(books) = &self.books
            && self.counted
        {
            books.tracker.disconnect(self.job, self.clean, books.clock.now());
        }
    }
}
