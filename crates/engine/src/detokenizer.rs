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
}
