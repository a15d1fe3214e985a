//! A replica that a test drives byte by byte. What the gateway asks on its own (health, models, version, how tools are
//! taken) it answers itself; every request of a client is handed to the test, with its connection.

use serde_json::{Value, json};
use socket2::SockRef;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};

use super::{MODEL, OTHER_MODEL, until, within};

/// vLLM closes an idle connection after this time.
const IDLE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Replica {
    address: SocketAddr,
    requests: UnboundedReceiver<Asked>,
    accepting: JoinHandle<()>,
}

impl Replica {
    /// Listens.
    pub(crate) async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    /// Listens there.
    pub(crate) async fn at(address: SocketAddr) -> Self {
        Self::on(TcpListener::bind(address).await.unwrap()).await
    }

    /// Answers what the gateway asks on its own on a connection that was accepted before.
    pub(crate) async fn greets(stream: TcpStream) {
        let (tell, _) = unbounded_channel();
        let (keep, _) = unbounded_channel();
        let received = Vec::new();
        serve(Connection { stream, received }, tell, keep).await;
    }

    /// Listens with this socket.
    pub(crate) async fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (tell, requests) = unbounded_channel();
        let (keep, mut kept) = unbounded_channel();
        let accepting = tokio::spawn(async move {
            // Idle connections end with the listener.
            let mut idle = JoinSet::new();
            loop {
                let connection: Connection = tokio::select! {
                    accepted = listener.accept() => Connection { stream: accepted.unwrap().0, received: Vec::new() },
                    Some(connection) = kept.recv() => connection,
                };
                connection.stream.set_nodelay(true).unwrap();
                idle.spawn(serve(connection, tell.clone(), keep.clone()));
            }
        });
        Replica {
            address,
            requests,
            accepting,
        }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request of a client.
    pub(crate) async fn next(&mut self) -> Asked {
        within("the replica is asked", self.requests.recv())
            .await
            .expect("the replica accepts")
    }

    /// No client's request has come that wasn't taken by [`Replica::next`].
    pub(crate) fn is_unasked(&self) -> bool {
        self.requests.is_empty()
    }

    /// Answers every request from now on with a stream or a message of this text.
    pub(crate) fn always(mut self, text: &'static str) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(asked) = self.requests.recv().await {
                tokio::spawn(asked.tell_as_asked(text));
            }
        })
    }

    /// Nobody listens any more, and idle connections are closed.
    pub(crate) async fn stop(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Replica {
    /// The same, for good.
    pub(crate) async fn dead(mut self) -> Self {
        self.stop().await;
        self
    }
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// A client's request, and the connection that waits for its answer.
pub(crate) struct Asked {
    /// `POST /v1/…`.
    pub(crate) line: String,
    headers: HashMap<String, String>,
    /// The whole body.
    pub(crate) body: Vec<u8>,
    connection: Connection,
    keep: UnboundedSender<Connection>,
}

async fn serve(mut connection: Connection, tell: UnboundedSender<Asked>, keep: UnboundedSender<Connection>) {
    let Some((line, headers, body)) = connection.read().await else {
        return;
    };
    // The gateway's own questions come without a name. Their connection ends: a test begins without idle ones.
    if headers.contains_key("user-agent") {
        let _ = tell.send(Asked {
            line,
            headers,
            body,
            connection,
            keep,
        });
    } else {
        let answer = about_itself(&line, &body);
        let _ = connection.stream.write_all(&answer).await;
    }
}

impl Connection {
    async fn read(&mut self) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            self.fill().await?;
        };
        let head = String::from_utf8(self.received.drain(..end + 4).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let mut headers = HashMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            assert!(
                headers.insert(name.to_ascii_lowercase(), value.to_owned()).is_none(),
                "{name} comes twice"
            );
        }
        assert!(
            !headers.contains_key("transfer-encoding"),
            "the gateway knows the length of what it sends"
        );
        let length = headers
            .get("content-length")
            .map_or(0, |length| length.parse().unwrap());
        while self.received.len() < length {
            self.fill().await?;
        }
        Some((line, headers, self.received.drain(..length).collect()))
    }

    async fn fill(&mut self) -> Option<()> {
        let read = tokio::time::timeout(IDLE, self.stream.read_buf(&mut self.received)).await;
        matches!(read, Ok(Ok(1..))).then_some(())
    }
}

/// Of two, `a` is asked first.
pub(crate) async fn is_asked_first(a: &Replica, b: &Replica) -> bool {
    until("one is asked", async || match (a.is_unasked(), b.is_unasked()) {
        (false, _) => Some(true),
        (_, false) => Some(false),
        _ => None,
    })
    .await
}

/// The request, and the replica that was not asked first.
pub(crate) async fn first<'a>(a: &'a mut Replica, b: &'a mut Replica) -> (Asked, &'a mut Replica) {
    if is_asked_first(a, b).await {
        (a.next().await, b)
    } else {
        (b.next().await, a)
    }
}

fn about_itself(line: &str, body: &[u8]) -> Vec<u8> {
    let ok = |body: Value| whole("200 OK", &body);
    let path = line.split(' ').nth(1).unwrap();
    match path {
        "/health" => b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/version" => ok(json!({"version": "0.32.0"})),
        "/v1/models" => ok(
            json!({"object": "list", "data": [{"id": MODEL, "object": "model"}, {"id": OTHER_MODEL, "object": "model"}]}),
        ),
        "/v1/chat/completions" => {
            let body: Value = serde_json::from_slice(body).unwrap();
            if body["tool_choice"] == "auto" {
                return whole(
                    "400 Bad Request",
                    &json!({"error": {"message": "\"auto\" tool choice requires --enable-auto-tool-choice", "type": "BadRequestError", "code": 400}}),
                );
            }
            let tokens = if body["tools"].is_array() { 50 } else { 10 };
            ok(completion("x", "stop", tokens))
        }
        _ => whole("404 Not Found", &json!({"detail": "Not Found"})),
    }
}

fn whole(status: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Asked {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// All header names.
    pub(crate) fn header_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.headers.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// A whole answer with a status line's end such as `200 OK`; the connection stays open.
    pub(crate) async fn answer(mut self, status: &str, body: &Value) {
        self.write(&whole(status, body)).await;
        self.keep();
    }

    /// A whole answer; the connection stays open until the first byte of another request comes, and is reset then.
    pub(crate) async fn answer_and_close_on_next(mut self, body: &Value) {
        self.write(&whole("200 OK", body)).await;
        tokio::spawn(async move {
            let _ = self.connection.stream.readable().await;
            self.reset();
        });
    }

    /// The head of a stream.
    pub(crate) async fn stream(&mut self) {
        self.write(
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await;
    }

    /// The head of a stream, and the first words of the answer.
    pub(crate) async fn begin(&mut self, text: &str) {
        self.stream().await;
        self.event(&delta(json!({"role": "assistant", "content": text}))).await;
    }

    /// One data line, as a piece of its own.
    pub(crate) async fn event(&mut self, data: &Value) {
        self.piece(format!("data: {data}\n\n").as_bytes()).await;
    }

    /// These bytes of the body, in one chunk.
    pub(crate) async fn piece(&mut self, bytes: &[u8]) {
        self.pieces(&[bytes]).await;
    }

    /// Several chunks in one write.
    pub(crate) async fn pieces<T: AsRef<[u8]>>(&mut self, pieces: &[T]) {
        let mut framed = Vec::new();
        for bytes in pieces.iter().map(AsRef::as_ref) {
            framed.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
            framed.extend(bytes);
            framed.extend(b"\r\n");
        }
        self.write(&framed).await;
    }

    /// A stream of one text from its head to `[DONE]`.
    pub(crate) async fn tell_text(mut self, text: &str) {
        self.stream().await;
        self.event(&delta(json!({"role": "assistant", "content": ""}))).await;
        self.event(&delta(json!({"content": text}))).await;
        self.event(&finish("stop")).await;
        self.event(&usage(10, 3)).await;
        self.done().await;
    }

    /// The same, or a whole message, whichever was asked for.
    pub(crate) async fn tell_as_asked(self, text: &str) {
        if self.json()["stream"] == true {
            self.tell_text(text).await;
        } else {
            self.answer("200 OK", &completion(text, "stop", 10)).await;
        }
    }

    /// `[DONE]` and the proper end of the body; the connection stays open for the next request.
    pub(crate) async fn done(mut self) {
        self.piece(b"data: [DONE]\n\n").await;
        self.write(b"0\r\n\r\n").await;
        self.keep();
    }

    /// These bytes. A gateway that has gone is seen by [`Asked::gone`].
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = within("the gateway reads", self.connection.stream.write_all(bytes)).await;
    }

    /// As many of these bytes as the gateway takes; false if it has closed.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.connection.stream.write_all(bytes).await.is_ok()
    }

    /// Ends the connection as a killed process does that had read everything.
    pub(crate) fn close(self) {
        drop(self);
    }

    /// Resets the connection.
    pub(crate) fn reset(self) {
        SockRef::from(&self.connection.stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    /// Waits until the gateway closes the connection.
    pub(crate) async fn gone(mut self) {
        let mut rest = Vec::new();
        let read = within("the gateway leaves", self.connection.stream.read_to_end(&mut rest)).await;
        assert!(
            read.is_err() || rest.is_empty(),
            "more bytes on a connection that waits for its answer: {rest:?}"
        );
    }

    fn keep(self) {
        let _ = self.keep.send(self.connection);
    }
}

/// One chunk of a chat stream with these choices.
pub(crate) fn chunk(choices: Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL, "choices": choices})
}

/// One chunk with a delta of the only choice.
pub(crate) fn delta(delta: Value) -> Value {
    chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]))
}

/// The last chunk of the only choice.
pub(crate) fn finish(reason: &str) -> Value {
    chunk(
        json!([{"index": 0, "delta": {"content": ""}, "logprobs": null, "finish_reason": reason, "stop_reason": null}]),
    )
}

/// The usage chunk.
pub(crate) fn usage(prompt: u64, completion: u64) -> Value {
    let mut chunk = chunk(json!([]));
    chunk["usage"] =
        json!({"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion});
    chunk
}

/// A whole chat answer.
pub(crate) fn completion(text: &str, finish: &str, prompt_tokens: u64) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "refusal": null, "tool_calls": []},
            "logprobs": null, "finish_reason": finish, "stop_reason": null}],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + 3, "completion_tokens": 3},
    })
}
