//! One HTTP/1.1 connection to a replica, and the pool of idle ones.
//!
//! There is no connection task: whoever waits for the answer drives the connection, so that a token takes one wake from
//! socket to socket and dropping the answer closes the socket at once (vLLM aborts the request). A pooled connection is
//! driven by nobody; whether it is still alive is asked when it is taken out. vLLM closes idle connections after 5 s,
//! so ours leave the pool before that, and a request that fails on a reused connection before any byte of its answer
//! is sent once more on a new one (trap 4 of the design).
//! Head and body leave in one vectored write; a large body is never copied together.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::address::Address;
use super::tls::Stream;

/// Idle connections kept per replica. More than any `max_num_seqs` in use; what is beyond it is closed.
const MAX_IDLE: usize = 256;

/// After `[DONE]` the rest of the answer (the last chunk) is read for at most this long, else no connection is reused.
const TAIL: Duration = Duration::from_secs(1);

/// A piece of an answer is copied out of the connection's read buffer (8 KiB) up to this size. A slice of it would make hyper
/// allocate another buffer for the next read, at each token.
const COPIED_BYTES: usize = 4096;

/// Why no answer, or no more of it, came from a replica.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: refused, unreachable, no such name.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// No connection within the limit.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection ended or broke before the answer was whole.
    #[error("connection lost: {0}")]
    Lost(hyper::Error),
    /// No response head within the limit.
    #[error("no response within {0:?}")]
    HeadTimeout(Duration),
    /// An answer that must be held whole is larger than the limit.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// A request body as slices of what was received and what we spliced in.
#[derive(Debug, Clone, Default)]
pub struct Segments {
    parts: VecDeque<Bytes>,
    bytes_left: u64,
}

impl Segments {
    /// Empty parts are left out.
    pub fn new(parts: Vec<Bytes>) -> Self {
        let parts: VecDeque<Bytes> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        let bytes_left = parts.iter().map(|p| p.len() as u64).sum();
        Segments { parts, bytes_left }
    }

    /// Bytes that are still to be sent.
    pub fn len(&self) -> u64 {
        self.bytes_left
    }

    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes_left == 0
    }
}

impl Body for Segments {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.parts.pop_front().map(|part| {
            self.bytes_left -= part.len() as u64;
            Ok(Frame::data(part))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes_left)
    }
}

/// Handed on as a box: it has 700 bytes, and passes through half a dozen futures on its way to the answer.
struct Connection {
    sender: http1::SendRequest<Segments>,
    driver: http1::Connection<TokioIo<Stream>, Segments>,
}

impl Connection {
    async fn open(address: &Address, limit: Duration) -> Result<Box<Self>, UpstreamError> {
        let stream = tokio::time::timeout(limit, address.connect())
            .await
            .map_err(|_| UpstreamError::ConnectTimeout(limit))?
            .map_err(UpstreamError::Connect)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(UpstreamError::Lost)?;
        Ok(Box::new(Connection { sender, driver }))
    }

    /// Still open, as far as the kernel knows now.
    async fn is_alive(&mut self) -> bool {
        let open = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.driver).poll(cx).is_pending())).await;
        open && self.sender.is_ready()
    }

    async fn send(&mut self, request: Request<Segments>) -> Result<Response<Incoming>, hyper::Error> {
        let mut response = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        let mut ended = false;
        poll_fn(move |cx| {
            if let Poll::Ready(done) = response.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if !ended {
                ended = Pin::new(&mut *driver).poll(cx).is_ready();
            }
            response.as_mut().poll(cx)
        })
        .await
    }
}

/// Idle connections to one replica, youngest last.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<Vec<(Box<Connection>, Instant)>>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Vec<(Box<Connection>, Instant)>> {
        // A panic elsewhere cannot leave a Vec of connections half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self, max_idle: Duration) -> Option<Box<Connection>> {
        loop {
            let (mut connection, since) = self.lock().pop()?;
            if since.elapsed() < max_idle && connection.is_alive().await {
                return Some(connection);
            }
        }
    }

    fn put(&self, connection: Box<Connection>) {
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
    }

    /// Closes what has been idle for `max_idle`. Called by the sweeper every second.
    pub fn sweep(&self, max_idle: Duration) {
        let old: Vec<_> = {
            let mut idle = self.lock();
            let keep_from = idle.partition_point(|(_, since)| since.elapsed() >= max_idle);
            idle.drain(..keep_from).collect()
        };
        drop(old); // sockets are closed outside the lock
    }

    /// Closes everything: the replica restarted, or the process drains.
    pub fn clear(&self) {
        let old = std::mem::take(&mut *self.lock());
        drop(old);
    }

    /// Idle connections now.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// No idle connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What [`send`] needs to know beside the request.
#[derive(Debug, Clone, Copy)]
pub struct SendLimits {
    /// Time to connect.
    pub connect: Duration,
    /// Time until the response head. A streamed answer's head comes at once, a whole answer's head comes with its body.
    pub head: Duration,
    /// A pooled connection older than this is not used.
    pub idle: Duration,
}

/// Sends one request and waits for the response head.
///
/// # Errors
/// [`UpstreamError::Connect`] and [`UpstreamError::ConnectTimeout`]: nothing was sent. [`UpstreamError::Lost`] and
/// [`UpstreamError::HeadTimeout`]: the replica may have begun to work on it.
pub async fn send(
    pool: &Arc<Pool>,
    address: &Address,
    request: impl Fn() -> Request<Segments>,
    limits: SendLimits,
) -> Result<Answer, UpstreamError> {
    let exchange = async {
        // A pooled connection that vLLM closed on the way gave no byte of an answer: it is sent once more, on a new one.
        if let Some(mut connection) = pool.take(limits.idle).await
            && let Ok(response) = connection.send(request()).await
        {
            return Ok(Answer::new(response, connection, pool.clone()));
        }
        let mut connection = Connection::open(address, limits.connect).await?;
        let response = connection.send(request()).await.map_err(UpstreamError::Lost)?;
        Ok(Answer::new(response, connection, pool.clone()))
    };
    tokio::time::timeout(limits.head, exchange)
        .await
        .map_err(|_| UpstreamError::HeadTimeout(limits.head))?
}

/// A response whose body is read by polling. Dropping it before its end closes the connection.
pub struct Answer {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    body: Incoming,
    connection: Option<Box<Connection>>,
    pool: Arc<Pool>,
    ended: bool,
}

impl Answer {
    fn new(response: Response<Incoming>, connection: Box<Connection>, pool: Arc<Pool>) -> Self {
        let (head, body) = response.into_parts();
        // A header's value is a slice of hyper's read buffer and would keep all of it for as long as the stream runs.
        let content_type = head.headers.get(http::header::CONTENT_TYPE);
        Answer {
            status: head.status,
            content_type: content_type.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok()),
            body,
            connection: Some(connection),
            pool,
            ended: false,
        }
    }

    /// The response status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response's content type, if it has one.
    pub fn content_type(&self) -> Option<&HeaderValue> {
        self.content_type.as_ref()
    }

    /// The next piece of the body; `None` at its proper end, after which the connection is back in the pool.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            match self.step(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    self.ended = true;
                    self.give_back(cx);
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        let small = data.len() <= COPIED_BYTES;
                        let data = if small { Bytes::copy_from_slice(&data) } else { data };
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.ended = true;
                    self.connection = None;
                    return Poll::Ready(Some(Err(UpstreamError::Lost(error))));
                }
            }
        }
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some(connection) = self.connection.as_mut() {
            match Pin::new(&mut connection.driver).poll(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(())) => self.connection = None,
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn give_back(&mut self, cx: &mut Context<'_>) {
        if let Some(mut connection) = self.connection.take()
            && Pin::new(&mut connection.driver).poll(cx).is_pending()
            && connection.sender.is_ready()
        {
            self.pool.put(connection);
        }
    }

    /// The whole body, up to `max_bytes`.
    ///
    /// # Errors
    /// [`UpstreamError::Lost`] if it ends early, [`UpstreamError::TooLong`] past the limit.
    pub async fn collect(&mut self, max_bytes: usize) -> Result<Bytes, UpstreamError> {
        let mut first = Bytes::new();
        let mut all = Vec::new();
        while let Some(piece) = poll_fn(|cx| self.poll_data(cx)).await {
            let piece = piece?;
            if first.len() + all.len() + piece.len() > max_bytes {
                return Err(UpstreamError::TooLong(max_bytes));
            }
            if first.is_empty() && all.is_empty() {
                first = piece;
                continue;
            }
            if all.is_empty() {
                all.extend_from_slice(&first);
                first = Bytes::new();
            }
            all.extend_from_slice(&piece);
        }
        Ok(if all.is_empty() { first } else { Bytes::from(all) })
    }

    /// Reads what is left after the last event, so that the connection can be reused. Nobody waits for it.
    pub fn finish_in_background(mut self, cx: &mut Context<'_>) {
        loop {
            match self.poll_data(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return,
                Poll::Pending => break,
            }
        }
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = poll_fn(|cx| self.poll_data(cx)).await {} };
            let _ = tokio::time::timeout(TAIL, rest).await;
        });
    }
}
