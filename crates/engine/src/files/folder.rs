//! A model's folder as Hugging Face lays it out: `config.json`, `tokenizer.json`, safetensors.
//!
//! For: models that were never converted to GGUF.
//! Must never: read a file of the folder that is larger than such a file can reasonably be.
//! Relies on: `safetensors.rs` for the weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mmap::Progress;
use super::reader::shown;
use super::safetensors::Safetensors;
use super::small::read_small;
use crate::error::LoadError;

/// Largest `config.json`, bytes: real ones have a few thousand.
const CONFIG_MAX: u64 = 1 << 20;

/// An open folder.
pub(crate) struct Folder {
    dir: PathBuf,
    config: serde_json::Value,
    tensors: Safetensors,
}

impl Folder {
    /// Reads the configuration, maps the weights and checks their headers.
    pub(super) fn open(dir: &Path, progress: &Arc<Progress>) -> Result<Folder, LoadError> {
        let path = dir.join("config.json");
        let config = read_small(&path, CONFIG_MAX)?;
        let config = serde_json::from_slice(&config).map_err(|error| LoadError::Format {
            path: path.display().to_string(),
            reason: shown(error.to_string().as_bytes()),
        })?;
        let tensors = Safetensors::open(dir, progress)?;
        Ok(Folder { dir: dir.to_path_buf(), config, tensors })
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`.
    pub(crate) fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// The weights.
    pub(crate) fn tensors(&self) -> &Safetensors {
        &self.tensors
    }
}
