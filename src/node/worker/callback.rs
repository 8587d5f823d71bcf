//! The one call by which a pool manager learns that its worker answers.
//!
//! Never more than one that was heard, and never without an end: a few tries with growing pauses,
//! then the worker gives up, because nobody would send it a job. Relies on the server behind the
//! port being up already. Source: docs/spec/worker-protocol.md.

use std::time::Duration;

use reqwest::{Client, Url};
use serde::Serialize;

use super::WorkerError;
use crate::clock::Clock;

/// An address with this in it is the seed's test mode.
const TEST_MODE: &str = "localhost:9999";

/// Tries, and the pause before the second one; each further pause is twice as long.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest wait for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The pool manager does not hear us.
#[derive(Debug, thiserror::Error)]
#[error("pool manager not reached after {TRIES} tries: {why}")]
pub struct CallbackError {
    why: String,
}

/// What the pool manager is told.
#[derive(Debug, Serialize)]
pub(super) struct Ready {
    worker_id: String,
    vram_bytes: u64,
    memory_bytes: u64,
    uri: String,
    memory_architecture: &'static str,
    worker_type: &'static str,
    capabilities: [&'static str; 1],
}

impl Ready {
    pub(super) fn new(worker_id: &str, memory_bytes: u64, port: u16) -> Self {
        Self {
            worker_id: worker_id.to_owned(),
            vram_bytes: 0,
            memory_bytes,
            uri: format!("http://localhost:{port}"),
            memory_architecture: "cpu",
            worker_type: "cpu",
            capabilities: ["text-gen"],
        }
    }
}

/// Where to call; `None` in test mode.
pub(super) struct Callback(Option<(Client, Url)>);

impl Callback {
    /// The call of this worker at this pool manager. No network.
    ///
    /// # Errors
    /// [`WorkerError::Argument`] for what is no http or https address.
    pub(super) fn new(base: &str, worker_id: &str) -> Result<Self, WorkerError> {
        let url = address(base, worker_id)
            .map_err(|why| WorkerError::Argument { name: "--callback-url", why })?;
        if base.contains(TEST_MODE) {
            return Ok(Self(None));
        }
        let mut builder = Client::builder()
            .timeout(ANSWER_MAX)
            // A redirected POST arrives as a GET, elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            // A worker's pool manager is near it, and proxies are for what is not.
            .no_proxy();
        if url.scheme() == "http" {
            // No TLS will be spoken: a container without any root certificates is enough.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| WorkerError::Argument {
            name: "--callback-url",
            why: format!("HTTP client: {error}"),
        })?;
        Ok(Self(Some((client, url))))
    }

    /// Calls until the pool manager says that it heard.
    ///
    /// # Errors
    /// [`CallbackError`] after the last try.
    pub(super) async fn announce(
        &self,
        ready: &Ready,
        clock: &dyn Clock,
    ) -> Result<(), CallbackError> {
        let Some((client, url)) = &self.0 else {
            tracing::info!("Test mode: skipping pool manager callback");
            return Ok(());
        };
        let mut pause = FIRST_PAUSE;
        let mut tried = 1;
        loop {
            let why = match call(client, url, ready).await {
                Ok(()) => {
                    tracing::info!("Callback sent to pool-managerd");
                    return Ok(());
                }
                Err(why) => why,
            };
            if tried == TRIES {
                return Err(CallbackError { why });
            }
            tracing::warn!(tried, why, "Callback not heard, trying again");
            clock.sleep(pause).await;
            pause = pause.saturating_mul(2);
            tried += 1;
        }
    }
}

async fn call(client: &Client, url: &Url, ready: &Ready) -> Result<(), String> {
    let answer = client.post(url.clone()).json(ready).send().await;
    let answer = answer.map_err(|error| words(&error.without_url()))?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
}

/// An error with what lies behind it: the outermost words only say that sending failed.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

fn address(base: &str, worker_id: &str) -> Result<Url, String> {
    let mut url = Url::parse(base).map_err(|error| format!("{error}: wanted http://HOST:PORT"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("scheme {} is neither http nor https", url.scheme()));
    }
    url.path_segments_mut()
        .map_err(|()| "wanted http://HOST:PORT".to_owned())?
        .pop_if_empty()
        .extend(["workers", worker_id, "ready"]);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_goes_to_the_workers_own_path() {
        let table = [
            ("http://pool:9200", "w-1", "http://pool:9200/workers/w-1/ready"),
            ("http://pool:9200/", "w-1", "http://pool:9200/workers/w-1/ready"),
            ("https://pool/api/", "a b/c", "https://pool/api/workers/a%20b%2Fc/ready"),
        ];
        for (base, id, expected) in table {
            assert_eq!(address(base, id).unwrap().as_str(), expected);
        }
        for base in ["pool:9200", "ftp://pool", "", "http://"] {
            assert!(address(base, "w").is_err(), "{base}");
        }
    }

    #[test]
    fn the_message_is_the_protocols() {
        let ready = Ready::new("w-1", 7, 8080);
        let expected = concat!(
            r#"{"worker_id":"w-1","vram_bytes":0,"memory_bytes":7,"uri":"http://localhost:8080","#,
            r#""memory_architecture":"cpu","worker_type":"cpu","capabilities":["text-gen"]}"#
        );
        assert_eq!(serde_json::to_string(&ready).unwrap(), expected);
    }
}
