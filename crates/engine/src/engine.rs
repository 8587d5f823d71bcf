//! The engine's handle: load a model, encode prompts, start sequences.
//!
//! For: callers on any thread, async ones included: nothing here waits for the model.
//! Must never: run a forward pass on the caller's thread, or accept what can never be served.
//! Relies on: `runner.rs`, which owns the model on a thread of its own.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::error::{EncodeError, LoadError, StartError};
use crate::files::ModelFiles;
use crate::kernels::Cpu;
use crate::kv::{KvCache, KvPool};
use crate::loaded::{Loaded, ModelInfo};
use crate::options::{EngineOptions, SharePrefixes};
use crate::runner::{EngineLoad, Runner, Shared};
use crate::scheduler::Scheduler;
use crate::sequence::{EventSink, Lease, Sequence, SequenceRequest};
use crate::template::{ChatTemplate, ChatTurn};
use crate::tokenizer::{Place, Tokenizer};
use crate::turns::Turns;

/// A loaded model and its thread. Clones are handles to the same; the last one stops it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    info: ModelInfo,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    shared: Arc<Shared>,
    /// Sequences in the engine at once: running and waiting.
    sequences_max: usize,
    kv_blocks_total: usize,
    cpu: Cpu,
    share_prefixes: SharePrefixes,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A started sequence. Dropping it cancels the sequence.
#[must_use = "dropping the handle cancels the sequence"]
pub struct SequenceHandle {
    lease: Arc<Lease>,
    shared: Arc<Shared>,
}

impl Engine {
    /// [`Engine::load_files`] of a GGUF file or a folder of safetensors.
    ///
    /// # Errors
    /// [`LoadError`] says which file, key, tensor or option it was.
    pub fn load(path: &Path, options: EngineOptions) -> Result<Engine, LoadError> {
        options.check()?;
        Engine::load_files(&ModelFiles::open(path)?, options, &Turns::default())
    }

    /// Loads a model and starts its threads. Blocks while the weights are read and packed.
    ///
    /// Of all models with the same `turns` one computes at a time, a step each in turn.
    ///
    /// # Errors
    /// [`LoadError`] says which key, tensor or option it was.
    pub fn load_files(
        files: &ModelFiles,
        options: EngineOptions,
        turns: &Turns,
    ) -> Result<Engine, LoadError> {
        options.check()?;
        let Loaded { model, tokenizer, template, kv, info, options } = Loaded::new(files, options)?;
        let tokenizer = Arc::new(tokenizer);
        let cpu = model.cpu();
        let shared = Arc::new(Shared::default());
        let total = kv.total_blocks();
        shared.lock().load =
            EngineLoad { kv_blocks_free: total, kv_blocks_total: total, ..EngineLoad::default() };
        let runner = Runner {
            model,
            kv: KvCache::new(kv),
            tokenizer: Arc::clone(&tokenizer),
            scheduler: Scheduler {
                running_max: options.running_max,
                prefill_chunk: options.prefill_chunk,
            },
            speculation: options.speculation,
            guessed_tokens: 0,
            guessed_right: 0,
            shared: Arc::clone(&shared),
            turns: turns.clone(),
            waiting: Default::default(),
            running: Vec::new(),
            preemptions: 0,
            ending: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("tally-model".into())
            .spawn(move || runner.run())
            .map_err(|e| LoadError::Options { option: "threads", reason: e.to_string() })?;
        let inner = Inner {
            info,
            tokenizer,
            template,
            shared,
            sequences_max: options.running_max + options.queue_max,
            kv_blocks_total: total,
            cpu,
            share_prefixes: options.share_prefixes,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// What is known about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Ids of a conversation by the model's template, up to where its answer begins.
    ///
    /// Whatever the turns contain, control tokens come from the template alone. Takes about a
    /// millisecond for 4 KB of text.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if the template refuses the turns.
    pub fn encode_chat(&self, turns: &[ChatTurn]) -> Result<Vec<u32>, EncodeError> {
        let tokenizer = &self.inner.tokenizer;
        let rendered = self.inner.template.render(turns, tokenizer.control())?;
        tokenizer.encode_marked(&rendered.text, rendered.mark, Place::Beginning)
    }

    /// Ids that lead from the end of an answer, whose ids the caller kept, to the next one: what
    /// the template puts between them around the user's `content`.
    ///
    /// Appended to the ids of a prompt and its answer they are the next turn's prompt, so a
    /// conversation is never tokenised twice.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if the template refuses the turns or hides the answer.
    pub fn encode_continuation(&self, content: &str) -> Result<Vec<u32>, EncodeError> {
        let tokenizer = &self.inner.tokenizer;
        let rendered = self.inner.template.render_continuation(content, tokenizer.control())?;
        tokenizer.encode_marked(&rendered.text, rendered.mark, Place::AfterText)
    }

    /// Ids of a text as it is; control tokens in it are letters like any others.
    ///
    /// # Errors
    /// [`EncodeError::Tokenizer`].
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.inner.tokenizer.encode_plain(text)
    }

    /// Text of ids, control tokens left out; bytes that aren't UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.tokenizer.decode(ids)
    }

    /// Starts a sequence; its events go to `sink`. Never blocks.
    ///
    /// When its turn comes it gets KV blocks for what it has and some more, and further ones as
    /// it grows. Where the cache is full, younger sequences give theirs to older ones and are
    /// read again later: they pause, and their text stays what it would have been.
    ///
    /// # Errors
    /// [`StartError`]; then nothing is emitted.
    pub fn start(
        &self,
        mut request: SequenceRequest,
        sink: Box<dyn EventSink>,
    ) -> Result<SequenceHandle, StartError> {
        let inner = &self.inner;
        let tokens_max = self.check_request(&request)?;
        request.owner = inner.share_prefixes.scope(request.owner);
        let lease = Arc::new(Lease::default());
        let sizes = (tokens_max, inner.info.vocab_size as usize, inner.cpu);
        let mut sequence = Sequence::new(request, sizes, (sink, Arc::clone(&lease)));
        {
            let mut mailbox = inner.shared.lock();
            if mailbox.is_stopping {
                return Err(StartError::Stopped);
            }
            let waiting = mailbox.load.running + mailbox.load.queued + mailbox.arrivals.len();
            if waiting >= inner.sequences_max {
                return Err(StartError::QueueFull { waiting });
            }
            // Under the lock, so that names are in order of arrival.
            sequence.id = mailbox.next_id;
            mailbox.next_id += 1;
            mailbox.arrivals.push_back(sequence);
        }
        inner.shared.wake();
        Ok(SequenceHandle { lease, shared: Arc::clone(&inner.shared) })
    }

    /// How busy the engine is, as of its last step.
    pub fn load_state(&self) -> EngineLoad {
        let mailbox = self.inner.shared.lock();
        let queued = mailbox.load.queued + mailbox.arrivals.len();
        EngineLoad { queued, ..mailbox.load }
    }

    /// Whether it takes work: false after [`Engine::shutdown`] and after a panic of its threads.
    pub fn is_running(&self) -> bool {
        !self.inner.shared.lock().is_stopping
    }

    /// Tells the engine that a sink which had no room has some again.
    pub fn wake(&self) {
        self.inner.shared.wake();
    }

    /// Stops the threads after the step they are in; sequences end with an error, later starts
    /// are refused. Does not wait; dropping the last handle does.
    pub fn shutdown(&self) {
        self.inner.shared.stop();
    }

    /// The tokens that the request may come to, prompt included.
    fn check_request(&self, request: &SequenceRequest) -> Result<usize, StartError> {
        let tokens_max = self.inner.info.check(request)?;
        let (blocks_needed, blocks_total) =
            (KvPool::blocks_for(tokens_max), self.inner.kv_blocks_total);
        if blocks_needed > blocks_total {
            return Err(StartError::KvBudget { blocks_needed, blocks_total });
        }
        Ok(tokens_max)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread
            // The last handle may be dropped by a sink, on the model's thread itself.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic was caught and logged on that thread.
            let _ = thread.join();
        }
    }
}

impl SequenceHandle {
    /// Ends the sequence within one step; its sink is told `Cancelled`.
    pub fn cancel(&self) {
        self.lease.cancel();
        self.shared.wake();
    }
}

impl Drop for SequenceHandle {
    fn drop(&mut self) {
        self.lease.abandon();
        self.shared.wake();
    }
}
