//! The streamed response: tokens the engine has produced, as events, one frame each; and the faults of a stream.
//!
//! hyper polls it only while the socket has room and drops it when the client leaves, which aborts the sequences (the
//! ticket). It never runs ahead of the engine and holds one event at most.
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::drive::{Progress, Ticket};
use super::fault::Fault;
use super::refusal;
use super::wire::{DONE, Wire};

/// How a connection ends that is broken on purpose.
#[derive(Debug, Default)]
pub(super) struct Kill {
    is_reset: AtomicBool,
}

impl Kill {
    /// The connection shall end in a reset instead of an end of file.
    pub(super) fn reset(&self) {
        self.is_reset.store(true, Ordering::Relaxed);
    }

    /// Whether it shall.
    pub(super) fn is_reset(&self) -> bool {
        self.is_reset.load(Ordering::Relaxed)
    }
}

/// The connection is to be cut; hyper closes it when it sees an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cut on purpose")]
pub(super) struct Cut;

impl From<Infallible> for Cut {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The role event of this choice is next.
    Role(usize),
    /// Tokens follow.
    Tokens,
    /// The usage event is next.
    Usage,
    /// `[DONE]` is next.
    Done,
    /// Nothing follows.
    Ended,
    /// Silence, but the connection stays.
    Silent,
    /// What was sent is being flushed; then the connection is cut.
    Cutting,
}

/// Body of any response.
pub(super) enum Reply {
    /// All at once.
    Whole(Option<Bytes>),
    /// Event by event.
    Stream(Box<Stream>),
}

/// A stream of events.
pub(super) struct Stream {
    wire: Wire,
    ticket: Option<Ticket>,
    progress: Progress,
    sent: Vec<u32>,
    events: u32,
    stage: Stage,
    fault: Option<Fault>,
    kill: Arc<Kill>,
}

impl Stream {
    /// Streams what the ticket's sequences produce; `fault` may break it.
    pub(super) fn new(wire: Wire, ticket: Ticket, fault: Option<Fault>, kill: Arc<Kill>) -> Self {
        let choices = wire.scripts().len();
        let stage = if wire.has_roles() {
            Stage::Role(0)
        } else {
            Stage::Tokens
        };
        Self {
            wire,
            ticket: Some(ticket),
            progress: Progress::new(choices),
            sent: vec![0; choices],
            events: 0,
            stage,
            fault,
            kill,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            match self.stage {
                Stage::Role(_) | Stage::Tokens => {
                    if let Some(event) = self.broken(cx) {
                        return event;
                    }
                    if let Some(event) = self.next_event() {
                        return Poll::Ready(Some(Ok(event)));
                    }
                    if self.stage == Stage::Usage {
                        continue;
                    }
                    let Some(ticket) = &self.ticket else {
                        return Poll::Ready(None);
                    };
                    if ticket.poll_progress(&mut self.progress, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Stage::Usage => {
                    self.ticket = None;
                    self.stage = Stage::Done;
                    if self.wire.has_usage() {
                        return Poll::Ready(Some(Ok(self.wire.usage(self.progress.cached))));
                    }
                }
                Stage::Done => {
                    self.stage = Stage::Ended;
                    return Poll::Ready(Some(Ok(Bytes::from_static(DONE))));
                }
                Stage::Ended => return Poll::Ready(None),
                // The connection notices the client's end by itself and drops this.
                Stage::Silent => return Poll::Pending,
                Stage::Cutting => return Poll::Ready(Some(Err(Cut))),
            }
        }
    }

    /// What a fault or the engine's death makes of the next event; None if all is well.
    fn broken(&mut self, cx: &Context<'_>) -> Option<Poll<Option<Result<Bytes, Cut>>>> {
        let cut = |stream: &mut Self| {
            // One turn for hyper to flush what it has, then the error that makes it close.
            stream.ticket = None;
            stream.stage = Stage::Cutting;
            cx.waker().wake_by_ref();
            Some(Poll::Pending)
        };
        match self.fault {
            Some(Fault::ResetMid(after)) if self.events >= after => {
                self.kill.reset();
                cut(self)
            }
            Some(Fault::CloseMid(after)) if self.events >= after => cut(self),
            Some(Fault::ErrorEvent(after)) if self.events >= after => Some(self.fail()),
            Some(Fault::Stall(after)) if self.events >= after => {
                self.stage = Stage::Silent;
                Some(Poll::Pending)
            }
            _ if self.progress.is_dead => Some(self.fail()),
            _ => None,
        }
    }

    fn fail(&mut self) -> Poll<Option<Result<Bytes, Cut>>> {
        self.ticket = None;
        self.stage = Stage::Done;
        Poll::Ready(Some(Ok(Bytes::from(refusal::error_event()))))
    }

    /// The next event that the engine's progress allows; moves on to the usage when all tokens are sent.
    fn next_event(&mut self) -> Option<Bytes> {
        if let Stage::Role(choice) = self.stage {
            if self.progress.produced.iter().all(|produced| *produced == 0) {
                return None;
            }
            let is_last = choice + 1 == self.sent.len();
            self.stage = if is_last {
                Stage::Tokens
            } else {
                Stage::Role(choice + 1)
            };
            return Some(self.wire.role(choice));
        }
        let behind = |choice: &usize| self.sent[*choice] < self.progress.produced[*choice];
        let next = (0..self.sent.len())
            .filter(behind)
            .min_by_key(|choice| self.sent[*choice]);
        match next {
            Some(choice) => {
                let event = self.wire.token(choice, self.sent[choice]);
                self.sent[choice] += 1;
                match event {
                    Some(event) => {
                        self.events += 1;
                        Some(event)
                    }
                    // vLLM's parser swallowed it.
                    None => self.next_event(),
                }
            }
            None => {
                let totals = self.wire.scripts().iter().map(super::script::Script::tokens);
                if self.sent.iter().copied().eq(totals) {
                    self.stage = Stage::Usage;
                }
                None
            }
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Reply::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Reply::Stream(stream) => stream
                .poll_event(cx)
                .map(|event| event.map(|event| event.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Reply::Stream(_) => SizeHint::default(),
        }
    }
}
