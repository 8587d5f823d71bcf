//! A job's account: the fold of its ledger entries.
//!
//! Never edited otherwise: replaying the ledger gives the account that was live. A fact that does
//! not fit the account is a fault, reported and never repaired in silence.

use super::tx::{Tx, TxState};
use super::txs::Txs;
use super::{ClaimBody, Entry, Fact, Purpose, Subject};
use crate::units::{
    Address, Amount, BlockNumber, ChainTime, ClaimSeq, JobId, PricePerToken, TokenCount, TurnNo,
};

/// The terms a job was first admitted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Who pays.
    pub depositor: Address,
    /// The locked amount.
    pub deposit: Amount,
    /// The agreed price.
    pub price: PricePerToken,
    /// Currency; zero is native.
    pub payment_token: Address,
    /// When the session began, chain clock.
    pub start_time: ChainTime,
    /// `tokensUsed` on chain at that moment.
    pub tokens_before: TokenCount,
}

/// An entry that does not fit its account: a fault of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("account {subject}: {what}")]
pub struct AccountFault {
    /// Whose account.
    pub subject: Subject,
    /// What does not fit.
    pub what: String,
}

/// Tokens that were recorded and can never be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Too few for a claim when the session ended.
    pub unclaimable: TokenCount,
    /// A claim could have carried them in time.
    pub forfeited: TokenCount,
}

impl Lost {
    /// Both together.
    #[must_use]
    pub fn total(self) -> TokenCount {
        self.unclaimable.saturating_add(self.forfeited)
    }

    /// What `left` unpaid tokens are when a session ends: a tail under the contract's minimum
    /// could not have been claimed, more could.
    #[must_use]
    pub fn at_end(left: TokenCount, claim_min: TokenCount) -> Self {
        if left < claim_min {
            Self { unclaimable: left, forfeited: TokenCount::ZERO }
        } else {
            Self { unclaimable: TokenCount::ZERO, forfeited: left }
        }
    }
}

/// A job's account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    job: JobId,
    terms: Option<Terms>,
    owner_proven: bool,
    recorded: TokenCount,
    turns_open: Vec<(TurnNo, u32)>,
    turn_next: u32,
    txs: Txs,
    lost: Option<Lost>,
    closed_in: Option<BlockNumber>,
    closings: u32,
    halted: Option<String>,
}

impl Account {
    /// The empty account of a job.
    #[must_use]
    pub fn new(job: JobId) -> Self {
        Self {
            job,
            terms: None,
            owner_proven: false,
            recorded: TokenCount::ZERO,
            turns_open: Vec::new(),
            turn_next: 0,
            txs: Txs::default(),
            lost: None,
            closed_in: None,
            closings: 0,
            halted: None,
        }
    }

    /// The job.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// The terms, once the job was admitted.
    #[must_use]
    pub const fn terms(&self) -> Option<&Terms> {
        self.terms.as_ref()
    }

    /// Whether the depositor ever proved who they are.
    #[must_use]
    pub const fn is_owner_proven(&self) -> bool {
        self.owner_proven
    }

    /// Tokens recorded as delivered.
    #[must_use]
    pub const fn recorded(&self) -> TokenCount {
        self.recorded
    }

    /// The number the next turn gets.
    #[must_use]
    pub const fn turn_next(&self) -> TurnNo {
        TurnNo::new(self.turn_next)
    }

    /// Turns that have not ended: after a crash they are ended by the next start.
    pub fn turns_open(&self) -> impl Iterator<Item = TurnNo> + '_ {
        self.turns_open.iter().map(|(turn, _)| *turn)
    }

    /// Transactions of the job, oldest first.
    #[must_use]
    pub fn txs(&self) -> &[Tx] {
        self.txs.all()
    }

    /// Transactions whose fate is not final.
    pub fn txs_open(&self) -> impl Iterator<Item = &Tx> {
        self.txs.open()
    }

    /// Claims, oldest first, rejected ones included.
    pub fn claims(&self) -> impl Iterator<Item = (&ClaimBody, &Tx)> {
        self.txs().iter().filter_map(|tx| tx.claim().map(|claim| (claim, tx)))
    }

    /// Tokens in claims that are not rejected.
    #[must_use]
    pub fn claimed(&self) -> TokenCount {
        self.txs.claims().claimed
    }

    /// Tokens in claims that are in a block, final or not.
    #[must_use]
    pub fn included(&self) -> TokenCount {
        self.txs.claims().included
    }

    /// Tokens in claims that are final.
    #[must_use]
    pub fn confirmed(&self) -> TokenCount {
        self.txs.claims().confirmed
    }

    /// Recorded tokens that no claim carries yet.
    #[must_use]
    pub fn unclaimed(&self) -> TokenCount {
        self.recorded.saturating_sub(self.claimed())
    }

    /// Recorded tokens that no final claim carries.
    #[must_use]
    pub fn unpaid(&self) -> TokenCount {
        self.recorded.saturating_sub(self.confirmed())
    }

    /// What the contract's `tokensUsed` has to be: what was claimed before this ledger, and our
    /// claims that are in a block.
    #[must_use]
    pub fn tokens_used(&self) -> TokenCount {
        let before = self.terms.map_or(TokenCount::ZERO, |terms| terms.tokens_before);
        before.saturating_add(self.included())
    }

    /// The number the next claim gets: one past the last that was ever prepared.
    #[must_use]
    pub fn seq_next(&self) -> ClaimSeq {
        let last = self.claims().map(|(claim, _)| claim.seq.get()).max().unwrap_or(0);
        ClaimSeq::new(last.saturating_add(1))
    }

    /// Claims rejected since the last one that made it: a sign that a human must look.
    #[must_use]
    pub fn rejections_in_a_row(&self) -> usize {
        let claims = self.txs().iter().rev().filter(|tx| tx.claim().is_some());
        claims.take_while(|tx| matches!(tx.state, TxState::Rejected(_))).count()
    }

    /// The completion, unless it was rejected.
    #[must_use]
    pub fn completion(&self) -> Option<&Tx> {
        self.txs()
            .iter()
            .rev()
            .find(|tx| tx.purpose == Purpose::Complete && !matches!(tx.state, TxState::Rejected(_)))
    }

    /// Tokens that can never be claimed, once the session is over on chain.
    #[must_use]
    pub const fn lost(&self) -> Option<Lost> {
        self.lost
    }

    /// Whether the session is over on chain and nothing more is done for it.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether what a closed account lost is what was recorded and not paid. A reorg may change
    /// what was paid after the account was closed.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        self.lost.is_none_or(|lost| lost.total() == self.unpaid())
    }

    /// The chain's newest block when the account was last closed.
    #[must_use]
    pub const fn closed_in(&self) -> Option<BlockNumber> {
        self.closed_in
    }

    /// How many times the session was seen to end.
    #[must_use]
    pub const fn closings(&self) -> u32 {
        self.closings
    }

    /// Why a human must look, where one must.
    #[must_use]
    pub fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }

    /// Adds one fact.
    ///
    /// # Errors
    /// [`AccountFault`] when the fact does not fit; the account is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), AccountFault> {
        match &entry.fact {
            Fact::JobOpened {
                depositor,
                deposit,
                price,
                payment_token,
                start_time,
                tokens_before,
            } => {
                self.terms = Some(Terms {
                    depositor: *depositor,
                    deposit: *deposit,
                    price: *price,
                    payment_token: *payment_token,
                    start_time: *start_time,
                    tokens_before: *tokens_before,
                });
            }
            Fact::OwnerProven => self.owner_proven = true,
            Fact::TurnStarted(header) => self.start_turn(header.turn)?,
            Fact::Delivered { turn, position, ids, .. } => {
                self.deliver(*turn, *position, ids.len())?
            }
            Fact::TurnEnded { turn, .. } => self.turns_open.retain(|(open, _)| open != turn),
            Fact::JobClosed { closing, block, unclaimable, forfeited } => {
                self.closed_in = Some(*block);
                self.closings = closing.saturating_add(1);
                self.lost = Some(Lost { unclaimable: *unclaimable, forfeited: *forfeited });
            }
            Fact::JobReopened { .. } => self.reopen()?,
            Fact::JobHalted { why } => self.halted = Some(why.clone()),
            Fact::TxPrepared { purpose, .. } => {
                self.check_purpose(purpose)?;
                self.apply_to_txs(&entry.fact)?;
            }
            Fact::TxRepriced { .. }
            | Fact::TxCancelled { .. }
            | Fact::TxIncluded { .. }
            | Fact::TxReorged { .. }
            | Fact::TxConfirmed { .. }
            | Fact::TxRejected { .. } => self.apply_to_txs(&entry.fact)?,
        }
        Ok(())
    }

    fn apply_to_txs(&mut self, fact: &Fact) -> Result<(), AccountFault> {
        self.txs.apply(fact).map(drop).map_err(|what| self.fault(what))
    }

    fn reopen(&mut self) -> Result<(), AccountFault> {
        if self.lost.take().is_none() {
            return Err(self.fault("reopened without having been closed".into()));
        }
        Ok(())
    }

    fn start_turn(&mut self, turn: TurnNo) -> Result<(), AccountFault> {
        if turn.get() < self.turn_next {
            return Err(self.fault(format!("turn {turn} started twice")));
        }
        self.turn_next = turn.get().saturating_add(1);
        self.turns_open.push((turn, 0));
        Ok(())
    }

    fn deliver(&mut self, turn: TurnNo, position: u32, count: usize) -> Result<(), AccountFault> {
        let added = u32::try_from(count).unwrap_or(u32::MAX);
        let Some(open) = self.turns_open.iter_mut().find(|(open, _)| *open == turn) else {
            return Err(self.fault(format!("tokens of turn {turn}, which is not open")));
        };
        if open.1 != position {
            let wanted = open.1;
            return Err(self.fault(format!("turn {turn}: tokens at {position}, not {wanted}")));
        }
        open.1 = open.1.saturating_add(added);
        self.recorded = self.recorded.saturating_add(TokenCount::new(u64::from(added)));
        Ok(())
    }

    fn check_purpose(&self, purpose: &Purpose) -> Result<(), AccountFault> {
        match purpose {
            Purpose::Claim(claim) if claim.tokens > self.unclaimed() => {
                let (wanted, left) = (claim.tokens, self.unclaimed());
                Err(self.fault(format!("claim of {wanted} tokens, {left} are unclaimed")))
            }
            Purpose::Claim(_) | Purpose::Complete => Ok(()),
            Purpose::Fill | Purpose::Errand(_) => {
                Err(self.fault("the wallet's business in a job's account".into()))
            }
        }
    }

    fn fault(&self, what: String) -> AccountFault {
        AccountFault { subject: Subject::Job(self.job), what }
    }
}
