//! `tally model pull` against a stand-in hub that speaks what hf-hub asks: metadata by a one-byte
//! range, then the file by ranges. It can drop a transfer in the middle of a body.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use sha2::{Digest, Sha256};
use tally::node::model_pull::{PullError, PullSpec, plain, pull};
use tally::units::Hash32;

const CHUNK: usize = 64 * 1024;
const ROUTE: &str = "/owner/repo/resolve/main/model.gguf";

/// The hub.
pub struct Hub {
    content: Vec<u8>,
    /// While set, bodies that begin past the second chunk break off in the middle.
    breaks: AtomicBool,
    /// First bytes of the ranges asked for; the metadata's one-byte range is not noted.
    starts: Mutex<Vec<usize>>,
}

impl Hub {
    /// A hub with one file of `length` bytes, and its address.
    pub async fn start(length: usize) -> (Arc<Self>, String) {
        let content = (0..length).map(|index| (index * 31 % 251) as u8).collect();
        let starts = Mutex::default();
        let hub = Arc::new(Self { content, breaks: AtomicBool::new(false), starts });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&hub));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (hub, address)
    }

    pub fn sha256(&self) -> Hash32 {
        Hash32::new(Sha256::digest(&self.content).into())
    }

    fn take_starts(&self) -> Vec<usize> {
        std::mem::take(&mut self.starts.lock().unwrap())
    }
}

async fn answer(State(hub): State<Arc<Hub>>, request: Request) -> Response {
    let Some((start, end)) = range(request.headers()) else {
        return status(StatusCode::RANGE_NOT_SATISFIABLE);
    };
    if request.uri().path() != ROUTE {
        return status(StatusCode::NOT_FOUND);
    }
    let last = end.min(hub.content.len() - 1);
    if end > 0 {
        hub.starts.lock().unwrap().push(start);
    }
    let part = Bytes::copy_from_slice(&hub.content[start..=last]);
    let length = part.len();
    let body = if hub.breaks.load(Ordering::SeqCst) && start >= 2 * CHUNK {
        let half = Ok(part.slice(..length / 2));
        let pieces = [half, Err(std::io::Error::other("the line dropped"))];
        Body::from_stream(futures_util::stream::iter(pieces))
    } else {
        Body::from(part)
    };
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_LENGTH, length)
        .header(header::CONTENT_RANGE, format!("bytes {start}-{last}/{}", hub.content.len()))
        .header(header::ETAG, "\"e7a6\"")
        .header("x-repo-commit", "c0ffee")
        .body(body)
        .unwrap()
}

fn status(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn range(headers: &HeaderMap) -> Option<(usize, usize)> {
    let text = headers.get(header::RANGE)?.to_str().ok()?;
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().ok()?, end.parse().ok()?))
}

fn spec(endpoint: &str, dir: &Path, sha256: Option<Hash32>) -> PullSpec {
    PullSpec {
        repo: "owner/repo".into(),
        file: "model.gguf".into(),
        revision: "main".into(),
        dir: dir.to_owned(),
        sha256,
        endpoint: Some(endpoint.to_owned()),
        chunk_bytes: CHUNK,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn an_interrupted_download_goes_on_where_it_stopped() {
    let (hub, endpoint) = Hub::start(5 * CHUNK + 17).await;
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(&endpoint, dir.path(), Some(hub.sha256()));

    hub.breaks.store(true, Ordering::SeqCst);
    let error = pull(&spec).await.unwrap_err();
    assert!(matches!(error, PullError::Transfer { .. }), "{error}");
    assert!(error.to_string().contains("run the same command again"), "{error}");
    assert!(!dir.path().join("model.gguf").exists());
    // The chunk that broke is the third; the first two are safe.
    assert!(hub.take_starts().starts_with(&[0, CHUNK, 2 * CHUNK]));

    // Another hub with the same file: stragglers of the first try still ask the first one.
    let (hub, endpoint) = Hub::start(5 * CHUNK + 17).await;
    let pulled = pull(&PullSpec { endpoint: Some(endpoint), ..spec }).await.unwrap();
    let resumed = hub.take_starts();
    let expected: Vec<_> = (2..=5).map(|chunk| chunk * CHUNK).collect();
    assert_eq!(resumed, expected, "the first two chunks are not fetched again");
    assert_eq!(std::fs::read(&pulled.path).unwrap(), hub.content);
    assert_eq!(pulled.sha256, hub.sha256());
    assert_eq!(names(dir.path()), ["model.gguf"], "nothing else is left");
}

#[tokio::test]
async fn a_file_with_another_hash_never_gets_its_name() {
    let (hub, endpoint) = Hub::start(CHUNK).await;
    let dir = tempfile::tempdir().unwrap();
    let wanted = Hash32::new([7; 32]);
    let error = pull(&spec(&endpoint, dir.path(), Some(wanted))).await.unwrap_err().to_string();
    for part in [plain(wanted), plain(hub.sha256()), "removed".into()] {
        assert!(error.contains(&part), "{error}");
    }
    assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
}

#[tokio::test]
async fn a_file_that_is_here_is_compared_and_not_fetched() {
    let (hub, endpoint) = Hub::start(CHUNK).await;
    let dir = tempfile::tempdir().unwrap();
    let wanted = spec(&endpoint, dir.path(), Some(hub.sha256()));
    assert!(!pull(&wanted).await.unwrap().was_here);
    hub.take_starts();
    assert!(pull(&wanted).await.unwrap().was_here);
    assert!(hub.take_starts().is_empty());

    let other = spec(&endpoint, dir.path(), Some(Hash32::new([7; 32])));
    let error = pull(&other).await.unwrap_err();
    assert!(matches!(error, PullError::InTheWay { .. }), "{error}");
    assert!(dir.path().join("model.gguf").exists(), "a file that was here is left alone");
}

#[tokio::test]
async fn an_unknown_file_is_an_error_that_names_it() {
    let (_hub, endpoint) = Hub::start(CHUNK).await;
    let dir = tempfile::tempdir().unwrap();
    let absent = PullSpec { file: "absent.gguf".into(), ..spec(&endpoint, dir.path(), None) };
    let error = pull(&absent).await.unwrap_err().to_string();
    assert!(error.contains("absent.gguf from owner/repo") && error.contains("404"), "{error}");
}
