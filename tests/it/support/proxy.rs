//! A bad network between the node and a chain: passes requests on and mishandles the answers.
//!
//! One request per connection. What it does to a request is decided when the request arrives.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::storm::Storm;

/// What happens to the answer of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It arrives.
    None,
    /// It was made, and the connection is closed instead of passing it on.
    Closed,
    /// It was made, and nothing ever comes: the client has to give up.
    Held,
    /// It was made, and a gateway says 502 in its place.
    BadGateway,
}

/// A running proxy. Its threads end with the test process.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    fault: Arc<Mutex<(String, Fault)>>,
    storm: Arc<OnceLock<Arc<Storm>>>,
    held: Arc<AtomicUsize>,
}

impl Proxy {
    /// In front of `127.0.0.1:port`, faultless.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fault = Arc::new(Mutex::new((String::new(), Fault::None)));
        let shared = fault.clone();
        let storm = Arc::new(OnceLock::<Arc<Storm>>::new());
        let weather = storm.clone();
        let held = Arc::new(AtomicUsize::new(0));
        let holding = held.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, storm) = (shared.clone(), weather.get().cloned());
                let holding = holding.clone();
                std::thread::spawn(move || match storm {
                    None => serve(client, port, (&shared, &holding)),
                    Some(storm) => serve_in(&storm, client, port),
                });
            }
        });
        Self { url, fault, storm, held }
    }

    /// Requests that were held so far.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// From now on, every request meets this weather. Once only.
    pub fn brew(&self, storm: Arc<Storm>) {
        assert!(self.storm.set(storm).is_ok(), "it storms already");
    }

    /// From now on, requests that contain `word` suffer `fault`.
    pub fn set(&self, word: &str, fault: Fault) {
        *self.fault.lock().unwrap() = (word.into(), fault);
    }
}

fn serve(
    mut client: TcpStream,
    port: u16,
    (shared, held): (&Mutex<(String, Fault)>, &AtomicUsize),
) -> Option<()> {
    let (head, body) = request(&mut client)?;
    let fault = {
        let guard = shared.lock().unwrap();
        if body.contains(&guard.0) { guard.1 } else { Fault::None }
    };
    let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let first = head.split_once("\r\n")?.1;
    let once = format!("POST / HTTP/1.1\r\nconnection: close\r\n{first}{body}");
    server.write_all(once.as_bytes()).ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok()?;
    match fault {
        Fault::None => client.write_all(&answer).ok()?,
        Fault::BadGateway => {
            client.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").ok()?;
        }
        Fault::Closed => {}
        // Until the client hangs up.
        Fault::Held => {
            held.fetch_add(1, Ordering::Release);
            drop(client.read(&mut [0]));
        }
    }
    client.shutdown(Shutdown::Both).ok()
}

fn serve_in(storm: &Storm, mut client: TcpStream, port: u16) -> Option<()> {
    let (_, body) = request(&mut client)?;
    storm.serve(client, port, &body)
}

/// Head (with its blank line) and body of one request.
fn request(client: &mut TcpStream) -> Option<(String, String)> {
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = client.read(&mut chunk).ok().filter(|count| *count > 0)?;
        read.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8(read.clone()).ok()?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let lower = head.to_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"))?;
        if body.len() >= length.trim().parse().ok()? {
            return Some((format!("{head}\r\n\r\n"), body.into()));
        }
    }
}
