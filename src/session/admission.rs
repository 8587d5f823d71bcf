//! Admission: everything that is checked before the engine is asked for a token.
//!
//! Never lets a request through on a guess: an unknown job, another host's, a closed one, a spent
//! deposit and an unproven caller each end here, with nothing generated and nothing charged.

use std::sync::{Arc, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::header::{self, Draft};
use super::live::{CREDIT_TOKENS, Conversation, Snapshot};
use super::pace::{Beyond, Pace};
use super::reply::{Reply, ReplyInfo, ReplyParts, Usage};
use super::tracker::{Hold, Reservation, ReserveError, ReserveLimits};
use super::turn::{PaidTurn, TurnMeter};
use super::{
    Credential, LegacyAccess, PaidBy, PromptInput, PromptRequest, Refusal, SamplingInput, Sessions,
};
use crate::billing::{Fact, TurnNonces};
use crate::chain::{ChainJob, JobStatus};
use crate::clock::within;
use crate::engine::{Generation, GenerationSpec, ModelCard, Prompt, Sampling, StartError};
use crate::proof;
use crate::units::{Address, Hash32, JobId, Millis, TokenCount};

/// A reading of a job that is this fresh is not read again.
const SNAPSHOT_FRESH: Millis = Millis::new(2_000);

/// A request that passed every check that needs no reservation.
struct Checked {
    model: ModelCard,
    prompt_ids: Vec<u32>,
    wanted: TokenCount,
    stop: Vec<String>,
    ignore_eos: bool,
}

impl Sessions {
    /// Admits a prompt and starts its generation.
    ///
    /// # Errors
    /// Every [`Refusal`]; nothing was generated or charged then.
    pub async fn begin(&self, request: PromptRequest) -> Result<Reply, Refusal> {
        if self.is_closed() {
            return Err(Refusal::Unavailable("the node is shutting down"));
        }
        if let Some(reason) = self.pauses().first() {
            return Err(Refusal::Paused(*reason));
        }
        self.check_chain_id(&request)?;
        super::request::check(&request.sampling, request.max_tokens)?;
        match (&self.paid_by, request.job) {
            (Some(paid), Some(job)) => self.begin_paid(paid, job, &request).await,
            (Some(_), None) => {
                Err(Refusal::invalid("job_id", "a session's number is required to pay for tokens"))
            }
            (None, _) => self.begin_free(&request).await,
        }
    }

    async fn begin_free(&self, request: &PromptRequest) -> Result<Reply, Refusal> {
        let checked = self.check_prompt(request, &[]).await?;
        // Nobody charges for it, so that nobody has to show how it was drawn.
        let seed = request.sampling.seed.map_or(Hash32::ZERO, proof::seed_from_client);
        let sampling = header::sampling(&request.sampling, seed);
        let hold = Hold { tokens: checked.wanted, is_short: false };
        let info = reply_info(None, &checked);
        // Whatever is served without pay is the operator's own.
        let generation = self.start(&checked, Hash32::ZERO, sampling, hold)?;
        let credit = Arc::new(Semaphore::new(CREDIT_TOKENS));
        let meter = TurnMeter::free();
        let ended = CancellationToken::new();
        let (hold, pace) = (None, None);
        Ok(Reply::new(ReplyParts { info, generation, meter, credit, hold, ended, pace }))
    }

    async fn begin_paid(
        &self,
        paid: &PaidBy,
        job: JobId,
        request: &PromptRequest,
    ) -> Result<Reply, Refusal> {
        let known = self.known_job(paid, job).await?;
        self.check_owner(paid, job, &request.credential)?;
        self.check_terms(&known)?;
        let is_conversation = matches!(request.input, PromptInput::Continue(_));
        let history = match is_conversation {
            true => paid.books.tracker.conversation(job, self.rules.name_of(&request.model)),
            false => Vec::new(),
        };
        let checked = self.check_prompt(request, &history).await?;
        if !self.rules.is_opened_for(&known, &checked.model.name) {
            return Err(Refusal::OtherModel(job));
        }
        self.open_account(paid, &known).await?;
        self.run_paid(paid, &known, PaidRun { request, checked, is_conversation })
    }

    fn run_paid(
        &self,
        paid: &PaidBy,
        known: &ChainJob,
        run: PaidRun<'_>,
    ) -> Result<Reply, Refusal> {
        let begun = {
            // A turn gets its number and its place in the ledger in one go: an account refuses
            // turns that come out of order, also when it is rebuilt at the next start.
            let _in_order = self.turn_order.lock().unwrap_or_else(PoisonError::into_inner);
            self.begin_turn(paid, known, &run)?
        };
        let BegunTurn { meter, generation, hold, credit, ended } = begun;
        let info = reply_info(Some(known.id), &run.checked);
        let exposure = self.rules.exposure;
        let pace = (exposure.beyond == Beyond::Slow)
            .then(|| Pace::new(paid.books.clone(), known.id, exposure.tokens_max))
            .map(Box::new);
        let hold = Some(hold);
        Ok(Reply::new(ReplyParts { info, generation, meter, credit, hold, ended, pace }))
    }

    /// Reserves, and hands the turn's start to the ledger. From then on the reservation is owned
    /// by the turn's meter: whatever happens gives it back.
    fn begin_turn(
        &self,
        paid: &PaidBy,
        known: &ChainJob,
        run: &PaidRun<'_>,
    ) -> Result<BegunTurn, Refusal> {
        let PaidRun { request, checked, is_conversation } = run;
        let job = known.id;
        let reserved = self.reserve(paid, known, checked, &request.credential)?;
        let Reservation { hold, turn, credit, ended } = reserved;
        let draft = Draft {
            turn,
            nonces: TurnNonces { host: paid.nonces.link(job, turn), user: request.user_nonce },
            model: &checked.model,
            prompt_ids: &checked.prompt_ids,
            asked: &request.sampling,
            max_tokens: checked.wanted,
        };
        let (header, sampling) = (draft.header(), draft.sampling());
        // The engine's place first: a request that finds none leaves nothing in the ledger.
        let started = self.start(checked, owner(known.depositor), sampling, hold);
        let generation = started.inspect_err(|_| {
            paid.books.tracker.turn_over(job, hold.tokens, TokenCount::ZERO, self.clock.now());
        })?;
        let started = Fact::TurnStarted(header);
        let mut paid_turn = PaidTurn::new(paid.books.clone(), job, turn, hold.tokens);
        if *is_conversation {
            let (model, ids) = (checked.model.name.clone(), checked.prompt_ids.clone());
            paid_turn.conversation = Some(Conversation { model, ids });
        }
        if let Err(error) = paid.books.submit(job, vec![started], TokenCount::ZERO, || {}) {
            tracing::error!(%job, %error, "turn not recorded");
            paid.books.tracker.turn_over(job, hold.tokens, TokenCount::ZERO, self.clock.now());
            return Err(Refusal::Unavailable("the ledger cannot be written"));
        }
        let meter = TurnMeter::paid(paid_turn);
        Ok(BegunTurn { meter, generation, hold, credit, ended })
    }

    fn reserve(
        &self,
        paid: &PaidBy,
        known: &ChainJob,
        checked: &Checked,
        credential: &Credential,
    ) -> Result<Reservation, Refusal> {
        let job = known.id;
        let affordable = paid.limits.price_unit.affordable(known.deposit, known.price);
        let cap = match (credential, self.rules.legacy) {
            (Credential::JobNumber, LegacyAccess::On { cap }) => cap,
            (Credential::JobNumber, LegacyAccess::Off) | (Credential::Token(_), _) => None,
        };
        let exposure = self.rules.exposure;
        let exposure_max = (exposure.beyond == Beyond::Refuse).then_some(exposure.tokens_max);
        let limits = ReserveLimits { affordable, cap, exposure_max };
        let reserved = paid.books.tracker.reserve(job, checked.wanted, limits);
        reserved.map_err(|error| match error {
            ReserveError::Closed => Refusal::SessionClosed(job),
            ReserveError::Halted => Refusal::Halted(job),
            ReserveError::Spent => Refusal::PaymentRequired { job, tokens_left: TokenCount::ZERO },
            ReserveError::Exposed => Refusal::Exposed(job),
            ReserveError::Unfunded => Refusal::Unfunded(job),
            ReserveError::Capped => {
                Refusal::Unauthorized("the cap for plain clients is reached; get a session token")
            }
        })
    }

    /// Whether the session's currency, price and model are what is served here.
    fn check_terms(&self, known: &ChainJob) -> Result<(), Refusal> {
        let (job, token) = (known.id, known.payment_token);
        let price_min = match self.rules.payment_tokens.get(&token) {
            Some(price_min) => *price_min,
            None if token == Address::ZERO => self.rules.price_min,
            None => return Err(Refusal::TokenNotAccepted { job, token }),
        };
        if known.price.get() < price_min {
            return Err(Refusal::PriceTooLow { job, price_min });
        }
        if known.model.is_some_and(|model| !self.rules.model_ids.contains_key(&model)) {
            return Err(Refusal::OtherModel(job));
        }
        // Nothing could be claimed, also of a session that names no model where others do.
        if known.rate_per_second == 0 {
            return Err(Refusal::RateUnset(job));
        }
        Ok(())
    }

    fn check_chain_id(&self, request: &PromptRequest) -> Result<(), Refusal> {
        match (request.chain_id, self.chain_id()) {
            (Some(asked), Some(ours)) if asked != ours => Err(Refusal::OtherChain { asked, ours }),
            (Some(_) | None, _) => Ok(()),
        }
    }

    async fn check_prompt(
        &self,
        request: &PromptRequest,
        history: &[u32],
    ) -> Result<Checked, Refusal> {
        let model = self.resolve(&request.model)?;
        let prompt = match &request.input {
            PromptInput::Complete(prompt) => prompt.clone(),
            PromptInput::Continue(content) => {
                Prompt::Next { history_ids: history.to_vec(), content: content.clone() }
            }
        };
        super::request::check_not_empty(&prompt)?;
        let rendered = self.render(&model.name, prompt).await;
        let prompt_ids = rendered.map_err(|error| refuse_start(error, self, &request.model))?;
        let prompt_tokens = u32::try_from(prompt_ids.len()).unwrap_or(u32::MAX);
        if prompt_tokens >= model.context_length {
            let context_window = model.context_length;
            return Err(Refusal::ContextLength { prompt_tokens, context_window });
        }
        let wanted = TokenCount::new(request.max_tokens);
        let SamplingInput { stop, ignore_eos, .. } = &request.sampling;
        Ok(Checked { model, prompt_ids, wanted, stop: stop.clone(), ignore_eos: *ignore_eos })
    }

    /// The prompt as ids. A long one is rendered on a thread of its own.
    async fn render(&self, model: &str, prompt: Prompt) -> Result<Vec<u32>, StartError> {
        if !super::request::is_long(&prompt) {
            return self.engine.render(model, &prompt);
        }
        let (engine, model) = (Arc::clone(&self.engine), model.to_owned());
        let rendered = tokio::task::spawn_blocking(move || engine.render(&model, &prompt)).await;
        rendered.unwrap_or(Err(StartError::Unavailable))
    }

    fn resolve(&self, asked: &str) -> Result<ModelCard, Refusal> {
        let name = self.rules.name_of(asked);
        let catalog = self.engine.catalog();
        let found = catalog.iter().find(|card| card.name == name).cloned();
        found.ok_or_else(|| Refusal::ModelNotFound {
            model: asked.to_owned(),
            available: catalog.into_iter().map(|card| card.name).collect(),
        })
    }

    fn start(
        &self,
        checked: &Checked,
        owner: Hash32,
        sampling: Sampling,
        hold: Hold,
    ) -> Result<Generation, Refusal> {
        let spec = GenerationSpec {
            model: checked.model.name.clone(),
            prompt_ids: checked.prompt_ids.clone(),
            max_tokens: u32::try_from(hold.tokens.get()).unwrap_or(u32::MAX),
            sampling,
            stop: checked.stop.clone(),
            ignore_eos: checked.ignore_eos,
            owner,
        };
        self.engine.start(spec).map_err(|error| refuse_start(error, self, &checked.model.name))
    }

    /// The job's state: the cached reading where it is fresh, else a new one, else a cached one
    /// that is not too old. Other hosts' and closed jobs are refused here.
    pub(super) async fn known_job(&self, paid: &PaidBy, job: JobId) -> Result<ChainJob, Refusal> {
        let cached = paid.books.tracker.snapshot(job);
        // What settlement follows is known by events: it is good for as long as the chain may be
        // silent. Without settlement only a fresh reading is.
        let (stands_since, age_max) = match paid.books.tracker.chain_seen_at() {
            Some(seen_at) => (seen_at, self.rules.snapshot_age_max),
            None => (Millis::ZERO, SNAPSHOT_FRESH),
        };
        let age = |seen: &Snapshot| self.clock.now().saturating_sub(seen.read_at.max(stands_since));
        let known = match cached {
            Some(seen) if age(&seen) <= age_max => seen.job,
            cached => self.read_job(paid, job, cached).await?,
        };
        if known.host != paid.wallet.address() {
            return Err(Refusal::OtherHost(job));
        }
        Ok(known)
    }

    async fn read_job(
        &self,
        paid: &PaidBy,
        job: JobId,
        cached: Option<Snapshot>,
    ) -> Result<ChainJob, Refusal> {
        let answer = within(&*self.clock, self.rules.chain_wait_max, paid.chain.job(job)).await;
        let error = match answer {
            Some(Ok(Some(known))) => {
                let read_at = self.clock.now();
                paid.books.tracker.observe(Snapshot { job: known.clone(), read_at });
                return Ok(known);
            }
            Some(Ok(None)) => return Err(Refusal::SessionNotFound(job)),
            Some(Err(error)) => error.to_string(),
            None => "no answer in time".to_owned(),
        };
        tracing::warn!(%job, error, "job not read from the chain");
        let seen_at = paid.books.tracker.chain_seen_at().unwrap_or_default();
        let usable = cached.filter(|seen| {
            let stands_since = seen.read_at.max(seen_at);
            self.clock.now().saturating_sub(stands_since) <= self.rules.snapshot_age_max
        });
        usable.map(|seen| seen.job).ok_or(Refusal::Unavailable("the chain does not answer"))
    }

    /// The job's account is in the ledger before its first token.
    async fn open_account(&self, paid: &PaidBy, known: &ChainJob) -> Result<(), Refusal> {
        let job = known.id;
        match known.status {
            JobStatus::Active => {}
            JobStatus::Completed | JobStatus::TimedOut | JobStatus::Ended(_) => {
                return Err(Refusal::SessionClosed(job));
            }
        }
        let facts = self.opening_facts(paid, known, None);
        if facts.is_empty() {
            return Ok(());
        }
        paid.books.append(job, facts).await.map_err(|error| {
            tracing::error!(%job, %error, "job not recorded");
            Refusal::Unavailable("the ledger cannot be written")
        })?;
        let read_at = self.clock.now();
        paid.books.tracker.observe(Snapshot { job: known.clone(), read_at });
        Ok(())
    }

    /// What the ledger must know before `then`: the job's terms, the first time.
    pub(super) fn opening_facts(
        &self,
        paid: &PaidBy,
        known: &ChainJob,
        then: Option<Fact>,
    ) -> Vec<Fact> {
        let account = paid.books.tracker.account(known.id);
        let is_open = account.is_some_and(|account| account.terms().is_some());
        let opened = (!is_open).then_some(Fact::JobOpened {
            depositor: known.depositor,
            deposit: known.deposit,
            price: known.price,
            payment_token: known.payment_token,
            start_time: known.start_time,
            tokens_before: known.tokens_used,
        });
        opened.into_iter().chain(then).collect()
    }

    pub(super) fn check_owner(
        &self,
        paid: &PaidBy,
        job: JobId,
        credential: &Credential,
    ) -> Result<(), Refusal> {
        use secrecy::ExposeSecret;
        match credential {
            Credential::Token(token) => {
                if self.auth.admits(job, token.expose_secret(), self.clock.unix()) {
                    return Ok(());
                }
                Err(Refusal::Unauthorized("the session token is not good for this job"))
            }
            Credential::JobNumber => {
                let account = paid.books.tracker.account(job);
                if account.is_some_and(|account| account.is_owner_proven()) {
                    return Err(Refusal::Unauthorized("this session needs its session token"));
                }
                match self.rules.legacy {
                    LegacyAccess::On { .. } => Ok(()),
                    LegacyAccess::Off => Err(Refusal::Unauthorized("a session token is required")),
                }
            }
        }
    }
}

/// A paid request on its last steps.
struct PaidRun<'a> {
    request: &'a PromptRequest,
    checked: Checked,
    is_conversation: bool,
}

/// A turn whose start is with the ledger.
struct BegunTurn {
    meter: Arc<TurnMeter>,
    generation: Generation,
    hold: Hold,
    credit: Arc<Semaphore>,
    ended: CancellationToken,
}

fn reply_info(job: Option<JobId>, checked: &Checked) -> ReplyInfo {
    let usage = Usage {
        prompt_tokens: u32::try_from(checked.prompt_ids.len()).unwrap_or(u32::MAX),
        cached_tokens: 0,
        completion_tokens: 0,
        context_window: checked.model.context_length,
    };
    ReplyInfo { job, model: checked.model.name.clone(), usage }
}

/// All sessions of a depositor are one owner's, and no two depositors' are.
fn owner(depositor: Address) -> Hash32 {
    let bytes = depositor.bytes();
    Hash32::new(std::array::from_fn(|i| i.checked_sub(12).map_or(0, |i| bytes[i])))
}

fn refuse_start(error: StartError, sessions: &Sessions, asked: &str) -> Refusal {
    match error {
        StartError::UnknownModel => Refusal::ModelNotFound {
            model: asked.to_owned(),
            available: sessions.models().into_iter().map(|card| card.name).collect(),
        },
        StartError::ContextLength { prompt_tokens, context_length } => {
            Refusal::ContextLength { prompt_tokens, context_window: context_length }
        }
        StartError::Busy => Refusal::Busy,
        StartError::Invalid(why) | StartError::Memory(why) => Refusal::invalid("request", why),
        StartError::Setting { setting, reason } => {
            Refusal::invalid(setting, format!("{setting} {reason}"))
        }
        StartError::Unavailable => Refusal::Unavailable("the engine does not take work"),
    }
}
