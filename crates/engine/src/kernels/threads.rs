//! The engine's worker threads: they share out the tasks of one operation.
//!
//! For: dividing output rows, heads and sequences among threads. Which thread takes which task
//! is chance; no result may depend on it, so tasks write disjoint outputs and never sum together.
//! Must never: return from [`Threads::run`] while a task still runs; hang when a task panics.
//! Relies on: operations being short (microseconds), so threads spin a little before they sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

use super::affinity;

/// Rounds of spinning before a thread without work sleeps, about 50 µs: longer than the gap
/// between two operations, far shorter than a pause between requests.
const SPIN_ROUNDS: u32 = 2_000;

/// How many threads there are, and whether each is kept on a processor of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    /// All of them, at least 1.
    pub(crate) count: usize,
    /// A pinned thread stays where it is when something else takes its processor for a while,
    /// and all others wait for it. On 2 cores it gained nothing undisturbed, and cost prompts an
    /// eighth of their speed beside busy programs (docs/config.md).
    pub(crate) is_pinned: bool,
}

impl Crew {
    /// The processor of each thread.
    fn places(self) -> std::io::Result<Vec<Option<usize>>> {
        let count = self.count.max(1);
        if !self.is_pinned {
            return Ok(vec![None; count]);
        }
        let cpus = affinity::allowed()?;
        match cpus.get(..count) {
            Some(cpus) => Ok(cpus.iter().copied().map(Some).collect()),
            None => Err(std::io::Error::other(format!(
                "the process may use {} processors, and {count} threads are to have one each",
                cpus.len()
            ))),
        }
    }

    /// Whether there is a processor for each thread, where each is to have one.
    ///
    /// # Errors
    /// That there is not, or what the system says.
    pub(crate) fn check(self) -> std::io::Result<()> {
        self.places().map(drop)
    }
}

type Job<'a> = dyn Fn(Range<usize>) + Sync + 'a;

/// On cache lines of its own: x86 fetches them in pairs, and a neighbour that others write to
/// would make every read of this a miss.
#[repr(align(128))]
struct Alone<T>(T);

struct Shared {
    /// Tasks of the current job that nobody has claimed.
    unclaimed: Alone<AtomicUsize>,
    /// A claim takes one of so many parts of what is unclaimed; at least 1.
    parts: AtomicUsize,
    /// Tasks of the current job that have ended on other threads than the caller's.
    ended: Alone<AtomicUsize>,
    /// The current job; valid while one of its tasks is claimed and isn't told as ended.
    job: UnsafeCell<Option<*const Job<'static>>>,
    sleeping: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the thread inside `run` while no task is claimed or unclaimed,
// and read only after claiming a task; `unclaimed` (release/acquire) orders the two. The job is
// `Sync`, so any thread may call it.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only a handle to a `Sync` closure that outlives its tasks.
unsafe impl Send for Shared {}

/// A fixed group of threads, the caller included.
pub(crate) struct Threads {
    shared: Arc<Shared>,
    wakers: Vec<Thread>,
    workers: Vec<JoinHandle<()>>,
    /// The caller's processor, where each thread has one of its own.
    cpu: Option<usize>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Threads {
    /// `count` threads in all, which run where the system lets them.
    #[cfg(test)]
    pub(crate) fn new(count: usize) -> std::io::Result<Threads> {
        Threads::start(Crew { count, is_pinned: false })
    }

    /// Starts all but one: the caller of [`Self::run`] takes part.
    ///
    /// # Errors
    /// What the system says; of pinned ones also that they are more than its processors.
    pub(crate) fn start(crew: Crew) -> std::io::Result<Threads> {
        let places = crew.places()?;
        let shared = Arc::new(Shared {
            unclaimed: Alone(AtomicUsize::new(0)),
            parts: AtomicUsize::new(1),
            ended: Alone(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let (workers, wakers) = (Vec::new(), Vec::new());
        let cpu = places.first().copied().flatten();
        let mut threads = Threads { shared, wakers, workers, cpu, turn: Mutex::new(()) };
        let (sender, pinned) = sync_channel(places.len());
        for (i, place) in places.iter().copied().enumerate().skip(1) {
            let (shared, sender) = (Arc::clone(&threads.shared), sender.clone());
            let name = format!("tally-kernel-{i}");
            let work = move || {
                // There is room for all: this neither waits nor fails.
                let _ = sender.send(place.map_or(Ok(()), affinity::pin));
                drop(sender);
                shared.work();
            };
            let worker = std::thread::Builder::new().name(name).spawn(work)?;
            threads.wakers.push(worker.thread().clone());
            threads.workers.push(worker);
        }
        drop(sender);
        pinned.into_iter().collect::<std::io::Result<()>>()?;
        Ok(threads)
    }

    /// Keeps the calling thread, the one that is to call [`Self::run`] from now on, on its
    /// processor; does nothing where threads are not pinned.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn pin_caller(&self) -> std::io::Result<()> {
        self.cpu.map_or(Ok(()), affinity::pin)
    }

    /// Threads that take part, at least 1.
    pub(crate) fn count(&self) -> usize {
        self.wakers.len() + 1
    }

    /// Calls `job(0)` … `job(tasks - 1)`, each once, in any order on any thread; returns when
    /// all have ended. Blocks. A panic in a task goes on in the caller after the others ended.
    pub(crate) fn run(&self, tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        self.share_out(tasks, usize::MAX, &|range| range.for_each(job));
    }

    /// The same for tasks that are cheaper together, and better in order: a thread takes its
    /// share of what is left, so first large ranges, then small ones, and all end at one time.
    pub(crate) fn run_ranges(&self, tasks: usize, job: &Job<'_>) {
        self.share_out(tasks, self.count(), job);
    }

    /// A claim takes the `parts`th part of the unclaimed tasks, at least one.
    fn share_out(&self, tasks: usize, parts: usize, job: &Job<'_>) {
        if self.wakers.is_empty() || tasks <= 1 {
            return job(0..tasks);
        }
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: only the lifetime changes. The pointer is used by claimed tasks only, and this
        // function returns (or unwinds) after the last of them has ended.
        let erased: *const Job<'static> =
            unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        self.shared.ended.0.store(0, Ordering::Relaxed);
        // SAFETY: no task is unclaimed or running, so no other thread reads `job` now.
        unsafe { *self.shared.job.get() = Some(erased) };
        self.shared.parts.store(parts, Ordering::Relaxed);
        self.shared.unclaimed.0.store(tasks, Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.wakers.iter().for_each(Thread::unpark);
        }
        let own = self.shared.work_off();
        let mut rounds = 0;
        while own + self.shared.ended.0.load(Ordering::Acquire) < tasks {
            spin_or_yield(&mut rounds);
        }
        let panic = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wakers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics; nothing is left to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut rounds = 0;
        while !self.stop.load(Ordering::Acquire) {
            let count = self.work_off();
            if count > 0 {
                // Told once for all of them: two threads that both write to one place cost more
                // than a small task.
                self.ended.0.fetch_add(count, Ordering::Release);
                rounds = 0;
            } else if rounds < SPIN_ROUNDS {
                rounds += 1;
                std::hint::spin_loop();
            } else {
                self.sleep();
                rounds = 0;
            }
        }
    }

    /// Sleeps until `run` or `drop` wakes it; the second look closes the gap in which a job
    /// could start after the first look and before this thread counts as sleeping.
    fn sleep(&self) {
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        if self.unclaimed.0.load(Ordering::SeqCst) == 0 && !self.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    /// Runs tasks of the current job until none is left to claim; how many it ran.
    fn work_off(&self) -> usize {
        let mut count = 0;
        while let Some(tasks) = self.claim() {
            let claimed = tasks.len();
            // SAFETY: `run` does not return before this task is told as ended, so the closure is
            // alive and nobody writes `job`.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let result = catch_unwind(AssertUnwindSafe(|| {
                if let Some(job) = job {
                    job(tasks);
                }
            }));
            if let Err(panic) = result {
                *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
            }
            count += claimed;
        }
        count
    }

    /// Takes tasks of the current job, if any are left.
    fn claim(&self) -> Option<Range<usize>> {
        let mut left = self.unclaimed.0.load(Ordering::Acquire);
        while left > 0 {
            // Another job's number would do too: it is only a matter of size.
            let kept = left - (left / self.parts.load(Ordering::Relaxed)).max(1);
            let orders = (Ordering::AcqRel, Ordering::Acquire);
            let claimed = self.unclaimed.0.compare_exchange_weak(left, kept, orders.0, orders.1);
            match claimed {
                Ok(_) => return Some(kept..left),
                Err(now) => left = now,
            }
        }
        None
    }
}

fn spin_or_yield(rounds: &mut u32) {
    *rounds += 1;
    if rounds.is_multiple_of(SPIN_ROUNDS) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// A mutable slice that tasks write to in disjoint parts.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `part` and `set`, whose callers promise disjoint elements.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements `at..at + len`.
    ///
    /// # Safety
    /// No other thread touches them meanwhile, and no other part of them is alive.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part of a slice beyond its end");
        // SAFETY: in bounds by the line above; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// The processors that each thread of the crew may run on, the caller's last. As each task
    /// waits for all others, every thread takes one.
    fn masks(crew: Crew) -> Vec<Vec<usize>> {
        // On a thread of its own: what is pinned stays so.
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                let threads = Threads::start(crew).unwrap();
                threads.pin_caller().unwrap();
                let (all, found) = (Barrier::new(crew.count), Mutex::new(Vec::new()));
                threads.run(crew.count, &|_| {
                    all.wait();
                    found.lock().unwrap().push(affinity::allowed().unwrap());
                });
                let mut found = found.into_inner().unwrap();
                found.sort();
                found
            });
            caller.join().unwrap()
        })
    }

    #[test]
    fn pinned_threads_have_a_processor_of_the_process_each() {
        let own = affinity::allowed().unwrap();
        for count in 1..=own.len().min(4) {
            let wanted: Vec<_> = own[..count].iter().map(|cpu| vec![*cpu]).collect();
            assert_eq!(masks(Crew { count, is_pinned: true }), wanted);
        }
    }

    #[test]
    fn threads_that_are_not_pinned_run_wherever_the_process_may() {
        let own = affinity::allowed().unwrap();
        assert_eq!(masks(Crew { count: 3, is_pinned: false }), vec![own; 3]);
    }

    #[test]
    fn more_pinned_threads_than_processors_are_refused() {
        let own = affinity::allowed().unwrap().len();
        let of = |count| Crew { count, is_pinned: true };
        assert!(of(own).check().is_ok());
        let words = of(own + 1).check().unwrap_err().to_string();
        let expected = format!("may use {own} processors, and {} threads", own + 1);
        assert!(words.contains(&expected), "{words}");
        assert!(Threads::start(of(own + 1)).is_err());
        assert!(Crew { count: own + 1, is_pinned: false }.check().is_ok());
    }
}
