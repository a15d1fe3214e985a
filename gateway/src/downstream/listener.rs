//! One client connection, from the accepted socket to its end.
//!
//! pingora accepts and hands over a byte stream; here it may become TLS, is told apart into HTTP/1.1 and HTTP/2 (ALPN, or
//! the first bytes), and is served by hyper. At a drain the connection finishes what runs and takes no more; `leaving` says when.
//!
//! hyper ends a connection whose head does not arrive in time without a word: this room says why (408) where the client
//! had begun a request.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::server::ShutdownWatch;
use sluice_policy::protocol::fault::{ErrorShape, Fault, FaultKind};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::leaving;
use super::transport::Transport;
use crate::flow::gate::Gated;
use crate::flow::ids;
use crate::flow::refusal::Refusals;
use crate::flow::registry::HangUp;
use crate::flow::reply::Reply;

/// HTTP/2 begins with these bytes.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// hyper's own bounds on a head, a multiple of ours, so that ours can answer with a message.
const HEAD_SLACK: usize = 4;
/// So many lines more than ours: hyper allocates room for all of them at each request, so it isn't a multiple.
const LINES_SLACK: usize = 16;
/// hyper's smallest read buffer.
const MIN_BUFFER_BYTES: usize = 8192;
/// Streams of one HTTP/2 connection.
const H2_MAX_STREAMS: u32 = 1024;
/// Receive window of an HTTP/2 stream and connection: large bodies need not wait for a round trip each 64 KiB.
const H2_WINDOW_BYTES: u32 = 1 << 20;

/// The nearest timer is never further away than this; see [`metronome`].
const TICK: Duration = Duration::from_secs(1);

/// The client's address, as an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<SocketAddr>);

/// What a connection must keep to; taken anew for each connection, so a reload reaches the next one.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// HTTP/2 is spoken at all.
    pub http2: bool,
    /// Bytes of a head.
    pub header_bytes: usize,
    /// Lines of a head.
    pub header_count: usize,
    /// From the first byte of a head to its last; also how long an idle connection is kept.
    pub header_time: Duration,
    /// A write without progress.
    pub write_stall: Duration,
    /// Connections at once.
    pub connections: usize,
}

/// The service that every connection gets a clone of.
pub trait Serve:
    Service<Request<Incoming>, Response = Reply, Error = Infallible, Future: Send + 'static> + Clone + Send + Sync + 'static
{
}

impl<S> Serve for S where
    S: Service<Request<Incoming>, Response = Reply, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Serves accepted connections.
pub struct Listener<S> {
    service: S,
    tls: Option<TlsAcceptor>,
    limits: Arc<dyn Fn() -> ConnectionLimits + Send + Sync>,
    open: Arc<AtomicUsize>,
    refusals: Refusals,
    hears: leaving::Hears,
    /// Started by the first connection: only there is one inside the runtime of all connections.
    metronome: Once,
}

impl<S: Serve> Listener<S> {
    /// `open` counts connections; the drain waits for it. `refusals` are of requests that no service gets to see. `hears` tells when the
    /// process leaves: pingora's own word for it doesn't tell how.
    pub fn new(
        service: S,
        tls: Option<TlsAcceptor>,
        limits: Arc<dyn Fn() -> ConnectionLimits + Send + Sync>,
        open: Arc<AtomicUsize>,
        refusals: Refusals,
        hears: leaving::Hears,
    ) -> Self {
        Listener {
            service,
            tls,
            limits,
            open,
            refusals,
            hears,
            metronome: Once::new(),
        }
    }

    async fn serve(&self, stream: Stream) {
        self.metronome.call_once(|| drop(tokio::spawn(metronome())));
        let limits = (self.limits)();
        let peer = Peer(
            stream
                .get_socket_digest()
                .and_then(|digest| digest.peer_addr().and_then(|a| a.as_inet().copied())),
        );
        let Some(_open) = Open::new(&self.open, limits.connections) else {
            tracing::warn!(limit = limits.connections, "connection refused: too many at once");
            return;
        };
        match &self.tls {
            // Boxed, both: the larger of these futures would be the size of every connection's.
            None => Box::pin(self.plain(stream, peer, limits)).await,
            Some(acceptor) => Box::pin(self.secured(stream, acceptor, peer, limits)).await,
        }
    }

    async fn secured(&self, stream: Stream, acceptor: &TlsAcceptor, peer: Peer, limits: ConnectionLimits) {
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(limits.header_time, acceptor.accept(stream)) => accepted,
            () = leaving::ends(&self.hears) => return,
        };
        let Ok(Ok(stream)) = accepted else {
            return; // not TLS, no common version, or too slow: nobody to tell
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let transport = Transport::new(stream, Bytes::new(), limits.write_stall);
        if is_h2 {
            Box::pin(self.h2(transport, peer, limits)).await;
        } else {
            Box::pin(self.h1(transport, peer, limits)).await;
        }
    }

    async fn plain(&self, mut stream: Stream, peer: Peer, limits: ConnectionLimits) {
        let sniffed = tokio::select! {
            sniffed = tokio::time::timeout(limits.header_time, sniff(&mut stream)) => sniffed,
            () = leaving::ends(&self.hears) => return,
        };
        let Ok(Ok((first, is_h2))) = sniffed else { return };
        let transport = Transport::new(stream, first, limits.write_stall);
        if is_h2 && limits.http2 {
            Box::pin(self.h2(transport, peer, limits)).await;
        } else {
            Box::pin(self.h1(transport, peer, limits)).await;
        }
    }

    async fn h1<T>(&self, transport: Transport<T>, peer: Peer, limits: ConnectionLimits)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hang_up = HangUp::default();
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_time)
            .max_buf_size((limits.header_bytes * HEAD_SLACK).max(MIN_BUFFER_BYTES))
            .max_headers(limits.header_count + LINES_SLACK)
            .half_close(false)
            .serve_connection(TokioIo::new(transport), self.per_request(peer, &hang_up));
        let closes = pin!(leaving::closes_idle(&self.hears));
        let mut closes = Gated::new(closes);
        let outcome = tokio::select! {
            biased;
            outcome = &mut connection => outcome,
            () = &mut closes => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        let Err(error) = outcome else { return };
        let transport = connection.into_parts().io.into_inner();
        if error.is_timeout() {
            // A connection that was only idle began no request.
            if transport.is_unanswered() {
                let fault = head_timeout(limits);
                self.refused(&fault);
                say_timeout(transport, &fault).await;
            }
        } else if error.is_parse() && !transport.is_unanswered() {
            // hyper has answered it.
            self.refused(&unread(&error));
        }
    }

    /// A head that is no request: it has no id and no route.
    fn refused(&self, fault: &Fault) {
        self.refusals.refused(&ids::request_id(), Instant::now(), None, fault);
    }

    async fn h2<T>(&self, transport: Transport<T>, peer: Peer, limits: ConnectionLimits)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hang_up = HangUp::default();
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.header_bytes * HEAD_SLACK).unwrap_or(u32::MAX))
            .max_concurrent_streams(H2_MAX_STREAMS)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(H2_WINDOW_BYTES)
            .keep_alive_interval(limits.write_stall)
            .keep_alive_timeout(limits.write_stall)
            .serve_connection(TokioIo::new(transport), self.per_request(peer, &hang_up));
        let mut connection = pin!(connection);
        // A GOAWAY loses no request: at once.
        let leaves = pin!(leaving::leaves(&self.hears));
        let mut leaves = Gated::new(leaves);
        let _ = tokio::select! {
            biased;
            outcome = connection.as_mut() => outcome,
            () = hang_up.wanted() => return,
            () = &mut leaves => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        };
    }

    fn per_request(&self, peer: Peer, hang_up: &HangUp) -> PerRequest<S> {
        PerRequest {
            service: self.service.clone(),
            peer,
            hang_up: hang_up.clone(),
        }
    }
}

#[async_trait]
impl<S: Serve> ServerApp for Listener<S> {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        self.serve(stream).await;
        None
    }
}

/// hyper's view of the tower service.
struct PerRequest<S> {
    service: S,
    peer: Peer,
    hang_up: HangUp,
}

impl<S: Serve> hyper::service::Service<Request<Incoming>> for PerRequest<S> {
    type Response = Reply;
    type Error = Infallible;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> S::Future {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.hang_up.clone());
        self.service.clone().call(request)
    }
}

/// A timer that is set before all others makes tokio wake its own driver: two system calls. A request sets several, of seconds
/// and minutes, and each would be the nearest on a quiet machine. Beside one that is always nearer they cost nothing.
async fn metronome() {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
    }
}

/// Reads until the first bytes tell HTTP/2 by prior knowledge from HTTP/1.1.
async fn sniff(stream: &mut Stream) -> std::io::Result<(Bytes, bool)> {
    let mut first = BytesMut::with_capacity(MIN_BUFFER_BYTES / 2);
    loop {
        if stream.read_buf(&mut first).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let common = first.iter().zip(H2_PREFACE).take_while(|(a, b)| a == b).count();
        if common == H2_PREFACE.len() {
            return Ok((first.freeze(), true));
        }
        if common < first.len() {
            return Ok((first.freeze(), false));
        }
    }
}

/// A head that did not arrive in time.
fn head_timeout(limits: ConnectionLimits) -> Fault {
    let message = format!(
        "The request's head did not arrive in time (limit header_time, {:?}).",
        limits.header_time
    );
    Fault::new(FaultKind::BodyTimeout, message)
}

/// What hyper answers by itself, with an empty body: a head far beyond the limits, or none that is HTTP.
fn unread(error: &hyper::Error) -> Fault {
    if error.is_parse_too_large() {
        return Fault::new(FaultKind::HeadersTooLarge, "The request's head is far too large.");
    }
    Fault::new(FaultKind::BadRequest, "This is no HTTP request.")
}

/// The last answer of a connection.
async fn say_timeout<T>(mut transport: Transport<T>, fault: &Fault)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let body = fault.body(ErrorShape::OpenAi);
    let head = format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = transport.write_all(&[head.as_bytes(), &body].concat()).await;
    let _ = transport.shutdown().await;
}

/// A connection that is counted while it is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        if open.fetch_add(1, Ordering::Relaxed) >= limit {
            open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Open(open.clone()))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
