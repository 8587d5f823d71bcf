//! What one run is like: its contract, its node's settings, and how rough its world is.
//!
//! Swarm style: every run draws for itself which faults it has at all, and how often. Some runs are
//! calm, some have one fault only, some have all of them.

use std::collections::BTreeMap;

use tally::chain::sim::{Faults, Habits, REORG_DEPTH_MAX, Rng, SimRules};
use tally::session::{Beyond, ExposureRule, Grace};
use tally::settlement::SettlementRules;
use tally::units::{Address, Amount, ChainSeconds, Millis, PriceUnit, TokenCount};

/// The payment token of sessions that are not paid in the native currency.
pub const ERC20: Address = Address::new([0xee; 20]);

/// One thing that may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Tick,
    Mine,
    Advance,
    Ask,
    AskWhole,
    Read,
    Leave,
    Connect,
    Sync,
    HoldLedger,
    FillLedger,
    BreakLedger,
    Crash,
    Stop,
    Weather,
    Reorg,
    Foreign,
    Burn,
    Storm,
    Poor,
    TimeJump,
    Open,
    TimeOut,
    StrangerCompletes,
    DepositorCompletes,
}

/// Steps every run has, with the range of their weights.
const ALWAYS: [(Step, u64, u64); 5] = [
    (Step::Tick, 15, 40),
    (Step::Mine, 8, 25),
    (Step::Advance, 2, 8),
    (Step::Ask, 4, 12),
    (Step::Read, 30, 80),
];

/// Steps a run may have, with their greatest weights.
const SOMETIMES: [(Step, u64); 20] = [
    (Step::AskWhole, 3),
    (Step::Leave, 5),
    (Step::Connect, 6),
    (Step::Sync, 20),
    (Step::HoldLedger, 6),
    (Step::FillLedger, 1),
    (Step::BreakLedger, 1),
    (Step::Crash, 6),
    (Step::Stop, 2),
    (Step::Weather, 10),
    (Step::Reorg, 14),
    (Step::Foreign, 3),
    (Step::Burn, 3),
    (Step::Storm, 4),
    (Step::Poor, 3),
    (Step::TimeJump, 2),
    (Step::Open, 2),
    (Step::TimeOut, 3),
    (Step::StrangerCompletes, 1),
    (Step::DepositorCompletes, 1),
];

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Mix {
    pub contract: SimRules,
    pub rules: SettlementRules,
    pub weights: Vec<(Step, u64)>,
    /// The endpoint in bad weather.
    pub faults: Faults,
    pub habits: Habits,
    pub jobs: u64,
    pub clients: u64,
    pub steps: u64,
    pub reorg_depth_max: u64,
    pub exposure: ExposureRule,
}

impl Mix {
    pub fn draw(rng: &mut Rng) -> Self {
        let always = ALWAYS.iter().map(|(step, low, high)| (*step, rng.between(*low, *high)));
        let mut weights: Vec<_> = always.collect();
        let roughness = rng.between(0, 80);
        for (step, most) in SOMETIMES {
            if rng.chance(roughness) {
                weights.push((step, rng.between(1, most)));
            }
        }
        let faults = draw_faults(rng, roughness);
        let habits = draw_habits(rng, roughness);
        Self {
            contract: draw_contract(rng),
            rules: draw_rules(rng),
            weights,
            faults,
            habits,
            jobs: rng.between(1, 4),
            clients: rng.between(1, 6),
            steps: rng.between(100, 900),
            reorg_depth_max: rng.between(1, 12),
            exposure: draw_exposure(rng),
        }
    }

    pub fn pick(&self, rng: &mut Rng) -> Step {
        let total = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.below(total);
        for (step, weight) in &self.weights {
            if at < *weight {
                return *step;
            }
            at -= weight;
        }
        Step::Tick
    }
}

/// A chance in percent, or none.
fn some(rng: &mut Rng, roughness: u64, most: u64) -> u64 {
    if rng.chance(roughness) { rng.between(1, most) } else { 0 }
}

fn draw_contract(rng: &mut Rng) -> SimRules {
    let is_early = rng.chance(60);
    let unit = if is_early { 1 } else { 1_000 };
    SimRules {
        claim_min: 100,
        price_unit: PriceUnit::new(unit).unwrap(),
        dispute_window: rng.between(30, 300),
        words_are_single_use: rng.chance(75),
        block_gap: rng.below(2),
    }
}

fn draw_rules(rng: &mut Rng) -> SettlementRules {
    let seconds = |rng: &mut Rng, low, high| Millis::new(rng.between(low, high) * 1_000);
    SettlementRules {
        claim_at: TokenCount::new(if rng.chance(70) { 100 } else { rng.between(100, 500) }),
        claim_margin: ChainSeconds::new(rng.between(30, 120)),
        fee_share_max: if rng.chance(60) { f64::INFINITY } else { 0.5 },
        fee_max: rng.chance(20).then(|| Amount::new(u128::from(rng.between(500, 5_000)))),
        confirmations: rng.between(1, 5),
        grace: Grace {
            dropped: seconds(rng, 20, 120),
            closed: seconds(rng, 2, 20),
            idle: seconds(rng, 60, 600),
        },
        reprice_after: seconds(rng, 5, 60),
        sweep_every: Millis::new(if rng.chance(50) { 0 } else { 30_000 }),
        // A block that the deepest reorg reaches is not final yet.
        reorg_depth: REORG_DEPTH_MAX + rng.between(1, 5),
        complete_at_a_loss: rng.chance(70),
        wei_per_unit: worth_of(rng),
        cold_address: None,
        withdraw_above: BTreeMap::new(),
    }
}

fn worth_of(rng: &mut Rng) -> BTreeMap<Address, f64> {
    if rng.chance(50) { BTreeMap::from([(ERC20, 1.0)]) } else { BTreeMap::new() }
}

fn draw_exposure(rng: &mut Rng) -> ExposureRule {
    let beyond = if rng.chance(50) { Beyond::Slow } else { Beyond::Refuse };
    let tokens_max = TokenCount::new(rng.between(200, 20_000));
    ExposureRule { tokens_max, beyond }
}

fn draw_faults(rng: &mut Rng, roughness: u64) -> Faults {
    let mut some = |most| some(rng, roughness, most);
    let mut faults = Faults {
        is_down: false,
        errors: some(30),
        lag_max: some(4),
        lag_is_steady: false,
        lies: some(8),
        hides_pool: false,
        waits: 0,
        loses: some(40),
        times_out: some(60),
        is_silent: some(40),
        delays: some(30),
        duplicates: some(30),
        refuses: some(20),
    };
    faults.lag_is_steady = rng.chance(50);
    faults.hides_pool = rng.chance(roughness / 3);
    faults.waits = if rng.chance(70) { rng.between(5, 40) } else { 0 };
    faults.is_down = rng.chance(roughness / 6);
    faults
}

fn draw_habits(rng: &mut Rng, roughness: u64) -> Habits {
    let mut some = |most| some(rng, roughness, most);
    let mut habits = Habits {
        skip: some(40),
        revert: some(30),
        vanish: some(60),
        late: some(30),
        is_strict: false,
    };
    habits.is_strict = rng.chance(50);
    habits
}
