//! Layers: imports point down, and a front-end knows no port.
//!
//! A row may import its own row and those below; an adapter never imports another adapter. Tests
//! may import anything. Sees `crate::…`, `super::…` and the command line's `tally::…`; a module
//! that re-exports another's names could hide an import, so re-exports stay inside a module.

use crate::paths::{Path, paths};
use crate::source::{Finding, Source};

/// Rows from the bottom up, see docs/ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Units,
    Rules,
    Ports,
    Services,
    Adapters,
    FrontEnds,
    Node,
}

/// Modules of the first level.
const ROWS: &[(&str, Row)] = &[
    ("units", Row::Units),
    ("telemetry", Row::Units),
    ("billing", Row::Rules),
    ("checkpoint", Row::Rules),
    ("claim", Row::Rules),
    ("proof", Row::Rules),
    ("clock", Row::Ports),
    ("engine", Row::Ports),
    ("chain", Row::Ports),
    ("ledger", Row::Ports),
    ("session", Row::Services),
    ("settlement", Row::Services),
    ("jobs", Row::Services),
    ("api", Row::FrontEnds),
    ("node", Row::Node),
    ("main", Row::Node),
    ("lib", Row::Node),
];

/// Modules inside a port's folder that are adapters.
const ADAPTERS: &[(&str, &[&str])] = &[
    ("engine", &["local", "upstream", "stages", "scripted"]),
    ("chain", &["evm", "sim", "fixed"]),
    ("ledger", &["sqlite", "postgres", "memory"]),
];

/// Modules inside a port's folder that belong to the port.
const PORT_MODULES: &[(&str, &[&str])] = &[("chain", &["registry"]), ("ledger", &["stored"])];

/// Where a module stands: its row and, for an adapter, which one.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    row: Row,
    adapter: Option<String>,
}

fn is_in(table: &[(&str, &[&str])], port: &str, module: &str) -> bool {
    table.iter().any(|(name, modules)| *name == port && modules.contains(&module))
}

/// The place of the module path `words` (without `crate`), or `None` where no row is known.
fn place(words: &[String]) -> Option<Place> {
    let first = words.first()?;
    let row = ROWS.iter().find(|(name, _)| name == first)?.1;
    match words.get(1) {
        Some(second) if is_in(ADAPTERS, first, second) => {
            Some(Place { row: Row::Adapters, adapter: Some(format!("{first}::{second}")) })
        }
        _ => Some(Place { row, adapter: None }),
    }
}

/// The module path of a file in `src/`; `None` for other files.
fn module_of(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    Some(inner.split('/').map(str::to_owned).collect())
}

/// The absolute module path that `path` names when it stands in `module`; `None` for other roots.
///
/// Counts `super` from the file's module. Inside an inline module it is off by one level, towards
/// the file itself, which can only hide an import of the file's own siblings.
fn resolve(path: &Path, module: &[String]) -> Option<Vec<String>> {
    let first = path.words.first()?.as_str();
    let climbs = path.words.iter().take_while(|word| *word == "super").count();
    match first {
        "crate" | "tally" => Some(path.words[1..].to_vec()),
        "super" => {
            let base = module.len().checked_sub(climbs)?;
            Some([&module[..base], &path.words[climbs..]].concat())
        }
        _ => None,
    }
}

/// Every import outside tests, resolved, with the line it stands on.
fn imports_of(source: &Source, module: &[String]) -> Vec<(usize, Vec<String>)> {
    let all = paths(&source.live_code());
    all.iter().filter_map(|path| Some((path.at, resolve(path, module)?))).collect()
}

/// Imports point down; adapters never know each other.
pub fn imports(source: &Source) -> Vec<Finding> {
    let Some(module) = module_of(&source.path) else { return Vec::new() };
    // `known_row` reports a module without a row.
    let Some(here) = place(&module) else { return Vec::new() };
    let mut found = Vec::new();
    for (at, target) in imports_of(source, &module) {
        let Some(there) = place(&target) else { continue };
        let name = target.join("::");
        if there.row > here.row {
            let what = format!("{:?} import {:?}, which is above: {name}", here.row, there.row);
            found.push(source.finding(at, what));
        } else if there.adapter.is_some() && here.adapter.is_some() && there != here {
            found.push(source.finding(at, format!("an adapter imports another: {name}")));
        }
    }
    found
}

/// Front-ends turn bytes into domain types and back; they never import engine, chain or ledger.
pub fn front_ends(source: &Source) -> Vec<Finding> {
    let Some(module) = module_of(&source.path) else { return Vec::new() };
    if module[0] != "api" {
        return Vec::new();
    }
    let is_banned = |target: &[String]| {
        target.first().is_some_and(|first| ["engine", "chain", "ledger"].contains(&first.as_str()))
    };
    let imports = imports_of(source, &module);
    let bad = imports.iter().filter(|(_, target)| is_banned(target));
    bad.map(|(at, target)| {
        source.finding(*at, format!("a front-end imports {}", target.join("::")))
    })
    .collect()
}

/// Every module in `src/` has a row, and every module in a port's folder says which it is.
pub fn known_row(source: &Source) -> Vec<Finding> {
    let Some(module) = module_of(&source.path) else { return Vec::new() };
    let Some(here) = place(&module) else {
        return vec![source.finding(0, format!("module {} has no row in layers.rs", module[0]))];
    };
    let is_port_folder = ADAPTERS.iter().any(|(port, _)| *port == module[0]);
    match module.get(1) {
        Some(second)
            if is_port_folder
                && here.adapter.is_none()
                && second != "tests"
                && !is_in(PORT_MODULES, &module[0], second) =>
        {
            let what = format!("{}::{second} is neither adapter nor port in layers.rs", module[0]);
            vec![source.finding(0, what)]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (path, text, whether the rule refuses it)
    fn check(rule: fn(&Source) -> Vec<Finding>, table: &[(&str, &str, bool)]) {
        for (path, text, refused) in table {
            let found = rule(&Source::new(path, text));
            assert_eq!(!found.is_empty(), *refused, "{path}: {text}: {found:?}");
        }
    }

    #[test]
    fn an_import_that_points_up_is_refused() {
        check(
            imports,
            &[
                ("src/units/a.rs", "use crate::billing::Entry;", true),
                ("src/billing/mod.rs", "use crate::units::JobId;", false),
                ("src/claim/mod.rs", "use crate::billing::Entry;", false),
                ("src/claim/mod.rs", "fn a(b: crate::ledger::LedgerError) {}", true),
                ("src/proof/mod.rs", "use crate::{units::JobId, clock::{Clock}};", true),
                ("src/ledger/mod.rs", "use crate::billing::Entry;\npub mod sqlite;", false),
                ("src/ledger/mod.rs", "pub use sqlite::Sqlite;\nuse self::sqlite::A;", false),
                ("src/chain/registry.rs", "use super::evm::Provider;", true),
                ("src/session/a.rs", "use crate::engine::Engine;", false),
                ("src/session/a.rs", "use crate::engine::local::LocalEngine;", true),
                ("src/session/a.rs", "use super::super::api::rest;", true),
                ("src/settlement/mod.rs", "use crate::node::config::Config;", true),
                ("src/api/rest.rs", "use crate::node::Node;", true),
                ("src/api/rest.rs", "use crate::session::Sessions;", false),
                ("src/node/mod.rs", "use crate::api::rest;\nuse crate::chain::evm::Evm;", false),
                ("src/main.rs", "use tally::node::run;", false),
            ],
        );
    }

    #[test]
    fn an_adapter_never_imports_another() {
        check(
            imports,
            &[
                ("src/chain/evm/mod.rs", "use crate::ledger::sqlite::Store;", true),
                ("src/chain/evm/mod.rs", "use crate::ledger::Ledger;", false),
                ("src/chain/evm/a.rs", "use super::b::C;\nuse crate::chain::evm::d;", false),
                ("src/ledger/memory.rs", "use super::sqlite::Store;", true),
                ("src/ledger/memory.rs", "use super::{Ledger, LedgerError};", false),
            ],
        );
    }

    #[test]
    fn tests_may_import_anything() {
        let text = "#[cfg(test)]\nmod tests {\n    use crate::node::Node;\n}";
        check(
            imports,
            &[("src/units/a.rs", text, false), ("tests/a.rs", "use tally::api;", false)],
        );
    }

    #[test]
    fn a_front_end_that_imports_a_port_is_refused() {
        check(
            front_ends,
            &[
                ("src/api/ws/mod.rs", "use crate::chain::ChainJob;", true),
                ("src/api/ws/mod.rs", "use crate::{session::A, ledger::Ledger};", true),
                ("src/api/ws/mod.rs", "let a = super::super::engine::B;", true),
                ("src/api/ws/mod.rs", "use crate::session::A;\nuse crate::units::JobId;", false),
                ("src/node/mod.rs", "use crate::chain::ChainJob;", false),
            ],
        );
    }

    #[test]
    fn a_module_without_a_row_is_refused() {
        check(
            known_row,
            &[
                ("src/utils.rs", "", true),
                ("src/chain/other.rs", "", true),
                ("src/chain/registry.rs", "", false),
                ("src/chain/evm/abi.rs", "", false),
                ("src/session/tracker.rs", "", false),
            ],
        );
    }
}
