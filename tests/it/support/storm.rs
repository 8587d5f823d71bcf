//! Bad weather for the proxy: every request may suffer something, drawn from a seed.
//!
//! What an endpoint says wrongly is something that it said rightly before, except for a nonce,
//! which it may make up. The same requests in the same order meet the same weather.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mishap {
    /// Nothing.
    None,
    /// It is carried out, and the connection ends without an answer.
    Closed,
    /// It is not carried out, and the connection ends.
    Unsent,
    /// It is carried out, and nothing ever comes.
    Held,
    /// It is not carried out: too many requests.
    Throttled,
    /// It is carried out, and a gateway says 500.
    ServerError,
    /// It is carried out, and a gateway says 502 with words that mean something else.
    BadGateway,
    /// The answer is one of earlier days.
    Stale,
    /// The answer is off by up to three.
    WrongNonce,
    /// The answer comes byte by byte.
    Slow,
}

/// Mishaps of any request, in a thousand.
const OFTEN: [(Mishap, u64); 7] = [
    (Mishap::Closed, 15),
    (Mishap::Unsent, 10),
    (Mishap::Throttled, 15),
    (Mishap::ServerError, 10),
    (Mishap::BadGateway, 10),
    (Mishap::Stale, 25),
    (Mishap::Slow, 20),
];
/// More of them where they hurt most, in a thousand.
const HELD_BROADCASTS: u64 = 20;
const WRONG_NONCES: u64 = 150;

/// Reads whose older answers are kept.
const KEPT: [&str; 5] = [
    "eth_getBlockByNumber",
    "eth_getTransactionCount",
    "eth_call",
    "eth_getTransactionReceipt",
    "eth_getTransactionByHash",
];
/// What needs an index of transactions.
const BY_HASH: [&str; 2] = ["eth_getTransactionReceipt", "eth_getTransactionByHash"];

/// Different answers kept of one question.
const KEPT_MAX: usize = 6;

/// The weather of one proxy.
pub struct Storm {
    inner: Mutex<Inner>,
}

struct Inner {
    random: u64,
    is_calm: bool,
    is_blind: bool,
    older: BTreeMap<String, Vec<Value>>,
    counts: BTreeMap<Mishap, u64>,
}

impl Storm {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            random: seed,
            is_calm: false,
            is_blind: false,
            older: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// It is over, or it begins again.
    pub fn set_calm(&self, is_calm: bool) {
        self.lock().is_calm = is_calm;
    }

    /// Its index of transactions has gone: blocks and state are known, no transaction is.
    pub fn set_blind(&self, is_blind: bool) {
        self.lock().is_blind = is_blind;
    }

    /// How often each thing happened.
    pub fn counts(&self) -> BTreeMap<Mishap, u64> {
        self.lock().counts.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one request of the node.
    pub fn serve(&self, mut client: TcpStream, port: u16, body: &str) -> Option<()> {
        let mut question: Value = serde_json::from_str(body).ok()?;
        let id = question.as_object_mut()?.remove("id");
        let method = question["method"].as_str()?.to_owned();
        let mishap = self.lock().draw(&method);
        match mishap {
            Mishap::Unsent => return Some(()),
            Mishap::Throttled => {
                return reply(&mut client, "429 Too Many Requests\r\nretry-after: 1", "{}");
            }
            _ => {}
        }
        let mut answer = ask(port, body)?;
        self.lock().spoil(mishap, (&method, question.to_string()), &mut answer);
        answer["id"] = id?;
        let text = answer.to_string();
        match mishap {
            Mishap::Closed => Some(()),
            // Until the client hangs up.
            Mishap::Held => client.read(&mut [0]).ok().map(|_| ()),
            Mishap::ServerError => reply(&mut client, "500 Internal Server Error", "oops"),
            Mishap::BadGateway => {
                let words = json!({"error": {"code": -32000, "message": "nonce too low"}});
                reply(&mut client, "502 Bad Gateway", &words.to_string())
            }
            Mishap::Slow => {
                head(&mut client, "200 OK", &text)?;
                for byte in text.as_bytes() {
                    client.write_all(&[*byte]).ok()?;
                    std::thread::yield_now();
                }
                Some(())
            }
            _ => reply(&mut client, "200 OK", &text),
        }
    }
}

impl Inner {
    /// SplitMix64 (Steele, Lea, Flood 2014), below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn draw(&mut self, method: &str) -> Mishap {
        let mut lot = self.below(1000);
        let special = match method {
            "eth_sendRawTransaction" => Some((Mishap::Held, HELD_BROADCASTS)),
            "eth_getTransactionCount" => Some((Mishap::WrongNonce, WRONG_NONCES)),
            _ => None,
        };
        let mut drawn = Mishap::None;
        for (mishap, weight) in OFTEN.into_iter().chain(special) {
            if lot < weight {
                drawn = mishap;
                break;
            }
            lot -= weight;
        }
        if self.is_calm {
            drawn = Mishap::None;
        }
        *self.counts.entry(drawn).or_insert(0) += 1;
        drawn
    }

    /// Remembers a true answer, and falsifies it where that is its fate.
    fn spoil(&mut self, mishap: Mishap, (method, question): (&str, String), answer: &mut Value) {
        if self.is_blind && BY_HASH.contains(&method) {
            answer["result"] = Value::Null;
            return;
        }
        if mishap == Mishap::WrongNonce
            && let Some(true_one) = answer["result"].as_str()
        {
            let nonce = u64::from_str_radix(&true_one[2..], 16).unwrap();
            let off = 1 + self.below(3);
            let told = if self.below(2) == 0 { nonce + off } else { nonce.saturating_sub(off) };
            answer["result"] = format!("{told:#x}").into();
            return;
        }
        if !KEPT.contains(&method) || answer.get("result").is_none() {
            return;
        }
        let lot = self.below(u64::MAX);
        let kept = self.older.entry(question).or_default();
        let now = answer["result"].clone();
        if mishap == Mishap::Stale && !kept.is_empty() {
            let which = usize::try_from(lot % kept.len() as u64).unwrap();
            answer["result"] = kept[which].clone();
        }
        if kept.last() != Some(&now) {
            kept.push(now);
            if kept.len() > KEPT_MAX {
                kept.remove(0);
            }
        }
    }
}

/// Asks the real endpoint.
fn ask(port: u16, body: &str) -> Option<Value> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: chain\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    server.write_all(request.as_bytes()).ok()?;
    let mut raw = String::new();
    server.read_to_string(&mut raw).ok()?;
    let (_, text) = raw.split_once("\r\n\r\n")?;
    serde_json::from_str(text).ok()
}

fn head(client: &mut TcpStream, status: &str, body: &str) -> Option<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n");
    client.write_all(format!("{head}content-type: application/json\r\n\r\n").as_bytes()).ok()
}

fn reply(client: &mut TcpStream, status: &str, body: &str) -> Option<()> {
    head(client, status, body)?;
    client.write_all(body.as_bytes()).ok()
}
