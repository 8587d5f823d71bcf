//! The models of the trials: a real one, small random ones, and cheaper ones that a host might run
//! in their place.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use tally::billing::{Decode, TurnHeader};
use tally::proof::keccak256;
use tally::units::Hash32;
use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};
use tally_engine::{
    Engine, EngineOptions, Event, EventSink, FinishReason, KvType, Sampling, SequenceRequest,
};
use tempfile::TempDir;

use crate::gguf::{Cheaper, cheaper};
use crate::tiny::{Change, Family, changed, folder};

/// Events of an answer, which is shorter than this.
const EVENTS_MAX: usize = 4096;

/// A model that is claimed for.
pub struct Subject {
    pub name: String,
    pub path: PathBuf,
    pub is_real: bool,
    /// Other weights of the same shape.
    pub others: Vec<PathBuf>,
    /// The same weights with fewer bits.
    pub quantised: Vec<PathBuf>,
    _folders: Vec<TempDir>,
}

impl Subject {
    fn tiny(family: Family) -> Self {
        let own = folder(family);
        let changes = |draw, bits_rounded| changed(family, Change { draw, bits_rounded });
        let others = vec![changes(1, 0), changes(2, 0)];
        let quantised = vec![changes(0, 13), changes(0, 16), changes(0, 20)];
        let paths = |all: &[TempDir]| all.iter().map(|it| it.path().to_owned()).collect();
        Self {
            name: format!("{family:?}"),
            path: own.path().to_owned(),
            is_real: false,
            others: paths(&others),
            quantised: paths(&quantised),
            _folders: [vec![own], others, quantised].into_iter().flatten().collect(),
        }
    }

    fn real(path: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::read(path).unwrap();
        let write = |name: &str, how| {
            let path = folder.path().join(name);
            std::fs::write(&path, cheaper(&file, how)).unwrap();
            path
        };
        let others = vec![
            write("other-1.gguf", Cheaper::Shuffled(1)),
            write("other-2.gguf", Cheaper::Shuffled(40)),
        ];
        let quantised = vec![write("three-bits.gguf", Cheaper::ThreeBits)];
        let path = path.to_owned();
        let _folders = vec![folder];
        Self { name: "real".into(), path, is_real: true, others, quantised, _folders }
    }

    /// The real model first.
    pub fn all(real: &Path) -> Vec<Self> {
        let tiny = Family::ALL.into_iter().map(Self::tiny);
        std::iter::once(Self::real(real)).chain(tiny).collect()
    }
}

/// What a model says to a request.
#[derive(Debug, Clone)]
pub struct Said {
    pub ids: Vec<u32>,
    pub states: Vec<Hash32>,
    pub end: FinishReason,
}

/// A loaded model that answers one request at a time and computes states of texts it did not say.
pub struct Speaker {
    engine: Engine,
    model: Model,
    kv: KvPool,
}

struct Events(SyncSender<Event>);

impl EventSink for Events {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        self.0.try_send(event).unwrap();
    }
}

impl Speaker {
    fn load(path: &Path, kv_type: KvType) -> Self {
        let kv_memory_bytes = 64 << 20;
        let options = EngineOptions { kv_type, kv_memory_bytes, ..EngineOptions::default() };
        let model = Model::load(path, options.threads, None).unwrap();
        let kv = KvPool::of_type(model.config(), kv_type, kv_memory_bytes);
        Self { engine: Engine::load(path, options).unwrap(), model, kv }
    }

    pub fn vocab(&self) -> usize {
        self.engine.info().vocab_size as usize
    }

    pub fn context(&self) -> usize {
        self.engine.info().context_length as usize
    }

    pub fn eos_ids(&self) -> &[u32] {
        &self.engine.info().eos_ids
    }

    /// The answer, alone; `None` where no engine takes the request.
    pub fn say(&self, request: SequenceRequest) -> Option<Said> {
        let (sender, events) = sync_channel(EVENTS_MAX);
        let _handle = self.engine.start(request, Box::new(Events(sender))).ok()?;
        let mut said = Said { ids: Vec::new(), states: Vec::new(), end: FinishReason::Cancelled };
        for event in events {
            match event {
                Event::Prefilled { .. } => {}
                Event::Token { id, state_digest, .. } => {
                    said.ids.push(id);
                    said.states.extend(state_digest.map(Hash32::new));
                }
                Event::Finished { reason, .. } => {
                    said.end = reason;
                    break;
                }
            }
        }
        assert_eq!(said.ids.len(), said.states.len(), "the model is canonical");
        Some(said)
    }

    /// Digests of the states from which `ids` would have been drawn behind `prompt`, whatever the
    /// model says itself; `None` where it cannot read them.
    pub fn states_of(&mut self, prompt: &[u32], ids: &[u32]) -> Option<Vec<Hash32>> {
        let read = &ids[..ids.len().saturating_sub(1)];
        let tokens: Vec<u32> = prompt.iter().chain(read).copied().collect();
        let vocab = self.vocab();
        if tokens.len() > self.context() || tokens.iter().any(|id| *id as usize >= vocab) {
            return None;
        }
        let table = self.kv.allocate(tokens.len()).unwrap();
        let logits = Logits::Tail(ids.len());
        let segment = Segment { tokens: &tokens, start: 0, table: &table, logits };
        let width = self.model.config().width;
        let batch = Batch { segments: vec![segment] };
        let states = self.model.forward(&batch, &mut self.kv).unwrap().states;
        let digest = |state: &[f32]| {
            let bytes: Vec<u8> = state.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
            keccak256(&bytes)
        };
        let digests = states.chunks_exact(width).map(digest).collect();
        self.kv.release(table);
        Some(digests)
    }
}

/// Loaded models, each once.
#[derive(Default)]
pub struct Speakers(HashMap<(PathBuf, bool), Speaker>);

impl Speakers {
    pub fn of(&mut self, path: &Path, kv_type: KvType) -> &mut Speaker {
        let key = (path.to_owned(), kv_type == KvType::F32);
        self.0.entry(key).or_insert_with(|| Speaker::load(path, kv_type))
    }
}

/// The request that a header tells of.
pub fn request(header: &TurnHeader) -> SequenceRequest {
    let decode = header.decode.as_deref().unwrap();
    request_with(&header.prompt_ids, decode, header.seed)
}

/// A request with these settings.
pub fn request_with(prompt: &[u32], decode: &Decode, seed: Hash32) -> SequenceRequest {
    let sampling = Sampling {
        temperature: decode.temperature,
        top_k: decode.top_k,
        top_p: decode.top_p,
        min_p: decode.min_p,
        repetition_penalty: decode.repetition_penalty,
        frequency_penalty: decode.frequency_penalty,
        presence_penalty: decode.presence_penalty,
        logit_bias: decode.logit_bias.clone(),
        logprobs: None,
        seed: *seed.bytes(),
    };
    SequenceRequest {
        prompt_ids: prompt.to_vec(),
        max_tokens: decode.max_tokens,
        sampling,
        stop: decode.stop.clone(),
        ignore_eos: decode.ignore_eos,
        owner: None,
    }
}
