//! Lines of the log on their way to whoever reads them.
//!
//! Never makes the caller wait: a pipe that nobody reads would stop the runtime's threads one by
//! one. Never grows beyond a bound: what does not fit is lost, and a line says how many were. The
//! order of lines is kept.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait: some thousand lines.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Longest wait for the last lines.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The process's log, once it was started.
static STARTED: OnceLock<Lines> = OnceLock::new();

/// The way to the log. Clones lead to the same.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Something waits.
    filled: Condvar,
    /// Nothing waits any more.
    emptied: Condvar,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
    is_writing: bool,
}

/// Starts the thread that writes the process's log to `out`.
///
/// # Errors
/// The system's, where it has no thread.
pub(super) fn start(out: Box<dyn Write + Send>) -> io::Result<Lines> {
    let lines = Lines::default();
    let own = lines.clone();
    std::thread::Builder::new().name("tally-log".to_owned()).spawn(move || own.write_out(out))?;
    let _ = STARTED.set(lines.clone()); // A second log is refused by its installation.
    Ok(lines)
}

/// Waits for the lines of the process's log; see [`super::flush`].
pub(super) fn flush() {
    if let Some(lines) = STARTED.get() {
        lines.flush();
    }
}

impl Lines {
    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes.saturating_add(line.len()) > WAITING_BYTES_MAX {
            waiting.lost = waiting.lost.saturating_add(1);
            return;
        }
        waiting.bytes = waiting.bytes.saturating_add(line.len());
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.0.filled.notify_one();
    }

    fn write_out(&self, mut out: Box<dyn Write + Send>) {
        loop {
            let (lines, lost) = self.take();
            for line in &lines {
                // Who reads the log is gone: there is nobody to tell.
                let _ = out.write_all(line);
            }
            let _ = out.flush();
            if lost > 0 {
                tracing::warn!(lost, "Lines of the log were lost: nobody read them in time");
            }
        }
    }

    /// All that waits, as soon as something does.
    fn take(&self) -> (VecDeque<Vec<u8>>, u64) {
        let mut waiting = self.waiting();
        waiting.is_writing = false;
        if waiting.lines.is_empty() {
            self.0.emptied.notify_all();
        }
        let is_empty = |waiting: &mut Waiting| waiting.lines.is_empty();
        let waited = self.0.filled.wait_while(waiting, is_empty);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.is_writing = true;
        waiting.bytes = 0;
        (std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.lost))
    }

    fn flush(&self) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.lines.is_empty();
        drop(self.0.emptied.wait_timeout_while(self.waiting(), FLUSH_MAX, is_busy));
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_bound_are_counted_and_the_others_keep_their_order() {
        let lines = Lines::default();
        let long = vec![b'x'; WAITING_BYTES_MAX - 2];
        lines.put(&long);
        lines.put(b"yy");
        lines.put(b"z");
        lines.put(b"z");
        let (taken, lost) = lines.take();
        assert_eq!((taken.len(), lost), (2, 2));
        assert_eq!(taken[1], b"yy");
        lines.put(b"z");
        assert_eq!(lines.take(), (VecDeque::from([b"z".to_vec()]), 0));
    }
}
