//! Text that is claimed to be the model's, derived again.
//!
//! For: whoever checks a claim: the ids of a turn, one by one, and how it ended.
//! Must never: draw, match or end in a way of its own: a claimed text is a draft like any other,
//! fed to a [`Sequence`] and checked as `speculation.rs`'s are; nor go on behind the first fault.
//! Relies on: the same bits wherever a row is computed (docs/spec/numerics.md), so that what is
//! not derived again was not derived the first time.
//!
//! ```text
//! claimed ids ─▶ Sequence::foretell ─▶ Model::forward ─▶ Sequence::take ─▶ judge ─▶ fault, or on
//!  (a step's worth, after what came true so far)     (drawn, stopped, told)
//! ```

use std::fmt;
use std::path::Path;
use std::slice::{ChunksExact, ChunksExactMut};
use std::sync::Arc;

use crate::drawing::{Drawer, Row};
use crate::error::{LoadError, StartError};
use crate::files::ModelFiles;
use crate::kv::{KvCache, KvPool, Scope};
use crate::loaded::{Loaded, ModelInfo};
use crate::model::{Batch, Model, Outputs, Segment};
use crate::options::EngineOptions;
use crate::sampler::{Drawn, NotFinite};
use crate::sequence::{Event, EventSink, FinishReason, Sequence, SequenceRequest, digest};
use crate::tokenizer::Tokenizer;

/// A turn as somebody says it was.
#[derive(Debug, Clone)]
pub struct ClaimedTurn {
    /// What was asked for. Whose it was and how many probabilities were told doesn't matter.
    pub request: SequenceRequest,
    /// The tokens that were generated, without what ended them: no end token, nothing of a stop
    /// string that came.
    pub output_ids: Vec<u32>,
    /// How it is said to have ended.
    pub end: ClaimedEnd,
}

/// How a turn is said to have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimedEnd {
    /// By the model's end token or a stop string.
    Stop,
    /// By `max_tokens` or the context's end.
    Length,
    /// By a bound of the host's that came before the client's, such as what a deposit buys: as
    /// by `max_tokens`, had that been the number of `output_ids`. Without any, as cut.
    Exhausted,
    /// Anywhere: the client left, or the host stopped. A beginning of the model's text is enough;
    /// tokens that a stop string swallows are none of it.
    Cut,
}

/// What the derivation of a turn gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// Keccak-256 of the hidden state that produced each of `output_ids`, as
    /// [`Event::Token`] tells it. Where there is a fault, up to its position, and for that one
    /// too unless the text had ended there.
    pub state_digests: Vec<[u8; 32]>,
    /// The output's text, as its reader was given it: without the stop string, with what stands
    /// before that in its first token unless the turn was cut. Where there is a fault, at most up
    /// to it.
    pub text: String,
    /// How the text ends right behind `output_ids`. `None` where it goes on, which only a turn
    /// that was cut may; where nobody looked, since that was enough; or where there is a fault.
    pub end: Option<FinishReason>,
    /// The first thing that is wrong; `None`: every id and the end came out as claimed.
    pub fault: Option<Fault>,
    /// Prompt tokens that earlier turns had left in the cache.
    pub cached_tokens: u32,
}

/// Where what is claimed and what the model gives part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Index in `output_ids`; their number where it is the end that is wrong.
    pub position: u32,
    /// The id that is claimed there; `None`: that the text ends there.
    pub claimed: Option<u32>,
    /// What comes out instead.
    pub found: Found,
}

/// What comes out where a claim is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This token is drawn.
    Token(u32),
    /// The text ends, or has ended: the tokens from here on are not the model's, or belong to a
    /// stop string.
    End(FinishReason),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { position, claimed, found } = self;
        match claimed {
            Some(id) => write!(f, "token {position}: id {id} is claimed, ")?,
            None => write!(f, "end behind token {position}: ")?,
        }
        match (found, claimed) {
            (Found::Token(id), Some(_)) => write!(f, "id {id} is drawn"),
            (Found::Token(id), None) => write!(f, "the text goes on, with id {id}"),
            (Found::End(reason), Some(_)) => write!(f, "the text ends before it ({reason:?})"),
            (Found::End(reason), None) => write!(f, "it is another ({reason:?})"),
        }
    }
}

/// A turn could not be derived.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The model can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model's text may be another on another machine: candle computes it.
    #[error("{architecture} models are not canonical: their text can't be derived again")]
    NotCanonical {
        /// `general.architecture`.
        architecture: String,
    },
    /// No engine takes such a request, so that the claim is wrong; or, where it is
    /// [`StartError::KvBudget`], this one's cache is too small for it.
    #[error("no engine takes this request: {0}")]
    Refused(#[from] StartError),
    /// The forward pass failed; says nothing about the claim.
    #[error("{0}")]
    Failed(String),
}

/// A loaded model that derives turns again, one at a time, on the caller's thread and its own.
///
/// What it has computed stays in its cache while there is room: turns of one conversation, in
/// their order, cost each token once.
pub struct Replay {
    info: ModelInfo,
    model: Model,
    tokenizer: Tokenizer,
    kv: KvCache,
    /// Rows of a step.
    rows_max: usize,
    threads: usize,
}

/// Rows that are drawn from before another thread is worth its start.
const ROWS_ALONE: usize = 8;

/// What was heard of a sequence.
#[derive(Default)]
struct Heard {
    /// Tokens that were released.
    tokens: usize,
    text: String,
    digests: Vec<[u8; 32]>,
}

/// Nobody reads: events are taken from the sequence itself.
struct Unread;

impl EventSink for Unread {
    fn is_ready(&self) -> bool {
        false
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, _event: Event) {}
}

impl Replay {
    /// [`Replay::load_files`] of a GGUF file or a folder of safetensors.
    ///
    /// # Errors
    /// [`ReplayError::Load`], [`ReplayError::NotCanonical`].
    pub fn load(path: &Path, options: EngineOptions) -> Result<Replay, ReplayError> {
        options.check()?;
        Replay::load_files(&ModelFiles::open(path)?, options)
    }

    /// Loads a model. Blocks while the weights are read and packed.
    ///
    /// Of the options those count that say how to compute: threads, cache, instruction set, and
    /// `prefill_chunk`, the rows of a step; each takes room for a vocabulary of f32, and from 128
    /// on more of them are hardly faster.
    ///
    /// # Errors
    /// [`ReplayError::Load`], [`ReplayError::NotCanonical`].
    pub fn load_files(files: &ModelFiles, options: EngineOptions) -> Result<Replay, ReplayError> {
        options.check()?;
        let Loaded { model, tokenizer, kv, info, options, .. } = Loaded::new(files, options)?;
        if info.engine_spec == 0 {
            return Err(ReplayError::NotCanonical { architecture: info.architecture });
        }
        let EngineOptions { prefill_chunk: rows_max, threads, .. } = options;
        Ok(Replay { info, model, tokenizer, kv: KvCache::new(kv), rows_max, threads })
    }

    /// What is known about the model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Derives a turn again, up to the first fault. Blocks for as long as reading its prompt and
    /// output takes.
    ///
    /// # Errors
    /// [`ReplayError::Refused`] where no engine would have served the request, and
    /// [`ReplayError::Failed`].
    pub fn turn(&mut self, turn: &ClaimedTurn) -> Result<Replayed, ReplayError> {
        let bound = self.info.check(&turn.request)?;
        let prompt = turn.request.prompt_ids.len();
        let tokens_max = match turn.end {
            ClaimedEnd::Exhausted => bound.min(prompt + turn.output_ids.len().max(1)),
            ClaimedEnd::Stop | ClaimedEnd::Length | ClaimedEnd::Cut => bound,
        };
        // Everybody's: the bits are the same, and there is nobody here to time them.
        let mut request = SequenceRequest { owner: Some(Scope::default()), ..turn.request.clone() };
        request.sampling.logprobs = None;
        let sizes = (tokens_max, self.info.vocab_size as usize, self.model.cpu());
        let mut sequence = Sequence::new(request, sizes, (Box::new(Unread), Arc::default()));
        let room = (prompt + turn.output_ids.len()).min(tokens_max);
        let begun = self.kv.begin(sequence.scope, &sequence.ids, room);
        let (table, cached) = begun.ok_or_else(|| self.too_long(room))?;
        sequence.begin(table, cached);
        let derived = self.derive(&mut sequence, turn);
        if let Some(table) = sequence.table.take() {
            self.kv.end(table, &sequence.ids[..sequence.cached]);
        }
        derived
    }

    fn derive(
        &mut self,
        sequence: &mut Sequence,
        turn: &ClaimedTurn,
    ) -> Result<Replayed, ReplayError> {
        let mut heard = Heard::default();
        let fault = loop {
            heard.listen(sequence, turn.output_ids.len());
            match judge(turn, sequence, heard.tokens) {
                Some(Ok(())) => break None,
                Some(Err(fault)) => break Some(fault),
                None => self.step(sequence, (&turn.output_ids, &mut heard.digests))?,
            }
        };
        if let Some(fault) = &fault {
            heard.digests.truncate(fault.position as usize + 1);
        }
        let is_whole = fault.is_none() && heard.tokens == turn.output_ids.len();
        let end = sequence.end().filter(|_| is_whole);
        // A reader of a turn that was cut was told tokens and no end.
        let told = end.filter(|_| turn.end != ClaimedEnd::Cut);
        let tail = told.map_or("", |(_, tail)| tail);
        Ok(Replayed {
            state_digests: heard.digests,
            text: heard.text + tail,
            end: end.map(|(reason, _)| reason.clone()),
            fault,
            cached_tokens: sequence.found_tokens() as u32,
        })
    }

    /// Feeds what isn't cached, and behind it what is claimed to come next, as far as there are
    /// rows; draws from what comes of it as long as the claim comes true.
    fn step(
        &mut self,
        sequence: &mut Sequence,
        (claimed, digests): (&[u32], &mut Vec<[u8; 32]>),
    ) -> Result<(), ReplayError> {
        let left = sequence.ids.len() - sequence.cached;
        sequence.feed(left.min(self.rows_max));
        let drawn = sequence.completion().len();
        // Behind what is expected one more token is drawn.
        let room = sequence.tokens_max().saturating_sub(sequence.ids.len() + 1);
        let room = room.min(self.rows_max.saturating_sub(left));
        let next = claimed.get(drawn..).unwrap_or_default();
        // An id that doesn't exist is never drawn: what comes in its place is seen before it.
        let known = next.iter().take_while(|id| **id < self.info.vocab_size).count();
        if left <= self.rows_max {
            sequence.foretell(&next[..known.min(room)]);
        }
        let end = sequence.cached + sequence.fed().0.len();
        if !sequence.table.as_mut().is_some_and(|table| self.kv.grow(table, end)) {
            return Err(self.too_long(end));
        }
        self.compute(sequence, (claimed.len() - drawn.min(claimed.len()), digests))
    }

    /// Computes what is fed and draws; notes digests of `wanted` tokens at most.
    fn compute(
        &mut self,
        sequence: &mut Sequence,
        (wanted, digests): (usize, &mut Vec<[u8; 32]>),
    ) -> Result<(), ReplayError> {
        let Some(table) = &sequence.table else { return Ok(()) };
        let (tokens, logits) = sequence.fed();
        let segment = Segment { tokens, start: sequence.cached, table, logits };
        let batch = Batch { segments: vec![segment] };
        let (width, vocab) = (self.model.config().width, self.model.config().vocab_size);
        let computed = self.model.forward(&batch, &mut self.kv.pool);
        let Outputs { logits, states } =
            computed.map_err(|error| ReplayError::Failed(error.to_string()))?;
        let rows = logits.len() / vocab;
        let each = rows.div_ceil(self.threads).max(ROWS_ALONE);
        let parts = logits.chunks_mut(each * vocab).zip(states.chunks(each * width)).enumerate();
        let parts = parts.map(|(part, (logits, states))| {
            let drawer = sequence.ahead(part * each, &self.tokenizer);
            Part {
                drawer,
                logits: logits.chunks_exact_mut(vocab),
                states: states.chunks_exact(width),
            }
        });
        let found = read(parts.collect())?;
        let before = sequence.completion().len();
        let (drawn, states): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        // The digests are kept here: no event tells of the row that an end is drawn from.
        let drawn = drawn.into_iter().map(|drawn| (Row::Drawn(drawn), None));
        sequence.take(drawn, &self.tokenizer);
        let taken = sequence.completion().len() - before + usize::from(sequence.has_ended());
        digests.extend(states.into_iter().take(taken.min(wanted)));
        if let Some(table) = &mut sequence.table {
            self.kv.keep(table, &sequence.ids[..sequence.cached]);
        }
        Ok(())
    }

    fn too_long(&self, tokens: usize) -> ReplayError {
        let (blocks_needed, blocks_total) =
            (KvPool::blocks_for(tokens), self.kv.pool.total_blocks());
        ReplayError::Refused(StartError::KvBudget { blocks_needed, blocks_total })
    }
}

/// Consecutive rows of a step.
struct Part<'a> {
    drawer: Drawer<'a>,
    logits: ChunksExactMut<'a, f32>,
    states: ChunksExact<'a, f32>,
}

/// What each row gives: a token, and the digest of the hidden state that it is drawn from.
type RowFound = (Result<Drawn, NotFinite>, [u8; 32]);

impl Part<'_> {
    fn read(mut self) -> Vec<RowFound> {
        let rows = self.logits.zip(self.states);
        rows.map(|(logits, state)| (self.drawer.draw(logits), digest(state))).collect()
    }
}

/// Reads the parts, each on a thread of its own.
fn read(mut parts: Vec<Part<'_>>) -> Result<Vec<RowFound>, ReplayError> {
    let Some(own) = parts.pop() else { return Ok(Vec::new()) };
    std::thread::scope(|scope| {
        let others: Vec<_> =
            parts.into_iter().map(|part| scope.spawn(move || part.read())).collect();
        let own = own.read();
        let mut found = Vec::new();
        for other in others {
            let panicked = |_| ReplayError::Failed("a thread that draws panicked".into());
            found.extend(other.join().map_err(panicked)?);
        }
        found.extend(own);
        Ok(found)
    })
}

impl Heard {
    /// Hears what a sequence has to tell; keeps the text of `count` tokens.
    fn listen(&mut self, sequence: &mut Sequence, count: usize) {
        for event in sequence.take_events() {
            if let Event::Token { text, .. } = event {
                if self.tokens < count {
                    self.text.push_str(&text);
                }
                self.tokens += 1;
            }
        }
    }
}

/// Compares what is claimed with what was drawn and, of that, `told` to a reader, so far. `None`
/// where it takes more to say.
fn judge(turn: &ClaimedTurn, sequence: &Sequence, told: usize) -> Option<Result<(), Fault>> {
    let (claimed, drawn) = (&turn.output_ids, sequence.completion());
    let fault = |position: usize, found| {
        let claimed = claimed.get(position).copied();
        Some(Err(Fault { position: position as u32, claimed, found }))
    };
    let is_cut = match turn.end {
        ClaimedEnd::Cut => true,
        ClaimedEnd::Exhausted => claimed.is_empty(),
        ClaimedEnd::Stop | ClaimedEnd::Length => false,
    };
    let pairs = claimed.iter().zip(drawn);
    if let Some((position, (_, id))) = pairs.enumerate().find(|(_, (ours, id))| ours != id) {
        return fault(position, Found::Token(*id));
    }
    let count = claimed.len();
    let reason = sequence.end().map(|(reason, _)| reason);
    match reason {
        Some(reason) if told < count => fault(told, Found::End(reason.clone())),
        _ if told >= count && is_cut => Some(Ok(())),
        // What was told behind the claim was drawn there.
        _ if told > count => fault(count, Found::Token(*drawn.get(count)?)),
        Some(reason) if !is_as_claimed(turn.end, reason) => {
            fault(count, Found::End(reason.clone()))
        }
        Some(_) => Some(Ok(())),
        None => None,
    }
}

fn is_as_claimed(end: ClaimedEnd, reason: &FinishReason) -> bool {
    match end {
        ClaimedEnd::Stop => matches!(reason, FinishReason::Stop | FinishReason::StopString(_)),
        ClaimedEnd::Length | ClaimedEnd::Exhausted => *reason == FinishReason::Length,
        ClaimedEnd::Cut => true,
    }
}
