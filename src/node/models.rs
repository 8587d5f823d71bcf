//! Loading: the models that settings name become one engine.
//!
//! Never loads what does not fit the memory that the operator gave, and never serves two models
//! under one name. Relies on the engine crate to check the files.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tally_engine::{ChatFormat, Engine, EngineOptions, LoadProgress, ModelFiles, Turns};

use super::file_hash::{sha256_model, sha256_tokenizer};
use super::settings::{EngineSettings, ModelFile, Settings};
use super::wiring::WiringError;
use crate::engine::local::{LocalEngine, LocalModel, ModelHashes};

/// Models of this size and more, bytes, say in the log how far they are.
const LARGE: u64 = 1 << 30;

/// Loads all models; the hash of each is taken meanwhile, of the very bytes that are loaded.
/// Blocks for the time it takes to read the files.
///
/// # Errors
/// [`WiringError::Model`] names the file that cannot be served, [`WiringError::Memory`] the model
/// that does not fit, [`WiringError::ModelName`] a name that two models have.
pub fn load(settings: &Settings) -> Result<LocalEngine, WiringError> {
    let files = settings.model.all();
    let options = options(&settings.engine, files.len());
    let turns = Turns::default();
    let mut budget = Budget::new(&settings.engine);
    let mut models: Vec<LocalModel> = Vec::new();
    for file in &files {
        let name = file.served_name();
        if models.iter().any(|model| model.name == name) {
            return Err(WiringError::ModelName(name));
        }
        let model = load_one(file, name, (&options, &turns), &mut budget)?;
        models.push(model);
    }
    Ok(LocalEngine::new(models))
}

/// Loads one model alone, for a worker; its name is the file's or folder's, and its hashes are not
/// taken. Blocks for the time it takes to read the files.
///
/// # Errors
/// [`WiringError::Model`] names the file that cannot be served.
pub fn load_alone(path: &Path, options: &EngineOptions) -> Result<LocalModel, WiringError> {
    let file = ModelFile { path: path.to_owned(), name: None, registered: None };
    let name = file.served_name();
    let files = open(&file)?;
    say_progress(&files, name.clone());
    let loaded = Engine::load_files(&files, options.clone(), &Turns::default());
    let engine = loaded.map_err(|error| fault(&file, error))?;
    Ok(LocalModel { name, hashes: None, engine })
}

fn load_one(
    file: &ModelFile,
    name: String,
    (options, turns): (&EngineOptions, &Turns),
    budget: &mut Budget,
) -> Result<LocalModel, WiringError> {
    let files = open(file)?;
    // Refused before it fills the machine; what it really takes is known when it is loaded.
    budget.check(&name, files.weights_size())?;
    say_progress(&files, name.clone());
    let (loaded, hashes) = std::thread::scope(|scope| {
        let hashes = scope.spawn(|| hashes(&files));
        (Engine::load_files(&files, options.clone(), turns), hashes.join())
    });
    let engine = loaded.map_err(|error| fault(file, error))?;
    budget.take(&name, engine.info().memory_bytes)?;
    say_chat_format(&name, engine.info().chat_format);
    let hashes = hashes.map_err(|_| fault(file, "its hash could not be taken"))?;
    let hashes = hashes.map_err(|error| fault(file, error))?;
    Ok(LocalModel { name, hashes: Some(hashes), engine })
}

fn open(file: &ModelFile) -> Result<ModelFiles, WiringError> {
    ModelFiles::open(&file.path).map_err(|error| fault(file, error))
}

fn fault(file: &ModelFile, why: impl std::fmt::Display) -> WiringError {
    WiringError::Model { path: file.path.display().to_string(), why: why.to_string() }
}

fn hashes(files: &ModelFiles) -> std::io::Result<ModelHashes> {
    let weights_sha256 = sha256_model(files);
    let tokenizer_sha256 = match &files.tokenizer_paths()[..] {
        [] => weights_sha256,
        apart => sha256_tokenizer(apart)?,
    };
    Ok(ModelHashes { weights_sha256, tokenizer_sha256 })
}

fn options(engine: &EngineSettings, models: usize) -> EngineOptions {
    let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let share = u64::try_from(models).unwrap_or(u64::MAX).max(1);
    EngineOptions {
        threads: engine.threads,
        pin_threads: engine.pin_threads,
        kv_memory_bytes: engine.kv_memory_bytes / share,
        running_max: size(engine.running_max),
        queue_max: size(engine.queue_max),
        prefill_chunk: size(engine.prefill_chunk),
        kv_type: engine.kv_type,
        share_prefixes: engine.share_prefixes,
        speculation: engine.speculation,
        ..EngineOptions::default()
    }
}

/// A line in the log for every tenth that is loaded, of models that take more than a moment.
fn say_progress(files: &ModelFiles, model: String) {
    let told = AtomicU64::new(0);
    files.on_progress(move |LoadProgress { bytes_done, bytes_total }| {
        let tenths = bytes_done.saturating_mul(10).checked_div(bytes_total).unwrap_or_default();
        if bytes_total >= LARGE && told.fetch_max(tenths, Ordering::Relaxed) < tenths {
            tracing::info!(model, percent = tenths * 10, bytes_total, "loading");
        }
    });
}

/// A line in the log for the format of conversations, since a wrong one makes answers worse and
/// nothing else tells.
fn say_chat_format(model: &str, format: ChatFormat) {
    match format {
        ChatFormat::Own => tracing::info!(model, "chat format: the file's own template"),
        ChatFormat::BuiltIn(name) => {
            tracing::info!(model, name, "chat format: built in, the file has no template");
        }
        ChatFormat::Plain => tracing::warn!(
            model,
            "chat format: plain text, since the file has no template and declares no known format"
        ),
    }
}

/// The memory that the operator gave, bytes.
struct Budget {
    all: Option<u64>,
    used: u64,
}

impl Budget {
    /// The KV cache is taken first.
    fn new(engine: &EngineSettings) -> Budget {
        Budget { all: engine.memory_bytes, used: engine.kv_memory_bytes }
    }

    fn check(&self, model: &str, needed: u64) -> Result<(), WiringError> {
        let Some(all) = self.all else { return Ok(()) };
        let left = all.saturating_sub(self.used);
        if needed <= left && self.used <= all {
            return Ok(());
        }
        Err(WiringError::Memory { model: model.to_owned(), needed, left, all })
    }

    fn take(&mut self, model: &str, bytes: u64) -> Result<(), WiringError> {
        self.check(model, bytes)?;
        self.used = self.used.saturating_add(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tally_engine::{KvType, SharePrefixes};

    use super::*;

    fn budget(all: Option<u64>, kv_memory_bytes: u64) -> Budget {
        let used = kv_memory_bytes;
        Budget { all, used }
    }

    #[test]
    fn a_model_fits_up_to_the_last_byte_and_no_further() {
        let mut of_100 = budget(Some(100), 30);
        of_100.take("a", 50).unwrap();
        for (needed, fits) in [(19, true), (20, true), (21, false), (u64::MAX, false)] {
            assert_eq!(of_100.check("b", needed).is_ok(), fits, "{needed}");
        }
        let words = of_100.take("b", 21).unwrap_err().to_string();
        let expected = "model b: its weights take 21 bytes, and of engine.memory_bytes = 100 \
                        beside KV caches and the models before it 20 are left";
        assert_eq!(words, expected);
    }

    #[test]
    fn without_a_budget_everything_fits_and_a_cache_beyond_it_leaves_nothing() {
        assert!(budget(None, 30).take("a", u64::MAX).is_ok());
        assert!(budget(Some(20), 30).check("a", 0).is_err());
    }

    #[test]
    fn several_models_share_the_cache_in_equal_parts() {
        let engine = EngineSettings {
            threads: 2,
            pin_threads: true,
            kv_memory_bytes: 1000,
            memory_bytes: None,
            running_max: 4,
            queue_max: 8,
            prefill_chunk: 128,
            kv_type: KvType::F16,
            share_prefixes: SharePrefixes::WithinOwner,
            speculation: true,
        };
        assert_eq!(options(&engine, 1).kv_memory_bytes, 1000);
        assert!(options(&engine, 1).pin_threads);
        assert_eq!(options(&engine, 3).kv_memory_bytes, 333);
        assert_eq!((options(&engine, 3).running_max, options(&engine, 3).queue_max), (4, 8));
    }
}
