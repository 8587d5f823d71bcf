//! SHA-256 of weights: what the model registry compares.
//!
//! Never holds a file in memory. Blocks for as long as reading takes (about a second a GiB).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tally_engine::{ModelFiles, WeightFile};

use crate::units::Hash32;

/// Bytes read at once: large enough that the disk, not the calls, sets the pace.
const CHUNK: usize = 1 << 20;

/// The file's SHA-256.
///
/// # Errors
/// What the file system says.
pub fn sha256_file(path: &Path) -> std::io::Result<Hash32> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = file.read(&mut chunk)?;
        match chunk.get(..count) {
            Some([]) | None => return Ok(Hash32::new(hasher.finalize().into())),
            Some(bytes) => hasher.update(bytes),
        }
    }
}

/// SHA-256 of a tokenizer's files: of the one, or, where there are several, of the lines that
/// `sha256sum` prints for them in this order.
///
/// # Errors
/// What the file system says.
pub fn sha256_tokenizer(files: &[PathBuf]) -> std::io::Result<Hash32> {
    if let [file] = files {
        return sha256_file(file);
    }
    let mut lines = Sha256::new();
    for file in files {
        let hash = hex::encode(sha256_file(file)?.bytes());
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        lines.update(format!("{hash}  {name}\n"));
    }
    Ok(Hash32::new(lines.finalize().into()))
}

/// SHA-256 of a model's weights: of its file, or, where there are several, of the lines that
/// `sha256sum` prints for them in the order of their names.
#[must_use]
pub fn sha256_model(model: &ModelFiles) -> Hash32 {
    match &model.weight_files()[..] {
        [file] => Hash32::new(sha256_weights(file)),
        files => {
            let mut lines = Sha256::new();
            for file in files {
                let hash = hex::encode(sha256_weights(file));
                lines.update(format!("{hash}  {}\n", file.name()));
            }
            Hash32::new(lines.finalize().into())
        }
    }
}

fn sha256_weights(file: &WeightFile<'_>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    file.read_through(&mut |bytes| hasher.update(bytes));
    hasher.finalize().into()
}
