//! The running node.

use super::settings::Settings;

/// The node could not serve, or stopped for a reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(pub String);

/// Serves until a stop signal.
///
/// # Errors
/// [`ServeError`].
pub async fn run(_settings: Settings) -> Result<(), ServeError> {
    Err(ServeError("serving is not part of this build".into()))
}
