//! Large zeroed memory, in huge pages where the system gives them.
//!
//! For: packed weights and the KV cache, which every step reads from end to end: with pages of
//! 4 KiB the address translation and the prefetchers that stop at a page's end cost a sixth of a
//! decoded token (measured: 1 thread, 96 MB of weights).
//! Must never: hand the same bytes out twice, or free them while somebody holds a part.
//! Relies on: anonymous maps being zeroed, page-aligned, and not touched before their first use.

use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use memmap2::{MmapMut, MmapRaw};

use super::lanes::Line;

/// The page size to align to: x86-64's and AArch64's common huge page.
const HUGE: usize = 2 << 20;
/// What is mapped at a time; only what is used is ever touched.
const CHUNK: usize = 64 << 20;
/// Alignment of everything that is handed out: a cache line, more than any element needs.
const LINE: usize = align_of::<Line>();

/// Elements for which zero bytes are a value.
///
/// # Safety
/// All zero bytes are a valid value, there is nothing to drop, and the alignment is at most 64.
pub(crate) unsafe trait Zero: Copy {}
// SAFETY: plain numbers.
unsafe impl Zero for u8 {}
// SAFETY: plain numbers.
unsafe impl Zero for u16 {}
// SAFETY: plain numbers.
unsafe impl Zero for f32 {}
// SAFETY: an array of bytes, aligned to 64.
unsafe impl Zero for Line {}

/// Gives out zeroed memory from few large maps, so that small matrices lie in huge pages too.
#[derive(Default)]
pub(crate) struct Arena {
    open: Mutex<Option<Chunk>>,
}

struct Chunk {
    map: Arc<MmapRaw>,
    /// Bytes from the map's start that are given out.
    used: usize,
}

/// A slice of an arena's memory, its holder's alone.
pub(crate) struct Space<T> {
    start: *mut T,
    len: usize,
    map: Arc<MmapRaw>,
    elements: PhantomData<T>,
}

// SAFETY: it is the only handle to its bytes, as a `Vec` is.
unsafe impl<T: Send> Send for Space<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Space<T> {}

impl Arena {
    /// `len` zeroed elements. Ends the process when the system has no memory, as `Vec` does.
    pub(crate) fn zeroed<T: Zero>(&self, len: usize) -> Space<T> {
        self.try_zeroed(len).unwrap_or_else(|| {
            let size = len.saturating_mul(size_of::<T>()).min(isize::MAX as usize - LINE);
            handle_alloc_error(Layout::from_size_align(size, LINE).unwrap_or(Layout::new::<u8>()))
        })
    }

    /// `len` zeroed elements; `None` when the system has no memory.
    fn try_zeroed<T: Zero>(&self, len: usize) -> Option<Space<T>> {
        let bytes = len.saturating_mul(size_of::<T>()).next_multiple_of(LINE);
        let mut open = self.open.lock().unwrap_or_else(|e| e.into_inner());
        let fits = |chunk: &Chunk| chunk.map.len() - chunk.used >= bytes;
        let mut chunk = match open.take() {
            Some(chunk) if fits(&chunk) => chunk,
            _ => Chunk::new(bytes.max(CHUNK))?,
        };
        // SAFETY: `used + bytes` is within the map.
        let start = unsafe { chunk.map.as_mut_ptr().add(chunk.used) }.cast();
        chunk.used += bytes;
        let map = Arc::clone(&chunk.map);
        *open = Some(chunk);
        Some(Space { start, len, map, elements: PhantomData })
    }
}

impl Chunk {
    /// At least `bytes` from a huge page's beginning on.
    fn new(bytes: usize) -> Option<Chunk> {
        let map = MmapMut::map_anon(bytes.checked_add(HUGE)?).ok()?;
        // Only a wish: without huge pages everything works, a little slower.
        #[cfg(target_os = "linux")]
        drop(map.advise(memmap2::Advice::HugePage));
        let map = MmapRaw::from(map);
        let used = (map.as_ptr() as usize).next_multiple_of(HUGE) - map.as_ptr() as usize;
        Some(Chunk { map: Arc::new(map), used })
    }
}

impl<T: Zero> Space<T> {
    /// `len` zeroed elements in a map of their own.
    pub(crate) fn zeroed(len: usize) -> Space<T> {
        Arena::default().zeroed(len)
    }

    /// As [`Space::zeroed`]; `None` when the system has no memory.
    pub(crate) fn try_zeroed(len: usize) -> Option<Space<T>> {
        Arena::default().try_zeroed(len)
    }
}

impl<T> Space<T> {
    /// Bytes of the map that it is a part of.
    #[cfg(test)]
    fn mapped(&self) -> usize {
        self.map.len()
    }
}

impl<T> Deref for Space<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let _mapped = &self.map;
        // SAFETY: `len` elements of the map, aligned and valid (`Zero`), ours alone; the map
        // lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Space<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let mut bytes = arena.zeroed::<u8>(3);
        let mut lines = arena.zeroed::<Line>(5);
        let mut floats = arena.zeroed::<f32>(CHUNK / 4);
        assert!(bytes.iter().all(|b| *b == 0) && floats.iter().all(|x| *x == 0.0));
        assert_eq!(bytes.as_ptr() as usize % HUGE, 0, "a chunk begins with a huge page");
        assert_eq!(lines.as_ptr() as usize % LINE, 0);
        bytes.fill(7);
        lines.fill(Line([9; 64]));
        floats.fill(1.0);
        drop(arena);
        assert!(bytes.iter().all(|b| *b == 7) && lines.iter().all(|l| l.0 == [9; 64]));
        // What does not fit the open chunk has one of its own.
        assert!(lines.mapped() < 2 * CHUNK && floats.mapped() >= CHUNK);
        assert_eq!(arena_len(0), 0);
    }

    fn arena_len(len: usize) -> usize {
        Space::<f32>::zeroed(len).len()
    }
}
