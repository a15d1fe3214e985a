//! B37: SIGTERM lets running streams finish, takes nothing new, and the process leaves as soon as the last one has ended.

use serde_json::json;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

use super::harness::{Gateway, Replica, Request, Settings, completion, delta, finish, record, until};

/// pingora's own way out would be a sleep; what is done at once takes far less.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn gateway(drain: &str) -> (Gateway, Replica) {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", &format!("drain = \"{drain}\""))
        .start()
        .await;
    (gateway, replica)
}

#[tokio::test]
async fn b37_a_running_stream_finishes_and_then_the_process_ends_at_once() {
    let (mut gateway, mut replica) = gateway("60s").await;
    let mut idle = gateway.connect().await;
    idle.send(&Request::get("/ping")).await;
    assert_eq!(idle.message().await.status(), 200);
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    let mut asked = replica.next().await;
    asked.begin("before").await;
    client.head().await;
    client.read_to("before").await;
    gateway.terminate();
    // Idle connections are closed, new ones refused.
    idle.closed().await;
    let listen = gateway.listen;
    until("new connections are refused", async || {
        TcpStream::connect(listen).await.is_err().then_some(())
    })
    .await;
    asked.event(&delta(json!({"content": "after"}))).await;
    assert!(client.event().await.contains("after"));
    assert!(gateway.is_running());
    asked.event(&finish("stop")).await;
    asked.done().await;
    assert!(client.read_to("[DONE]").await.contains("stop"));
    let last = Instant::now();
    let status = gateway.ended().await;
    println!("the process ended {:?} after the last event", last.elapsed());
    assert_eq!(status.code(), Some(0));
    assert!(last.elapsed() < AT_ONCE, "{:?}", last.elapsed());
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["finish"], &row["error"], &row["cancelled"]),
        (&json!("stop"), &json!(null), &json!(false))
    );
}

#[tokio::test]
async fn b37_without_requests_it_ends_at_once() {
    let (mut gateway, _replica) = gateway("60s").await;
    let _idle = gateway.connect().await;
    let begun = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.ended().await.code(), Some(0));
    println!("an idle process ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn b37_a_connection_that_is_there_is_told_that_the_process_drains() {
    let (mut gateway, mut replica) = gateway("60s").await;
    // The second request comes on a connection that still streams: it is read after the drain has begun.
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    gateway.terminate();
    until("the drain has begun", async || {
        gateway.log().contains("draining").then_some(())
    })
    .await;
    asked.event(&delta(json!({"role": "assistant", "content": "x"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    client.read_to("[DONE]").await;
    assert_eq!(client.piece().await.unwrap(), None);
    client.closed().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn b37_at_the_limit_what_runs_gets_an_error_event() {
    let (mut gateway, mut replica) = gateway("500ms").await;
    let mut client = gateway.open(Request::chat(true).id("stream")).await;
    let mut asked = replica.next().await;
    asked.begin("so far").await;
    let head = client.head().await;
    client.read_to("so far").await;
    let mut waiting = gateway.open(Request::chat(false).id("message")).await;
    let unanswered = replica.next().await;
    gateway.terminate();
    let rest = client.rest(head).await;
    assert!(
        rest.is_complete && rest.text().contains("\"code\":\"draining\"") && !rest.text().contains("[DONE]"),
        "{}",
        rest.text()
    );
    let message = waiting.message().await;
    assert_eq!((message.status(), message.code().as_str()), (503, "draining"));
    unanswered.gone().await;
    assert_eq!(gateway.ended().await.code(), Some(0));
    for id in ["stream", "message"] {
        assert_eq!(record(&gateway, id).await["error"], "draining");
    }
}

#[tokio::test]
async fn b37_a_message_that_is_waited_for_is_given_and_a_large_one_as_a_whole() {
    let (mut gateway, mut replica) = gateway("60s").await;
    let mut client = gateway.open(Request::chat(false)).await;
    let asked = replica.next().await;
    gateway.terminate();
    until("the drain has begun", async || {
        gateway.log().contains("draining").then_some(())
    })
    .await;
    let text = "long ".repeat(4_000_000);
    asked.answer("200 OK", &completion(&text, "stop", 10)).await;
    // A client that takes its time: the answer is larger than the sockets' buffers.
    let head = client.head().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let answer = client.rest(head).await;
    assert!(
        answer.is_complete,
        "the answer was cut after {} bytes",
        answer.body.len()
    );
    assert_eq!(answer.json()["choices"][0]["message"]["content"], text);
    assert_eq!(gateway.ended().await.code(), Some(0));
}
