//! Stop strings in a stream of tokens.
//!
//! For: ending a text where a client asked, even inside or across tokens.
//! Must never: release a token that may turn out to belong to a stop string.
//! Relies on: matching bytes, not characters: a stop string may begin inside a token, and a
//! character may be spread over tokens.

use std::collections::VecDeque;

/// A token that passed, with its bytes.
pub(crate) type Piece = (u32, Box<[u8]>);

/// Holds tokens back as long as they may belong to a stop string.
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<Vec<u8>>,
    /// Tokens not released, oldest first.
    held: VecDeque<Piece>,
}

/// What a new token led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// These tokens are free.
    Released(Vec<Piece>),
    /// A stop string is complete.
    Stopped {
        /// Tokens that end before it.
        released: Vec<Piece>,
        /// Bytes before it in the token that it begins in.
        tail: Vec<u8>,
        /// The stop string.
        stop: String,
    },
}

impl StopMatcher {
    /// A matcher for `stops`, none of them empty.
    pub(crate) fn new(stops: &[String]) -> StopMatcher {
        StopMatcher {
            stops: stops.iter().map(|stop| stop.as_bytes().to_vec()).collect(),
            held: VecDeque::new(),
        }
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, id: u32, bytes: &[u8]) -> Outcome {
        self.held.push_back((id, bytes.into()));
        let text: Vec<u8> = self.held.iter().flat_map(|(_, bytes)| bytes.iter()).copied().collect();
        if let Some((at, stop)) = self.find(&text) {
            let (released, rest) = self.release(at);
            let tail = text[at - rest..at].to_vec();
            self.held.clear();
            return Outcome::Stopped { released, tail, stop };
        }
        let free = (0..text.len()).find(|at| self.may_begin(&text[*at..])).unwrap_or(text.len());
        Outcome::Released(self.release(free).0)
    }

    /// Tokens that are still held, when no more will come.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        self.held.drain(..).collect()
    }

    /// The first stop string in `text`; of those that begin together, the longest.
    fn find(&self, text: &[u8]) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let at = text.windows(stop.len()).position(|window| window == stop)?;
            Some((at, std::cmp::Reverse(stop.len()), stop))
        });
        let (at, _, stop) = found.min()?;
        Some((at, String::from_utf8_lossy(stop).into_owned()))
    }

    fn may_begin(&self, end_of_text: &[u8]) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(end_of_text))
    }

    /// Releases the tokens that end at or before `at`; also how many bytes before `at` remain.
    fn release(&mut self, at: usize) -> (Vec<Piece>, usize) {
        let mut left = at;
        let mut released = Vec::new();
        while let Some((_, bytes)) = self.held.front()
            && bytes.len() <= left
        {
            left -= bytes.len();
            released.extend(self.held.pop_front());
        }
        (released, left)
    }
}
