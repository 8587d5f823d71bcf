//! The durable ledger: entries a second, cost per entry as it grows, and a restart over it.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use tally::billing::{Entry, Fact};
use tally::clock::{Clock, SystemClock};
use tally::ledger::Ledger;
use tally::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions};
use tally::node::wiring;
use tally::units::Address;

use super::traffic::Traffic;

/// Groups that wait for the disk at once: what 64 sessions may have unrecorded.
pub const OUTSTANDING: usize = 64 * tally::session::CREDIT_TOKENS;
/// Sessions that answer at once.
pub const SESSIONS: u64 = 64;

pub fn open(path: &Path) -> SqliteLedger {
    let binding = LedgerBinding {
        chain_id: 31_337,
        contract: Address::new([0xc0; 20]),
        wallet: Address::new([0xaa; 20]),
    };
    SqliteLedger::open(path, SqliteOptions::new(binding)).expect("the ledger opens")
}

/// Counts what waits, and holds the sender back.
struct Window {
    outstanding: usize,
    waiting: Mutex<usize>,
    moved: Condvar,
}

impl Window {
    fn new(outstanding: usize) -> Self {
        Self { outstanding, waiting: Mutex::default(), moved: Condvar::new() }
    }

    fn enter(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = self
            .moved
            .wait_while(waiting, |waiting| *waiting >= self.outstanding)
            .unwrap_or_else(PoisonError::into_inner);
        *waiting += 1;
    }

    fn leave(&self) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.moved.notify_one();
    }

    fn drain(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.moved.wait_while(waiting, |waiting| *waiting > 0));
    }
}

/// What writing a stretch of entries took.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    /// Entries in the ledger at its end.
    pub total: u64,
    /// Entries written.
    pub entries: u64,
    /// Of them deliveries.
    pub usage: u64,
    pub seconds: f64,
}

impl Stretch {
    #[allow(clippy::cast_precision_loss)]
    pub fn entries_per_s(&self) -> f64 {
        self.entries as f64 / self.seconds
    }

    #[allow(clippy::cast_precision_loss)]
    pub fn usage_per_s(&self) -> f64 {
        self.usage as f64 / self.seconds
    }

    #[allow(clippy::cast_precision_loss)]
    pub fn micros_per_entry(&self) -> f64 {
        self.seconds * 1e6 / self.entries as f64
    }
}

/// Writes traffic until the ledger holds each of `totals` entries; one stretch for each, and
/// `after` it, untimed, something else.
pub fn fill(
    ledger: &SqliteLedger,
    outstanding: usize,
    totals: &[u64],
    mut after: impl FnMut(u64),
) -> Vec<Stretch> {
    let mut traffic = Traffic::new(SESSIONS);
    let window = Arc::new(Window::new(outstanding));
    let mut written = 0;
    let mut stretches = Vec::new();
    for &total in totals {
        let (before, begin, mut usage) = (written, Instant::now(), 0);
        while written < total {
            let group = traffic.next_group();
            written += group.len() as u64;
            usage += group.iter().filter(|entry| is_usage(entry)).count() as u64;
            submit(ledger, group, &window);
        }
        window.drain();
        let seconds = begin.elapsed().as_secs_f64();
        stretches.push(Stretch { total: written, entries: written - before, usage, seconds });
        after(total);
    }
    stretches
}

fn is_usage(entry: &Entry) -> bool {
    matches!(entry.fact, Fact::Delivered { .. })
}

fn submit(ledger: &SqliteLedger, group: Vec<Entry>, window: &Arc<Window>) {
    window.enter();
    let done = Arc::clone(window);
    let on_durable = move |fate: Result<(), _>| {
        fate.expect("the ledger writes");
        done.leave();
    };
    ledger.submit(group, Box::new(on_durable)).expect("the queue is longer than the window");
}

/// What a restart took.
#[derive(Debug, Clone, Copy)]
pub struct Restart {
    pub open_ms: f64,
    pub restore_ms: f64,
    /// Processor time of it, all threads: what a busy machine makes longer on the wall.
    pub cpu_ms: f64,
}

impl Restart {
    pub fn total_ms(&self) -> f64 {
        self.open_ms + self.restore_ms
    }
}

/// Opens the ledger at `path` and rebuilds the live view, as the node does at its start.
pub fn restart(path: &Path) -> Restart {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let (begin, cpu_before) = (Instant::now(), cpu_ms());
    let ledger = open(path);
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    let tracker = runtime.block_on(wiring::restore(&ledger, &*clock)).expect("it adds up");
    let restore_ms = begin.elapsed().as_secs_f64() * 1e3 - open_ms;
    assert!(!tracker.jobs().is_empty());
    Restart { open_ms, restore_ms, cpu_ms: cpu_ms() - cpu_before }
}

/// Processor time of this process so far, in steps of 10 ms (proc(5): fields 14 and 15, in ticks
/// of a hundredth of a second).
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields = stat.rsplit(')').next().expect("a name in brackets").split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number") * 10.0).sum()
}
