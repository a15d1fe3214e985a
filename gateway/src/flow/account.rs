//! What one request will have been: filled along its way, handed to records and metrics when it is dropped.
//!
//! A drop is the only end that always happens: a finished answer, a fault, a client that left. What was neither finished
//! nor failed by then was cancelled.

use jiff::Timestamp;
use sluice_policy::history::{Counts, Kind};
use sluice_policy::meter::Meter;
use sluice_policy::protocol::fault::{Fault, FaultKind};
use sluice_policy::route::session::SessionKey;
use sluice_policy::turn::{Facts, Judged};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::attempt::{Live, Tried};
use super::spending;
use crate::keys::Charge;
use crate::record::{Record, Recorder, verdicts};
use crate::telemetry::{InFlight, Metrics};
use crate::upstream::{Backend, Replica, Route};

/// Where accounts go.
#[derive(Clone)]
pub struct Books {
    /// Rows.
    pub recorder: Recorder,
    /// Instruments.
    pub metrics: Metrics,
}

/// The attempt under way, known before anybody can say what became of it: a client that leaves in prefill leaves a record
/// of whom it was sent to.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<Standing>>);

#[derive(Default)]
struct Standing {
    attempt: Option<Attempt>,
    queue: Queue,
    /// Another backend has it now.
    backend: Option<Arc<Backend>>,
    /// Queues of those that had it before: whose model, how long, and how it ended.
    queues_before: Vec<(Arc<String>, Duration, Queued)>,
}

/// A request's time in the queue.
#[derive(Clone, Copy, Default)]
enum Queue {
    /// It never waited.
    #[default]
    None,
    Since(Instant),
    Over(Duration, Queued),
}

/// What became of a request that did not get its place at once. A closed set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It waited for it.
    Waited,
    /// Its client left, or it was cancelled.
    Left,
    /// The queue was full.
    Full,
    /// Its key had too many in it.
    KeyFull,
    /// It would have waited too long.
    TooLong,
    /// It did wait too long.
    Overdue,
}

impl Queued {
    /// Label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Queued::Waited => "waited",
            Queued::Left => "left",
            Queued::Full => "full",
            Queued::KeyFull => "key_full",
            Queued::TooLong => "too_long",
            Queued::Overdue => "overdue",
        }
    }
}

struct Attempt {
    count: u32,
    replica: Arc<str>,
    route: Route,
}

impl Progress {
    /// The attempt of this number goes to this replica.
    pub fn attempt(&self, count: u32, replica: Arc<str>, route: Route) {
        self.standing().attempt = Some(Attempt { count, replica, route });
    }

    /// This backend has it from now on, which isn't the one that was planned.
    pub fn goes_over(&self, from: &Backend, to: &Arc<Backend>) {
        let mut standing = self.standing();
        if let Queue::Over(waited, outcome) = std::mem::take(&mut standing.queue) {
            standing.queues_before.push((from.model(), waited, outcome));
        }
        standing.backend = Some(to.clone());
    }

    /// It waits for a place.
    pub fn queues(&self, since: Instant) {
        self.standing().queue = Queue::Since(since);
    }

    /// It waits no more, or has been refused without a wait.
    pub fn leaves_queue(&self, outcome: Queued) {
        let mut standing = self.standing();
        let waited = match standing.queue {
            Queue::Since(since) => since.elapsed(),
            Queue::None | Queue::Over(..) => Duration::ZERO,
        };
        standing.queue = Queue::Over(waited, outcome);
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of an answer whose replica was lost after its first data line. A closed set: it labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seam {
    /// It went on elsewhere.
    Continued,
    /// It was asked anew, since nothing of it had been shown.
    Anew,
    /// It can't go on: the client was told.
    NotContinuable,
    /// Nobody went on with it.
    Failed,
    /// It may not be sent to another engine.
    Poison,
}

impl Seam {
    /// Label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Seam::Continued => "continued",
            Seam::Anew => "anew",
            Seam::NotContinuable => "not_continuable",
            Seam::Failed => "failed",
            Seam::Poison => "poison",
        }
    }
}

/// See the module.
pub struct Account {
    record: Record,
    progress: Progress,
    accepted: Instant,
    meter: Meter,
    books: Books,
    end: End,
    judged: Vec<Judged>,
    /// What was changed of past turns.
    history: Counts,
    /// Only a first attempt says how fast an engine is.
    first_attempt: bool,
    kept: Kept,
    /// Its share of its key's limits, if there are some; held to the end.
    charge: Option<Charge>,
    /// The gauge of running requests.
    _in_flight: Option<InFlight>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Finished,
    Failed,
}

/// Whether a record becomes a row. The metrics count it either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// A row, if the writer's queue has room.
    Row,
    /// Counted as shed.
    Shed,
}

impl Account {
    /// Of a request: nothing is known yet of what becomes of it.
    pub fn open(books: Books, id: &str, accepted: Instant, endpoint: &'static str, key_name: &str) -> Self {
        let started = Timestamp::now()
            .checked_sub(accepted.elapsed())
            .unwrap_or(Timestamp::UNIX_EPOCH);
        let record = Record {
            id: id.to_owned(),
            started,
            key_name: key_name.to_owned(),
            endpoint,
            ..Record::default()
        };
        Account {
            record,
            progress: Progress::default(),
            accepted,
            meter: Meter::new(Duration::ZERO),
            books,
            end: End::Open,
            judged: Vec::new(),
            history: Counts::default(),
            first_attempt: false,
            kept: Kept::Row,
            charge: None,
            _in_flight: None,
        }
    }

    /// Its record is counted, and not written.
    pub fn shed(&mut self) {
        self.kept = Kept::Shed;
    }

    /// Its share of what its key may use.
    pub fn charged(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    /// What its prompt takes; `tokens` is asked only where they are counted.
    ///
    /// # Errors
    /// What the client is told if its key has used them up.
    pub fn prompt(&mut self, tokens: impl FnOnce() -> u64) -> Result<(), Fault> {
        match self.charge.as_mut().filter(|charge| charge.counts_tokens()) {
            Some(charge) => charge.prompt(tokens()).map_err(spending::refusal),
            None => Ok(()),
        }
    }

    /// For whoever makes the attempts.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// What the body said.
    pub fn asked(&mut self, stream: bool, bytes_in: usize) {
        self.record.stream = stream;
        self.record.bytes_in = bytes_in as u64;
    }

    /// Where it goes.
    pub fn planned(&mut self, backend: &Backend, session: &SessionKey) {
        self.record.session_hash = Some(session.hash);
        self.record.session_source = Some(session.source.as_str());
        self.goes_to(backend);
    }

    fn goes_to(&mut self, backend: &Backend) {
        name(&mut self.record, backend);
        self._in_flight = Some(self.books.metrics.in_flight(&self.record.model));
    }

    /// Attempts so far.
    pub fn tried(&mut self, tried: &Tried) {
        if let Some(backend) = &tried.fallback {
            self.goes_to(backend);
        }
        self.history = tried.history;
        self.record.history_changes = tried.history.iter().sum();
        self.record.attempts = tried.count;
        self.record.route = tried.route.map_or("", |route| route.as_str());
        self.record.route_reason = tried.route.map_or("", |route| route.reason.as_str());
        if let Some(replica) = &tried.replica {
            self.record.replica = replica.name().to_string();
        }
    }

    /// A replica has begun to answer.
    pub fn dispatched(&mut self, live: &Live, tried: &Tried) {
        self.tried(tried);
        self.record.simulated = live.in_flight.replica().simulated;
        self.record.status = 200;
        self.meter.dispatched(self.since_accepted(live.dispatched));
        self.first_attempt = tried.count == 1;
    }

    /// Another replica goes on with the answer.
    pub fn went_on(&mut self, live: &Live, tried: &Tried) {
        self.tried(tried);
        self.record.simulated |= live.in_flight.replica().simulated;
        self.crossed(Seam::Continued);
    }

    /// The replica was lost after the first data line.
    pub fn crossed(&mut self, seam: Seam) {
        if seam == Seam::Continued {
            self.record.continuations += 1;
            // From token ids that the engine never said, its text says where it was.
            self.record.seam = Some("text");
        }
        self.books.metrics.continuation(&self.record.model, seam.as_str());
    }

    /// Bytes came from upstream.
    pub fn heard(&mut self, at: Instant, facts: &Facts) {
        let at = self.since_accepted(at);
        self.meter.tokens(at, facts.tokens_in_last_push);
        self.meter.holds(at, facts.holds_call);
    }

    /// Reasoning, text or a call is on its way to the client.
    pub fn shown(&mut self, at: Instant) {
        let at = self.since_accepted(at);
        self.meter.shown(at);
    }

    /// Bytes were handed to the client's connection.
    pub fn sent(&mut self, bytes: usize) {
        self.record.bytes_out += bytes as u64;
    }

    /// The status that the client gets.
    pub fn status(&mut self, status: u16) {
        self.record.status = status;
    }

    /// A whole message from this replica.
    pub fn answered(&mut self, replica: &Replica, facts: &Facts, bytes: usize) {
        self.record.simulated = replica.simulated;
        self.record.status = 200;
        self.sent(bytes);
        self.finished(facts);
    }

    /// A whole answer, with no more to say.
    pub fn finished_plain(&mut self) {
        self.end = End::Finished;
    }

    /// A whole answer.
    pub fn finished(&mut self, facts: &Facts) {
        self.end = End::Finished;
        self.take(facts);
    }

    /// A fault ended it, after the head or before.
    pub fn failed(&mut self, fault: &Fault, facts: &Facts) {
        self.take(facts);
        self.refused(fault);
    }

    /// A fault before any answer.
    pub fn refused(&mut self, fault: &Fault) {
        self.end = End::Failed;
        if fault.kind == FaultKind::Poison {
            self.crossed(Seam::Poison);
        }
        self.record.error = Some(fault.kind.name().to_owned());
        self.record.error_side = Some(fault.kind.side().as_str());
        self.record.cancelled = matches!(
            fault.kind,
            FaultKind::Cancelled | FaultKind::ClientGone | FaultKind::ClientStalled
        );
        if self.record.status == 0 {
            self.record.status = fault.kind.status();
        }
    }

    fn take(&mut self, facts: &Facts) {
        let record = &mut self.record;
        record.prompt_tokens = facts.usage.prompt_tokens;
        record.cached_tokens = facts.usage.cached_tokens;
        record.completion_tokens = facts.usage.completion_tokens;
        record.reasoning_tokens = facts.usage.reasoning_tokens;
        record.tokens_estimated = facts.usage.estimated;
        record.tool_calls = facts.tool_calls;
        record.engine_tokens = facts.engine_tokens;
        record.verdicts = verdicts::text(&facts.verdicts);
        record.finish = facts.finish.first().map(|finish| finish.as_str().to_owned());
        self.judged.clone_from(&facts.verdicts);
    }

    fn since_accepted(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.accepted)
    }

    /// What was used until the client left: called by whoever owns the turn.
    pub fn left(&mut self, facts: &Facts) {
        if self.end == End::Open {
            self.take(facts);
        }
    }
}

/// The backend's model and profile are the record's.
fn name(record: &mut Record, backend: &Backend) {
    record.model = backend.model().to_string();
    record.profile = backend.profile.to_string();
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut record = std::mem::take(&mut self.record);
        let Standing {
            attempt,
            queue,
            backend,
            queues_before,
        } = std::mem::take(&mut *self.progress.standing());
        if let Some(backend) = backend {
            name(&mut record, &backend);
        }
        for (model, waited, outcome) in queues_before {
            record.queue += waited;
            self.books.metrics.admission(&model, outcome.as_str());
        }
        let queued = match queue {
            Queue::None => None,
            Queue::Since(since) => Some((since.elapsed(), Queued::Left)),
            Queue::Over(waited, outcome) => Some((waited, outcome)),
        };
        if let Some((waited, outcome)) = queued {
            record.queue += waited;
            self.books.metrics.admission(&record.model, outcome.as_str());
        }
        if let Some(Attempt { count, replica, route }) = attempt
            && record.attempts < count
        {
            record.attempts = count;
            record.replica = replica.to_string();
            record.route = route.as_str();
            record.route_reason = route.reason.as_str();
        }
        if self.end == End::Open {
            record.cancelled = true;
        }
        if let Some(charge) = &mut self.charge {
            charge.settle(spending::used_tokens(&record, charge.tokens()));
        }
        let measured = self
            .meter
            .timings(record.completion_tokens.filter(|_| !record.tokens_estimated));
        record.duration = self.accepted.elapsed();
        if record.stream {
            record.ttft_engine = measured.ttft_engine.filter(|_| self.first_attempt);
            record.ttft_client = measured.ttft_client;
            record.itl_p50 = measured.itl_p50;
            record.itl_p99 = measured.itl_p99;
            record.itl_max = measured.itl_max;
            record.tool_hold = measured.tool_hold;
            record.tpot = measured.tpot;
            record.tokens_per_s = measured.tokens_per_s;
        }
        if record.stream {
            self.books
                .metrics
                .observe_gaps(&record.model, &record.replica, self.meter.gaps());
        }
        for judged in &self.judged {
            self.books.metrics.tool_call(
                &record.model,
                &judged.tool,
                judged.verdict.name(),
                judged.verdict.kind(),
            );
            tracing::debug!(
                request = %record.id,
                tool = %judged.tool,
                verdict = judged.verdict.name(),
                kind = judged.verdict.kind(),
                "tool call"
            );
        }
        for (kind, count) in Kind::ALL.into_iter().zip(self.history).filter(|(_, count)| *count > 0) {
            self.books
                .metrics
                .history_changes(&record.model, kind.name(), count.into());
        }
        self.books.metrics.observe(&record);
        match self.kept {
            Kept::Row => self.books.recorder.submit(record),
            Kept::Shed => self.books.recorder.shed(),
        }
    }
}
