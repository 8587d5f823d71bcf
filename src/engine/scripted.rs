//! An engine that says what a test wrote down, as fast as the test lets it. Tests only.
//!
//! Never thinks: no weights, no threads. What it keeps of a real engine are the rules that others
//! rely on: bounded events, cancel by drop, stop strings and their tails, `max_tokens`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::{
    Engine, EngineEvent, EngineFinish, EngineLoad, Generation, GenerationSpec, Logprob, ModelCard,
    Prompt, StartError, TokenLogprobs, Turn,
};
use crate::units::Hash32;

/// Events that wait for a slow reader; more stay with the script.
const EVENTS_MAX: usize = 16;

/// What every generation says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Tokens: ids and the text that becomes complete with each.
    pub tokens: Vec<(u32, String)>,
    /// How it ends after the last token.
    pub end: EngineFinish,
}

impl Script {
    /// One token for each word of `text`, blanks kept at the words' ends; ends by itself.
    #[must_use]
    pub fn words(text: &str) -> Self {
        let words = text.split_inclusive(' ').map(str::to_owned);
        let tokens = (100..).zip(words).collect();
        Self { tokens, end: EngineFinish::Stop }
    }

    /// One token for every `size` bytes of `text`: a character's text comes with its last byte.
    #[must_use]
    pub fn bytes(text: &str, size: usize) -> Self {
        let mut tokens = Vec::new();
        let mut told = 0;
        for (index, start) in (0..text.len()).step_by(size.max(1)).enumerate() {
            let mut end = (start + size.max(1)).min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let piece = text.get(told..end).unwrap_or_default().to_owned();
            told = told.max(end);
            tokens.push((200 + u32::try_from(index).unwrap_or(u32::MAX - 200), piece));
        }
        Self { tokens, end: EngineFinish::Stop }
    }
}

/// The engine, and the test's handle on it.
pub struct ScriptedEngine {
    shared: Arc<Mutex<Shared>>,
    card: ModelCard,
}

struct Shared {
    script: Script,
    /// Tokens that may be said, over all generations; `None` is no bound.
    released: Option<u64>,
    runs: Vec<Run>,
    starts: Vec<GenerationSpec>,
    cancelled: usize,
    /// Tokens said over all generations.
    said: u64,
    is_down: bool,
    /// Why the next starts fail, in this order.
    refusals: VecDeque<StartError>,
    /// Why no prompt can be rendered.
    unreadable: Option<StartError>,
}

struct Run {
    id: usize,
    events: mpsc::Sender<EngineEvent>,
    /// What is left to say, last event first.
    left: Vec<EngineEvent>,
}

impl ScriptedEngine {
    /// Says `script` without being held back.
    #[must_use]
    pub fn new(script: Script) -> Arc<Self> {
        let shared = Shared {
            script,
            released: None,
            runs: Vec::new(),
            starts: Vec::new(),
            cancelled: 0,
            said: 0,
            is_down: false,
            refusals: VecDeque::new(),
            unreadable: None,
        };
        let card = ModelCard {
            name: "scripted".to_owned(),
            context_length: 64,
            weights_sha256: Hash32::new([7; 32]),
            tokenizer_sha256: Hash32::new([7; 32]),
            quantisation: "none".to_owned(),
            architecture: "scripted".to_owned(),
            engine_spec: 0,
        };
        Arc::new(Self { shared: Arc::new(Mutex::new(shared)), card })
    }

    /// Says nothing more until [`Self::release`].
    pub fn hold(&self) {
        self.lock().released = Some(0);
    }

    /// Lets `count` further tokens be said, and ends where the script does.
    pub fn release(&self, count: u64) {
        let mut shared = self.lock();
        shared.released = shared.released.map(|released| released.saturating_add(count));
        shared.pump();
    }

    /// Says everything from now on.
    pub fn release_all(&self) {
        let mut shared = self.lock();
        shared.released = None;
        shared.pump();
    }

    /// What the next generations say.
    pub fn set_script(&self, script: Script) {
        self.lock().script = script;
    }

    /// Refuses the next starts, one for each error; those after them succeed.
    pub fn refuse_starts(&self, errors: impl IntoIterator<Item = StartError>) {
        self.lock().refusals.extend(errors);
    }

    /// Refusals that nobody has met yet.
    #[must_use]
    pub fn refusals_left(&self) -> usize {
        self.lock().refusals.len()
    }

    /// Makes no ids of any prompt from now on.
    pub fn refuse_prompts(&self, error: StartError) {
        self.lock().unreadable = Some(error);
    }

    /// Every generation that was started.
    #[must_use]
    pub fn starts(&self) -> Vec<GenerationSpec> {
        self.lock().starts.clone()
    }

    /// Generations that were dropped before they had said everything.
    #[must_use]
    pub fn cancelled(&self) -> usize {
        self.lock().cancelled
    }

    /// Tokens said over all generations.
    #[must_use]
    pub fn said(&self) -> u64 {
        self.lock().said
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Says what may be said and has room.
    fn pump(&mut self) {
        let Self { runs, released, said, .. } = self;
        runs.retain_mut(|run| {
            while let Some(event) = run.left.last() {
                let is_token = matches!(event, EngineEvent::Token { .. });
                if is_token && *released == Some(0) {
                    return true;
                }
                if run.events.try_send(event.clone()).is_err() {
                    return true;
                }
                run.left.pop();
                if is_token {
                    *released = released.map(|count| count.saturating_sub(1));
                    *said = said.saturating_add(1);
                }
            }
            false
        });
    }
}

/// Stops a run when its generation is dropped.
struct Cancel {
    shared: Arc<Mutex<Shared>>,
    id: usize,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let before = shared.runs.len();
        shared.runs.retain(|run| run.id != self.id);
        shared.cancelled += before - shared.runs.len();
    }
}

impl Engine for ScriptedEngine {
    fn catalog(&self) -> Vec<ModelCard> {
        vec![self.card.clone()]
    }

    /// One id a word, and one before each turn for its role.
    fn render(&self, model: &str, prompt: &Prompt) -> Result<Vec<u32>, StartError> {
        if model != self.card.name {
            return Err(StartError::UnknownModel);
        }
        if let Some(error) = self.lock().unreadable.clone() {
            return Err(error);
        }
        let turn =
            |turn: &Turn| -> Vec<u32> { std::iter::once(1).chain(words(&turn.content)).collect() };
        Ok(match prompt {
            Prompt::Raw(text) => words(text).collect(),
            Prompt::Chat(turns) => turns.iter().flat_map(turn).collect(),
            Prompt::Next { history_ids, content } => {
                let own = std::iter::once(1).chain(words(content));
                history_ids.iter().copied().chain(own).collect()
            }
        })
    }

    fn start(&self, spec: GenerationSpec) -> Result<Generation, StartError> {
        let mut shared = self.lock();
        if shared.is_down {
            return Err(StartError::Unavailable);
        }
        if let Some(error) = shared.refusals.pop_front() {
            return Err(error);
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let mut left = said(&shared.script, &spec, cached_tokens(&shared.starts, &spec));
        left.reverse();
        let id = shared.starts.len();
        shared.starts.push(spec);
        shared.runs.push(Run { id, events, left });
        shared.pump();
        let resumed = Arc::clone(&self.shared);
        let resume = move || resumed.lock().unwrap_or_else(PoisonError::into_inner).pump();
        let cancel = Cancel { shared: Arc::clone(&self.shared), id };
        Ok(Generation::new(receiver, Arc::new(resume), Box::new(cancel)))
    }

    fn load(&self) -> EngineLoad {
        let running = u32::try_from(self.lock().runs.len()).unwrap_or(u32::MAX);
        EngineLoad { running, ..EngineLoad::default() }
    }

    fn is_healthy(&self) -> bool {
        !self.lock().is_down
    }

    fn shutdown(&self) {
        let mut shared = self.lock();
        shared.is_down = true;
        shared.runs.clear();
    }
}

/// A stable id for each word; 0 and 1 are kept for roles.
fn words(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.split_whitespace().map(|word| {
        word.bytes().fold(2, |id: u32, byte| id.wrapping_mul(31).wrapping_add(byte.into())) | 2
    })
}

/// Tokens that an earlier prompt of the same owner begins with too, all but the last at most.
fn cached_tokens(starts: &[GenerationSpec], spec: &GenerationSpec) -> u32 {
    let ids = &spec.prompt_ids;
    let alike = |earlier: &GenerationSpec| {
        earlier.prompt_ids.iter().zip(ids).take_while(|(a, b)| a == b).count()
    };
    let known = starts.iter().filter(|earlier| earlier.owner == spec.owner).map(alike).max();
    let known = known.unwrap_or(0).min(ids.len().saturating_sub(1));
    u32::try_from(known).unwrap_or(u32::MAX)
}

/// The events of one generation.
fn said(script: &Script, spec: &GenerationSpec, cached_tokens: u32) -> Vec<EngineEvent> {
    let mut events = vec![EngineEvent::Prefilled { cached_tokens }];
    let whole: String = script.tokens.iter().map(|(_, text)| text.as_str()).collect();
    let stops = spec.stop.iter().filter_map(|stop| Some((whole.find(stop.as_str())?, stop)));
    let first_stop = stops.min();
    let bound = usize::try_from(spec.max_tokens).unwrap_or(usize::MAX);
    let mut told = 0;
    for (index, (id, text)) in script.tokens.iter().enumerate() {
        if let Some((at, stop)) = first_stop
            && told + text.len() > at
        {
            let tail_text = text.get(..at - told).unwrap_or_default().to_owned();
            let reason = EngineFinish::StopText(stop.clone());
            events.push(EngineEvent::Finished { reason, tail_text });
            return events;
        }
        if index == bound {
            break;
        }
        told += text.len();
        let logprobs = spec.sampling.logprobs.map(|top| Box::new(certain(*id, text, top)));
        let text = text.clone();
        events.push(EngineEvent::Token { id: *id, text, state_digest: None, logprobs });
    }
    let is_cut = script.tokens.len() > bound;
    let reason = if is_cut { EngineFinish::Length } else { script.end.clone() };
    events.push(EngineEvent::Finished { reason, tail_text: String::new() });
    events
}

/// A script's token has probability one, and no rivals.
fn certain(id: u32, text: &str, top: u32) -> TokenLogprobs {
    let chosen = Logprob { id, bytes: text.as_bytes().to_vec(), logprob: 0.0 };
    let top = if top == 0 { Vec::new() } else { vec![chosen.clone()] };
    TokenLogprobs { chosen, top }
}
