//! Attempts of one request until one replica answers (B31, first half): each with the same body, the failed one closed
//! before the next begins, bounded in number at each backend; one that found nobody counts for none, and each replica is tried once, but
//! for one that is alone and answers.
//!
//! | what came | what follows |
//! | --- | --- |
//! | no connection, a reset, no head in time | another replica; the breaker hears of it |
//! | the replica hangs (B36) | another replica |
//! | its engine is dead, says its server, and says so again | another replica; it is asked again once it was away |
//! | nobody is left, and one is expected back (B35) | `hold`: a look now and then, then the same |
//! | nobody is left, admission has no room, the hold is over | the next backend of the fallbacks, if nothing was shown |
//! | 500, 502, 503, 504 | another replica; the same 500 from two is the answer |
//! | the same, and it is the only one | after a pause it is asked once more |
//! | 401, 403, 307, 405, `{"detail"}` 404 | 502 `upstream_misconfigured`, the log names replica and setting |
//! | 400 for a past turn that the template doesn't take | the same once more with the turn changed (B30) |
//! | other 4xx | the client's fault: vLLM's words |
//! | 200 | the answer |
//!
//! A request that was in flight at two engine deaths is never sent again, here or by anybody else who carries its `Tried` (`poison`). A connection
//! that broke is one, unless its replica shows that the same server runs on.

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use sluice_policy::health::breaker::Event;
use sluice_policy::history::Counts;
use sluice_policy::protocol::fault::{Fault, FaultKind, Side};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::Exchange;
use super::hold::Held;
use super::{place, shared};
use crate::upstream::client::{self, SendLimits};
use crate::upstream::{Answer, Backend, Choice, InFlight, Replica, Route, Routed, Segments, UpstreamError, probe};

/// An error body is read up to this size; vLLM's are below 10 KB.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// And for at most this long.
const ERROR_TIME: Duration = Duration::from_secs(5);

/// Before the only replica is asked once more: what was too much for it may be over.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Engine deaths after which a request isn't sent again: one may be chance.
const DEATHS_BORNE: u32 = 2;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("sluice/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ANY: HeaderValue = HeaderValue::from_static("*/*");

/// A replica's answer that may go to the client.
pub struct Live {
    /// To be read.
    pub answer: Answer,
    /// Counts on its replica until dropped.
    pub in_flight: InFlight,
    /// Counts as the replica's load until dropped; a question to the same replica has none.
    pub routed: Option<Routed>,
    /// When the request was sent.
    pub dispatched: Instant,
}

/// One engine: a replica from one start to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Engine {
    slot: usize,
    returns: u32,
}

impl Engine {
    fn of(choice: &Choice) -> Engine {
        Engine {
            slot: choice.index,
            returns: choice.replica.returns(),
        }
    }
}

/// What has been tried so far.
#[derive(Default)]
pub struct Tried {
    replicas: Vec<usize>,
    /// Attempts made.
    pub count: u32,
    /// Of these, those that found nobody: a request isn't sent by trying to connect.
    unsent: u32,
    /// The route of the last choice.
    pub route: Option<Route>,
    /// What was changed of past turns.
    pub history: Counts,
    /// The last replica asked.
    pub replica: Option<Arc<Replica>>,
    /// Boxed: rare, and a stream carries all this along.
    last_failure: Option<Box<Fault>>,
    /// Whom the last attempt went to.
    asked: Option<Engine>,
    /// Whose server has said that it is dead.
    dead: Option<Engine>,
    /// Engines that died with the request in flight.
    deaths: u32,
    /// Connections that broke with it: perhaps deaths.
    breaks: Vec<Break>,
    /// The backend that it went over to, if it did.
    pub fallback: Option<Arc<Backend>>,
    /// Attempts that backends got which had it before.
    sent_before: u32,
    /// Something was shown of an answer.
    is_bound: bool,
    /// The only replica of this backend was asked once more.
    asked_again: bool,
}

impl Tried {
    /// The answer goes on at another one, or is to be found another one for.
    pub fn moves(&mut self, choice: &Choice) {
        self.count += 1;
        self.route = Some(choice.route);
        self.replica = Some(choice.replica.clone());
        self.asked = Some(Engine::of(choice));
    }

    /// One more has failed after it had begun.
    pub fn after(mut self, fault: Fault) -> Self {
        self.failed(fault);
        self
    }

    /// One more has failed.
    pub fn failed(&mut self, fault: Fault) {
        let is_known = self.is_known_death(&fault);
        match &self.replica {
            Some(replica) if fault.kind == FaultKind::UpstreamBroke => self.breaks.push(Break {
                started_s: replica.started_s(),
                replica: replica.clone(),
            }),
            _ => self.deaths += u32::from(fault.is_engine_death() && !is_known),
        }
        self.unsent += u32::from(fault.kind == FaultKind::UpstreamUnreachable || is_known);
        if says_that_it_is_dead(&fault) {
            self.dead = self.asked;
        }
        self.last_failure = Some(Box::new(fault));
    }

    /// The client has seen something of an answer: another model can't go on with that.
    pub fn bind(&mut self) {
        self.is_bound = true;
    }

    /// Another backend's replicas are tried from now on.
    fn goes_over(&mut self, backend: &Arc<Backend>, fault: Fault) {
        self.sent_before = self.count.saturating_sub(self.unsent);
        self.replicas.clear();
        self.asked_again = false;
        // Slots of another backend are other replicas'.
        (self.asked, self.dead) = (None, None);
        // What is told if nobody is there either.
        self.last_failure = Some(Box::new(fault));
        self.fallback = Some(backend.clone());
    }

    /// A server outlives its engine for some seconds, and says of every request that it is dead: that is one death, and no attempt.
    fn is_known_death(&self, fault: &Fault) -> bool {
        says_that_it_is_dead(fault) && self.asked.is_some() && self.asked == self.dead
    }

    /// The last failure.
    pub fn last_failure(&self) -> Fault {
        let last = self.last_failure.as_deref().cloned();
        last.unwrap_or_else(|| Fault::new(FaultKind::NoReplica, "No replica of this model is up."))
    }

    /// Whom the last attempt went to.
    fn last(&self, exchange: &Exchange) -> Option<Arc<Replica>> {
        exchange.backend().replica(*self.replicas.last()?)
    }

    /// Nobody is left but the only replica that was asked, which said itself that it can't: true if it is to be asked once more.
    fn asks_again(&mut self, attempts: u32) -> bool {
        let is_refusal = |fault: &Fault| {
            matches!(fault.kind, FaultKind::UpstreamFailed(500 | 502 | 503 | 504)) && !fault.is_engine_death()
        };
        let is_wanted = self.replicas.len() == 1
            && !self.asked_again
            && self.sent() < attempts
            && self.last_failure.as_deref().is_some_and(is_refusal);
        if is_wanted {
            self.asked_again = true;
            self.replicas.clear();
        }
        is_wanted
    }

    /// Attempts that somebody of this backend got.
    fn sent(&self) -> u32 {
        self.count.saturating_sub(self.unsent + self.sent_before)
    }

    /// It may not be sent again, by engines' own word.
    pub fn is_surely_poison(&self) -> bool {
        self.deaths >= DEATHS_BORNE
    }

    /// It may not be sent again. Looks at the replicas only where their broken connections decide it.
    pub async fn is_poison(&mut self) -> bool {
        if !self.is_surely_poison() && self.deaths as usize + self.breaks.len() >= DEATHS_BORNE as usize {
            // Boxed: rare, and it would make room in each attempt.
            Box::pin(self.judge_breaks()).await;
        }
        self.is_surely_poison()
    }

    async fn judge_breaks(&mut self) {
        for broken in std::mem::take(&mut self.breaks) {
            self.deaths += u32::from(broken.is_death().await);
        }
    }
}

/// A connection that broke.
struct Break {
    replica: Arc<Replica>,
    /// When its server had started, by then.
    started_s: Option<f64>,
}

impl Break {
    /// Unless it is known that nothing died there.
    async fn is_death(&self) -> bool {
        match self.started_s {
            Some(started) => !probe::has_run_since(&self.replica, started).await,
            None => true,
        }
    }
}

/// Attempts that are under way, and what became of them.
pub type Trying = Pin<Box<dyn Future<Output = (Tried, Result<Live, Fault>)> + Send>>;

/// Asks replicas until one answers. Boxed here: whoever waits for it would else carry its two kilobytes from future to future.
///
/// # Errors
/// What the client is told: the upstream's own fault, or the last failure when nothing is left to try.
pub fn next(exchange: Arc<Exchange>, mut tried: Tried) -> Trying {
    Box::pin(async move {
        let outcome = run(&exchange, &mut tried).await;
        (tried, outcome)
    })
}

/// Why there is no answer.
enum Unanswered {
    /// Nobody of this backend takes it; another one's may.
    Here(Fault),
    /// That is the answer.
    ForAll(Fault),
}

async fn run(exchange: &Exchange, tried: &mut Tried) -> Result<Live, Fault> {
    let mut held_until = None;
    // Each turn goes over to a backend that hasn't had it, or is the last.
    loop {
        let fault = match at_backend(exchange, tried, &mut held_until).await {
            Ok(live) => return Ok(live),
            Err(Unanswered::ForAll(fault)) => return Err(fault),
            Err(Unanswered::Here(fault)) => fault,
        };
        let from = exchange.backend().clone();
        let to = if tried.is_bound { None } else { exchange.go_over() };
        let Some(to) = to else {
            return Err(fault);
        };
        tracing::warn!(
            request = %exchange.id,
            from = %from.name,
            to = %to.name,
            fault = fault.kind.name(),
            "the request goes over to another backend"
        );
        tried.goes_over(to, fault);
    }
}

/// Attempts at the replicas of one backend.
async fn at_backend(
    exchange: &Exchange,
    tried: &mut Tried,
    held_until: &mut Option<Instant>,
) -> Result<Live, Unanswered> {
    let mut held: Option<Held> = None;
    shared::ask(exchange).await;
    loop {
        if tried.is_poison().await {
            return Err(Unanswered::ForAll(Fault::poison()));
        }
        let choice = match &held {
            Some(_) if tried.sent() >= exchange.limits.attempts => return Err(Unanswered::Here(tried.last_failure())),
            Some(_) if exchange.backend().has_usable(&[]) => choose(exchange, &[]).await?,
            None if tried.sent() < exchange.limits.attempts => choose(exchange, &tried.replicas).await?,
            _ => None,
        };
        let Some(choice) = choice else {
            match &held {
                Some(held) => held.pause(exchange).await.map_err(Unanswered::Here)?,
                None if tried.asks_again(exchange.limits.attempts) => tokio::time::sleep(AGAIN_AFTER).await,
                // Boxed: rare, and it would make room in each attempt.
                None => {
                    let last = tried.last(exchange);
                    let begun = Held::begin(exchange, last.as_ref(), tried.last_failure(), held_until);
                    held = Some(Box::pin(begun).await.map_err(Unanswered::Here)?);
                }
            }
            continue;
        };
        tried.moves(&choice);
        tried.replicas.push(choice.index);
        shared::tell(exchange, &choice);
        exchange
            .progress
            .attempt(tried.count, choice.replica.name(), choice.route);
        let outcome = once(exchange, &choice, tried.count).await;
        tried.history = exchange.history.counts();
        match outcome {
            Ok(mut live) => {
                live.routed = Some(choice.routed);
                return Ok(live);
            }
            Err(fault) if fault.kind.side() == Side::Upstream && is_worth_another(&fault, tried) => {
                tracing::warn!(
                    request = %exchange.id,
                    replica = %choice.replica.name(),
                    attempt = tried.count,
                    fault = fault.kind.name(),
                    "attempt failed, trying another replica"
                );
                tried.failed(fault);
            }
            Err(fault) => return Err(Unanswered::ForAll(fault)),
        }
    }
}

/// The replica of the next attempt. A key that has its share of the queue would have it elsewhere, too.
async fn choose(exchange: &Exchange, tried: &[usize]) -> Result<Option<Choice>, Unanswered> {
    place::choose(exchange, tried).await.map_err(|fault| match fault.kind {
        FaultKind::Capacity => Unanswered::Here(fault),
        _ => Unanswered::ForAll(fault),
    })
}

/// Its server's word; a connection that broke may be another death each time.
fn says_that_it_is_dead(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::UpstreamFailed(_)) && fault.is_engine_death()
}

/// The same 500 from two replicas is the request's doing, not theirs.
fn is_worth_another(fault: &Fault, tried: &Tried) -> bool {
    match fault.kind {
        _ if tried.is_known_death(fault) => true,
        FaultKind::UpstreamMisconfigured => false,
        FaultKind::UpstreamFailed(500) => !tried
            .last_failure
            .as_ref()
            .is_some_and(|last| last.kind == fault.kind && last.message == fault.message),
        _ => true,
    }
}

async fn once(exchange: &Exchange, choice: &Choice, attempt: u32) -> Result<Live, Fault> {
    let replica = &choice.replica;
    let mut refused = None;
    // Each turn adds a rule or is the last.
    loop {
        let body = Segments::new(exchange.upstream_body(replica));
        let fault = match send(exchange, replica, exchange.path, exchange.upstream_id(attempt), body).await {
            Ok(live) => {
                if refused.is_some() {
                    let rules = exchange.history.rules();
                    exchange.backend().learn_refusal(rules);
                    tracing::info!(model = %exchange.backend().model(), ?rules, "the chat template refuses some histories: they are changed for it");
                }
                return Ok(live);
            }
            Err(fault) => fault,
        };
        if exchange.history.gives_way(&fault) {
            refused.get_or_insert(fault);
            continue;
        }
        // That didn't help: the client is told what was wrong with its own request.
        return Err(match refused {
            Some(first) if fault.kind.side() == Side::Downstream => first,
            _ => fault,
        });
    }
}

/// One request to this replica, until the head of its answer.
///
/// # Errors
/// No answer, or one that isn't 200.
pub async fn send(
    exchange: &Exchange,
    replica: &Arc<Replica>,
    path: &'static str,
    id: Option<HeaderValue>,
    body: Segments,
) -> Result<Live, Fault> {
    let Some(address) = replica.address() else {
        return Err(Fault::new(
            FaultKind::UpstreamUnreachable,
            "The replica has no address yet.",
        ));
    };
    let in_flight = replica.begin();
    let host = address.host_header();
    let limits = SendLimits {
        connect: exchange.limits.connect,
        head: exchange.limits.answer,
        idle: exchange.limits.idle,
    };
    let dispatched = Instant::now();
    let request = || request(exchange, replica, host.clone(), path, id.clone(), body.clone());
    let sent = tokio::select! {
        sent = client::send(&replica.pool, &address, request, limits) => sent,
        () = in_flight.left() => return Err(hangs()),
    };
    let mut answer = match sent {
        Ok(answer) => answer,
        Err(error) => {
            report(replica, &error);
            return Err(fault_of(&error));
        }
    };
    if answer.status() == StatusCode::OK {
        return Ok(Live {
            answer,
            in_flight,
            routed: None,
            dispatched,
        });
    }
    let status = answer.status().as_u16();
    let said = tokio::time::timeout(ERROR_TIME, answer.collect(MAX_ERROR_BYTES)).await;
    let said = said.ok().and_then(Result::ok).unwrap_or_default();
    let fault = Fault::from_upstream(status, &said);
    if status >= 500 {
        // Its word that the engine is dead needs no second one.
        replica.health.step(if fault.is_engine_death() {
            Event::Broke
        } else {
            Event::Refused
        });
    }
    if fault.kind == FaultKind::UpstreamMisconfigured {
        tracing::error!(
            replica = %replica.name(),
            status,
            setting = if status == 401 || status == 403 { "key_env of its backend" } else { "url of the replica" },
            "the replica refuses us: it is set up wrongly"
        );
    }
    Err(fault)
}

/// What the client hears if nobody else helps, when the replica was given up.
pub fn hangs() -> Fault {
    Fault::new(FaultKind::UpstreamStalled, "The replica makes no progress.")
}

/// A request that the replica never answered for its own reasons is told to its breaker; one that is merely slow isn't.
fn report(replica: &Replica, error: &UpstreamError) {
    match error {
        UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_) | UpstreamError::Lost(_) => replica.failed(),
        UpstreamError::HeadTimeout(_) | UpstreamError::TooLong(_) => {}
    }
}

/// What an [`UpstreamError`] means for the client.
pub fn fault_of(error: &UpstreamError) -> Fault {
    match error {
        UpstreamError::Connect(_) | UpstreamError::ConnectTimeout(_) => {
            Fault::new(FaultKind::UpstreamUnreachable, "The replica can't be reached.")
        }
        UpstreamError::Lost(_) => Fault::new(
            FaultKind::UpstreamBroke,
            "The replica was lost before its answer ended.",
        ),
        UpstreamError::HeadTimeout(limit) => Fault::new(
            FaultKind::UpstreamTimeout,
            format!("The replica did not answer within {limit:?}."),
        ),
        UpstreamError::TooLong(limit) => Fault::new(
            FaultKind::UpstreamGarbled,
            format!("The replica's answer is longer than {limit} bytes."),
        ),
    }
}

/// Headers upstream are an allowlist of ours: nothing of the client's travels (B2, B4), and never `Accept-Encoding`.
fn request(
    exchange: &Exchange,
    replica: &Replica,
    host: HeaderValue,
    path: &'static str,
    id: Option<HeaderValue>,
    body: Segments,
) -> Request<Segments> {
    let length = body.len();
    let mut request = Request::new(body);
    *request.method_mut() = exchange.method.clone();
    *request.uri_mut() = Uri::from_static(path);
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    if let Some(authorization) = replica.authorization() {
        headers.insert(AUTHORIZATION, authorization);
    }
    if exchange.method == Method::POST {
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers.insert(ACCEPT, ANY);
    headers.insert(USER_AGENT, AGENT);
    if let Some(id) = id {
        headers.insert(REQUEST_ID, id);
    }
    for (name, value) in &exchange.forwarded {
        headers.insert(name.clone(), value.clone());
    }
    request
}
