//! One request inside the engine: its ids, its text, what its reader hasn't taken yet.
//!
//! For: everything that happens to a sequence between two forward passes.
//! Must never: give the reader a token that a stop string may swallow, or an event that it has
//! no room for; touch the model.
//! Relies on: `sampler.rs`, `stop.rs`, `detokenizer.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use sha3::{Digest, Keccak256};

use crate::batch::Logits;
use crate::detokenizer::Detokenizer;
use crate::drawing::{Drawer, Row, draw};
use crate::kernels::Cpu;
use crate::kv::{BlockTable, Scope};
use crate::sampler::{Drawn, Logprobs, NotFinite, Sampler, Sampling};
use crate::scheduler::SequenceId;
use crate::speculation::Speculation;
use crate::stop::{Outcome, Piece, StopMatcher};
use crate::tokenizer::Tokenizer;

/// What is to be generated.
#[derive(Debug, Clone)]
pub struct SequenceRequest {
    /// Ids to continue; see `Engine::encode_chat` and `Engine::encode_raw`.
    pub prompt_ids: Vec<u32>,
    /// Tokens to generate at most, at least 1. The context's end may come first.
    pub max_tokens: u32,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end the generation; none of them empty.
    pub stop: Vec<String>,
    /// Never draw an id that ends the text: only `max_tokens`, the context's end or a stop text
    /// ends it then. For measurements, which want answers of one length.
    pub ignore_eos: bool,
    /// Whose request it is, see [`SharePrefixes`](crate::SharePrefixes). `None`: nobody's that
    /// is known.
    pub owner: Option<[u8; 32]>,
}

/// Where a sequence's events go. The engine calls it from the model's thread.
pub trait EventSink: Send {
    /// Whether there is room for one event. While there is none the sequence pauses, alone;
    /// `Engine::wake` makes the engine ask again.
    fn is_ready(&self) -> bool;
    /// Whether nobody reads any more; the sequence is then cancelled.
    fn is_closed(&self) -> bool;
    /// Takes an event; called only right after `is_ready` said yes. Must not block.
    fn emit(&mut self, event: Event);
}

/// What a sequence's reader sees: one `Prefilled`, tokens, one `Finished`. A sink that is dropped
/// without `Finished` had no room for it when the engine stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is in the cache.
    Prefilled {
        /// Its tokens.
        prompt_tokens: u32,
        /// So many of them were there already and were not computed again.
        cached_tokens: u32,
    },
    /// A generated token that no stop string can swallow any more.
    Token {
        /// The token.
        id: u32,
        /// The text that became complete with it, perhaps none.
        text: String,
        /// Keccak-256 of the bits (f32, little-endian) of the normed hidden state that produced
        /// it, where the model is canonical.
        state_digest: Option<[u8; 32]>,
        /// How likely it and its rivals were, where the request asked.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The end; nothing comes after it.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Text before a stop string, of the token that the stop string begins in.
        tail_text: String,
        /// `Token` events that were emitted.
        completion_tokens: u32,
    },
}

/// How likely a generated token and the most likely ones at its place were, by the model alone:
/// softmax of its logits before bias, penalties, temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The generated token.
    pub chosen: Logprob,
    /// The most likely tokens, most likely first, of equals the lowest id first; as many as the
    /// request asked for. The generated one may be among them.
    pub top: Vec<Logprob>,
}

/// A token's probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// Its text; perhaps a part of a character. Empty for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability, at most 0; within 10⁻⁶ of the exact value.
    pub logprob: f64,
}

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended the text. Its end token is neither emitted nor counted.
    Stop,
    /// This stop string appeared. Its tokens are neither emitted nor counted.
    StopString(String),
    /// `max_tokens` or the context's end was reached.
    Length,
    /// Its handle was cancelled or dropped, or its sink closed.
    Cancelled,
    /// The engine failed; the text says what, without prompt or output.
    Error(String),
}

/// Cancellation of a sequence, shared by its handle and the model's thread.
#[derive(Debug, Default)]
pub(crate) struct Lease(AtomicU8);

const LIVE: u8 = 0;
const CANCELLED: u8 = 1;
const DROPPED: u8 = 2;

impl Lease {
    pub(crate) fn cancel(&self) {
        self.0.fetch_max(CANCELLED, Ordering::AcqRel);
    }
    pub(crate) fn abandon(&self) {
        self.0.fetch_max(DROPPED, Ordering::AcqRel);
    }
    fn is_live(&self) -> bool {
        self.0.load(Ordering::Acquire) == LIVE
    }
    fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::Acquire) == DROPPED
    }
}

/// A sequence that was accepted.
pub(crate) struct Sequence {
    /// 0 until it arrives.
    pub(crate) id: SequenceId,
    /// Prompt, then completion.
    pub(crate) ids: Vec<u32>,
    /// How many of `ids` are in the cache.
    pub(crate) cached: usize,
    pub(crate) table: Option<BlockTable>,
    /// With whom its blocks are shared; `None`: nobody.
    pub(crate) scope: Option<Scope>,
    prompt_tokens: usize,
    /// Prompt tokens that it found in the cache when it was first admitted.
    found_tokens: Option<usize>,
    is_prefilled: bool,
    /// `ids` never grows beyond this.
    tokens_max: usize,
    sampler: Sampler,
    speculation: Speculation,
    /// What the step feeds: ids that aren't cached, perhaps a draft after the last of them.
    fed: Vec<u32>,
    /// How many of them are a draft.
    guessed: usize,
    stop: StopMatcher,
    ignores_eos: bool,
    /// What is told with the tokens that `stop` holds, oldest first.
    held: VecDeque<Told>,
    detokenizer: Detokenizer,
    sink: Box<dyn EventSink>,
    lease: Arc<Lease>,
    /// Not taken by the sink yet; a few tokens at most, since a sequence with any is paused.
    outbox: VecDeque<Event>,
    /// Why and with which tail it ended; told when the outbox is empty.
    end: Option<(FinishReason, String)>,
    is_end_told: bool,
    emitted_tokens: u32,
}

impl Sequence {
    /// A sequence for a request that was checked, of which `owner` is the scope; `tokens_max` is
    /// at most the context's length.
    pub(crate) fn new(
        request: SequenceRequest,
        (tokens_max, vocab_size, cpu): (usize, usize, Cpu),
        (sink, lease): (Box<dyn EventSink>, Arc<Lease>),
    ) -> Sequence {
        Sequence {
            id: 0,
            prompt_tokens: request.prompt_ids.len(),
            tokens_max,
            sampler: Sampler::new(request.sampling, &request.prompt_ids, vocab_size, cpu),
            speculation: Speculation::default(),
            fed: Vec::new(),
            guessed: 0,
            stop: StopMatcher::new(&request.stop),
            ignores_eos: request.ignore_eos,
            ids: request.prompt_ids,
            held: VecDeque::new(),
            cached: 0,
            table: None,
            scope: request.owner,
            found_tokens: None,
            is_prefilled: false,
            detokenizer: Detokenizer::default(),
            sink,
            lease,
            outbox: VecDeque::new(),
            end: None,
            is_end_told: false,
            emitted_tokens: 0,
        }
    }

    /// Tokens that it may come to, prompt included.
    pub(crate) fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Gives it its blocks, with `cached` of its tokens in them.
    pub(crate) fn begin(&mut self, table: BlockTable, cached: usize) {
        self.table = Some(table);
        self.cached = cached;
        self.found_tokens.get_or_insert(cached);
    }

    /// Whether its reader has room for what the next step gives.
    pub(crate) fn is_ready(&self) -> bool {
        self.outbox.is_empty() && self.sink.is_ready()
    }

    /// The ids after the prompt, those included that are held back for stop strings.
    pub(crate) fn completion(&self) -> &[u32] {
        &self.ids[self.prompt_tokens..]
    }

    /// Prompt tokens that it found in the cache when it was first admitted.
    pub(crate) fn found_tokens(&self) -> usize {
        self.found_tokens.unwrap_or(0)
    }

    /// Takes what would be told next: for whoever reads without a sink.
    pub(crate) fn take_events(&mut self) -> impl Iterator<Item = Event> {
        self.outbox.drain(..)
    }

    /// Why and with which tail of text it ended.
    pub(crate) fn end(&self) -> Option<&(FinishReason, String)> {
        self.end.as_ref()
    }

    /// Whether it generates no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether it can be dropped: its end was told, or nobody is there to be told.
    pub(crate) fn is_over(&self) -> bool {
        let nobody = self.lease.is_abandoned() || self.sink.is_closed();
        self.is_end_told || (self.has_ended() && nobody)
    }

    /// Ends it if its handle or its sink is gone.
    pub(crate) fn check_lease(&mut self) {
        if !self.has_ended() && (!self.lease.is_live() || self.sink.is_closed()) {
            self.outbox.clear();
            self.finish(FinishReason::Cancelled, String::new());
        }
    }

    /// Ends it; what it holds back for stop strings is dropped.
    pub(crate) fn fail(&mut self, reason: &str) {
        self.finish(FinishReason::Error(reason.into()), String::new());
    }

    /// Notes that `count` more tokens are cached.
    fn advance(&mut self, count: usize) {
        self.cached += count;
        // Told once, also where it is preempted and read again.
        if !self.is_prefilled && self.cached >= self.prompt_tokens {
            self.is_prefilled = true;
            self.outbox.push_back(Event::Prefilled {
                prompt_tokens: self.prompt_tokens as u32,
                cached_tokens: self.found_tokens.unwrap_or(0) as u32,
            });
        }
    }

    /// Prepares what the next step feeds: `count` ids that aren't cached yet.
    pub(crate) fn feed(&mut self, count: usize) {
        self.fed.clear();
        self.fed.extend_from_slice(&self.ids[self.cached..][..count]);
        self.guessed = 0;
    }

    /// Adds a draft to what is fed, if there is one that is worth it: at most `room` ids, none
    /// of them in `ends`. Only where the sequence decodes. Gives the draft's length.
    pub(crate) fn guess(&mut self, room: usize, ends: &[u32]) -> u64 {
        // After the draft one more token is drawn.
        let room = room.min(self.tokens_max.saturating_sub(self.ids.len() + 1));
        let draft = self.speculation.draft(&self.ids, room, ends);
        self.fed.extend_from_slice(draft);
        self.guessed = draft.len();
        self.guessed as u64
    }

    /// Adds ids to what is fed that somebody else says come next: they are checked as a draft
    /// is. Only where all that isn't cached is fed.
    pub(crate) fn foretell(&mut self, ids: &[u32]) {
        self.fed.extend_from_slice(ids);
        self.guessed = ids.len();
    }

    /// What the next step feeds, and for which of it logits are wanted.
    pub(crate) fn fed(&self) -> (&[u32], Logits) {
        let ends_here = self.cached + self.fed.len() - self.guessed == self.ids.len();
        let logits = match (ends_here, self.guessed) {
            (false, _) => Logits::None,
            (true, 0) => Logits::Last,
            (true, guessed) => Logits::Tail(guessed + 1),
        };
        (&self.fed, logits)
    }

    /// Takes what the step gave: logits and hidden state of each row that they were wanted for
    /// (no states where the model has none to show). Notes
    /// what is cached and draws: the next token, and further ones as long as the draft's come
    /// true. Nothing of the others stays: what they left in the cache is beyond `cached`. Gives
    /// how many came true.
    pub(crate) fn take<'a>(
        &mut self,
        rows: impl Iterator<Item = (Row<'a>, Option<&'a [f32]>)>,
        tokenizer: &Tokenizer,
    ) -> u64 {
        let certain = self.fed.len() - self.guessed;
        self.advance(certain);
        let mut came_true = 0;
        for (row, next) in rows.zip(certain..) {
            self.generate(row, tokenizer);
            if self.has_ended() || self.ids.last() != self.fed.get(next) {
                break;
            }
            self.advance(1);
            came_true += 1;
        }
        came_true
    }

    /// What draws from the step's rows from the wanted one `rows` on, as if all that is expected
    /// before it came true.
    pub(crate) fn ahead<'t>(&self, rows: usize, tokenizer: &'t Tokenizer) -> Drawer<'t> {
        let expected = &self.fed[self.fed.len() - self.guessed..];
        let mut sampler = self.sampler.clone();
        expected.iter().take(rows).for_each(|id| sampler.note(*id));
        let never = if self.ignores_eos { tokenizer.eos() } else { &[] };
        Drawer::new(sampler, never, (self.ids.len() + rows) as u32)
    }

    /// Adds the token that was drawn from the logits of its last cached one, or draws it.
    fn generate(&mut self, (row, state): (Row<'_>, Option<&[f32]>), tokenizer: &Tokenizer) {
        let drawn = match row {
            // By a sampler of its own.
            Row::Drawn(drawn) => drawn.inspect(|drawn| self.sampler.note(drawn.id)),
            Row::Logits(logits) => {
                let never = if self.ignores_eos { tokenizer.eos() } else { &[] };
                draw(&mut self.sampler, (logits, never), self.ids.len() as u32)
            }
        };
        let Drawn { id, logprobs } = match drawn {
            Ok(drawn) => drawn,
            Err(NotFinite) => return self.fail("the model gave logits that are not finite"),
        };
        self.speculation.observe(id);
        if tokenizer.eos().contains(&id) {
            self.release_held();
            return self.finish(FinishReason::Stop, String::new());
        }
        let before = self.ids.last().copied();
        self.ids.push(id);
        let with_texts = |logprobs| Box::new(with_texts(id, logprobs, (before, tokenizer)));
        let logprobs = logprobs.map(with_texts);
        self.held.push_back(Told { logprobs, state_digest: state.map(digest) });
        match self.stop.push(id, tokenizer.bytes_after(before, id)) {
            Outcome::Released(pieces) => self.release(pieces),
            Outcome::Stopped { released, tail, stop } => {
                self.release(released);
                let tail = self.detokenizer.push(&tail);
                return self.finish(FinishReason::StopString(stop), tail);
            }
        }
        if self.ids.len() >= self.tokens_max {
            self.release_held();
            self.finish(FinishReason::Length, String::new());
        }
    }

    /// Gives the sink what it has room for; one that closed gets nothing more, not even of the
    /// same step.
    pub(crate) fn flush(&mut self) {
        while !self.is_end_told && !self.sink.is_closed() && self.sink.is_ready() {
            if let Some(event) = self.outbox.pop_front() {
                self.emitted_tokens += u32::from(matches!(event, Event::Token { .. }));
                self.sink.emit(event);
            } else if let Some((reason, tail_text)) = self.end.clone() {
                let completion_tokens = self.emitted_tokens;
                self.sink.emit(Event::Finished { reason, tail_text, completion_tokens });
                self.is_end_told = true;
            } else {
                break;
            }
        }
    }

    fn finish(&mut self, reason: FinishReason, tail_text: String) {
        self.end.get_or_insert((reason, tail_text));
    }

    fn release_held(&mut self) {
        let pieces = self.stop.finish();
        self.release(pieces);
    }

    fn release(&mut self, pieces: Vec<Piece>) {
        for (id, bytes) in pieces {
            let text = self.detokenizer.push(&bytes);
            let Told { state_digest, logprobs } = self.held.pop_front().unwrap_or_default();
            self.outbox.push_back(Event::Token { id, text, state_digest, logprobs });
        }
    }
}

/// What is told with a token besides its text.
#[derive(Default)]
struct Told {
    state_digest: Option<[u8; 32]>,
    logprobs: Option<Box<TokenLogprobs>>,
}

/// Keccak-256 of a hidden state's bits, little-endian.
pub(crate) fn digest(state: &[f32]) -> [u8; 32] {
    let mut hash = Keccak256::new();
    state.iter().for_each(|x| hash.update(x.to_bits().to_le_bytes()));
    hash.finalize().into()
}

/// A drawn token's probabilities with the tokens' texts.
fn with_texts(
    id: u32,
    logprobs: Logprobs,
    (before, tokenizer): (Option<u32>, &Tokenizer),
) -> TokenLogprobs {
    let bytes = |id| tokenizer.bytes_after(before, id).to_vec();
    let one = |(id, logprob)| Logprob { id, bytes: bytes(id), logprob };
    TokenLogprobs {
        chosen: one((id, logprobs.chosen)),
        top: logprobs.top.into_iter().map(one).collect(),
    }
}
