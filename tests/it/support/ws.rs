//! A WebSocket client written by others, reading only when it is told to.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, client_async};

pub struct Socket {
    pub stream: WebSocketStream<TcpStream>,
}

impl Socket {
    /// A connection that has heard `connected`.
    pub async fn connect(addr: SocketAddr) -> Self {
        let mut socket = Self::open(TcpStream::connect(addr).await.unwrap(), "/v1/ws").await;
        assert_eq!(socket.recv().await["type"], "connected");
        socket
    }

    /// One whose kernel takes little in advance.
    pub async fn connect_narrow(addr: SocketAddr) -> Self {
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.set_recv_buffer_size(4096).unwrap();
        let mut socket = Self::open(tcp.connect(addr).await.unwrap(), "/v1/ws").await;
        assert_eq!(socket.recv().await["type"], "connected");
        socket
    }

    pub async fn open(tcp: TcpStream, path: &str) -> Self {
        let (stream, _) = client_async(format!("ws://node{path}"), tcp).await.unwrap();
        Self { stream }
    }

    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.stream.send(Message::Text(text.into())).await.unwrap();
    }

    /// The next JSON message.
    pub async fn recv(&mut self) -> Value {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no message: {other:?}"),
            }
        }
    }

    /// Messages up to and with the first of one of these types.
    pub async fn recv_until(&mut self, kinds: &[&str]) -> Vec<Value> {
        let mut messages = Vec::new();
        loop {
            let message = self.recv().await;
            let kind = message["type"].as_str().unwrap().to_owned();
            messages.push(message);
            if kinds.contains(&kind.as_str()) {
                return messages;
            }
        }
    }

    /// The code of the closing frame, reading over what comes before it.
    pub async fn recv_close(&mut self) -> Option<u16> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// `session_init` and its answer.
    pub async fn init(&mut self, job: u64) -> Value {
        let message = json!({"type": "session_init", "session_id": format!("{job}n"),
            "jobId": job, "chain_id": 31337, "id": "init-1"});
        self.send(message).await;
        self.recv().await
    }

    /// Closes with this code.
    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        self.stream.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = self.stream.next().await {}
    }
}

/// Text of all chunks.
pub fn text(messages: &[Value]) -> String {
    let chunks = messages.iter().filter(|message| message["type"] == "stream_chunk");
    chunks.map(|chunk| chunk["content"].as_str().unwrap()).collect()
}

/// Tokens of all chunks.
pub fn tokens(messages: &[Value]) -> u64 {
    let chunks = messages.iter().filter(|message| message["type"] == "stream_chunk");
    chunks.map(|chunk| chunk["tokens"].as_u64().unwrap()).sum()
}
