//! A chain in memory with the marketplace on it, reorgs, a pool, strangers and a bad endpoint.
//! Simulations only.
//!
//! Never moves by itself: blocks, forks and faults come when the simulation says so, and whatever
//! is left to chance follows from its seed. Keeps a log that an auditor can read without trusting
//! the node.

mod blocks;
mod contract;
mod faults;
mod pool;
mod port;
mod rng;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use blocks::{Habits, REORG_DEPTH_MAX};
pub use contract::{Reverted, Sender, SimRules, SimTerms};
pub use faults::Faults;
pub use rng::Rng;

use blocks::{Blocks, Content, Guest, Mined};
use contract::Deed;
use pool::SimTx;

use crate::chain::{ChainJob, JobStatus};
use crate::proof::keccak256;
use crate::units::{Address, JobId, TxHash};

/// The host of every session.
pub const HOST: Address = Address::new([0xaa; 20]);
/// The depositor of every session.
pub const DEPOSITOR: Address = Address::new([0xdd; 20]);

/// The chain.
pub struct SimChain {
    state: Mutex<State>,
}

struct State {
    blocks: Blocks,
    faults: Faults,
    /// Of the endpoint; the blocks have their own.
    rng: Rng,
    next_job: u64,
    foreign_count: u64,
    /// Questions that were answered with a lie the last time.
    lied: BTreeSet<String>,
    /// What the node was last told of the head and of each job, where it was the truth.
    told: Told,
    refusals: Vec<Refusal>,
    sent: Vec<Sent>,
    /// Whether the endpoint ever told anything but the present truth.
    misled: bool,
    trace: Trace,
}

/// What the node last heard.
#[derive(Debug, Default)]
struct Told {
    /// Time of the head; `None` where an old one was told.
    head_time: Option<u64>,
    jobs: BTreeMap<JobId, ChainJob>,
}

/// A claim that the contract refused although the node had been told the truth: a fault of the
/// node's planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The job.
    pub job: JobId,
    /// What was claimed.
    pub tokens: u64,
    /// The rule.
    pub rule: Reverted,
}

/// A transaction that the node sent, whatever became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its hash.
    pub hash: TxHash,
    /// The nonce it was signed with.
    pub nonce: u64,
}

/// A claim that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// What the contract added.
    pub tokens: u64,
    /// The block's height.
    pub block: usize,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// By whom.
    pub by: Sender,
    /// The block's height.
    pub block: usize,
}

/// Where another process with the host's key puts its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignPlace {
    /// The next nonce that is not mined: ours loses it.
    Mined,
    /// The first nonce that no waiting transaction holds.
    Behind,
}

/// A fingerprint of everything that was asked and answered.
#[derive(Debug, Clone, Default)]
struct Trace {
    hash: u64,
    is_printed: bool,
}

impl Trace {
    fn note(&mut self, line: &str) {
        // FNV-1a, 64 bits.
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.is_printed {
            tracing::debug!(target: "sim", "{line}");
        }
    }
}

impl State {
    /// Notes claims of the newest block that broke a rule with no fork and no wrong answer to
    /// explain it.
    fn judge_newest(&mut self) {
        if self.misled || self.blocks.forks() > 0 {
            return;
        }
        let mut refused = Vec::new();
        for content in &self.blocks.newest().contents {
            if let Content::Ours(Mined { tx, outcome: Err(rule), .. }) = content
                && let Deed::Claim { job, tokens, .. } = tx.deed
                && rule.is_planning()
            {
                refused.push(Refusal { job, tokens, rule: *rule });
            }
        }
        self.refusals.extend(refused);
    }

    /// Notes the newest blocks.
    fn note_blocks(&mut self, count: usize) {
        let Self { blocks, trace, .. } = self;
        let from = blocks.chain.len().saturating_sub(count);
        for block in blocks.chain.iter().skip(from) {
            trace.note(&block.words());
        }
    }
}

impl SimChain {
    /// A chain without sessions.
    #[must_use]
    pub fn new(rules: SimRules, balance: u128, seed: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let state = State {
            blocks: Blocks::new(rules, balance, rng.fork()),
            faults: Faults::default(),
            rng,
            next_job: 1,
            foreign_count: 0,
            lied: BTreeSet::new(),
            told: Told::default(),
            refusals: Vec::new(),
            sent: Vec::new(),
            misled: false,
            trace: Trace::default(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Opens a session in the next block; its number.
    ///
    /// # Panics
    /// Never: numbers count from 1.
    #[must_use]
    pub fn open(&self, terms: SimTerms) -> Option<JobId> {
        let mut state = self.lock();
        let id = JobId::new(state.next_job)?;
        state.next_job += 1;
        let deed = Deed::Open(Box::new(terms.job(id)));
        state.blocks.guests.push(Guest { sender: Sender::Depositor, deed });
        Some(id)
    }

    /// A block `seconds` later.
    pub fn mine(&self, seconds: u64) {
        let mut state = self.lock();
        state.blocks.mine(seconds);
        state.note_blocks(1);
        state.judge_newest();
    }

    /// The newest blocks give way to others: at most `depth`, and none that is final. Returns how
    /// many did.
    pub fn reorg(&self, depth: u64) -> u64 {
        let mut state = self.lock();
        // What was true is so no longer.
        state.told = Told::default();
        let height = state.blocks.height();
        let lost = state.blocks.reorg(depth);
        let kept = height.saturating_sub(usize::try_from(lost).unwrap_or(0));
        let new = state.blocks.height().saturating_sub(kept);
        state.note_blocks(new);
        lost
    }

    /// Somebody completes a session in the next block, where the contract lets them.
    pub fn complete(&self, job: JobId, sender: Sender) {
        self.lock().blocks.guests.push(Guest { sender, deed: Deed::Complete(job) });
    }

    /// A stranger ends a session by timeout in the next block, where the contract lets them.
    pub fn time_out(&self, job: JobId) {
        let guest = Guest { sender: Sender::Stranger, deed: Deed::Timeout(job) };
        self.lock().blocks.guests.push(guest);
    }

    /// A stranger registers the first word of a claim of ours that waits. False where none waits.
    pub fn burn(&self) -> bool {
        let mut state = self.lock();
        let words = state.blocks.pool.txs().filter_map(|tx| match &tx.deed {
            Deed::Claim { proof, .. } => contract::first_word(proof),
            Deed::Open(_)
            | Deed::Complete(_)
            | Deed::Timeout(_)
            | Deed::Burn(_)
            | Deed::Nothing => None,
        });
        let Some(word) = words.into_iter().next() else { return false };
        state.blocks.guests.push(Guest { sender: Sender::Stranger, deed: Deed::Burn(word) });
        true
    }

    /// Another process with the host's key sends a transaction.
    pub fn foreign(&self, place: ForeignPlace) {
        let mut state = self.lock();
        state.foreign_count += 1;
        let mut tag = *b"foreign transaction 00000000";
        tag[20..].copy_from_slice(&state.foreign_count.to_be_bytes());
        let hash = TxHash::new(*keccak256(&tag).bytes());
        let mined = state.blocks.newest().nonce;
        let nonce = match place {
            ForeignPlace::Mined => mined,
            ForeignPlace::Behind => state.blocks.pool.next_free(mined),
        };
        let (fee_max, tip_max) = (state.blocks.base_fee.saturating_mul(4), 3);
        let tx = SimTx {
            hash,
            nonce,
            fee_max,
            tip_max,
            gas_limit: 21_000,
            deed: Deed::Nothing,
            is_foreign: true,
        };
        if place == ForeignPlace::Mined {
            state.blocks.pool.drop_nonce(nonce);
        }
        state.blocks.offer(tx);
    }

    /// The endpoint's behaviour from now on.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.lock();
        state.misled |= faults.lag_max > 0 || faults.lies > 0;
        state.faults = faults;
    }

    /// Its present behaviour.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.lock().faults
    }

    /// How the chain treats what waits, from now on.
    pub fn set_habits(&self, habits: Habits) {
        self.lock().blocks.habits = habits;
    }

    /// How many claims may still run out of gas.
    pub fn set_reverts(&self, count: u32) {
        self.lock().blocks.reverts_left = count;
    }

    /// Base fee of the blocks to come, wei per gas.
    pub fn set_base_fee(&self, base_fee: u128) {
        let mut state = self.lock();
        state.blocks.base_fee = base_fee;
        let market = state.blocks.market();
        state.blocks.pool.purge(market);
    }

    /// Gives or takes native currency of the host's, wei. Holds from the newest block on.
    pub fn set_balance(&self, balance: u128) {
        if let Some(block) = self.lock().blocks.chain.last_mut() {
            block.balance = balance;
        }
    }

    /// Everything that waits for a later block is forgotten.
    pub fn forget_late(&self) {
        self.lock().blocks.late.clear();
    }

    /// Writes every answer to the log as well, for looking at one run.
    pub fn print_trace(&self) {
        self.lock().trace.is_printed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an auditor may read: the log and the state, as they are, never as the endpoint tells them.
impl SimChain {
    /// Claims that count now, oldest first.
    #[must_use]
    pub fn claims(&self) -> Vec<Accepted> {
        let state = self.lock();
        let mut claims = Vec::new();
        for (block, height) in state.blocks.chain.iter().zip(0..) {
            for content in &block.contents {
                if let Content::Ours(Mined { tx, outcome: Ok(()), .. }) = content
                    && let Deed::Claim { job, tokens, .. } = tx.deed
                {
                    claims.push(Accepted { job, tokens, block: height });
                }
            }
        }
        claims
    }

    /// How a session ended, where it did.
    #[must_use]
    pub fn ending(&self, job: JobId) -> Option<Ending> {
        let state = self.lock();
        for (block, height) in state.blocks.chain.iter().zip(0..) {
            for content in &block.contents {
                let (deed, by) = match content {
                    Content::Ours(Mined { tx, outcome: Ok(()), .. }) => (&tx.deed, Sender::Host),
                    Content::Guest(guest, Ok(())) => (&guest.deed, guest.sender),
                    Content::Ours(_) | Content::Guest(..) => continue,
                };
                if matches!(deed, Deed::Complete(id) | Deed::Timeout(id) if *id == job) {
                    return Some(Ending { by, block: height });
                }
            }
        }
        None
    }

    /// Whether a session runs.
    #[must_use]
    pub fn is_active(&self, job: JobId) -> bool {
        let state = self.lock();
        let known = state.blocks.newest().contract.jobs.get(&job);
        known.is_some_and(|known| known.status == JobStatus::Active)
    }

    /// Height and time of the newest block.
    #[must_use]
    pub fn tip(&self) -> (usize, u64) {
        let state = self.lock();
        (state.blocks.height(), state.blocks.newest().time)
    }

    /// The host's next nonce, and how many of the node's transactions wait in the pool or
    /// elsewhere. What another process left lying there is not the node's.
    #[must_use]
    pub fn line(&self) -> (u64, usize) {
        let state = self.lock();
        let blocks = &state.blocks;
        let late = blocks.late.iter().map(|(_, tx)| tx);
        let ours = blocks.pool.txs().chain(late).filter(|tx| !tx.is_foreign);
        (blocks.newest().nonce, ours.count())
    }

    /// Claims refused without an excuse, since the last call.
    #[must_use]
    pub fn take_refusals(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.lock().refusals)
    }

    /// What the node sent since the last call.
    #[must_use]
    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.lock().sent)
    }

    /// Fingerprint of everything that was asked and answered so far, and of the newest block.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut state = self.lock();
        let newest = state.blocks.newest();
        let line = format!("{} {} {}", newest.hash, newest.time, newest.nonce);
        state.trace.note(&line);
        state.trace.hash
    }
}
