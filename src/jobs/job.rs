//! One job: it waits for a slot, then tells what the engine makes, then how it ended.
//!
//! Never tells anything after its end, and never keeps a slot beyond it: slot, name and generation
//! are given back before the last event is handed out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{JobRequest, JobSampling, Place};
use crate::clock::{Clock, Sleep};
use crate::engine::{
    Engine, EngineEvent, EngineFinish, Generation, GenerationSpec, Sampling, StartError,
};
use crate::proof::seed_from_client;
use crate::units::{Hash32, Millis};

/// The least penalty that the engine computes with: it divides by it.
const PENALTY_MIN: f64 = 0.01;

/// Symbols of a job's name that the log repeats; names have no bound of their own.
const LOGGED_MAX: usize = 64;

/// What a job tells: `Started`, tokens, one of `Ended` and `Failed`. A job that ends while it waits
/// tells `Failed` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// It has a slot.
    Started {
        /// When, Unix milliseconds.
        at: Millis,
    },
    /// A generated token.
    Token {
        /// Text that became complete with it; empty for a part of a character.
        text: String,
        /// 0, 1, …
        index: u32,
    },
    /// The answer is complete.
    Ended {
        /// `Token` events.
        tokens: u32,
        /// From the prompt's last token to the answer's.
        decode_time: Millis,
        /// Why.
        stop: JobStop,
    },
    /// There is no complete answer.
    Failed(JobFault),
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobStop {
    /// `max_tokens` were made, or the context is full.
    MaxTokens,
    /// The model ended the text.
    Eos,
    /// This stop string came.
    Sequence(String),
}

/// Why there is no complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobFault {
    /// The orchestrator cancelled it.
    #[error("the job was cancelled")]
    Cancelled,
    /// The worker stops, and the job did not end in time.
    #[error("the worker is shutting down")]
    Cut,
    /// Its deadline came first.
    #[error("the job's deadline has passed")]
    Deadline,
    /// The engine refuses it.
    #[error("{0}")]
    Invalid(String),
    /// It never fits the KV memory.
    #[error("{0}")]
    Memory(String),
    /// The engine failed; the log says how.
    #[error("the inference failed")]
    Failed,
}

/// A job that was taken. Dropping it gives everything back.
pub struct Job {
    request: JobRequest,
    model: String,
    engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    cancel: CancellationToken,
    cut: CancellationToken,
    /// The deadline had passed before the job came. A timer of no length may end after a slot is
    /// found.
    is_late: bool,
    alarm: Option<Sleep>,
    stage: Stage,
    place: Option<Place>,
    tokens: u32,
    decode_began: Option<Millis>,
}

/// What a job is made of.
pub(super) struct Parts {
    pub place: Place,
    pub engine: Arc<dyn Engine>,
    pub clock: Arc<dyn Clock>,
    pub slots: Arc<Semaphore>,
    pub cut: CancellationToken,
    pub model: String,
    pub prompt_ids: Vec<u32>,
    pub request: JobRequest,
}

enum Stage {
    /// In the queue, with its prompt.
    Waiting(Vec<u32>),
    Running {
        generation: Generation,
        _slot: OwnedSemaphorePermit,
    },
    /// All was told but this end.
    Ending(EngineFinish),
    Over,
}

/// What happens next, whatever comes first.
enum Step {
    Slot(OwnedSemaphorePermit),
    Engine(Option<EngineEvent>),
    Finish(EngineFinish),
}

impl Job {
    pub(super) fn new(parts: Parts) -> Self {
        let now = parts.clock.unix();
        let deadline = parts.request.deadline;
        let alarm = deadline.map(|deadline| {
            let left = deadline.saturating_sub(now);
            parts.clock.sleep(Duration::from_millis(left.get()))
        });
        Self {
            request: parts.request,
            model: parts.model,
            engine: parts.engine,
            clock: parts.clock,
            slots: parts.slots,
            cancel: parts.place.cancel.clone(),
            cut: parts.cut,
            is_late: deadline.is_some_and(|deadline| deadline <= now),
            alarm,
            stage: Stage::Waiting(parts.prompt_ids),
            place: Some(parts.place),
            tokens: 0,
            decode_began: None,
        }
    }

    /// The orchestrator's name for it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.request.id
    }

    /// What comes next; after the end, `None`.
    ///
    /// A cancel, a deadline and the worker's stop come before further tokens, however many wait.
    pub async fn next(&mut self) -> Option<JobEvent> {
        loop {
            if matches!(self.stage, Stage::Over) {
                return None;
            }
            if self.is_late {
                return Some(self.fail(JobFault::Deadline));
            }
            let step = tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(JobFault::Cancelled),
                () = self.cut.cancelled() => Err(JobFault::Cut),
                () = ring(&mut self.alarm) => Err(JobFault::Deadline),
                step = step(&mut self.stage, &self.slots) => Ok(step),
            };
            let told = match step {
                Err(fault) => Some(self.fail(fault)),
                Ok(Step::Slot(permit)) => Some(self.start(permit)),
                Ok(Step::Engine(event)) => self.hear(event),
                Ok(Step::Finish(finish)) => Some(self.finish(finish)),
            };
            if told.is_some() {
                return told;
            }
        }
    }

    fn start(&mut self, permit: OwnedSemaphorePermit) -> JobEvent {
        let Stage::Waiting(prompt_ids) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return self.fail(JobFault::Failed);
        };
        let spec = GenerationSpec {
            model: self.model.clone(),
            prompt_ids,
            max_tokens: self.request.max_tokens,
            sampling: sampling(&self.request.sampling),
            stop: self.request.stop.clone(),
            ignore_eos: false,
            owner: Hash32::ZERO,
        };
        match self.engine.start(spec) {
            Ok(generation) => {
                self.stage = Stage::Running { generation, _slot: permit };
                tracing::info!(job_id = self.shown(), "Job started");
                JobEvent::Started { at: self.clock.unix() }
            }
            Err(error) => self.fail(fault(error)),
        }
    }

    /// What an engine's event tells; `None` where it tells nothing.
    fn hear(&mut self, event: Option<EngineEvent>) -> Option<JobEvent> {
        match event {
            Some(EngineEvent::Prefilled { .. }) => {
                self.decode_began = Some(self.clock.now());
                None
            }
            Some(EngineEvent::Token { text, .. }) => Some(self.token(text)),
            Some(EngineEvent::Finished { reason, tail_text }) if tail_text.is_empty() => {
                Some(self.finish(reason))
            }
            Some(EngineEvent::Finished { reason, tail_text }) => {
                // The beginning of the token in which the stop string begins.
                self.stage = Stage::Ending(reason);
                Some(self.token(tail_text))
            }
            None => {
                let vanished = EngineFinish::Failed("the engine vanished".to_owned());
                Some(self.finish(vanished))
            }
        }
    }

    fn token(&mut self, text: String) -> JobEvent {
        let index = self.tokens;
        self.tokens = index.saturating_add(1);
        JobEvent::Token { text, index }
    }

    fn finish(&mut self, finish: EngineFinish) -> JobEvent {
        let stop = match finish {
            EngineFinish::Stop => JobStop::Eos,
            EngineFinish::StopText(stop) => JobStop::Sequence(stop),
            EngineFinish::Length => JobStop::MaxTokens,
            EngineFinish::Cancelled => return self.fail(JobFault::Cancelled),
            EngineFinish::Failed(why) => {
                tracing::error!(job_id = self.shown(), why, "Job failed in the engine");
                return self.fail(JobFault::Failed);
            }
        };
        self.give_back();
        let now = self.clock.now();
        let decode_time = now.saturating_sub(self.decode_began.unwrap_or(now));
        tracing::info!(job_id = self.shown(), tokens_out = self.tokens, "Job ended");
        JobEvent::Ended { tokens: self.tokens, decode_time, stop }
    }

    fn fail(&mut self, fault: JobFault) -> JobEvent {
        self.give_back();
        let (job_id, tokens_out) = (self.shown(), self.tokens);
        tracing::info!(job_id, tokens_out, why = %fault, "Job ended without an answer");
        JobEvent::Failed(fault)
    }

    /// The next job may have the slot, and one of the same name may come, once this end is read.
    fn give_back(&mut self) {
        self.stage = Stage::Over;
        self.place = None;
    }

    fn shown(&self) -> String {
        self.request.id.chars().take(LOGGED_MAX).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::Over) {
            tracing::info!(job_id = self.shown(), tokens_out = self.tokens, "Job's client is gone");
        }
    }
}

/// Completes when there is a deadline and it has come.
async fn ring(alarm: &mut Option<Sleep>) {
    match alarm {
        Some(alarm) => alarm.await,
        None => std::future::pending().await,
    }
}

/// What a stage waits for. Cancel-safe but for a job's turn in the queue, which it then loses.
async fn step(stage: &mut Stage, slots: &Arc<Semaphore>) -> Step {
    let closed = || Step::Finish(EngineFinish::Failed("no slots any more".to_owned()));
    match stage {
        Stage::Waiting(_) => {
            Arc::clone(slots).acquire_owned().await.map_or_else(|_| closed(), Step::Slot)
        }
        Stage::Running { generation, .. } => Step::Engine(generation.next().await),
        Stage::Ending(finish) => Step::Finish(finish.clone()),
        Stage::Over => std::future::pending().await,
    }
}

fn fault(error: StartError) -> JobFault {
    match error {
        StartError::Memory(words) => JobFault::Memory(words),
        StartError::Invalid(words) => JobFault::Invalid(words),
        error @ (StartError::Setting { .. } | StartError::ContextLength { .. }) => {
            JobFault::Invalid(error.to_string())
        }
        error @ (StartError::Busy | StartError::Unavailable | StartError::UnknownModel) => {
            tracing::error!(%error, "The engine refuses a job that has a slot");
            JobFault::Failed
        }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn sampling(asked: &JobSampling) -> Sampling {
    Sampling {
        temperature: asked.temperature as f32,
        top_k: asked.top_k,
        top_p: asked.top_p as f32,
        min_p: asked.min_p as f32,
        repetition_penalty: asked.repetition_penalty.max(PENALTY_MIN) as f32,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: std::collections::BTreeMap::new(),
        logprobs: None,
        seed: seed_from_client(asked.seed),
    }
}
