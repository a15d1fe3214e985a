//! B12: a running request is cancelled by its id, and by the same key only.

use serde_json::json;

use super::harness::{Replica, Request, Settings, delta, record, until};

fn cancel(id: &str) -> Request {
    Request::new("POST", &format!("/v1/requests/{id}/cancel"))
}

#[tokio::test]
async fn b12_a_stream_is_cancelled_with_an_error_event_and_its_replica_let_go() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    for silent in [false, true] {
        let id = format!("r{silent}");
        let mut client = gateway.open(Request::chat(true).id(&id)).await;
        let mut asked = replica.next().await;
        asked.stream().await;
        let head = client.head().await;
        if !silent {
            asked
                .event(&delta(json!({"role": "assistant", "content": "so far"})))
                .await;
            client.read_to("so far").await;
        }
        let answer = gateway.ask(cancel(&id)).await;
        assert_eq!((answer.status(), &answer.json()["cancelled"]), (200, &json!(true)));
        asked.gone().await;
        let rest = client.rest(head).await;
        assert!(rest.is_complete && rest.text().contains("\"code\":\"cancelled\"") && !rest.text().contains("[DONE]"));
        let row = record(&gateway, &id).await;
        assert_eq!(
            (&row["cancelled"], &row["error"]),
            (&json!(true), &json!("cancelled")),
            "{row}"
        );
        // It is over: nothing is there to cancel.
        assert_eq!(gateway.ask(cancel(&id)).await.status(), 404);
    }
}

#[tokio::test]
async fn b12_a_message_that_is_waited_for_is_cancelled() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(false).id("r")).await;
    let asked = replica.next().await;
    assert_eq!(gateway.ask(cancel("r")).await.status(), 200);
    asked.gone().await;
    let answer = client.message().await;
    assert_eq!((answer.status(), answer.code().as_str()), (499, "cancelled"));
    let row = record(&gateway, "r").await;
    assert_eq!((&row["cancelled"], &row["status"]), (&json!(true), &json!(499)));
    assert_eq!(
        (&row["replica"], &row["attempts"]),
        (&json!("a"), &json!(1)),
        "whom it was sent to: {row}"
    );
}

#[tokio::test]
async fn b12_another_key_cannot_cancel_and_learns_nothing() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let key = gateway.new_key("other", &[]);
    gateway.hang_up();
    let other = |request: Request| request.without_key().header("authorization", &format!("Bearer {key}"));
    until("the other key is accepted", async || {
        (gateway.ask(other(Request::get("/v1/models"))).await.status() == 200).then_some(())
    })
    .await;
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(true).id("mine")).await;
    let asked = replica.next().await;
    let (theirs, unknown) = (
        gateway.ask(other(cancel("mine"))).await,
        gateway.ask(other(cancel("nobodys"))).await,
    );
    assert_eq!((theirs.status(), theirs.text()), (404, unknown.text()));
    asked.tell_text("undisturbed").await;
    assert!(client.message().await.text().contains("undisturbed"));
}
