//! Reading a file that must be small: configurations, tokenizers, indices.
//!
//! For: what is read whole beside the weights.
//! Must never: take more memory than its caller allows, or wait for a pipe.
//! Relies on: nothing but the file system.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::LoadError;

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
