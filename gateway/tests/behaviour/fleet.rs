//! B37: a reload adds, drops and renames replicas, and no request notices: running ones end where they run, waiting ones find who has come.

use serde_json::json;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::harness::{Asked, Gateway, MODEL, Replica, Request, Settings, delta, finish, record, until};

async fn end(mut asked: Asked) {
    asked.event(&delta(json!({"content": " and after"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
}

#[tokio::test]
async fn b37_replicas_come_go_and_are_renamed_under_running_streams() {
    let [mut a, mut b, mut c] = [Replica::start().await, Replica::start().await, Replica::start().await];
    let mut gateway = Settings::before(&[&a]).start().await;
    let mut first = gateway.open(Request::chat(true).id("first")).await;
    let mut on_a = a.next().await;
    on_a.begin("before").await;
    first.head().await;
    first.read_to("before").await;

    // One comes, the other one goes: its stream goes on, and new requests are the new one's.
    gateway.configure(gateway.settings().with_external("b", &b));
    gateway.has_ready(&["a", "b"]).await;
    gateway.configure(gateway.settings().without("a"));
    gateway.has_ready(&["b"]).await;
    let mut second = gateway.open(Request::chat(true).id("second")).await;
    let mut on_b = b.next().await;
    on_b.begin("before").await;
    let head = second.head().await;
    assert_eq!(head.header("x-sluice-replica"), Some("b"));

    // A new name for what runs on: it isn't looked at anew, it is ready at once.
    gateway.configure(gateway.settings().renamed("b", "bee").with_external("c", &c));
    gateway.has_ready(&["bee", "c"]).await;
    assert_eq!(gateway.log().matches("ready replica=b").count(), 1, "{}", gateway.log());
    gateway.configure(gateway.settings().without("c"));
    gateway.has_ready(&["bee"]).await;
    let third = gateway.open(Request::chat(false).id("third")).await;
    b.next().await.tell_as_asked("whole").await;
    let mut third = third;
    assert_eq!(third.message().await.header("x-sluice-replica"), Some("bee"));

    end(on_a).await;
    end(on_b).await;
    assert!(first.read_to("[DONE]").await.contains("and after"));
    assert!(second.read_to("[DONE]").await.contains("and after"));
    for id in ["first", "second", "third"] {
        let row = record(&gateway, id).await;
        assert_eq!((&row["status"], &row["attempts"]), (&json!(200), &json!(1)), "{row}");
    }
    assert!(a.is_unasked() && c.is_unasked());
    let metrics = gateway.metrics().await;
    assert!(metrics.contains("sluice_replica_up{replica=\"bee\"} 1"), "{metrics}");
    assert!(!metrics.contains("sluice_replica_up{replica=\"a\"}"), "{metrics}");
    let _ = c.stop().await;
}

#[tokio::test]
async fn b37_no_request_fails_while_the_fleet_changes_again_and_again() {
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Replica::start().await);
    }
    let names = ["a", "b", "c"];
    let all: Vec<String> = replicas
        .iter()
        .map(|replica| {
            format!(
                "launcher = \"external\"\nurl = \"{}\"\nprobe = \"100ms\"",
                replica.url()
            )
        })
        .collect();
    let with = |which: &[usize]| {
        let of = |settings: Settings, i: &usize| settings.with(names[*i], &all[*i]);
        which.iter().fold(Settings::default(), of)
    };
    let mut gateway = with(&[0]).start().await;
    let answering: Vec<_> = replicas.into_iter().map(|replica| replica.always("hi")).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let listen = gateway.listen;
    let agents: Vec<_> = (0..8)
        .map(|agent| {
            let is_over = is_over.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = super::harness::Client::connect(listen).await;
                    let is_stream = (agent + count) % 2 == 0;
                    let request = Request::chat(is_stream).session(&format!("{agent}-{}", count % 5));
                    client.send(&request).await;
                    let answer = client.message().await;
                    assert_eq!(answer.status(), 200, "{}", answer.text());
                    assert!(answer.text().contains("hi") && answer.is_complete, "{}", answer.text());
                    assert_eq!(answer.text().contains("[DONE]"), is_stream, "{}", answer.text());
                    assert_eq!(answer.header("x-sluice-attempts"), Some("1"), "{}", answer.text());
                    count += 1;
                }
                count
            })
        })
        .collect();
    // Also all at once, where none that was ready stays: requests are held until the new one is.
    for which in [&[0, 1][..], &[1], &[2], &[0, 1, 2], &[0], &[1, 2], &[0]] {
        gateway.configure(with(which));
        gateway
            .has_ready(&which.iter().map(|i| names[*i]).collect::<Vec<_>>())
            .await;
    }
    for (was, name) in [("a", "x"), ("x", "y"), ("y", "a")] {
        gateway.configure(gateway.settings().renamed(was, name));
        gateway.has_ready(&[name]).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut count = 0;
    for agent in agents {
        count += agent.await.unwrap();
    }
    assert!(count > 8, "{count} requests");
    println!("{count} requests over ten changes");
    for answering in answering {
        answering.abort();
    }
}

#[tokio::test]
async fn b37_who_waits_for_a_place_gets_one_at_a_replica_that_comes() {
    let [mut a, mut b] = [Replica::start().await, Replica::start().await];
    let mut gateway = Settings::before(&[&a]).set("admission", "sequences = 1").start().await;
    let mut running = gateway.open(Request::chat(true)).await;
    let mut on_a = a.next().await;
    on_a.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    let mut waiting = gateway.open(Request::chat(true)).await;
    until("it waits", async || {
        let metrics = gateway.metrics().await;
        let waits = metrics
            .lines()
            .any(|line| line.starts_with("sluice_queue_length") && line.ends_with(" 1"));
        waits.then_some(())
    })
    .await;
    // The one that is full goes, too: its running request still has its place there.
    gateway.configure(gateway.settings().with_external("b", &b).without("a"));
    let mut on_b = b.next().await;
    on_b.begin("before").await;
    waiting.head().await;
    waiting.read_to("before").await;
    end(on_a).await;
    end(on_b).await;
    running.read_to("[DONE]").await;
    waiting.read_to("[DONE]").await;
    assert!(a.is_unasked());
}

#[tokio::test]
async fn b37_a_conversation_stays_where_its_cache_is_over_a_reload() {
    let [mut a, mut b, c] = [Replica::start().await, Replica::start().await, Replica::start().await];
    let mut gateway = Settings::before(&[&a, &b]).start().await;
    let turn = || Request::chat(false).session("kept");
    let mut client = gateway.open(turn()).await;
    let is_on_a = super::harness::is_asked_first(&a, &b).await;
    let home = if is_on_a { &mut a } else { &mut b };
    home.next().await.tell_as_asked("one").await;
    client.message().await;
    let was = if is_on_a { "a" } else { "b" };
    gateway.configure(gateway.settings().with_external("c", &c).renamed(was, "home"));
    gateway.has_ready(&["home", if is_on_a { "b" } else { "a" }, "c"]).await;
    let mut client = gateway.open(turn()).await;
    home.next().await.tell_as_asked("two").await;
    let answer = client.message().await;
    assert_eq!(
        (answer.header("x-sluice-replica"), answer.header("x-sluice-route")),
        (Some("home"), Some("hit"))
    );
}

#[tokio::test]
async fn b37_backends_come_go_and_are_renamed_and_ids_change_at_once() {
    let a = Replica::start().await;
    let mut gateway = Settings::before(&[&a]).start().await;
    let answering = a.always("scripted");
    let of = |model: &str| {
        let mut body = super::harness::ask(false);
        body["model"] = json!(model);
        Request::post("/v1/chat/completions", &body)
    };
    let other = |aliases: &str| {
        format!(
            "[[backend]]\nname = \"other\"\nmodel = \"other\"\naliases = [{aliases}]\n[[backend.replica]]\nname = \"sim\"\nlauncher = \"simulated\"\n"
        )
    };
    let alone = gateway.settings();
    assert_eq!(gateway.ask(of("other")).await.status(), 404);
    // Without its replica's name it is invalid: nothing changes.
    let broken = other("").replace("name = \"sim\"", "name = \"a\"");
    gateway.configure(alone.clone().then(&broken));
    until("the log says why", async || {
        gateway.log().contains("the name \"a\" is taken").then_some(())
    })
    .await;
    gateway.has_ready(&["a"]).await;
    assert_eq!(gateway.ask(of("other")).await.status(), 404);

    gateway.configure(alone.clone().then(&other("\"shared\"")));
    gateway.has_ready(&["a", "sim"]).await;
    for id in ["other", "shared"] {
        assert_eq!(gateway.ask(of(id)).await.header("x-sluice-replica"), Some("sim"));
    }
    // The id goes from one backend to the other: who asks for it gets the one or the other, never nobody.
    let lines = format!("model = \"{MODEL}\"\naliases = [\"shared\"]\n");
    gateway.configure(alone.clone().backend(&lines).then(&other("")));
    until("the other one has it", async || {
        let answer = gateway.ask(of("shared")).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        (answer.header("x-sluice-replica") == Some("a")).then_some(())
    })
    .await;
    // Renamed: its replica runs on.
    let renamed = other("").replace("name = \"other\"", "name = \"simulated\"");
    gateway.configure(alone.clone().then(&renamed));
    until("the id is gone", async || {
        (gateway.ask(of("shared")).await.status() == 404).then_some(())
    })
    .await;
    assert_eq!(gateway.ask(of("other")).await.header("x-sluice-replica"), Some("sim"));
    assert_eq!(gateway.log().matches("this replica is SIMULATED").count(), 1);
    gateway.configure(alone);
    until("the backend is gone", async || {
        (gateway.ask(of("other")).await.status() == 404).then_some(())
    })
    .await;
    assert_eq!(gateway.ask(of(MODEL)).await.status(), 200);
    answering.abort();
}

/// A vLLM that Sluice starts: the simulator as a process of its own.
fn launched(port: u16) -> String {
    let sluice = env!("CARGO_BIN_EXE_sluice");
    let script = format!("exec {sluice} simulate --listen 127.0.0.1:{port} --model m --speed 0");
    format!("launcher = \"process\"\nport = {port}\ncommand = [\"bash\", \"-c\", {script:?}, \"vllm\"]")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A stream of 100 tokens, each of which takes so many milliseconds.
fn slow(milliseconds: u32) -> Request {
    let text = format!("[[sim tokens=100 ttft-ms=1 itl-ms={milliseconds}]] Go.");
    let body = json!({"model": "m-simulated", "stream": true, "messages": [{"role": "user", "content": text}]});
    Request::post("/v1/chat/completions", &body)
}

async fn is_closed(port: u16) {
    until("nobody listens there any more", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
            .then_some(())
    })
    .await;
}

async fn two_launched(more: impl FnOnce(Settings) -> Settings) -> (Gateway, [u16; 2]) {
    let ports = [free_port(), free_port()];
    let settings = Settings::default()
        .backend("model = \"m-simulated\"\n")
        .with("a", &launched(ports[0]))
        .with("b", &launched(ports[1]));
    (more(settings).start().await, ports)
}

#[tokio::test]
async fn b37_a_launched_replica_that_is_dropped_ends_when_its_stream_has_ended() {
    let (mut gateway, ports) = two_launched(|settings| settings).await;
    let mut running = gateway.open(slow(20).id("runs")).await;
    let home = running.head().await.header("x-sluice-replica").unwrap().to_owned();
    let (port, other) = if home == "a" { (ports[0], "b") } else { (ports[1], "a") };
    gateway.configure(gateway.settings().without(&home));
    gateway.has_ready(&[other]).await;
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok(),
        "it drains"
    );
    running.read_to("[DONE]").await;
    let row = record(&gateway, "runs").await;
    assert_eq!((&row["replica"], &row["attempts"]), (&json!(home), &json!(1)), "{row}");
    is_closed(port).await;
    // Its name and port can be had again.
    gateway.configure(gateway.settings().with(&home, &launched(port)));
    gateway.has_ready(&["a", "b"]).await;
}

#[tokio::test]
async fn b37_what_runs_on_a_dropped_replica_past_the_drain_goes_on_elsewhere() {
    let (mut gateway, ports) = two_launched(|settings| settings.set("server", "drain = \"300ms\"")).await;
    let mut running = gateway.open(slow(30).id("moves")).await;
    let home = running.head().await.header("x-sluice-replica").unwrap().to_owned();
    running.read_to("content").await;
    let (port, other) = if home == "a" { (ports[0], "b") } else { (ports[1], "a") };
    gateway.configure(gateway.settings().without(&home));
    running.read_to("[DONE]").await;
    let row = record(&gateway, "moves").await;
    assert_eq!((&row["replica"], &row["attempts"]), (&json!(other), &json!(2)), "{row}");
    is_closed(port).await;
}
