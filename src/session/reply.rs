//! A running answer: frames that count only once they were delivered.
//!
//! Never counts a token before its frame was written to the client, and never lets more than the
//! job's credit of tokens be written but unrecorded. Relies on the front-end to call
//! [`Frame::delivered`] exactly when the transport took the frame's last byte; a frame dropped
//! before that is free.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::live::CREDIT_TOKENS;
use super::pace::Pace;
use super::tracker::Hold;
use super::turn::{Framed, TurnMeter};
use crate::billing::TurnEnd;
use crate::engine::{EngineEvent, EngineFinish, Generation, TokenLogprobs};
use crate::units::{JobId, TokenCount};

/// Counts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the rendered prompt; not billed.
    pub prompt_tokens: u32,
    /// Prompt tokens that the engine had read before; known once the prompt was read.
    pub cached_tokens: u32,
    /// Billed tokens framed so far.
    pub completion_tokens: u32,
    /// The model's context, in tokens.
    pub context_window: u32,
}

/// What a request became when it was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyInfo {
    /// The job that pays; `None` in free mode.
    pub job: Option<JobId>,
    /// The model's catalog name (aliases resolved).
    pub model: String,
    /// Prompt tokens and context.
    pub usage: Usage,
}

/// A piece of the answer on its way to the client.
#[must_use = "a frame that is dropped is free: call `delivered` after the write"]
pub struct Frame {
    /// Text of these ids; complete characters only, possibly empty.
    pub text: String,
    tokens: Framed,
    logprobs: Vec<TokenLogprobs>,
    meter: Arc<TurnMeter>,
    credit: Option<OwnedSemaphorePermit>,
}

impl Frame {
    /// Billed tokens in this frame.
    #[must_use]
    pub fn token_count(&self) -> u32 {
        u32::try_from(self.tokens.ids.len()).unwrap_or(u32::MAX)
    }

    /// The ids, for clients that ask for them.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.tokens.ids
    }

    /// Probabilities of the ids, one for each, where the request asked for them; else none.
    #[must_use]
    pub fn logprobs(&self) -> &[TokenLogprobs] {
        &self.logprobs
    }

    /// The transport took the frame's last byte: count it, then record it. Does not wait.
    pub fn delivered(mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        if !tokens.ids.is_empty() {
            self.meter.record(tokens, self.credit.take());
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyEnd {
    /// Why.
    pub reason: TurnEnd,
    /// Text before a matched stop string that no billed token carried; free.
    pub tail_text: String,
    /// Final counts.
    pub usage: Usage,
}

/// What comes next in an answer.
pub enum ReplyEvent {
    /// A frame to write.
    Frame(Frame),
    /// The end; nothing follows.
    End(ReplyEnd),
}

/// A running answer. Dropping it cancels the generation.
pub struct Reply {
    info: ReplyInfo,
    generation: Generation,
    meter: Arc<TurnMeter>,
    credit: Arc<Semaphore>,
    pending: Option<EngineEvent>,
    completion_tokens: u32,
    /// What the request may make; `None` in free mode.
    hold: Option<Hold>,
    /// The session is over on chain, or halted: what is made from now on would never be paid.
    ended: CancellationToken,
    /// Where too much of the job is unclaimed, tokens take turns; `None` where nothing is paid.
    pace: Option<Box<Pace>>,
}

impl Reply {
    pub(super) fn new(parts: ReplyParts) -> Self {
        Self {
            info: parts.info,
            generation: parts.generation,
            meter: parts.meter,
            credit: parts.credit,
            pending: None,
            completion_tokens: 0,
            hold: parts.hold,
            ended: parts.ended,
            pace: parts.pace,
        }
    }

    /// What was admitted.
    #[must_use]
    pub fn info(&self) -> &ReplyInfo {
        &self.info
    }

    /// Counts so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage { completion_tokens: self.completion_tokens, ..self.info.usage }
    }

    /// The next frame of at most [`CREDIT_TOKENS`] ids, or the end.
    ///
    /// Waits for the model, and for the ledger where the job's credit is used up. After `End` it
    /// must not be called again. Cancel-safe: what was taken from the engine is kept.
    pub async fn next(&mut self) -> ReplyEvent {
        loop {
            if self.ended.is_cancelled() {
                return ReplyEvent::End(self.end(&EngineFinish::Cancelled, String::new()));
            }
            if self.pending.is_none() {
                self.pending = Some(self.take_event().await);
            }
            let Some(EngineEvent::Token { .. }) = &self.pending else {
                if let Some(EngineEvent::Finished { reason, tail_text }) = self.pending.take() {
                    return ReplyEvent::End(self.end(&reason, tail_text));
                }
                continue;
            };
            // The permit is taken before the token leaves `pending`, so a cancel here loses none;
            // and before its turn, which says what may go now.
            let Ok(credit) = Arc::clone(&self.credit).acquire_owned().await else {
                let failed = EngineFinish::Failed("the ledger does not record".into());
                return ReplyEvent::End(self.end(&failed, String::new()));
            };
            let most = self.take_turn().await;
            if self.ended.is_cancelled() {
                continue;
            }
            return ReplyEvent::Frame(self.frame(credit, most));
        }
    }

    /// The whole answer as one frame: for responses that are written at once. Its tokens are not
    /// bounded by the credit, but what was written before it is durable by then; they count when
    /// the body's last byte was written.
    pub async fn whole(mut self) -> (Frame, ReplyEnd) {
        let mut text = String::new();
        let (mut tokens, mut logprobs) = (Framed::default(), Vec::new());
        loop {
            match self.take_event().await {
                EngineEvent::Prefilled { .. } => {}
                EngineEvent::Token { id, text: piece, state_digest, logprobs: told } => {
                    self.take_turn().await;
                    logprobs.extend(told.map(|told| *told));
                    text.push_str(&piece);
                    tokens.push(id, state_digest);
                    self.framed(1);
                }
                EngineEvent::Finished { reason, tail_text } => {
                    let end = self.end(&reason, tail_text);
                    let (meter, credit) = (Arc::clone(&self.meter), self.all_credit().await);
                    return (Frame { text, tokens, logprobs, meter, credit }, end);
                }
            }
        }
    }

    /// All of the job's credit: until what is written with it is durable, nothing else of the job
    /// is written, another whole answer included. `None` where the session is over.
    async fn all_credit(&mut self) -> Option<OwnedSemaphorePermit> {
        let all = u32::try_from(CREDIT_TOKENS).unwrap_or(u32::MAX);
        tokio::select! {
            biased;
            () = self.ended.cancelled() => None,
            credit = Arc::clone(&self.credit).acquire_many_owned(all) => credit.ok(),
        }
    }

    /// Ends the answer now, as cancelled. Frames already taken may still be delivered.
    #[must_use]
    pub fn cancel(self) -> ReplyEnd {
        self.end(&EngineFinish::Cancelled, String::new())
    }

    async fn take_event(&mut self) -> EngineEvent {
        let finished = |reason| EngineEvent::Finished { reason, tail_text: String::new() };
        let event = tokio::select! {
            biased;
            () = self.ended.cancelled() => finished(EngineFinish::Cancelled),
            event = self.generation.next() => event.unwrap_or_else(|| {
                finished(EngineFinish::Failed("the engine vanished".into()))
            }),
        };
        if let EngineEvent::Prefilled { cached_tokens } = event {
            self.info.usage.cached_tokens = cached_tokens;
        }
        event
    }

    /// Waits for the next token's turn, or for the session's end. Tokens that may go now.
    async fn take_turn(&mut self) -> usize {
        let Some(pace) = &mut self.pace else { return CREDIT_TOKENS };
        tokio::select! {
            biased;
            () = self.ended.cancelled() => 1,
            room = pace.turn() => usize::try_from(room.get()).unwrap_or(usize::MAX),
        }
    }

    /// So many tokens are in a frame.
    fn framed(&mut self, tokens: u32) {
        self.completion_tokens = self.completion_tokens.saturating_add(tokens);
        self.meter.framed(TokenCount::new(u64::from(tokens)));
        if let Some(pace) = &mut self.pace {
            pace.framed();
        }
    }

    /// The pending token and those that are there already, as far as the credit reaches.
    fn frame(&mut self, mut credit: OwnedSemaphorePermit, most: usize) -> Frame {
        let mut text = String::new();
        let (mut tokens, mut logprobs) = (Framed::default(), Vec::new());
        loop {
            match self.pending.take() {
                Some(EngineEvent::Token { id, text: piece, state_digest, logprobs: told }) => {
                    tokens.push(id, state_digest);
                    logprobs.extend(told.map(|told| *told));
                    text.push_str(&piece);
                }
                other => {
                    self.pending = other;
                    break;
                }
            }
            if tokens.ids.len() >= most.min(CREDIT_TOKENS) {
                break;
            }
            self.pending = self.generation.try_next();
            let Some(EngineEvent::Token { .. }) = &self.pending else { break };
            let Ok(more) = Arc::clone(&self.credit).try_acquire_owned() else { break };
            credit.merge(more);
        }
        self.framed(u32::try_from(tokens.ids.len()).unwrap_or(u32::MAX));
        Frame { text, tokens, logprobs, meter: Arc::clone(&self.meter), credit: Some(credit) }
    }

    /// Whether the answer ended because the deposit buys no more: a short hold, all of it made.
    /// An answer may also end before that, at the context's end.
    fn is_hold_used_up(&self) -> bool {
        let made = TokenCount::new(u64::from(self.completion_tokens));
        self.hold.is_some_and(|hold| hold.is_short && made >= hold.tokens)
    }

    fn end(&self, finish: &EngineFinish, tail_text: String) -> ReplyEnd {
        let reason = match finish {
            EngineFinish::Stop | EngineFinish::StopText(_) => TurnEnd::Stop,
            EngineFinish::Length if self.is_hold_used_up() => TurnEnd::DepositExhausted,
            EngineFinish::Length => TurnEnd::Length,
            EngineFinish::Cancelled => TurnEnd::Cancelled,
            EngineFinish::Failed(why) => {
                tracing::error!(job = ?self.info.job, why, "generation failed");
                TurnEnd::Error
            }
        };
        self.meter.ended(reason);
        ReplyEnd { reason, tail_text, usage: self.usage() }
    }
}

/// What a [`Reply`] is made of.
pub(super) struct ReplyParts {
    pub info: ReplyInfo,
    pub generation: Generation,
    pub meter: Arc<TurnMeter>,
    pub credit: Arc<Semaphore>,
    /// `None` in free mode.
    pub hold: Option<Hold>,
    pub ended: CancellationToken,
    pub pace: Option<Box<Pace>>,
}
