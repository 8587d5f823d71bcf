//! Model files: mapped into memory, checked to the last offset, and only then believed.
//!
//! For: everything that the engine reads from disk.
//! Must never: trust a number in a file: each count, length, type and offset is compared with the
//! file's size before anything is allocated or read by it; panic over a file.
//! Relies on: nothing but the formats' own specifications.
//!
//! ```text
//! ModelFiles::open ─▶ gguf.rs, or folder.rs with safetensors.rs     header: reader.rs, stored.rs
//!                          └──▶ tensor.rs: bytes of the mmap.rs ─▶ packed matrix, f32 vector
//! ```

mod folder;
pub(crate) mod gguf;
mod mmap;
mod reader;
pub(crate) mod safetensors;
mod small;
mod stored;
mod tensor;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::LoadError;
pub(crate) use folder::Folder;
use gguf::Gguf;
pub use mmap::LoadProgress;
use mmap::{Mapped, Progress};
pub(crate) use safetensors::Safetensors;
pub(crate) use small::read_small;
pub(crate) use tensor::Order;
#[cfg(test)]
pub(crate) use tensor::turned;

/// A model on disk, opened: its weight files are mapped and their headers were found sound.
///
/// The files must not be written to while they are open: one that is cut short meanwhile ends
/// the process. Loading a model needs them once; dropped, they are unmapped.
pub struct ModelFiles {
    path: PathBuf,
    kind: ModelKind,
    progress: Arc<Progress>,
}

/// Which kind of files it is.
pub(crate) enum ModelKind {
    Gguf(Gguf),
    Folder(Folder),
}

/// A file of weights.
pub struct WeightFile<'a>(&'a Mapped);

impl ModelFiles {
    /// Opens a GGUF file, or a folder with `config.json`, `tokenizer.json` (of GPT-2 `vocab.json`
    /// and `merges.txt` instead) and `model.safetensors` or its parts. Blocks while the headers
    /// are read, some milliseconds.
    ///
    /// # Errors
    /// [`LoadError`] says which file, key or tensor it was.
    pub fn open(path: &Path) -> Result<ModelFiles, LoadError> {
        let progress = Arc::default();
        let kind = match path.is_dir() {
            true => ModelKind::Folder(Folder::open(path, &progress)?),
            false => ModelKind::Gguf(Gguf::map(path, &progress)?),
        };
        Ok(ModelFiles { path: path.to_path_buf(), kind, progress })
    }

    /// Calls `listener` after each tensor that is loaded, on the thread that loaded it.
    pub fn on_progress(&self, listener: impl Fn(LoadProgress) + Send + Sync + 'static) {
        self.progress.listen(Box::new(listener));
    }

    /// The files that hold the weights, in the order of their names.
    pub fn weight_files(&self) -> Vec<WeightFile<'_>> {
        match &self.kind {
            ModelKind::Gguf(gguf) => vec![WeightFile(gguf.file())],
            ModelKind::Folder(folder) => folder.tensors().files().iter().map(WeightFile).collect(),
        }
    }

    /// The file or folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The files that describe the tokenizer, where it is not the weights' own: one, or GPT-2's
    /// two.
    pub fn tokenizer_paths(&self) -> Vec<PathBuf> {
        match &self.kind {
            ModelKind::Gguf(_) => Vec::new(),
            ModelKind::Folder(folder) => {
                let file = |name: &str| folder.dir().join(name);
                match file("tokenizer.json") {
                    one if one.exists() => vec![one],
                    _ => vec![file("merges.txt"), file("vocab.json")],
                }
            }
        }
    }

    /// Bytes of all weight files: about what the weights will take in memory.
    pub fn weights_size(&self) -> u64 {
        self.weight_files().iter().map(WeightFile::size).fold(0, u64::saturating_add)
    }

    pub(crate) fn kind(&self) -> &ModelKind {
        &self.kind
    }

    /// The name inside the file, else the file's or folder's own.
    pub(crate) fn name(&self) -> String {
        let inside = match &self.kind {
            ModelKind::Gguf(gguf) => gguf.text("general.name").map(str::to_string),
            ModelKind::Folder(_) => None,
        };
        let own = match &self.kind {
            ModelKind::Gguf(_) => self.path.file_stem(),
            ModelKind::Folder(_) => self.path.file_name(),
        };
        let own = || own.map(|name| name.to_string_lossy().into_owned());
        inside.or_else(own).unwrap_or_default()
    }

    /// What the file calls its architecture.
    pub(crate) fn architecture(&self) -> String {
        let found = match &self.kind {
            ModelKind::Gguf(gguf) => gguf.text("general.architecture"),
            ModelKind::Folder(folder) => folder.config()["model_type"].as_str(),
        };
        found.unwrap_or_default().to_string()
    }

    /// The quantisation that most weights have.
    pub(crate) fn quantisation(&self) -> String {
        match &self.kind {
            ModelKind::Gguf(gguf) => gguf.quantisation(),
            ModelKind::Folder(folder) => folder.tensors().quantisation(),
        }
    }

    /// Weights in all tensors.
    pub(crate) fn parameter_count(&self) -> u64 {
        match &self.kind {
            ModelKind::Gguf(gguf) => gguf.parameter_count(),
            ModelKind::Folder(folder) => folder.tensors().parameter_count(),
        }
    }
}

impl WeightFile<'_> {
    /// Its name in its folder.
    pub fn name(&self) -> String {
        let name = self.0.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Its size, bytes.
    pub fn size(&self) -> u64 {
        self.0.bytes().len() as u64
    }

    /// Hands all its bytes to `reader` in order, piece by piece; for a hash of just what is
    /// loaded, whatever the path names meanwhile. Blocks for as long as reading takes.
    pub fn read_through(&self, reader: &mut dyn FnMut(&[u8])) {
        self.0.read_through(reader);
    }
}
