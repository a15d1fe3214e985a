//! A raw HTTP client that keeps what a real one hides: chunk bounds, header order, how a connection ends.
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_gateway::simulator::{SimConfig, Simulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const MODEL: &str = "Qwen/Qwen3-32B-AWQ-simulated";

/// A configuration without any waiting.
pub fn instant() -> SimConfig {
    SimConfig {
        speed: 0.0,
        ..SimConfig::default()
    }
}

/// A simulator on a port of its own, for as long as the test runs.
pub async fn start(config: SimConfig) -> (Simulator, SocketAddr) {
    start_with_key(config, None).await
}

pub async fn start_with_key(config: SimConfig, key: Option<&str>) -> (Simulator, SocketAddr) {
    let simulator = Simulator::with_key(config, key.map(str::to_owned)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = simulator.clone();
    tokio::spawn(async move { serving.serve(listener, std::future::pending()).await });
    (simulator, address)
}

/// A raw answer: head, chunks as they were cut, and how the connection ended.
#[derive(Debug)]
pub struct Answer {
    pub head: String,
    pub chunks: Vec<Vec<u8>>,
    /// A complete message, as its framing says.
    pub is_complete: bool,
    /// The connection was reset.
    pub is_reset: bool,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).map_or(0, |code| code.parse().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.chunks.concat()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.chunks.concat()).unwrap()
    }

    /// Data lines of a stream but for `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter(|line| *line != "[DONE]");
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Content of a choice over all events.
    pub fn content(&self, choice: u64) -> String {
        let events = self.events();
        let all = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
        all.filter(|c| c["index"] == choice)
            .filter_map(|c| c["delta"]["content"].as_str())
            .collect()
    }

    /// Takes raw bytes apart.
    pub fn parse(raw: &[u8], is_reset: bool, is_head_only: bool) -> Self {
        let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Self {
                head: String::new(),
                chunks: vec![raw.to_vec()],
                is_complete: false,
                is_reset,
            };
        };
        let head = String::from_utf8(raw[..end].to_vec()).unwrap();
        let mut rest = &raw[end + 4..];
        let mut answer = Self {
            head,
            chunks: Vec::new(),
            is_complete: false,
            is_reset,
        };
        if !answer.head.contains("transfer-encoding: chunked") {
            let length = answer
                .head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            answer.is_complete = is_head_only || rest.len() == length;
            answer.chunks.push(rest.to_vec());
            return answer;
        }
        while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            if size == 0 {
                answer.is_complete = rest == b"0\r\n\r\n";
                break;
            }
            if rest.len() < line + 2 + size + 2 {
                break;
            }
            answer.chunks.push(rest[line + 2..line + 2 + size].to_vec());
            rest = &rest[line + 2 + size + 2..];
        }
        answer
    }
}

pub fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let framing = if body.is_empty() && method == "GET" {
        String::new()
    } else {
        format!("content-length: {length}\r\n")
    };
    format!("{method} {path} HTTP/1.1\r\nhost: sim\r\n{headers}{framing}\r\n{body}").into_bytes()
}

/// Sends raw bytes and reads until the end of the connection, or until nothing came for `patience`.
pub async fn exchange(address: SocketAddr, raw: &[u8], patience: Duration) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut got = Vec::new();
    let mut is_reset = socket.write_all(raw).await.is_err();
    let is_head_only = raw.starts_with(b"HEAD");
    let mut buffer = vec![0; 65_536];
    loop {
        match tokio::time::timeout(patience, socket.read(&mut buffer)).await {
            Ok(Ok(0)) | Err(_) => break,
            Ok(Ok(count)) => got.extend_from_slice(&buffer[..count]),
            Ok(Err(error)) => {
                is_reset |= error.kind() == std::io::ErrorKind::ConnectionReset;
                break;
            }
        }
    }
    Answer::parse(&got, is_reset, is_head_only)
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    exchange(
        address,
        &request("GET", path, "connection: close\r\n", ""),
        Duration::from_secs(5),
    )
    .await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    post_with(address, path, "", body).await
}

pub async fn post_with(address: SocketAddr, path: &str, headers: &str, body: &Value) -> Answer {
    let headers = format!("content-type: application/json\r\nconnection: close\r\n{headers}");
    exchange(
        address,
        &request("POST", path, &headers, &body.to_string()),
        Duration::from_secs(5),
    )
    .await
}

pub fn chat(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "What is the weather in Paris?"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub const CHAT: &str = "/v1/chat/completions";
