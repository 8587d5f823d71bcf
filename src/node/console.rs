//! What commands print on stdout: results and reports, nothing else.
//!
//! Never logs and never prints a secret. The only place that writes to stdout, so that scripts can
//! rely on what stands there. A closed pipe ends the output in silence, as for any command.

use std::io::Write;

/// Prints one line.
pub fn line(text: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // A reader that went away (`tally status | head`) is no failure of the command.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Says on stderr how far a command has come: scripts read stdout.
pub fn progress(text: impl std::fmt::Display) {
    let mut err = std::io::stderr().lock();
    // Nobody listening is fine.
    let _ = writeln!(err, "tally: {text}");
}

/// The line that host launchers wait for (docs/spec/marketplace-api.md section 5).
pub const LAUNCHER_LINE: &str = "Fabstir LLM Node is running";
