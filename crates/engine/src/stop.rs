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

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `tokens`; gives the ids released after each, then how it ended: tail and stop
    /// string, or the ids that were still held.
    fn run(stops: &[&str], tokens: &[&str]) -> (Vec<Vec<u32>>, Result<(String, String), Vec<u32>>) {
        let stops: Vec<String> = stops.iter().map(|stop| stop.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let ids = |pieces: Vec<Piece>| pieces.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let mut steps = Vec::new();
        for (id, token) in (1..).zip(tokens) {
            match matcher.push(id, token.as_bytes()) {
                Outcome::Released(pieces) => steps.push(ids(pieces)),
                Outcome::Stopped { released, tail, stop } => {
                    steps.push(ids(released));
                    return (steps, Ok((String::from_utf8_lossy(&tail).into_owned(), stop)));
                }
            }
        }
        (steps, Err(ids(matcher.finish())))
    }

    #[test]
    fn tokens_wait_only_while_a_stop_string_may_still_come() {
        let ended = |tail: &str, stop: &str| Ok((tail.to_string(), stop.to_string()));
        #[rustfmt::skip]
        let table = [
            (vec![], vec!["a", "b"], vec![vec![1], vec![2]], Err(vec![])),
            (vec!["STOP"], vec!["a", "STOP"], vec![vec![1], vec![]], ended("", "STOP")),
            // Across tokens, beginning and ending inside them.
            (vec!["STOP"], vec!["aS", "TO", "Pb"], vec![vec![], vec![], vec![]], ended("a", "STOP")),
            (vec!["STOP"], vec!["x", "aST", "x"], vec![vec![1], vec![], vec![2, 3]], Err(vec![])),
            // A new beginning inside a failed one.
            (vec!["aab"], vec!["a", "a", "a", "b"], vec![vec![], vec![], vec![1], vec![]], ended("", "aab")),
            // The first to appear; of two at one place the longest.
            (vec!["cd", "bc"], vec!["abcd"], vec![vec![]], ended("a", "bc")),
            (vec!["ab", "abc"], vec!["abc"], vec![vec![]], ended("", "abc")),
            // Held at the end: it was no stop string.
            (vec!["\n\n"], vec!["a", "\n"], vec![vec![1], vec![]], Err(vec![2])),
            // Tokens without text wait between, and pass before.
            (vec!["STOP"], vec!["ST", "", "x"], vec![vec![], vec![], vec![1, 2, 3]], Err(vec![])),
            (vec!["STOP"], vec!["", "STOP"], vec![vec![1], vec![]], ended("", "STOP")),
        ];
        for (stops, tokens, steps, end) in table {
            assert_eq!(run(&stops, &tokens), (steps, end), "{stops:?} {tokens:?}");
        }
    }

    #[test]
    fn a_stop_string_is_found_in_a_character_spread_over_tokens() {
        let mut matcher = StopMatcher::new(&["😀".to_string()]);
        let bytes = "😀".as_bytes();
        assert_eq!(matcher.push(1, &bytes[..2]), Outcome::Released(vec![]));
        let outcome = matcher.push(2, &bytes[2..]);
        let expected =
            Outcome::Stopped { released: vec![], tail: vec![], stop: "😀".to_string() };
        assert_eq!(outcome, expected);
    }
}
