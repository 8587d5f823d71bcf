//! The model's thread: it plans a step, runs it, gives out what came of it, and again.
//!
//! For: all sequences of one model.
//! Must never: wait for a reader, or sleep while there is work; leave a sequence without its end
//! when something fails.
//! Relies on: `scheduler.rs` for every decision about who does what, `kv` for what of a sequence
//! is cached already.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::drawing::Row;
use crate::kv::{BlockTable, CacheCounts, KvCache, KvPool};
use crate::model::{Batch, ForwardError, Model, Outputs, Segment};
use crate::scheduler::{HEADROOM_TOKENS, Running, Scheduler, SequenceId, State, Step, Waiting};
use crate::sequence::Sequence;
use crate::speculation::DRAFT_MAX;
use crate::tokenizer::Tokenizer;
use crate::turns::Turns;

/// A paused reader may close without calling `wake`; so the thread looks again this often.
const PAUSED_LOOK: Duration = Duration::from_millis(50);

/// With so many sequences at once no drafts are made: their own rows fill the kernels' groups.
const SPECULATION_OFF_AT: usize = 4;

/// How busy the engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Sequences with KV blocks.
    pub running: usize,
    /// Sequences that wait for a place.
    pub queued: usize,
    /// KV blocks (16 tokens each) that no sequence uses; the cached ones among them.
    pub kv_blocks_free: usize,
    /// KV blocks that no sequence uses, kept with their tokens until room is needed.
    pub kv_blocks_cached: usize,
    /// KV blocks in all.
    pub kv_blocks_total: usize,
    /// What the cache of prefixes did since the start.
    pub cache: CacheCounts,
    /// Times that a running sequence's blocks were taken for an older one, since the start.
    pub preemptions: u64,
    /// Tokens that were guessed and checked since the start.
    pub guessed_tokens: u64,
    /// How many of them came true: each is a token for which the weights weren't read once more.
    pub guessed_right: u64,
}

/// What handles and the model's thread share.
#[derive(Default)]
pub(crate) struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

/// Bounded by `start`, which refuses when too many sequences are in the engine.
#[derive(Default)]
pub(crate) struct Mailbox {
    pub(crate) arrivals: VecDeque<Sequence>,
    /// Name of the next arrival.
    pub(crate) next_id: SequenceId,
    /// As of the last step; `queued` without the arrivals.
    pub(crate) load: EngineLoad,
    /// No new sequences; the thread ends.
    pub(crate) is_stopping: bool,
    is_woken: bool,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the model's thread look at everything again.
    pub(crate) fn wake(&self) {
        self.lock().is_woken = true;
        self.changed.notify_all();
    }

    /// Tells the model's thread to end.
    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.wake();
    }
}

/// Everything the model's thread owns.
pub(crate) struct Runner {
    pub(crate) model: Model,
    pub(crate) kv: KvCache,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) scheduler: Scheduler,
    /// Whether drafts are made.
    pub(crate) speculation: bool,
    pub(crate) guessed_tokens: u64,
    pub(crate) guessed_right: u64,
    pub(crate) shared: Arc<Shared>,
    /// Shared with the models that compute on the same processors.
    pub(crate) turns: Turns,
    /// In order of arrival.
    pub(crate) waiting: VecDeque<Sequence>,
    /// In order of arrival.
    pub(crate) running: Vec<Sequence>,
    pub(crate) preemptions: u64,
    /// Ended, but their readers had no room for the rest yet. They hold no KV blocks.
    pub(crate) ending: Vec<Sequence>,
}

impl Runner {
    /// Serves until told to stop; then, or after a panic, every sequence ends with an error.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.model.pin_caller() {
            tracing::warn!(%error, "the model's thread is not kept on a processor");
        }
        let result = catch_unwind(AssertUnwindSafe(|| while self.step() {}));
        let reason = match result {
            Ok(()) => "the engine was shut down",
            Err(_) => {
                tracing::error!("the model's thread panicked; all sequences end");
                "the engine failed"
            }
        };
        let arrivals = {
            let mut mailbox = self.shared.lock();
            mailbox.is_stopping = true;
            mailbox.load = EngineLoad::default();
            std::mem::take(&mut mailbox.arrivals)
        };
        let all = self.running.drain(..).chain(self.waiting.drain(..)).chain(self.ending.drain(..));
        for mut sequence in all.chain(arrivals) {
            // A sink that panics must not keep the others from their end.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                sequence.fail(reason);
                sequence.flush();
            }));
        }
    }

    /// One round: false when the thread is to end.
    fn step(&mut self) -> bool {
        let step = loop {
            if !self.take_mail() {
                return false;
            }
            self.clear_ended();
            let step = self.scheduler.plan(&self.state());
            if !step.is_idle() {
                break step;
            }
            self.wait();
        };
        self.preempt(&step);
        self.admit(&step);
        if let Err(error) = self.compute(&step) {
            tracing::error!(%error, "a step failed; its sequences end");
            let ids: Vec<SequenceId> = rows(&step).map(|(id, _)| id).collect();
            let failed = self.running.iter_mut().filter(|s| ids.contains(&s.id));
            failed.for_each(|sequence| sequence.fail("the forward pass failed"));
        }
        true
    }

    /// Takes new sequences in; false when the thread is to end.
    fn take_mail(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut mailbox = shared.lock();
        mailbox.is_woken = false;
        self.waiting.extend(mailbox.arrivals.drain(..));
        !mailbox.is_stopping
    }

    /// Gives out events, ends cancelled sequences, takes back the blocks of ended ones.
    fn clear_ended(&mut self) {
        let all = self.running.iter_mut().chain(&mut self.waiting).chain(&mut self.ending);
        for sequence in all {
            sequence.check_lease();
            sequence.flush();
        }
        let (ended, running): (Vec<_>, Vec<_>) =
            self.running.drain(..).partition(Sequence::has_ended);
        self.running = running;
        let (dropped, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(Sequence::has_ended);
        self.waiting = waiting.into();
        for mut sequence in ended.into_iter().chain(dropped) {
            self.take_blocks(&mut sequence);
            self.ending.push(sequence);
        }
        self.ending.retain(|sequence| !sequence.is_over());
        self.shared.lock().load = self.load();
    }

    fn load(&self) -> EngineLoad {
        EngineLoad {
            running: self.running.len(),
            queued: self.waiting.len(),
            kv_blocks_free: self.kv.available_blocks(),
            kv_blocks_cached: self.kv.idle_blocks(),
            kv_blocks_total: self.kv.pool.total_blocks(),
            cache: self.kv.counts(),
            preemptions: self.preemptions,
            guessed_tokens: self.guessed_tokens,
            guessed_right: self.guessed_right,
        }
    }

    fn state(&self) -> State {
        // Those who have no place in this step need not be looked up.
        let places = self.scheduler.running_max.saturating_sub(self.running.len());
        let waiting = self.waiting.iter().take(places).map(|sequence| {
            let known = self.kv.known(sequence.scope, &sequence.ids);
            Waiting {
                id: sequence.id,
                kv_blocks: KvPool::blocks_for(first_tokens(sequence)) - known.blocks_in_use,
                tokens_left: sequence.ids.len() - known.tokens,
            }
        });
        let running = self.running.iter().map(|sequence| {
            let held = KvPool::blocks_for(sequence.table.as_ref().map_or(0, BlockTable::capacity));
            let needed = KvPool::blocks_for(sequence.ids.len());
            Running {
                id: sequence.id,
                tokens_left: sequence.ids.len() - sequence.cached,
                kv_blocks_lacking: needed.saturating_sub(held),
                may_grow: KvPool::blocks_for(sequence.tokens_max()) > held,
                is_ready: sequence.is_ready(),
            }
        });
        State {
            waiting: waiting.collect(),
            running: running.collect(),
            kv_blocks_free: self.kv.available_blocks(),
        }
    }

    /// Sleeps until something changed.
    fn wait(&self) {
        let mailbox = self.shared.lock();
        let idle = |mailbox: &mut Mailbox| {
            !mailbox.is_woken && !mailbox.is_stopping && mailbox.arrivals.is_empty()
        };
        // The results carry a guard or a poisoned one; either way the state is read again.
        if self.running.is_empty() && self.ending.is_empty() {
            drop(self.shared.changed.wait_while(mailbox, idle));
        } else {
            drop(self.shared.changed.wait_timeout_while(mailbox, PAUSED_LOOK, idle));
        }
    }

    /// Takes the blocks of the step's victim; it waits again, in its place of arrival.
    fn preempt(&mut self, step: &Step) {
        let found = self.running.iter().position(|sequence| step.preempt == Some(sequence.id));
        let Some(index) = found else { return };
        let mut sequence = self.running.remove(index);
        self.take_blocks(&mut sequence);
        self.preemptions += 1;
        let place = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(place, sequence);
    }

    /// Gives a sequence's blocks back to the cache, which keeps what is computed while it can.
    fn take_blocks(&mut self, sequence: &mut Sequence) {
        let cached = std::mem::take(&mut sequence.cached);
        if let Some(table) = sequence.table.take() {
            self.kv.end(table, &sequence.ids[..cached]);
        }
    }

    fn admit(&mut self, step: &Step) {
        for id in &step.admit {
            // The plan admits from the front and counted the blocks.
            let Some(mut sequence) = self.waiting.pop_front_if(|s| s.id == *id) else {
                return;
            };
            let tokens = first_tokens(&sequence);
            let Some((table, cached)) = self.kv.begin(sequence.scope, &sequence.ids, tokens) else {
                return self.waiting.push_front(sequence);
            };
            sequence.begin(table, cached);
            let place = self.running.partition_point(|other| other.id < sequence.id);
            self.running.insert(place, sequence);
        }
    }

    /// Prepares what each of the step's sequences feeds; gives their indices. Each has room.
    fn feed(&mut self, step: &Step) -> Vec<usize> {
        let mut feeding = Vec::new();
        for (id, count) in rows(step) {
            let found = self.running.iter_mut().enumerate().find(|(_, sequence)| sequence.id == id);
            let Some((index, sequence)) = found else { continue };
            let count = count.min(sequence.ids.len() - sequence.cached);
            let end = sequence.cached + count;
            // The plan counted the blocks; should one lack, the next plan sees it.
            if sequence.table.as_mut().is_some_and(|table| self.kv.grow(table, end)) {
                sequence.feed(count);
                feeding.push(index);
            }
        }
        feeding
    }

    /// Adds drafts to what decoding sequences feed.
    fn guess(&mut self, feeding: &[usize]) {
        let running = self.running.len();
        if !self.speculation || running >= SPECULATION_OFF_AT {
            return;
        }
        for index in feeding {
            let sequence = &mut self.running[*index];
            let is_decoding = sequence.cached + 1 == sequence.ids.len();
            let (tokens, tokens_max) = (sequence.ids.len(), sequence.tokens_max());
            let Some(table) = sequence.table.as_mut().filter(|_| is_decoding) else { continue };
            // A block that will be needed soon, unless somebody else may need it sooner.
            if self.kv.available_blocks() > running {
                self.kv.grow(table, (tokens + DRAFT_MAX).min(tokens_max));
            }
            let room = table.capacity().saturating_sub(tokens);
            self.guessed_tokens += sequence.guess(room, self.tokenizer.eos());
        }
    }

    /// Runs the step's rows and draws a token for each sequence that is ready for one, or
    /// several where a draft comes true.
    fn compute(&mut self, step: &Step) -> Result<(), ForwardError> {
        let turns = self.turns.clone();
        let _turn = turns.take();
        let feeding = self.feed(step);
        self.guess(&feeding);
        let mut batch = Batch::default();
        let mut rows_of = Vec::new();
        for index in feeding {
            let sequence = &self.running[index];
            let Some(table) = &sequence.table else { continue };
            let (tokens, logits) = sequence.fed();
            batch.segments.push(Segment { tokens, start: sequence.cached, table, logits });
            rows_of.push((index, logits.rows(tokens.len())));
        }
        if batch.segments.is_empty() {
            return Ok(());
        }
        let vocab_size = self.model.config().vocab_size;
        let width = self.model.config().width;
        let Outputs { logits, states } = self.model.forward(&batch, &mut self.kv.pool)?;
        let states = states.chunks_exact(width).map(Some).chain(std::iter::repeat(None));
        let mut outputs = logits.chunks_exact_mut(vocab_size).zip(states);
        for (index, rows) in rows_of {
            // All its rows, drawn from or not, before the next one's.
            let rows = outputs.by_ref().take(rows).map(|(row, state)| (Row::Logits(row), state));
            let rows: Vec<_> = rows.collect();
            let sequence = &mut self.running[index];
            self.guessed_right += sequence.take(rows.into_iter(), &self.tokenizer);
            if let Some(table) = &mut sequence.table {
                self.kv.keep(table, &sequence.ids[..sequence.cached]);
            }
        }
        Ok(())
    }
}

/// Tokens that a sequence gets room for when it is admitted.
fn first_tokens(sequence: &Sequence) -> usize {
    (sequence.ids.len() + HEADROOM_TOKENS).min(sequence.tokens_max())
}

/// Sequences of a step and how many tokens each feeds: decode rows first.
fn rows(step: &Step) -> impl Iterator<Item = (SequenceId, usize)> {
    step.decode.iter().map(|id| (*id, 1)).chain(step.prefill.iter().copied())
}
