//! Tokens that stand for their text as a whole: control tokens and user-defined ones.
//!
//! For: finding them in rendered templates, and finding their look-alikes in what clients send.
//! Must never: slow down with the number of such tokens: Llama 3 has 256 of them.
//! Relies on: nothing.

/// A set of tokens by text.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens {
    /// By first byte; the longest text first.
    by_first: Vec<Vec<(Box<str>, u32)>>,
    /// Last bytes of all texts.
    lasts: Vec<bool>,
    /// Bytes of the longest text.
    longest: usize,
}

impl SpecialTokens {
    /// The set of `tokens`; empty texts are left out.
    pub(crate) fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> SpecialTokens {
        let mut set =
            SpecialTokens { by_first: vec![Vec::new(); 256], lasts: vec![false; 256], longest: 0 };
        for (text, id) in tokens {
            if let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().next_back()) {
                set.by_first[first as usize].push((text.into(), id));
                set.lasts[last as usize] = true;
                set.longest = set.longest.max(text.len());
            }
        }
        for bucket in &mut set.by_first {
            bucket.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.0.cmp(&b.0)));
        }
        set
    }

    /// The leftmost token in `text`, the longest of those that begin there.
    pub(crate) fn find_first<'a>(&'a self, text: &'a str) -> Option<(usize, &'a str, u32)> {
        self.occurrences(text).next()
    }

    /// Every place where a token stands in `text`, overlapping ones too; of those that begin at
    /// one place the longest first.
    pub(crate) fn occurrences<'a>(
        &'a self,
        text: &'a str,
    ) -> impl Iterator<Item = (usize, &'a str, u32)> {
        text.bytes().enumerate().flat_map(move |(at, first)| {
            let here = move |(token, id): &'a (Box<str>, u32)| {
                let is_here = text.as_bytes()[at..].starts_with(token.as_bytes());
                is_here.then_some((at, &**token, *id))
            };
            self.starting_with(first).iter().filter_map(here)
        })
    }

    /// Whether `text` ends with the beginning of a token.
    pub(crate) fn may_begin_in(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        (bytes.len().saturating_sub(self.longest)..bytes.len()).any(|at| {
            let end = &bytes[at..];
            let goes_on =
                |token: &str| token.len() > end.len() && token.as_bytes().starts_with(end);
            self.starting_with(end[0]).iter().any(|(token, _)| goes_on(token))
        })
    }

    /// Whether `text` begins with the end of a token.
    pub(crate) fn may_end_in(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        (1..=bytes.len().min(self.longest)).any(|len| {
            let start = &bytes[..len];
            let came_before = |token: &str| token.len() > len && token.as_bytes().ends_with(start);
            self.lasts.get(start[len - 1] as usize) == Some(&true) && self.texts().any(came_before)
        })
    }

    /// Whether `text` stands inside a token.
    pub(crate) fn may_hold(&self, text: &str) -> bool {
        text.len() <= self.longest && self.texts().any(|token| token.contains(text))
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.by_first.iter().flatten().map(|(token, _)| &**token)
    }

    fn starting_with(&self, first: u8) -> &[(Box<str>, u32)] {
        self.by_first.get(first as usize).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::SpecialTokens;

    fn set() -> SpecialTokens {
        SpecialTokens::new([("<a>", 1), ("<a>b", 2), ("b", 3), ("", 4), ("é>", 5)])
    }

    #[test]
    fn the_leftmost_token_is_found_and_of_two_there_the_longer() {
        let set = set();
        #[rustfmt::skip]
        let table = [
            ("", None), ("<a", None), ("x<a>", Some((1, "<a>", 1))), ("<a>b", Some((0, "<a>b", 2))),
            ("b<a>", Some((0, "b", 3))), ("ü é>", Some((3, "é>", 5))), ("è>", None),
        ];
        for (text, found) in table {
            assert_eq!(set.find_first(text), found, "{text:?}");
        }
        assert_eq!(SpecialTokens::default().find_first("<a>"), None);
        let all: Vec<_> = set.occurrences("<a>b").collect();
        assert_eq!(all, [(0, "<a>b", 2), (0, "<a>", 1), (3, "b", 3)]);
    }

    #[test]
    fn parts_of_tokens_at_the_ends_of_a_text_are_seen() {
        let set = set();
        #[rustfmt::skip]
        let begins = [
            ("x<", true), ("<a>", true), ("a", false), ("x<a", true), ("", false), ("é", true),
        ];
        for (text, expected) in begins {
            assert_eq!(set.may_begin_in(text), expected, "{text:?}");
        }
        for (text, expected) in [(">x", true), ("a>bx", true), ("<a>", false), ("", false)] {
            assert_eq!(set.may_end_in(text), expected, "{text:?}");
        }
        for (text, expected) in [("a", true), ("a>", true), ("<a>bc", false), ("x", false)] {
            assert_eq!(set.may_hold(text), expected, "{text:?}");
        }
    }
}
