//! Little-endian numbers and counted strings out of bytes that may lie.
//!
//! For: the headers of model files.
//! Must never: read beyond the bytes, or allocate by a length that it read.
//! Relies on: nothing.

use std::ops::Range;

/// A place in the bytes.
pub(super) type Span = Range<usize>;

/// Reads forward; `None` where the bytes end too early.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// The place of the next `count` bytes.
    pub(super) fn skip(&mut self, count: u64) -> Option<Span> {
        let count = usize::try_from(count).ok().filter(|count| *count <= self.left())?;
        let start = self.at;
        self.at += count;
        Some(start..self.at)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let span = self.skip(N as u64)?;
        self.bytes.get(span)?.try_into().ok()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The place of a string behind its length, whatever its bytes.
    pub(super) fn counted(&mut self) -> Option<Span> {
        let count = self.u64()?;
        self.skip(count)
    }

    /// A string behind its length; `None` too where it is not UTF-8.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let span = self.counted()?;
        std::str::from_utf8(self.bytes.get(span)?).ok()
    }
}

/// What a file calls something, fit for an error message: short, and without control characters.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN: usize = 64;
    let text = String::from_utf8_lossy(&name[..name.len().min(SHOWN)]).escape_debug().to_string();
    if name.len() > SHOWN { format!("{text}…") } else { text }
}
