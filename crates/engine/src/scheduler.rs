//! Which sequences do what in the next step.
//!
//! For: continuous batching: waiting sequences are admitted as room comes free, prompts are read
//! in chunks beside the decoding of others, nobody waits for somebody else's whole prompt.
//! Must never: do I/O, look at a clock, or hold state: [`Scheduler::plan`] is a pure function.
//! Relies on: the runner carrying the step out as planned.
//!
//! Fairness: every running sequence that is ready decodes one token in every step. The prefill
//! budget of a step is divided evenly among the sequences that still read their prompt, what they
//! leave goes to the one that has run longest; admission is strictly in order of arrival, so a
//! large request can't be overtaken for ever by small ones.

use crate::kv::BLOCK_TOKENS;

/// The bounds of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// Sequences that run at once, at most.
    pub(crate) running_max: usize,
    /// Prompt tokens in one step, at most, all sequences together; at least one KV block.
    pub(crate) prefill_chunk: usize,
}

/// Name of a sequence inside the engine, counting up.
pub(crate) type SequenceId = u64;

/// What the plan depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// In order of arrival.
    pub(crate) waiting: Vec<Waiting>,
    /// In order of admission.
    pub(crate) running: Vec<Running>,
    pub(crate) kv_blocks_free: usize,
}

/// A sequence without KV blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: SequenceId,
    /// Blocks for prompt and completion, reserved at admission: a running sequence never stalls
    /// for memory.
    pub(crate) kv_blocks: usize,
    pub(crate) prompt_tokens: usize,
}

/// A sequence with KV blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) id: SequenceId,
    /// Prompt tokens not in the cache yet; 0 when it decodes.
    pub(crate) prompt_left: usize,
    /// Whether its reader has room for what the step would produce.
    pub(crate) is_ready: bool,
}

/// What to do next.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Sequences to give KV blocks to, in this order.
    pub(crate) admit: Vec<SequenceId>,
    /// Sequences that decode one token.
    pub(crate) decode: Vec<SequenceId>,
    /// Sequences that read this many more prompt tokens.
    pub(crate) prefill: Vec<(SequenceId, usize)>,
}

impl Step {
    /// Whether there is nothing to compute.
    pub(crate) fn is_idle(&self) -> bool {
        self.decode.is_empty() && self.prefill.is_empty()
    }
}

impl Scheduler {
    /// The next step. Sequences that are admitted begin to read their prompt in it.
    pub(crate) fn plan(&self, state: &State) -> Step {
        let mut step = Step::default();
        let mut free = state.kv_blocks_free;
        let places = self.running_max.saturating_sub(state.running.len());
        let mut reading: Vec<(SequenceId, usize)> = Vec::new();
        for running in state.running.iter().filter(|running| running.is_ready) {
            match running.prompt_left {
                0 => step.decode.push(running.id),
                left => reading.push((running.id, left)),
            }
        }
        for waiting in state.waiting.iter().take(places) {
            let Some(left) = free.checked_sub(waiting.kv_blocks) else {
                break;
            };
            free = left;
            step.admit.push(waiting.id);
            reading.push((waiting.id, waiting.prompt_tokens));
        }
        step.prefill = self.share_prefill(&reading);
        step
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

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULER: Scheduler = Scheduler { running_max: 3, prefill_chunk: 64 };

    fn waiting(id: SequenceId, kv_blocks: usize, prompt_tokens: usize) -> Waiting {
        Waiting { id, kv_blocks, prompt_tokens }
    }
    fn running(id: SequenceId, prompt_left: usize) -> Running {
        Running { id, prompt_left, is_ready: true }
    }
    fn paused(id: SequenceId, prompt_left: usize) -> Running {
        Running { id, prompt_left, is_ready: false }
    }

    #[test]
    fn each_step_follows_from_the_state() {
        #[rustfmt::skip]
        let table = [
            // waiting, running, free blocks => admit, decode, prefill
            (vec![], vec![], 9, vec![], vec![], vec![]),
            (vec![waiting(1, 2, 20)], vec![], 9, vec![1], vec![], vec![(1, 20)]),
            // A prompt longer than the budget is read in chunks.
            (vec![], vec![running(1, 500)], 0, vec![], vec![], vec![(1, 64)]),
            // Decoding goes on beside it.
            (vec![], vec![running(1, 500), running(2, 0)], 0, vec![], vec![2], vec![(1, 64)]),
            // Two prompts share; what the short one leaves goes to the long one.
            (vec![], vec![running(1, 500), running(2, 500)], 0, vec![], vec![], vec![(1, 32), (2, 32)]),
            (vec![], vec![running(1, 500), running(2, 5)], 0, vec![], vec![], vec![(1, 59), (2, 5)]),
            // A paused reader holds up itself only.
            (vec![], vec![paused(1, 0), running(2, 0)], 0, vec![], vec![2], vec![]),
            (vec![], vec![paused(1, 90), running(2, 90)], 0, vec![], vec![], vec![(2, 64)]),
            // Full: nobody is admitted.
            (vec![waiting(4, 1, 9)], vec![running(1, 0), running(2, 0), running(3, 0)], 9, vec![], vec![1, 2, 3], vec![]),
            // Too few blocks for the first in line: nobody overtakes it.
            (vec![waiting(4, 5, 9), waiting(5, 1, 9)], vec![running(1, 0)], 4, vec![], vec![1], vec![]),
            (vec![waiting(4, 4, 9), waiting(5, 1, 9)], vec![running(1, 0)], 4, vec![4], vec![1], vec![(4, 9)]),
            (vec![waiting(4, 4, 9), waiting(5, 1, 9)], vec![running(1, 0)], 5, vec![4, 5], vec![1], vec![(4, 9), (5, 9)]),
        ];
        for (waiting, running, kv_blocks_free, admit, decode, prefill) in table {
            let state = State { waiting, running, kv_blocks_free };
            let expected = Step { admit, decode, prefill };
            assert_eq!(SCHEDULER.plan(&state), expected, "{state:?}");
        }
    }

    #[test]
    fn a_step_never_reads_more_prompt_than_its_budget() {
        for count in 1..20u64 {
            for left in [1, 15, 16, 17, 63, 64, 65, 1000] {
                let running = (0..count).map(|id| running(id, left)).collect();
                let state = State { running, ..State::default() };
                let scheduler = Scheduler { running_max: 32, prefill_chunk: 64 };
                let total: usize = scheduler.plan(&state).prefill.iter().map(|(_, n)| n).sum();
                assert_eq!(total, 64.min(left * count as usize), "{count} of {left}");
            }
        }
    }
}
