//! When a claim is due, and for how many tokens.
//!
//! Never pads a claim, never plans past rate or deposit, never plans a second claim while one of
//! the same job is not in a block.

use crate::units::{Amount, ChainSeconds, ChainTime, TokenCount};

/// The contract's limits and the operator's wishes, the same for all jobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClaimRules {
    /// The smallest claim the contract takes (rule 3).
    pub claim_min: TokenCount,
    /// Tokens per second since the last proof (rule 5).
    pub rate_per_second: u64,
    /// Unclaimed tokens from which a claim is due; at least `claim_min`.
    pub claim_at: TokenCount,
    /// How long before the deadline a claim is forced.
    pub margin: ChainSeconds,
    /// The greatest share of a claim's value that its fee may take, 0 … 1.
    pub fee_share_max: f64,
}

/// What a transaction costs, and what it brings in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeEstimate {
    /// Its fee, wei.
    pub fee: Amount,
    /// What the tokens it is for are worth, wei.
    pub value: Amount,
}

impl FeeEstimate {
    /// Whether the fee takes more than `share` of the value. Compared in f64 on purpose: a share
    /// is a rule of thumb, no amount is derived from it. A share without bound allows everything.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn exceeds(&self, share: f64) -> bool {
        share.is_finite() && self.fee.get() as f64 > self.value.get() as f64 * share
    }
}

/// Where one job stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanInput {
    /// Recorded tokens that no claim carries.
    pub unclaimed: TokenCount,
    /// Tokens the deposit still pays for, beyond all claims.
    pub deposit_left: TokenCount,
    /// Whether a claim of this job is signed and not in a block.
    pub in_flight: bool,
    /// Whether the session is ending, so that waiting for more makes no sense.
    pub closing: bool,
    /// The chain's clock.
    pub now: ChainTime,
    /// When the job was last proven.
    pub last_proof_time: ChainTime,
    /// When anyone may end the session ([`deadline`]).
    pub deadline: ChainTime,
    /// Fee and value of the claim; `None` where they cannot be compared.
    pub fees: Option<FeeEstimate>,
}

/// Why no claim is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Fewer tokens than the contract's minimum are unclaimed.
    BelowMinimum,
    /// Fewer than the operator's `claim_at`.
    BelowTarget,
    /// A claim of this job is on its way.
    InFlight,
    /// The rate limit allows too few until this chain time.
    RateLimit(ChainTime),
    /// The deposit's end is near: the last claim waits so as to carry the rest.
    DepositEnd,
    /// The deposit does not pay for a claim.
    DepositSpent,
    /// The fee would eat too much of the value.
    Fee,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimPlan {
    /// Claim this many tokens.
    Claim(TokenCount),
    /// Nothing yet.
    Wait(Wait),
}

/// When anyone may end the session: the earlier of its longest duration and its longest silence
/// (docs/spec/contract.md section 3, "Timeout").
#[must_use]
pub fn deadline(
    start: ChainTime,
    duration_max: ChainSeconds,
    last_proof: ChainTime,
    silence_max: ChainSeconds,
) -> ChainTime {
    start.after(duration_max).min(last_proof.after(silence_max))
}

/// Decides for one job.
#[must_use]
pub fn plan_claim(rules: &ClaimRules, input: &PlanInput) -> ClaimPlan {
    if input.in_flight {
        return ClaimPlan::Wait(Wait::InFlight);
    }
    if input.unclaimed < rules.claim_min {
        return ClaimPlan::Wait(Wait::BelowMinimum);
    }
    let payable = input.unclaimed.min(input.deposit_left);
    if payable < rules.claim_min {
        return ClaimPlan::Wait(Wait::DepositSpent);
    }
    let forced = input.now.after(rules.margin) >= input.deadline;
    let tokens = payable.min(allowance(rules, input));
    if let Some(wait) = rate_wait(rules, input, payable, forced) {
        return ClaimPlan::Wait(wait);
    }
    if forced {
        // Better late than never, but never at a loss: past the deadline it is worth nothing.
        let at_a_loss = rules.fee_share_max.max(1.0);
        return match input.fees {
            Some(fees) if fees.exceeds(at_a_loss) => ClaimPlan::Wait(Wait::Fee),
            Some(_) | None => ClaimPlan::Claim(tokens),
        };
    }
    if !input.closing {
        let deposit_after = input.deposit_left.saturating_sub(tokens);
        if deposit_after > TokenCount::ZERO && deposit_after < rules.claim_min {
            return ClaimPlan::Wait(Wait::DepositEnd);
        }
        if input.unclaimed < rules.claim_at && input.unclaimed < input.deposit_left {
            return ClaimPlan::Wait(Wait::BelowTarget);
        }
    }
    if input.fees.is_some_and(|fees| fees.exceeds(rules.fee_share_max)) {
        return ClaimPlan::Wait(Wait::Fee);
    }
    ClaimPlan::Claim(tokens)
}

/// Tokens the rate limit allows now: rate × (now − last proof).
fn allowance(rules: &ClaimRules, input: &PlanInput) -> TokenCount {
    let elapsed = input.now.since(input.last_proof_time).get();
    TokenCount::new(rules.rate_per_second.saturating_mul(elapsed))
}

/// A partial claim is made only where what it leaves behind can still be claimed, or where the
/// deadline forces it: allowance grows by itself, a tail under the minimum does not.
fn rate_wait(
    rules: &ClaimRules,
    input: &PlanInput,
    payable: TokenCount,
    forced: bool,
) -> Option<Wait> {
    let allowed = allowance(rules, input);
    let wanted = if forced {
        rules.claim_min
    } else if payable.saturating_sub(allowed) >= rules.claim_min && allowed >= rules.claim_at {
        return None;
    } else {
        payable
    };
    if allowed >= wanted {
        return None;
    }
    let seconds = wanted.get().div_ceil(rules.rate_per_second.max(1));
    Some(Wait::RateLimit(input.last_proof_time.after(ChainSeconds::new(seconds))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: ClaimRules = ClaimRules {
        claim_min: TokenCount::new(100),
        rate_per_second: 20,
        claim_at: TokenCount::new(100),
        margin: ChainSeconds::new(60),
        fee_share_max: 0.5,
    };

    fn input() -> PlanInput {
        PlanInput {
            unclaimed: TokenCount::new(100),
            deposit_left: TokenCount::new(10_000),
            in_flight: false,
            closing: false,
            now: ChainTime::new(1_100),
            last_proof_time: ChainTime::new(1_000),
            deadline: ChainTime::new(2_000),
            fees: None,
        }
    }

    #[track_caller]
    fn check(input: PlanInput, expected: ClaimPlan) {
        assert_eq!(plan_claim(&RULES, &input), expected, "{input:?}");
    }

    fn claim(tokens: u64) -> ClaimPlan {
        ClaimPlan::Claim(TokenCount::new(tokens))
    }

    #[test]
    fn a_claim_is_due_at_the_minimum_and_never_padded_up_to_it() {
        check(input(), claim(100));
        check(PlanInput { unclaimed: TokenCount::new(101), ..input() }, claim(101));
        let below = PlanInput { unclaimed: TokenCount::new(99), ..input() };
        check(below, ClaimPlan::Wait(Wait::BelowMinimum));
        check(PlanInput { closing: true, ..below }, ClaimPlan::Wait(Wait::BelowMinimum));
        let late = PlanInput { now: ChainTime::new(1_999), ..below };
        check(late, ClaimPlan::Wait(Wait::BelowMinimum));
    }

    #[test]
    fn one_claim_at_a_time() {
        let busy = PlanInput { in_flight: true, ..input() };
        check(busy, ClaimPlan::Wait(Wait::InFlight));
    }

    #[test]
    fn the_rate_limit_is_met_exactly_and_never_passed() {
        let at = |now| PlanInput { now: ChainTime::new(now), ..input() };
        let wait = ClaimPlan::Wait(Wait::RateLimit(ChainTime::new(1_005)));
        check(at(1_004), wait);
        check(at(1_005), claim(100));
        let backlog = PlanInput { unclaimed: TokenCount::new(350), ..at(1_010) };
        check(backlog, claim(200));
        let would_leave_a_tail = PlanInput { unclaimed: TokenCount::new(250), ..at(1_010) };
        check(would_leave_a_tail, ClaimPlan::Wait(Wait::RateLimit(ChainTime::new(1_013))));
    }

    #[test]
    fn a_claim_never_passes_the_deposit() {
        let short = |left| PlanInput {
            unclaimed: TokenCount::new(500),
            deposit_left: TokenCount::new(left),
            ..input()
        };
        check(short(500), claim(500));
        check(short(499), claim(499));
        check(short(100), claim(100));
        check(short(99), ClaimPlan::Wait(Wait::DepositSpent));
    }

    #[test]
    fn the_last_claim_waits_to_carry_the_deposits_rest() {
        let near = |left| PlanInput {
            unclaimed: TokenCount::new(120),
            deposit_left: TokenCount::new(left),
            ..input()
        };
        check(near(219), ClaimPlan::Wait(Wait::DepositEnd));
        check(near(220), claim(120));
        check(near(120), claim(120));
        check(PlanInput { closing: true, ..near(219) }, claim(120));
        let late = PlanInput { now: ChainTime::new(1_940), ..near(219) };
        check(late, claim(120));
    }

    #[test]
    fn a_larger_target_yields_to_deadline_closing_and_the_deposits_end() {
        let rules = ClaimRules { claim_at: TokenCount::new(1_000), ..RULES };
        let plan = |input| plan_claim(&rules, &input);
        let some = PlanInput { unclaimed: TokenCount::new(150), ..input() };
        assert_eq!(plan(some), ClaimPlan::Wait(Wait::BelowTarget));
        assert_eq!(plan(PlanInput { closing: true, ..some }), claim(150));
        assert_eq!(plan(PlanInput { now: ChainTime::new(1_940), ..some }), claim(150));
        assert_eq!(plan(PlanInput { deposit_left: TokenCount::new(150), ..some }), claim(150));
    }

    #[test]
    fn a_fee_above_its_share_waits_unless_the_deadline_forces_the_claim() {
        let fee = |fee| Some(FeeEstimate { fee: Amount::new(fee), value: Amount::new(1_000) });
        check(PlanInput { fees: fee(500), ..input() }, claim(100));
        let dear = PlanInput { fees: fee(501), ..input() };
        check(dear, ClaimPlan::Wait(Wait::Fee));
        let late = |fees| PlanInput { fees, now: ChainTime::new(1_940), ..input() };
        check(late(fee(501)), claim(100));
        check(late(fee(1_000)), claim(100));
        check(late(fee(1_001)), ClaimPlan::Wait(Wait::Fee));
    }

    #[test]
    fn the_deadline_is_the_earlier_of_duration_and_silence() {
        let at = |duration, last, silence| {
            let seconds = ChainSeconds::new;
            let (start, last) = (ChainTime::new(100), ChainTime::new(last));
            deadline(start, seconds(duration), last, seconds(silence)).get()
        };
        assert_eq!(at(1_000, 100, 300), 400);
        assert_eq!(at(1_000, 900, 300), 1_100);
    }
}
