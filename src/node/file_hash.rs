//! SHA-256 of a file: what the model registry compares.
//!
//! Never holds the file in memory. Blocks for as long as reading takes (about a second a GiB).

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

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
