//! The log: to stderr, as text or JSON lines.
//!
//! Never on stdout, which belongs to reports and to the launcher's line; a worker's log is its
//! report and goes there, as pool managers expect it. Never filters secrets:
//! types that hold one do not show it. Relies on being installed once.

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
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
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
    let filter = EnvFilter::builder().parse(own.as_deref().unwrap_or(WORKER_FILTER))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    log.json().flatten_event(true).try_init().map_err(|_| LogError::Installed)
}

/// Starts the log with its `VERSION` line.
///
/// # Errors
/// [`LogError`].
pub fn install(settings: &LogSettings) -> Result<(), LogError> {
    // The version is said whatever the filter: deployments verify a new binary by that line.
    let filter = format!("{},{VERSION_TARGET}=info", settings.filter);
    let filter = EnvFilter::builder().parse(filter)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LogError::Installed)?;
    tracing::info!(target: VERSION_TARGET, "{}", version::line());
    Ok(())
}
