//! Symbols side by side become tokens, best pair first.
//!
//! For: byte-level BPE (pairs by merge rank) and SentencePiece (pairs by score).
//! Must never: take time that grows with the square of a client's text.
//! Relies on: `table.rs` for what a pair becomes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::Merge;

/// No symbol there, no token for it.
pub(super) const NONE: u32 = u32::MAX;

/// A stretch of the text that is one token, or not a token yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// First byte of it in the text.
    pub(super) start: u32,
    /// Bytes; 0 when it has become part of the symbol before.
    pub(super) len: u32,
    /// Its token, or [`NONE`].
    pub(super) id: u32,
    /// Symbols before and after, or [`NONE`].
    before: u32,
    after: u32,
}

impl Symbol {
    /// The bytes that it stands for.
    pub(super) fn of<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[self.start as usize..(self.start + self.len) as usize]
    }
}

/// A pair that may become one token: lower rank first, then the one further left. `len` tells
/// whether both symbols are still what they were.
type Candidate = Reverse<(u32, u32, u32, u32)>;

/// The symbols of one word; kept from word to word, so that no word needs memory of its own.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

impl Merger {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.candidates.clear();
    }

    /// Adds a symbol after the others.
    pub(super) fn push(&mut self, start: usize, len: usize, id: u32) {
        let count = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.after = count;
        }
        let before = count.checked_sub(1).unwrap_or(NONE);
        let (start, len) = (start as u32, len as u32);
        self.symbols.push(Symbol { start, len, id, before, after: NONE });
    }

    /// Merges pairs until `find` has nothing for any of them.
    pub(super) fn run(&mut self, find: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        for left in 0..self.symbols.len() as u32 {
            self.consider(left, &find);
        }
        while let Some(Reverse((_, at, len, id))) = self.candidates.pop() {
            let left = self.symbols[at as usize];
            let Some(right) = self.symbols.get(left.after as usize).copied() else { continue };
            if left.len == 0 || left.len + right.len != len {
                continue;
            }
            self.symbols[left.after as usize].len = 0;
            if let Some(next) = self.symbols.get_mut(right.after as usize) {
                next.before = at;
            }
            let symbol = &mut self.symbols[at as usize];
            (symbol.len, symbol.id, symbol.after) = (len, id, right.after);
            self.consider(left.before, &find);
            self.consider(at, &find);
        }
    }

    /// What is left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    /// Notes what the symbol at `left` and the next one may become.
    fn consider(&mut self, left: u32, find: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        let Some(symbol) = self.symbols.get(left as usize) else { return };
        let Some(next) = self.symbols.get(symbol.after as usize) else { return };
        if let Some(merge) = find(symbol, next) {
            let len = symbol.len + next.len;
            self.candidates.push(Reverse((merge.rank, left, len, merge.id)));
        }
    }
}
