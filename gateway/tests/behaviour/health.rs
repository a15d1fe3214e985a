//! B36: an engine that makes no progress is left, whatever its `/health` says, and its answers go on elsewhere; a busy one isn't. What fails
//! is left alone, and comes back by a few trials. What an engine's metrics say is used.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use sluice_gateway::simulator::{SimConfig, Simulator};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Client, Gateway, Message, Replica, Request, Settings, first, record, until, within};

/// Simulated vLLMs of this process, which a test can hang.
async fn simulators(count: u64, config: SimConfig) -> (Vec<Simulator>, Vec<SocketAddr>) {
    let (mut simulators, mut addresses) = (Vec::new(), Vec::new());
    for seed in 0..count {
        let simulator = Simulator::new(SimConfig { seed, ..config.clone() }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        simulators.push(simulator.clone());
        tokio::spawn(async move { simulator.serve(listener, std::future::pending()).await });
    }
    (simulators, addresses)
}

/// Before them, with looks so short that a test sees a hang.
fn quick(simulators: &[Simulator], addresses: &[SocketAddr]) -> Settings {
    Settings::external(simulators[0].model(), addresses)
        .set("health", "probe = \"100ms\"")
        .set("health", "hung_after = \"1s\"")
}

/// A question that is answered by `text`, a token each 10 ms.
fn question(stream: bool, text: &str) -> Value {
    let text = BASE64_STANDARD_NO_PAD.encode(text);
    let content = format!("[[sim text={text} itl-ms=10]] How is it?");
    json!({"stream": stream, "messages": [{"role": "user", "content": content}], "max_tokens": 4000})
}

/// Words that differ, so that what is lost or doubled shows.
fn words(of: &str, count: usize) -> String {
    (0..count).map(|n| format!("{of}-{n} ")).collect::<String>() + "end."
}

/// The content in events of a stream.
fn content(events: &str) -> String {
    let chunks = events.lines().filter_map(|line| line.strip_prefix("data: {"));
    let chunks = chunks.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap());
    chunks
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect()
}

/// Reads the stream until its content has this, however it was cut; what was read.
async fn read_to(client: &mut Client, text: &str) -> String {
    let mut events = String::new();
    while !content(&events).contains(text) {
        events += &client.event().await;
    }
    events
}

async fn standings(gateway: &Gateway) -> Vec<String> {
    let health = gateway.ask(Request::get("/health").without_key()).await.json();
    let replicas = health["replicas"].as_array().unwrap().clone();
    replicas
        .iter()
        .map(|replica| replica["state"].as_str().unwrap().to_owned())
        .collect()
}

async fn wait_for(gateway: &Gateway, place: usize, state: &str) {
    until(state, async || (standings(gateway).await[place] == state).then_some(())).await;
}

fn times(text: &str, line: &str) -> usize {
    text.matches(line).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b36_streams_of_a_hung_engine_go_on_elsewhere_and_it_comes_back() {
    let (simulators, addresses) = simulators(2, SimConfig::default()).await;
    let gateway = quick(&simulators, &addresses).start().await;
    // Streams on both; each has shown something.
    let mut streams = Vec::new();
    for n in 0..8 {
        let (id, text) = (format!("r{n}"), words(&format!("w{n}"), 250));
        let request = Request::post("/v1/chat/completions", &question(true, &text));
        let mut client = gateway.open(request.session(&format!("s{n}")).id(&id)).await;
        let head = client.head().await;
        assert_eq!(head.header("x-sluice-attempts"), Some("1"));
        let home = head.header("x-sluice-replica").unwrap().to_owned();
        let begun = read_to(&mut client, &format!("w{n}-1 ")).await;
        streams.push((id, text, home, client, head, begun));
    }
    let hung = usize::from(streams[0].2 == "b");
    let name = ["a", "b"][hung];
    let lost: Vec<String> = streams
        .iter()
        .filter(|one| one.2 == name)
        .map(|one| one.0.clone())
        .collect();
    assert!(lost.len() < streams.len(), "both have some");
    // A whole answer waits there as well.
    let whole_text = words("whole", 150);
    let asks_whole = gateway.ask(
        Request::post("/v1/chat/completions", &question(false, &whole_text))
            .session("s0")
            .id("whole"),
    );
    let hangs = async {
        until("it works on the whole answer", async || {
            (simulators[hung].stats().present as usize > lost.len()).then_some(())
        })
        .await;
        simulators[hung].set_hung(true);
    };
    let ends = join_all(streams.into_iter().map(async |(id, text, _, mut client, head, begun)| {
        let rest = client.rest(head).await;
        assert!(rest.text().ends_with("data: [DONE]\n\n"), "{id}: {}", rest.text());
        assert!(!rest.text().contains("\"error\""), "{id}: {}", rest.text());
        assert_eq!(
            content(&(begun + &rest.text())),
            text,
            "{id}: a word is lost or doubled"
        );
        id
    }));
    let (whole, (), ids) = tokio::join!(asks_whole, hangs, ends);
    assert_eq!(whole.json()["choices"][0]["message"]["content"], whole_text);
    assert_ne!(whole.header("x-sluice-replica"), Some(name));
    for id in ids {
        let row = record(&gateway, &id).await;
        let continued = u64::from(lost.contains(&id));
        assert_eq!(
            (&row["continuations"], &row["error"], &row["attempts"]),
            (&json!(continued), &Value::Null, &json!(1 + continued)),
            "{row}"
        );
    }
    assert_eq!(record(&gateway, "whole").await["attempts"], 2);
    // Its front end is as well as ever, and nobody is sent there.
    assert_eq!(standings(&gateway).await[hung], "hung");
    let other = ["b", "a"][hung];
    for n in 0..10 {
        let answer = gateway
            .ask(Request::post("/v1/chat/completions", &question(true, "Yes.")).session(&format!("s{n}")))
            .await;
        assert_eq!((answer.status(), answer.header("x-sluice-replica")), (200, Some(other)));
    }
    let state = |state: &str| format!("sluice_replica_state{{replica=\"{name}\",state=\"{state}\"}}");
    let metrics = gateway.metrics().await;
    let value = |series: String| {
        metrics
            .lines()
            .find(|line| line.starts_with(&series))
            .map(str::to_owned)
    };
    assert!(value(state("hung")).unwrap().ends_with(" 1"), "{metrics}");
    assert!(value(state("ready")).unwrap().ends_with(" 0"), "{metrics}");
    assert_eq!(times(&gateway.log(), "the replica hangs"), 1, "said once");
    // A token of its own shows that it moves again; clients try it then, and it takes all.
    simulators[hung].set_hung(false);
    wait_for(&gateway, hung, "probing").await;
    let mut n = 0;
    until("it is ready", async || {
        n += 1;
        let request = Request::post("/v1/chat/completions", &question(true, "Yes.")).session(&format!("new{n}"));
        assert_eq!(gateway.ask(request).await.status(), 200);
        (standings(&gateway).await[hung] == "ready").then_some(())
    })
    .await;
}

/// In front of a simulator: passes everything on, but for paths that it keeps waiting or doesn't know.
struct Front {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
}

async fn front(of: SocketAddr, has_metrics: bool) -> Front {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = silent.clone();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let is_silent = is_silent.clone();
            tokio::spawn(async move {
                let mut begin = [0; 16];
                // Probes have a connection of their own, and send their head at once.
                let Ok(read) = client.peek(&mut begin).await else {
                    return;
                };
                let begin = &begin[..read];
                if begin.starts_with(b"GET /health") && is_silent.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                if begin.starts_with(b"GET /metrics") && !has_metrics {
                    let _ = client
                        .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                        .await;
                    return;
                }
                let mut server = TcpStream::connect(of).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    Front { address, silent }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b36_a_busy_engine_with_a_silent_health_is_not_left() {
    for has_metrics in [true, false] {
        let config = SimConfig {
            max_num_seqs: 1,
            ..SimConfig::default()
        };
        let (simulators, addresses) = simulators(1, config).await;
        let front = front(addresses[0], has_metrics).await;
        let gateway = quick(&simulators, &[front.address]).start().await;
        front.silent.store(true, Ordering::Relaxed);
        // The first one takes the only place for three times `hung_after`; the second one is silent for as long.
        let first_text = words("first", 150);
        let request = Request::post("/v1/chat/completions", &question(true, &first_text));
        let mut client = gateway.open(request.session("one").id("one")).await;
        let head = client.head().await;
        let begun = read_to(&mut client, "first-0").await;
        let second = gateway.ask(
            Request::post("/v1/chat/completions", &question(true, "At last."))
                .session("two")
                .id("two"),
        );
        let (second, first) = tokio::join!(second, client.rest(head));
        assert!(first.text().ends_with("[DONE]\n\n"), "{}", first.text());
        assert_eq!(content(&(begun + &first.text())), first_text);
        assert_eq!(content(&second.text()), "At last.");
        let tokens = record(&gateway, "one").await["completion_tokens"].as_u64().unwrap();
        assert!(
            tokens >= 300,
            "{tokens} tokens, one each 10 ms, are less than three times `hung_after`"
        );
        for id in ["one", "two"] {
            let row = record(&gateway, id).await;
            assert_eq!(
                (&row["attempts"], &row["continuations"], &row["error"]),
                (&json!(1), &json!(0), &Value::Null),
                "{row}"
            );
        }
        assert_eq!(times(&gateway.log(), "hangs"), 0, "metrics: {has_metrics}");
        assert_eq!(standings(&gateway).await, ["ready"]);
    }
}

#[tokio::test]
async fn b36_without_statistics_the_silence_of_all_streams_is_a_hang() {
    for stream in [true, false] {
        let (mut a, mut b) = (Replica::start().await, Replica::start().await);
        let gateway = Settings::before(&[&a, &b])
            .set("health", "probe = \"100ms\"")
            .set("health", "hung_after = \"500ms\"")
            .start()
            .await;
        let mut client = gateway.open(Request::chat(stream).id("r")).await;
        let (mut asked, other) = first(&mut a, &mut b).await;
        let sent = asked.body.clone();
        if stream {
            // The head comes from the front end: it proves nothing.
            asked.stream().await;
        }
        // Closed before the next one is asked.
        asked.gone().await;
        let again = other.next().await;
        assert_eq!(again.body, sent);
        again.tell_as_asked("from the other").await;
        let answer = client.message().await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(answer.text().contains("from the other"), "{}", answer.text());
        assert_eq!(times(&gateway.log(), "the replica hangs"), 1);
        let row = record(&gateway, "r").await;
        assert_eq!((&row["attempts"], &row["error"]), (&json!(2), &Value::Null), "{row}");
    }
}

#[tokio::test]
async fn b36_refusals_in_a_row_open_the_breaker_and_others_take_its_requests() {
    let (mut a, b) = (Replica::start().await, Replica::start().await);
    let gateway = Settings::before(&[&a, &b])
        .set("health", "refusals = 2")
        .set("health", "rest = \"1h\"")
        .set("health", "longest_rest = \"1h\"")
        .start()
        .await;
    b.always("hi");
    let mut refused = 0;
    for n in 0..64 {
        let asking = gateway.ask(Request::chat(true).session(&format!("s{n}")));
        let mut asking = std::pin::pin!(asking);
        let answer = tokio::select! {
            answer = &mut asking => answer,
            asked = a.next() => {
                assert!(refused < 2, "the breaker is open");
                refused += 1;
                asked.answer("503 Service Unavailable", &json!({"error": {"message": "busy", "code": 503}})).await;
                asking.await
            }
        };
        assert_eq!((answer.status(), answer.header("x-sluice-replica")), (200, Some("b")));
        assert_eq!(
            standings(&gateway).await[0],
            if refused < 2 { "ready" } else { "resting" }
        );
    }
    assert_eq!(refused, 2, "some of 64 sessions have their home on a");
    assert_eq!(times(&gateway.log(), "left alone"), 1, "said once");
}

#[tokio::test]
async fn b36_one_that_is_back_is_tried_by_a_few_before_it_gets_all() {
    const HERD: usize = 24;
    let (mut a, b) = (Replica::start().await, Replica::start().await);
    let address: SocketAddr = a.url().strip_prefix("http://").unwrap().parse().unwrap();
    let gateway = Settings::before(&[&a, &b])
        .each_replica("probe = \"100ms\"")
        .set("health", "ramp = \"1h\"")
        .start()
        .await;
    b.always("hi");
    a.stop().await;
    wait_for(&gateway, 0, "down").await;
    let mut a = Replica::at(address).await;
    wait_for(&gateway, 0, "probing").await;
    let mut begun = 0;
    // As many as a works on at once while it answers none of them; those of the first round are good then.
    for at_once in [2, 4] {
        let herd = (begun..begun + HERD).map(|n| gateway.ask(Request::chat(true).session(&format!("s{n}"))));
        begun += HERD;
        let mut herd: FuturesUnordered<_> = herd.collect();
        for _ in 0..HERD - at_once {
            let answer = within("the other one serves the rest", herd.next()).await.unwrap();
            assert_eq!(answer.header("x-sluice-replica"), Some("b"));
        }
        let mut trials = Vec::new();
        for _ in 0..at_once {
            trials.push(a.next().await);
        }
        assert!(a.is_unasked());
        for asked in trials {
            asked.tell_text("hi").await;
        }
        let rest: Vec<Message> = within("a answers", herd.collect()).await;
        assert!(rest.iter().all(|answer| answer.header("x-sluice-replica") == Some("a")));
        wait_for(&gateway, 0, "returning").await;
    }
    a.always("hi");
    until("it gets all", async || {
        begun += 1;
        gateway.ask(Request::chat(true).session(&format!("s{begun}"))).await;
        (standings(&gateway).await[0] == "ready").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_an_engine_counts_though_it_came_from_others() {
    const SESSIONS: usize = 20;
    let config = SimConfig {
        max_num_seqs: 1,
        ..SimConfig::default()
    };
    let (simulators, addresses) = simulators(2, config).await;
    let gateway = quick(&simulators, &addresses).start().await;
    // Somebody else's: the gateway sees them in a's metrics only.
    let foreign = words("foreign", 2_000);
    let others: Vec<_> = (0..30)
        .map(|_| {
            let body = json!({"model": simulators[0].model(), "stream": true, "messages": question(true, &foreign)["messages"]});
            let request = Request::post("/v1/chat/completions", &body).bytes();
            let address = addresses[0];
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(&request).await.unwrap();
                std::future::pending::<()>().await;
            })
        })
        .collect();
    let mut n = 0;
    until("new sessions go to the other one only", async || {
        for _ in 0..SESSIONS {
            n += 1;
            let request = Request::post("/v1/chat/completions", &question(true, "Yes.")).session(&format!("s{n}"));
            // One that went to a before its metrics were seen waits there for long.
            let asking = tokio::time::timeout(std::time::Duration::from_secs(1), gateway.ask(request)).await;
            if asking.ok()?.header("x-sluice-replica") != Some("b") {
                return None;
            }
        }
        Some(())
    })
    .await;
    assert!(simulators[0].stats().waiting >= 20, "they waited all the time");
    others.iter().for_each(tokio::task::JoinHandle::abort);
}
