//! Which processors a thread may run on.
//!
//! For: threads that compute, each on a processor of its own where that is wished.
//! Must never: widen what the process was given: processors are taken from its own mask.
//! Relies on: Linux; elsewhere nothing can be pinned, which is said.

use std::io;

/// Processors that the calling thread may run on, lowest number first; never empty.
///
/// # Errors
/// What the system says: it has more than 1024 processors, or knows no such masks.
#[cfg(target_os = "linux")]
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    let mask = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect())
}

/// Keeps the calling thread on one processor, and threads that it starts later.
///
/// # Errors
/// What the system says: the processor is gone, or not the process's.
#[cfg(target_os = "linux")]
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut mask = rustix::thread::CpuSet::new();
    mask.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &mask)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn pin(_: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
