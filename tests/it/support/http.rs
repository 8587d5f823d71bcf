//! An HTTP/1.1 client that reads only when it is told to.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        let shown = String::from_utf8_lossy(&self.body);
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {shown}"))
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The data of each event of a stream.
    pub fn events(&self) -> Vec<String> {
        events(&self.body)
    }
}

/// Data of the complete events in `body`.
pub fn events(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let complete = text.rfind("\n\n").map_or("", |end| &text[..end]);
    let data =
        |event: &str| event.lines().find_map(|line| Some(line.strip_prefix("data: ")?.to_owned()));
    complete.split("\n\n").filter_map(data).collect()
}

/// A request's text.
pub fn text(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: node\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    raw: Vec<u8>,
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(addr).await.unwrap(), raw: Vec::new() }
    }

    /// A client whose kernel takes little in advance.
    pub async fn connect_narrow(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self { stream: socket.connect(addr).await.unwrap(), raw: Vec::new() }
    }

    pub async fn send(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads what comes next; false at the end.
    pub async fn read(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let count = self.stream.read(&mut piece).await.unwrap_or(0);
        self.raw.extend_from_slice(&piece[..count]);
        count > 0
    }

    /// Reads one complete answer and leaves what follows it.
    pub async fn answer(&mut self) -> Answer {
        loop {
            if let Some((answer, used)) = parse(&self.raw, false) {
                self.raw.drain(..used);
                return answer;
            }
            assert!(self.read().await, "connection ended: {}", self.shown());
        }
    }

    /// Reads one head and forgets it.
    pub async fn skip_head(&mut self) {
        loop {
            let end = self.raw.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                self.raw.drain(..end + 4);
                return;
            }
            assert!(self.read().await, "connection ended: {}", self.shown());
        }
    }

    /// Reads up to the head's end, keeps it, and tells its status.
    pub async fn read_status(&mut self) -> u16 {
        loop {
            if let Some((answer, _)) = parse(&self.raw, true) {
                return answer.status;
            }
            assert!(self.read().await, "connection ended: {}", self.shown());
        }
    }

    /// Events of a stream that were read so far.
    pub fn events(&self) -> Vec<String> {
        parse(&self.raw, true).map_or_else(Vec::new, |(answer, _)| answer.events())
    }

    /// Reads until this many events are there.
    pub async fn read_events(&mut self, count: usize) -> Vec<String> {
        while self.events().len() < count {
            assert!(self.read().await, "stream ended: {}", self.shown());
        }
        self.events()
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.raw).into_owned()
    }
}

/// The first answer in `raw` and its length; with `partial`, as much of it as there is.
fn parse(raw: &[u8], partial: bool) -> Option<(Answer, usize)> {
    let head_end = raw.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(raw[..head_end].to_vec()).unwrap();
    let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
    if (100..200).contains(&status) && status != 101 {
        let (answer, used) = parse(&raw[head_end..], partial)?;
        return Some((answer, used + head_end));
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let (body, used) = match length {
        Some(length) => {
            let length: usize = length.trim().parse().unwrap();
            let body = raw.get(head_end..head_end + length)?;
            (body.to_vec(), head_end + length)
        }
        None if lower.contains("transfer-encoding: chunked") => {
            let (body, used, is_whole) = dechunk(&raw[head_end..]);
            if !is_whole && !partial {
                return None;
            }
            (body, head_end + used)
        }
        None => (Vec::new(), head_end),
    };
    Some((Answer { status, head, body }, used))
}

fn dechunk(raw: &[u8]) -> (Vec<u8>, usize, bool) {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = raw[at..].windows(2).position(|window| window == b"\r\n") else {
            return (body, at, false);
        };
        let digits = std::str::from_utf8(&raw[at..at + line]).unwrap();
        let size = usize::from_str_radix(digits, 16).unwrap();
        let start = at + line + 2;
        if raw.len() < start + size + 2 {
            body.extend_from_slice(&raw[start..raw.len().min(start + size)]);
            return (body, at, false);
        }
        body.extend_from_slice(&raw[start..start + size]);
        at = start + size + 2;
        if size == 0 {
            return (body, at, true);
        }
    }
}

/// One request on a connection of its own.
pub async fn call(
    addr: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut client = Client::connect(addr).await;
    client.send(&text(method, path, headers, body)).await;
    client.answer().await
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    call(addr, ("GET", path), &[], "").await
}

pub async fn post(addr: SocketAddr, path: &str, body: &Value) -> Answer {
    call(addr, ("POST", path), &[], &body.to_string()).await
}

/// A JSON body of whatever bytes, on a connection of its own.
pub async fn call_bytes(addr: SocketAddr, path: &str, body: &[u8]) -> Answer {
    let mut client = Client::connect(addr).await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    client.stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    client.answer().await
}
