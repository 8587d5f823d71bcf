//! The log: to stderr, as text or JSON lines.
//!
//! Never on stdout, which belongs to reports and to the launcher's line; a worker's log is its
//! report and goes there, as pool managers expect it. Never waits for whoever reads it: lines pass
//! to a thread of their own, and those for which there is no room are lost and counted. Never
//! filters secrets: types that hold one do not show it. Relies on being installed once, and on
//! [`flush`] before the process ends.

mod lines;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::settings::{LogFormat, LogSettings};
use super::version;

/// Target of the `VERSION` line.
const VERSION_TARGET: &str = "tally_version";

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter's text means nothing.
    #[error("{name}: {why}")]
    Filter {
        /// The setting or variable.
        name: &'static str,
        /// What is wrong.
        why: tracing_subscriber::filter::ParseError,
    },
    /// The system has no thread for it.
    #[error("the log cannot be written: {0}")]
    Thread(#[from] std::io::Error),
    /// Something else logs already.
    #[error("the log is set up already")]
    Installed,
}

/// What a worker logs, unless its environment says otherwise. How models word conversations is
/// nothing to a worker, which renders none.
const WORKER_FILTER: &str = "info,tally::node::models=off";
/// The variable that says otherwise.
const FILTER_VARIABLE: &str = "TALLY_LOG_FILTER";

/// Starts a worker's log: JSON lines on stdout.
///
/// # Errors
/// [`LogError`].
pub fn install_worker() -> Result<(), LogError> {
    let own = std::env::var(FILTER_VARIABLE).ok().filter(|filter| !filter.is_empty());
    let filter = parse(FILTER_VARIABLE, own.as_deref().unwrap_or(WORKER_FILTER))?;
    let lines = lines::start(Box::new(std::io::stdout()))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.with_writer(lines).json().flatten_event(true).try_init().map_err(|_| LogError::Installed)
}

/// Starts the log with its `VERSION` line.
///
/// # Errors
/// [`LogError`].
pub fn install(settings: &LogSettings) -> Result<(), LogError> {
    // The version is said whatever the filter: deployments verify a new binary by that line.
    let filter = format!("{},{VERSION_TARGET}=info", settings.filter);
    let filter = parse("log.filter", &filter)?;
    let lines = lines::start(Box::new(std::io::stderr()))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    let started = match settings.format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LogError::Installed)?;
    tracing::info!(target: VERSION_TARGET, "{}", version::line());
    Ok(())
}

fn parse(name: &'static str, filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(filter).map_err(|why| LogError::Filter { name, why })
}

/// Waits until the log is written, at most a second: nobody may be reading it. Blocks.
pub fn flush() {
    lines::flush();
}
