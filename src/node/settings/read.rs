//! Turns gathered texts into typed values and collects what does not fit.
//!
//! Never stops at the first problem: a reading that fails records it and yields nothing, and the
//! caller refuses the whole at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::catalog::{Fallback, Setting, find};
use super::error::{Origin, Problem};
use super::kind::{self, Kind};
use super::sources::{Found, Gathered};
use crate::units::Address;

/// Reads settings by key.
pub(super) struct Reader {
    found: BTreeMap<&'static str, Found>,
    home: Option<PathBuf>,
    pub problems: Vec<Problem>,
    pub read: BTreeSet<&'static str>,
}

impl Reader {
    pub fn new(gathered: Gathered, home: Option<PathBuf>) -> Self {
        let Gathered { found, problems, notes: _ } = gathered;
        Self { found, home, problems, read: BTreeSet::new() }
    }

    /// Where the setting was set; `None` where nobody did.
    pub fn origin(&self, key: &str) -> Option<Origin> {
        self.found.get(key).map(|found| found.origin.clone())
    }

    /// A folder under the home folder, where there is one.
    pub fn home(&self, below: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(below))
    }

    /// Whole numbers, sizes included.
    pub fn integer<T: TryFrom<u128>>(&mut self, key: &str) -> Option<T> {
        self.value(key, |kind, text| {
            let (number, min, max) = match kind {
                Kind::Integer { min, max, .. } => (kind::integer(text)?, min, max),
                Kind::Bytes { min, max } => (kind::bytes(text)?, min, max),
                _ => return None,
            };
            if (min..=max).contains(&number) { T::try_from(number).ok() } else { None }
        })
    }

    pub fn seconds(&mut self, key: &str) -> Duration {
        Duration::from_secs(self.integer(key).unwrap_or_default())
    }

    pub fn millis(&mut self, key: &str) -> Duration {
        Duration::from_millis(self.integer(key).unwrap_or_default())
    }

    pub fn fraction(&mut self, key: &str) -> Option<f64> {
        self.value(key, |_, text| kind::fraction(text))
    }

    pub fn switch(&mut self, key: &str) -> Option<bool> {
        self.value(key, |_, text| kind::switch(text))
    }

    pub fn choice(&mut self, key: &str) -> Option<&'static str> {
        self.value(key, |kind, text| match kind {
            Kind::Choice(words) => words.iter().copied().find(|word| *word == text),
            _ => None,
        })
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.value(key, |_, text| Some(text.to_owned()))
    }

    pub fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.value(key, |_, text| Some(SecretString::from(text.to_owned())))
    }

    pub fn url(&mut self, key: &str) -> Option<String> {
        self.value(key, |_, text| kind::url(text))
    }

    pub fn urls(&mut self, key: &str) -> Vec<String> {
        let read = self.value(key, |_, text| {
            let urls: Option<Vec<_>> = kind::list(text).iter().map(|url| kind::url(url)).collect();
            urls.filter(|urls| !urls.is_empty())
        });
        read.unwrap_or_default()
    }

    pub fn origins(&mut self, key: &str) -> Option<Vec<String>> {
        self.value(key, |_, text| {
            let origins = kind::list(text);
            let is_fit = |origin: &String| origin == "*" || kind::url(origin).is_some();
            origins.iter().all(is_fit).then_some(origins)
        })
    }

    pub fn words(&mut self, key: &str) -> Vec<String> {
        self.value(key, |_, text| Some(kind::list(text))).unwrap_or_default()
    }

    pub fn map(&mut self, key: &str) -> BTreeMap<String, String> {
        self.value(key, |_, text| kind::map(text)).unwrap_or_default()
    }

    pub fn address(&mut self, key: &str) -> Option<Address> {
        self.value(key, |_, text| Address::parse(text).filter(|address| *address != Address::ZERO))
    }

    pub fn listen(&mut self, key: &str) -> Option<SocketAddr> {
        self.value(key, |_, text| kind::listen(text))
    }

    /// A path; `~/` becomes the home folder.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        let home = self.home.clone();
        self.value(key, |_, text| match text.strip_prefix("~/") {
            Some(rest) => home.as_ref().map(|home| home.join(rest)),
            None => Some(PathBuf::from(text)),
        })
    }

    /// A path of several in one setting, as [`Self::path`] reads one.
    pub fn expand(&self, text: &str) -> PathBuf {
        let below = text.strip_prefix("~/").zip(self.home.as_ref());
        below.map_or_else(|| PathBuf::from(text), |(rest, home)| home.join(rest))
    }

    /// Records that a setting the node needs is not there, unless a worse problem is known.
    pub fn require(&mut self, key: &'static str) {
        let Some(setting) = find(key) else { return };
        let remedy = match setting.fallback {
            Fallback::Required(remedy) => remedy,
            _ => setting.about,
        };
        if self.found.contains_key(key) {
            return; // Set but unfit: that problem is recorded already.
        }
        let how = match setting.flag {
            Some(flag) => format!("--{flag} or {}", setting.env),
            None => setting.env.to_owned(),
        };
        self.problems.push(Problem::Missing { key, remedy, how });
    }

    /// Settings that are fine one by one and not together.
    pub fn clash(&mut self, key: &'static str, why: impl Into<String>) {
        self.problems.push(Problem::Together { key, why: why.into() });
    }

    fn value<T>(&mut self, key: &str, parse: impl Fn(Kind, &str) -> Option<T>) -> Option<T> {
        let setting = find(key)?;
        self.read.insert(setting.key);
        let (text, origin) = match (self.found.get(setting.key), setting.fallback) {
            (Some(found), _) => (found.text.trim().to_owned(), found.origin.clone()),
            (None, Fallback::Text(text)) => (text.to_owned(), Origin::Default),
            (None, Fallback::Computed(_) | Fallback::None | Fallback::Required(_)) => return None,
        };
        let value = parse(setting.kind, &text);
        let is_known = |problem: &Problem| match problem {
            Problem::Unfit { key, .. } => *key == setting.key,
            _ => false,
        };
        // Some settings are read for more than one purpose.
        if value.is_none() && !self.problems.iter().any(is_known) {
            self.problems.push(unfit(setting, &text, origin));
        }
        value
    }
}

fn unfit(setting: &'static Setting, text: &str, origin: Origin) -> Problem {
    let is_shown = setting.kind.is_shown();
    let found = if is_shown { format!("\"{text}\"") } else { "a text not shown here".to_owned() };
    Problem::Unfit { key: setting.key, found, origin, wanted: setting.kind.wanted() }
}
