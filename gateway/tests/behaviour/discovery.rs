//! Replicas that are found: by a file that is watched, and by DNS. They come and go like those of a reload.

use serde_json::{Value, json};
use std::path::Path;

use super::harness::{Gateway, MODEL, Replica, Request, Settings, delta, finish, until};

/// A gateway whose replicas are found so.
fn found_by(line: &str) -> Settings {
    Settings::default().backend(&format!(
        "model = \"{MODEL}\"\n[backend.discovery]\n{line}\nprobe = \"100ms\"\n"
    ))
}

/// As those do that write such files: a new one takes the old one's place.
fn write(file: &Path, text: &str) {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, file).unwrap();
}

fn list(replicas: &[(&str, &Replica)]) -> String {
    let entries = replicas.iter();
    let entries: Vec<Value> = entries
        .map(|(name, replica)| json!({"name": name, "url": replica.url()}))
        .collect();
    Value::from(entries).to_string()
}

async fn log_has(gateway: &Gateway, what: &str) {
    until(&format!("the log has {what}"), async || {
        gateway.log().contains(what).then_some(())
    })
    .await;
}

#[tokio::test]
async fn replicas_of_a_watched_file_come_and_go_under_a_running_stream() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replicas.json");
    let [mut a, mut b] = [Replica::start().await, Replica::start().await];
    let gateway = found_by(&format!("file = {file:?}")).start_unready().await;
    log_has(&gateway, "replicas can't be found").await;
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 503);

    write(&file, &list(&[("a", &a)]));
    gateway.has_ready(&["a"]).await;
    let mut running = gateway.open(Request::chat(true)).await;
    let mut asked = a.next().await;
    asked.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    write(&file, &list(&[("b", &b)]));
    gateway.has_ready(&["b"]).await;

    // What can't be used changes nothing, and its place is said.
    for (text, place) in [
        ("[{\"name\": \"c\",\n\"urll\": \"x\"}]", "line 2 column 6"),
        ("[{\"name\": \"c\", \"url\": \"gpu-box\"}]", "entry 1 (name \\\"c\\\")"),
        ("[", "EOF"),
    ] {
        write(&file, text);
        log_has(&gateway, place).await;
        gateway.has_ready(&["b"]).await;
    }
    let mut client = gateway.open(Request::chat(false)).await;
    b.next().await.tell_as_asked("hi").await;
    assert_eq!(client.message().await.header("x-sluice-replica"), Some("b"));
    asked.event(&delta(json!({"content": "after"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    let failures = gateway.metrics().await;
    let failures = failures
        .lines()
        .find_map(|line| line.strip_prefix("sluice_discovery_failures_total "))
        .map(|count| count.parse::<u32>().unwrap());
    assert!(failures.is_some_and(|count| count >= 4), "{failures:?}");
}

#[tokio::test]
async fn a_toml_file_beside_a_named_replica() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replicas.toml");
    let [a, b] = [Replica::start().await, Replica::start().await];
    let text = format!("[[replica]]\nname = \"found\"\nurl = {:?}\n", b.url());
    // The named one stands in it too: it is one replica all the same.
    write(
        &file,
        &format!("{text}[[replica]]\nname = \"twice\"\nurl = {:?}\n", a.url()),
    );
    let settings = found_by(&format!("file = {file:?}")).with_external("named", &a);
    let gateway = settings.start_unready().await;
    gateway.has_ready(&["named", "found"]).await;
}

#[tokio::test]
async fn each_address_of_a_dns_name_is_a_replica() {
    let replica = Replica::start().await;
    let port = replica.url().rsplit_once(':').unwrap().1.to_owned();
    let gateway = found_by(&format!("dns = \"localhost:{port}\"")).start_unready().await;
    let name = format!("127.0.0.1-{port}");
    log_has(&gateway, &format!("ready replica={name}")).await;
    replica.always("hi");
    let answer = gateway.ask(Request::chat(false)).await;
    assert_eq!(
        (answer.status(), answer.header("x-sluice-replica")),
        (200, Some(name.as_str()))
    );
}

#[tokio::test]
async fn b37_what_is_known_of_replicas_that_were_found_outlives_an_upgrade() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replicas.json");
    let [a, b] = [Replica::start().await, Replica::start().await];
    write(&file, &list(&[("a", &a), ("b", &b)]));
    let mut gateway = found_by(&format!("file = {file:?}")).start_unready().await;
    gateway.has_ready(&["a", "b"]).await;
    a.always("hi");
    b.always("hi");
    let mut homes = Vec::new();
    for session in 0..8 {
        let session = format!("s{session}");
        let answer = gateway.ask(Request::chat(false).session(&session)).await;
        assert_eq!(answer.header("x-sluice-route"), Some("new"));
        homes.push((session, answer.header("x-sluice-replica").unwrap().to_owned()));
    }
    gateway.upgrade(&[]).await.unwrap();
    assert!(gateway.ended().await.success());
    for (session, home) in homes {
        let answer = gateway.ask(Request::chat(false).session(&session)).await;
        assert_eq!(
            (answer.header("x-sluice-route"), answer.header("x-sluice-replica")),
            (Some("hit"), Some(home.as_str())),
            "{session}"
        );
    }
}
