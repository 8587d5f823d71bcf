//! Several endpoints of one chain, asked as one.
//!
//! Never mixes: a read is carried out on one endpoint from its first request to its last, and what
//! two endpoints said is only ever compared (`quorum`), never put together. Never sends anything
//! by itself. A read waits for one request timeout in all, not for one per endpoint. Relies on
//! `health` for whom to ask and on `rpc` for noting silence. What can be read is in `reads`.

mod reads;
mod report;

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use metrics::counter;

use super::quorum::{self, Answers};
use super::rpc::Rpc;
use super::{ConnectError, EvmSettings};
use crate::chain::ChainError;
use crate::clock::Clock;
use crate::telemetry::CHAIN_DISAGREEMENTS;
use crate::units::Millis;

pub(super) use reads::At;
pub use report::EndpointReport;

/// Parts of the request timeout after which a slow endpoint is no longer waited for alone.
const PATIENCE_PARTS: u32 = 5;

/// One endpoint's answer to one read.
pub(super) struct Vote<T> {
    from: usize,
    answer: Result<T, ChainError>,
}

/// What is asked of whom.
struct Plan {
    /// Endpoints, best first.
    order: Vec<usize>,
    /// How many of them at once.
    wave: usize,
    /// When to give up.
    until: Millis,
}

/// What is remembered between reads.
#[derive(Default)]
struct Notes {
    probed_at: Option<Millis>,
    /// Reads about which endpoints disagree at present: said once, not with every attempt.
    disputed: BTreeSet<&'static str>,
}

/// The endpoints.
pub(super) struct Pool {
    endpoints: Vec<Rpc>,
    chain_id: u64,
    quorum: usize,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    notes: Mutex<Notes>,
}

impl Pool {
    /// Endpoints of the settings, in their order. No network.
    ///
    /// # Errors
    /// [`ConnectError::Settings`]: no endpoint, one twice, an unusable URL, an impossible quorum.
    pub(super) fn new(settings: &EvmSettings) -> Result<Self, ConnectError> {
        let fail = |words: String| Err(ConnectError::Settings(words));
        let mut endpoints: Vec<Rpc> = Vec::new();
        for url in &settings.rpc_urls {
            let rpc = Rpc::new(url, settings.request_timeout, Arc::clone(&settings.clock))
                .map_err(ConnectError::Settings)?;
            if endpoints.iter().any(|other| other.is_same(&rpc)) {
                return fail(format!("RPC URL: {} is there twice", rpc.shown()));
            }
            let alike = endpoints.iter().filter(|other| other.is_neighbour(&rpc)).count();
            endpoints.push(if alike == 0 { rpc } else { rpc.numbered(alike.saturating_add(1)) });
        }
        let count = endpoints.len();
        if count == 0 {
            return fail("no RPC URL is configured".into());
        }
        let quorum = settings.quorum.unwrap_or_else(|| default_quorum(count));
        if quorum == 0 || quorum > count {
            return fail(format!("a quorum of {quorum} of {count} RPC endpoints is impossible"));
        }
        Ok(Self {
            endpoints,
            chain_id: settings.chain_id,
            quorum,
            timeout: settings.request_timeout,
            clock: Arc::clone(&settings.clock),
            notes: Mutex::default(),
        })
    }

    /// Asks every endpoint for its chain. One that does not answer is left for later.
    ///
    /// # Errors
    /// [`ConnectError::WrongChainId`] naming the first endpoint of another chain, and
    /// [`ConnectError::Chain`] where none answers.
    pub(super) async fn check_chain_ids(&self) -> Result<(), ConnectError> {
        let asked = join_all(self.endpoints.iter().map(|rpc| rpc.chain_id())).await;
        let mut silence = None;
        let mut is_answered = false;
        for (rpc, answer) in self.endpoints.iter().zip(asked) {
            match answer {
                Ok(found) if found == self.chain_id => {
                    rpc.health().verified();
                    is_answered = true;
                }
                Ok(found) => {
                    let endpoint = rpc.shown().to_owned();
                    return Err(ConnectError::WrongChainId {
                        endpoint,
                        want: self.chain_id,
                        found,
                    });
                }
                Err(error) => silence = silence.or(Some(error)),
            }
        }
        match silence {
            Some(error) if !is_answered => Err(error.into()),
            Some(error) => {
                tracing::warn!(%error, "an RPC endpoint does not answer; the others are used");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Asks until `enough` of them answered, all did, or the time is over. Slow ones are noted.
    async fn ask<'a, T, F, Fut>(
        &'a self,
        plan: Plan,
        op: F,
        enough: impl Fn(&Answers<'_, T>) -> bool,
    ) -> Vec<Vote<T>>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let begin = |(from, rpc): (usize, &'a Rpc)| {
            let work = op(rpc);
            async move { Vote { from, answer: self.on(rpc, work).await } }
        };
        let named = plan.order.iter().filter_map(|at| Some((*at, self.endpoints.get(*at)?)));
        let mut waiting: VecDeque<(usize, &'a Rpc)> = named.collect();
        let first: Vec<_> = waiting.drain(..plan.wave.min(waiting.len())).collect();
        let mut asked: Vec<usize> = first.iter().map(|(from, _)| *from).collect();
        let mut running: FuturesUnordered<_> = first.into_iter().map(&begin).collect();
        let mut votes: Vec<Vote<T>> = Vec::new();
        let span = Duration::from_millis(plan.until.saturating_sub(self.clock.now()).get());
        let mut end = self.clock.sleep(span);
        let mut patience = self.clock.sleep(self.patience());
        loop {
            let more = tokio::select! {
                biased;
                vote = running.next() => match vote {
                    None => return votes,
                    Some(vote) => {
                        let is_failure = vote.answer.is_err();
                        votes.push(vote);
                        let open = running.len().saturating_add(waiting.len());
                        let all = given(&votes);
                        let answers = Answers { open, ..self.answers(&all) };
                        if enough(&answers) {
                            return votes;
                        }
                        // A failure calls for one more; answers that do not suffice, for all.
                        if is_failure { 1 } else if running.is_empty() { waiting.len() } else { 0 }
                    }
                },
                () = &mut patience => {
                    if enough(&self.answers(&given(&votes))) {
                        break;
                    }
                    patience = self.clock.sleep(self.patience());
                    waiting.len()
                }
                () = &mut end => break,
            };
            for next in waiting.drain(..more.min(waiting.len())) {
                asked.push(next.0);
                running.push(begin(next));
            }
        }
        self.note_slow(asked, &votes);
        votes
    }

    /// `work` on an endpoint that is known to serve our chain.
    async fn on<T>(
        &self,
        rpc: &Rpc,
        work: impl Future<Output = Result<T, ChainError>>,
    ) -> Result<T, ChainError> {
        // A single endpoint was checked at the start; there is no other to protect from it.
        let needs_check = self.endpoints.len() > 1 && rpc.health().needs_check();
        if needs_check {
            let found = rpc.chain_id().await?;
            if found != self.chain_id {
                let (endpoint, want) = (rpc.shown(), self.chain_id);
                tracing::error!(endpoint, found, want, "RPC endpoint serves another chain");
                rpc.health().wrong_chain(self.clock.now(), found);
                let words = format!("{endpoint} serves chain {found}, not {want}");
                return Err(ChainError::Unreachable(words));
            }
            rpc.health().verified();
        }
        work.await
    }

    /// Whoever was asked and had not answered when the others had, or when the time was over.
    fn note_slow<T>(&self, asked: Vec<usize>, votes: &[Vote<T>]) {
        let is_open = |at: &usize| votes.iter().all(|vote| vote.from != *at);
        for at in asked.into_iter().filter(is_open) {
            let Some(rpc) = self.endpoints.get(at) else { continue };
            let words = format!("{}: no answer in time", rpc.shown());
            rpc.health().silent(self.clock.now(), &words);
        }
    }

    /// The verdict over the votes that were collected.
    fn conclude<T, V>(
        &self,
        read: &'static str,
        votes: Vec<Vote<T>>,
        verdict: &impl Fn(&Answers<'_, T>) -> Option<V>,
        is_contrary: impl Fn(&V, &T) -> bool,
    ) -> Result<V, ChainError> {
        let all = given(&votes);
        match verdict(&self.answers(&all)) {
            Some(value) => {
                let mut is_disputed = false;
                for vote in &votes {
                    let Ok(answer) = &vote.answer else { continue };
                    let Some(rpc) = self.endpoints.get(vote.from) else { continue };
                    if is_contrary(&value, answer) {
                        is_disputed = true;
                        rpc.health().contrary(self.clock.now(), read);
                        self.dispute(read, rpc.shown());
                    }
                }
                if !is_disputed {
                    self.settle(read);
                }
                Ok(value)
            }
            None if all.len() < self.quorum || all.len() < 2 => Err(self.failure(votes)),
            None => Err(self.disagreement(read, &votes)),
        }
    }

    fn disagreement<T>(&self, read: &'static str, votes: &[Vote<T>]) -> ChainError {
        let told = votes.iter().filter(|vote| vote.answer.is_ok());
        let hosts: Vec<&str> =
            told.filter_map(|vote| Some(self.endpoints.get(vote.from)?.shown())).collect();
        let hosts = hosts.join(", ");
        self.dispute(read, &hosts);
        ChainError::Unreachable(format!("endpoints disagree about {read}: {hosts}"))
    }

    fn dispute(&self, read: &'static str, hosts: &str) {
        counter!(CHAIN_DISAGREEMENTS, "read" => read).increment(1);
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.disputed.insert(read) {
            tracing::warn!(read, hosts, "RPC endpoints disagree");
        }
    }

    fn settle(&self, read: &'static str) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).disputed.remove(read);
    }

    /// Why there is no answer: the only endpoint's own words, or everybody's.
    fn failure<T>(&self, votes: Vec<Vote<T>>) -> ChainError {
        let answered = votes.iter().filter(|vote| vote.answer.is_ok()).count();
        let mut errors: Vec<ChainError> =
            votes.into_iter().filter_map(|vote| vote.answer.err()).collect();
        let is_odd = |error: &ChainError| matches!(error, ChainError::Unexpected(_));
        if answered == 0 && (errors.iter().any(is_odd) || self.endpoints.len() == 1) {
            errors.sort_by_key(|error| !is_odd(error));
            if !errors.is_empty() {
                return errors.swap_remove(0);
            }
        }
        let words = |error: ChainError| match error {
            ChainError::Unreachable(words) | ChainError::Unexpected(words) => words,
        };
        let mut told: Vec<String> = errors.into_iter().map(words).collect();
        told.extend(self.resting());
        let (needed, count) = (self.quorum, self.endpoints.len());
        let told = told.join("; ");
        ChainError::Unreachable(format!("{answered} of {count} answered, {needed} needed: {told}"))
    }

    /// What is wrong with the endpoints that must not be asked now.
    fn resting(&self) -> Vec<String> {
        let now = self.clock.now();
        let barred = self.endpoints.iter().filter_map(|rpc| {
            let health = rpc.health();
            let is_barred = health.standing(now) == super::health::Standing::Barred;
            is_barred.then(|| format!("{} rests: {}", rpc.shown(), health.words().unwrap_or("")))
        });
        barred.collect()
    }

    fn answers<'a, T>(&self, given: &'a [&'a T]) -> Answers<'a, T> {
        Answers { given, open: 0, quorum: self.quorum }
    }

    fn plan(&self, wave: usize) -> Plan {
        let now = self.clock.now();
        let standings: Vec<_> =
            self.endpoints.iter().map(|rpc| rpc.health().standing(now)).collect();
        let order = quorum::order(&standings, self.quorum);
        Plan { order, wave, until: self.after(self.timeout) }
    }

    /// How many are asked at once where agreement is wanted.
    fn wave(&self) -> usize {
        self.quorum.max(2)
    }

    fn patience(&self) -> Duration {
        self.timeout.checked_div(PATIENCE_PARTS).unwrap_or(self.timeout)
    }

    fn after(&self, span: Duration) -> Millis {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.clock.now().saturating_add(Millis::new(span))
    }

    /// Endpoints with which nothing is wrong.
    pub(super) fn usable(&self) -> usize {
        let is_well = |rpc: &&Rpc| rpc.health().words().is_none();
        self.endpoints.iter().filter(is_well).count()
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.endpoints.len()
    }
}

/// The answers among the votes.
fn given<T>(votes: &[Vote<T>]) -> Vec<&T> {
    votes.iter().filter_map(|vote| vote.answer.as_ref().ok()).collect()
}

/// Votes that decide where the operator named none: two of three or more, so that no single
/// endpoint can lie; one of two, so that one dead endpoint does not stop settlement.
pub(super) const fn default_quorum(count: usize) -> usize {
    if count >= 3 { 2 } else { 1 }
}
