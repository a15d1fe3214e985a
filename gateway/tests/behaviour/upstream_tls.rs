//! TLS to replicas: whom the gateway trusts, who it is where it is asked, and that a wrong certificate is said and never used.

use serde_json::{Value, json};
use std::path::Path;

use super::harness::upstream_tls::{Authority, Front};
use super::harness::{BACKEND_KEY, Gateway, MODEL, Replica, Request, Settings, delta, finish, until};

/// A gateway before one replica behind `https://host:port`, with these lines of `[backend.tls]`.
fn before(host: &str, front: &Front, tls: &[(&str, &str)]) -> Settings {
    looked_at("100ms", host, front, tls)
}

/// The same, its replica looked at so often.
fn looked_at(probe: &str, host: &str, front: &Front, tls: &[(&str, &str)]) -> Settings {
    let lines: String = tls.iter().map(|(key, value)| format!("{key} = {value:?}\n")).collect();
    let url = format!(
        "launcher = \"external\"\nurl = \"https://{host}:{}\"\nprobe = \"{probe}\"",
        front.port()
    );
    Settings::default()
        .with("a", &url)
        .backend(&format!("model = \"{MODEL}\"\n[backend.tls]\n{lines}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn log_has(gateway: &Gateway, what: &str) {
    until(&format!("the log has {what}"), async || {
        gateway.log().contains(what).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_go_over_tls_to_a_replica_that_the_authority_has_signed() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, mut replica) = (Authority::made(), Replica::start().await);
    let ca = authority.write(folder.path(), "ca.pem");
    let front = Front::start(&replica, &authority.sign("localhost"), None).await;
    // Nobody looks at the replica while the test counts connections.
    let settings = looked_at("10m", "localhost", &front, &[("ca", text(&ca))]).set("health", "probe = \"5s\"");
    let gateway = settings.start().await;
    log_has(&gateway, "how the replica takes tools is known").await;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    assert_eq!(
        asked.header("authorization"),
        Some(format!("Bearer {BACKEND_KEY}").as_str())
    );
    assert_eq!(
        asked.header("host"),
        Some(format!("localhost:{}", front.port()).as_str())
    );
    asked.begin("secret").await;
    // Each token comes by itself, as without TLS.
    client.head().await;
    client.read_to("secret").await;
    // More than one TLS record and more than a socket takes at once.
    let long = "x".repeat(300_000);
    asked.event(&delta(json!({"content": long}))).await;
    client.read_to(&long).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    client.read_to("[DONE]").await;
    let large = {
        let mut body = super::harness::ask(false);
        body["user"] = json!("y".repeat(1_000_000));
        Request::post("/v1/chat/completions", &body)
    };
    let before = front.protocols().len();
    let mut client = gateway.open(large).await;
    let asked = replica.next().await;
    assert_eq!(asked.json()["user"].as_str().unwrap().len(), 1_000_000);
    assert_eq!(front.protocols().len(), before, "the connection is used again");
    asked.tell_as_asked("whole").await;
    assert!(client.message().await.text().contains("whole"));
    assert!(front.protocols().iter().all(|protocol| protocol == b"http/1.1"));
}

#[tokio::test]
async fn a_replica_of_another_authority_or_name_is_never_used_and_the_log_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other, replica) = (Authority::made(), Authority::made(), Replica::start().await);
    let ca = ours.write(folder.path(), "ca.pem");
    let strange = Front::start(&replica, &other.sign("localhost"), None).await;
    let named = Front::start(&replica, &ours.sign("gpu-box"), None).await;
    for (front, tls, why) in [
        (&strange, vec![("ca", text(&ca))], "UnknownIssuer"),
        (&named, vec![("ca", text(&ca))], "not valid for name"),
        // The system knows neither of them.
        (&strange, vec![], "UnknownIssuer"),
    ] {
        let gateway = before("localhost", front, &tls).start_unready().await;
        log_has(&gateway, why).await;
        assert!(gateway.log().contains("replica isn't ready yet"), "{}", gateway.log());
        assert_eq!(gateway.ask(Request::chat(false)).await.status(), 503);
        assert!(replica.is_unasked() && front.protocols().is_empty());
    }
    // The certificate's own name, where the URL has another one.
    let tls = [("ca", text(&ca)), ("server_name", "gpu-box")];
    let gateway = before("127.0.0.1", &named, &tls).start().await;
    replica.always("hi");
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
}

#[tokio::test]
async fn a_replica_that_wants_our_certificate_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, replica) = (Authority::made(), Replica::start().await);
    let ca = authority.write(folder.path(), "ca.pem");
    let front = Front::start(&replica, &authority.sign("localhost"), Some(&authority)).await;
    let mut gateway = before("localhost", &front, &[("ca", text(&ca))]).start_unready().await;
    log_has(&gateway, "ertificate").await;
    log_has(&gateway, "replica isn't ready yet").await;
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 503);
    replica.always("hi");

    // A stranger's certificate is as good as none; then a renewed file is read at the next reload.
    let [cert, key] = Authority::made().sign("gateway").write(folder.path());
    let own = [("ca", text(&ca)), ("cert", text(&cert)), ("key", text(&key))];
    gateway.configure(before("localhost", &front, &own));
    log_has(&gateway, "the replica is added").await;
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 503);
    authority.sign("gateway").write(folder.path());
    gateway.hang_up();
    gateway.has_ready(&["a"]).await;
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);

    // A file that can't be used is named, and what runs goes on.
    for (key_is, named) in [("own.nowhere", "own.nowhere"), ("", "given together")] {
        let path = folder.path().join(key_is);
        let key = if key_is.is_empty() { "" } else { text(&path) };
        let broken = [("ca", text(&ca)), ("cert", text(&cert)), ("key", key)];
        gateway.configure(before("localhost", &front, &broken));
        log_has(&gateway, named).await;
        assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
    }
}

#[tokio::test]
async fn a_renewed_file_is_read_when_it_changes_and_not_for_each_replica_that_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, replica) = (Authority::made(), Replica::start().await);
    let ca = authority.write(folder.path(), "ca.pem");
    let [cert, key] = Authority::made().sign("gateway").write(folder.path());
    let one = Front::start(&replica, &authority.sign("localhost"), Some(&authority)).await;
    let two = Front::start(&replica, &authority.sign("localhost"), Some(&authority)).await;
    let file = folder.path().join("replicas.json");
    let entry = |name: &str, front: &Front| json!({"name": name, "url": format!("https://localhost:{}", front.port())});
    let write = |entries: &[Value]| {
        let draft = file.with_extension("draft");
        std::fs::write(&draft, Value::from(entries).to_string()).unwrap();
        std::fs::rename(draft, &file).unwrap();
    };
    write(&[entry("one", &one)]);
    let gateway = Settings::default()
        .backend(&format!(
            "model = \"{MODEL}\"\n[backend.discovery]\nfile = {file:?}\nprobe = \"100ms\"\n[backend.tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n"
        ))
        .start_unready()
        .await;
    log_has(&gateway, "replica isn't ready yet").await;
    // A certificate that the replica knows, and nobody tells the gateway.
    authority.sign("gateway").write(folder.path());
    gateway.has_ready(&["one"]).await;
    // Half renewed: what comes now is reached with what was read.
    std::fs::remove_file(&key).unwrap();
    write(&[entry("one", &one), entry("two", &two)]);
    gateway.has_ready(&["one", "two"]).await;
    replica.always("hi");
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
}
