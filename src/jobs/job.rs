//! One job: it waits for a slot, then tells what the engine makes, then how it ended.
//!
//! Never tells anything after its end, and never keeps a slot beyond it: slot, name and generation
//! are given back before the last event is handed out. Relies on `hold.rs` for ends that come while
//! nobody reads.

use std::sync::Arc;
use std::time::Duration;

use super::hold::{Grip, Step};
use super::{JobRequest, JobSampling};
use crate::clock::Clock;
use crate::engine::{Engine, EngineEvent, EngineFinish, GenerationSpec, Sampling, StartError};
use crate::proof::seed_from_client;
use crate::units::{Hash32, Millis};

/// The least penalty that the engine computes with: it divides by it.
const PENALTY_MIN: f64 = 0.01;

/// Symbols of a job's name that the log repeats; names have no bound of their own.
const LOGGED_MAX: usize = 64;

/// Pause before an engine that is full is asked again: about a step of a small model.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

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
    grip: Grip,
    engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
    model: String,
    /// Its prompt was taken out.
    request: JobRequest,
    /// Until the engine has them.
    prompt_ids: Vec<u32>,
    /// Known, and yet to be told.
    next: Option<Step>,
    is_over: bool,
    tokens: u32,
    decode_began: Option<Millis>,
}

/// What a job is made of.
pub(super) struct Parts {
    pub grip: Grip,
    pub engine: Arc<dyn Engine>,
    pub clock: Arc<dyn Clock>,
    pub model: String,
    pub request: JobRequest,
    pub prompt_ids: Vec<u32>,
}

impl Job {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            grip: parts.grip,
            engine: parts.engine,
            clock: parts.clock,
            model: parts.model,
            request: parts.request,
            prompt_ids: parts.prompt_ids,
            next: None,
            is_over: false,
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
        while !self.is_over {
            let step = match self.next.take() {
                Some(step) => step,
                None => self.grip.0.next().await,
            };
            let told = match step {
                Step::Turn => self.start(),
                Step::Engine(event) => self.hear(event),
                Step::Finish(finish) => Some(self.finish(finish)),
                Step::Ended(fault) => Some(self.fail(fault)),
            };
            if told.is_some() {
                return told;
            }
        }
        None
    }

    /// Asks the engine; `None` where it is to be asked again.
    fn start(&mut self) -> Option<JobEvent> {
        let at = self.clock.unix();
        if self.request.deadline.is_some_and(|deadline| deadline <= at) {
            return Some(self.fail(JobFault::Deadline));
        }
        match self.engine.start(self.spec()) {
            Ok(generation) => {
                self.grip.0.run(generation);
                self.prompt_ids = Vec::new();
                tracing::info!(job_id = self.shown(), "Job started");
            }
            // It still holds jobs that were cancelled, and lets go of them in its next step.
            Err(StartError::Busy) => {
                self.grip.0.wait(self.clock.sleep(BUSY_PAUSE));
                return None;
            }
            Err(error) => self.next = Some(Step::Ended(fault(error))),
        }
        Some(JobEvent::Started { at })
    }

    fn spec(&self) -> GenerationSpec {
        GenerationSpec {
            model: self.model.clone(),
            prompt_ids: self.prompt_ids.clone(),
            max_tokens: self.request.max_tokens,
            sampling: sampling(&self.request.sampling),
            stop: self.request.stop.clone(),
            ignore_eos: false,
            owner: Hash32::ZERO,
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
                self.next = Some(Step::Finish(reason));
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
        // Who was cancelled before the end was read is told so.
        if let Some(fault) = self.give_back() {
            return self.fail(fault);
        }
        let now = self.clock.now();
        let decode_time = now.saturating_sub(self.decode_began.unwrap_or(now));
        tracing::info!(job_id = self.shown(), tokens_out = self.tokens, "Job ended");
        JobEvent::Ended { tokens: self.tokens, decode_time, stop }
    }

    fn fail(&mut self, fault: JobFault) -> JobEvent {
        let fault = self.give_back().unwrap_or(fault);
        let (job_id, tokens_out) = (self.shown(), self.tokens);
        tracing::info!(job_id, tokens_out, why = %fault, "Job ended without an answer");
        JobEvent::Failed(fault)
    }

    /// The next job may have the slot, and one of the same name may come, once this end is read.
    /// Why it was ended from outside, if it was.
    fn give_back(&mut self) -> Option<JobFault> {
        self.is_over = true;
        self.grip.0.release()
    }

    fn shown(&self) -> String {
        self.request.id.chars().take(LOGGED_MAX).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_over {
            tracing::info!(job_id = self.shown(), tokens_out = self.tokens, "Job's client is gone");
        }
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
