//! An agent: conversations of some turns with a growing history, each request with its own manner, one after the other on a connection
//! that is kept as long as both sides keep it.

use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::fleet::MODEL;
use super::heard::Heard;
use super::http::{Answer, Connection};
use super::judge::{self, Close, Verdict, Wrong};
use super::told::{self, End, TOOL, Told, Wanted};
use crate::seed::Seed;

/// Longest answer of an ordinary request, in words.
const WORDS: u64 = 40;
/// Of one that isn't read for a while, so that it fills what buffers there are.
const MANY_WORDS: usize = 2_000;
/// Turns of a conversation.
const TURNS: u64 = 10;
/// A pause that the gateway bears, and one that it doesn't (its `write_stall` is 2 s).
const PAUSE: Duration = Duration::from_millis(800);
const STALL: Duration = Duration::from_secs(5);

/// What all agents share.
pub(super) struct Shared {
    pub(super) gateway: SocketAddr,
    pub(super) keys: Vec<String>,
    /// Requests that are still to be sent.
    pub(super) left: AtomicU64,
    /// When no new one is sent any more.
    pub(super) until: Instant,
}

impl Shared {
    fn takes_one(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        Instant::now() < self.until
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok()
    }
}

/// What became of a request.
pub(super) struct Outcome {
    pub(super) id: String,
    pub(super) stream: bool,
    pub(super) verdict: Result<Verdict, Wrong>,
    pub(super) took: Duration,
    /// What arrived, if it was wrong.
    pub(super) evidence: String,
}

/// How the client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Patient,
    /// It leaves so long after it asked.
    LeavesIn(Duration),
    /// It leaves once it has read so many bytes.
    LeavesAfter(usize),
    /// Then it reads nothing for a while.
    Pauses(usize, Duration),
}

/// One request.
struct Asked {
    id: String,
    path: &'static str,
    body: String,
    stream: bool,
    manner: Manner,
    wanted: Wanted,
    told: Told,
}

/// Asks until no request is left.
pub(super) fn run(shared: &Shared, number: usize, mut seed: Seed) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut connection = None;
    let key = shared
        .keys
        .get(number % shared.keys.len().max(1))
        .cloned()
        .unwrap_or_default();
    let mut conversation = 0;
    while shared.left.load(Ordering::Relaxed) > 0 && Instant::now() < shared.until {
        conversation += 1;
        let system = format!(
            "You are agent {number}. {}",
            "Mind the rules of this house. ".repeat(60)
        );
        let mut messages = vec![json!({"role": "system", "content": system})];
        // Some agents have no name for their session.
        let session = (!number.is_multiple_of(4)).then(|| format!("agent-{number}-{conversation}"));
        for turn in 0..1 + seed.next_u64() % TURNS {
            if !shared.takes_one() {
                break;
            }
            let tag = format!("{number}x{conversation}x{turn}");
            let asked = asked(&mut seed, tag, &messages);
            let begun = Instant::now();
            let mut evidence = String::new();
            let verdict = ask(
                shared.gateway,
                &key,
                &mut connection,
                session.as_deref(),
                &asked,
                &mut evidence,
            );
            if verdict == Ok(Verdict::Whole) && asked.path.contains("chat") {
                remember(&mut messages, &asked);
            }
            outcomes.push(Outcome {
                id: asked.id,
                stream: asked.stream,
                verdict,
                took: begun.elapsed(),
                evidence,
            });
        }
    }
    outcomes
}

/// Draws the next request of a conversation.
fn asked(seed: &mut Seed, tag: String, messages: &[Value]) -> Asked {
    let mut share = |of_hundred: u64| seed.next_u64() % 100 < of_hundred;
    let (stream, chat, stops, limited, two, calls, thinks) =
        (share(75), share(94), share(8), share(6), share(8), share(30), share(85));
    let (usage, leaves_early, leaves, pauses, stalls) = (share(80), share(4), share(5), share(2), share(1));
    let mut draw = |most: u64| 1 + (seed.next_u64() % most) as usize;
    let told = Told {
        tag: tag.clone(),
        thinking: if chat && thinks { draw(WORDS) } else { 0 },
        words: if stalls && stream { MANY_WORDS } else { draw(WORDS) },
        call: if chat && calls { draw(WORDS) } else { 0 },
    };
    let end = match (stops, limited) {
        (true, _) => End::Before(draw(told.words as u64)),
        // A token has at most five bytes: fewer than there are.
        (false, true) => End::Tokens(1 + told.text().len() as u64 / 8),
        (false, false) => End::Itself,
    };
    let choices = if two && !stalls { 2 } else { 1 };
    let manner = match (leaves_early, leaves, pauses, stalls) {
        (true, ..) => Manner::LeavesIn(Duration::from_millis(draw(400) as u64)),
        (_, true, ..) if stream => Manner::LeavesAfter(draw(20_000)),
        (.., true) if stream => Manner::Pauses(draw(20_000), STALL),
        (_, _, true, _) if stream => Manner::Pauses(draw(10_000), PAUSE),
        _ => Manner::Patient,
    };
    let mut body = json!({"model": MODEL, "stream": stream, "n": choices, "max_tokens": 20_000});
    if stream && usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    match end {
        End::Before(word) => body["stop"] = json!([told.word(word)]),
        End::Tokens(tokens) => body["max_tokens"] = json!(tokens),
        End::Itself => {}
    }
    let question = format!("Question {tag}. {}", told.marker());
    if chat {
        let mut messages = messages.to_vec();
        messages.push(json!({"role": "user", "content": question}));
        body["messages"] = Value::from(messages);
        body["tools"] = told::tools();
    } else {
        // As clients write it that render a conversation themselves: it says where the answer begins.
        body["prompt"] = json!(format!(
            "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ));
    }
    Asked {
        id: format!("chaos-{tag}"),
        path: if chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        },
        body: body.to_string(),
        stream,
        manner,
        wanted: told.wanted(&end, choices, !stream || usage),
        told,
    }
}

/// The turn goes into the history as SDKs put it there: the question, the text, the call and its result.
fn remember(messages: &mut Vec<Value>, asked: &Asked) {
    messages.push(json!({"role": "user", "content": format!("Question {}.", asked.told.tag)}));
    let mut turn = json!({"role": "assistant", "content": asked.wanted.content});
    let Some(arguments) = &asked.wanted.call else {
        messages.push(turn);
        return;
    };
    let id = format!("call_{}", asked.told.tag);
    turn["tool_calls"] = json!([{"id": id, "type": "function", "function": {"name": TOOL, "arguments": arguments}}]);
    messages.push(turn);
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "Written. ".repeat(40)}));
}

/// One request, from its connection to its verdict.
fn ask(
    gateway: SocketAddr,
    key: &str,
    kept: &mut Option<Connection>,
    session: Option<&str>,
    asked: &Asked,
    evidence: &mut String,
) -> Result<Verdict, Wrong> {
    let narrow = matches!(asked.manner, Manner::Pauses(..));
    let old = kept.take().filter(|_| !narrow);
    let was_used = old.is_some();
    let failed = |what: &str, error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => Wrong::Lost(format!("{what}: nothing came")),
        _ => Wrong::Lost(format!("{what}: {error}")),
    };
    let open = || Connection::open(gateway, key, narrow).map_err(|error| failed("the connection", error));
    let mut connection = match old {
        Some(old) => old,
        None => open()?,
    };
    let mut sent = connection.send(asked.path, &asked.id, session, &asked.body);
    if let (Err(_), true) = (&sent, was_used) {
        connection = open()?;
        sent = connection.send(asked.path, &asked.id, session, &asked.body);
    }
    sent.map_err(|error| failed("sending", error))?;
    if let Manner::LeavesIn(time) = asked.manner {
        std::thread::sleep(time);
        return Ok(Verdict::Left);
    }
    let answer = match connection.answer() {
        Ok(answer) => answer,
        // An idle connection was closed while the request was on its way: clients ask once more.
        Err(error) if was_used && is_closed(&error) => {
            return ask(gateway, key, &mut None, session, asked, evidence);
        }
        Err(error) => return Err(failed("the head", error)),
    };
    let status = answer.status;
    if status == 200 && asked.stream {
        let (heard, close) = listen(answer, asked.manner);
        let verdict = judge::stream(&asked.wanted, &heard, close);
        if let Err(wrong) = &verdict {
            *evidence = format!("{wrong}\n{close:?}\n{}\n{:#?}\n{heard:#?}", asked.body, asked.wanted);
        }
        if close == Close::Proper {
            *kept = Some(connection);
        }
        return verdict;
    }
    let body = answer.rest().map_err(|error| failed("the body", error))?;
    let verdict = match status {
        200 => judge::whole(&asked.wanted, &body),
        status => judge::refusal(status, &body),
    };
    if let Err(wrong) = &verdict {
        *evidence = format!(
            "{wrong}\n{}\n{:#?}\n{}",
            asked.body,
            asked.wanted,
            String::from_utf8_lossy(&body)
        );
    }
    *kept = Some(connection).filter(|_| !narrow);
    verdict
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Reads a stream in its manner.
fn listen(mut answer: Answer<'_>, mut manner: Manner) -> (Heard, Close) {
    let mut heard = Heard::default();
    let mut bytes = 0;
    let mut stalled = false;
    let close = loop {
        match answer.next() {
            Ok(Some(piece)) => {
                bytes += piece.len();
                heard.push(&piece);
            }
            Ok(None) => break Close::Proper,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => break Close::Never,
            Err(_) if stalled => break Close::ByClient,
            Err(_) => break Close::Broken,
        }
        match manner {
            Manner::LeavesAfter(most) if bytes >= most => break Close::ByClient,
            Manner::Pauses(after, time) if bytes >= after => {
                std::thread::sleep(time);
                stalled = time >= STALL;
                manner = Manner::Patient;
            }
            _ => {}
        }
    };
    if close == Close::Proper {
        heard.end();
    }
    (heard, close)
}
