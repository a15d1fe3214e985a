//! The HTTP side: vLLM's routes, headers and order of checks on a hyper HTTP/1.1 server.
//!
//! As with uvicorn: a key guards `/v1` only, a wrong slash is redirected, unknown routes and methods get `{"detail"}`,
//! idle connections are closed after five seconds, and a client that leaves aborts its request. Every limit is in
//! [`super::SimConfig`]. Requests are judged in `ask`, answered by `answer`, worded by `wire`.
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Simulator;
use super::answer;
use super::ask::{self, Ask, Surface};
use super::body::{Cut, Kill, Reply, Stream};
use super::check;
use super::config::SimConfig;
use super::drive::{Progress, Ticket, Turned};
use super::engine::Job;
use super::fault::{Fault, Knobs, unit};
use super::metrics;
use super::prompt::{self, Prompt, Template};
use super::refusal::Refusal;
use super::reply::{
    EVENTS, JSON, LENGTH, METRICS, VARY_ORIGIN, Vary, answered, empty_reply, is_preflight, json_reply, preflight,
    refuse, respond,
};
use super::script::Script;
use super::tokens::{self, mix};
use super::wire::{VERSION, Wire, quoted};

/// Prefix of the headers that turn knobs.
const KNOB_HEADER: &str = "x-sim-";
/// How long connections may take to end at a shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Most ids that `/detokenize` takes.
const MAX_DETOKENIZE: usize = 16_777_216;

/// The routes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Chat,
    Completions,
    Models,
    Health,
    Ping,
    Load,
    Version,
    Metrics,
    Tokenize,
    Detokenize,
}

impl Route {
    fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Route::Chat,
            "/v1/completions" => Route::Completions,
            "/v1/models" => Route::Models,
            "/health" => Route::Health,
            "/ping" => Route::Ping,
            "/load" => Route::Load,
            "/version" => Route::Version,
            "/metrics" => Route::Metrics,
            "/tokenize" => Route::Tokenize,
            "/detokenize" => Route::Detokenize,
            _ => return None,
        })
    }

    fn allows(self) -> &'static str {
        match self {
            Route::Chat | Route::Completions | Route::Tokenize | Route::Detokenize => "POST",
            Route::Ping => "GET, POST",
            Route::Models | Route::Health | Route::Load | Route::Version | Route::Metrics => "GET",
        }
    }
}

/// Accepts connections until `shutdown`, then lets the engine die as vLLM does at SIGTERM: running streams end in an
/// error event and `[DONE]`.
pub(super) async fn serve(simulator: Simulator, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let mut engine = JoinSet::new();
    let driver = simulator.shared.engine.clone();
    engine.spawn(async move { driver.drive().await });
    let (ending, ended) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(stream) = simulator.admit(stream, connections.len()) {
                        connections.spawn(connection(simulator.clone(), stream, ended.clone()));
                    }
                }
                // Out of descriptors, or a client that was quicker: others may still be served.
                Err(error) => {
                    tracing::warn!(%error, "simulator: accept failed");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
    drop(listener);
    simulator.shared.engine.die();
    let _ = ending.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
}

async fn connection(simulator: Simulator, stream: TcpStream, mut ended: watch::Receiver<bool>) {
    let kill = Arc::new(Kill::default());
    let socket = Socket {
        stream,
        kill: Arc::clone(&kill),
    };
    let keep_alive = simulator.shared.config.keep_alive;
    let service = hyper::service::service_fn(move |request| {
        let (simulator, kill) = (simulator.clone(), Arc::clone(&kill));
        async move { simulator.answer(request, kill).await }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = pin!(serving);
    tokio::select! {
        _ = &mut serving => {}
        _ = ended.changed() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

impl Simulator {
    /// Decides about a new connection: too many, or refused by a draw, and it is reset at once.
    fn admit(&self, stream: TcpStream, open: usize) -> Option<TcpStream> {
        let config = &self.shared.config;
        let number = self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let draw = unit(mix(mix(config.seed, 0x7265_6675_7365), number));
        if open >= config.max_connections as usize || draw < config.faults.refuse {
            reset(&stream);
            return None;
        }
        // Without this, small events wait for the other side's delayed acknowledgement. A socket that is gone fails.
        let _ = stream.set_nodelay(true);
        Some(stream)
    }

    async fn answer(&self, request: Request<Incoming>, kill: Arc<Kill>) -> Result<Response<Reply>, Cut> {
        let path = request.uri().path().to_owned();
        if path.starts_with("/v1") && !self.is_authorized(request.headers()) {
            return Ok(refuse(&Refusal::unauthorized(), Vary::None));
        }
        if is_preflight(&request) {
            return Ok(preflight());
        }
        let Some(route) = Route::of(&path) else {
            return Ok(redirect(&request).unwrap_or_else(|| refuse(&Refusal::not_found(), Vary::Origin)));
        };
        if !route
            .allows()
            .split(", ")
            .any(|method| method == request.method().as_str())
        {
            let refusal = Refusal::method_not_allowed();
            let headers = [(header::ALLOW, route.allows()), LENGTH, JSON, VARY_ORIGIN];
            let body = Reply::Whole(Some(Bytes::from(refusal.body)));
            return Ok(respond(StatusCode::METHOD_NOT_ALLOWED, &headers, body));
        }
        match route {
            Route::Chat => self.generate(Surface::Chat, request, kill).await,
            Route::Completions => self.generate(Surface::Completions, request, kill).await,
            Route::Tokenize => Ok(answered(self.tokenize(request).await)),
            Route::Detokenize => Ok(answered(self.detokenize(request).await)),
            Route::Models => Ok(json_reply(StatusCode::OK, self.models())),
            Route::Load => Ok(json_reply(
                StatusCode::OK,
                format!("{{\"server_load\":{}}}", self.stats().present),
            )),
            Route::Version => Ok(json_reply(StatusCode::OK, format!("{{\"version\":\"{VERSION}\"}}"))),
            Route::Metrics => {
                let page = Reply::Whole(Some(Bytes::from(self.metrics_page())));
                Ok(respond(StatusCode::OK, &[LENGTH, METRICS, VARY_ORIGIN], page))
            }
            Route::Health if self.shared.engine.is_dead() => Ok(empty_reply(StatusCode::SERVICE_UNAVAILABLE)),
            Route::Health | Route::Ping => Ok(empty_reply(StatusCode::OK)),
        }
    }

    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.shared.key else { return true };
        let given = headers
            .get(header::AUTHORIZATION)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        given
            .strip_prefix(b"Bearer ")
            .is_some_and(|given| bool::from(given.ct_eq(key.as_bytes())))
    }

    /// Chat and text completions.
    async fn generate(
        &self,
        surface: Surface,
        request: Request<Incoming>,
        kill: Arc<Kill>,
    ) -> Result<Response<Reply>, Cut> {
        let shared = &self.shared;
        let number = shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut knobs = Knobs::drawn(&shared.config.faults, shared.config.seed, number);
        if let Err(refusal) = header_knobs(request.headers(), &mut knobs) {
            return Ok(refuse(&refusal, Vary::Origin));
        }
        if knobs.fault == Some(Fault::Refuse) {
            return Err(cut_at_once(&kill));
        }
        let id = request_id(request.headers()).unwrap_or_else(|| self.fresh_id(number));
        let ask = match read_json(request, &shared.config).await {
            Ok(body) => Ask::read(surface, &body, &shared.config, knobs),
            Err(refusal) => Err(refusal),
        };
        let ask = match ask {
            Ok(ask) => ask,
            Err(refusal) => return Ok(refuse(&refusal, Vary::Origin)),
        };
        let fault = ask.knobs.fault;
        match fault {
            Some(Fault::Refuse | Fault::ResetBefore) => return Err(cut_at_once(&kill)),
            Some(Fault::Status(status)) => return Ok(refuse(&Refusal::with_status(status), Vary::Origin)),
            Some(Fault::SlowStart(delay)) => tokio::time::sleep(delay).await,
            _ => {}
        }
        let is_stream = ask.stream;
        let scripts = answer::compose(&ask, &shared.config);
        let jobs = jobs(&ask, &scripts);
        let wire = Wire::new(ask, scripts, &id, unix_seconds(), &shared.model, &shared.fingerprint);
        let ticket = match shared.engine.submit(jobs) {
            Ok(ticket) => ticket,
            Err(Turned::Away) => return Ok(refuse(&Refusal::queue_full(), Vary::Origin)),
            Err(Turned::Dead) => return Ok(refuse(&Refusal::engine_dead(), Vary::Origin)),
        };
        if fault == Some(Fault::Hang) {
            return never(ticket).await;
        }
        if is_stream {
            let stream = Stream::new(wire, ticket, fault, kill);
            return Ok(respond(
                StatusCode::OK,
                &[EVENTS, VARY_ORIGIN],
                Reply::Stream(Box::new(stream)),
            ));
        }
        match fault {
            Some(Fault::ResetMid(_)) => Err(cut_at_once(&kill)),
            Some(Fault::CloseMid(_)) => Err(Cut),
            Some(Fault::ErrorEvent(_)) => Ok(refuse(&Refusal::engine_dead(), Vary::Origin)),
            Some(Fault::Stall(_)) => never(ticket).await,
            _ => Ok(whole_answer(&wire, &ticket).await),
        }
    }

    fn models(&self) -> String {
        let shared = &self.shared;
        let now = unix_seconds();
        let all = std::iter::once(&shared.model).chain(&shared.config.aliases);
        let card = |id: &String| {
            let permission = tokens::mix_text(now, id);
            format!(
                "{{\"id\":{0},\"object\":\"model\",\"created\":{now},\"owned_by\":\"vllm\",\"root\":{0},\"parent\":null,\
                 \"max_model_len\":{1},\"permission\":[{{\"id\":\"modelperm-{permission:016x}\",\
                 \"object\":\"model_permission\",\"created\":{now},\"allow_create_engine\":false,\"allow_sampling\":true,\
                 \"allow_logprobs\":true,\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":false,\
                 \"organization\":\"*\",\"group\":null,\"is_blocking\":false}}]}}",
                quoted(id),
                shared.config.max_model_len
            )
        };
        format!(
            "{{\"object\":\"list\",\"data\":[{}]}}",
            all.map(card).collect::<Vec<_>>().join(",")
        )
    }

    fn metrics_page(&self) -> String {
        let shared = &self.shared;
        shared.engine.read(|core| {
            let now = metrics::Now {
                running: core.running(),
                waiting: core.waiting(),
                kv_usage: core.kv_usage(),
                started_s: shared.started_s,
            };
            metrics::render(&shared.config, &shared.model, &core.tally, &now)
        })
    }

    async fn tokenize(&self, request: Request<Incoming>) -> Result<String, Refusal> {
        let config = &self.shared.config;
        let object = ask::object(&read_json(request, config).await?)?;
        let mut prompt = Prompt::new(0, true, false);
        match (
            object.get("messages").and_then(Value::as_array),
            object.get("prompt").and_then(Value::as_str),
        ) {
            (Some(messages), _) => {
                let none = Vec::new();
                let template = Template {
                    tools: object.get("tools").and_then(Value::as_array).unwrap_or(&none),
                    thinking: ask::template_flag(&object, "enable_thinking").unwrap_or(true),
                    opens_answer: object
                        .get("add_generation_prompt")
                        .and_then(Value::as_bool)
                        .unwrap_or(true),
                };
                prompt::render(messages, template, &mut prompt);
            }
            (None, Some(text)) => prompt.text(text),
            (None, None) => {
                return Err(missing(&["body.prompt", "body.messages"], &object));
            }
        }
        check::model(&object, config)?;
        let ids = prompt.ids.unwrap_or_default();
        let strings = object
            .get("return_token_strs")
            .and_then(Value::as_bool)
            .unwrap_or(false)
            .then(|| {
                let one = |id: &u32| {
                    let mut text = String::new();
                    tokens::decode(*id, &mut text);
                    // Byte-level spelling of white space, as Qwen's vocabulary has it.
                    text.replace(' ', "Ġ").replace('\n', "Ċ")
                };
                ids.iter().map(one).collect::<Vec<_>>()
            });
        let count = ids.len();
        Ok(
            json!({"count": count, "max_model_len": config.max_model_len, "tokens": ids, "token_strs": strings})
                .to_string(),
        )
    }

    async fn detokenize(&self, request: Request<Incoming>) -> Result<String, Refusal> {
        let object = ask::object(&read_json(request, &self.shared.config).await?)?;
        let Some(ids) = object.get("tokens").and_then(Value::as_array) else {
            return Err(missing(&["body.tokens"], &object));
        };
        check::model(&object, &self.shared.config)?;
        let mut text = String::new();
        for id in ids.iter().take(MAX_DETOKENIZE) {
            match id.as_u64().map(u32::try_from) {
                Some(Ok(id)) => tokens::decode(id, &mut text),
                _ => return Err(Refusal::bad("number too large to fit in target type")),
            }
        }
        Ok(json!({ "prompt": text }).to_string())
    }

    fn fresh_id(&self, number: u64) -> String {
        let shared = &self.shared;
        format!(
            "{:016x}",
            mix(mix(shared.config.seed, shared.started_s.to_bits()), number)
        )
    }
}

/// One job for each answer.
fn jobs(ask: &Ask, scripts: &[Script]) -> Vec<Job> {
    let stuck_after = match ask.knobs.fault {
        Some(Fault::Stall(after)) => Some(after),
        Some(Fault::Hang) => Some(0),
        _ => None,
    };
    let prompts = ask
        .prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, ask.n as usize));
    prompts
        .zip(scripts)
        .map(|(prompt, script)| Job {
            prompt: prompt.chain.clone(),
            script: Arc::new(script.clone()),
            ttft: ask.knobs.ttft,
            itl: ask.knobs.itl,
            stuck_after,
            max_tokens: ask.max_tokens,
        })
        .collect()
}

/// Waits for the last token and says everything.
async fn whole_answer(wire: &Wire, ticket: &Ticket) -> Response<Reply> {
    let mut progress = Progress::new(wire.scripts().len());
    let is_complete = |progress: &Progress| {
        progress
            .produced
            .iter()
            .zip(wire.scripts())
            .all(|(produced, script)| *produced >= script.tokens())
    };
    while !is_complete(&progress) && !progress.is_dead {
        poll_fn(|cx| ticket.poll_progress(&mut progress, cx)).await;
    }
    if is_complete(&progress) {
        respond(
            StatusCode::OK,
            &[LENGTH, JSON, VARY_ORIGIN],
            Reply::Whole(Some(wire.whole(progress.cached))),
        )
    } else {
        refuse(&Refusal::engine_dead(), Vary::Origin)
    }
}

/// Keeps the sequences, sends nothing, ends when the client leaves.
async fn never(_ticket: Ticket) -> Result<Response<Reply>, Cut> {
    std::future::pending().await
}

fn cut_at_once(kill: &Kill) -> Cut {
    kill.reset();
    Cut
}

fn missing(places: &[&str], object: &Map<String, Value>) -> Refusal {
    let input = format!("<dict of {} items>", object.len());
    let one = |place: &&str| {
        format!("\n  {{'type': 'missing', 'loc': '{place}', 'msg': 'Field required', 'input': '{input}'}}")
    };
    let plural = if places.len() == 1 { "" } else { "s" };
    let text = format!(
        "{} validation error{plural}:{}",
        places.len(),
        places.iter().map(one).collect::<String>()
    );
    let error = json!({"message": text, "type": "Bad Request", "param": places.first(), "code": 400});
    Refusal {
        status: 400,
        body: json!({ "error": error }).to_string(),
    }
}

/// The body of a JSON request, within the limit.
async fn read_json(request: Request<Incoming>, config: &SimConfig) -> Result<Bytes, Refusal> {
    let media = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let is_json = media
        .split(';')
        .next()
        .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        return Err(Refusal::media_type());
    }
    let limit = config.max_body_bytes;
    match Limited::new(request.into_body(), usize::try_from(limit).unwrap_or(usize::MAX))
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Refusal::too_large(limit)),
        Err(_) => Err(Refusal::bad("There was an error parsing the body")),
    }
}

fn header_knobs(headers: &HeaderMap, knobs: &mut Knobs) -> Result<(), Refusal> {
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(KNOB_HEADER) {
            knobs
                .set(key, value.to_str().unwrap_or_default())
                .map_err(ask::knob_refused)?;
        }
    }
    Ok(())
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    Some(id.to_owned()).filter(|id| !id.is_empty())
}

fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// The redirect of a path that is known but for a trailing slash.
fn redirect(request: &Request<Incoming>) -> Option<Response<Reply>> {
    let path = request.uri().path().strip_suffix('/')?;
    Route::of(path)?;
    let host = request.headers().get(header::HOST)?.to_str().ok()?;
    let query = request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let location = format!("http://{host}{path}{query}");
    let headers = [LENGTH, (header::LOCATION, location.as_str()), VARY_ORIGIN];
    Some(respond(
        StatusCode::TEMPORARY_REDIRECT,
        &headers,
        Reply::Whole(Some(Bytes::new())),
    ))
}

/// Makes the coming close of a socket a reset.
fn reset(stream: &TcpStream) {
    // A socket that is gone already needs none.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// An accepted connection that can end in a reset.
struct Socket {
    stream: TcpStream,
    kill: Arc<Kill>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.kill.is_reset() {
            reset(&self.stream);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Listens on `address` and serves until the future is dropped.
pub(super) async fn run(simulator: Simulator, address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    serve(simulator, listener, std::future::pending()).await;
    Ok(())
}
