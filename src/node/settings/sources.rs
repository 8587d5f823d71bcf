//! Gathers the texts of settings: flags, environment, `.env`, file, in this order of precedence.
//!
//! Never judges a value. Reads two files and nothing else; the environment is handed in, so that
//! tests need not change the process. An empty variable counts as unset, because compose files
//! pass `${NAME:-}` through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::catalog::{FOREIGN_NAMES, FOREIGN_PREFIXES, SETTINGS, Setting, UNUSED_ALIAS, find};
use super::error::{Origin, Problem, nearest};
use super::kind::Kind;

/// Name of the variable that names the settings file.
const CONFIG_VARIABLE: &str = "TALLY_CONFIG";
/// The settings file where none is named, in the working folder.
const CONFIG_DEFAULT: &str = "tally.toml";

/// What a process was started with. Holds secrets: neither shown nor logged.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Texts of flags by the setting's key.
    pub flags: BTreeMap<&'static str, String>,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// The process environment.
    pub env: BTreeMap<String, String>,
    /// The working folder: where `.env` and `tally.toml` are looked for.
    pub dir: PathBuf,
    /// Whether any argument was given.
    pub has_arguments: bool,
}

impl Inputs {
    /// The process's environment and working folder, without flags.
    ///
    /// Variables that are not UTF-8 are left out: no setting's name or value can be one.
    #[must_use]
    pub fn from_process() -> Self {
        let env = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
            .collect();
        let has_arguments = std::env::args_os().len() > 1;
        Self { env, dir: PathBuf::from("."), has_arguments, ..Self::default() }
    }

    /// Whether a host launcher started us: no arguments, and its variables are there.
    #[must_use]
    pub fn is_launcher(&self) -> bool {
        let aliases = SETTINGS.iter().filter_map(|setting| setting.alias);
        // RUST_LOG is in many shells for other programs' sake and says nothing.
        let mut telling = aliases.filter(|alias| *alias != "RUST_LOG").chain([UNUSED_ALIAS]);
        !self.has_arguments && telling.any(|alias| self.env.contains_key(alias))
    }
}

/// A text and where it stands.
#[derive(Clone)]
pub(super) struct Found {
    pub text: String,
    pub origin: Origin,
}

/// What was gathered.
#[derive(Default)]
pub(super) struct Gathered {
    pub found: BTreeMap<&'static str, Found>,
    pub problems: Vec<Problem>,
    pub notes: Vec<String>,
}

/// Reads `.env` and the file, and picks for every setting the text that wins.
pub(super) fn gather(inputs: &Inputs) -> Gathered {
    let mut all = Gathered::default();
    let dot_env = read_dot_env(&inputs.dir.join(".env"), &mut all.problems);
    let file = read_file(inputs, &dot_env, &mut all.problems);
    let environment = Layer { variables: &inputs.env, origin: Origin::Environment };
    let dot_env = Layer { variables: &dot_env, origin: Origin::DotEnv };
    for layer in [&environment, &dot_env] {
        layer.refuse_unknown(&mut all.problems);
    }
    for setting in SETTINGS.iter() {
        let flag = inputs.flags.get(setting.key).zip(setting.flag);
        let flag =
            flag.map(|(text, flag)| Found { text: text.clone(), origin: Origin::Flag(flag) });
        let variables = [
            environment.find(setting, &mut all.problems),
            dot_env.find(setting, &mut all.problems),
        ];
        let winner = flag
            .or_else(|| variables.into_iter().flatten().next())
            .or_else(|| file.get(setting.key).cloned());
        if let Some(winner) = winner {
            all.found.insert(setting.key, winner);
        }
    }
    if environment.get(UNUSED_ALIAS).or(dot_env.get(UNUSED_ALIAS)).is_some() {
        all.notes.push(format!("{UNUSED_ALIAS} is set and unused: this node has no such port"));
    }
    all
}

/// Variables of one kind of place.
struct Layer<'a> {
    variables: &'a BTreeMap<String, String>,
    origin: fn(String) -> Origin,
}

impl Layer<'_> {
    /// The variable's text; empty counts as unset.
    fn get(&self, name: &str) -> Option<&String> {
        self.variables.get(name).filter(|text| !text.trim().is_empty())
    }

    /// The setting under its own name or its launcher alias.
    fn find(&self, setting: &'static Setting, problems: &mut Vec<Problem>) -> Option<Found> {
        let own = self.get(setting.env).map(|text| (setting.env, text));
        let alias = setting.alias.and_then(|alias| Some((alias, self.get(alias)?)));
        if let (Some((first, one)), Some((second, other))) = (own, alias)
            && !same(setting.kind, one, other)
        {
            problems.push(Problem::Contradiction { key: setting.key, first, second });
        }
        let (name, text) = own.or(alias)?;
        Some(Found { text: text.clone(), origin: (self.origin)(name.to_owned()) })
    }

    /// Names with our prefix that are no settings: a slip there would go unnoticed.
    fn refuse_unknown(&self, problems: &mut Vec<Problem>) {
        for name in self.variables.keys().filter(|name| name.starts_with("TALLY_")) {
            let is_foreign = FOREIGN_NAMES.contains(&name.as_str())
                || FOREIGN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if is_foreign || SETTINGS.iter().any(|setting| setting.env == name) {
                continue;
            }
            let origin = (self.origin)(name.clone());
            let suggestion = nearest(name, SETTINGS.iter().map(|setting| setting.env));
            problems.push(Problem::UnknownVariable { origin, suggestion });
        }
    }
}

/// Whether two texts of one setting mean the same. A launcher knows only the port of `listen`.
fn same(kind: Kind, one: &str, other: &str) -> bool {
    let port = |text: &str| super::kind::listen(text).map(|address| address.port());
    let is_same_port = kind == Kind::Listen && port(one).is_some() && port(one) == port(other);
    is_same_port || one.trim() == other.trim()
}

/// The variables of `.env`; none where there is no such file.
fn read_dot_env(path: &Path, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let mut refuse = |error: &dotenvy::Error| {
        // The library's message repeats the line, which may hold a key.
        let why = match error {
            dotenvy::Error::LineParse(_, _) => "a line is not NAME=VALUE".to_owned(),
            dotenvy::Error::Io(error) => error.to_string(),
            _ => "not readable".to_owned(),
        };
        problems.push(Problem::File { path: path.to_owned(), why });
    };
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(error) => {
            if !error.not_found() {
                refuse(&error);
            }
            return BTreeMap::new();
        }
    };
    let mut variables = BTreeMap::new();
    for line in lines {
        match line {
            Ok((name, text)) => drop(variables.insert(name, text)),
            Err(error) => refuse(&error),
        }
    }
    variables
}

/// The settings file's texts by key. A named file must exist, the default one need not.
fn read_file(
    inputs: &Inputs,
    dot_env: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<&'static str, Found> {
    let variable = || inputs.env.get(CONFIG_VARIABLE).or(dot_env.get(CONFIG_VARIABLE));
    let named = inputs.config.clone().or_else(|| variable().map(PathBuf::from));
    let named = named.filter(|path| !path.as_os_str().is_empty());
    let is_named = named.is_some();
    let path = inputs.dir.join(named.unwrap_or_else(|| PathBuf::from(CONFIG_DEFAULT)));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => {
            return BTreeMap::new();
        }
        Err(error) => {
            problems.push(Problem::File { path, why: error.to_string() });
            return BTreeMap::new();
        }
    };
    match text.parse::<toml::Table>() {
        Ok(table) => {
            let mut file = File { path, found: BTreeMap::new(), problems };
            file.walk("", table);
            file.found
        }
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let why = format!("line {line}: {}", error.message());
            problems.push(Problem::File { path, why });
            BTreeMap::new()
        }
    }
}

/// A settings file while it is flattened.
struct File<'a> {
    path: PathBuf,
    found: BTreeMap<&'static str, Found>,
    problems: &'a mut Vec<Problem>,
}

impl File<'_> {
    fn walk(&mut self, section: &str, table: toml::Table) {
        for (name, value) in table {
            let key = if section.is_empty() { name } else { format!("{section}.{name}") };
            match (find(&key), value) {
                (Some(setting), value) => self.take(setting, &value),
                (None, toml::Value::Table(table)) if is_section(&key) => self.walk(&key, table),
                (None, _) => {
                    let suggestion = nearest(&key, SETTINGS.iter().map(|setting| setting.key));
                    let file = self.path.clone();
                    self.problems.push(Problem::UnknownKey { file, key, suggestion });
                }
            }
        }
    }

    fn take(&mut self, setting: &'static Setting, value: &toml::Value) {
        let origin = Origin::File(self.path.clone());
        if setting.is_secret() {
            let why = format!("a secret does not belong into the file; use {}", setting.env);
            self.problems.push(Problem::Together { key: setting.key, why });
        } else if let Some(text) = flat(setting.kind, value) {
            self.found.insert(setting.key, Found { text, origin });
        } else {
            let found = format!("a TOML {}", value.type_str());
            let wanted = setting.kind.wanted();
            self.problems.push(Problem::Unfit { key: setting.key, found, origin, wanted });
        }
    }
}

/// Whether settings lie under this key.
fn is_section(key: &str) -> bool {
    SETTINGS
        .iter()
        .any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// A TOML value as the text of a variable; `None` where the shapes differ.
fn flat(kind: Kind, value: &toml::Value) -> Option<String> {
    let takes_list = matches!(kind, Kind::Urls | Kind::Origins | Kind::Words);
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Array(parts) if takes_list => {
            let parts: Option<Vec<&str>> = parts.iter().map(toml::Value::as_str).collect();
            parts.map(|parts| parts.join(","))
        }
        toml::Value::Table(pairs) if kind == Kind::Map => {
            let pair = |(name, value): (&String, &toml::Value)| {
                let number = value.as_integer().map(|number| number.to_string());
                let text = value.as_str().map(str::to_owned).or(number);
                text.map(|text| format!("{name}={text}"))
            };
            pairs.iter().map(pair).collect::<Option<Vec<_>>>().map(|pairs| pairs.join(","))
        }
        _ => None,
    }
}
