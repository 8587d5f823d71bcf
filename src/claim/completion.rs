//! When a session is completed by its host.
//!
//! Never before the last claim is final: completing forfeits what is not proven
//! (docs/spec/contract.md section 3, "Complete").

use super::FeeEstimate;
use crate::units::{ChainSeconds, ChainTime};

/// Where one job stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompletionInput {
    /// No connection, no request, and the grace period is over.
    pub is_idle: bool,
    /// A transaction of this job is not final.
    pub has_open_tx: bool,
    /// A claim lies so shallow that a reorg may take it back.
    pub has_shallow_claim: bool,
    /// A claim could still be made for what is unclaimed.
    pub has_claimable: bool,
    /// The chain's clock.
    pub now: ChainTime,
    /// When the session began.
    pub start_time: ChainTime,
    /// From start plus this, the host may complete.
    pub dispute_window: ChainSeconds,
    /// What completing costs and what it pays out; `None` where it is done at any price.
    pub fees: Option<FeeEstimate>,
    /// The greatest share of that value that its fee may take.
    pub fee_share_max: f64,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompletionPlan {
    /// Complete it.
    Complete,
    /// The session still has work, or claims on their way.
    NotYet,
    /// The contract refuses the host until this chain time.
    Window(ChainTime),
    /// The fee would eat too much of what it pays out: left to the depositor, or to a timeout.
    Fee,
}

/// Decides for one job.
#[must_use]
pub fn plan_completion(input: &CompletionInput) -> CompletionPlan {
    let is_busy = !input.is_idle || input.has_open_tx || input.has_shallow_claim;
    if is_busy || input.has_claimable {
        return CompletionPlan::NotYet;
    }
    let opens = input.start_time.after(input.dispute_window);
    if input.now < opens {
        return CompletionPlan::Window(opens);
    }
    if input.fees.is_some_and(|fees| fees.exceeds(input.fee_share_max)) {
        return CompletionPlan::Fee;
    }
    CompletionPlan::Complete
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Amount;

    const READY: CompletionInput = CompletionInput {
        is_idle: true,
        has_open_tx: false,
        has_shallow_claim: false,
        has_claimable: false,
        now: ChainTime::new(130),
        start_time: ChainTime::new(100),
        dispute_window: ChainSeconds::new(30),
        fees: None,
        fee_share_max: 0.5,
    };

    #[test]
    fn a_session_is_never_completed_while_a_proof_is_in_flight_or_due() {
        assert_eq!(plan_completion(&READY), CompletionPlan::Complete);
        for input in [
            CompletionInput { has_open_tx: true, ..READY },
            CompletionInput { has_shallow_claim: true, ..READY },
            CompletionInput { has_claimable: true, ..READY },
            CompletionInput { is_idle: false, ..READY },
        ] {
            assert_eq!(plan_completion(&input), CompletionPlan::NotYet, "{input:?}");
        }
    }

    #[test]
    fn a_completion_that_costs_more_than_its_share_is_left_to_others() {
        let paid = |fee, value| {
            let fees = Some(FeeEstimate { fee: Amount::new(fee), value: Amount::new(value) });
            plan_completion(&CompletionInput { fees, ..READY })
        };
        assert_eq!(paid(50, 100), CompletionPlan::Complete);
        assert_eq!(paid(51, 100), CompletionPlan::Fee);
        assert_eq!(paid(1, 0), CompletionPlan::Fee, "nothing proven, nothing earned");
    }

    #[test]
    fn the_window_runs_from_the_sessions_start() {
        let early = CompletionInput { now: ChainTime::new(129), ..READY };
        assert_eq!(plan_completion(&early), CompletionPlan::Window(ChainTime::new(130)));
    }
}
