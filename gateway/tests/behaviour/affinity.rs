//! Several gateways before the same fleet share where conversations are, through a real server; and what happens without it.

use serde_json::json;
use std::path::Path;

use super::harness::store::{STORE_PASSWORD, Store};
use super::harness::upstream_tls::Authority;
use super::harness::{Gateway, MODEL, Message, Replica, Request, Settings, record, until};

/// A turn of a conversation, whose system prompt is its own, so that it is no continuation of another one, and most of it, so that what is
/// cached binds it.
fn turn(session: &str, turns: usize) -> Request {
    let mut messages = vec![
        json!({"role": "system", "content": format!("Private words of {session}. ").repeat(400)}),
        json!({"role": "user", "content": "Hello"}),
    ];
    for n in 1..turns {
        messages.push(json!({"role": "assistant", "content": "hi"}));
        messages.push(json!({"role": "user", "content": format!("and {n}?")}));
    }
    Request::post("/v1/chat/completions", &json!({"model": MODEL, "messages": messages})).session(session)
}

fn seen(answer: &Message) -> (String, String) {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let header = |name: &str| answer.header(name).unwrap().to_owned();
    (header("x-sluice-replica"), header("x-sluice-route"))
}

/// With homes shared through this server, which is waited for as long as a busy machine may need.
fn sharing(settings: Settings, store: &Store) -> Settings {
    let lines = lines(&format!("redis://127.0.0.1:{}", store.port()), "5s");
    settings
        .set("affinity", &lines)
        .env("STORE_PASSWORD", Path::new(STORE_PASSWORD))
}

fn lines(url: &str, timeout: &str) -> String {
    format!(
        "enabled = true\nurl = \"{url}\"\npassword_env = \"STORE_PASSWORD\"\nprefix = \"test\"\ntimeout = \"{timeout}\""
    )
}

async fn says(gateway: &Gateway, what: &str, times: usize) {
    until(&format!("the log has {what} {times} times"), async || {
        (gateway.log().matches(what).count() >= times).then_some(())
    })
    .await;
}

const SHARED: &str = "homes are shared with other gateways";
const AWAY: &str = "their server is away";

async fn shares(settings: Settings, store: &Store) -> Gateway {
    let gateway = sharing(settings, store).start().await;
    says(&gateway, SHARED, 1).await;
    gateway
}

/// A figure of `/metrics`.
async fn figure(gateway: &Gateway, name: &str, outcome: &str) -> u64 {
    let metrics = gateway.metrics().await;
    let begin = format!("{name}{{outcome=\"{outcome}\"}} ");
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(&begin));
    lines.next().map_or(0, |count| count.parse().unwrap())
}

async fn lookups(gateway: &Gateway, outcome: &str) -> u64 {
    figure(gateway, "sluice_affinity_lookups_total", outcome).await
}

async fn homes(gateway: &Gateway, outcome: &str) -> u64 {
    figure(gateway, "sluice_affinity_homes_total", outcome).await
}

/// So many turns have been told.
async fn has_told(gateway: &Gateway, count: u64) {
    until("homes are written", async || {
        (homes(gateway, "written").await >= count).then_some(())
    })
    .await;
}

/// Three replicas, and a gateway's settings before the first `count` of them.
async fn three() -> (impl Fn(usize) -> Settings, [tokio::task::JoinHandle<()>; 3]) {
    let replicas = [Replica::start().await, Replica::start().await, Replica::start().await];
    let urls = replicas.each_ref().map(|replica| replica.url());
    let settings = move |count: usize| {
        let lines = urls
            .clone()
            .map(|url| format!("launcher = \"external\"\nurl = \"{url}\""));
        let named: Vec<(&str, &str)> = ["a", "b", "c"]
            .into_iter()
            .zip(lines.iter().map(String::as_str))
            .collect();
        Settings::of(&named[..count])
    };
    (settings, replicas.map(|replica| replica.always("hi")))
}

#[tokio::test]
async fn a_conversation_finds_its_replica_through_another_gateway() {
    const SESSIONS: usize = 24;
    let (settings, _replicas) = three().await;
    let store = Store::start().await;
    // Its ring has two of the three: it sends new conversations elsewhere than the others do.
    let first = shares(settings(2), &store).await;
    let second = shares(settings(3), &store).await;
    let alone = settings(3).start().await;
    let names: Vec<String> = (0..SESSIONS).map(|n| format!("session-{n}")).collect();
    let mut at = Vec::new();
    for name in &names {
        let (home, route) = seen(&first.ask(turn(name, 1)).await);
        assert_eq!(route, "new");
        at.push(home);
    }
    has_told(&first, SESSIONS as u64).await;
    let mut elsewhere = 0;
    for (name, home) in names.iter().zip(&at) {
        let answer = second.ask(turn(name, 2)).await;
        assert_eq!(seen(&answer), (home.clone(), "hit".to_owned()), "{name}");
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(record(&second, id).await["route_reason"], "shared");
        // Known from now on: nobody is asked any more.
        assert_eq!(seen(&second.ask(turn(name, 3)).await), (home.clone(), "hit".to_owned()));
        elsewhere += usize::from(seen(&alone.ask(turn(name, 2)).await).0 != *home);
    }
    assert!(elsewhere > 0, "without sharing, the ring of three has them elsewhere");
    assert_eq!(lookups(&first, "miss").await, SESSIONS as u64);
    assert_eq!(lookups(&second, "hit").await, SESSIONS as u64);
    assert_eq!(lookups(&alone, "miss").await, 0);

    // One conversation with a turn at both, and what a stranger learns of all of them.
    has_told(&second, 2 * SESSIONS as u64).await;
    let stored = store.everything().await;
    let stored: Vec<_> = stored.iter().filter(|(key, _)| key != "test:1:trial").collect();
    assert_eq!(stored.len(), SESSIONS);
    for (key, value) in stored {
        assert!(
            key.starts_with("test:1:") && !names.iter().any(|name| key.contains(name)),
            "{key}"
        );
        let (replica, trail) = value.split_once(' ').unwrap();
        assert!(["a", "b"].contains(&replica), "{value}");
        assert!(
            trail.chars().all(|c| c.is_ascii_hexdigit() || ": ".contains(c)),
            "{value}"
        );
    }
    for gateway in [&first, &second] {
        assert!(!gateway.log().contains(STORE_PASSWORD) && !gateway.log().contains(AWAY));
    }
}

#[tokio::test]
async fn without_the_server_the_ring_decides_and_it_is_used_again_once_it_is_back() {
    let (settings, _replicas) = three().await;
    let mut store = Store::start().await;
    let first = shares(settings(2), &store).await;
    let second = shares(settings(3), &store).await;
    let (home, _) = seen(&first.ask(turn("before", 1)).await);
    has_told(&first, 1).await;
    assert_eq!(seen(&second.ask(turn("before", 2)).await).0, home);
    store.kill();
    for n in 0..12 {
        // All are answered, those that are new here too.
        for gateway in [&first, &second] {
            assert_eq!(seen(&gateway.ask(turn(&format!("lost-{n}"), 1)).await).1, "new");
        }
    }
    // What was known stays known.
    assert_eq!(seen(&second.ask(turn("before", 3)).await), (home, "hit".to_owned()));
    for gateway in [&first, &second] {
        says(gateway, AWAY, 1).await;
        assert!(lookups(gateway, "failed").await >= 1);
        assert!(lookups(gateway, "unasked").await >= 1);
        assert!(homes(gateway, "failed").await + homes(gateway, "shed").await >= 12);
    }
    store.again().await;
    for gateway in [&first, &second] {
        says(gateway, SHARED, 2).await;
        assert_eq!(gateway.log().matches(AWAY).count(), 1, "one line for each change");
    }
    let told = homes(&first, "written").await;
    let (home, _) = seen(&first.ask(turn("after", 1)).await);
    has_told(&first, told + 1).await;
    assert_eq!(seen(&second.ask(turn("after", 2)).await), (home, "hit".to_owned()));
}

#[tokio::test]
async fn a_server_that_takes_connections_and_answers_nothing_holds_no_request() {
    let (settings, _replicas) = three().await;
    let store = Store::start().await;
    let url = format!("redis://127.0.0.1:{}", store.port());
    let settings = settings(3).set("affinity", &lines(&url, "200ms"));
    let gateway = settings.env("STORE_PASSWORD", Path::new(STORE_PASSWORD)).start().await;
    says(&gateway, SHARED, 1).await;
    store.freeze();
    for n in 0..8 {
        // Without a bound it would never be answered.
        assert_eq!(gateway.ask(turn(&format!("s{n}"), 1)).await.status(), 200);
    }
    says(&gateway, AWAY, 1).await;
    assert!(lookups(&gateway, "failed").await >= 1);
    store.thaw();
    says(&gateway, SHARED, 2).await;
}

#[tokio::test]
async fn it_is_switched_on_and_off_by_a_reload() {
    let (settings, _replicas) = three().await;
    let store = Store::start().await;
    let off = settings(3).env("STORE_PASSWORD", Path::new(STORE_PASSWORD));
    let mut gateway = off.clone().start().await;
    assert_eq!(gateway.ask(turn("off", 1)).await.status(), 200);
    assert_eq!(lookups(&gateway, "miss").await, 0);
    gateway.configure(sharing(off.clone(), &store));
    says(&gateway, SHARED, 1).await;
    assert_eq!(gateway.ask(turn("on", 1)).await.status(), 200);
    assert_eq!(lookups(&gateway, "miss").await, 1);
    has_told(&gateway, 1).await;
    gateway.configure(off);
    says(&gateway, "configuration reloaded", 2).await;
    // The change is carried out beside the path: soon.
    let mut n = 0;
    until("nobody is asked any more", async || {
        let before = lookups(&gateway, "miss").await;
        n += 1;
        assert_eq!(gateway.ask(turn(&format!("off-{n}"), 1)).await.status(), 200);
        (lookups(&gateway, "miss").await == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_server_is_reached_over_tls_if_the_system_trusts_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::made(), Authority::made());
    let [trusted, other] = ["ca.pem", "other.pem"].map(|name| folder.path().join(name));
    authority.write(folder.path(), "ca.pem");
    stranger.write(folder.path(), "other.pem");
    let store = Store::start_tls(&authority.sign("localhost").write(folder.path())).await;
    let (settings, _replicas) = three().await;
    let url = format!("rediss://localhost:{}", store.port());
    let before = |trusts: &Path| {
        let settings = settings(3).set("affinity", &lines(&url, "5s"));
        let settings = settings.env("STORE_PASSWORD", Path::new(STORE_PASSWORD));
        settings.env("SSL_CERT_FILE", trusts)
    };
    let gateway = before(&trusted).start().await;
    says(&gateway, SHARED, 1).await;
    assert_eq!(gateway.ask(turn("s", 1)).await.status(), 200);
    has_told(&gateway, 1).await;
    let gateway = before(&other).start().await;
    says(&gateway, AWAY, 1).await;
    assert_eq!(gateway.ask(turn("s", 1)).await.status(), 200);
    assert_eq!(lookups(&gateway, "unasked").await, 1);
}
