//! A mock vLLM whose answers are an agent's: 70 % reasoning, some text, one call of 1 KB.
//!
//! It takes the place of shared/bench's mock, whose answers are plain content, and reads the same marker in the body:
//! `[[mock ttft=50 itl=20 n=744 batch=8]]` (ms, ms, chunks, events a write; other knobs are ignored). `n` counts the chunks
//! that a client sees one by one; the call is on top, one chunk for four bytes, at most `n` of them. Port from `MOCK_PORT`
//! (9000). Sluice's probe finds a vLLM without parsers: tools lengthen the prompt, and `auto` is refused.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sluice_benches::answers::{call_tokens, event, role};
use sluice_benches::seed::{Seed, prose};
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes of the call's longest argument.
const CALL_BYTES: usize = 1024;
/// Share of all chunks that is reasoning, in percent.
const REASONING_PERCENT: usize = 70;

/// What the marker of a request asks for.
#[derive(Clone, Copy)]
struct Knobs {
    ttft: Duration,
    itl: Duration,
    visible: usize,
    batch: usize,
}

impl Knobs {
    fn read(body: &str) -> Knobs {
        let mut knobs = Knobs {
            ttft: Duration::ZERO,
            itl: Duration::ZERO,
            visible: 16,
            batch: 1,
        };
        let marker = body
            .rsplit_once("[[mock ")
            .and_then(|(_, rest)| rest.split_once("]]"))
            .map_or("", |(marker, _)| marker);
        for (name, value) in marker.split(' ').filter_map(|knob| knob.split_once('=')) {
            let number: f64 = value.parse().unwrap_or_default();
            let ms = Duration::try_from_secs_f64(number / 1000.0).unwrap_or_default();
            match name {
                "ttft" => knobs.ttft = ms,
                "itl" => knobs.itl = ms,
                "n" => knobs.visible = (number as usize).clamp(2, 100_000),
                "batch" => knobs.batch = (number as usize).clamp(1, 1024),
                _ => {}
            }
        }
        knobs
    }
}

/// The texts of an answer with `visible` chunks beside those of its call.
fn texts(visible: usize) -> Vec<String> {
    let mut seed = Seed::new(23);
    let tokens = call_tokens(&mut seed, CALL_BYTES);
    let in_chunk = tokens.len().div_ceil(visible.min(tokens.len()));
    let call: Vec<String> = tokens.chunks(in_chunk).map(<[String]>::concat).collect();
    let reasoning = ((visible + call.len()) * REASONING_PERCENT / 100).min(visible - 1);
    let mut texts: Vec<String> = (0..visible)
        .map(|at| {
            let markup = match at {
                0 => "<think>\n",
                at if at == reasoning => "\n</think>\n\n",
                _ => "",
            };
            format!("{markup}{}", prose(&mut seed))
        })
        .collect();
    texts.extend(call);
    texts
}

/// The events that carry them, with role, end and usage.
fn script(visible: usize) -> Vec<String> {
    let mut events = vec![role()];
    events.extend(texts(visible).iter().map(|text| event(text)));
    let end = event("").replace("{\"content\":\"\"}", "{}");
    let tokens = events.len();
    let usage = format!(
        "[],\"usage\":{{\"prompt_tokens\":500,\"total_tokens\":{},\"completion_tokens\":{tokens}}}}}\n\n",
        tokens + 500
    );
    let counted = end
        .split_once("[{")
        .map(|(head, _)| format!("{head}{usage}"))
        .unwrap_or_default();
    events.extend([
        end.replace("\"finish_reason\":null", "\"finish_reason\":\"stop\""),
        counted,
        "data: [DONE]\n\n".to_owned(),
    ]);
    events
}

/// An answer on its way: events in groups, each at its time.
struct Paced {
    events: Rc<Vec<String>>,
    next: usize,
    knobs: Knobs,
    start: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Paced {
    /// The next events that are due together, and when those behind them are due.
    fn group(&mut self) -> Bytes {
        // The role comes alone, with the first token's time; end, usage and [DONE] come together.
        let last = self.events.len().saturating_sub(3);
        let until = match self.next {
            0 => 1,
            next if next < last => (next + self.knobs.batch).min(last),
            _ => self.events.len(),
        };
        let text = self.events.get(self.next..until).unwrap_or_default().concat();
        self.next = until;
        let tokens = u32::try_from(until.saturating_sub(1)).unwrap_or(u32::MAX);
        if !self.knobs.itl.is_zero() {
            self.timer
                .as_mut()
                .reset(self.start + self.knobs.itl.saturating_mul(tokens));
        }
        Bytes::from(text)
    }
}

/// What is answered.
enum Reply {
    Whole(Bytes),
    Paced(Box<Paced>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Reply::Whole(bytes) => std::mem::take(bytes),
            Reply::Paced(paced) if paced.next < paced.events.len() => {
                // tokio's timers tick in milliseconds: what is due already must not wait for one.
                if Instant::now() < paced.timer.deadline() {
                    ready!(paced.timer.as_mut().poll(cx));
                }
                paced.group()
            }
            Reply::Paced(_) => Bytes::new(),
        };
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }
}

/// Scripts by `visible`: each is made once.
type Scripts = Rc<RefCell<HashMap<usize, Rc<Vec<String>>>>>;

async fn answer(scripts: Scripts, request: Request<Incoming>) -> Response<Reply> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let Ok(body) = request.into_body().collect().await else {
        return whole(StatusCode::BAD_REQUEST, "{}".to_owned());
    };
    let body = body.to_bytes();
    let body = String::from_utf8_lossy(&body);
    match (method, path.as_str()) {
        (Method::GET, "/health") => whole(StatusCode::OK, String::new()),
        (Method::GET, "/version") => whole(StatusCode::OK, "{\"version\":\"0.32.0\"}".to_owned()),
        (Method::GET, "/v1/models") => {
            let card = "{\"id\":\"mock-model\",\"object\":\"model\",\"created\":1730000000,\"owned_by\":\"vllm\"}";
            whole(StatusCode::OK, format!("{{\"object\":\"list\",\"data\":[{card}]}}"))
        }
        (Method::POST, "/v1/chat/completions") if body.contains("\"stream\":true") => stream(&scripts, &body),
        (Method::POST, "/v1/chat/completions") => message(&body),
        _ => whole(StatusCode::NOT_FOUND, "{\"detail\":\"Not Found\"}".to_owned()),
    }
}

fn stream(scripts: &Scripts, body: &str) -> Response<Reply> {
    let knobs = Knobs::read(body);
    let events = scripts
        .borrow_mut()
        .entry(knobs.visible)
        .or_insert_with(|| Rc::new(script(knobs.visible)))
        .clone();
    let start = Instant::now() + knobs.ttft;
    let paced = Paced {
        events,
        next: 0,
        knobs,
        start,
        timer: Box::pin(sleep_until(start)),
    };
    let mut response = Response::new(Reply::Paced(Box::new(paced)));
    let content_type = header::HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// A whole answer. Probes of a gateway look at its prompt tokens, and find a vLLM without a tool parser.
fn message(body: &str) -> Response<Reply> {
    if body.contains("\"tool_choice\":\"auto\"") {
        let error = "{\"error\":{\"message\":\"\\\"auto\\\" tool choice requires --enable-auto-tool-choice\",\"type\":\"BadRequestError\",\"code\":400}}";
        return whole(StatusCode::BAD_REQUEST, error.to_owned());
    }
    let prompt = body.len() / 4;
    let content = if body.contains("[[mock ") {
        texts(Knobs::read(body).visible).concat()
    } else {
        "Well.".to_owned()
    };
    let content = serde_json::Value::from(content);
    whole(
        StatusCode::OK,
        format!(
            "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1730000000,\"model\":\"mock-model\",\"choices\":[{{\"index\":0,\
             \"message\":{{\"role\":\"assistant\",\"content\":{content}}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":2}}}}",
            prompt + 2
        ),
    )
}

fn whole(status: StatusCode, body: String) -> Response<Reply> {
    let mut response = Response::new(Reply::Whole(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

async fn serve(listener: TcpListener) {
    let scripts = Scripts::default();
    while let Ok((socket, _)) = listener.accept().await {
        // Without it the kernel would hold tokens back; a socket that refuses is still served.
        let _ = socket.set_nodelay(true);
        let scripts = scripts.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let scripts = scripts.clone();
                async move { Ok::<_, Infallible>(answer(scripts, request).await) }
            });
            // A client that leaves ends it with an error; there is nobody to tell.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

fn main() -> std::io::Result<()> {
    let port = std::env::var("MOCK_PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(9000u16);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        serve(listener).await;
        Ok(())
    })
}
