//! One request: ask → plan → attempt → relay → record. Reads top to bottom like that line.
//!
//! Enters: a [`Call`] with its whole body. Leaves: a [`Reply`] whose body pulls the answer from a replica. What the answer
//! *says* is judged in `policy`; which replica is asked, `upstream` knows; here is the order of things.

// What enters: a request as the layers hand it over.
pub mod call;
// What stays the same over all attempts.
pub mod exchange;
// Backends that may take it.
pub mod candidates;
// From what is asked to what is sent.
pub mod plan;
// The past of a conversation, and what the served template refuses of it.
pub mod history;
// Tools that were read before.
pub mod tool_sets;
// What other gateways know of the conversation, and are told.
mod shared;
// A place before the first attempt.
pub mod place;
// Attempts until one replica answers.
pub mod attempt;
// Streamed answers.
pub mod relay;
// The same replica once more, for a call that isn't valid.
pub mod again;
// Requests that nobody can take now, while a replica is expected back.
pub mod hold;
// Another replica, for an answer whose own was lost.
pub mod seam;
// Whole answers.
pub mod whole;
// Answers that pass as they are.
pub mod pass;
// What is polled only when something has happened to it.
pub mod gate;
// What leaves: a response and its body.
pub mod reply;
// What a request takes of its key's limits.
pub mod spending;
// What one request will have been.
pub mod account;
// The same of what ends before the flow has it.
pub mod refusal;
// What runs in this process.
pub mod registry;
// Ids of requests.
pub mod ids;

pub use pass::PassThrough;
pub use relay::Relay;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};
use sluice_policy::admission::Wants;
use sluice_policy::admission::queue::Priority;
use sluice_policy::history::Changes;
use sluice_policy::protocol::ask::{self, AskLimits, Endpoint, Grants};
use sluice_policy::protocol::fault::{Fault, FaultKind};
use sluice_policy::reasoning::Opener;
use sluice_policy::route::chain::Chain;
use sluice_policy::route::session;
use sluice_policy::turn::{OnInvalid, ReasoningNames, Release};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use self::account::{Account, Books};
use self::attempt::{Live, Tried};
use self::call::Call;
use self::candidates::Candidates;
use self::exchange::{Exchange, ExchangeLimits};
use self::history::History;
use self::plan::Wishes;
use self::registry::{HangUp, Registered, Registry};
use self::reply::{Reply, ReplyBody, json};
use self::tool_sets::{MustCheck, ToolSets};
use crate::affinity::Affinity;
use crate::config;
use crate::keys::{Grant, KeyId};
use crate::upstream::admission::Arrival;
use crate::upstream::{Backend, Fleet, Replica};

/// Headers of a client that vLLM may see: trace context only.
const FORWARDED: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Settings of the flow; taken anew for each request.
#[derive(Debug, Clone)]
pub struct FlowConfig {
    /// Bounds of a request.
    pub ask: AskLimits,
    /// Bounds of the way through the replicas.
    pub exchange: ExchangeLimits,
    /// Past turns are made safe (B30).
    pub history: bool,
    /// Names of reasoning.
    pub names: ReasoningNames,
    /// Reasoning is split off.
    pub reasoning: bool,
    /// Who opens think blocks, where the configuration says so.
    pub opener: Option<Opener>,
    /// All parsing is left to vLLM.
    pub engine_parsing: bool,
    /// Calls of one answer that are asked again.
    pub reasks: u8,
    /// Answers go on elsewhere when their replica is lost.
    pub continues: bool,
    /// What becomes of a call that isn't valid.
    pub on_invalid: OnInvalid,
    /// When a call is shown.
    pub release: config::ReleaseMode,
    /// How much of one is held then.
    pub release_bytes: usize,
    /// One held call.
    pub call_bytes: usize,
    /// Which tools are refused if their calls can't be checked.
    pub must_check: MustCheck,
}

/// What every request uses.
pub struct Flow {
    /// Settings in force.
    pub config: ArcSwap<FlowConfig>,
    /// Backends and replicas in force.
    pub fleet: ArcSwap<Fleet>,
    /// What runs.
    pub registry: Arc<Registry>,
    /// Records and metrics.
    pub books: Books,
    /// Tools that were read before.
    pub tool_sets: ToolSets,
    /// What other gateways know of conversations.
    pub affinity: Arc<Affinity>,
}

impl Flow {
    /// A request that a replica answers.
    ///
    /// # Errors
    /// What the client is told instead.
    pub async fn run(self: &Arc<Self>, mut call: Call<Bytes>) -> Result<Reply, Fault> {
        let config = self.config.load();
        let key_name = call.key_name();
        call.claim.take();
        // A box: it has a kilobyte, and goes through all of the futures below.
        let mut account = Box::new(Account::open(
            self.books.clone(),
            &call.id,
            call.accepted,
            call.endpoint.as_str(),
            &key_name,
        ));
        account.asked(false, call.body.len());
        account.charged(call.charge.take());
        let read = self.read(call, &config, &mut account);
        let (exchange, registered) = match read {
            Ok(read) => read,
            Err(fault) => {
                account.refused(&fault);
                return Err(fault);
            }
        };
        drop(config);
        match (&exchange.ask.endpoint, exchange.ask.stream) {
            (Endpoint::ChatCompletions | Endpoint::Completions, true) => stream(exchange, registered, account).await,
            (Endpoint::ChatCompletions | Endpoint::Completions, false) => whole(exchange, registered, account).await,
            _ => pass(exchange, registered, account).await,
        }
    }

    /// Ask → plan.
    fn read(
        &self,
        call: Call<Bytes>,
        config: &FlowConfig,
        account: &mut Account,
    ) -> Result<(Arc<Exchange>, Registered), Fault> {
        let key_name = call.key_name();
        let identity = call.identity.as_deref();
        let grants = identity.map_or(Grants::default(), granted);
        let mut ask = ask::read(&call.endpoint, call.body, &config.ask, &grants)?;
        account.asked(ask.stream, ask.body.len());
        let fleet = self.fleet.load();
        let asked = fleet
            .backend(ask.model.as_deref())
            .ok_or_else(|| model_unknown(&fleet, ask.model.as_deref()))?;
        let may_use = |backend: &Backend| identity.is_none_or(|identity| identity.may_use(&backend.model()));
        if !may_use(asked) {
            let message = format!("This key may not use the model `{}`.", asked.model());
            return Err(Fault::new(FaultKind::KeyForbidden, message));
        }
        let order = fleet.serving(asked, ask.images, may_use);
        let candidates = Candidates::new(asked, order).ok_or_else(|| no_images(asked))?;
        let backend = candidates.backend();
        let headers = &call.head.headers;
        let session = session::key(
            headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())),
            &ask.session,
        );
        account.planned(backend, &session);
        if takes_place(&ask.endpoint) {
            account.prompt(|| backend.places().prompt_tokens(ask.prompt_bytes))?;
        }
        let registered = self
            .registry
            .register(&call.id, &key_name, call.head.extensions.get::<HangUp>().cloned());
        let wishes = self.wishes(&ask, headers, identity, config)?;
        let past = std::mem::take(&mut ask.past);
        let history = if config.history && ask.endpoint == Endpoint::ChatCompletions {
            Changes::of(&past, &ask.body, wishes.tools.as_deref())
        } else {
            Changes::default()
        };
        // Read only where there is a choice, or what prompts share matters: it is a second walk of the body.
        let queue = config.exchange.queue.filter(|_| takes_place(&ask.endpoint));
        let reads_chain = |backend: &Arc<Backend>| {
            backend.members().len() > 1 || (queue.is_some() && backend.places().counts_tokens())
        };
        let chain = if candidates.backends().any(reads_chain) {
            Arc::new(Chain::of(&ask))
        } else {
            Arc::default()
        };
        let arrival = match queue {
            Some(_) => Some(Arrival {
                key: key_name.clone(),
                priority: priority(headers, ask.priority, identity)?,
                wants: Wants {
                    sequences: ask.n,
                    prompt_bytes: ask.prompt_bytes,
                    max_tokens: ask.max_tokens,
                    chain: chain.clone(),
                },
                bytes: ask.body.len() as u64,
            }),
            None => None,
        };
        let exchange = Exchange {
            arrival,
            // Without a chain there is no choice.
            affinity: (self.affinity.is_on() && !chain.links().is_empty()).then(|| self.affinity.clone()),
            queued: AtomicU64::new(0),
            wishes,
            history: History::new(history, backend.refuses()),
            own_id: ids::request_id(),
            asked: AtomicU32::new(0),
            id: call.id,
            progress: account.progress(),
            candidates,
            session,
            chain,
            limits: config.exchange,
            method: Method::POST,
            path: call.endpoint.path(),
            forwarded: forwarded(headers),
            buffered: call.buffered,
            permit: call.permit,
            ask,
        };
        Ok((Arc::new(exchange), registered))
    }

    fn wishes(
        &self,
        ask: &ask::Ask,
        headers: &HeaderMap,
        identity: Option<&KeyId>,
        config: &FlowConfig,
    ) -> Result<Wishes, Fault> {
        let raw = ask.tools.as_ref();
        let tools = raw.and_then(|raw| self.tool_sets.read(raw, config.call_bytes));
        if let Some(tools) = &tools {
            tool_sets::refuse_unchecked(tools, config.must_check)?;
        }
        Ok(Wishes {
            tools,
            engine_parsing: config.engine_parsing,
            reasks: config.reasks,
            continues: config.continues,
            on_invalid: config.on_invalid,
            release: release(headers, identity, config)?,
            reasoning: config.reasoning,
            opener: config.opener,
            names: identity
                .and_then(|identity| identity.reasoning)
                .map_or(config.names, names),
            show_verdicts: headers.get("x-sluice-verdicts").is_some_and(|value| value == "1"),
            id_seed: ids::random(),
        })
    }
}

/// What this key may send that is refused by default (B4).
fn granted(identity: &KeyId) -> Grants {
    let has = |grant| identity.grants.contains(&grant);
    Grants {
        remote_media: has(Grant::RemoteMedia),
        kv_transfer: has(Grant::KvTransfer),
        prompt_embeds: has(Grant::PromptEmbeds),
        chat_template: has(Grant::ChatTemplate),
        vllm_xargs: has(Grant::VllmXargs),
        logits_processors: has(Grant::LogitsProcessors),
    }
}

/// The configured names of reasoning as the stages know them.
pub fn names(configured: config::ReasoningNames) -> ReasoningNames {
    match configured {
        config::ReasoningNames::Both => ReasoningNames::Both,
        config::ReasoningNames::Reasoning => ReasoningNames::Reasoning,
        config::ReasoningNames::ReasoningContent => ReasoningNames::ReasoningContent,
        config::ReasoningNames::Inline => ReasoningNames::Inline,
    }
}

/// When calls are shown: as the request's header says, else the key, else the configuration (B20).
fn release(headers: &HeaderMap, identity: Option<&KeyId>, config: &FlowConfig) -> Result<Release, Fault> {
    const HEADER: &str = "x-sluice-tools";
    let mode = match headers.get(HEADER).map(HeaderValue::as_bytes) {
        None => identity.and_then(|identity| identity.release).unwrap_or(config.release),
        Some(b"hold") => config::ReleaseMode::Hold,
        Some(b"certain") => config::ReleaseMode::Certain,
        Some(b"auto") => config::ReleaseMode::Auto,
        Some(_) => {
            let message = format!("The header {HEADER} is hold, certain or auto.");
            return Err(Fault::bad_request(HEADER, message));
        }
    };
    Ok(match mode {
        config::ReleaseMode::Hold => Release::Hold,
        config::ReleaseMode::Certain => Release::Certain,
        config::ReleaseMode::Auto => Release::Auto {
            held_bytes: config.release_bytes,
        },
    })
}

/// The configured fate of invalid calls as the stages know it.
pub fn on_invalid(configured: config::OnInvalid) -> OnInvalid {
    match configured {
        config::OnInvalid::Text => OnInvalid::Text,
        config::OnInvalid::Pass => OnInvalid::Pass,
        config::OnInvalid::Error => OnInvalid::Error,
    }
}

/// Whether it makes the engine run sequences.
fn takes_place(endpoint: &Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Responses
            | Endpoint::Messages
            | Endpoint::Embeddings
            | Endpoint::Rerank
            | Endpoint::Score
    )
}

/// How urgent: as the request's header says, else vLLM's field, but no more than its key is (B34).
fn priority(headers: &HeaderMap, number: Option<i64>, identity: Option<&KeyId>) -> Result<Priority, Fault> {
    const HEADER: &str = "x-sluice-priority";
    let own = identity.map_or(Priority::default(), |identity| identity.priority);
    let said = match headers.get(HEADER) {
        Some(value) => {
            let word = value.to_str().ok().and_then(Priority::of_word);
            let message = format!("The header {HEADER} is high, normal or low.");
            Some(word.ok_or_else(|| Fault::bad_request(HEADER, message))?)
        }
        None => number.map(Priority::of_number),
    };
    Ok(said.map_or(own, |said| said.max(own)))
}

fn forwarded(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    FORWARDED
        .iter()
        .filter_map(|name| Some((name.clone(), headers.get(name)?.clone())))
        .collect()
}

fn no_images(asked: &Backend) -> Fault {
    let message = format!(
        "The model `{}` takes no images, video or audio, and none that does stands in for it.",
        asked.model()
    );
    Fault::bad_request("messages", message)
}

fn model_unknown(fleet: &Fleet, model: Option<&str>) -> Fault {
    let ids = fleet.model_ids();
    match model {
        Some(model) => Fault::model_unknown(model, ids.iter().map(String::as_str)),
        None => Fault::bad_request("model", format!("No model given; served here: {}.", ids.join(", "))),
    }
}

/// A streamed answer: the head goes out when the upstream's status is known, or after `head_after`.
async fn stream(exchange: Arc<Exchange>, registered: Registered, mut account: Box<Account>) -> Result<Reply, Fault> {
    let head_after = exchange.limits.head_after;
    let mut trying = attempt::next(exchange.clone(), Tried::default());
    let begun = tokio::select! {
        begun = tokio::time::timeout(head_after, trying.as_mut()) => begun,
        stop = registered.entry.stopped() => {
            let fault = stop.fault();
            account.refused(&fault);
            return Err(fault);
        }
    };
    let (head, relay) = match begun {
        Ok((tried, Ok(live))) => (
            Head::of(&exchange, Some(live.in_flight.replica()), &tried),
            Relay::streaming(exchange, registered, account, live, tried),
        ),
        Ok((tried, Err(fault))) => {
            account.tried(&tried);
            account.refused(&fault);
            return Err(fault);
        }
        Err(_) => (
            Head::of(&exchange, None, &Tried::default()),
            Relay::trying(exchange, registered, account, trying),
        ),
    };
    let mut reply = Response::new(ReplyBody::relay(relay));
    let headers = reply.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx and its like in front of us must not hold events back.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    head.write(headers);
    Ok(reply)
}

async fn whole(exchange: Arc<Exchange>, registered: Registered, mut account: Box<Account>) -> Result<Reply, Fault> {
    let (tried, outcome) = whole::answer(&exchange, &registered.entry, Tried::default()).await;
    account.tried(&tried);
    let (message, facts, in_flight) = match outcome {
        Ok(answer) => answer,
        Err(fault) => {
            account.refused(&fault);
            return Err(fault);
        }
    };
    account.answered(in_flight.replica(), &facts, message.len());
    if let Some(opener) = facts.opener {
        in_flight.replica().set_opener(opener);
    }
    let mut reply = json(StatusCode::OK, message);
    Head::of(&exchange, Some(in_flight.replica()), &tried).write(reply.headers_mut());
    Ok(reply)
}

/// Forwarded as it is: status, content type and body are the engine's.
async fn pass(exchange: Arc<Exchange>, registered: Registered, mut account: Box<Account>) -> Result<Reply, Fault> {
    let (tried, begun) = tokio::select! {
        begun = attempt::next(exchange.clone(), Tried::default()) => begun,
        stop = registered.entry.stopped() => (Tried::default(), Err(stop.fault())),
    };
    account.tried(&tried);
    let live: Live = begun.inspect_err(|fault| account.refused(fault))?;
    account.dispatched(&live, &tried);
    let head = Head::of(&exchange, Some(live.in_flight.replica()), &tried);
    let content_type = live.answer.content_type().cloned();
    let mut reply = Response::new(ReplyBody::pass_through(PassThrough::new(
        exchange, registered, account, live,
    )));
    if let Some(content_type) = content_type {
        reply.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    reply.headers_mut().insert(
        HeaderName::from_static("x-sluice-pipeline"),
        HeaderValue::from_static("engine"),
    );
    head.write(reply.headers_mut());
    Ok(reply)
}

/// Our own response headers (B6): what is known when the head is sent.
struct Head {
    /// The backend, if it stands in for the one that was asked for.
    fallback: Option<Arc<str>>,
    replica: Option<Arc<str>>,
    simulated: bool,
    route: Option<&'static str>,
    attempts: u32,
}

impl Head {
    fn of(exchange: &Exchange, replica: Option<&Arc<Replica>>, tried: &Tried) -> Self {
        Head {
            fallback: exchange
                .candidates
                .is_fallback()
                .then(|| exchange.backend().name.clone()),
            replica: replica.map(|replica| replica.name()),
            simulated: replica.is_some_and(|replica| replica.simulated),
            route: tried.route.map(|route| route.as_str()),
            attempts: tried.count,
        }
    }

    fn write(&self, headers: &mut HeaderMap) {
        if let Some(value) = self.fallback.as_ref().and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(HeaderName::from_static("x-sluice-fallback"), value);
        }
        if let Some(value) = self.replica.as_ref().and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(HeaderName::from_static("x-sluice-replica"), value);
        }
        if let Some(route) = self.route {
            headers.insert(
                HeaderName::from_static("x-sluice-route"),
                HeaderValue::from_static(route),
            );
        }
        headers.insert(
            HeaderName::from_static("x-sluice-attempts"),
            HeaderValue::from(self.attempts),
        );
        if self.simulated {
            headers.insert(
                HeaderName::from_static("x-sluice-simulated"),
                HeaderValue::from_static("true"),
            );
        }
    }
}
