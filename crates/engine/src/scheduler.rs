//! Which sequences do what in the next step.
//!
//! For: continuous batching: waiting sequences are admitted as room comes free, prompts are read
//! in chunks beside the decoding of others, nobody waits for somebody else's whole prompt.
//! Must never: do I/O, look at a clock, or hold state: [`Scheduler::plan`] is a pure function.
//! Relies on: the runner carrying the step out as planned, and on every sequence fitting into an
//! empty cache (`Engine::start` checks it).
//!
//! Fairness: every running sequence that is ready decodes one token in every step. The prefill
//! budget of a step is divided evenly among the sequences that still read, what they leave goes
//! to the oldest. Admission is strictly in order of arrival, so a large request can't be
//! overtaken for ever by small ones.
//!
//! Memory: a sequence is admitted when there is room for what it has and for
//! [`HEADROOM_TOKENS`] more, and takes further blocks as it grows, the oldest first. When one
//! lacks a block, one sequence is preempted: it waits in its place of arrival and is read again
//! later. Whoever is paused goes first, then the youngest; so the oldest always goes on, and in
//! the end everybody is the oldest.

use crate::kv::BLOCK_TOKENS;

/// Tokens that a sequence has room for beyond those it is admitted with. More means fewer
/// preemptions, less means more sequences at once.
pub(crate) const HEADROOM_TOKENS: usize = 4 * BLOCK_TOKENS;

/// The bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// Sequences that run at once, at most.
    pub(crate) running_max: usize,
    /// Prompt tokens in one step, at most, all sequences together; at least one KV block.
    pub(crate) prefill_chunk: usize,
}

/// Name of a sequence inside the engine, in order of arrival.
pub(crate) type SequenceId = u64;

/// What the plan depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// In order of arrival; at least as many as may be admitted.
    pub(crate) waiting: Vec<Waiting>,
    /// In order of arrival.
    pub(crate) running: Vec<Running>,
    /// Blocks that are free or can be made so.
    pub(crate) kv_blocks_free: usize,
}

/// A sequence without KV blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: SequenceId,
    /// Blocks that its admission takes: of its tokens and the headroom, without those that
    /// others use already.
    pub(crate) kv_blocks: usize,
    /// Tokens not in the cache yet, at least 1.
    pub(crate) tokens_left: usize,
}

/// A sequence with KV blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) id: SequenceId,
    /// Tokens not in the cache yet, at least 1. With one it decodes, with more it reads.
    pub(crate) tokens_left: usize,
    /// Blocks that it needs for its next token.
    pub(crate) kv_blocks_lacking: usize,
    /// Whether it may need more blocks before its end.
    pub(crate) may_grow: bool,
    /// Whether its reader has room for what the step would produce.
    pub(crate) is_ready: bool,
}

/// What to do next, in this order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The sequence whose blocks are taken.
    pub(crate) preempt: Option<SequenceId>,
    /// Sequences to give KV blocks to, in this order.
    pub(crate) admit: Vec<SequenceId>,
    /// Sequences that decode one token; they get a block where they lack one.
    pub(crate) decode: Vec<SequenceId>,
    /// Sequences that read this many more tokens.
    pub(crate) prefill: Vec<(SequenceId, usize)>,
}

impl Step {
    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.preempt.is_none() && self.decode.is_empty() && self.prefill.is_empty()
    }
}

impl Scheduler {
    /// The next step. Sequences that are admitted begin to read in it.
    pub(crate) fn plan(&self, state: &State) -> Step {
        let mut step = Step::default();
        let mut free = state.kv_blocks_free;
        let mut reading: Vec<(SequenceId, usize)> = Vec::new();
        for running in state.running.iter().filter(|running| running.is_ready) {
            let Some(left) = free.checked_sub(running.kv_blocks_lacking) else {
                // One at a time: what that makes free is known exactly in the next step.
                step.preempt = victim(&state.running);
                continue;
            };
            free = left;
            match running.tokens_left {
                1 => step.decode.push(running.id),
                left => reading.push((running.id, left)),
            }
        }
        // A sequence that goes on in this step is not the one to take blocks from; the victim
        // loses its turn.
        step.decode.retain(|id| step.preempt != Some(*id));
        reading.retain(|(id, _)| step.preempt != Some(*id));
        if step.preempt.is_none() {
            self.admit(state, free, &mut step, &mut reading);
        }
        step.prefill = self.share_prefill(&reading);
        step
    }

    /// Admits from the front of the line while there are places and blocks.
    fn admit(
        &self,
        state: &State,
        free: usize,
        step: &mut Step,
        reading: &mut Vec<(SequenceId, usize)>,
    ) {
        let places = self.running_max.saturating_sub(state.running.len());
        // Those who run can each grow once more before a new one has to make room again.
        let growing = state.running.iter().filter(|running| running.may_grow).count();
        let mut free = free.saturating_sub(growing);
        for waiting in state.waiting.iter().take(places) {
            let Some(left) = free.checked_sub(waiting.kv_blocks) else {
                break;
            };
            free = left;
            step.admit.push(waiting.id);
            reading.push((waiting.id, waiting.tokens_left));
        }
    }

    /// Divides the prefill budget: everybody an even share in whole blocks, and what they leave
    /// to the first.
    fn share_prefill(&self, reading: &[(SequenceId, usize)]) -> Vec<(SequenceId, usize)> {
        if reading.is_empty() {
            return Vec::new();
        }
        let even = match self.prefill_chunk / reading.len() {
            // Whole blocks where there is room for them; something for everybody where not.
            share if share >= BLOCK_TOKENS => share / BLOCK_TOKENS * BLOCK_TOKENS,
            share => share.max(1),
        };
        let mut budget = self.prefill_chunk.max(BLOCK_TOKENS);
        let mut shares = vec![0; reading.len()];
        for limit in [even, usize::MAX] {
            for (share, (_, left)) in shares.iter_mut().zip(reading) {
                let more = (left - *share).min(limit).min(budget);
                *share += more;
                budget -= more;
            }
        }
        let shares = reading.iter().zip(shares).map(|((id, _), share)| (*id, share));
        shares.filter(|(_, share)| *share > 0).collect()
    }
}

/// Whose blocks are taken: a paused sequence's, else the youngest's.
fn victim(running: &[Running]) -> Option<SequenceId> {
    let paused = running.iter().rfind(|running| !running.is_ready);
    paused.or(running.last()).map(|running| running.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULER: Scheduler = Scheduler { running_max: 3, prefill_chunk: 64 };

    fn waiting(id: SequenceId, kv_blocks: usize, tokens_left: usize) -> Waiting {
        Waiting { id, kv_blocks, tokens_left }
    }
    fn running(id: SequenceId, tokens_left: usize) -> Running {
        Running { id, tokens_left, kv_blocks_lacking: 0, may_grow: false, is_ready: true }
    }
    fn paused(id: SequenceId, tokens_left: usize) -> Running {
        Running { is_ready: false, ..running(id, tokens_left) }
    }
    /// Decodes, and needs a block for it.
    fn full(id: SequenceId) -> Running {
        Running { kv_blocks_lacking: 1, may_grow: true, ..running(id, 1) }
    }
    fn growing(id: SequenceId) -> Running {
        Running { may_grow: true, ..running(id, 1) }
    }

    /// A row of a table: waiting, running and free blocks; admitted, decoding and reading.
    type Case = (
        (Vec<Waiting>, Vec<Running>, usize),
        (Vec<SequenceId>, Vec<SequenceId>, Vec<(SequenceId, usize)>),
    );

    fn check(table: Vec<Case>, preempt: Option<SequenceId>) {
        for ((waiting, running, kv_blocks_free), (admit, decode, prefill)) in table {
            let state = State { waiting, running, kv_blocks_free };
            let expected = Step { preempt, admit, decode, prefill };
            assert_eq!(SCHEDULER.plan(&state), expected, "{state:?}");
        }
    }

    #[test]
    fn each_step_follows_from_the_state() {
        let places_taken = || vec![running(1, 1), running(2, 1), running(3, 1)];
        let line = |blocks| vec![waiting(4, blocks, 9), waiting(5, 1, 9)];
        let two = |left| vec![running(1, 500), running(2, left)];
        let table = vec![
            ((vec![], vec![], 9), (vec![], vec![], vec![])),
            ((vec![waiting(1, 2, 20)], vec![], 9), (vec![1], vec![], vec![(1, 20)])),
            // A prompt longer than the budget is read in chunks.
            ((vec![], vec![running(1, 500)], 0), (vec![], vec![], vec![(1, 64)])),
            // Decoding goes on beside it.
            ((vec![], two(1), 0), (vec![], vec![2], vec![(1, 64)])),
            // Two prompts share; what the short one leaves goes to the long one.
            ((vec![], two(500), 0), (vec![], vec![], vec![(1, 32), (2, 32)])),
            ((vec![], two(5), 0), (vec![], vec![], vec![(1, 59), (2, 5)])),
            // A paused reader holds up itself only.
            ((vec![], vec![paused(1, 1), running(2, 1)], 0), (vec![], vec![2], vec![])),
            ((vec![], vec![paused(1, 90), running(2, 90)], 0), (vec![], vec![], vec![(2, 64)])),
            // No place: nobody is admitted.
            ((vec![waiting(4, 1, 9)], places_taken(), 9), (vec![], vec![1, 2, 3], vec![])),
            // Too few blocks for the first in line: nobody overtakes it.
            ((line(5), vec![running(1, 1)], 4), (vec![], vec![1], vec![])),
            ((line(4), vec![running(1, 1)], 4), (vec![4], vec![1], vec![(4, 9)])),
            ((line(4), vec![running(1, 1)], 5), (vec![4, 5], vec![1], vec![(4, 9), (5, 9)])),
            // One block for each that grows is left to it.
            ((line(4), vec![growing(1)], 4), (vec![], vec![1], vec![])),
            ((line(4), vec![growing(1)], 5), (vec![4], vec![1], vec![(4, 9)])),
            // Who lacks a block takes it before anybody is admitted.
            ((line(4), vec![full(1)], 5), (vec![], vec![1], vec![])),
            ((line(4), vec![full(1)], 6), (vec![4], vec![1], vec![(4, 9)])),
            ((vec![], vec![full(1), full(2)], 2), (vec![], vec![1, 2], vec![])),
        ];
        check(table, None);
    }

    #[test]
    fn a_sequence_that_lacks_a_block_takes_it_from_the_youngest() {
        // Those who have room go on; who lacks it waits for what comes free; nobody is admitted.
        let table = vec![
            ((vec![], vec![full(1), running(2, 1), running(3, 9)], 0), (vec![], vec![2], vec![])),
            ((vec![], vec![full(1), full(2), full(3)], 1), (vec![], vec![1], vec![])),
            ((vec![], vec![full(1), full(2), running(3, 1)], 1), (vec![], vec![1], vec![])),
            // The youngest itself.
            ((vec![], vec![running(1, 1), full(3)], 0), (vec![], vec![1], vec![])),
            ((vec![waiting(4, 0, 2)], vec![full(1), full(3)], 1), (vec![], vec![1], vec![])),
            // A paused one first, though it is older; the younger of two.
            ((vec![], vec![paused(3, 1), full(4)], 0), (vec![], vec![], vec![])),
            ((vec![], vec![paused(1, 1), paused(3, 1), full(4)], 0), (vec![], vec![], vec![])),
        ];
        check(table, Some(3));
    }

    #[test]
    fn the_oldest_is_never_preempted_unless_it_is_paused() {
        let states = [vec![full(1), running(2, 1)], vec![full(1), paused(2, 1), full(3)]];
        for running in states {
            let state = State { running, ..State::default() };
            assert_ne!(SCHEDULER.plan(&state).preempt, Some(1), "{state:?}");
        }
    }

    #[test]
    fn a_step_never_reads_more_prompt_than_its_budget() {
        for count in 1..20u64 {
            for left in [2, 15, 16, 17, 63, 64, 65, 1000] {
                let running = (0..count).map(|id| running(id, left)).collect();
                let state = State { running, ..State::default() };
                let scheduler = Scheduler { running_max: 32, prefill_chunk: 64 };
                let total: usize = scheduler.plan(&state).prefill.iter().map(|(_, n)| n).sum();
                assert_eq!(total, 64.min(left * count as usize), "{count} of {left}");
            }
        }
    }
}
