//! Every setting there is: its names, its type and range, its default, its meaning.
//!
//! Never reads a value: that is `read.rs`. The command line, the environment, the file and
//! `docs/config.md` all follow this one list, and tests compare them with it.

use super::kind::Kind;
pub use super::table::SETTINGS;

/// What holds where nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, read as if it had been set.
    Text(&'static str),
    /// Worked out at start, in the described way.
    Computed(&'static str),
    /// Nothing: what it enables is off.
    None,
    /// A paid node cannot start without it; the text is the remedy.
    Required(&'static str),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name, and its key in the TOML file (`section.key`).
    pub key: &'static str,
    /// Its flag without dashes; `None` for secrets, which other users could read off the argv.
    pub flag: Option<&'static str>,
    /// Its environment variable.
    pub env: &'static str,
    /// The host launchers' variable for it (docs/spec/marketplace-api.md section 5).
    pub alias: Option<&'static str>,
    /// Type, range and unit.
    pub kind: Kind,
    /// What holds where nobody sets it.
    pub fallback: Fallback,
    /// What it means.
    pub about: &'static str,
}

/// A launcher's variable that is accepted and means nothing to this node.
pub const UNUSED_ALIAS: &str = "P2P_PORT";

/// Variables of our scripts, tests and build. They share the prefix and are no settings.
pub const FOREIGN_PREFIXES: [&str; 3] = ["TALLY_TEST_", "TALLY_BUILD_", "TALLY_SCRIPT_"];

/// As [`FOREIGN_PREFIXES`], by full name. `TALLY_CONFIG` names the file and is read before it.
pub const FOREIGN_NAMES: [&str; 5] =
    ["TALLY_CONFIG", "TALLY_COMMIT", "TALLY_ROOT", "TALLY_TOOLS", "TALLY_ANVIL"];

/// The setting of this name.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

impl Setting {
    /// Whether it must never be shown nor come from the command line or the settings file.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret)
    }

    /// Its row in `docs/config.md`.
    #[must_use]
    pub fn markdown_row(&self) -> String {
        let flag = self.flag.map_or_else(|| "never".to_owned(), |flag| format!("`--{flag}`"));
        let alias = self.alias.map_or_else(String::new, |alias| format!("`{alias}`"));
        let fallback = match self.fallback {
            Fallback::Text("") => "empty".to_owned(),
            Fallback::Text(text) => format!("`{text}`"),
            Fallback::Computed(how) => how.to_owned(),
            Fallback::None => "none".to_owned(),
            Fallback::Required(_) => "**required**".to_owned(),
        };
        let key = match self.flag {
            Some(_) => format!("`{}`", self.key),
            None => format!("{} (never in the file)", self.key),
        };
        format!(
            "| {key} | {flag} | `{}` | {alias} | {} | {fallback} | {} |",
            self.env,
            self.kind.wanted(),
            self.about
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_and_variable_follow_from_the_key() {
        for setting in SETTINGS.iter() {
            let flag = setting.key.replace(['.', '_'], "-");
            let env = format!("TALLY_{}", setting.key.replace('.', "_").to_uppercase());
            assert_eq!(setting.env, env);
            assert_eq!(setting.flag, (!setting.is_secret()).then_some(flag.as_str()));
        }
    }

    #[test]
    fn every_name_is_used_once() {
        let mut names: Vec<_> = SETTINGS
            .iter()
            .flat_map(|setting| [Some(setting.env), setting.alias, Some(setting.key)])
            .flatten()
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
