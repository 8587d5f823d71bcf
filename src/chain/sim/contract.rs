//! The marketplace's state and its rules, in the contract's own order.
//!
//! Never lenient: what docs/spec/contract.md sections 2 and 3 refuse is refused here, and a
//! refused call changes nothing. Knows no blocks and no wallets: time and sender are arguments.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::{ChainJob, JobStatus};
use crate::units::{
    Address, Amount, ChainSeconds, ChainTime, JobId, PricePerToken, PriceUnit, TokenCount,
};

/// Length of the proof's first word.
const WORD_LEN: usize = 32;

/// What differs between the contract's versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimRules {
    /// The smallest claim (rule 3).
    pub claim_min: u64,
    /// Price unit (rule 6).
    pub price_unit: PriceUnit,
    /// Seconds from the start after which anyone may complete.
    pub dispute_window: u64,
    /// Whether a proof's first word is accepted once only (rules 7 and 8; v4 checks nothing).
    pub words_are_single_use: bool,
    /// Seconds by which a pending block is later than the newest one: 0 on chains whose blocks
    /// may share a time.
    pub block_gap: u64,
}

/// Who sends a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The node's key.
    Host,
    /// Who locked the deposit.
    Depositor,
    /// Anybody else.
    Stranger,
}

/// What a call does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A session is opened.
    Open(Box<ChainJob>),
    /// A claim.
    Claim {
        /// The job.
        job: JobId,
        /// The delta.
        tokens: u64,
        /// The proof.
        proof: Vec<u8>,
    },
    /// The session's completion.
    Complete(JobId),
    /// The session's end by timeout.
    Timeout(JobId),
    /// A proof's first word is registered by somebody who saw it.
    Burn([u8; WORD_LEN]),
    /// Nothing of the marketplace's.
    Nothing,
}

/// Why a call reverts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reverted {
    /// Rule 1.
    NotActive,
    /// Rule 2: an unknown job has no host.
    NotHost,
    /// Rule 3.
    BelowMinimum,
    /// Rule 5.
    Rate,
    /// Rule 6.
    Deposit,
    /// Rules 7 and 8.
    WordUsed,
    /// Completion inside the dispute window.
    Window,
    /// Timeout before its time.
    NotTimedOut,
    /// No rule of the contract: the block's gas, or the machine below it.
    OutOfGas,
}

impl Reverted {
    /// Whether whoever plans a claim can know beforehand that this rule refuses it.
    #[must_use]
    pub const fn is_planning(self) -> bool {
        matches!(self, Self::BelowMinimum | Self::Rate | Self::Deposit)
    }
}

/// The state that a block leaves behind.
#[derive(Debug, Clone, Default)]
pub(super) struct Contract {
    pub jobs: BTreeMap<JobId, ChainJob>,
    words: BTreeSet<[u8; WORD_LEN]>,
}

impl Contract {
    /// Carries out a call, or says why it reverts.
    pub fn apply(
        &mut self,
        deed: &Deed,
        sender: Sender,
        time: u64,
        rules: &SimRules,
    ) -> Result<(), Reverted> {
        match deed {
            Deed::Open(terms) => self.open(terms, time),
            Deed::Claim { job, tokens, proof } => {
                self.check_claim((*job, *tokens), proof, (sender, time), rules)?;
                self.words.extend(first_word(proof));
                if let Some(known) = self.jobs.get_mut(job) {
                    known.tokens_used = known.tokens_used.saturating_add(TokenCount::new(*tokens));
                    known.last_proof_time = ChainTime::new(time);
                }
            }
            Deed::Complete(job) => {
                let known = self.active(*job)?;
                let opens = known.start_time.after(ChainSeconds::new(rules.dispute_window));
                if sender != Sender::Depositor && ChainTime::new(time) < opens {
                    return Err(Reverted::Window);
                }
                known.status = JobStatus::Completed;
            }
            Deed::Timeout(job) => {
                let known = self.active(*job)?;
                let now = ChainTime::new(time);
                let is_long = now > known.start_time.after(known.duration_max);
                let is_silent = now > known.last_proof_time.after(known.silence_max);
                if !is_long && !is_silent {
                    return Err(Reverted::NotTimedOut);
                }
                known.status = JobStatus::TimedOut;
            }
            Deed::Burn(word) => {
                self.words.insert(*word);
            }
            Deed::Nothing => {}
        }
        Ok(())
    }

    fn open(&mut self, terms: &ChainJob, time: u64) {
        let now = ChainTime::new(time);
        let opened = ChainJob { start_time: now, last_proof_time: now, ..terms.clone() };
        self.jobs.insert(terms.id, opened);
    }

    fn active(&mut self, job: JobId) -> Result<&mut ChainJob, Reverted> {
        let known = self.jobs.get_mut(&job).ok_or(Reverted::NotHost)?;
        (known.status == JobStatus::Active).then_some(known).ok_or(Reverted::NotActive)
    }

    fn check_claim(
        &mut self,
        (job, tokens): (JobId, u64),
        proof: &[u8],
        (sender, time): (Sender, u64),
        rules: &SimRules,
    ) -> Result<(), Reverted> {
        let known = self.active(job)?;
        if sender != Sender::Host {
            return Err(Reverted::NotHost);
        }
        if tokens < rules.claim_min {
            return Err(Reverted::BelowMinimum);
        }
        let elapsed = time.saturating_sub(known.last_proof_time.get());
        if tokens > known.rate_per_second.saturating_mul(elapsed) {
            return Err(Reverted::Rate);
        }
        // Its own division, not the node's: the two are compared here.
        let scaled = known.deposit.get().saturating_mul(u128::from(rules.price_unit.get()));
        let buys = scaled.checked_div(known.price.get()).unwrap_or(0);
        if u128::from(known.tokens_used.get()) + u128::from(tokens) > buys {
            return Err(Reverted::Deposit);
        }
        if rules.words_are_single_use {
            match first_word(proof) {
                Some(word) if !self.words.contains(&word) => {}
                Some(_) | None => return Err(Reverted::WordUsed),
            }
        }
        Ok(())
    }
}

/// The first word of a proof; `None` where it is too short for the proof system.
pub(super) fn first_word(proof: &[u8]) -> Option<[u8; WORD_LEN]> {
    (proof.len() >= 64).then(|| proof.first_chunk().copied()).flatten()
}

/// Terms of a session that is opened when its block is mined.
#[derive(Debug, Clone, Copy)]
pub struct SimTerms {
    /// The ERC-20 it is paid in; [`Address::ZERO`] for the native currency.
    pub payment_token: Address,
    /// The locked amount.
    pub deposit: u128,
    /// Price per token.
    pub price: u128,
    /// Seconds from the start after which anybody may time it out.
    pub duration_max: u64,
    /// Seconds of silence after which anybody may.
    pub silence_max: u64,
    /// Tokens a second since the last proof (rule 5).
    pub rate_per_second: u64,
    /// Tokens that the host claimed before this node's ledger began.
    pub tokens_before: u64,
}

impl SimTerms {
    pub(super) fn job(&self, id: JobId) -> ChainJob {
        ChainJob {
            id,
            depositor: crate::chain::sim::DEPOSITOR,
            host: crate::chain::sim::HOST,
            payment_token: self.payment_token,
            deposit: Amount::new(self.deposit),
            price: PricePerToken::new(self.price),
            tokens_used: TokenCount::new(self.tokens_before),
            duration_max: ChainSeconds::new(self.duration_max),
            start_time: ChainTime::ZERO,
            last_proof_time: ChainTime::ZERO,
            silence_max: ChainSeconds::new(self.silence_max),
            rate_per_second: self.rate_per_second,
            model: None,
            status: JobStatus::Active,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: SimRules = SimRules {
        claim_min: 100,
        price_unit: PriceUnit::ONE,
        dispute_window: 30,
        words_are_single_use: true,
        block_gap: 1,
    };

    fn job() -> JobId {
        JobId::new(1).unwrap()
    }

    /// A job that buys 500 tokens, opened at 1000; 20 tokens a second; silent after 300 seconds.
    fn opened() -> Contract {
        let terms = SimTerms {
            payment_token: Address::ZERO,
            deposit: 1_009,
            price: 2,
            duration_max: 1_000,
            silence_max: 300,
            rate_per_second: 20,
            tokens_before: 4,
        };
        let mut contract = Contract::default();
        contract.open(&terms.job(job()), 1_000);
        contract
    }

    fn claim(tokens: u64, word: u8) -> Deed {
        Deed::Claim { job: job(), tokens, proof: vec![word; 64] }
    }

    #[track_caller]
    fn check(deed: &Deed, sender: Sender, time: u64, wanted: Result<(), Reverted>) {
        assert_eq!(opened().apply(deed, sender, time, &RULES), wanted, "{deed:?} at {time}");
    }

    #[test]
    fn every_bound_of_a_claim_is_enforced_to_the_token_and_to_the_second() {
        let host = Sender::Host;
        check(&claim(99, 1), host, 2_000, Err(Reverted::BelowMinimum));
        check(&claim(100, 1), host, 2_000, Ok(()));
        check(&claim(100, 1), Sender::Stranger, 2_000, Err(Reverted::NotHost));
        check(&claim(100, 1), host, 1_004, Err(Reverted::Rate));
        check(&claim(100, 1), host, 1_005, Ok(()));
        check(&claim(101, 1), host, 1_005, Err(Reverted::Rate));
        check(&claim(500, 1), host, 2_000, Ok(()));
        check(&claim(501, 1), host, 2_000, Err(Reverted::Deposit));
    }

    #[test]
    fn a_claim_is_a_delta_moves_the_clock_and_uses_its_word_up() {
        let mut contract = opened();
        assert_eq!(contract.apply(&claim(100, 1), Sender::Host, 1_100, &RULES), Ok(()));
        assert_eq!(contract.jobs[&job()].tokens_used, TokenCount::new(104));
        let again = contract.apply(&claim(100, 1), Sender::Host, 1_105, &RULES);
        assert_eq!(again, Err(Reverted::WordUsed));
        assert_eq!(
            contract.apply(&claim(100, 2), Sender::Host, 1_104, &RULES),
            Err(Reverted::Rate)
        );
        contract.apply(&Deed::Burn([3; 32]), Sender::Stranger, 1_105, &RULES).unwrap();
        let burnt = contract.apply(&claim(100, 3), Sender::Host, 1_105, &RULES);
        assert_eq!(burnt, Err(Reverted::WordUsed));
        assert_eq!(contract.apply(&claim(100, 2), Sender::Host, 1_105, &RULES), Ok(()));
    }

    #[test]
    fn a_replay_counts_twice_where_words_are_not_checked() {
        let rules = SimRules { words_are_single_use: false, ..RULES };
        let mut contract = opened();
        for time in [1_100, 1_200] {
            contract.apply(&claim(100, 1), Sender::Host, time, &rules).unwrap();
        }
        assert_eq!(contract.jobs[&job()].tokens_used, TokenCount::new(204));
    }

    #[test]
    fn a_session_ends_by_whom_and_when_the_contract_says() {
        let (complete, timeout) = (Deed::Complete(job()), Deed::Timeout(job()));
        check(&complete, Sender::Depositor, 1_000, Ok(()));
        check(&complete, Sender::Host, 1_029, Err(Reverted::Window));
        check(&complete, Sender::Host, 1_030, Ok(()));
        check(&complete, Sender::Stranger, 1_030, Ok(()));
        check(&timeout, Sender::Stranger, 1_300, Err(Reverted::NotTimedOut));
        check(&timeout, Sender::Stranger, 1_301, Ok(()));
        let mut contract = opened();
        contract.apply(&complete, Sender::Depositor, 1_100, &RULES).unwrap();
        for deed in [claim(100, 1), complete, timeout] {
            let refused = contract.apply(&deed, Sender::Host, 2_000, &RULES);
            assert_eq!(refused, Err(Reverted::NotActive), "{deed:?}");
        }
    }
}
