//! What surrounds every HTTP request: its place in the metered connection, its id, its count in
//! the metrics, the net under a panic, and the word that its connection ends with it.
//!
//! Never looks into a body.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::FutureExt;
use http_body::{Body as _, Frame, SizeHint};
use metrics::counter;
use rand::RngExt;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::delivery::{ConnectionOutbox, Slot};
use super::error::Fault;
use super::prompt;

/// The id a request is answered under: the client's own, else a random one.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub String);

impl RequestId {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        let own = given.filter(|id| prompt::is_request_id(id)).map(str::to_owned);
        Self(own.unwrap_or_else(|| format!("req-{:016x}", rand::rng().random::<u64>())))
    }
}

/// A fault in a protocol's own words, for the request of this id.
pub(super) type Words = fn(Fault, &str) -> Response;

/// Runs a request; what goes wrong around its handler is told in `words`.
pub(super) async fn enter(words: Words, request: Request, next: Next) -> Response {
    let outbox = request.extensions().get::<ConnectInfo<ConnectionOutbox>>();
    let is_bodiless = request.method() == Method::HEAD;
    let slot = outbox.map_or_else(Slot::unwatched, |outbox| outbox.0.0.open(is_bodiless));
    let id = RequestId::of(request.headers());
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = path.unwrap_or_else(|| "unmatched".to_owned());
    // Written bytes are followed as HTTP/1.1; what cannot be metered is not served.
    let read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let watched = |body| Body::new(Watched { body, is_read: Arc::clone(&read) });
    let mut request = request.map(watched);
    let mut response = if request.version() > Version::HTTP_11 {
        words(Fault::invalid_request("this node speaks HTTP/1.1"), &id.0)
    } else {
        request.extensions_mut().insert(slot);
        request.extensions_mut().insert(id.clone());
        AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(route, request_id = id.0, "handler panicked");
            words(Fault::internal(), &id.0)
        })
    };
    // hyper closes the connection then; a client that is not told would send its next request.
    if !read.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16().to_string();
    counter!("http_responses_total", "route" => route, "status" => status).increment(1);
    response
}

/// A request's body that notes when it was read to its end.
struct Watched {
    body: Body,
    is_read: Arc<AtomicBool>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Web pages that may call the node: those of the listed origins, or all for `*`.
pub(super) fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // Mirrored, because `*` does not cover `Authorization` (Fetch standard, CORS protocol).
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, header::HeaderName::from_static("x-request-id")])
}

/// Whether a WebSocket may be opened: browsers do not ask before they do, so the list is checked
/// here. Clients that are no browsers send no origin; pages served by this node are its own.
pub(super) fn is_origin_allowed(origins: &[String], headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    (authority.is_some() && authority == host)
        || origins.iter().any(|listed| listed == "*" || listed == origin)
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_page_of_an_unlisted_origin_opens_no_socket() {
        let list = vec!["https://app.example".to_owned()];
        let allowed = |pairs: &[(&'static str, &str)]| is_origin_allowed(&list, &headers(pairs));
        assert!(allowed(&[]), "not a browser");
        assert!(allowed(&[("origin", "https://app.example")]));
        assert!(allowed(&[("origin", "http://node:8080"), ("host", "node:8080")]));
        assert!(!allowed(&[("origin", "https://evil.example"), ("host", "node:8080")]));
        assert!(!allowed(&[("origin", "null")]));
        let any = vec!["*".to_owned()];
        assert!(is_origin_allowed(&any, &headers(&[("origin", "null")])));
    }

    #[test]
    fn a_bearer_token_is_read_whatever_the_schemes_case() {
        assert_eq!(bearer(&headers(&[("authorization", "bearer abc")])), Some("abc"));
        assert_eq!(bearer(&headers(&[("authorization", "Basic abc")])), None);
        assert_eq!(bearer(&headers(&[])), None);
    }
}
