//! A bad network between the node and a chain: passes requests on and mishandles them.
//!
//! One request per connection. What it does to a request is decided when the request arrives: a
//! [`Fault`] spoils the connection, a [`Lie`] changes what is asked and what is told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};

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
    /// It was made, and 500 comes in its place.
    ServerError,
    /// It was not made: a gateway says 429, try again in half a minute.
    Throttled,
    /// It was not made, and the connection is closed.
    Lost,
}

impl Fault {
    /// Whether the chain sees the request all the same.
    fn is_forwarded(self) -> bool {
        !matches!(self, Self::Throttled | Self::Lost)
    }
}

/// Changes a request on its way to the chain.
type Ask = dyn Fn(&mut Value) + Send + Sync;

/// Changes the answer to a request, which is given as it came.
type Tell = dyn Fn(&Value, &mut Value) + Send + Sync;

/// How an endpoint lies: what it asks of the chain in place of a request, and what it tells of the
/// answer, given the request as it came.
#[derive(Clone)]
pub struct Lie {
    ask: Arc<Ask>,
    tell: Arc<Tell>,
}

impl Lie {
    /// Tells of `method` what `tell` makes of the request and of the whole answer.
    pub fn telling(
        method: &'static str,
        tell: impl Fn(&Value, &mut Value) + Send + Sync + 'static,
    ) -> Self {
        let tell = move |request: &Value, answer: &mut Value| {
            if request["method"] == method {
                tell(request, answer);
            }
        };
        Self { ask: Arc::new(|_| ()), tell: Arc::new(tell) }
    }

    /// Tells the `result` of `method` differently.
    pub fn about(method: &'static str, tell: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::telling(method, move |_, answer| tell(&mut answer["result"]))
    }

    /// Refuses `method` in these words, and asks the chain something harmless.
    pub fn refusing(method: &'static str, words: &'static str) -> Self {
        Self::refusing_where(method, words, |_| true)
    }

    /// As [`Lie::refusing`], where the request's first parameter is so.
    pub fn refusing_where(
        method: &'static str,
        words: &'static str,
        fits: impl Fn(&Value) -> bool + Send + Sync + 'static,
    ) -> Self {
        let is_meant = Arc::new(move |request: &Value| {
            request["method"] == method && fits(&request["params"][0])
        });
        let asked = is_meant.clone();
        let ask = move |request: &mut Value| {
            if asked(request) {
                request["method"] = json!("eth_chainId");
                request["params"] = json!([]);
            }
        };
        let tell = move |request: &Value, answer: &mut Value| {
            if is_meant(request) {
                let error = json!({"code": -32000, "message": words});
                *answer = json!({"jsonrpc": "2.0", "id": request["id"], "error": error});
            }
        };
        Self { ask: Arc::new(ask), tell: Arc::new(tell) }
    }

    /// An endpoint that stopped following the chain at `height`: it knows no later block, receipt
    /// or transaction.
    pub fn frozen_at(height: u64) -> Self {
        let ask = move |request: &mut Value| {
            let Some(parameters) = request["params"].as_array_mut() else { return };
            for parameter in parameters {
                if matches!(parameter.as_str(), Some("latest" | "pending")) {
                    *parameter = json!(format!("{height:#x}"));
                }
            }
        };
        let tell = move |request: &Value, answer: &mut Value| {
            let result = &mut answer["result"];
            let number = match request["method"].as_str().unwrap() {
                "eth_getBlockByNumber" => &result["number"],
                "eth_getTransactionReceipt" | "eth_getTransactionByHash" => &result["blockNumber"],
                _ => return,
            };
            if number.as_str().is_none_or(|number| quantity(number) > height) {
                *result = Value::Null;
            }
        };
        Self { ask: Arc::new(ask), tell: Arc::new(tell) }
    }
}

/// The number that JSON-RPC writes as `0x…`.
pub fn quantity(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

#[derive(Default)]
struct State {
    fault: Option<(String, Fault)>,
    lie: Option<Lie>,
    /// Bodies of the requests that came.
    seen: Vec<String>,
    /// Of these, those that got no answer yet because they are held, or never got one.
    held: usize,
}

/// A running proxy. Its threads end with the test process.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    state: Arc<Mutex<State>>,
    storm: Arc<OnceLock<Arc<Storm>>>,
}

impl Proxy {
    /// In front of `127.0.0.1:port`, faultless.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let shared = state.clone();
        let storm = Arc::new(OnceLock::<Arc<Storm>>::new());
        let weather = storm.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (shared, storm) = (shared.clone(), weather.get().cloned());
                std::thread::spawn(move || match storm {
                    None => serve(client, port, &shared),
                    Some(storm) => serve_in(&storm, client, port),
                });
            }
        });
        Self { url, state, storm }
    }

    /// From now on, every request meets this weather. Once only.
    pub fn brew(&self, storm: Arc<Storm>) {
        assert!(self.storm.set(storm).is_ok(), "it storms already");
    }

    /// Requests that were held so far.
    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    /// From now on, requests that contain `word` suffer `fault`.
    pub fn set(&self, word: &str, fault: Fault) {
        self.state.lock().unwrap().fault = Some((word.into(), fault));
    }

    /// From now on it tells this lie, in place of any other.
    pub fn lie(&self, lie: Lie) {
        self.state.lock().unwrap().lie = Some(lie);
    }

    /// From now on it is faultless and honest.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.lie) = (None, None);
    }

    /// How many requests that contain `word` have come.
    pub fn count(&self, word: &str) -> usize {
        self.state.lock().unwrap().seen.iter().filter(|body| body.contains(word)).count()
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

fn serve(mut client: TcpStream, port: u16, shared: &Mutex<State>) -> Option<()> {
    let (head, body) = request(&mut client)?;
    let (fault, lie) = {
        let mut state = shared.lock().unwrap();
        state.seen.push(body.clone());
        let fault = state.fault.as_ref().filter(|(word, _)| body.contains(word));
        (fault.map_or(Fault::None, |(_, fault)| *fault), state.lie.clone())
    };
    let answer = match (fault.is_forwarded(), lie) {
        (false, _) => Vec::new(),
        (true, None) => forward(port, &head, &body)?,
        (true, Some(lie)) => lied(port, &body, &lie)?,
    };
    let status = |line: &str| {
        format!("HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").into_bytes()
    };
    let answer = match fault {
        Fault::None => answer,
        Fault::BadGateway => status("502 Bad Gateway"),
        Fault::ServerError => status("500 Internal Server Error"),
        Fault::Throttled => status("429 Too Many Requests\r\nretry-after: 30"),
        Fault::Closed | Fault::Lost => Vec::new(),
        Fault::Held => {
            shared.lock().unwrap().held += 1;
            // Until the client hangs up.
            let _ = client.read(&mut [0]);
            Vec::new()
        }
    };
    client.write_all(&answer).ok()?;
    client.shutdown(Shutdown::Both).ok()
}

/// The chain's answer, bytes as they come. The request keeps its head but for the first line.
fn forward(port: u16, head: &str, body: &str) -> Option<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let first = head.split_once("\r\n")?.1;
    let once = format!("POST / HTTP/1.1\r\nconnection: close\r\n{first}{body}");
    server.write_all(once.as_bytes()).ok()?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer).ok()?;
    Some(answer)
}

/// The answer to another question, told differently.
fn lied(port: u16, body: &str, lie: &Lie) -> Option<Vec<u8>> {
    let request: Value = serde_json::from_str(body).unwrap();
    let mut asked = request.clone();
    (lie.ask)(&mut asked);
    let asked = asked.to_string();
    let head = format!(
        "\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        asked.len()
    );
    let answer = String::from_utf8(forward(port, &head, &asked)?).unwrap();
    let (_, answer) = answer.split_once("\r\n\r\n")?;
    let mut told: Value = serde_json::from_str(answer).unwrap();
    (lie.tell)(&request, &mut told);
    let told = told.to_string();
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json";
    Some(format!("{head}\r\ncontent-length: {}\r\n\r\n{told}", told.len()).into_bytes())
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
