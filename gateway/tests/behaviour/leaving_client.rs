//! B11: a client that leaves, or stops reading, ends its request upstream; the record says so.
//!
//! The times printed (`--nocapture`) are what issue 2 asks for; the assertions only guard against never.

use serde_json::{Value, json};
use std::time::Instant;

use super::harness::{Asked, Client, Gateway, Replica, Request, Settings, delta, record, within};

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).start().await, replica)
}

/// The client leaves; the replica sees it.
async fn leaves(case: &str, gateway: &Gateway, client: Client, asked: Asked) -> Value {
    let left = Instant::now();
    drop(client);
    asked.gone().await;
    println!(
        "{case}: the replica's connection was closed {:?} after the client's",
        left.elapsed()
    );
    let row = record(gateway, "r").await;
    assert_eq!(
        (&row["cancelled"], &row["error"]),
        (&json!(true), &json!(null)),
        "{row}"
    );
    row
}

#[tokio::test]
async fn b11_in_prefill_before_the_head() {
    let (gateway, mut replica) = gateway().await;
    let client = gateway.open(Request::chat(true).id("r")).await;
    let asked = replica.next().await;
    leaves("before the head", &gateway, client, asked).await;
}

#[tokio::test]
async fn b11_in_prefill_after_the_head() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    let row = leaves("in prefill", &gateway, client, asked).await;
    assert_eq!(
        (&row["replica"], &row["attempts"], &row["stream"]),
        (&json!("a"), &json!(1), &json!(true))
    );
}

#[tokio::test]
async fn b11_in_a_stream_that_flows() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    let mut asked = replica.next().await;
    asked.begin("so far").await;
    client.head().await;
    client.read_to("so far").await;
    let left = Instant::now();
    drop(client);
    // The engine goes on until its connection is closed.
    let event = format!("data: {}\n\n", delta(json!({"content": "more "})));
    let framed = format!("{:x}\r\n{event}\r\n", event.len());
    within("the engine is stopped", async {
        while asked.try_write(framed.as_bytes()).await {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    println!(
        "in a stream that flows: the replica's connection was closed {:?} after the client's",
        left.elapsed()
    );
    let row = record(&gateway, "r").await;
    assert_eq!((&row["cancelled"], &row["status"]), (&json!(true), &json!(200)));
    assert!(row["completion_tokens"].as_u64().unwrap() >= 1, "what was used: {row}");
}

#[tokio::test]
async fn b11_in_a_stream_that_is_silent() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    let mut asked = replica.next().await;
    asked.begin("so far").await;
    client.head().await;
    client.read_to("so far").await;
    let row = leaves("in a silent stream", &gateway, client, asked).await;
    assert_eq!(row["completion_tokens"], 1);
    assert!(row["ttft_client_ms"].is_number());
}

#[tokio::test]
async fn b11_while_a_message_is_waited_for() {
    let (gateway, mut replica) = gateway().await;
    let client = gateway.open(Request::chat(false).id("r")).await;
    let asked = replica.next().await;
    leaves("while a message is waited for", &gateway, client, asked).await;
}

#[tokio::test]
async fn b11_in_a_stream_that_is_passed_through() {
    let (gateway, mut replica) = gateway().await;
    let body = json!({"model": super::harness::MODEL, "input": "x", "stream": true});
    let mut client = gateway.open(Request::post("/v1/responses", &body).id("r")).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    leaves("in a stream that is passed through", &gateway, client, asked).await;
}

#[tokio::test]
async fn b11_while_the_body_is_sent() {
    let (gateway, replica) = gateway().await;
    let request = Request::chat(true).id("r");
    let bytes = request.bytes();
    let mut client = gateway.connect().await;
    client.write(&bytes[..bytes.len() - 5]).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    drop(client);
    let row = record(&gateway, "r").await;
    assert_eq!(row["cancelled"], true, "{row}");
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b11_a_client_that_stops_reading_is_cut_and_its_replica_let_go() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", "write_stall = \"500ms\"")
        .start()
        .await;
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    let event = format!("data: {}\n\n", delta(json!({"content": "x".repeat(100_000)})));
    let framed = format!("{:x}\r\n{event}\r\n", event.len());
    // Back pressure comes first: what is written and not read is bounded by the sockets' buffers.
    let mut written = 0_u64;
    within("the engine is stopped", async {
        while asked.try_write(framed.as_bytes()).await {
            written += framed.len() as u64;
            assert!(written < 200 << 20, "the gateway holds what the client doesn't read");
        }
    })
    .await;
    println!("a client that stopped reading was cut; the engine had written {written} bytes");
    let row = record(&gateway, "r").await;
    assert_eq!(row["cancelled"], true, "{row}");
    drop(client);
}
