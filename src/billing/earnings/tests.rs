//! The equation of earnings under random histories, and what rows hold in plain ones.

use proptest::prelude::*;

use super::*;
use crate::billing::{
    Attempt, ClaimBody, Lost, Purpose, RejectReason, SeedOrigin, TurnEnd, TurnHeader,
};
use crate::units::{
    BlockHash, BlockNumber, ChainTime, ClaimSeq, Millis, PricePerToken, TxHash, WalletNonce,
};

const TOKEN: Address = Address::new([9; 20]);
const ALL: [GroupBy; 3] = [GroupBy::Day, GroupBy::Model, GroupBy::Job];

fn terms(unit: u64) -> ContractTerms {
    ContractTerms { price_unit: PriceUnit::new(unit), fee_basis_points: Some(333) }
}

fn job(number: u64) -> JobId {
    JobId::new(number).unwrap()
}

fn opened(price: u128, payment_token: Address, before: u64) -> Fact {
    Fact::JobOpened {
        depositor: Address::new([1; 20]),
        deposit: Amount::new(u128::MAX),
        price: PricePerToken::new(price),
        payment_token,
        start_time: ChainTime::ZERO,
        tokens_before: TokenCount::new(before),
    }
}

fn started(turn: u32, model: u8) -> Fact {
    Fact::TurnStarted(TurnHeader {
        turn: TurnNo::new(turn),
        model_spec: Hash32::new([model; 32]),
        tokenizer_spec: Hash32::ZERO,
        decode_spec: Hash32::ZERO,
        engine_spec: 0,
        seed: Hash32::ZERO,
        seed_origin: SeedOrigin::Client,
        decode: None,
        nonces: None,
        prompt_ids: vec![],
    })
}

fn delivered(turn: u32, position: u32, count: usize) -> Fact {
    Fact::Delivered { turn: TurnNo::new(turn), position, ids: vec![7; count], states: vec![] }
}

fn attempt(nonce: u64) -> Attempt {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&nonce.to_be_bytes());
    let (fee_max, tip_max) = (Amount::new(1), Amount::new(1));
    Attempt { hash: TxHash::new(hash), raw: vec![], fee_max, tip_max, gas_limit: 1 }
}

fn claim(nonce: u64, tokens: u64) -> Fact {
    let body = ClaimBody {
        seq: ClaimSeq::new(1),
        tokens: TokenCount::new(tokens),
        tokens_cumulative: TokenCount::new(tokens),
        proof: vec![],
    };
    prepared(nonce, Purpose::Claim(body))
}

fn prepared(nonce: u64, purpose: Purpose) -> Fact {
    Fact::TxPrepared { nonce: WalletNonce::new(nonce), purpose, attempt: attempt(nonce) }
}

fn included(nonce: u64, sighting: u32, fee: u128) -> Fact {
    Fact::TxIncluded {
        nonce: WalletNonce::new(nonce),
        hash: attempt(nonce).hash,
        sighting,
        block: BlockNumber::new(1),
        block_hash: BlockHash::new([0; 32]),
        fee: Amount::new(fee),
    }
}

fn confirmed(nonce: u64) -> Fact {
    Fact::TxConfirmed { nonce: WalletNonce::new(nonce), sighting: 0 }
}

fn rejected(nonce: u64, fee: u128) -> Fact {
    Fact::TxRejected {
        nonce: WalletNonce::new(nonce),
        first: attempt(nonce).hash,
        reason: RejectReason::Reverted,
        fee: Amount::new(fee),
    }
}

fn at_day(day: u64, subject: Subject, fact: Fact) -> Entry {
    Entry { subject, at: Millis::new(day * DAY_MS + 5), fact }
}

fn fold(entries: &[Entry]) -> Earnings {
    let mut earnings = Earnings::default();
    for entry in entries {
        earnings.apply(entry).unwrap();
    }
    earnings
}

fn check_parts<T: Copy + Into<u128>>(parts: Parts<T>, what: &str) {
    let sum = [parts.claimed, parts.pending, parts.unclaimable, parts.forfeited];
    let sum: u128 = sum.into_iter().map(Into::into).sum();
    assert_eq!(parts.earned.into(), sum, "{what}");
}

fn check_row(row: &Row) {
    check_parts(row.tokens, "tokens");
    for parts in [row.paid, row.host].into_iter().flatten() {
        check_parts(parts, "money");
    }
    if let (Some(paid), Some(host)) = (row.paid, row.host) {
        assert!(host.earned <= paid.earned && host.claimed <= paid.claimed);
    }
}

/// The report, after the equation was checked in every row and every total.
fn checked(earnings: &Earnings, by: GroupBy, terms: ContractTerms) -> Report {
    let report = earnings.report(by, terms).unwrap();
    report.rows.iter().chain(&report.totals).for_each(check_row);
    for total in &report.totals {
        let rows = report.rows.iter().filter(|row| row.payment_token == total.payment_token);
        let sum = |of: &dyn Fn(&Row) -> u128| rows.clone().map(of).sum::<u128>();
        assert_eq!(sum(&|row| row.tokens.earned.into()), u128::from(total.tokens.earned));
        assert_eq!(sum(&|row| row.tokens.claimed.into()), u128::from(total.tokens.claimed));
        assert_eq!(sum(&|row| row.gas), total.gas);
        for of in [|row: &Row| row.paid, |row: &Row| row.host] {
            let sum = |part: &dyn Fn(Parts<u128>) -> u128| {
                rows.clone().map(|row| of(row).map_or(0, part)).sum::<u128>()
            };
            let total = of(total).unwrap_or_default();
            assert_eq!(sum(&|parts| parts.earned), total.earned);
            assert_eq!(sum(&|parts| parts.claimed), total.claimed);
            assert_eq!(sum(&|parts| parts.forfeited), total.forfeited);
        }
    }
    report
}

#[test]
fn each_state_of_a_token_has_its_column_and_its_price() {
    let one = Subject::from(job(1));
    let mut entries = vec![
        at_day(0, one, opened(10, Address::ZERO, 0)),
        at_day(0, one, started(0, 1)),
        at_day(0, one, delivered(0, 0, 150)),
        at_day(0, one, claim(0, 150)),
        at_day(0, one, included(0, 0, 7)),
    ];
    let row = |entries: &[Entry]| {
        let report = checked(&fold(entries), GroupBy::Job, terms(1));
        assert_eq!(report.rows.len(), 1);
        report.rows[0].clone()
    };
    assert_eq!(row(&entries).tokens, Parts { earned: 150, pending: 150, ..Parts::default() });
    assert_eq!(row(&entries).net(), Some(-7), "in a block is not claimed for good");
    entries.push(at_day(0, one, confirmed(0)));
    entries.push(at_day(0, one, delivered(0, 150, 42)));
    let now = row(&entries);
    assert_eq!(now.tokens, Parts { earned: 192, claimed: 150, pending: 42, ..Parts::default() });
    let paid = Parts { earned: 1920, claimed: 1500, pending: 420, ..Parts::default() };
    assert_eq!(now.paid, Some(paid));
    // 3.33 % of 1500 is 49.95, rounded down.
    assert_eq!(now.host.map(|host| host.claimed), Some(1500 - 49));
    assert_eq!(now.net(), Some(1500 - 49 - 7));
    let Lost { unclaimable, forfeited } =
        Lost { unclaimable: TokenCount::new(42), forfeited: TokenCount::ZERO };
    entries.push(at_day(
        1,
        one,
        Fact::JobClosed { closing: 0, block: BlockNumber::ZERO, unclaimable, forfeited },
    ));
    let ended = Parts { earned: 192, claimed: 150, unclaimable: 42, ..Parts::default() };
    assert_eq!(row(&entries).tokens, ended);
    entries.push(at_day(1, one, Fact::JobReopened { closing: 0 }));
    assert_eq!(row(&entries).tokens.pending, 42, "the block that ended it is gone");
}

#[test]
fn rows_by_day_and_by_model_follow_the_tokens_and_gas_the_day_it_was_paid() {
    let one = Subject::from(job(1));
    let entries = [
        at_day(3, one, opened(10, Address::ZERO, 0)),
        at_day(3, one, started(0, 1)),
        at_day(3, one, delivered(0, 0, 100)),
        at_day(4, one, started(1, 2)),
        at_day(4, one, delivered(1, 0, 50)),
        at_day(4, one, claim(0, 120)),
        at_day(5, one, included(0, 0, 7)),
        at_day(6, one, confirmed(0)),
        at_day(6, Subject::Wallet, prepared(1, Purpose::Fill)),
        at_day(7, Subject::Wallet, rejected(1, 3)),
    ];
    let earnings = fold(&entries);
    let by_day = checked(&earnings, GroupBy::Day, terms(1));
    let seen: Vec<_> = by_day
        .rows
        .iter()
        .map(|row| (row.group, row.tokens.claimed, row.tokens.pending, row.gas))
        .collect();
    let days = [
        (Group::Day(3), 100, 0, 0),
        (Group::Day(4), 20, 30, 0),
        (Group::Day(5), 0, 0, 7),
        (Group::Day(7), 0, 0, 3),
    ];
    assert_eq!(seen, days);
    let by_model = checked(&earnings, GroupBy::Model, terms(1));
    let seen: Vec<_> = by_model.rows.iter().map(|row| (row.group, row.gas)).collect();
    let model = |byte| Group::Model(Hash32::new([byte; 32]));
    // 7 × 100 / 150 is 4.67, rounded down; the last has the rest.
    assert_eq!(seen, [(model(1), 4), (model(2), 3), (Group::Wallet, 3)]);
    let by_job = checked(&earnings, GroupBy::Job, terms(1));
    assert_eq!(by_job.rows.len(), 2);
    assert_eq!(by_job.totals[0].gas, 10);
}

#[test]
fn currencies_never_mix_and_net_needs_the_native_one() {
    let entries = [
        at_day(0, job(1).into(), opened(10, TOKEN, 0)),
        at_day(0, job(1).into(), started(0, 1)),
        at_day(0, job(1).into(), delivered(0, 0, 200)),
        at_day(0, job(1).into(), claim(0, 200)),
        at_day(0, job(1).into(), included(0, 0, 7)),
        at_day(0, job(2).into(), opened(1, Address::ZERO, 0)),
        at_day(0, job(2).into(), started(0, 1)),
        at_day(0, job(2).into(), delivered(0, 0, 5)),
    ];
    let report = checked(&fold(&entries), GroupBy::Model, terms(1));
    let totals: Vec<_> = report
        .totals
        .iter()
        .map(|row| (row.payment_token, row.tokens.earned, row.gas, row.net().is_some()))
        .collect();
    assert_eq!(totals, [(Address::ZERO, 5, 0, true), (TOKEN, 200, 7, false)]);
}

#[test]
fn the_price_unit_rounds_once_for_the_whole_job_and_parts_add_up() {
    let one = Subject::from(job(1));
    // 3 tokens were claimed before this ledger: their remainder belongs to the whole.
    let mut entries =
        vec![at_day(0, one, opened(333, Address::ZERO, 3)), { at_day(0, one, started(0, 1)) }];
    for nth in 0..100 {
        entries.push(at_day(u64::from(nth), one, delivered(0, nth, 1)));
    }
    let report = checked(&fold(&entries), GroupBy::Day, terms(1000));
    assert_eq!(report.rows.len(), 100);
    // floor(103 × 333 / 1000) − floor(3 × 333 / 1000)
    assert_eq!(report.totals[0].paid.map(|paid| paid.earned), Some(34));
}

#[test]
fn what_the_chain_did_not_say_is_unknown_and_not_zero() {
    let one = Subject::from(job(1));
    let entries = [
        at_day(0, one, opened(10, Address::ZERO, 0)),
        at_day(0, one, started(0, 1)),
        at_day(0, one, delivered(0, 0, 10)),
    ];
    let nothing = checked(&fold(&entries), GroupBy::Job, ContractTerms::default());
    assert_eq!((nothing.rows[0].paid, nothing.rows[0].host), (None, None));
    let half = ContractTerms { fee_basis_points: None, ..terms(1) };
    let half = checked(&fold(&entries), GroupBy::Job, half);
    assert_eq!(half.rows[0].paid.map(|paid| paid.earned), Some(100));
    assert_eq!((half.rows[0].host, half.rows[0].net()), (None, None));
}

#[test]
fn absurd_prices_are_an_error_and_never_a_wrong_number() {
    let one = Subject::from(job(1));
    let entries = [
        at_day(0, one, opened(u128::MAX, Address::ZERO, 0)),
        at_day(0, one, started(0, 1)),
        at_day(0, one, delivered(0, 0, 2)),
    ];
    let refused = fold(&entries).report(GroupBy::Job, terms(1));
    assert_eq!(refused, Err(EarningsError::Overflow { subject: one }));
}

#[test]
fn dates_are_those_of_the_calendar() {
    let table = [
        (0, "1970-01-01"),
        (58, "1970-02-28"),
        (59, "1970-03-01"),
        (789, "1972-02-29"),
        (10_957, "2000-01-01"),
        (11_016, "2000-02-29"),
        (20_779, "2026-11-22"),
        (47_540, "2100-02-28"),
        (47_541, "2100-03-01"),
        (146_097, "2370-01-01"),
    ];
    for (days, expected) in table {
        assert_eq!(date(days), expected, "{days}");
    }
}

/// One random step; what does not fit is refused by the account and skipped.
#[derive(Debug, Clone, Copy)]
struct Step {
    what: u8,
    whose: u64,
    nonce: u64,
    number: u16,
}

fn step() -> impl Strategy<Value = Step> {
    (0_u8..14, 0_u64..4, 0_u64..6, 0_u16..400).prop_map(|(what, whose, nonce, number)| Step {
        what,
        whose,
        nonce,
        number,
    })
}

/// What a step writes, given what the account looks like now.
fn fact(earnings: &Earnings, step: Step) -> (Subject, Fact) {
    let Step { what, whose, nonce, number } = step;
    let Some(job) = JobId::new(whose) else {
        let fact = match what % 4 {
            0 => prepared(nonce, Purpose::Fill),
            1 => included(nonce, 0, number.into()),
            2 => confirmed(nonce),
            _ => rejected(nonce, number.into()),
        };
        return (Subject::Wallet, fact);
    };
    let account = earnings.accounts().jobs.get(&job).cloned().unwrap_or(Account::new(job));
    let turn = account.turn_next().get();
    let left = account.recorded().saturating_sub(account.confirmed());
    let fact = match what {
        0 => opened(u128::from(number), if whose == 3 { TOKEN } else { Address::ZERO }, whose),
        1 => started(turn, u8::try_from(number % 3).unwrap()),
        2..=4 => {
            let open = account.turns_open().last().unwrap_or(TurnNo::ZERO).get();
            delivered(open, u32::from(number % 8) * u32::from(what % 2), number.into())
        }
        5 => Fact::TurnEnded { turn: TurnNo::new(turn.saturating_sub(1)), end: TurnEnd::Stop },
        6 | 7 => claim(nonce, u64::from(number).min(account.unclaimed().get())),
        8 => included(nonce, 0, number.into()),
        9 => confirmed(nonce),
        10 => Fact::TxReorged { nonce: WalletNonce::new(nonce), sighting: 0 },
        11 => rejected(nonce, number.into()),
        12 => {
            let lost = Lost::at_end(left, TokenCount::new(100));
            let (unclaimable, forfeited) = match number % 3 {
                0 => (TokenCount::new(number.into()), TokenCount::new(number.into())),
                _ => (lost.unclaimable, lost.forfeited),
            };
            Fact::JobClosed {
                closing: account.closings(),
                block: BlockNumber::ZERO,
                unclaimable,
                forfeited,
            }
        }
        _ => Fact::JobReopened { closing: account.closings() },
    };
    (job.into(), fact)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(256)
    })]

    #[test]
    fn earned_is_claimed_pending_unclaimable_and_forfeited_whatever_happens(
        steps in proptest::collection::vec(step(), 0..120),
        unit in prop_oneof![Just(1), Just(7), Just(1000)],
    ) {
        let mut earnings = Earnings::default();
        let (mut recorded, mut day) = (0_u128, 0);
        for step in steps {
            let (subject, fact) = fact(&earnings, step);
            let tokens = match &fact {
                Fact::Delivered { ids, .. } => ids.len() as u128,
                _ => 0,
            };
            day += u64::from(step.number % 5 == 0);
            if earnings.apply(&at_day(day, subject, fact)).is_ok() {
                recorded += tokens;
            }
        }
        let accounts = earnings.accounts();
        let txs = accounts.jobs.values().flat_map(Account::txs).chain(accounts.wallet.txs().all());
        let gas: u128 = txs.filter(|tx| tx.state != TxState::Prepared).map(|tx| tx.fee.get()).sum();
        let confirmed = accounts.jobs.values().map(|one| u128::from(one.confirmed().get()));
        let claimed: u128 = confirmed.sum();
        let reports = ALL.map(|by| checked(&earnings, by, terms(unit)));
        for report in &reports {
            prop_assert_eq!(&report.totals, &reports[0].totals);
            let sum = |of: fn(&Row) -> u128| report.rows.iter().map(of).sum::<u128>();
            prop_assert_eq!(sum(|row| row.tokens.earned.into()), recorded);
            prop_assert_eq!(sum(|row| row.tokens.claimed.into()), claimed);
            prop_assert_eq!(sum(|row| row.gas), gas);
        }
    }
}
