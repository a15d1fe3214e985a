//! B5: what a replica says instead of an answer, as the client gets it.

use serde_json::{Value, json};

use super::harness::{Gateway, Message, Replica, Request, Settings, record};

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (
        Settings::before(&[&replica]).set("hold", "count = 0").start().await,
        replica,
    )
}

async fn after(gateway: &Gateway, replica: &mut Replica, request: Request, status: &str, body: &Value) -> Message {
    let mut client = gateway.open(request).await;
    replica.next().await.answer(status, body).await;
    client.message().await
}

fn error(message: &str, code: u16) -> Value {
    json!({"error": {"message": message, "type": "BadRequestError", "param": null, "code": code}})
}

#[tokio::test]
async fn b5_the_clients_mistakes_keep_vllms_words_in_our_shape() {
    let (gateway, mut replica) = gateway().await;
    for stream in [true, false] {
        for (line, body, status, code, message) in [
            (
                "400 Bad Request",
                error("temperature must be non-negative, got -1.0.", 400),
                400,
                Value::Null,
                "temperature must be non-negative",
            ),
            (
                "422 Unprocessable Entity",
                error("not so", 422),
                422,
                Value::Null,
                "not so",
            ),
            (
                "413 Payload Too Large",
                error("too much", 413),
                413,
                json!("body_too_large"),
                "too much",
            ),
            (
                "404 Not Found",
                json!({"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}}),
                404,
                json!("model_not_found"),
                "does not exist",
            ),
            (
                "400 Bad Request",
                error(
                    "This model's maximum context length is 40960 tokens. However, you requested 50000 tokens in the messages. Please reduce the length of the messages.",
                    400,
                ),
                400,
                json!("context_length_exceeded"),
                "maximum context length is 40960 tokens",
            ),
        ] {
            let answer = after(&gateway, &mut replica, Request::chat(stream), line, &body).await;
            assert_eq!(answer.status(), status, "{line}");
            assert_eq!(answer.json()["error"]["code"], code);
            assert!(answer.error().contains(message), "{}", answer.error());
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert!(answer.header("x-request-id").is_some());
            assert!(replica.is_unasked(), "asked again for the client's own mistake");
        }
    }
}

#[tokio::test]
async fn b5_what_says_that_we_are_misconfigured_is_502_and_the_log_names_replica_and_setting() {
    let (gateway, mut replica) = gateway().await;
    for (line, body, setting) in [
        ("401 Unauthorized", json!({"error": "Unauthorized"}), "key_env"),
        ("403 Forbidden", json!({"error": "Forbidden"}), "key_env"),
        ("307 Temporary Redirect", json!(null), "url"),
        ("405 Method Not Allowed", json!({"detail": "Method Not Allowed"}), "url"),
        ("404 Not Found", json!({"detail": "Not Found"}), "url"),
    ] {
        let before = gateway.log().len();
        let answer = after(
            &gateway,
            &mut replica,
            Request::chat(true).id(&format!("r{}", &line[..3])),
            line,
            &body,
        )
        .await;
        assert_eq!(
            (answer.status(), answer.code().as_str()),
            (502, "upstream_misconfigured"),
            "{line}"
        );
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        assert!(
            !answer.text().contains("Unauthorized") && !answer.text().contains("detail"),
            "{}",
            answer.text()
        );
        let log = gateway.log().split_off(before);
        assert!(
            log.contains("ERROR") && log.contains("replica=a") && log.contains(setting),
            "{line}: {log}"
        );
        let row = record(&gateway, &format!("r{}", &line[..3])).await;
        assert_eq!(
            (&row["status"], &row["error"]),
            (&json!(502), &json!("upstream_misconfigured"))
        );
    }
}

#[tokio::test]
async fn b5_failures_say_when_to_try_again() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.open(Request::chat(false)).await;
    // The only replica is asked once more.
    for _ in 0..2 {
        let asked = replica.next().await;
        asked
            .answer("503 Service Unavailable", &error("engine is loading", 503))
            .await;
    }
    let answer = client.message().await;
    assert_eq!((answer.status(), answer.header("x-should-retry")), (503, Some("true")));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    replica.stop().await;
    let answer = gateway.ask(Request::chat(false)).await;
    assert_eq!(answer.status(), 502);
    assert_ne!(answer.header("x-should-retry"), Some("false"));
}

#[tokio::test]
async fn b5_without_any_replica_it_is_503() {
    let replica = Replica::start().await;
    let url = Settings::before(&[&replica]);
    drop(replica.dead().await);
    let gateway = url.start_unready().await;
    super::harness::until("the replica is down", async || {
        let health = gateway.ask(Request::get("/health").without_key()).await;
        assert_eq!(health.status(), 503);
        (health.json()["replicas"][0]["state"] == "down").then_some(())
    })
    .await;
    let answer = gateway.ask(Request::chat(true)).await;
    assert_eq!((answer.status(), answer.code().as_str()), (503, "no_replica"));
    assert_eq!(
        (answer.header("retry-after").is_some(), answer.header("x-should-retry")),
        (true, Some("true"))
    );
}

#[tokio::test]
async fn b5_on_messages_errors_have_anthropics_shape() {
    let (gateway, mut replica) = gateway().await;
    let request = || {
        Request::post(
            "/v1/messages",
            &json!({"model": super::harness::MODEL, "max_tokens": 1, "messages": []}),
        )
    };
    let answer = after(
        &gateway,
        &mut replica,
        request(),
        "400 Bad Request",
        &error("no messages", 400),
    )
    .await;
    assert_eq!(
        answer.json(),
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": "no messages"}})
    );
    let answer = after(
        &gateway,
        &mut replica,
        request(),
        "401 Unauthorized",
        &json!({"error": "Unauthorized"}),
    )
    .await;
    assert_eq!(
        (answer.status(), &answer.json()["error"]["type"]),
        (502, &json!("api_error"))
    );
}

#[tokio::test]
async fn b5_paths_of_the_server_are_stripped() {
    let (gateway, mut replica) = gateway().await;
    let message = "Error in /usr/lib/python3.12/site-packages/vllm/entrypoints/openai/serving_chat.py: bad request";
    let answer = after(
        &gateway,
        &mut replica,
        Request::chat(false),
        "400 Bad Request",
        &error(message, 400),
    )
    .await;
    assert_eq!(answer.status(), 400);
    assert!(!answer.error().contains("site-packages"), "{}", answer.error());
}
