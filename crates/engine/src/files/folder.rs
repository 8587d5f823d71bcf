//! A model's folder as Hugging Face lays it out: `config.json`, `tokenizer.json`, safetensors.
//!
//! For: models that were never converted to GGUF.
//! Must never: read a file of the folder that is larger than such a file can reasonably be.
//! Relies on: `safetensors.rs` for the weights.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::map::Progress;
use super::reader::shown;
use super::safetensors::Safetensors;
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

/// A whole file of at most `bytes_max` bytes.
///
/// # Errors
/// [`LoadError::Io`]; [`LoadError::Format`] for a larger one, of which nothing is kept.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<Vec<u8>, LoadError> {
    let name = || path.display().to_string();
    let io = |source| LoadError::Io { path: name(), source };
    let found = std::fs::metadata(path).map_err(io)?;
    let too_large = || LoadError::Format {
        path: name(),
        reason: format!("it is larger than {bytes_max} bytes"),
    };
    // A pipe would be waited for, and its length says nothing.
    if !found.is_file() {
        let kind = std::io::ErrorKind::InvalidInput;
        return Err(io(std::io::Error::new(kind, "it is not a regular file")));
    }
    if found.len() > bytes_max {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may have grown since it was measured.
    File::open(path).map_err(io)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > bytes_max { Err(too_large()) } else { Ok(bytes) }
}
