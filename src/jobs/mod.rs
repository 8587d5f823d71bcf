//! Jobs of worker mode: one model, so many jobs at once, a bounded queue of others behind them.
//!
//! Never knows HTTP, sessions or money: an orchestrator that owns the worker sends jobs, and
//! nobody is charged. A job is a [`Job`] that its front-end holds: dropping it, whatever the
//! reason, gives back its slot, its name and the engine's work; cancels, deadlines and the worker's
//! stop do so even where nobody asks the job for its next event. Relies on the front-end to run
//! [`Jobs::keep_deadlines`].

mod hold;
mod job;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

pub use job::{Job, JobEvent, JobFault, JobStop};

use crate::clock::Clock;
use crate::engine::{Engine, EngineLoad, Prompt, StartError};
use crate::units::Millis;
use hold::{Grip, Turn};
use job::Parts;
use registry::Registry;

/// Bytes of text from which a prompt is rendered beside the runtime's one thread, which answers
/// `/health` meanwhile: about a millisecond of work.
const LONG_BYTES: usize = 4 * 1024;

/// How many jobs there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobLimits {
    /// Jobs that run at once, at least 1.
    pub slots: u32,
    /// Jobs that may wait beyond those; one more is refused.
    pub queue_max: u32,
}

/// What an orchestrator asks for, checked by the front-end.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRequest {
    /// The orchestrator's name for it, not empty.
    pub id: String,
    /// The text to continue; no template is put around it.
    pub prompt: String,
    /// Upper bound on generated tokens, > 0.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: JobSampling,
    /// Strings that end the text and are not part of it.
    pub stop: Vec<String>,
    /// When nobody wants the answer any more, Unix milliseconds.
    pub deadline: Option<Millis>,
}

/// How a job's tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobSampling {
    /// 0 … 2; below 1e-6 the most likely token is taken.
    pub temperature: f64,
    /// Same seed, same text.
    pub seed: u64,
    /// 0 … 1; 1 keeps all.
    pub top_p: f64,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 … 2; 1 is none. Below the engine's least, 0.01, that is taken.
    pub repetition_penalty: f64,
    /// 0 … 1; 0 keeps all.
    pub min_p: f64,
}

/// How busy the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobsLoad {
    /// Jobs that may run at once.
    pub slots_total: u32,
    /// Jobs that run.
    pub slots_busy: u32,
    /// Jobs that wait.
    pub queued: u32,
}

/// Why a job was not taken. Nothing was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    /// All slots and all places in the queue are taken.
    #[error("all slots are busy and the queue is full; try again later")]
    Busy(JobsLoad),
    /// A job of this name runs or waits.
    #[error("a job with this job_id is running or waiting")]
    Duplicate,
    /// The worker is about to stop.
    #[error("the worker is shutting down")]
    Draining,
    /// The engine has stopped.
    #[error("the engine does not take work")]
    Unavailable,
    /// The prompt leaves no room for a token.
    #[error("prompt of {prompt_tokens} tokens does not fit a context of {context_length}")]
    ContextLength {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The model's context, in tokens.
        context_length: u32,
    },
    /// The prompt cannot be made into tokens.
    #[error("prompt {0}")]
    Prompt(String),
}

/// The worker's jobs.
pub struct Jobs {
    engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    model: String,
    context_length: u32,
    limits: JobLimits,
    slots: Arc<Semaphore>,
    registry: Arc<Registry>,
}

impl Jobs {
    /// Jobs for the first model of `engine`'s catalog; `None` where it has none.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        limits: JobLimits,
        clock: Arc<dyn Clock>,
    ) -> Option<Arc<Self>> {
        let card = engine.catalog().into_iter().next()?;
        let slots = usize::try_from(limits.slots).unwrap_or(usize::MAX);
        Some(Arc::new(Self {
            engine,
            clock,
            model: card.name,
            context_length: card.context_length,
            limits,
            slots: Arc::new(Semaphore::new(slots.min(Semaphore::MAX_PERMITS))),
            registry: Arc::default(),
        }))
    }

    /// The model's name, as streams tell it.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Takes a job: its name and its place in the queue are its own from now on.
    ///
    /// # Errors
    /// Every [`JobRefusal`].
    pub async fn admit(&self, mut request: JobRequest) -> Result<Job, JobRefusal> {
        let grip = self.take_place(&request)?;
        let prompt_ids = self.render(std::mem::take(&mut request.prompt)).await?;
        let context = usize::try_from(self.context_length).unwrap_or(usize::MAX);
        if prompt_ids.len() >= context {
            let (prompt_tokens, context_length) = (prompt_ids.len(), self.context_length);
            return Err(JobRefusal::ContextLength { prompt_tokens, context_length });
        }
        let (engine, clock) = (Arc::clone(&self.engine), Arc::clone(&self.clock));
        let model = self.model.clone();
        Ok(Job::new(Parts { grip, engine, clock, model, request, prompt_ids }))
    }

    /// Ends the job of this name as cancelled; none of that name is fine.
    pub fn cancel(&self, id: &str) {
        if let Some(hold) = self.registry.get(id) {
            hold.end(JobFault::Cancelled);
        }
    }

    /// Ends jobs at their deadlines for as long as it is polled; never completes.
    pub async fn keep_deadlines(&self) {
        loop {
            let now = self.clock.unix();
            let is_late = |deadline| deadline <= now;
            self.registry.end(&JobFault::Deadline, |hold| hold.deadline.is_some_and(is_late));
            let alarm = self.registry.deadline().map(|deadline| {
                let left = deadline.saturating_sub(now);
                self.clock.sleep(Duration::from_millis(left.get()))
            });
            tokio::select! {
                biased;
                () = self.registry.changed.notified() => {}
                () = async { match alarm {
                    Some(alarm) => alarm.await,
                    None => std::future::pending().await,
                } } => {}
            }
        }
    }

    /// How busy the worker is.
    #[must_use]
    pub fn load(&self) -> JobsLoad {
        self.load_of(self.registry.lock().holds.len())
    }

    /// How busy the engine is.
    #[must_use]
    pub fn engine_load(&self) -> EngineLoad {
        self.engine.load()
    }

    /// Whether jobs can be computed at all.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.engine.is_healthy()
    }

    /// Whether new jobs are refused because the worker is about to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.registry.lock().is_closed
    }

    /// Takes no more jobs; those that run or wait go on.
    pub fn close(&self) {
        self.registry.lock().is_closed = true;
        self.registry.present.close();
    }

    /// Completes when [`Self::close`] was called and no job is left.
    pub async fn finished(&self) {
        self.registry.present.wait().await;
    }

    /// Ends all jobs now.
    pub fn cut(&self) {
        self.registry.end(&JobFault::Cut, |_| true);
    }

    fn take_place(&self, request: &JobRequest) -> Result<Grip, JobRefusal> {
        if !self.engine.is_healthy() {
            return Err(JobRefusal::Unavailable);
        }
        let mut inner = self.registry.lock();
        if inner.is_closed {
            return Err(JobRefusal::Draining);
        }
        if inner.holds.contains_key(&request.id) {
            return Err(JobRefusal::Duplicate);
        }
        let JobLimits { slots, queue_max } = self.limits;
        let most = usize::try_from(slots.saturating_add(queue_max)).unwrap_or(usize::MAX);
        if inner.holds.len() >= most {
            return Err(JobRefusal::Busy(self.load_of(inner.holds.len())));
        }
        // Under the lock, so that jobs start in the order in which they were taken.
        let waits = (Turn::take(&self.slots), request.deadline);
        Ok(Grip(self.registry.enter(&mut inner, &request.id, waits)))
    }

    /// So many jobs, of which as many run as there are slots.
    fn load_of(&self, jobs: usize) -> JobsLoad {
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        let slots_total = self.limits.slots;
        let slots_busy = jobs.min(slots_total);
        JobsLoad { slots_total, slots_busy, queued: jobs.saturating_sub(slots_busy) }
    }

    /// The prompt as ids. A long one is rendered on a thread of its own.
    async fn render(&self, text: String) -> Result<Vec<u32>, JobRefusal> {
        let is_long = text.len() > LONG_BYTES;
        let (engine, model) = (Arc::clone(&self.engine), self.model.clone());
        let render = move || engine.render(&model, &Prompt::Raw(text));
        let rendered = if is_long {
            let beside = tokio::task::spawn_blocking(render).await;
            beside.unwrap_or(Err(StartError::Unavailable))
        } else {
            render()
        };
        rendered.map_err(|error| match error {
            StartError::Unavailable | StartError::UnknownModel | StartError::Busy => {
                JobRefusal::Unavailable
            }
            other => JobRefusal::Prompt(format!("cannot be read: {other}")),
        })
    }
}
