//! B6: what every response carries.

use serde_json::json;

use super::harness::{Message, Replica, Request, Settings};

#[tokio::test]
async fn b6_request_ids_are_the_clients_or_ours() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    for request in [
        Request::chat(true),
        Request::chat(false),
        Request::get("/v1/models"),
        Request::get("/nowhere"),
        Request::get("/health"),
    ] {
        let theirs = gateway.ask(request.clone().id("my-id:1/2")).await;
        assert_eq!(theirs.header("x-request-id"), Some("my-id:1/2"));
        let (one, two) = (gateway.ask(request.clone()).await, gateway.ask(request.clone()).await);
        assert!(one.header("x-request-id").unwrap().starts_with("sl-"));
        assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
        for odd in ["", "with space", &"x".repeat(129)] {
            let ours = gateway.ask(request.clone().id(odd)).await;
            assert!(ours.header("x-request-id").unwrap().starts_with("sl-"), "{odd:?}");
        }
    }
}

#[tokio::test]
async fn b6_replica_route_and_attempts() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    for stream in [true, false] {
        let session = format!("s{stream}");
        for route in ["new", "hit", "hit"] {
            let answer = gateway.ask(Request::chat(stream).session(&session)).await;
            let seen = [
                "x-sluice-replica",
                "x-sluice-route",
                "x-sluice-attempts",
                "x-sluice-simulated",
            ]
            .map(|name| answer.header(name));
            assert_eq!(seen, [Some("a"), Some(route), Some("1"), None]);
        }
    }
}

fn is_marked(answer: &Message, content: &str) {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.header("x-sluice-simulated"), Some("true"));
    assert!(content.starts_with("[simulated]"), "{content:?}");
}

#[tokio::test]
async fn b6_a_simulated_answer_cannot_be_mistaken() {
    let gateway = Settings::simulated(2).start().await;
    let health = gateway.ask(Request::get("/health").without_key()).await.json();
    assert_eq!(health["simulated"], true);
    let model = gateway.ask(Request::get("/v1/models")).await.json()["data"][0]["id"].clone();
    assert_eq!(model, format!("{}-simulated", super::harness::MODEL));
    // The real id is accepted, the answer says what it is.
    for asked in [super::harness::MODEL, model.as_str().unwrap()] {
        for thinking in [true, false] {
            let body = |stream: bool| {
                json!({"model": asked, "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "max_tokens": 60,
                    "chat_template_kwargs": {"enable_thinking": thinking}})
            };
            let whole = gateway.ask(Request::post("/v1/chat/completions", &body(false))).await;
            let message = &whole.json()["choices"][0]["message"];
            is_marked(
                &whole,
                message["reasoning"].as_str().or(message["content"].as_str()).unwrap(),
            );
            assert_eq!(whole.json()["model"], model);
            let streamed = gateway.ask(Request::post("/v1/chat/completions", &body(true))).await;
            let chunks = streamed.chunks();
            let text = |field: &str| {
                chunks
                    .iter()
                    .filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str())
                    .collect::<String>()
            };
            is_marked(&streamed, &(text("reasoning") + &text("content")));
            assert!(chunks.iter().all(|chunk| chunk["model"] == model));
        }
    }
    let text = gateway
        .ask(Request::post(
            "/v1/completions",
            &json!({"prompt": "Once", "max_tokens": 20}),
        ))
        .await;
    is_marked(&text, text.json()["choices"][0]["text"].as_str().unwrap());
    assert!(gateway.log().contains("SIMULATED"));
}
