//! The engine crate behind the port: models on this machine's CPU.
//!
//! Never blocks a caller: events pass through a bounded queue, and a full one pauses that sequence
//! alone. Relies on the engine crate to run the model on threads of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use tally_engine as native;
use tokio::sync::mpsc;

use super::{
    CacheCounts, Engine, EngineEvent, EngineFinish, EngineLoad, Generation, GenerationSpec,
    Logprob, ModelCard, Prompt, Sampling, StartError, TokenLogprobs,
};
use crate::units::Hash32;

/// Events of one sequence that may wait for its reader. When the queue is full the sequence
/// pauses and others go on.
const EVENTS_MAX: usize = 32;

/// The models in this process.
pub struct LocalEngine {
    models: Vec<Served>,
}

struct Served {
    engine: native::Engine,
    card: ModelCard,
}

/// A loaded model, and what it is served as.
pub struct LocalModel {
    /// The name clients ask for; no other model has it.
    pub name: String,
    /// What its files are known by; `None` where nobody asks, which a card tells as zeros.
    pub hashes: Option<ModelHashes>,
    /// The model.
    pub engine: native::Engine,
}

/// SHA-256 of a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelHashes {
    /// Of its weights.
    pub weights_sha256: Hash32,
    /// Of the file that describes its tokenizer.
    pub tokenizer_sha256: Hash32,
}

impl LocalEngine {
    /// Loaded models, to be served.
    #[must_use]
    pub fn new(models: Vec<LocalModel>) -> Self {
        Self { models: models.into_iter().map(Served::new).collect() }
    }

    fn named(&self, model: &str) -> Result<&native::Engine, StartError> {
        let found = self.models.iter().find(|served| served.card.name == model);
        found.map(|served| &served.engine).ok_or(StartError::UnknownModel)
    }
}

impl Served {
    fn new(model: LocalModel) -> Self {
        let info = model.engine.info();
        let hash = |of: fn(ModelHashes) -> Hash32| model.hashes.map_or(Hash32::ZERO, of);
        let card = ModelCard {
            name: model.name,
            context_length: info.context_length,
            weights_sha256: hash(|hashes| hashes.weights_sha256),
            tokenizer_sha256: hash(|hashes| hashes.tokenizer_sha256),
            quantisation: info.quantisation.clone(),
            architecture: info.config_digest_input.clone(),
            engine_spec: info.engine_spec,
        };
        Self { engine: model.engine, card }
    }
}

impl Engine for LocalEngine {
    fn catalog(&self) -> Vec<ModelCard> {
        self.models.iter().map(|served| served.card.clone()).collect()
    }

    fn render(&self, model: &str, prompt: &Prompt) -> Result<Vec<u32>, StartError> {
        let engine = self.named(model)?;
        let rendered = match prompt {
            Prompt::Raw(text) => engine.encode_raw(text),
            Prompt::Chat(turns) => engine.encode_chat(&chat(turns)),
            Prompt::Next { history_ids, content } if history_ids.is_empty() => {
                let turn = super::Turn { role: "user".into(), content: content.clone() };
                engine.encode_chat(&chat(&[turn]))
            }
            Prompt::Next { history_ids, content } => {
                engine.encode_continuation(content).map(|next| {
                    let mut ids = history_ids.clone();
                    ids.extend(next);
                    ids
                })
            }
        };
        rendered.map_err(|error| StartError::Invalid(error.to_string()))
    }

    fn start(&self, spec: GenerationSpec) -> Result<Generation, StartError> {
        let engine = self.named(&spec.model)?.clone();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let request = native::SequenceRequest {
            prompt_ids: spec.prompt_ids,
            max_tokens: spec.max_tokens,
            sampling: sampling(&spec.sampling),
            stop: spec.stop,
            ignore_eos: spec.ignore_eos,
            owner: Some(*spec.owner.bytes()),
        };
        let pause = Arc::new(Pause::default());
        let sink = Sink { sender, pause: Arc::clone(&pause) };
        let handle = engine.start(request, Box::new(sink)).map_err(start_error)?;
        let resume = Arc::new(move || {
            if pause.end() {
                engine.wake();
            }
        });
        Ok(Generation::new(events, resume, Box::new(handle)))
    }

    fn load(&self) -> EngineLoad {
        let loads: Vec<_> = self.models.iter().map(|served| served.engine.load_state()).collect();
        let sum = |value: fn(&native::EngineLoad) -> usize| {
            u32::try_from(loads.iter().map(value).sum::<usize>()).unwrap_or(u32::MAX)
        };
        let total = |value: fn(&native::EngineLoad) -> u64| loads.iter().map(value).sum();
        EngineLoad {
            running: sum(|load| load.running),
            queued: sum(|load| load.queued),
            kv_block_count_free: sum(|load| load.kv_blocks_free),
            kv_block_count_cached: sum(|load| load.kv_blocks_cached),
            kv_block_count: sum(|load| load.kv_blocks_total),
            cache: CacheCounts {
                hits: total(|load| load.cache.hits),
                hit_tokens: total(|load| load.cache.hit_tokens),
                evictions: total(|load| load.cache.evictions),
                preemptions: total(|load| load.preemptions),
            },
            guessed_tokens: total(|load| load.guessed_tokens),
            guessed_right: total(|load| load.guessed_right),
        }
    }

    fn is_healthy(&self) -> bool {
        self.models.iter().all(|served| served.engine.is_running())
    }

    fn shutdown(&self) {
        self.models.iter().for_each(|served| served.engine.shutdown());
    }
}

struct Sink {
    sender: mpsc::Sender<EngineEvent>,
    pause: Arc<Pause>,
}

/// Whether the engine found a queue full. Waking it costs a lock and a system call, too much for
/// every token of a reader that keeps up.
#[derive(Default)]
struct Pause(AtomicBool);

impl Pause {
    /// The engine found no room.
    fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
        // The engine looks for room after this, the reader at this after it made room: whichever
        // comes second sees the other.
        fence(Ordering::SeqCst);
    }

    /// The reader made room: whether the engine is to be told.
    fn end(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::SeqCst) && self.0.swap(false, Ordering::SeqCst)
    }
}

impl native::EventSink for Sink {
    fn is_ready(&self) -> bool {
        if self.sender.capacity() > 0 {
            return true;
        }
        self.pause.begin();
        self.sender.capacity() > 0
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn emit(&mut self, event: native::Event) {
        // Emitted only after `is_ready`; a reader that is gone cancels through its handle.
        drop(self.sender.try_send(translate(event)));
    }
}

fn translate(event: native::Event) -> EngineEvent {
    match event {
        native::Event::Prefilled { cached_tokens, .. } => EngineEvent::Prefilled { cached_tokens },
        native::Event::Token { id, text, state_digest, logprobs } => EngineEvent::Token {
            id,
            text,
            state_digest: state_digest.map(Hash32::new),
            logprobs: logprobs.map(|logprobs| Box::new(token_logprobs(*logprobs))),
        },
        native::Event::Finished { reason, tail_text, .. } => {
            let reason = match reason {
                native::FinishReason::Stop => EngineFinish::Stop,
                native::FinishReason::StopString(stop) => EngineFinish::StopText(stop),
                native::FinishReason::Length => EngineFinish::Length,
                native::FinishReason::Cancelled => EngineFinish::Cancelled,
                native::FinishReason::Error(why) => EngineFinish::Failed(why),
            };
            EngineEvent::Finished { reason, tail_text }
        }
    }
}

fn token_logprobs(logprobs: native::TokenLogprobs) -> TokenLogprobs {
    let one = |native::Logprob { id, bytes, logprob }| Logprob { id, bytes, logprob };
    TokenLogprobs { chosen: one(logprobs.chosen), top: logprobs.top.into_iter().map(one).collect() }
}

fn chat(turns: &[super::Turn]) -> Vec<native::ChatTurn> {
    let turn = |turn: &super::Turn| native::ChatTurn {
        role: turn.role.clone(),
        content: turn.content.clone(),
    };
    turns.iter().map(turn).collect()
}

fn sampling(sampling: &Sampling) -> native::Sampling {
    native::Sampling {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: sampling.logit_bias.clone(),
        logprobs: sampling.logprobs,
        seed: *sampling.seed.bytes(),
    }
}

fn start_error(error: native::StartError) -> StartError {
    match error {
        native::StartError::QueueFull { .. } => StartError::Busy,
        native::StartError::ContextTooLong { prompt_tokens, context_length } => {
            StartError::ContextLength { prompt_tokens, context_length }
        }
        native::StartError::Stopped => StartError::Unavailable,
        native::StartError::InvalidSetting { setting, reason } => {
            StartError::Setting { setting, reason }
        }
        empty @ native::StartError::EmptyPrompt => StartError::Invalid(empty.to_string()),
        memory @ native::StartError::KvBudget { .. } => StartError::Memory(memory.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use native::EventSink;

    use super::*;

    #[test]
    fn the_engine_is_woken_once_after_it_found_no_room_and_never_before() {
        let (sender, mut events) = mpsc::channel(2);
        let pause = Arc::new(Pause::default());
        let mut sink = Sink { sender, pause: Arc::clone(&pause) };
        let event = || native::Event::Prefilled { prompt_tokens: 1, cached_tokens: 0 };
        for _ in 0..2 {
            assert!(sink.is_ready());
            sink.emit(event());
        }
        assert!(!pause.end(), "full, and nobody looked yet");
        assert!(!sink.is_ready());
        assert!(events.try_recv().is_ok());
        assert_eq!((pause.end(), pause.end()), (true, false));
        assert!(sink.is_ready());
    }
}
