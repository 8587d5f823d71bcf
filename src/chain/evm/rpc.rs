//! One JSON-RPC request and its answer, over HTTP.
//!
//! Never retries, and never shows more of an endpoint's URL than its host: paths and user parts
//! carry API keys. It is our own, and not the chain library's transport, for three reasons: that
//! one puts the whole URL into its spans and errors, hides a 5xx behind an error body, and reads
//! answers without a bound. Relies on reqwest with rustls on ring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy::primitives::Bytes;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::chain::ChainError;

/// Largest answer that is read. A log query of a thousand blocks stays under 1 MiB; sixteen leave
/// room, and an endpoint gone mad cannot fill the memory.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Longest part of an endpoint's own words that goes into an error.
const WORDS_MAX: usize = 300;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RpcFailure {
    /// No answer, or one that says nothing: the request may or may not have taken effect.
    Silent(String),
    /// The endpoint understood and refused.
    Refused(Refusal),
    /// It answered, with something of another shape than asked for.
    Nonsense(String),
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its code.
    pub code: i64,
    /// Its words.
    pub message: String,
    /// What a revert returned, where the endpoint passes it on.
    pub data: Option<Bytes>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", shortened(&self.message), self.code)
    }
}

impl From<RpcFailure> for ChainError {
    /// For reads. A refused read says nothing about the contract (rate limits, lagging backends),
    /// so it counts as no answer.
    fn from(failure: RpcFailure) -> Self {
        match failure {
            RpcFailure::Silent(words) => Self::Unreachable(words),
            RpcFailure::Refused(refusal) => Self::Unreachable(refusal.to_string()),
            RpcFailure::Nonsense(words) => Self::Unexpected(words),
        }
    }
}

/// A JSON-RPC endpoint.
pub(super) struct Rpc {
    http: reqwest::Client,
    url: Url,
    shown: String,
    id_next: AtomicU64,
}

impl Rpc {
    /// An endpoint at `url`, http or https. No network.
    ///
    /// # Errors
    /// Words for the operator, without the URL's secrets.
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, String> {
        // Fails where another part of the process installed it first; that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(url).map_err(|error| format!("RPC URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("RPC URL: scheme {} is neither http nor https", url.scheme()));
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        let shown = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        };
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            // A redirected POST arrives as a GET, elsewhere.
            .redirect(reqwest::redirect::Policy::none());
        if matches!(host.as_str(), "localhost" | "127.0.0.1" | "[::1]") {
            builder = builder.no_proxy();
        }
        if url.scheme() == "http" {
            // No TLS will be spoken: a container without any root certificates is enough.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(|error| format!("HTTP client: {error}"))?;
        Ok(Self { http, url, shown, id_next: AtomicU64::new(1) })
    }

    /// Host and port, which is all that may be shown.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Calls `method`. An answer `null` is read as `T` reads it (`Option`: `None`).
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, RpcFailure> {
        let id = self.id_next.fetch_add(1, Ordering::Relaxed);
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let sent = self.http.post(self.url.clone()).json(&request).send().await;
        let answer = sent.map_err(|error| self.silent(method, &words(error)))?;
        let status = answer.status();
        let body = self.body(method, answer).await?;
        self.result(method, status, &body)
    }

    async fn body(
        &self,
        method: &str,
        mut answer: reqwest::Response,
    ) -> Result<Vec<u8>, RpcFailure> {
        let mut body = Vec::new();
        loop {
            let chunk = answer.chunk().await;
            let chunk = chunk.map_err(|error| self.silent(method, &words(error)))?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len().saturating_add(chunk.len()) > ANSWER_BYTES_MAX {
                return Err(self.silent(method, "an answer over 16 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
    }

    fn result<T: DeserializeOwned>(
        &self,
        method: &str,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, RpcFailure> {
        // A gateway that failed or throttles speaks for itself, whatever its body says.
        let gateway = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        let answer = serde_json::from_slice::<Answer>(body);
        match answer {
            _ if gateway => Err(self.silent(method, &format!("HTTP {status}"))),
            Ok(Answer { error: Some(error), .. }) => Err(RpcFailure::Refused(error.into())),
            _ if !status.is_success() => Err(self.silent(method, &format!("HTTP {status}"))),
            Ok(Answer { result: Some(value), .. }) => {
                serde_json::from_value(value).map_err(|error| {
                    RpcFailure::Nonsense(format!("{} to {method}: {error}", self.shown))
                })
            }
            Ok(_) | Err(_) => Err(self.silent(method, "an answer that is not JSON-RPC")),
        }
    }

    fn silent(&self, method: &str, what: &str) -> RpcFailure {
        RpcFailure::Silent(format!("{} to {method}: {what}", self.shown))
    }
}

/// An HTTP fault in words, its causes included, without the URL.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}

/// The endpoint's words, cut to a bound at a character's edge.
pub(super) fn shortened(words: &str) -> String {
    words.chars().take(WORDS_MAX).collect()
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "present")]
    result: Option<Value>,
    error: Option<WireError>,
}

/// Tells a result `null` ("no such transaction") from no result at all.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
    data: Option<Value>,
}

impl From<WireError> for Refusal {
    fn from(wire: WireError) -> Self {
        // Servers disagree: bare hex, "Reverted 0x…", or an object with `data` inside.
        let text = match &wire.data {
            Some(Value::String(text)) => Some(text.as_str()),
            Some(Value::Object(map)) => map.get("data").and_then(Value::as_str),
            _ => None,
        };
        let digits = text.and_then(|text| text.find("0x").and_then(|at| text.get(at..)));
        let data = digits.and_then(|digits| digits.trim().parse().ok());
        Self { code: wire.code, message: wire.message, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc() -> Rpc {
        Rpc::new("http://user:secret@node.example:8545/v3/APIKEY", Duration::from_secs(1)).unwrap()
    }

    fn read(status: u16, body: &str) -> Result<Value, RpcFailure> {
        rpc().result("eth_x", StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn a_gateway_error_is_silence_even_with_an_error_body() {
        let body = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"nonce too low"}}"#;
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(matches!(read(status, body), Err(RpcFailure::Silent(_))), "{status}");
        }
        for status in [200, 400] {
            assert!(matches!(read(status, body), Err(RpcFailure::Refused(_))), "{status}");
        }
    }

    #[test]
    fn what_is_not_json_rpc_is_silence() {
        for (status, body) in [(200, "<html>"), (200, "{}"), (404, "{}"), (302, "")] {
            assert!(matches!(read(status, body), Err(RpcFailure::Silent(_))), "{status} {body}");
        }
    }

    #[test]
    fn revert_data_is_found_in_every_servers_spelling() {
        for data in [r#""0x08c379a0""#, r#""Reverted 0x08c379a0""#, r#"{"data":"0x08c379a0"}"#] {
            let body = format!(r#"{{"error":{{"code":3,"message":"m","data":{data}}}}}"#);
            let Err(RpcFailure::Refused(refusal)) = read(200, &body) else { panic!("{body}") };
            assert_eq!(refusal.data.unwrap().to_vec(), [0x08, 0xc3, 0x79, 0xa0]);
        }
    }

    #[test]
    fn an_errors_words_never_hold_the_url_secrets() {
        let failure = format!("{:?}", read(500, ""));
        assert!(failure.contains("node.example:8545"), "{failure}");
        assert!(!failure.contains("secret") && !failure.contains("APIKEY"), "{failure}");
        let refused = Rpc::new("ftp://k:APIKEY@x/", Duration::from_secs(1)).err().unwrap();
        assert!(!refused.contains("APIKEY"), "{refused}");
    }
}
