//! One JSON-RPC endpoint: requests over HTTP, their answers, and what they tell of its health.
//!
//! Never retries, and never shows more of an endpoint's URL than its host: paths and user parts
//! carry API keys. It is our own, and not the chain library's transport, for three reasons: that
//! one puts the whole URL into its spans and errors, hides a 5xx behind an error body, and reads
//! answers without a bound. Relies on reqwest with rustls on ring.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Bytes;
use reqwest::header::RETRY_AFTER;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::health::Health;
use crate::chain::ChainError;
use crate::clock::Clock;

/// Largest answer that is read. A log query of a thousand blocks stays under 1 MiB; sixteen leave
/// room, and an endpoint gone mad cannot fill the memory.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Longest part of an endpoint's own words that goes into an error.
const WORDS_MAX: usize = 300;

/// JSON-RPC code of "limit exceeded" (EIP-1474).
const CODE_LIMIT: i64 = -32005;

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

impl Refusal {
    /// Whether the endpoint wants fewer requests, whatever they ask.
    pub(super) fn is_throttle(&self) -> bool {
        let lower = self.message.to_lowercase();
        let words = ["rate limit", "rate-limit", "too many requests", "request limit", "throttl"];
        // Some use the same code for a log query that is too large.
        let about_logs = ["block", "range", "result", "log", "size"];
        words.iter().any(|words| lower.contains(words))
            || (self.code == CODE_LIMIT && !about_logs.iter().any(|word| lower.contains(word)))
    }
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
    clock: Arc<dyn Clock>,
    health: Mutex<Health>,
    /// Blocks that one log query may span, as far as it was found out; 0: not yet.
    log_span: AtomicU64,
}

impl Rpc {
    /// An endpoint at `url`, http or https. No network.
    ///
    /// # Errors
    /// Words for the operator, without the URL's secrets.
    pub(super) fn new(url: &str, timeout: Duration, clock: Arc<dyn Clock>) -> Result<Self, String> {
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
        Ok(Self {
            http,
            url,
            shown,
            id_next: AtomicU64::new(1),
            clock,
            health: Mutex::default(),
            log_span: AtomicU64::new(0),
        })
    }

    /// The same, shown as the `nth` endpoint of its host.
    pub(super) fn numbered(mut self, nth: usize) -> Self {
        self.shown = format!("{} ({nth})", self.shown);
        self
    }

    /// Host and port, which is all that may be shown.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether both are one address, however it is shown.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.url == other.url
    }

    /// Whether both are of one host and port, so that they would be shown alike.
    pub(super) fn is_neighbour(&self, other: &Self) -> bool {
        let of = |rpc: &Self| (rpc.url.host_str().map(str::to_owned), rpc.url.port());
        of(self) == of(other)
    }

    /// What is known of it. Never held while waiting.
    pub(super) fn health(&self) -> MutexGuard<'_, Health> {
        // Health is plain numbers: nothing half-changed can be seen.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks that one log query may span; `None` while every span was taken.
    pub(super) fn log_span(&self) -> Option<u64> {
        Some(self.log_span.load(Ordering::Relaxed)).filter(|span| *span > 0)
    }

    /// A query over `span` blocks was answered after a larger one was refused.
    pub(super) fn learn_log_span(&self, span: u64) {
        self.log_span.store(span.max(1), Ordering::Relaxed);
    }

    /// Calls `method`, and notes how the endpoint took it. An answer `null` is read as `T` reads it
    /// (`Option`: `None`).
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, RpcFailure> {
        let asked = self.clock.now();
        let sent = self.exchange(method, params).await;
        let now = self.clock.now();
        let (outcome, wanted) = match sent {
            Ok(Exchanged { status, wanted, body }) => {
                let is_throttled = status == StatusCode::TOO_MANY_REQUESTS;
                (self.result(method, status, &body), is_throttled.then_some(wanted))
            }
            Err(failure) => (Err(failure), None),
        };
        let mut health = self.health();
        match (&outcome, wanted) {
            (Err(RpcFailure::Silent(words)), Some(wanted)) => health.throttled(now, wanted, words),
            (Err(RpcFailure::Silent(words)), None) => health.silent(now, words),
            (Err(RpcFailure::Refused(refusal)), _) if refusal.is_throttle() => {
                health.throttled(now, None, &format!("{}: {refusal}", self.shown));
            }
            (Ok(_) | Err(RpcFailure::Refused(_) | RpcFailure::Nonsense(_)), _) => {
                health.answered(now.saturating_sub(asked));
            }
        }
        drop(health);
        outcome
    }

    async fn exchange(&self, method: &str, params: Value) -> Result<Exchanged, RpcFailure> {
        let id = self.id_next.fetch_add(1, Ordering::Relaxed);
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let sent = self.http.post(self.url.clone()).json(&request).send().await;
        let answer = sent.map_err(|error| self.silent(method, &words(error)))?;
        let status = answer.status();
        let wanted = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wanted = wanted.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let body = self.body(method, answer).await?;
        Ok(Exchanged { status, wanted, body })
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

/// What came back over HTTP.
struct Exchanged {
    status: StatusCode,
    /// The pause in `Retry-After`, where it is told in seconds.
    wanted: Option<Duration>,
    body: Vec<u8>,
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
    use crate::clock::SystemClock;

    fn at(url: &str) -> Result<Rpc, String> {
        Rpc::new(url, Duration::from_secs(1), SystemClock::shared())
    }

    fn rpc() -> Rpc {
        at("http://user:secret@node.example:8545/v3/APIKEY").unwrap()
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
        let refused = at("ftp://k:APIKEY@x/").err().unwrap();
        assert!(!refused.contains("APIKEY"), "{refused}");
    }

    #[test]
    fn a_wish_for_fewer_requests_is_no_wish_for_a_smaller_range() {
        let says = |code: i64, message: &str| {
            Refusal { code, message: message.into(), data: None }.is_throttle()
        };
        assert!(says(-32005, "daily request count exceeded, request rate limited"));
        assert!(says(-32000, "Too Many Requests"));
        assert!(says(-32005, "limit exceeded"));
        assert!(says(429, "Your app has exceeded its rate limit"));
        assert!(!says(-32005, "query returned more than 10000 results"));
        assert!(!says(-32005, "block range is too large"));
        assert!(!says(-32005, "Log response size exceeded"));
        assert!(!says(3, "execution reverted"));
    }
}
