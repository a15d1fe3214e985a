//! A streamed answer as one pull-driven body: a step that is ready, else the upstream, else the timers.
//!
//! There is no task and no channel: hyper polls it when the socket has room and drops it when the client leaves, which
//! closes the upstream. Frames that are ready together leave together, but for the first token, which waits for nobody. It may
//! still be *trying* when the head has been sent; a replica that dies before the first data line is followed by another one, and
//! after it the answer goes on there (B31). Where it can't, an error event says so (B10).
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | `Trying` | a replica answers | `Streaming` |
//! | `Trying` | nothing left to try | error event, `Over` |
//! | `Streaming` | bytes | frames |
//! | `Streaming` | `[DONE]` after a finish | `Over`, the connection is read to its end |
//! | `Streaming` | reset, early end, error event, stall, a replica that hangs (B36); nothing shown | `Trying` the next |
//! | `Streaming` | the same; something shown, and it can go on | `Asking` another replica |
//! | `Streaming` | the same; but no more than the role, and it can't | `Trying` the next |
//! | `Streaming` | the same; it can't | error event, `Over` |
//! | `Streaming` | a call isn't valid (B26) | `Asking` the same replica |
//! | `Asking` | it goes on | `Streaming` |
//! | `Asking`, `Streaming` its call | failed, or too late | what was said before (B27), `Over` |
//! | `Asking` what follows the call | failed | `Asking` another replica |
//! | `Asking` another replica | none within `hold` | error event, `Over` |
//! | any | cancelled, drained | error event, `Over` |
//! | any | dropped | the record says `cancelled` |

use bytes::{Bytes, BytesMut};
use sluice_policy::health::breaker::Event;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use sluice_policy::protocol::sse::KEEP_ALIVE;
use sluice_policy::turn::{AskAgain, Guide, Loss, Obstacle, Shows, Step, Turn};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

use super::account::{Account, Seam};
use super::again::{Asker, Begun, Unasked};
use super::attempt::{self, Live, Tried, Trying};
use super::exchange::Exchange;
use super::gate::More;
use super::plan;
use super::registry::Registered;
use super::seam;

/// Frames that are ready at once are merged up to this size: more would only wait in the socket's buffer.
const MERGE_BYTES: usize = 64 * 1024;

/// A question that is under way.
pub(super) type Asking = Pin<Box<dyn Future<Output = (Asker, Tried, Result<Begun, Unasked>)> + Send>>;

enum State {
    Trying(Trying),
    Streaming(Box<Live>, Tried),
    Asking(Asking),
    Over,
}

/// The first token of an answer on its way to the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Awaited,
    /// It is ready: it leaves before what came with it is read.
    Ready,
    Left,
}

/// See the module.
pub struct Relay {
    exchange: Arc<Exchange>,
    registered: Registered,
    state: State,
    turn: Turn,
    steps: Vec<Step>,
    account: Box<Account>,
    /// Since when a call is held.
    held_since: Option<Instant>,
    /// Kept from question to question.
    asker: Option<Asker>,
    /// When a call that is asked again must be there.
    call_by: Option<Instant>,
    /// A data line has been handed over.
    begun: bool,
    first: First,
    /// The replica that answers now has sent a token.
    speaks: bool,
    /// How often the answer has gone on elsewhere.
    seams: u32,
    /// It is on its way elsewhere.
    crossing: bool,
    /// When something was last sent to the client, and when something last came from upstream.
    sent: Instant,
    heard: Instant,
    /// When this poll began: one look at the clock for all that it does.
    now: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Relay {
    /// Over an answer that has begun.
    pub fn streaming(
        exchange: Arc<Exchange>,
        registered: Registered,
        mut account: Box<Account>,
        live: Live,
        tried: Tried,
    ) -> Self {
        account.dispatched(&live, &tried);
        let turn = plan::turn(&exchange, live.in_flight.replica());
        Self::new(
            exchange,
            registered,
            account,
            State::Streaming(Box::new(live), tried),
            turn,
        )
    }

    /// Over attempts that have not answered within `head_after`.
    pub fn trying(exchange: Arc<Exchange>, registered: Registered, account: Box<Account>, trying: Trying) -> Self {
        // Replaced when a replica answers.
        let turn = Turn::new(plan::unknown(&exchange.wishes));
        Self::new(exchange, registered, account, State::Trying(trying), turn)
    }

    fn new(exchange: Arc<Exchange>, registered: Registered, account: Box<Account>, state: State, turn: Turn) -> Self {
        let now = Instant::now();
        Relay {
            exchange,
            registered,
            state,
            turn,
            steps: Vec::new(),
            account,
            held_since: None,
            asker: None,
            call_by: None,
            begun: false,
            first: First::Awaited,
            speaks: false,
            seams: 0,
            crossing: false,
            sent: now,
            heard: now,
            now,
            timer: None,
        }
    }

    /// Nothing more will come.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// The next bytes for the client; `None` at the end. To be polled behind a gate: always with the same waker.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Option<Bytes>, More)> {
        let mut out = Outgoing::default();
        self.now = Instant::now();
        self.registered.polled(self.now);
        if let Some(stop) = self.registered.entry.poll_stop(cx)
            && !self.is_over()
        {
            self.fail(&stop.fault(), &mut out);
        }
        // It closes no connection: nothing else wakes us.
        if let State::Streaming(live, _) = &self.state
            && live.in_flight.poll_left(cx).is_ready()
        {
            self.broke(attempt::hangs(), cx, &mut out);
        }
        let mut waits = false;
        while !waits && !self.is_over() && self.first != First::Ready && out.len() < MERGE_BYTES {
            waits = self.advance(cx, &mut out).is_pending();
        }
        if self.is_over() {
            return Poll::Ready((self.hand_over(out), More::Perhaps));
        }
        if self.first == First::Ready {
            self.first = First::Left;
            return Poll::Ready((self.hand_over(out), More::Later));
        }
        if out.is_empty() {
            return self.poll_timers(cx).map(|bytes| (bytes, More::Perhaps));
        }
        let bytes = self.hand_over(out);
        let settled = waits
            && self
                .due(self.silence())
                .is_none_or(|due| self.arm(due, cx).is_pending());
        Poll::Ready((bytes, if settled { More::WhenWoken } else { More::Perhaps }))
    }

    fn hand_over(&mut self, out: Outgoing) -> Option<Bytes> {
        let bytes = out.into_bytes()?;
        self.sent = self.now;
        self.account.sent(bytes.len());
        Some(bytes)
    }

    /// One step of the state machine; pending if it waits for the upstream.
    fn advance(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) -> Poll<()> {
        match &mut self.state {
            State::Over => Poll::Ready(()),
            State::Trying(trying) => match trying.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready((tried, Ok(live))) => {
                    self.begin(live, tried);
                    Poll::Ready(())
                }
                Poll::Ready((tried, Err(fault))) => {
                    self.account.tried(&tried);
                    self.fail(&fault, out);
                    Poll::Ready(())
                }
            },
            State::Asking(asking) => match asking.as_mut().poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready((asker, tried, begun)) => {
                    self.asked(asker, tried, begun, cx, out);
                    Poll::Ready(())
                }
            },
            State::Streaming(live, _) => match live.answer.poll_data(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) => {
                    live.in_flight.replica().health.spoke();
                    self.heard = self.now;
                    self.hurry();
                    self.turn.push(bytes, &mut self.steps);
                    self.carry_out(cx, out);
                    Poll::Ready(())
                }
                Poll::Ready(None) => {
                    self.turn.end(&mut self.steps);
                    self.carry_out(cx, out);
                    Poll::Ready(())
                }
                Poll::Ready(Some(Err(error))) => {
                    live.in_flight.replica().failed();
                    let fault = attempt::fault_of(&error);
                    self.broke(fault, cx, out);
                    Poll::Ready(())
                }
            },
        }
    }

    /// A call that is held for too long is shown from the next bytes on (B20).
    fn hurry(&mut self) {
        let after = self.exchange.limits.release_after;
        if self.held_since.is_some_and(|since| self.heard >= since + after) {
            self.turn.hurry();
        }
    }

    fn begin(&mut self, live: Live, tried: Tried) {
        let replica = live.in_flight.replica();
        if self.begun {
            self.turn
                .anew(plan::answer(&self.exchange.ask, &self.exchange.wishes, replica));
        } else {
            self.turn = plan::turn(&self.exchange, replica);
        }
        self.account.dispatched(&live, &tried);
        self.speaks = false;
        self.heard = self.now;
        self.state = State::Streaming(Box::new(live), tried);
    }

    fn carry_out(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) {
        self.account.heard(self.heard, self.turn.facts());
        if !self.speaks
            && self.turn.facts().tokens_in_last_push > 0
            && let State::Streaming(live, _) = &mut self.state
        {
            self.speaks = true;
            live.in_flight.replica().health.step(Event::Good);
            if let Some(routed) = &mut live.routed {
                routed.token();
            }
        }
        self.held_since = self
            .held_since
            .or(Some(self.heard))
            .filter(|_| self.turn.facts().holds_call);
        let mut steps = std::mem::take(&mut self.steps);
        for step in steps.drain(..) {
            match step {
                Step::Emit(frame) => {
                    self.begun = true;
                    if frame.shows == Shows::Token {
                        self.account.shown(self.heard);
                        if self.first == First::Awaited {
                            self.first = First::Ready;
                        }
                    }
                    out.push(frame.bytes);
                }
                Step::Done => {
                    self.account.finished(self.turn.facts());
                    self.exchange.used(&self.turn.facts().usage);
                    if let State::Streaming(mut live, _) = std::mem::replace(&mut self.state, State::Over) {
                        if let Some(routed) = &mut live.routed {
                            routed.used(&self.turn.facts().usage);
                        }
                        if let Some(opener) = self.turn.facts().opener {
                            live.in_flight.replica().set_opener(opener);
                        }
                        live.answer.finish_in_background(cx);
                    }
                    return;
                }
                Step::Fault(fault) => {
                    self.broke(fault, cx, out);
                    return;
                }
                Step::AskAgain(question) => {
                    self.ask_again(question, cx);
                    return;
                }
                Step::GoOn(question) => {
                    self.next_choice(question, cx, out);
                    return;
                }
            }
        }
        // The list is kept: its room is used again by the next push.
        self.steps = steps;
    }

    /// The upstream is left, and its replica asked to go on.
    fn ask_again(&mut self, question: AskAgain, cx: &mut Context<'_>) {
        let State::Streaming(live, tried) = std::mem::replace(&mut self.state, State::Over) else {
            return;
        };
        let asker = self.asker_after(&live);
        match question.guide {
            // The engine is to stop.
            Guide::Call { .. } => drop(live),
            Guide::Free => live.answer.finish_in_background(cx),
        }
        self.call_by = None;
        self.state = State::Asking(Box::pin(async move {
            let (asker, begun) = asker.ask(question).await;
            (asker, tried, begun)
        }));
    }

    /// One choice has gone on to its end: another one goes on, at the same replica if it can.
    fn next_choice(&mut self, question: AskAgain, cx: &mut Context<'_>, out: &mut Outgoing) {
        let State::Streaming(live, tried) = std::mem::replace(&mut self.state, State::Over) else {
            return self.fail(&Fault::new(FaultKind::Internal, "No answer that could go on."), out);
        };
        let asker = self.asker_after(&live);
        live.answer.finish_in_background(cx);
        self.cross(seam::at_hand(asker, tried, question));
    }

    /// Who asks next: with what earlier questions told it, else of the replica that answers now.
    fn asker_after(&mut self, live: &Live) -> Asker {
        let asker = self.asker.take();
        asker.unwrap_or_else(|| Asker::new(self.exchange.clone(), live.in_flight.replica().clone()))
    }

    fn cross(&mut self, asking: Asking) {
        self.crossing = true;
        self.call_by = None;
        self.state = State::Asking(asking);
    }

    fn asked(
        &mut self,
        asker: Asker,
        tried: Tried,
        begun: Result<Begun, Unasked>,
        cx: &mut Context<'_>,
        out: &mut Outgoing,
    ) {
        self.state = State::Over;
        self.heard = Instant::now();
        let crosses = std::mem::take(&mut self.crossing);
        match begun {
            Ok(begun) => {
                if crosses {
                    self.account.went_on(&begun.live, &tried);
                }
                self.call_by = self.turn.can_give_up().then(|| asker.deadline());
                self.asker = Some(asker);
                self.turn.again(begun.budget, begun.prompt_tokens);
                self.speaks = false;
                self.state = State::Streaming(Box::new(begun.live), tried);
            }
            Err(Unasked::NoRoom { prompt_tokens }) => {
                if crosses {
                    self.account.crossed(Seam::Continued);
                }
                self.turn.cut_short(Some(prompt_tokens), &mut self.steps);
                // Another choice may go on from there.
                self.asker = Some(asker);
                self.carry_out_without(tried, cx, out);
            }
            // Every replica that there is was asked, for as long as one may wait.
            Err(Unasked::Failed(fault)) if crosses => {
                self.account.tried(&tried);
                if fault.kind != FaultKind::Poison {
                    self.account.crossed(Seam::Failed);
                }
                self.fail(&fault, out);
            }
            Err(Unasked::Failed(fault)) => self.lost(asker, tried, fault, cx, out),
        }
    }

    /// The steps of a turn that no upstream speaks to.
    fn carry_out_without(&mut self, tried: Tried, cx: &mut Context<'_>, out: &mut Outgoing) {
        if let (Some(Step::GoOn(_)), Some(asker)) = (self.steps.last(), self.asker.take())
            && let Some(Step::GoOn(question)) = self.steps.pop()
        {
            self.carry_out(cx, out);
            return self.cross(seam::at_hand(asker, tried, question));
        }
        self.carry_out(cx, out);
    }

    /// The upstream broke.
    fn broke(&mut self, fault: Fault, cx: &mut Context<'_>, out: &mut Outgoing) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Streaming(live, tried) => {
                if matches!(fault.kind, FaultKind::UpstreamFailed(_)) && fault.is_engine_death() {
                    live.in_flight.replica().failed();
                }
                let asker = self.asker_after(&live);
                // Closed before another one is asked.
                drop(live);
                self.lost(asker, tried, fault, cx, out);
            }
            _ if self.turn.can_give_up() => self.give_up(cx, out),
            _ => self.fail(&fault, out),
        }
    }

    fn give_up(&mut self, cx: &mut Context<'_>, out: &mut Outgoing) {
        self.turn.give_up(&mut self.steps);
        self.carry_out(cx, out);
    }

    /// What was said before a question; another replica, as long as nothing has been shown; or the answer goes on elsewhere.
    fn lost(&mut self, asker: Asker, mut tried: Tried, fault: Fault, cx: &mut Context<'_>, out: &mut Outgoing) {
        if self.turn.can_give_up() {
            return self.give_up(cx, out);
        }
        if !fault.kind.retryable() {
            return self.fail(&fault, out);
        }
        tracing::warn!(
            request = %self.exchange.id,
            replica = %asker.replica_name(),
            fault = fault.kind.name(),
            begun = self.begun,
            "the replica was lost in the middle of an answer"
        );
        tried.failed(fault.clone());
        if !self.begun {
            self.state = State::Trying(attempt::next(self.exchange.clone(), tried));
            return;
        }
        let loss = self.turn.lost();
        if tried.is_surely_poison() && loss != Loss::Whole {
            return self.fail(&Fault::poison(), out);
        }
        match loss {
            Loss::Whole => {
                self.turn.end_whole(&mut self.steps);
                self.carry_out(cx, out);
            }
            Loss::Anew => {
                self.account.crossed(Seam::Anew);
                tried.bind();
                self.state = State::Trying(attempt::next(self.exchange.clone(), tried));
            }
            Loss::GoesOn(question) if self.seams < self.exchange.limits.seam.count => {
                self.seams += 1;
                self.cross(seam::elsewhere(asker, tried, question));
            }
            Loss::GoesOn(_) => {
                self.account.crossed(Seam::Failed);
                self.fail(&fault, out);
            }
            // Nobody wanted it to go on, or nobody could: the client hears what happened.
            Loss::Ends(Obstacle::Off | Obstacle::Oversized) => self.fail(&fault, out),
            Loss::Ends(obstacle) => {
                self.account.crossed(Seam::NotContinuable);
                let message = format!(
                    "The replica was lost, and this answer can't go on on another one: {}.",
                    obstacle.reason()
                );
                self.fail(&Fault::new(FaultKind::NotContinuable, message), out);
            }
        }
    }

    /// One error event, then the stream ends without `[DONE]`.
    fn fail(&mut self, fault: &Fault, out: &mut Outgoing) {
        self.state = State::Over;
        self.account.failed(fault, self.turn.facts());
        out.push(fault.event());
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let now = self.now;
            let limits = &self.exchange.limits;
            let silence = self.silence();
            if let State::Streaming(live, _) = &self.state
                && now >= self.heard + silence
            {
                if self.speaks {
                    live.in_flight.replica().health.stalled();
                }
                let message = format!("The replica sent nothing for {silence:?}.");
                let mut out = Outgoing::default();
                self.broke(Fault::new(FaultKind::UpstreamStalled, message), cx, &mut out);
                if self.is_over() {
                    return Poll::Ready(self.hand_over(out));
                }
                // A new attempt has begun and must be polled.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.call_by.is_some_and(|by| now >= by) {
                self.call_by = None;
                if self.turn.can_give_up() {
                    let mut out = Outgoing::default();
                    let fault = Fault::new(
                        FaultKind::UpstreamTimeout,
                        "The call that was asked again took too long.",
                    );
                    self.broke(fault, cx, &mut out);
                    return Poll::Ready(self.hand_over(out));
                }
            }
            if !limits.keep_alive.is_zero() && now >= self.sent + limits.keep_alive {
                let mut out = Outgoing::default();
                out.push(match self.exchange.ahead() {
                    Some(ahead) => Bytes::from(format!(": place {} in the queue\n\n", ahead + 1)),
                    None => Bytes::from_static(KEEP_ALIVE),
                });
                return Poll::Ready(self.hand_over(out));
            }
            let Some(due) = self.due(silence) else {
                return Poll::Pending;
            };
            if self.arm(due, cx).is_pending() {
                return Poll::Pending;
            }
            self.now = Instant::now();
        }
    }

    /// Sees to it that the timer wakes us at `due` or before.
    fn arm(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.timer {
            // Moved only when it has fired or would be late: moving it at each token would cost more than the token.
            Some(timer) if !timer.is_elapsed() && timer.deadline() <= due.into() => Poll::Pending,
            Some(timer) => {
                timer.as_mut().reset(due.into());
                timer.as_mut().poll(cx)
            }
            none => none.insert(Box::pin(sleep_until(due.into()))).as_mut().poll(cx),
        }
    }

    /// How long the replica may be silent now.
    fn silence(&self) -> Duration {
        let limits = &self.exchange.limits;
        if self.speaks { limits.stall } else { limits.answer }
    }

    /// When a timer will have something to do. Attempts that are under way have limits of their own.
    fn due(&self, silence: Duration) -> Option<Instant> {
        let keep_alive = self.exchange.limits.keep_alive;
        let stalled = matches!(self.state, State::Streaming(..)).then(|| self.heard + silence);
        let comment = (!keep_alive.is_zero()).then(|| self.sent + keep_alive);
        stalled.into_iter().chain(comment).chain(self.call_by).min()
    }
}

/// The client left, or the answer has ended: what was used is in the record either way.
impl Drop for Relay {
    fn drop(&mut self) {
        self.account.left(self.turn.facts());
    }
}

/// Frames of one poll: a single one is handed on as it is, several are copied together.
#[derive(Default)]
struct Outgoing {
    first: Bytes,
    more: BytesMut,
}

impl Outgoing {
    fn push(&mut self, bytes: Bytes) {
        if self.first.is_empty() {
            self.first = bytes;
            return;
        }
        if self.more.is_empty() {
            self.more.reserve((self.first.len() + bytes.len()) * 2);
            self.more.extend_from_slice(&self.first);
        }
        self.more.extend_from_slice(&bytes);
    }

    fn len(&self) -> usize {
        self.first.len().max(self.more.len())
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    fn into_bytes(self) -> Option<Bytes> {
        if self.more.is_empty() {
            (!self.first.is_empty()).then_some(self.first)
        } else {
            Some(self.more.freeze())
        }
    }
}
