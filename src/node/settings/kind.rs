//! Types and ranges of settings, and how their text is read.
//!
//! Never knows where a text came from, and never repeats a secret. Relies on nothing but the text.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a setting's text must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number within both bounds; `_` may group digits.
    Integer {
        /// Smallest.
        min: u128,
        /// Largest.
        max: u128,
        /// What is counted; may be empty.
        unit: &'static str,
    },
    /// A size in bytes within both bounds: a number, or one with KiB, MiB, GiB, kB, MB or GB.
    Bytes {
        /// Smallest.
        min: u128,
        /// Largest.
        max: u128,
    },
    /// A number from 0 to 1.
    Fraction,
    /// `true`, `false`, `1`, `0`, `on`, `off`, `yes` or `no`.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// A file or folder; `~/` at its start means the home folder.
    Path,
    /// An http or https address.
    Url,
    /// One or more of them, separated by commas. May carry access keys, so never shown.
    Urls,
    /// Web origins separated by commas, or `*`.
    Origins,
    /// Words separated by commas.
    Words,
    /// A contract's address, 40 hex digits with or without `0x`.
    Address,
    /// `IP:PORT`, or a port alone.
    Listen,
    /// Pairs `name=value` separated by commas; a table in the file.
    Map,
    /// A text that is never shown.
    Secret,
}

impl Kind {
    /// What is wanted, for messages and `docs/config.md`.
    #[must_use]
    pub fn wanted(self) -> String {
        match self {
            Self::Integer { min, max, unit } => {
                let range = match (min, max) {
                    (0, u128::MAX) => "whole number".to_owned(),
                    (1, u128::MAX) => "whole number from 1".to_owned(),
                    (1, max) if max == u128::from(u64::MAX) => "whole number from 1".to_owned(),
                    (min, max) => format!("whole number {min} to {max}"),
                };
                if unit.is_empty() { range } else { format!("{range}, {unit}") }
            }
            Self::Bytes { min, max } => {
                format!("size {} to {}, bytes or `512MiB`", binary(min), binary(max))
            }
            Self::Fraction => "number 0 to 1".to_owned(),
            Self::Switch => "`true` or `false`".to_owned(),
            Self::Choice(words) => words_list(words),
            Self::Text | Self::Secret => "text".to_owned(),
            Self::Path => "path".to_owned(),
            Self::Url => "http(s) address".to_owned(),
            Self::Urls => "http(s) addresses, comma-separated or a list".to_owned(),
            Self::Origins => "origins, comma-separated or a list, or `*`".to_owned(),
            Self::Words => "words, comma-separated or a list".to_owned(),
            Self::Address => "address, 40 hex digits".to_owned(),
            Self::Listen => "`IP:PORT` or `PORT`".to_owned(),
            Self::Map => "pairs `name=value`, comma-separated or a table".to_owned(),
        }
    }

    /// Whether a message may repeat what was found.
    #[must_use]
    pub fn is_shown(self) -> bool {
        !matches!(self, Self::Secret | Self::Urls)
    }
}

/// Words as a choice for readers.
fn words_list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// A power-of-two size for readers.
fn binary(bytes: u128) -> String {
    [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes >= 1 << shift)
        .map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// A whole number; `None` for anything else, signs and exponents included.
pub(super) fn integer(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|symbol| *symbol != '_').collect();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// A size in bytes; `None` for anything else or past 2^128.
pub(in crate::node) fn bytes(text: &str) -> Option<u128> {
    const UNITS: [(&str, u128); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let (digits, factor) = UNITS
        .into_iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|rest| (rest.trim(), factor)))
        .unwrap_or((text, 1));
    integer(digits)?.checked_mul(factor)
}

/// A switch's text.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Some(true),
        "false" | "0" | "off" | "no" => Some(false),
        _ => None,
    }
}

/// A number from 0 to 1.
pub(super) fn fraction(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=1.0).contains(number))
}

/// `IP:PORT` or `PORT`; the latter listens on every IPv4 address.
pub(super) fn listen(text: &str) -> Option<SocketAddr> {
    if let Ok(port) = text.parse() {
        return Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    text.parse().ok()
}

/// Parts between commas, trimmed, empty ones dropped.
pub(super) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Pairs `name=value`; `None` where a part has no `=`, a half is empty or a name comes twice.
pub(super) fn map(text: &str) -> Option<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for part in list(text) {
        let (name, value) = part.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        let is_whole = !name.is_empty() && !value.is_empty();
        if !is_whole || pairs.insert(name.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(pairs)
}

/// An http or https address with a host; the path may follow.
pub(super) fn url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_plain = !host.is_empty() && !text.contains(char::is_whitespace);
    is_plain.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_with_and_without_units() {
        let cases = [
            ("512MiB", Some(512 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("1_000", Some(1000)),
            ("2kB", Some(2000)),
            ("7B", Some(7)),
            ("MiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("340282366920938463463374607431768211455GiB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn a_bare_port_listens_everywhere() {
        assert_eq!(listen("8080"), "0.0.0.0:8080".parse().ok());
        assert_eq!(listen("127.0.0.1:0"), "127.0.0.1:0".parse().ok());
        assert_eq!(listen("[::1]:9"), "[::1]:9".parse().ok());
        for bad in ["", "65536", "localhost:1", "1.2.3.4"] {
            assert_eq!(listen(bad), None, "{bad}");
        }
    }

    #[test]
    fn pairs_are_whole_and_unique() {
        assert_eq!(map("").map(|pairs| pairs.len()), Some(0));
        assert_eq!(map("a=b, c = d").map(|pairs| pairs.len()), Some(2));
        for bad in ["a", "a=", "=b", "a=b,a=c"] {
            assert_eq!(map(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_fraction_has_both_bounds_and_no_nan() {
        assert_eq!(fraction("0"), Some(0.0));
        assert_eq!(fraction("1"), Some(1.0));
        for bad in ["1.01", "-0.1", "NaN", "inf", ""] {
            assert_eq!(fraction(bad), None, "{bad}");
        }
    }
}
