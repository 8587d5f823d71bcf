//! A model with all that is read beside its weights.
//!
//! For: whoever computes with a model: the engine that serves it, and `replay.rs`.
//! Must never: start anything but the model's own threads.
//! Relies on: `files` for what the paths hold, `model.rs`, `tokenizer`, `template`.

use crate::error::{LoadError, StartError};
use crate::files::{ModelFiles, ModelKind};
use crate::kv::{KvPool, KvType};
use crate::model::Model;
use crate::options::{EngineOptions, SharePrefixes};
use crate::sequence::SequenceRequest;
use crate::template::{ChatFormat, ChatTemplate};
use crate::tokenizer::Tokenizer;

/// What is known about the loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `general.name`, else the file's name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Quantisation of most weights, such as `Q4_1`.
    pub quantisation: String,
    /// Weights in the file.
    pub parameter_count: u64,
    /// Tokens of context.
    pub context_length: u32,
    /// Tokens of vocabulary.
    pub vocab_size: u32,
    /// Ids that end a text.
    pub eos_ids: Vec<u32>,
    /// Bytes of weights that one decoded token reads.
    pub weights_bytes: u64,
    /// Bytes of memory that all weights take.
    pub memory_bytes: u64,
    /// The architecture's configuration as one fixed text, to be hashed.
    pub config_digest_input: String,
    /// Version of the numeric rules that the model's text follows; 0 where another machine may
    /// write another text: models that candle computes, one sequence at a time.
    pub engine_spec: u32,
    /// How conversations become text.
    pub chat_format: ChatFormat,
    /// Sequences that run at once, at most: as many as the options allow, or 1 for models that
    /// candle computes.
    pub running_max: usize,
}

impl ModelInfo {
    /// The tokens that the request may come to, prompt included.
    ///
    /// # Errors
    /// [`StartError`] where this model can't serve it, however much memory there is.
    pub(crate) fn check(&self, request: &SequenceRequest) -> Result<usize, StartError> {
        let context = self.context_length as usize;
        let prompt = request.prompt_ids.len();
        if prompt == 0 {
            return Err(StartError::EmptyPrompt);
        }
        if prompt >= context {
            let prompt_tokens = u32::try_from(prompt).unwrap_or(u32::MAX);
            let context_length = self.context_length;
            return Err(StartError::ContextTooLong { prompt_tokens, context_length });
        }
        request.sampling.check(self.vocab_size)?;
        let invalid = |setting, reason: &str| {
            Err(StartError::InvalidSetting { setting, reason: reason.into() })
        };
        if request.max_tokens == 0 {
            return invalid("max_tokens", "must be at least 1");
        }
        if request.stop.iter().any(String::is_empty) {
            return invalid("stop", "has an empty string");
        }
        if request.prompt_ids.iter().any(|id| *id >= self.vocab_size) {
            return invalid("prompt", "has an id that is not in the vocabulary");
        }
        Ok(prompt.saturating_add(request.max_tokens as usize).min(context))
    }
}

/// What a model's files give.
pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: ChatTemplate,
    /// One block at least.
    pub(crate) kv: KvPool,
    pub(crate) info: ModelInfo,
    /// Those that the model can be served with.
    pub(crate) options: EngineOptions,
}

impl Loaded {
    /// Reads and packs the weights; the options were checked. Blocks for as long as that takes.
    pub(crate) fn new(files: &ModelFiles, options: EngineOptions) -> Result<Loaded, LoadError> {
        let (texts, model) = std::thread::scope(|scope| {
            // Building the tokenizer takes about as long as packing the weights of a small model.
            let texts = scope.spawn(|| texts(files));
            let model = Model::from_files(files, options.crew(), options.isa);
            (texts.join(), model)
        });
        let (model, (tokenizer, template)) = match (model, texts) {
            (Err(error), _) | (Ok(_), Ok(Err(error))) => return Err(error),
            (Ok(model), Ok(Ok(texts))) => (model, texts),
            (Ok(_), Err(_)) => return Err(LoadError::Tokenizer("it panicked".into())),
        };
        tokenizer.check_ids(model.config().vocab_size)?;
        let options = of_model(options, &model);
        let kv = KvPool::try_of_type(model.config(), options.kv_type, options.kv_memory_bytes)?;
        let info = model_info(files, (&model, &options), (&tokenizer, &template));
        Ok(Loaded { model, tokenizer, template, kv, info, options })
    }
}

/// The options that a model can be served with: candle's networks hold one sequence, share
/// nothing, and step back only by reading all of it again.
fn of_model(options: EngineOptions, model: &Model) -> EngineOptions {
    match model.config().family.is_adapted() {
        true => {
            EngineOptions {
                running_max: 1,
                share_prefixes: SharePrefixes::Nobody,
                // Theirs are in f32 whatever is asked for; the pool only counts.
                kv_type: KvType::default(),
                speculation: false,
                ..options
            }
        }
        false => options,
    }
}

/// What turns text to ids and back.
fn texts(files: &ModelFiles) -> Result<(Tokenizer, ChatTemplate), LoadError> {
    match files.kind() {
        ModelKind::Gguf(gguf) => {
            let tokenizer = Tokenizer::from_gguf(gguf)?;
            let template = ChatTemplate::from_gguf(gguf, &tokenizer)?;
            Ok((tokenizer, template))
        }
        ModelKind::Folder(folder) => {
            let tokenizer = Tokenizer::from_hf(folder.dir())?;
            let template = ChatTemplate::from_hf(folder.dir(), &tokenizer)?;
            Ok((tokenizer, template))
        }
    }
}

fn model_info(
    files: &ModelFiles,
    (model, options): (&Model, &EngineOptions),
    (tokenizer, template): (&Tokenizer, &ChatTemplate),
) -> ModelInfo {
    let config = model.config();
    // Half precision says nothing, as it did when there was nothing else.
    let kv = match options.kv_type {
        KvType::F16 => "",
        KvType::F32 => " kv=f32",
    };
    ModelInfo {
        name: files.name(),
        architecture: files.architecture(),
        quantisation: files.quantisation(),
        parameter_count: files.parameter_count(),
        context_length: config.context_length,
        vocab_size: config.vocab_size as u32,
        eos_ids: tokenizer.eos().to_vec(),
        weights_bytes: model.weights_bytes(),
        memory_bytes: model.memory_bytes(),
        config_digest_input: config.canonical_text() + kv,
        engine_spec: model.engine_spec(),
        chat_format: template.format(),
        running_max: options.running_max,
    }
}
