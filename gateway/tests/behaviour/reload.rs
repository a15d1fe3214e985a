//! A changed configuration takes effect for new requests; running ones go on; an invalid one changes nothing.

use serde_json::json;

use super::harness::{Replica, Request, Settings, delta, finish, until};

fn large() -> Request {
    let mut body = super::harness::ask(false);
    body["user"] = json!("x".repeat(20_000));
    Request::post("/v1/chat/completions", &body)
}

#[tokio::test]
async fn a_change_is_seen_by_itself_and_leaves_running_streams_alone() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    let mut running = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    gateway.rewrite("limits", "body_bytes = \"10 KiB\"");
    // Refused bodies are answered by the gateway: the replica needs no script.
    let mut waiting = Vec::new();
    until("the new limit is in force", async || {
        let mut client = gateway.open(large()).await;
        tokio::select! {
            head = client.head() => (head.status == 413).then_some(()),
            asked = replica.next() => {
                waiting.push((client, asked));
                None
            }
        }
    })
    .await;
    asked.event(&delta(json!({"content": "after"}))).await;
    assert!(running.event().await.contains("after"));
    asked.event(&finish("stop")).await;
    asked.done().await;
    assert!(running.read_to("[DONE]").await.contains("stop"));
}

#[tokio::test]
async fn an_invalid_change_changes_nothing_and_is_named_in_the_log() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    for (line, named) in [
        ("body_byte = \"10 KiB\"", "body_byte"),
        ("body_bytes = \"10 seconds\"", "body_bytes"),
        ("body_bytes = = 1", "config.toml"),
    ] {
        let before = gateway.log().len();
        gateway.rewrite("limits", line);
        gateway.hang_up();
        until("the log names the mistake", async || {
            let log = gateway.log().split_off(before);
            (log.contains("ERROR") && log.contains(named)).then_some(())
        })
        .await;
        assert_eq!(gateway.ask(large()).await.status(), 200, "{line}");
    }
    // And a valid one is taken after it.
    gateway.rewrite("limits", "body_bytes = \"10 KiB\"");
    gateway.hang_up();
    until("the new limit is in force", async || {
        (gateway.ask(large()).await.status() == 413).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_needs_a_restart_is_said() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    gateway.rewrite("records", "max_age = \"1d\"");
    gateway.hang_up();
    until("the log says so", async || {
        gateway.log().contains("need a restart").then_some(())
    })
    .await;
    assert_eq!(gateway.ask(Request::chat(false)).await.status(), 200);
}
