//! Each way to lose an engine but `death`'s (B31, B36): its process killed, its server told to end, stopped, its connections cut; in text
//! and in reasoning, for streams and whole answers. The other engine goes on, or is asked anew, and the client sees one answer.
//!
//! The random model's own words, greedy, as in `death`: how many answers are equal to the undisturbed ones is printed. It writes no
//! tags by itself, so that reasoning is what a model says whose prompt has opened the block, and no call is lost here.
//!
//! Each way needs an engine of its own. Two of them always run, a process that dies and one that is silent; the others by hand.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::death::session_on;
use crate::engine::{Engine, Process, SetUp, shared};
use crate::gateway::Gateway;
use crate::message::Message;
use crate::script::MODEL;
use crate::wire::{Answer, Whole};

/// Streams, lost at different places, and as many whole answers of each gateway.
const ANSWERS: usize = 3;
/// Some seconds of the engine's time.
const TOKENS: u64 = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// `kill -9` of the engine's process: the server says so in an error event, and ends.
    EngineKilled,
    /// SIGTERM to the server.
    Terminated,
    /// SIGSTOP of the engine's process: `/health` still answers.
    EngineStopped,
    /// SIGSTOP of the server.
    ServerStopped,
    /// Connections cut on the way, and no new ones.
    Cut,
}

/// A way to the engine that can be cut.
struct Wire {
    port: u16,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Wire {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let kept = open.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                    continue;
                };
                match &mut *kept.lock().unwrap() {
                    Some(open) => open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]),
                    None => break,
                }
                for (from, to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    thread::spawn(move || pass(from, to));
                }
            }
        });
        Wire { port: own, open }
    }

    fn cut(&self) {
        for socket in self.open.lock().unwrap().take().into_iter().flatten() {
            socket.shutdown(Shutdown::Both).ok();
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    io::copy(&mut from, &mut to).ok();
    to.flush().ok();
    to.shutdown(Shutdown::Write).ok();
}

fn body(number: usize, stream: bool) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": format!("Tell me story {number}.")}],
        "max_tokens": TOKENS, "temperature": 0});
    if stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

/// What answers are when nothing is lost, and a session of the engine that is going to be.
struct Undisturbed {
    part: &'static str,
    answers: Vec<Message>,
    session: String,
}

impl Undisturbed {
    fn by(gateway: &Gateway, part: &'static str) -> Self {
        // In that session: it stays where its prompts were read before.
        let session = session_on(gateway, "victim");
        let streams: Vec<Answer> = (0..ANSWERS)
            .map(|number| gateway.stream_in(&session, &format!("whole-{number}"), &body(number, true)))
            .collect();
        let answers = streams
            .into_iter()
            .map(|mut answer| Message::of_events(&answer.events().unwrap()))
            .collect();
        Undisturbed { part, answers, session }
    }
}

/// Answers of one gateway that are under way on the engine that is going to be lost.
struct Batch<'scope, 'g> {
    gateway: &'g Gateway,
    part: &'static str,
    undisturbed: Vec<Message>,
    streams: Vec<(Answer, Vec<String>)>,
    bodies: Vec<ScopedJoinHandle<'scope, Whole>>,
}

impl<'scope, 'g: 'scope> Batch<'scope, 'g> {
    /// All that takes time comes before ([`Undisturbed`]): the other batch's answers must not end meanwhile.
    fn begin<'env>(scope: &'scope Scope<'scope, 'env>, gateway: &'g Gateway, before: Undisturbed) -> Self {
        let Undisturbed { part, answers, session } = before;
        let streams = (0..ANSWERS)
            .map(|number| {
                let answer = gateway.stream_in(&session, &format!("cut-{number}"), &body(number, true));
                assert_eq!(answer.headers.get("x-sluice-replica"), Some("victim"));
                (answer, Vec::new())
            })
            .collect();
        let bodies = (0..ANSWERS)
            .map(|number| {
                let session = session.clone();
                scope.spawn(move || {
                    let headers = [("x-session-id", session.as_str())];
                    gateway
                        .post("/v1/chat/completions", &headers, &body(number, false))
                        .whole()
                        .unwrap()
                })
            })
            .collect();
        let mut batch = Batch {
            gateway,
            part,
            undisturbed: answers,
            streams,
            bodies,
        };
        for (number, (answer, events)) in batch.streams.iter_mut().enumerate() {
            for _ in 0..3 + 2 * number {
                events.push(answer.event().unwrap().expect("the stream is far from its end"));
            }
        }
        batch
    }

    fn end(self, loss: Loss) {
        let (part, undisturbed) = (self.part, self.undisturbed);
        let (mut equal, mut gaps) = (0, Vec::new());
        for (number, (mut answer, mut events)) in self.streams.into_iter().enumerate() {
            events.extend(answer.events().expect("the stream ends well"));
            let message = Message::of_events(&events);
            let says = |message: &Message| (message.reasoning.is_some(), message.content.is_some());
            assert_eq!(
                says(&message),
                (part == "reasoning", part == "text"),
                "{loss:?}, {part}"
            );
            assert_eq!(
                message.finish, undisturbed[number].finish,
                "{loss:?}, {part}, stream {number}"
            );
            equal += usize::from(message == undisturbed[number]);
            let row = self.gateway.record(&format!("cut-{number}"));
            assert_eq!(
                (&row["error"], &row["continuations"], &row["replica"]),
                (&Value::Null, &json!(1), &json!("survivor")),
                "{loss:?}, {part}: {row}"
            );
            gaps.push(row["itl_max_ms"].as_f64().unwrap());
        }
        let mut equal_bodies = 0;
        for (number, answer) in self.bodies.into_iter().enumerate() {
            let answer = answer.join().unwrap();
            assert_eq!(
                (answer.status, answer.headers.get("x-sluice-replica")),
                (200, Some("survivor")),
                "{loss:?}, {part}: {}",
                answer.text()
            );
            equal_bodies += usize::from(Message::of_body(&answer.json()) == undisturbed[number]);
        }
        eprintln!(
            "{loss:?}, {part}: {ANSWERS} streams went on ({equal} equal, longest gaps {gaps:?} ms), {ANSWERS} bodies were asked anew \
             ({equal_bodies} equal)"
        );
    }
}

fn lost_by(loss: Loss) {
    let victim = Engine::start(SetUp::Raw).unwrap();
    let wire = (loss == Loss::Cut).then(|| Wire::to(victim.port));
    let seen = victim.seen_at(wire.as_ref().map_or(victim.port, |wire| wire.port));
    let gateway = |opener: &str| {
        let sections = format!(
            "[routing]\nstay_margin = \"10m\"\n[reasoning]\nopener = \"{opener}\"\n[upstream]\nstall = \"5s\"\n\
             [health]\nprobe = \"500ms\"\nhung_after = \"3s\"\n"
        );
        Gateway::over_with(&[("victim", &seen), ("survivor", shared(SetUp::Raw))], &sections)
    };
    let (text, reasoning) = (gateway("model"), gateway("prompt"));
    thread::scope(|scope| {
        let before = [Undisturbed::by(&text, "text"), Undisturbed::by(&reasoning, "reasoning")];
        let gateways = [&text, &reasoning].into_iter().zip(before);
        let batches: Vec<Batch<'_, '_>> = gateways
            .map(|(gateway, before)| Batch::begin(scope, gateway, before))
            .collect();
        match loss {
            Loss::EngineKilled => victim.signal(Process::Engine, Signal::KILL),
            Loss::Terminated => victim.signal(Process::Server, Signal::TERM),
            Loss::EngineStopped => victim.signal(Process::Engine, Signal::STOP),
            Loss::ServerStopped => victim.signal(Process::Server, Signal::STOP),
            Loss::Cut => wire.iter().for_each(Wire::cut),
        }
        batches.into_iter().for_each(|batch| batch.end(loss));
    });
}

#[test]
fn the_engine_process_is_killed() {
    lost_by(Loss::EngineKilled);
}

#[test]
#[ignore = "a minute and a half each: `./test real losses --include-ignored`"]
fn the_server_is_told_to_end() {
    lost_by(Loss::Terminated);
}

#[test]
#[ignore = "a minute and a half each: `./test real losses --include-ignored`"]
fn the_engine_process_is_stopped() {
    lost_by(Loss::EngineStopped);
}

#[test]
fn the_server_is_stopped() {
    lost_by(Loss::ServerStopped);
}

#[test]
#[ignore = "a minute and a half each: `./test real losses --include-ignored`"]
fn the_connections_are_cut() {
    lost_by(Loss::Cut);
}
