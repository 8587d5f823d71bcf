//! When a session is completed by its host.
//!
//! Never before the last claim is final: completing forfeits what is not proven
//! (docs/spec/contract.md section 3, "Complete").

use crate::units::{ChainSeconds, ChainTime};

/// Where one job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionInput {
    /// No connection, no request, and the grace period is over.
    pub is_idle: bool,
    /// A transaction of this job is not final.
    pub has_open_tx: bool,
    /// A claim could still be made for what is unclaimed.
    pub has_claimable: bool,
    /// The chain's clock.
    pub now: ChainTime,
    /// When the session began.
    pub start_time: ChainTime,
    /// From start plus this, the host may complete.
    pub dispute_window: ChainSeconds,
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
}

/// Decides for one job.
#[must_use]
pub fn plan_completion(input: &CompletionInput) -> CompletionPlan {
    if !input.is_idle || input.has_open_tx || input.has_claimable {
        return CompletionPlan::NotYet;
    }
    let opens = input.start_time.after(input.dispute_window);
    if input.now < opens {
        return CompletionPlan::Window(opens);
    }
    CompletionPlan::Complete
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: CompletionInput = CompletionInput {
        is_idle: true,
        has_open_tx: false,
        has_claimable: false,
        now: ChainTime::new(130),
        start_time: ChainTime::new(100),
        dispute_window: ChainSeconds::new(30),
    };

    #[test]
    fn a_session_is_never_completed_while_a_proof_is_in_flight_or_due() {
        assert_eq!(plan_completion(&READY), CompletionPlan::Complete);
        for input in [
            CompletionInput { has_open_tx: true, ..READY },
            CompletionInput { has_claimable: true, ..READY },
            CompletionInput { is_idle: false, ..READY },
        ] {
            assert_eq!(plan_completion(&input), CompletionPlan::NotYet, "{input:?}");
        }
    }

    #[test]
    fn the_window_runs_from_the_sessions_start() {
        let early = CompletionInput { now: ChainTime::new(129), ..READY };
        assert_eq!(plan_completion(&early), CompletionPlan::Window(ChainTime::new(130)));
    }
}
