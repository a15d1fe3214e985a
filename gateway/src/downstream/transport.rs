//! The client's byte stream as hyper sees it: bytes that were read to tell the protocols apart come first, and a write
//! that makes no progress fails.
//!
//! hyper has no write timeout (trap 9): a client that stops reading would hold its place, its replica's sequence and its
//! buffers for ever. The timer exists only while a write waits.

use bytes::{Buf, Bytes};
use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// See the module.
pub struct Transport<S> {
    inner: S,
    first: Bytes,
    write_stall: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    /// Bytes were read since the last byte was written: a timeout now is the client's unfinished request.
    unanswered: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Transport<S> {
    /// `first` is read before the stream; a write without progress for `write_stall` fails.
    pub fn new(inner: S, first: Bytes, write_stall: Duration) -> Self {
        let unanswered = !first.is_empty();
        Transport {
            inner,
            first,
            write_stall,
            waiting: None,
            unanswered,
        }
    }

    /// The client has sent bytes that nothing was answered to.
    pub fn is_unanswered(&self) -> bool {
        self.unanswered
    }

    fn progress<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<Result<T>>) -> Poll<Result<T>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        let write_stall = self.write_stall;
        let timer = self.waiting.get_or_insert_with(|| Box::pin(sleep(write_stall)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        if self.first.has_remaining() {
            let take = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(take));
            if self.first.is_empty() {
                self.first = Bytes::new(); // an empty slice would keep its buffer
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.unanswered = true;
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.unanswered = false;
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.progress(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.unanswered = false;
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.progress(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.progress(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.progress(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_write_without_progress_fails_and_one_with_progress_does_not() {
        let (client, server) = duplex(16);
        let mut transport = Transport::new(server, Bytes::new(), Duration::from_secs(60));
        let mut client = client;
        let reader = tokio::spawn(async move {
            let mut got = [0_u8; 8];
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                client.read_exact(&mut got).await.unwrap();
            }
            client
        });
        transport.write_all(&[7; 48]).await.unwrap();
        let _client = reader.await.unwrap();
        let error = transport.write_all(&[7; 64]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_first_bytes_are_read_first() {
        let (mut client, server) = duplex(16);
        let mut transport = Transport::new(server, Bytes::from_static(b"ab"), Duration::from_secs(60));
        client.write_all(b"cd").await.unwrap();
        let mut got = [0_u8; 4];
        transport.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abcd");
        assert!(transport.is_unanswered());
        transport.write_all(b"x").await.unwrap();
        assert!(!transport.is_unanswered());
    }
}
