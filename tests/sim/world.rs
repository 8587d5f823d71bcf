//! One run: a whole node in a world that follows from one seed.

use std::collections::BTreeMap;
use std::sync::Arc;

use tally::billing::{Account, Purpose};
use tally::chain::Chain;
use tally::chain::sim::{Faults, ForeignPlace, Habits, Rng, Sender, SimChain, SimTerms};
use tally::engine::scripted::ScriptedEngine;
use tally::ledger::Ledger;
use tally::ledger::memory::MemoryLedger;
use tally::node::wiring;
use tally::units::{Address, JobId};

use crate::auditor::Auditor;
use crate::client::{Client, Seen, look, script};
use crate::clock::SimClock;
use crate::mix::{ERC20, Mix, Step};
use crate::node::{Machine, Node};

/// Wei that the host has for gas, when it is not poor.
const BALANCE: u128 = 1_000_000_000_000;
/// Wei per gas in calm times.
const BASE_FEE: u128 = 10;
/// Claims that chance may ruin in one run by taken nonces and burnt words, and by gas that runs
/// out: together fewer than the rejections in a row after which the node calls a human.
const RUINS_MAX: u32 = 2;
const REVERTS_MAX: u32 = 2;
/// Rounds after which a calm world must have come to rest.
const ROUNDS_MAX: u64 = 400;
/// Rounds it must then stay so.
const ROUNDS_STILL: u64 = 5;

/// What a run that ended well was like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub steps: u64,
    /// What happened how often: entries of the ledger by kind, and things done to the world.
    pub counts: BTreeMap<&'static str, u64>,
    /// Fingerprint of everything that happened.
    pub trace: u64,
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub seed: u64,
    pub step: u64,
    pub what: String,
}

struct World {
    mix: Mix,
    rng: Rng,
    machine: Machine,
    node: Option<Node>,
    auditor: Auditor,
    jobs: Vec<JobId>,
    clients: Vec<Client>,
    ledger_is_held: bool,
    ledger_is_full: bool,
    is_stormy: bool,
    ruins: u32,
    steps: u64,
    counts: BTreeMap<&'static str, u64>,
    trace: u64,
    is_printed: bool,
}

/// Runs the world of a seed from its beginning to its rest.
pub fn run(seed: u64, is_printed: bool) -> Result<Outcome, Violation> {
    let mut world = World::new(seed, is_printed);
    match world.live() {
        Ok(()) => Ok(world.outcome()),
        Err(what) => Err(Violation { seed, step: world.steps, what }),
    }
}

impl World {
    fn new(seed: u64, is_printed: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mix = Mix::draw(&mut rng);
        let chain = SimChain::new(mix.contract, BALANCE, rng.draw());
        if is_printed {
            println!("{mix:#?}");
            chain.print_trace();
        }
        let limits = look(&mut chain.limits()).unwrap().unwrap();
        let machine = Machine {
            chain,
            clock: Arc::new(SimClock::default()),
            engine: ScriptedEngine::new(script(1)),
            limits,
            rules: mix.rules.clone(),
            exposure: mix.exposure,
        };
        Self {
            mix,
            rng,
            machine,
            node: None,
            auditor: Auditor::default(),
            jobs: Vec::new(),
            clients: Vec::new(),
            ledger_is_held: false,
            ledger_is_full: false,
            is_stormy: false,
            ruins: 0,
            steps: 0,
            counts: BTreeMap::new(),
            trace: 0,
            is_printed,
        }
    }

    fn outcome(&self) -> Outcome {
        let trace = self.trace ^ self.machine.chain.fingerprint();
        let mut counts = self.counts.clone();
        for (what, count) in self.auditor.kinds() {
            *counts.entry(what).or_insert(0) += count;
        }
        Outcome { steps: self.steps, counts, trace }
    }

    fn live(&mut self) -> Result<(), String> {
        for _ in 0..self.mix.jobs {
            self.open();
        }
        self.machine.chain.mine(10);
        self.machine.chain.set_reverts(REVERTS_MAX);
        self.set_weather(false);
        self.boot(MemoryLedger::new())?;
        for _ in 0..self.mix.clients {
            let job = self.jobs[self.rng.index(self.jobs.len())];
            self.clients.push(Client::new(job));
        }
        for _ in 0..self.mix.steps {
            let step = self.mix.pick(&mut self.rng);
            self.steps += 1;
            self.note(&format!("{step:?}"));
            self.take(step)?;
            self.audit()?;
        }
        self.rest()
    }

    fn note(&mut self, line: &str) {
        for byte in line.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.is_printed {
            let (height, time) = self.machine.chain.tip();
            println!("{:4} [{height} {time}] {line}", self.steps);
        }
    }

    fn count(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_insert(0) += times;
    }

    fn node(&mut self) -> &mut Node {
        self.node.as_mut().unwrap()
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Tick => return self.tick(),
            Step::Mine => self.mine(),
            Step::Advance => {
                let ms = self.rng.between(100, 30_000);
                self.machine.clock.advance(ms);
            }
            Step::Ask => self.ask(false),
            Step::AskWhole => self.ask(true),
            Step::Read => self.read(),
            Step::Leave => {
                let at = self.rng.index(self.clients.len());
                let is_clean = self.rng.chance(50);
                match self.rng.below(2) {
                    0 => self.clients[at].leave(),
                    _ => self.clients[at].disconnect(is_clean),
                }
            }
            Step::Connect => self.connect(),
            Step::Sync => {
                let groups = self.rng.index(6);
                self.node().ledger.release_some(groups);
            }
            Step::HoldLedger => {
                self.ledger_is_held = !self.ledger_is_held;
                let ledger = self.node().ledger.clone();
                if self.ledger_is_held { ledger.hold() } else { ledger.let_go() }
            }
            Step::FillLedger => {
                self.ledger_is_full = !self.ledger_is_full;
                self.set_ledger_room();
                self.count("full ledgers", 1);
            }
            Step::BreakLedger => self.node().ledger.fail_next(),
            Step::Crash => return self.crash_in_a_pass(),
            Step::Stop => return self.stop(),
            _ => self.disturb(step),
        }
        Ok(())
    }

    /// Something happens to chain, endpoint or wallet.
    fn disturb(&mut self, step: Step) {
        let chain = self.machine.chain.clone();
        match step {
            Step::Weather => self.set_weather(!self.is_stormy),
            Step::Reorg => {
                let depth = self.rng.between(1, self.mix.reorg_depth_max);
                let lost = chain.reorg(depth);
                self.note(&format!("lost {lost} blocks"));
                self.count("blocks lost", lost);
            }
            Step::Foreign if self.may_ruin() => {
                let is_behind = self.rng.chance(30);
                let place = if is_behind { ForeignPlace::Behind } else { ForeignPlace::Mined };
                chain.foreign(place);
                self.count("foreign transactions", 1);
            }
            Step::Burn if self.may_ruin() => {
                let burnt = u64::from(chain.burn());
                self.count("words burnt", burnt);
            }
            Step::Storm => {
                let times = [1, 1, 2, 5, 20, 100][self.rng.index(6)];
                chain.set_base_fee(BASE_FEE * times);
            }
            Step::Poor => {
                let wei = [BALANCE, BALANCE, 10_000_000, 1_000_000, 0][self.rng.index(5)];
                chain.set_balance(wei);
            }
            Step::TimeJump => {
                let seconds = self.rng.between(60, 7_200);
                self.machine.clock.advance(seconds * 1_000);
                chain.mine(seconds);
            }
            Step::Open => self.open(),
            Step::TimeOut => chain.time_out(self.any_job()),
            Step::StrangerCompletes => chain.complete(self.any_job(), Sender::Stranger),
            Step::DepositorCompletes => chain.complete(self.any_job(), Sender::Depositor),
            _ => {}
        }
    }

    fn any_job(&mut self) -> JobId {
        self.jobs[self.rng.index(self.jobs.len())]
    }

    fn may_ruin(&mut self) -> bool {
        self.ruins += 1;
        self.ruins <= RUINS_MAX
    }

    fn open(&mut self) {
        let rng = &mut self.rng;
        let unit = self.mix.contract.price_unit.get();
        let price = u128::from(rng.between(1_000_000, 3_000_000)) * u128::from(unit);
        let buys = [90, 150, 250, 600, 1_000, 5_000, 10_000][rng.index(7)] + rng.below(50);
        let rest = u128::from(rng.below(900_000));
        let (is_erc20, is_short, is_loud) = (rng.chance(25), rng.chance(25), rng.chance(50));
        let terms = SimTerms {
            payment_token: if is_erc20 { ERC20 } else { Address::ZERO },
            deposit: u128::from(buys) * price / u128::from(unit) + rest,
            price,
            duration_max: if is_short { rng.between(900, 4_000) } else { 864_000 },
            silence_max: if is_loud { 3 * rng.between(100, 1_000) } else { 864_000 },
            rate_per_second: if unit == 1 { 20 } else { rng.between(10, 2_000) },
            tokens_before: if rng.chance(10) { rng.below(buys) } else { 0 },
        };
        let job = self.machine.chain.open(terms).unwrap();
        self.auditor.opened(job, &terms, unit);
        self.jobs.push(job);
    }

    /// Settlement goes on: to its next await, or some further ones.
    fn tick(&mut self) -> Result<(), String> {
        let is_short = self.rng.chance(30);
        let times = if is_short { self.rng.between(1, 12) } else { self.rng.between(12, 200) };
        if !self.node().ledger.is_healthy() && self.rng.chance(30) {
            // The node watches its ledger, and stops.
            return self.crash();
        }
        for _ in 0..times {
            if !self.node().nudge() {
                return self.crash();
            }
            if self.node().is_resting() {
                return Ok(());
            }
            if self.rng.chance(30) {
                self.node().ledger.release_some(1);
            }
        }
        Ok(())
    }

    fn mine(&mut self) {
        let blocks = [1, 1, 1, 2, 4][self.rng.index(5)];
        let gap = self.mix.contract.block_gap;
        for _ in 0..blocks {
            let seconds = if self.rng.chance(10) { gap } else { self.rng.between(1, 25) };
            self.machine.clock.advance(seconds * 1_000);
            self.machine.chain.mine(seconds);
        }
    }

    fn ask(&mut self, wants_whole: bool) {
        let Some(at) = self.any_client(Client::is_idle) else { return };
        if !self.clients[at].is_connected() {
            self.clients[at].job = self.any_job();
        }
        let said = self.rng.between(1, 400);
        let wanted = self.rng.between(1, 400);
        self.machine.engine.set_script(script(said));
        let sessions = self.node().sessions.clone();
        self.clients[at].ask(sessions, wanted, wants_whole);
    }

    fn any_client(&mut self, is_fit: impl Fn(&Client) -> bool) -> Option<usize> {
        let fit: Vec<_> = (0..self.clients.len()).filter(|at| is_fit(&self.clients[*at])).collect();
        fit.get(self.rng.index(fit.len())).copied()
    }

    fn connect(&mut self) {
        let at = self.rng.index(self.clients.len());
        if self.clients[at].is_connected() {
            return;
        }
        let sessions = self.node().sessions.clone();
        if self.clients[at].is_idle() {
            self.clients[at].job = self.any_job();
        }
        self.clients[at].connect(&sessions);
    }

    fn read(&mut self) {
        let Some(at) = self.any_client(|client| !client.is_idle()) else { return };
        let frames = self.rng.between(1, 60);
        for _ in 0..frames {
            let is_written = !self.rng.chance(1);
            let job = self.clients[at].job;
            match self.clients[at].read(is_written) {
                Seen::Tokens(tokens, is_whole) => {
                    let is_beyond = is_whole || self.ledger_is_full;
                    self.auditor.delivered(job, tokens, is_beyond);
                }
                Seen::Nothing if self.rng.chance(50) => self.node().ledger.release_some(1),
                Seen::Nothing => {}
                Seen::Over => return,
            }
        }
    }

    fn set_ledger_room(&mut self) {
        let groups = if self.ledger_is_full { 1 } else { 8_192 };
        self.node().ledger.set_queue_capacity(groups);
    }

    fn set_weather(&mut self, is_stormy: bool) {
        self.is_stormy = is_stormy;
        let calm = Faults { waits: self.mix.faults.waits, ..Faults::default() };
        self.machine.chain.set_faults(if is_stormy { self.mix.faults } else { calm });
        self.machine.chain.set_habits(self.mix.habits);
    }

    /// Settlement goes on for a while, perhaps with a disk that is slow to answer; then it dies.
    fn crash_in_a_pass(&mut self) -> Result<(), String> {
        if self.rng.chance(60) {
            if self.rng.chance(60) {
                self.node().ledger.hold();
            }
            for _ in 0..self.rng.between(1, 40) {
                if !self.node().nudge() || self.rng.chance(5) {
                    break;
                }
                if self.rng.chance(30) {
                    self.node().ledger.release_some(1);
                }
            }
        }
        self.crash()
    }

    /// An orderly shutdown: no new work, streams are cut, the ledger is flushed, the pass under way
    /// is finished, or dropped where it waits.
    fn stop(&mut self) -> Result<(), String> {
        self.node().sessions.close();
        for client in &mut self.clients {
            client.disconnect(false);
        }
        self.node().ledger.let_go();
        if self.rng.chance(50) {
            self.node().drop_tick();
        }
        while self.node().nudge() && !self.node().is_resting() {}
        self.audit()?;
        if self.node().ledger.is_healthy() && !self.counts.contains_key("full ledgers") {
            self.auditor.stopped()?;
        }
        self.crash()
    }

    /// The process dies; another starts on what the disk holds, and may die while it starts.
    fn crash(&mut self) -> Result<(), String> {
        self.check_replay()?;
        let ledger = self.node().ledger.clone();
        let keep = self.rng.index(ledger.waiting() + 1);
        let found = ledger.crash_keeping(keep);
        self.count("crashes", 1);
        if !self.node().is_resting() {
            self.count("crashes in a pass", 1);
        }
        for client in &mut self.clients {
            client.disconnect(false);
        }
        self.node = None;
        self.boot(found)
    }

    fn boot(&mut self, ledger: MemoryLedger) -> Result<(), String> {
        self.auditor.entries(&ledger.entries_from(self.auditor.read()))?;
        self.auditor.sent(&self.machine.chain.take_sent())?;
        self.auditor.crashed()?;
        self.ledger_is_full = false;
        let mut ledger = Arc::new(ledger);
        while self.rng.chance(10) {
            // It dies while it starts; what it wrote by then may be there or not.
            ledger.hold();
            drop(look(&mut self.machine.start(ledger.clone())));
            let keep = self.rng.index(ledger.waiting() + 1);
            ledger = Arc::new(ledger.crash_keeping(keep));
        }
        ledger.let_go();
        let mut starting = self.machine.start(ledger);
        let node = look(&mut starting).ok_or("the start waits for ever")??;
        if self.ledger_is_held {
            node.ledger.hold();
        }
        self.node = Some(node);
        Ok(())
    }

    fn audit(&mut self) -> Result<(), String> {
        let ledger = self.node().ledger.clone();
        let new = ledger.entries_from(self.auditor.read());
        self.auditor.entries(&new)?;
        self.auditor.sent(&self.machine.chain.take_sent())?;
        let claims = self.machine.chain.claims();
        self.auditor.check(&claims)?;
        if ledger.waiting() == 0 && !self.ledger_is_full {
            self.auditor.flushed();
        }
        if let Some(refusal) = self.machine.chain.take_refusals().first() {
            return Err(format!("a claim that was planned wrongly: {refusal:?}"));
        }
        for (job, book) in self.auditor.books() {
            if let Some(why) = &book.halted {
                return Err(format!("job {job} is halted without a cause: {why}"));
            }
        }
        Ok(())
    }

    /// All is well again, and everybody goes home.
    fn rest(&mut self) -> Result<(), String> {
        self.note("rest");
        let chain = self.machine.chain.clone();
        self.is_stormy = false;
        chain.set_faults(Faults::default());
        chain.set_habits(Habits::default());
        chain.set_base_fee(BASE_FEE);
        chain.set_balance(BALANCE);
        for client in &mut self.clients {
            client.disconnect(false);
        }
        self.ledger_is_held = false;
        self.ledger_is_full = false;
        // A ledger that took nothing for a while may have made gifts of tokens; only a restart
        // forgets that they were promised.
        let was_full = self.counts.contains_key("full ledgers");
        let is_broken = !self.node().ledger.is_healthy() || self.node().is_stopped();
        if is_broken || was_full || self.rng.chance(50) {
            self.crash()?;
        }
        self.set_ledger_room();
        self.node().ledger.let_go();
        let mut still = 0;
        for round in 0..ROUNDS_MAX {
            if round == ROUNDS_MAX / 2 {
                self.others_complete();
            }
            self.machine.clock.advance(20_000);
            self.finish_tick()?;
            chain.mine(12);
            self.audit()?;
            still = if self.is_settled() { still + 1 } else { 0 };
            if still == ROUNDS_STILL {
                return self.check_end();
            }
        }
        Err(format!("no rest after {ROUNDS_MAX} rounds: {}", self.unsettled()))
    }

    /// What the node leaves to others since it would cost more than it pays: they do it.
    fn others_complete(&mut self) {
        if self.mix.rules.complete_at_a_loss {
            return;
        }
        for (job, book) in self.auditor.books() {
            if book.recorded - book.claimed < 100 && self.machine.chain.is_active(*job) {
                self.machine.chain.complete(*job, Sender::Depositor);
            }
        }
    }

    fn finish_tick(&mut self) -> Result<(), String> {
        if !self.node().ledger.is_healthy() {
            return self.crash();
        }
        for _ in 0..10_000 {
            if !self.node().nudge() {
                return self.crash();
            }
            if self.node().is_resting() {
                return Ok(());
            }
        }
        Err("a pass of settlement does not end".into())
    }

    fn is_settled(&mut self) -> bool {
        self.unsettled().is_empty()
    }

    /// What is not at rest, in words.
    fn unsettled(&mut self) -> String {
        let mut what = Vec::new();
        let chain = self.machine.chain.clone();
        for job in self.jobs.clone() {
            // A job that nobody asked for is none of the node's business.
            let Some(account) = self.node().account(job) else { continue };
            if account.terms().is_none() {
                continue;
            }
            if chain.is_active(job) {
                what.push(format!("job {job} is active: {}", words(&account)));
            } else if !account.is_closed() {
                what.push(format!("job {job} is over and not closed: {}", words(&account)));
            } else if account.txs_open().next().is_some() {
                what.push(format!("job {job} has an open transaction: {}", words(&account)));
            }
        }
        let wallet = self.node().tracker.wallet();
        if wallet.txs().open().next().is_some() {
            what.push(format!("the wallet has an open transaction: {wallet:?}"));
        }
        let (nonce, waiting) = chain.line();
        if waiting > 0 {
            what.push(format!("{waiting} transactions wait, nonce {nonce} is next"));
        }
        what.join("\n")
    }

    /// What a replay of the ledger gives is what is live.
    fn check_replay(&mut self) -> Result<(), String> {
        let ledger = self.node().ledger.clone();
        let replayed = wiring::replay(&*ledger).map_err(|error| error.to_string())?;
        let tracker = self.node().tracker.clone();
        let wallet = tracker.wallet();
        if replayed.wallet != wallet {
            return Err(format!("wallet: live {wallet:?}, replayed {:?}", replayed.wallet));
        }
        for job in tracker.jobs() {
            let live = tracker.account(job);
            if replayed.jobs.get(&job) != live.as_ref() {
                let (live, replayed) =
                    (live.as_ref().map(words), replayed.jobs.get(&job).map(words));
                return Err(format!("job {job}: live {live:?}, replayed {replayed:?}"));
            }
        }
        Ok(())
    }

    /// Everything claimable was claimed, once, and the books say so.
    fn check_end(&mut self) -> Result<(), String> {
        self.check_replay()?;
        let books = self.auditor.books().clone();
        for (job, book) in books {
            let live = self.node().account(job);
            let Some(account) = live.filter(|account| account.terms().is_some()) else { continue };
            let says = words(&account);
            let ending = self.machine.chain.ending(job);
            let left = book.recorded - book.claimed;
            match ending.map(|ending| ending.by) {
                Some(Sender::Host) | None => self.count("ended by the host", 1),
                Some(Sender::Depositor) => self.count("ended by depositors", 1),
                Some(Sender::Stranger) => self.count("ended by strangers", 1),
            }
            self.count("tokens claimed", book.claimed);
            self.count("tokens unclaimed", left);
            self.count("tokens given away", book.gifts);
            let by_us = ending.is_none_or(|ending| ending.by == Sender::Host);
            if by_us && left >= 100 {
                return Err(format!("job {job}: {left} tokens were never claimed: {says}"));
            }
            if account.confirmed().get() != book.claimed {
                return Err(format!("job {job}: the chain counts {}: {says}", book.claimed));
            }
            if account.lost().map(|lost| lost.total().get()) != Some(left) {
                return Err(format!("job {job}: {left} tokens are left: {says}"));
            }
        }
        Ok(())
    }
}

/// An account in one line.
fn words(account: &Account) -> String {
    let txs = account.txs().iter().map(|tx| {
        let what = match &tx.purpose {
            Purpose::Claim(claim) => format!("claim of {}", claim.tokens),
            Purpose::Complete => "completion".to_owned(),
            Purpose::Fill | Purpose::Errand(_) => "errand".to_owned(),
        };
        let attempts = tx.attempts.len();
        format!("nonce {}: {what}, {attempts} attempts, {:?}", tx.nonce, tx.state)
    });
    let (recorded, lost) = (account.recorded(), account.lost());
    let open = account.turns_open().count();
    let txs: Vec<_> = txs.collect();
    format!("{recorded} recorded, {open} turns open, {lost:?}; {}", txs.join("; "))
}
