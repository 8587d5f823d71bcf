//! A file as bytes in memory, without reading it in.
//!
//! For: weight files, which are packed once and then never looked at again: their pages come from
//! the system's cache as they are used and go when they are released.
//! Must never: write to the file; keep more of it resident than is being worked on.
//! Relies on: the operator not changing a weight file while it is loaded. A file that is
//! overwritten meanwhile gives wrong weights, and its hash shows that; one that is cut short ends
//! the process (SIGBUS) where the missing page is touched. Replacing a file by renaming another
//! over it is safe: the map keeps the old one. After loading nothing is mapped any more.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::LoadError;
use crate::kernels::memory::Arena;

/// Bytes that are resident at once while a file is read through: enough that the calls that give
/// pages back cost nothing beside the reading.
const WINDOW: usize = 4 << 20;

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the weight files that are done.
    pub bytes_done: u64,
    /// Bytes of the weight files in all, headers and tensors without use included: `bytes_done`
    /// need not reach it.
    pub bytes_total: u64,
}

/// Who is told how far loading has come.
pub(crate) type Listener = Box<dyn Fn(LoadProgress) + Send + Sync>;

/// Progress over all files of a model.
#[derive(Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    listener: OnceLock<Listener>,
}

impl Progress {
    /// Tells `listener` from now on; the first one stays.
    pub(crate) fn listen(&self, listener: Listener) {
        // A second listener would mean that a model is loaded twice from one set of files.
        let _ = self.listener.set(listener);
    }

    fn add(&self, bytes: usize) {
        let bytes_done = self.done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        if let Some(listener) = self.listener.get() {
            listener(LoadProgress { bytes_done, bytes_total: self.total.load(Ordering::Relaxed) });
        }
    }
}

/// A mapped file.
pub(crate) struct Mapped {
    path: PathBuf,
    map: Mmap,
    progress: Arc<Progress>,
    /// Where its matrices are packed to.
    arena: Arena,
}

impl Mapped {
    /// Maps the file for reading. Blocks for a few system calls, not for its size.
    /// Its bytes count in `progress`.
    pub(crate) fn open(path: &Path, progress: &Arc<Progress>) -> Result<Mapped, LoadError> {
        let io = |source| LoadError::Io { path: path.display().to_string(), source };
        // Looked at before it is opened: opening a pipe would wait for somebody to write to it.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            let kind = std::io::ErrorKind::InvalidInput;
            return Err(io(std::io::Error::new(kind, "it is not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and this process writes no weight files. Another process
        // that writes to the file could change bytes under a `&[u8]`; so everything made of them
        // is bounds-checked, text is checked anew each time it is taken out, and weights are
        // plain numbers to which every bit pattern is valid. One that cuts the file short makes
        // an access end the process with SIGBUS, which is no memory error.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        // All of it is read once, soon; where the system can't read ahead it is as slow as ever.
        let _ = map.advise(Advice::WillNeed);
        progress.total.fetch_add(map.len() as u64, Ordering::Relaxed);
        let (path, progress) = (path.to_path_buf(), Arc::clone(progress));
        Ok(Mapped { path, map, progress, arena: Arena::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The range has been made use of: it counts as done, and its pages go.
    pub(crate) fn finish(&self, range: Range<usize>) {
        self.progress.add(range.len());
        self.release(range);
    }

    /// Hands all bytes to `reader` in order, a window at a time, without keeping them resident.
    pub(crate) fn read_through(&self, reader: &mut dyn FnMut(&[u8])) {
        let mut at = 0;
        for window in self.map.chunks(WINDOW) {
            reader(window);
            self.release(at..at + window.len());
            at += window.len();
        }
    }

    /// Gives the pages of a range back to the system; touching them again brings them back.
    fn release(&self, range: Range<usize>) {
        let range = range.start.min(self.map.len())..range.end.min(self.map.len());
        if !range.is_empty() {
            // SAFETY: the map is shared and read-only, so a released page is the file's page
            // again when it is next touched; nothing that a `&[u8]` sees changes. A failure
            // leaves the pages where they are, which is allowed too.
            let _ = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
    }

    /// A damaged file, by its name.
    pub(crate) fn refuse(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Format { path: self.path.display().to_string(), reason: reason.into() }
    }
}
