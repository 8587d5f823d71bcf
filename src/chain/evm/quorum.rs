//! What several endpoints' answers mean together.
//!
//! Never asks anybody: answers in, a verdict out, or none where more must be asked. One rule
//! stands behind all of it: what frees or finalises money needs the quorum's votes, and two of
//! them wherever two endpoints answer. Where endpoints may honestly differ by a block, the safe
//! side is chosen: a nonce or a head counts only as far as a quorum has reached it. Relies on the
//! caller for asking endpoints of one chain only.

use super::health::Standing;
use super::wire::Block;
use crate::chain::{Broadcast, DryRun, Fees, Inclusion, WalletState};
use crate::units::{Amount, Gas, WalletNonce};

/// Estimates count as equal up to this factor: clients round gas and fees in their own ways.
const NEAR: u128 = 2;

/// Answers so far, in order of arrival.
pub(super) struct Answers<'a, T> {
    /// What was answered; failures are left out.
    pub given: &'a [&'a T],
    /// How many may still answer.
    pub open: usize,
    /// The operator's quorum, at least 1.
    pub quorum: usize,
}

impl<T> Answers<'_, T> {
    /// Votes that decide: the quorum, and two wherever two endpoints answer or still may.
    fn needed(&self) -> usize {
        self.quorum.max(self.given.len().saturating_add(self.open).min(2))
    }

    /// Whether `count` of the answers carry a decision: enough, and more than all others.
    fn carries(&self, count: usize) -> bool {
        count >= self.needed() && count.saturating_mul(2) > self.given.len()
    }

    /// Whether this is all there will be, and it is enough to go by.
    fn is_final(&self) -> bool {
        self.open == 0 && !self.given.is_empty() && self.given.len() >= self.quorum
    }
}

/// The endpoints to ask, best first, by their standing; those that rest only where fewer than the
/// quorum are left without them.
pub(super) fn order(standings: &[Standing], quorum: usize) -> Vec<usize> {
    let of = |standing: Standing| {
        standings.iter().enumerate().filter(move |(_, own)| **own == standing).map(|(at, _)| at)
    };
    let mut order: Vec<usize> = of(Standing::Well).chain(of(Standing::Probation)).collect();
    if order.len() < quorum {
        order.extend(of(Standing::Resting));
    }
    order
}

/// Whether all answers are one.
pub(super) fn is_unanimous<T: PartialEq>(given: &[&T]) -> bool {
    given.windows(2).all(|pair| matches!(pair, [one, other] if one == other))
}

/// The answer that a quorum gives.
pub(super) fn agreed<T: PartialEq + Clone>(answers: &Answers<'_, T>) -> Option<T> {
    let count = |value: &T| answers.given.iter().filter(|other| **other == value).count();
    let found = answers.given.iter().find(|value| answers.carries(count(value)));
    found.map(|value| (*value).clone())
}

/// The largest value that `needed` of them reach; `None` where there are fewer.
fn reached<T: Ord + Copy>(mut values: Vec<T>, needed: usize) -> Option<T> {
    values.sort_unstable_by(|one, other| other.cmp(one));
    values.get(needed.checked_sub(1)?).copied()
}

/// The newest block in the eyes of a quorum; `None` where the newest blocks differ.
pub(super) fn same_block(answers: &Answers<'_, Block>) -> Option<Block> {
    agreed(answers)
}

/// Heights at which a quorum may agree, highest first: never one that fewer have reached.
pub(super) fn common_heights(answers: &Answers<'_, Block>) -> Vec<u64> {
    let heights: Vec<u64> = answers.given.iter().filter_map(|block| block.height()).collect();
    let Some(top) = reached(heights.clone(), answers.needed()) else { return Vec::new() };
    let mut heights: Vec<u64> = heights.into_iter().filter(|height| *height <= top).collect();
    heights.sort_unstable_by(|one, other| other.cmp(one));
    heights.dedup();
    heights
}

/// The head against which lag is measured: what the quorum has reached, so that one endpoint's
/// invented height makes no other one look old. Its time is the lowest that is told of it.
pub(super) fn reference(blocks: &[&Block], quorum: usize) -> Option<(u64, u64)> {
    let heights = blocks.iter().filter_map(|block| block.height()).collect();
    // Of three, the middle one: where the operator trusts any single one, that is no reason to.
    let needed = if blocks.len() > 2 { quorum.max(2) } else { quorum };
    let height = reached(heights, needed.min(blocks.len()))?;
    let at_height = blocks.iter().filter(|block| block.height() == Some(height));
    Some((height, at_height.filter_map(|block| block.time()).min()?))
}

/// The wallet's standing, each number only as far as a quorum has reached it. Too low a mined
/// nonce delays; too high a one would free the tokens of a claim that may still be mined.
pub(super) fn wallet(answers: &Answers<'_, WalletState>) -> Option<WalletState> {
    let mined = |wallet: &&&WalletState| wallet.nonce_mined;
    let first = answers.given.first().map(|wallet| wallet.nonce_mined);
    let same = answers.given.iter().filter(|wallet| Some(mined(wallet)) == first).count();
    let is_one = same == answers.given.len() && answers.carries(same);
    if !is_one && !answers.is_final() {
        return None;
    }
    let of = |number: fn(&WalletState) -> u128| {
        reached(answers.given.iter().map(|wallet| number(wallet)).collect(), answers.needed())
    };
    let nonce = |value: u128| u64::try_from(value).map(WalletNonce::new).ok();
    Some(WalletState {
        nonce_mined: nonce(of(|wallet| wallet.nonce_mined.get().into())?)?,
        nonce_pending: nonce(of(|wallet| wallet.nonce_pending.get().into())?)?,
        balance: of(|wallet| wallet.balance.get()).map(Amount::new)?,
    })
}

/// Where a transaction stands. *Included* needs a quorum for one block and outcome, *Absent* a
/// quorum that does not know it; anything between is *Pending*, which frees nothing and finalises
/// nothing.
pub(super) fn inclusion(answers: &Answers<'_, Inclusion>) -> Option<Inclusion> {
    let is_mined = |found: &&&Inclusion| matches!(found, Inclusion::Included { .. });
    for found in answers.given.iter().filter(is_mined) {
        let alike = answers.given.iter().filter(|other| is_same_sight(found, other));
        if answers.carries(alike.count()) {
            return Some((*found).clone());
        }
    }
    for state in [Inclusion::Absent, Inclusion::Pending] {
        if answers.carries(answers.given.iter().filter(|found| ***found == state).count()) {
            return Some(state);
        }
    }
    answers.is_final().then_some(Inclusion::Pending)
}

/// Whether two answers tell of one transaction in one block with one outcome. What it cost is left
/// out: some endpoints do not know a rollup's part of it.
fn is_same_sight(one: &Inclusion, other: &Inclusion) -> bool {
    let key = |found: &Inclusion| match found {
        Inclusion::Included { block, block_hash, success, proven, .. } => {
            Some((*block, *block_hash, *success, *proven))
        }
        Inclusion::Absent | Inclusion::Pending => None,
    };
    key(one) == key(other)
}

/// Whether an answer contradicts the verdict: another block or outcome, not merely an earlier or
/// later look.
pub(super) fn is_contrary_sight(verdict: &Inclusion, found: &Inclusion) -> bool {
    let is_mined = |sight: &Inclusion| matches!(sight, Inclusion::Included { .. });
    is_mined(verdict) && is_mined(found) && !is_same_sight(verdict, found)
}

/// What became of a broadcast. One endpoint that took it is enough; a refusal needs the quorum.
pub(super) fn broadcast(answers: &Answers<'_, Broadcast>) -> Option<Broadcast> {
    // Until everybody has it or had the time: one pool that drops it must not be the only one.
    if answers.open > 0 || answers.given.is_empty() {
        return None;
    }
    for taken in [Broadcast::Accepted, Broadcast::AlreadyKnown] {
        if answers.given.contains(&&taken) {
            return Some(taken);
        }
    }
    let is_alike = |one: &Broadcast, other: &Broadcast| {
        std::mem::discriminant(one) == std::mem::discriminant(other)
    };
    for refusal in answers.given {
        let alike = answers.given.iter().filter(|other| is_alike(refusal, other));
        if answers.carries(alike.count()) {
            return Some((*refusal).clone());
        }
    }
    let told: Vec<String> = answers.given.iter().map(|told| format!("{told:?}")).collect();
    Some(Broadcast::Unknown(format!("endpoints answer differently: {}", told.join(", "))))
}

/// The outcome of a dry run, and the gas in the middle of what was estimated: the larger of two,
/// because gas that is not used is not paid for.
pub(super) fn dry_run(answers: &Answers<'_, DryRun>) -> Option<DryRun> {
    let mut estimates: Vec<u128> = Vec::new();
    let mut refusals = Vec::new();
    for outcome in answers.given {
        match outcome {
            DryRun::Succeeds(gas) => estimates.push(gas.get().into()),
            DryRun::Reverts(words) => refusals.push(words),
        }
    }
    if answers.carries(refusals.len()) {
        return refusals.first().map(|words| DryRun::Reverts((*words).clone()));
    }
    let is_decided = answers.carries(estimates.len());
    if !is_decided || (answers.open > 0 && !is_near(&estimates)) {
        return None;
    }
    estimates.sort_unstable();
    let gas = estimates.get(estimates.len() / 2).copied()?;
    u64::try_from(gas).ok().map(|gas| DryRun::Succeeds(Gas::new(gas)))
}

/// Fees in the middle of what endpoints suggest, the lower of two: too low an offer is raised
/// later, too high a tip is paid. Not a matter of the quorum: nothing is decided by it.
pub(super) fn fees(answers: &Answers<'_, Fees>) -> Option<Fees> {
    let of = |part: fn(&Fees) -> Amount| {
        let mut all: Vec<u128> = answers.given.iter().map(|fees| part(fees).get()).collect();
        all.sort_unstable();
        all
    };
    let (most, tips) = (of(|fees| fees.fee_max), of(|fees| fees.tip_max));
    let is_enough = answers.given.len() >= answers.needed() && is_near(&most) && is_near(&tips);
    if answers.open > 0 && !is_enough {
        return None;
    }
    let middle = |all: &[u128]| all.get(all.len().checked_sub(1)? / 2).copied();
    let fee_max = Amount::new(middle(&most)?);
    Some(Fees { fee_max, tip_max: Amount::new(middle(&tips)?).min(fee_max) })
}

fn is_near(values: &[u128]) -> bool {
    let (least, most) = (values.iter().min(), values.iter().max());
    least.zip(most).is_some_and(|(least, most)| *most <= least.saturating_mul(NEAR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BlockHash, BlockNumber, TokenCount};
    use alloy::primitives::{B256, U256};

    /// What an endpoint says about a transaction, in short.
    #[derive(Clone, Copy, PartialEq)]
    enum Says {
        Absent,
        Pending,
        /// Mined in the block of this hash, with this outcome and amount.
        Mined(u8, bool, u64),
    }
    use Says::{Absent, Mined, Pending};

    fn sight(says: Says) -> Inclusion {
        match says {
            Absent => Inclusion::Absent,
            Pending => Inclusion::Pending,
            Mined(hash, success, tokens) => Inclusion::Included {
                block: BlockNumber::new(7),
                block_hash: BlockHash::new([hash; 32]),
                success,
                proven: success.then_some(TokenCount::new(tokens)),
                fee: Amount::new(1),
            },
        }
    }

    /// Answers, then how many are open and the quorum, then the verdict.
    type Case<G, V> = (G, (usize, usize), Option<V>);

    /// The verdict of `rule` over `given` with `open` more to come.
    fn by<T, V>(
        rule: impl Fn(&Answers<'_, T>) -> Option<V>,
        given: &[T],
        (open, quorum): (usize, usize),
    ) -> Option<V> {
        let given: Vec<&T> = given.iter().collect();
        rule(&Answers { given: &given, open, quorum })
    }

    #[test]
    fn resting_endpoints_are_asked_only_where_the_quorum_is_short() {
        use Standing::{Barred, Probation, Resting, Well};
        let table: [(&[Standing], usize, &[usize]); 8] = [
            (&[Well, Well, Well], 2, &[0, 1, 2]),
            (&[Probation, Well, Well], 2, &[1, 2, 0]),
            (&[Resting, Well, Well], 2, &[1, 2]),
            (&[Resting, Well, Resting], 2, &[1, 0, 2]),
            (&[Barred, Well, Resting], 2, &[1, 2]),
            (&[Resting], 1, &[0]),
            (&[Barred], 1, &[]),
            (&[Resting, Well], 1, &[1]),
        ];
        for (standings, quorum, expected) in table {
            assert_eq!(order(standings, quorum), expected, "{standings:?}");
        }
    }

    #[test]
    fn a_value_needs_the_quorum_and_more_votes_than_all_others() {
        let table: [Case<&[u8], u8>; 15] = [
            // One endpoint: its word.
            (&[], (1, 1), None),
            (&[5], (0, 1), Some(5)),
            // Two endpoints, a quorum of one: both while both may answer, else the one that does.
            (&[5], (1, 1), None),
            (&[5, 5], (0, 1), Some(5)),
            (&[5, 6], (0, 1), None),
            // Three, two needed: no single one decides, whatever it says and when.
            (&[5], (2, 2), None),
            (&[5, 5], (1, 2), Some(5)),
            (&[9, 5], (1, 2), None),
            (&[9, 5, 5], (0, 2), Some(5)),
            (&[5, 9, 5], (0, 2), Some(5)),
            (&[9, 5, 6], (0, 2), None),
            (&[5], (0, 2), None),
            // Four, two needed: a tie is no verdict.
            (&[5, 6, 5, 6], (0, 2), None),
            // All three needed.
            (&[5, 5], (1, 3), None),
            (&[5, 5, 5], (0, 3), Some(5)),
        ];
        for (given, rest, expected) in table {
            assert_eq!(by(agreed, given, rest), expected, "{given:?} {rest:?}");
        }
    }

    #[test]
    fn a_receipt_counts_and_is_missing_only_by_quorum_and_else_is_pending() {
        let good = Mined(1, true, 100);
        let table: [Case<&[Says], Says>; 19] = [
            (&[good], (0, 1), Some(good)),
            (&[Absent], (0, 1), Some(Absent)),
            (&[Pending], (0, 1), Some(Pending)),
            // Two endpoints.
            (&[good], (1, 1), None),
            (&[good, good], (0, 1), Some(good)),
            (&[good, Absent], (0, 1), Some(Pending)),
            (&[good, Mined(2, true, 100)], (0, 1), Some(Pending)),
            (&[Absent, Pending], (0, 1), Some(Pending)),
            // Three: one liar about block, outcome, amount, absence or presence.
            (&[Mined(2, true, 100), good], (1, 2), None),
            (&[Mined(2, true, 100), good, good], (0, 2), Some(good)),
            (&[Mined(1, false, 0), good, good], (0, 2), Some(good)),
            (&[good, Mined(1, true, 99), good], (0, 2), Some(good)),
            (&[Absent, good, good], (0, 2), Some(good)),
            (&[good, Absent, Absent], (0, 2), Some(Absent)),
            (&[Pending, Absent, Absent], (0, 2), Some(Absent)),
            // Three honest ones that see a block arrive.
            (&[good, Pending, Absent], (0, 2), Some(Pending)),
            // Too few.
            (&[good], (0, 2), None),
            (&[Absent], (0, 2), None),
            (&[], (0, 1), None),
        ];
        for (given, rest, expected) in table {
            let given: Vec<Inclusion> = given.iter().map(|says| sight(*says)).collect();
            let expected = expected.map(sight);
            assert_eq!(by(inclusion, &given, rest), expected, "{given:?} {rest:?}");
        }
        assert!(is_contrary_sight(&sight(good), &sight(Mined(1, false, 0))));
        assert!(is_contrary_sight(&sight(good), &sight(Mined(2, true, 100))));
        for early in [Absent, Pending, good] {
            assert!(!is_contrary_sight(&sight(good), &sight(early)), "no lie: not seen yet");
        }
    }

    #[test]
    fn a_nonce_counts_as_mined_only_as_far_as_a_quorum_has_it() {
        let table: [Case<&[u64], u64>; 10] = [
            (&[4], (0, 1), Some(4)),
            // Two: the lower one, and one's word where the other is silent.
            (&[4], (1, 1), None),
            (&[4, 9], (0, 1), Some(4)),
            (&[4, 4], (0, 1), Some(4)),
            // Three: one too high or too low moves nothing.
            (&[9, 4], (1, 2), None),
            (&[9, 4, 4], (0, 2), Some(4)),
            (&[0, 4, 4], (0, 2), Some(4)),
            (&[9, 4, 5], (0, 2), Some(5)),
            (&[9, 3, 4], (0, 2), Some(4)),
            (&[4], (0, 2), None),
        ];
        for (nonces, rest, expected) in table {
            let state = |nonce: &u64| WalletState {
                nonce_mined: WalletNonce::new(*nonce),
                nonce_pending: WalletNonce::new(*nonce),
                balance: Amount::new(u128::from(*nonce)),
            };
            let given: Vec<WalletState> = nonces.iter().map(state).collect();
            let verdict = by(wallet, &given, rest);
            assert_eq!(verdict, expected.as_ref().map(state), "{nonces:?} {rest:?}");
        }
    }

    fn block(height: u64, hash: u8) -> Block {
        Block {
            number: U256::from(height),
            hash: B256::repeat_byte(hash),
            timestamp: U256::from(height * 12),
            base_fee_per_gas: None,
        }
    }

    #[test]
    fn a_head_is_sought_where_a_quorum_is_and_never_above() {
        let table: [(&[u64], usize, &[u64]); 6] = [
            (&[100], 1, &[100]),
            (&[105, 100], 1, &[100]),
            (&[1_000_000, 100, 101], 2, &[101, 100]),
            (&[3, 100, 101], 2, &[100, 3]),
            (&[100], 2, &[]),
            (&[], 1, &[]),
        ];
        for (heights, quorum, expected) in table {
            let blocks: Vec<Block> = heights.iter().map(|height| block(*height, 1)).collect();
            let blocks: Vec<&Block> = blocks.iter().collect();
            let answers = Answers { given: &blocks, open: 0, quorum };
            assert_eq!(common_heights(&answers), expected, "{heights:?}");
        }
        let two_forks = [block(100, 1), block(100, 2)];
        assert_eq!(by(same_block, &two_forks, (0, 1)), None);
    }

    #[test]
    fn lag_is_measured_against_what_no_single_liar_can_move() {
        let table: [(&[u64], usize, Option<u64>); 6] = [
            (&[105, 100], 1, Some(105)),
            (&[105, 100], 2, Some(100)),
            (&[1_000_000, 100, 101], 2, Some(101)),
            (&[1_000_000, 100, 101], 1, Some(101)),
            (&[7], 2, Some(7)),
            (&[], 1, None),
        ];
        for (heights, quorum, expected) in table {
            let blocks: Vec<Block> = heights.iter().map(|height| block(*height, 1)).collect();
            let blocks: Vec<&Block> = blocks.iter().collect();
            let height = reference(&blocks, quorum).map(|(height, _)| height);
            assert_eq!(height, expected, "{heights:?} {quorum}");
        }
    }

    #[test]
    fn one_endpoint_that_takes_a_transaction_is_enough_and_one_refusal_is_not() {
        let rejected = || Broadcast::Rejected("insufficient funds".into());
        use Broadcast::{Accepted, AlreadyKnown, NonceUsed, Underpriced};
        let table: [Case<Vec<Broadcast>, Broadcast>; 12] = [
            (vec![Accepted], (0, 1), Some(Accepted)),
            (vec![NonceUsed], (0, 1), Some(NonceUsed)),
            (vec![rejected()], (0, 1), Some(rejected())),
            // The others get it as well before anything is said.
            (vec![Accepted], (1, 2), None),
            (vec![rejected(), NonceUsed, Accepted], (0, 2), Some(Accepted)),
            (vec![AlreadyKnown, NonceUsed, NonceUsed], (0, 2), Some(AlreadyKnown)),
            (vec![NonceUsed, AlreadyKnown, Accepted], (0, 2), Some(Accepted)),
            (vec![NonceUsed, NonceUsed], (0, 2), Some(NonceUsed)),
            (vec![rejected(), Underpriced, Underpriced], (0, 2), Some(Underpriced)),
            (vec![rejected(), rejected()], (0, 1), Some(rejected())),
            (vec![], (0, 1), None),
            (vec![], (3, 2), None),
        ];
        for (given, rest, expected) in table {
            assert_eq!(by(broadcast, &given, rest), expected, "{given:?} {rest:?}");
        }
        for split in [vec![NonceUsed], vec![NonceUsed, Underpriced], vec![rejected(), NonceUsed]] {
            let verdict = by(broadcast, &split, (0, 2));
            assert!(matches!(verdict, Some(Broadcast::Unknown(_))), "{split:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_dry_run_goes_by_the_majority_and_by_no_absurd_estimate() {
        let passes = |gas: u64| DryRun::Succeeds(Gas::new(gas));
        let reverts = || DryRun::Reverts("Exceeds deposit".into());
        let table: [Case<Vec<DryRun>, DryRun>; 9] = [
            (vec![passes(184_000)], (0, 1), Some(passes(184_000))),
            (vec![passes(184_000), passes(190_000)], (1, 2), Some(passes(190_000))),
            (vec![passes(21_000), passes(184_000)], (1, 2), None),
            (vec![passes(21_000), passes(184_000), passes(190_000)], (0, 2), Some(passes(184_000))),
            (
                vec![passes(9_000_000_000), passes(184_000), passes(190_000)],
                (0, 2),
                Some(passes(190_000)),
            ),
            (vec![reverts(), passes(184_000)], (1, 2), None),
            (vec![reverts(), passes(184_000), passes(184_000)], (0, 2), Some(passes(184_000))),
            (vec![passes(184_000), reverts(), reverts()], (0, 2), Some(reverts())),
            (vec![passes(184_000), reverts()], (0, 1), None),
        ];
        for (given, rest, expected) in table {
            assert_eq!(by(dry_run, &given, rest), expected, "{given:?} {rest:?}");
        }
    }

    #[test]
    fn fees_are_the_middle_ones_and_the_lower_of_two() {
        let offer = |fee_max, tip_max| Fees {
            fee_max: Amount::new(fee_max),
            tip_max: Amount::new(tip_max),
        };
        let table: [Case<Vec<Fees>, Fees>; 7] = [
            (vec![offer(100, 5)], (0, 1), Some(offer(100, 5))),
            (vec![offer(100, 5), offer(110, 6)], (1, 2), Some(offer(100, 5))),
            (vec![offer(100, 5), offer(900, 800)], (1, 2), None),
            (vec![offer(100, 5), offer(900, 800)], (0, 1), Some(offer(100, 5))),
            (vec![offer(900, 800), offer(100, 5), offer(110, 6)], (0, 2), Some(offer(110, 6))),
            (vec![offer(1, 0), offer(100, 5), offer(110, 6)], (0, 2), Some(offer(100, 5))),
            (vec![], (0, 1), None),
        ];
        for (given, rest, expected) in table {
            assert_eq!(by(fees, &given, rest), expected, "{given:?} {rest:?}");
        }
    }
}
