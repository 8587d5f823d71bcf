//! Whose step it is, where several models share one machine's processors.
//!
//! For: models that are loaded together: each has threads for all processors, and a step is only
//! as fast as its slowest thread, so two steps at once would be slower than one after the other.
//! Must never: let a model wait for more than one step of each other model.
//! Relies on: steps being short, as the scheduler makes them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Who computes; clones are handles to the same. Models that share none compute when they like.
#[derive(Clone, Default)]
pub struct Turns {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// The number that the next one to ask gets.
    next: u64,
    /// The number whose turn it is.
    serving: u64,
}

/// The right to compute, until it is dropped.
#[must_use = "the turn ends when it is dropped"]
pub(crate) struct Turn<'a> {
    queue: &'a Queue,
}

impl Turns {
    /// Waits until all who asked before have had their turn. Blocks.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut state = self.queue.lock();
        let own = state.next;
        state.next += 1;
        let waited = self.queue.moved.wait_while(state, |state| state.serving != own);
        drop(waited.unwrap_or_else(|e| e.into_inner()));
        Turn { queue: &self.queue }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.lock().serving += 1;
        self.queue.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn one_computes_at_a_time_and_a_panic_gives_the_turn_on() {
        let (turns, inside, most) = (Turns::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (turns, inside, most) = (turns.clone(), &inside, &most);
                scope.spawn(move || {
                    for step in 0..200 {
                        let result = std::panic::catch_unwind(|| {
                            let _turn = turns.take();
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            assert!(thread > 0 || step % 50 != 7, "a step that fails");
                        });
                        assert_eq!(result.is_err(), thread == 0 && step % 50 == 7);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 0, "somebody else was inside");
    }

    #[test]
    fn turns_come_in_the_order_of_asking() {
        let turns = Turns::default();
        let (sender, order) = channel();
        std::thread::scope(|scope| {
            let first = turns.take();
            for asker in 0..5u64 {
                let (own, sender) = (turns.clone(), sender.clone());
                scope.spawn(move || {
                    let _turn = own.take();
                    sender.send(asker).unwrap();
                });
                // The next one asks after this one.
                while turns.queue.lock().next != asker + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        drop(sender);
        assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
