//! B37: another process takes over under load: no connection is refused, no stream is cut; if it can't, nothing has happened.

use serde_json::{Value, json};
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::task::JoinSet;

use super::harness::tls::{Certificate, connect};
use super::harness::{
    Client, Gateway, MODEL, Replica, Request, Settings, delta, finish, is_gone, until, usage, within,
};

/// Events of each stream.
const EVENTS: usize = 400;
/// Its tokens: those of tags are no events.
const TOKENS: usize = EVENTS + 20;

/// A `sluice simulate` of its own; it is ended with its value.
struct Simulator {
    child: Child,
    address: SocketAddr,
}

impl Simulator {
    async fn start() -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .args(["simulate", "--model", MODEL, "--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the simulator listens", async || TcpStream::connect(address).await.ok()).await;
        Simulator { child, address }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What became of requests under load.
#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    refused: usize,
    cut: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.whole += other.whole;
        self.refused += other.refused;
        self.cut += other.cut;
        self.wrong.extend(other.wrong);
    }

    fn assert_whole(&self) {
        assert!(
            self.whole > 0 && self.refused == 0 && self.cut == 0 && self.wrong.is_empty(),
            "{self:?}"
        );
    }
}

/// Requests one after the other until it is told to stop.
fn load(
    tasks: &mut JoinSet<Tally>,
    stop: &Arc<AtomicBool>,
    listen: SocketAddr,
    keeps: bool,
    request: Request,
    whole: impl Fn(&str) -> bool + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move {
        let (mut tally, mut kept) = (Tally::default(), None);
        while !stop.load(Ordering::Relaxed) {
            let mut client = match kept.take() {
                Some(client) => client,
                None => match Client::try_connect(listen).await {
                    Some(client) => client,
                    None => {
                        tally.refused += 1;
                        continue;
                    }
                },
            };
            client.send(&request).await;
            match client.try_message().await {
                Some(answer) if answer.is_complete && answer.status() == 200 && whole(&answer.text()) => {
                    tally.whole += 1;
                    if keeps && answer.header("connection") != Some("close") {
                        kept = Some(client);
                    }
                }
                Some(answer) if answer.is_complete => {
                    let text = answer.text();
                    tally.wrong.push(format!(
                        "{} …{}",
                        answer.status(),
                        &text[text.len().saturating_sub(300)..]
                    ));
                }
                _ => tally.cut += 1,
            }
            // As a client that thinks for a moment.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tally
    });
}

fn stream() -> Request {
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Count."}], "stream": true,
        "max_tokens": TOKENS, "sluice_sim": {"tokens": TOKENS, "itl-ms": 2},
    });
    Request::post("/v1/chat/completions", &body)
}

fn is_whole_stream(text: &str) -> bool {
    text.ends_with("data: [DONE]\n\n") && text.matches("data: ").count() >= EVENTS && !text.contains("\"error\"")
}

#[tokio::test]
async fn b37_two_upgrades_in_a_row_under_load_refuse_no_connection_and_cut_no_stream() {
    let simulators = [Simulator::start().await, Simulator::start().await];
    let addresses = simulators.each_ref().map(|simulator| simulator.address);
    let model = format!("{MODEL}-simulated");
    let mut gateway = Settings::external(&model, &addresses)
        .set("server", "drain = \"60s\"")
        .start()
        .await;
    let (mut tasks, stop) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
    let (mut streams, listen) = (JoinSet::new(), gateway.listen);
    let request = |request: Request| request.set("model", json!(model));
    for _ in 0..4 {
        load(&mut streams, &stop, listen, false, request(stream()), is_whole_stream);
    }
    for keeps in [false, false, true, true] {
        let listed = Request::get("/v1/models");
        load(&mut tasks, &stop, listen, keeps, listed, |text| {
            text.contains("simulated")
        });
        let asked = Request::chat(false).set("max_tokens", json!(4));
        load(&mut tasks, &stop, listen, keeps, request(asked), |text| {
            text.contains("usage")
        });
    }
    until("streams run", async || {
        gateway.metrics().await.contains("sluice_requests_total").then_some(())
    })
    .await;
    let first = gateway.upgrade(&[]).await.unwrap();
    let second = gateway.upgrade(&[]).await.unwrap();
    assert!(first != second && first != gateway.pid());
    // Both old processes leave while the load goes on.
    assert!(gateway.ended().await.success(), "{}", gateway.log());
    until("the second process has left", async || is_gone(first).then_some(())).await;
    assert!(!is_gone(second));
    assert!(gateway.metrics().await.contains("sluice_requests_total"));
    stop.store(true, Ordering::Relaxed);
    for tasks in [&mut streams, &mut tasks] {
        let mut tally = Tally::default();
        while let Some(one) = tasks.join_next().await {
            tally.add(one.unwrap());
        }
        println!("{} whole", tally.whole);
        tally.assert_whole();
    }
    // Nobody listens after the last one.
    gateway.terminate_successor(second);
    until("the last process has left", async || is_gone(second).then_some(())).await;
    assert!(TcpStream::connect(listen).await.is_err());
}

#[tokio::test]
async fn b37_a_stream_goes_on_in_the_old_process_while_the_new_one_answers() {
    let mut replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).start().await;
    let limited = gateway.new_key("limited", &["--requests-per-minute", "1"]);
    let of_key = |key: &str| {
        Request::chat(false)
            .without_key()
            .header("authorization", &format!("Bearer {key}"))
    };
    let asks = of_key(&limited);
    let listed = Request::get("/v1/models")
        .without_key()
        .header("authorization", &format!("Bearer {limited}"));
    until("the key is known", async || {
        (gateway.ask(listed.clone()).await.status() == 200).then_some(())
    })
    .await;
    let mut client = gateway.open(asks.clone()).await;
    replica.next().await.tell_as_asked("hi").await;
    assert_eq!(client.message().await.status(), 200);
    let mut running = gateway.open(Request::chat(true).session("s")).await;
    let mut asked = replica.next().await;
    asked.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    // Nothing was asked on this one yet, and it is the old process's.
    let mut idle = gateway.connect().await;
    idle.send(&Request::get("/ping").without_key()).await;
    assert_eq!(idle.message().await.status(), 200);

    gateway.upgrade(&[]).await.unwrap();
    assert!(gateway.is_running());
    // Its next request is still answered, and the last there.
    idle.send(&Request::get("/ping").without_key()).await;
    let last = idle.message().await;
    assert_eq!((last.status(), last.header("connection")), (200, Some("close")));
    // What a key has used is known to the new process.
    let refused = until("what the key has used is known", async || {
        let answer = gateway.ask(listed.clone()).await;
        (answer.header("x-ratelimit-remaining-requests") == Some("0")).then_some(())
    });
    refused.await;
    assert_eq!(gateway.ask(asks).await.status(), 429);
    // So is where the conversation is at home.
    let mut again = gateway.open(Request::chat(false).session("s")).await;
    replica.next().await.tell_as_asked("there").await;
    assert_eq!(again.message().await.header("x-sluice-route"), Some("hit"));
    let health = gateway.ask(Request::get("/health").without_key()).await;
    assert_eq!(health.status(), 200);

    asked.event(&delta(json!({"content": "after"}))).await;
    running.read_to("after").await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(10, 2)).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn b37_a_new_process_that_cannot_serve_changes_nothing() {
    let replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).start().await;
    let answers = replica.always("hi");
    let config = std::fs::read_to_string(gateway.config()).unwrap();
    let fails = async |gateway: &mut Gateway, more: &[&str], expected: &str| {
        let why = gateway.upgrade(more).await.unwrap_err();
        assert!(why.contains(expected) && why.contains("goes on"), "{why}");
        assert!(gateway.is_running());
        assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
    };
    fails(&mut gateway, &["--binary", "/nowhere/sluice"], "can't be started").await;
    fails(&mut gateway, &["--binary", "/bin/false"], "the new process ended").await;
    std::fs::write(gateway.folder().join("state/keys.toml"), "no = \"keys\"\n").unwrap();
    fails(&mut gateway, &[], "can't take over").await;
    std::fs::remove_file(gateway.folder().join("state/keys.toml")).unwrap();
    // The command reads the file for the state folder; the new process finds what is wrong with the rest.
    let broken = config.replace(
        "key_env = \"TEST_BACKEND_KEY\"",
        "key_env = \"TEST_BACKEND_KEY\"\nprofile = \"none\"",
    );
    assert_ne!(broken, config);
    std::fs::write(gateway.config(), broken).unwrap();
    assert!(gateway.upgrade(&[]).await.unwrap_err().contains("profile"));
    std::fs::write(gateway.config(), config).unwrap();
    let next = gateway.upgrade(&[]).await.unwrap();
    assert!(gateway.ended().await.success());
    assert!(!is_gone(next));
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
    answers.abort();
}

/// A gateway with one replica that it has launched, and the process that it says that is.
async fn with_a_launched_replica() -> (Gateway, impl Fn() -> u32) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/supervisor/fake_vllm.py");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let replica =
        format!("launcher = \"process\"\nport = {port}\ncommand = [\"python3\", {script:?}]\nstop_grace = \"1s\"");
    let gateway = Settings::of(&[("a", &replica)]).start().await;
    let entry = gateway.folder().join("state/replicas/a.json");
    let pid = move || -> u32 {
        let entry: Value = serde_json::from_str(&std::fs::read_to_string(&entry).unwrap()).unwrap();
        entry["pid"].as_u64().unwrap().try_into().unwrap()
    };
    (gateway, pid)
}

#[tokio::test]
async fn b37_a_launched_replica_is_the_new_processs() {
    let (mut gateway, pid) = with_a_launched_replica().await;
    let before = pid();
    // It goes back if it isn't wanted elsewhere.
    assert!(gateway.upgrade(&["--binary", "/bin/false"]).await.is_err());
    let next = gateway.upgrade(&[]).await.unwrap();
    assert!(gateway.ended().await.success());
    assert_eq!(pid(), before);
    assert!(!is_gone(before));
    let health = gateway.ask(Request::get("/health").without_key()).await.json();
    assert_eq!(health["replicas"][0]["state"], "ready", "{health}");
    // Who has it ends it.
    gateway.terminate_successor(next);
    until("the gateway has left", async || is_gone(next).then_some(())).await;
    assert!(is_gone(before));
}

/// A program of these lines of shell.
fn script(folder: &Path, lines: &str) -> PathBuf {
    let path = folder.join("successor");
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn b37_a_new_process_that_dies_after_the_word_to_go_gives_the_launched_replica_back() {
    let (mut gateway, pid) = with_a_launched_replica().await;
    let before = pid();
    let heard = gateway.folder().join("heard");
    // It hears the first word, says that it is prepared, hears the second, and is gone.
    let lines = format!("read -r first\necho '\"prepared\"' >&0\nread -r word\necho \"$word\" > {heard:?}\nexit 3");
    let program = script(gateway.folder(), &lines);
    let why = gateway
        .upgrade(&["--binary", program.to_str().unwrap()])
        .await
        .unwrap_err();
    assert!(why.contains("exit status: 3") && why.contains("goes on"), "{why}");
    assert_eq!(std::fs::read_to_string(&heard).unwrap().trim(), "\"go\"");
    assert!(gateway.is_running());
    gateway.has_ready(&["a"]).await;
    assert_eq!((pid(), is_gone(before)), (before, false));
    // Whoever has it ends it: it is this process's again.
    gateway.terminate();
    assert!(gateway.ended().await.success());
    assert!(is_gone(before));
}

#[tokio::test]
async fn b37_sigterm_in_the_middle_of_an_upgrade_drains_and_ends_the_new_process_too() {
    let mut replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).start().await;
    let mut running = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    let noted = gateway.folder().join("pid");
    let program = script(gateway.folder(), &format!("echo $$ > {noted:?}\nexec sleep 600"));
    let mut command = gateway.upgrade_command(&["--binary", program.to_str().unwrap()]);
    let upgrade = tokio::task::spawn_blocking(move || command.output().unwrap());
    let successor: u32 = until("the new process runs", async || {
        std::fs::read_to_string(&noted).ok()?.trim().parse().ok()
    })
    .await;
    gateway.terminate();
    assert!(!upgrade.await.unwrap().status.success());
    until("the new process has ended", async || is_gone(successor).then_some(())).await;
    assert!(gateway.is_running(), "its stream isn't over");
    asked.event(&delta(json!({"content": "after"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn b37_a_stream_of_a_simulated_replica_ends_in_the_old_process() {
    let mut gateway = Settings::simulated(1).start().await;
    let mut running = gateway.open(stream()).await;
    running.head().await;
    let mut text = running.event().await;
    let next = gateway.upgrade(&[]).await.unwrap();
    let answer = gateway.ask(stream()).await;
    assert!(is_whole_stream(&answer.text()));
    text += &running.read_to("[DONE]").await;
    assert!(is_whole_stream(&text));
    assert!(gateway.ended().await.success());
    assert!(!is_gone(next));
}

#[tokio::test]
async fn b37_systemd_is_told_when_it_listens_and_which_process_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let told = UnixDatagram::bind(&path).unwrap();
    let hear = async || {
        let mut bytes = [0; 100];
        let count = within("systemd is told", told.recv(&mut bytes)).await.unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    };
    let replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).env("NOTIFY_SOCKET", &path).start().await;
    assert_eq!(hear().await, "READY=1");
    let first = gateway.upgrade(&[]).await.unwrap();
    assert_eq!(hear().await, format!("MAINPID={first}"));
    let second = gateway.upgrade(&[]).await.unwrap();
    assert_eq!(hear().await, format!("MAINPID={second}"));
}

#[tokio::test]
async fn b37_what_a_stream_of_the_old_process_takes_counts_at_the_new_one() {
    let mut replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).start().await;
    let key = gateway.new_key("limited", &["--tokens-per-minute", "1000", "--concurrency", "1"]);
    let with = |request: Request| request.without_key().header("authorization", &format!("Bearer {key}"));
    until("the key is known", async || {
        let listed = with(Request::get("/v1/models"));
        (gateway.ask(listed).await.status() == 200).then_some(())
    })
    .await;
    let mut running = gateway.open(with(Request::chat(true))).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    running.head().await;
    gateway.upgrade(&[]).await.unwrap();
    // Asked of what uses nothing: a request that passes would wait for the replica.
    let left = async || -> u64 {
        let answer = gateway.ask(with(Request::get("/v1/models"))).await;
        answer.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap()
    };
    let refused = async |kind: &str| {
        until("the new process refuses", async || {
            let answer = gateway.ask(with(Request::chat(false))).await;
            (answer.status() == 429 && answer.json()["error"]["type"] == kind).then_some(())
        })
        .await;
    };
    // One runs, elsewhere.
    until("its prompt counts", async || (left().await < 1_000).then_some(())).await;
    refused("rate_limit_error").await;
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(600, 900)).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    until("all of it counts", async || (left().await == 0).then_some(())).await;
    // None runs any more, and it took more than there was.
    refused("tokens").await;
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b37_a_place_that_a_stream_of_the_old_process_has_is_taken_at_the_new_one() {
    let mut replica = Replica::start().await;
    let settings = Settings::before(&[&replica]).set("admission", "sequences = 1");
    let mut gateway = settings.start().await;
    let mut running = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    running.head().await;
    gateway.upgrade(&[]).await.unwrap();
    let mut waiting = gateway.open(Request::chat(true)).await;
    until("it waits", async || {
        let metrics = gateway.metrics().await;
        let waits = |line: &str| line.starts_with("sluice_queue_length{") && line.ends_with(" 1");
        metrics.lines().any(waits).then_some(())
    })
    .await;
    assert!(replica.is_unasked());
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(10, 1)).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    replica.next().await.tell_as_asked("next").await;
    waiting.head().await;
    waiting.read_to("[DONE]").await;
}

#[tokio::test]
async fn b37_a_tls_listener_is_taken_over() {
    let replica = Replica::start().await;
    let certificate = Certificate::made();
    let (mut gateway, _files) = certificate.gateway(&replica).await;
    let mut replica = replica;
    let mut running = Client::over(connect(&gateway, &[&certificate], &[]).await);
    running.send(&Request::chat(true)).await;
    let asked = replica.next().await;
    gateway.upgrade(&[]).await.unwrap();
    let mut new = Client::over(connect(&gateway, &[&certificate], &[]).await);
    new.send(&Request::chat(false)).await;
    replica.next().await.tell_as_asked("new").await;
    assert!(new.message().await.text().contains("new"));
    asked.tell_as_asked("old").await;
    let answer = running.message().await;
    assert!(answer.is_complete && answer.text().contains("old"));
    assert!(gateway.ended().await.success());
}
