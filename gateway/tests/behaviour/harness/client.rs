//! A client that writes and reads an HTTP/1.1 connection itself, so that a test sees every byte and its order.

use bytes::{Buf, BytesMut};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{KEY, MODEL, within};

/// A request, with the client's key unless it is left out.
#[derive(Clone)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    has_key: bool,
    is_chunked: bool,
}

impl Request {
    /// Of any method, without a body.
    pub(crate) fn new(method: &'static str, path: &str) -> Self {
        Request {
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body: None,
            has_key: true,
            is_chunked: false,
        }
    }

    /// A GET.
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST of JSON.
    pub(crate) fn post(path: &str, body: &Value) -> Self {
        Self::raw(path, body.to_string())
    }

    /// A POST of these bytes as JSON.
    pub(crate) fn raw(path: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = Some(body.into());
        Request {
            body,
            ..Self::new("POST", path)
        }
        .header("content-type", "application/json")
    }

    /// A chat of one question.
    pub(crate) fn chat(stream: bool) -> Self {
        Self::post("/v1/chat/completions", &ask(stream))
    }

    /// With another value of a field of its body.
    pub(crate) fn set(mut self, field: &str, value: Value) -> Self {
        let mut body: Value = serde_json::from_slice(self.body.as_deref().unwrap()).unwrap();
        body[field] = value;
        self.body = Some(body.to_string().into_bytes());
        self
    }

    /// One more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this `x-request-id`.
    pub(crate) fn id(self, id: &str) -> Self {
        self.header("x-request-id", id)
    }

    /// In this session.
    pub(crate) fn session(self, id: &str) -> Self {
        self.header("x-session-id", id)
    }

    /// Without the client's key.
    pub(crate) fn without_key(mut self) -> Self {
        self.has_key = false;
        self
    }

    /// Its body without a declared length.
    pub(crate) fn chunked(mut self) -> Self {
        self.is_chunked = true;
        self
    }

    /// The head, the blank line included.
    pub(crate) fn head(&self) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: gateway\r\n", self.method, self.path);
        if self.has_key {
            head.push_str(&format!("authorization: Bearer {KEY}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            Some(_) if self.is_chunked => head.push_str("transfer-encoding: chunked\r\n"),
            Some(body) => head.push_str(&format!("content-length: {}\r\n", body.len())),
            None => {}
        }
        head + "\r\n"
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head().into_bytes();
        match &self.body {
            Some(body) if self.is_chunked => {
                for piece in body.chunks(7_001) {
                    bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                    bytes.extend(piece);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
            Some(body) => bytes.extend(body),
            None => {}
        }
        bytes
    }
}

/// A chat of one question.
pub(crate) fn ask(stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "What is new?"}], "stream": stream})
}

/// Status line and headers of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// The status.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header == name);
        let first = found.next()?;
        assert!(found.next().is_none(), "{name} comes twice");
        Some(&first.1)
    }

    fn parse(text: &str) -> Self {
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        Head {
            status,
            headers: headers
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its head.
    pub(crate) head: Head,
    /// Its body.
    pub(crate) body: Vec<u8>,
    /// It ended as its framing says.
    pub(crate) is_complete: bool,
}

impl Message {
    /// The status.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Its headers in their order, without these.
    pub(crate) fn header_lines(&self, without: &[&str]) -> Vec<(String, String)> {
        let lines = self.head.headers.iter();
        lines
            .filter(|(name, _)| !without.contains(&name.as_str()))
            .cloned()
            .collect()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// `error.code`.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// `error.message`.
    pub(crate) fn error(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The events of a stream, comments included, as they came.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.text();
        let events = text
            .split_inclusive("\n\n")
            .map(|event| event.strip_suffix("\n\n").expect("a whole event").to_owned());
        events.collect()
    }

    /// The chunks of a stream that must end with one `[DONE]`.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status(), 200, "{}", self.text());
        assert!(self.is_complete);
        let events = self.events();
        let mut data = events
            .iter()
            .filter(|event| !event.starts_with(':'))
            .map(|event| event.strip_prefix("data: ").unwrap());
        assert_eq!(data.next_back(), Some("[DONE]"), "{}", self.text());
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One connection.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    received: BytesMut,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// No body is being read.
    None,
    Length(usize),
    Chunked,
}

/// What ends a read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl Client {
    /// To an address that listens.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.expect("the gateway listens")
    }

    /// To an address that may listen.
    pub(crate) async fn try_connect(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self::over(stream))
    }

    /// Over a stream of any kind.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Client {
            stream: Box::new(stream),
            received: BytesMut::new(),
            framing: Framing::None,
        }
    }

    /// Sends a request. An error shows in the answer that doesn't come.
    pub(crate) async fn send(&mut self, request: &Request) {
        self.write(&request.bytes()).await;
    }

    /// Sends these bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = within("the gateway reads", self.stream.write_all(bytes)).await;
    }

    /// The head of the next answer.
    pub(crate) async fn head(&mut self) -> Head {
        self.try_head().await.expect("an answer")
    }

    /// The same, unless the connection ends first.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            self.fill().await.ok()?;
        };
        let text = self.received.split_to(end + 4);
        let head = Head::parse(std::str::from_utf8(&text).unwrap().trim_end());
        let length = head
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        self.framing = match head.header("transfer-encoding") {
            Some(coding) => {
                assert_eq!(coding, "chunked");
                Framing::Chunked
            }
            None if head.status < 200 || head.status == 204 => Framing::None,
            None => Framing::Length(length),
        };
        Some(head)
    }

    /// The next piece of the body as it was framed; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Vec<u8>>, Lost> {
        match self.framing {
            Framing::None | Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.received.is_empty() {
                    self.fill().await?;
                }
                let take = left.min(self.received.len());
                self.framing = Framing::Length(left - take);
                Ok(Some(self.received.split_to(take).to_vec()))
            }
            Framing::Chunked => {
                let line = loop {
                    if let Some(end) = self.received.windows(2).position(|bytes| bytes == b"\r\n") {
                        break end;
                    }
                    self.fill().await?;
                };
                let size = usize::from_str_radix(std::str::from_utf8(&self.received[..line]).unwrap(), 16).unwrap();
                while self.received.len() < line + 2 + size + 2 {
                    self.fill().await?;
                }
                self.received.advance(line + 2);
                let piece = self.received.split_to(size).to_vec();
                assert_eq!(&self.received.split_to(2)[..], b"\r\n");
                if size > 0 {
                    return Ok(Some(piece));
                }
                self.framing = Framing::None;
                Ok(None)
            }
        }
    }

    /// The next events of a stream, without what the gateway puts in between to keep it alive.
    pub(crate) async fn event(&mut self) -> String {
        loop {
            let piece = self
                .piece()
                .await
                .expect("the stream goes on")
                .expect("the stream goes on");
            let text = String::from_utf8(piece).unwrap();
            assert!(text.ends_with("\n\n"), "a piece that is no whole event: {text:?}");
            if !text.starts_with(':') {
                return text;
            }
        }
    }

    /// Reads the stream until this has come; what was read.
    pub(crate) async fn read_to(&mut self, text: &str) -> String {
        let mut got = String::new();
        while !got.contains(text) {
            got += &self.event().await;
        }
        got
    }

    /// The answer whose head has been read has no body, whatever its length says: it answers a HEAD.
    pub(crate) fn no_body(&mut self) {
        self.framing = Framing::None;
    }

    /// The rest of the answer whose head has been read.
    pub(crate) async fn rest(&mut self, head: Head) -> Message {
        let mut body = Vec::new();
        let is_complete = loop {
            match self.piece().await {
                Ok(Some(piece)) => body.extend(piece),
                Ok(None) => break true,
                Err(Lost) => break false,
            }
        };
        Message {
            head,
            body,
            is_complete,
        }
    }

    /// The next answer as a whole.
    pub(crate) async fn message(&mut self) -> Message {
        self.try_message().await.expect("an answer")
    }

    /// The same, unless the connection ends first.
    pub(crate) async fn try_message(&mut self) -> Option<Message> {
        let head = self.try_head().await?;
        Some(self.rest(head).await)
    }

    /// Waits until the gateway closes the connection; what came before it is an error.
    pub(crate) async fn closed(&mut self) {
        assert!(
            self.fill().await.is_err(),
            "bytes after the answer: {:?}",
            self.received
        );
    }

    async fn fill(&mut self) -> Result<(), Lost> {
        match within("the gateway sends", self.stream.read_buf(&mut self.received)).await {
            Ok(0) | Err(_) => Err(Lost),
            Ok(_) => Ok(()),
        }
    }
}
