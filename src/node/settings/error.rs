//! What is wrong with a node's settings, in words an operator can act on.
//!
//! Never repeats a secret, nor an endpoint's address (it may carry an access key). All problems
//! are reported at once.

use std::path::PathBuf;

/// Where a text came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A flag, without dashes.
    Flag(&'static str),
    /// A variable of the process.
    Environment(String),
    /// A variable in `.env`.
    DotEnv(String),
    /// The settings file.
    File(PathBuf),
    /// Nobody set it.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::DotEnv(name) => write!(f, "{name} in .env"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => write!(f, "default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A key or section of the file that means nothing.
    #[error("{}: unknown key `{key}`{}", file.display(), hint(.suggestion))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// The key with its section.
        key: String,
        /// The setting that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// A variable with our prefix that means nothing.
    #[error("{origin} is no setting{}", hint(.suggestion))]
    UnknownVariable {
        /// The variable and where it stands.
        origin: Origin,
        /// The variable that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// A text that is not what the setting takes.
    #[error("{key}: found {found} ({origin}), wanted {wanted}")]
    Unfit {
        /// The setting.
        key: &'static str,
        /// The text, or a stand-in where it must not be shown.
        found: String,
        /// Where it stands.
        origin: Origin,
        /// What the setting takes.
        wanted: String,
    },
    /// Two names of one setting that disagree.
    #[error("{key}: {first} and {second} are both set and differ; set one of them")]
    Contradiction {
        /// The setting.
        key: &'static str,
        /// One name.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A setting that a paid node cannot do without.
    #[error("{key} is missing: {remedy} ({how})")]
    Missing {
        /// The setting.
        key: &'static str,
        /// What to provide.
        remedy: &'static str,
        /// By which flag or variable.
        how: String,
    },
    /// `free` beside settings of a chain.
    #[error(
        "--free serves without pay, yet the chain is set: {}; drop one or the other",
        .names.join(", ")
    )]
    FreeWithChain {
        /// The chain settings and where each stands.
        names: Vec<String>,
    },
    /// Settings that do not go together.
    #[error("{key}: {why}")]
    Together {
        /// The setting to change.
        key: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// A file that cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why not; never its content.
        why: String,
    },
}

/// Everything that is wrong; at least one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError(pub Vec<Problem>);

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the settings do not hold:")?;
        for problem in &self.0 {
            write!(f, "\n  - {problem}")?;
        }
        let lacks_chain = |problem: &Problem| match problem {
            Problem::Missing { key, .. } => key.starts_with("chain.") || key.starts_with("host."),
            _ => false,
        };
        if self.0.iter().any(lacks_chain) {
            write!(
                f,
                "\nA node without these earns nothing; --free serves without pay on purpose."
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

/// `; did you mean …?`, or nothing.
fn hint(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// The candidate nearest to `name`, where few enough letters differ to call it a slip.
#[must_use]
pub(super) fn nearest(
    name: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let limit = name.len() / 3;
    candidates
        .map(|candidate| (distance(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, drop or change to turn `left` into `right` (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, to) in right.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let names = || ["settlement.claim_at", "chain.id", "listen"].into_iter();
        assert_eq!(nearest("settlement.claimat", names()), Some("settlement.claim_at"));
        assert_eq!(nearest("lisen", names()), Some("listen"));
        assert_eq!(nearest("database.url", names()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
