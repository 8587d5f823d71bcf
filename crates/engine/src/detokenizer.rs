//! Token bytes to text, as they come.
//!
//! For: streams: each token's event carries the text that became complete with it.
//! Must never: split a character, or invent one: bytes wait until their character is whole, and
//! bytes that are incomplete at the end are dropped. Only bytes that no continuation could make
//! valid become U+FFFD, as in [`String::from_utf8_lossy`].
//! Relies on: nothing.

/// The end of a text that isn't a whole character yet: at most three bytes.
#[derive(Debug, Default)]
pub(crate) struct Detokenizer {
    partial: Vec<u8>,
}

impl Detokenizer {
    /// Adds bytes; returns the text that is complete now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.partial.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(invalid) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid..];
                }
            }
        }
        self.partial = rest.to_vec();
        text
    }

    /// Whether bytes wait for the rest of their character.
    pub(crate) fn is_within_character(&self) -> bool {
        !self.partial.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::Detokenizer;

    fn pushed(parts: &[&[u8]]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        parts.iter().map(|part| detokenizer.push(part)).collect()
    }

    #[test]
    fn a_character_comes_out_whole_or_not_at_all() {
        let text = "aé中😀e\u{301}👨\u{200d}👩";
        for width in 1..6 {
            let parts: Vec<&[u8]> = text.as_bytes().chunks(width).collect();
            assert_eq!(pushed(&parts).concat(), text, "in parts of {width}");
            for cut in 0..text.len() {
                let parts: Vec<&[u8]> = text.as_bytes()[..cut].chunks(width).collect();
                let whole = (0..=cut).rev().find(|at| text.is_char_boundary(*at));
                assert_eq!(pushed(&parts).concat(), text[..whole.unwrap_or(0)]);
            }
        }
    }

    #[test]
    fn bytes_that_can_never_be_text_are_replaced_as_the_standard_library_does() {
        for bytes in [
            &b"a\xffb"[..],
            b"\x80\x80a",
            b"\xe4\xb8a\xe4\xb8\xad",
            b"\xf0\x9f\x98\xf0\x9f\x98\x80",
            b"\xc0\xafx",
            b"\xed\xa0\x80x",
        ] {
            for width in 1..4 {
                let parts: Vec<&[u8]> = bytes.chunks(width).collect();
                assert_eq!(pushed(&parts).concat(), String::from_utf8_lossy(bytes), "{bytes:?}");
            }
        }
    }
}
