//! A job's account: the fold of its ledger entries.
//!
//! Never edited otherwise: replaying the ledger gives the account that was live. A fact that does
//! not fit the account is a fault, reported and never repaired in silence.

use super::tx::{Tx, TxState};
use super::{Attempt, ClaimBody, Entry, Fact, Purpose, RejectReason};
use crate::units::{
    Address, Amount, ChainTime, ClaimSeq, JobId, PricePerToken, TokenCount, TurnNo, WalletNonce,
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
#[error("job {job}: {what}")]
pub struct AccountFault {
    /// The job.
    pub job: JobId,
    /// What does not fit.
    pub what: String,
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
    txs: Vec<Tx>,
    forfeited: Option<TokenCount>,
    halted: Option<String>,
}

impl Account {
    /// The empty account of a job.
    #[must_use]
    pub const fn new(job: JobId) -> Self {
        Self {
            job,
            terms: None,
            owner_proven: false,
            recorded: TokenCount::ZERO,
            turns_open: Vec::new(),
            turn_next: 0,
            txs: Vec::new(),
            forfeited: None,
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
        &self.txs
    }

    /// Transactions whose fate is not final.
    pub fn txs_open(&self) -> impl Iterator<Item = &Tx> {
        self.txs.iter().filter(|tx| tx.is_open())
    }

    /// Claims, oldest first, rejected ones included.
    pub fn claims(&self) -> impl Iterator<Item = (&ClaimBody, &Tx)> {
        self.txs.iter().filter_map(|tx| tx.claim().map(|claim| (claim, tx)))
    }

    /// Tokens in claims that are not rejected.
    #[must_use]
    pub fn claimed(&self) -> TokenCount {
        self.claim_sum(|state| !matches!(state, TxState::Rejected(_)))
    }

    /// Tokens in claims that are in a block, final or not.
    #[must_use]
    pub fn included(&self) -> TokenCount {
        self.claim_sum(|state| matches!(state, TxState::Included { .. } | TxState::Confirmed))
    }

    /// Tokens in claims that are final.
    #[must_use]
    pub fn confirmed(&self) -> TokenCount {
        self.claim_sum(|state| matches!(state, TxState::Confirmed))
    }

    /// Recorded tokens that no claim carries yet.
    #[must_use]
    pub fn unclaimed(&self) -> TokenCount {
        self.recorded.saturating_sub(self.claimed())
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
        let claims = self.txs.iter().rev().filter(|tx| tx.claim().is_some());
        claims.take_while(|tx| matches!(tx.state, TxState::Rejected(_))).count()
    }

    /// The completion, unless it was rejected.
    #[must_use]
    pub fn completion(&self) -> Option<&Tx> {
        self.txs
            .iter()
            .rev()
            .find(|tx| tx.purpose == Purpose::Complete && !matches!(tx.state, TxState::Rejected(_)))
    }

    /// Tokens that can never be claimed, once the session is over on chain.
    #[must_use]
    pub const fn forfeited(&self) -> Option<TokenCount> {
        self.forfeited
    }

    /// Whether the session is over on chain and nothing more is done for it.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.forfeited.is_some()
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
            Fact::Delivered { turn, position, ids } => self.deliver(*turn, *position, ids.len())?,
            Fact::TurnEnded { turn, .. } => self.turns_open.retain(|(open, _)| open != turn),
            Fact::JobClosed { forfeited } => self.forfeited = Some(*forfeited),
            Fact::JobHalted { why } => self.halted = Some(why.clone()),
            Fact::TxPrepared { nonce, purpose, attempt } => {
                self.prepare(*nonce, purpose, attempt)?
            }
            Fact::TxRepriced { nonce, attempt } => {
                self.open_tx(*nonce)?.attempts.push(attempt.clone());
            }
            Fact::TxIncluded { nonce, hash, sighting, block, block_hash, fee } => {
                let tx = self.open_tx(*nonce)?;
                tx.sightings = sighting.saturating_add(1);
                tx.fee = *fee;
                tx.mined = Some(*hash);
                tx.state =
                    TxState::Included { hash: *hash, block: *block, block_hash: *block_hash };
            }
            Fact::TxReorged { nonce, .. } => self.open_tx(*nonce)?.state = TxState::Prepared,
            Fact::TxConfirmed { nonce } => self.confirm(*nonce)?,
            Fact::TxRejected { nonce, reason, .. } => self.reject(*nonce, *reason)?,
        }
        Ok(())
    }

    fn claim_sum(&self, counts: impl Fn(&TxState) -> bool) -> TokenCount {
        let claims = self.claims().filter(|(_, tx)| counts(&tx.state));
        claims.fold(TokenCount::ZERO, |sum, (claim, _)| sum.saturating_add(claim.tokens))
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

    fn prepare(
        &mut self,
        nonce: WalletNonce,
        purpose: &Purpose,
        attempt: &Attempt,
    ) -> Result<(), AccountFault> {
        if self.txs_open().any(|tx| tx.nonce == nonce) {
            return Err(self.fault(format!("nonce {nonce} prepared twice")));
        }
        if let Purpose::Claim(claim) = purpose
            && claim.tokens > self.unclaimed()
        {
            let (wanted, left) = (claim.tokens, self.unclaimed());
            return Err(self.fault(format!("claim of {wanted} tokens, {left} are unclaimed")));
        }
        self.txs.push(Tx {
            nonce,
            purpose: purpose.clone(),
            attempts: vec![attempt.clone()],
            state: TxState::Prepared,
            sightings: 0,
            mined: None,
            fee: Amount::ZERO,
        });
        Ok(())
    }

    fn confirm(&mut self, nonce: WalletNonce) -> Result<(), AccountFault> {
        let tx = self.open_tx(nonce)?;
        if !matches!(tx.state, TxState::Included { .. }) {
            return Err(self.fault(format!("nonce {nonce} confirmed without inclusion")));
        }
        tx.state = TxState::Confirmed;
        Ok(())
    }

    fn reject(&mut self, nonce: WalletNonce, reason: RejectReason) -> Result<(), AccountFault> {
        self.open_tx(nonce)?.state = TxState::Rejected(reason);
        Ok(())
    }

    fn open_tx(&mut self, nonce: WalletNonce) -> Result<&mut Tx, AccountFault> {
        let job = self.job;
        let open = self.txs.iter_mut().find(|tx| tx.nonce == nonce && tx.is_open());
        open.ok_or_else(|| AccountFault {
            job,
            what: format!("no open transaction with nonce {nonce}"),
        })
    }

    fn fault(&self, what: String) -> AccountFault {
        AccountFault { job: self.job, what }
    }
}
