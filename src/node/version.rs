//! What runs: version, commit, build date.
//!
//! Never asks git or the clock: whoever builds a release sets `TALLY_COMMIT` and
//! `TALLY_BUILD_DATE` for the compiler, so that a build without them stays reproducible.

use std::sync::LazyLock;

/// The package's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit it was built from.
pub const COMMIT: &str = match option_env!("TALLY_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The day it was built.
pub const BUILD_DATE: &str = match option_env!("TALLY_BUILD_DATE") {
    Some(date) => date,
    None => "unknown",
};

/// What `tally --version` says behind the program's name; every word of it stands in [`line()`]
/// too, which is how a deployment recognises the binary that it brought.
#[must_use]
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| format!("{VERSION} commit {COMMIT} built {BUILD_DATE}"));
    &TEXT
}

/// The line that the log begins with and that deployments look for.
#[must_use]
pub fn line() -> String {
    format!("VERSION {}", text())
}
