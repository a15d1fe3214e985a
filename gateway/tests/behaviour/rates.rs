//! B3: what one key may use in a minute and at once: refused with a `Retry-After` that is true, told in OpenAI's headers.

use serde_json::json;
use std::time::Duration;

use super::harness::{Gateway, Message, Replica, Request, Settings, completion, delta, finish, until, usage};

/// More requests than any of these limits lets through at once.
const MANY: usize = 200;

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).start().await, replica)
}

/// A key with these limits that is accepted already.
async fn key(gateway: &Gateway, name: &str, limits: &[&str]) -> String {
    let key = gateway.new_key(name, limits);
    until("the new key is accepted", async || {
        (gateway.ask(with(Request::get("/v1/models"), &key)).await.status() == 200).then_some(())
    })
    .await;
    key
}

fn with(request: Request, key: &str) -> Request {
    request.without_key().header("authorization", &format!("Bearer {key}"))
}

fn chat(key: &str) -> Request {
    with(Request::chat(false), key)
}

fn number(answer: &Message, header: &str) -> u64 {
    answer
        .header(header)
        .unwrap_or_else(|| panic!("no {header}"))
        .parse()
        .unwrap()
}

/// Waits as told; what is told is whole seconds.
async fn wait_as_told(answer: &Message) -> u64 {
    let seconds = number(answer, "retry-after");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    seconds
}

/// Asks until the key is refused.
async fn refused(gateway: &Gateway, request: impl Fn() -> Request) -> Message {
    for _ in 0..MANY {
        let answer = gateway.ask(request()).await;
        if answer.status() != 200 {
            return answer;
        }
    }
    panic!("{MANY} requests were not refused");
}

#[tokio::test]
async fn b3_requests_a_minute_are_refused_with_a_retry_after_that_is_true() {
    let (gateway, replica) = gateway().await;
    let answers = replica.always("hi");
    let key = key(&gateway, "limited", &["--requests-per-minute", "20"]).await;
    let first = gateway.ask(chat(&key)).await;
    assert_eq!(
        (first.status(), first.header("x-ratelimit-limit-requests")),
        (200, Some("20"))
    );
    assert_eq!(number(&first, "x-ratelimit-remaining-requests"), 19);
    assert!(first.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
    // It has no rate of tokens.
    assert_eq!(first.header("x-ratelimit-limit-tokens"), None);
    let refused = refused(&gateway, || chat(&key)).await;
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (429, "rate_limit_exceeded")
    );
    assert_eq!(refused.json()["error"]["type"], "requests");
    assert_eq!(
        (
            refused.header("x-should-retry"),
            refused.header("x-ratelimit-remaining-requests")
        ),
        (Some("true"), Some("0"))
    );
    // What is answered from what the gateway knows uses nothing.
    assert_eq!(gateway.ask(with(Request::get("/v1/models"), &key)).await.status(), 200);
    assert!(wait_as_told(&refused).await <= 3);
    assert_eq!(gateway.ask(chat(&key)).await.status(), 200);
    answers.abort();
}

#[tokio::test]
async fn b3_a_refusal_does_not_wait_for_the_body() {
    let (gateway, replica) = gateway().await;
    let answers = replica.always("hi");
    let key = key(&gateway, "limited", &["--requests-per-minute", "1"]).await;
    assert_eq!(gateway.ask(chat(&key)).await.status(), 200);
    let mut client = gateway.connect().await;
    client.write(chat(&key).head().as_bytes()).await;
    assert_eq!(client.message().await.status(), 429);
    answers.abort();
}

#[tokio::test]
async fn b3_keys_are_limited_each_for_itself() {
    let (gateway, replica) = gateway().await;
    let answers = replica.always("hi");
    let one = key(&gateway, "one", &["--requests-per-minute", "1"]).await;
    let other = key(&gateway, "other", &["--requests-per-minute", "1"]).await;
    for key in [&one, &other] {
        assert_eq!(gateway.ask(chat(key)).await.status(), 200);
        assert_eq!(gateway.ask(chat(key)).await.status(), 429);
    }
    let unlimited = gateway.ask(Request::chat(false)).await;
    assert_eq!(
        (unlimited.status(), unlimited.header("x-ratelimit-limit-requests")),
        (200, None)
    );
    answers.abort();
}

#[tokio::test]
async fn b3_what_an_answer_took_beyond_the_estimate_is_a_debt_of_tokens() {
    let (gateway, mut replica) = gateway().await;
    let key = key(&gateway, "limited", &["--tokens-per-minute", "6000"]).await;
    let mut client = gateway.open(chat(&key)).await;
    let mut answer = completion("hi", "stop", 1_000);
    answer["usage"]["completion_tokens"] = json!(5_200);
    replica.next().await.answer("200 OK", &answer).await;
    let answered = client.message().await;
    assert_eq!(
        (
            number(&answered, "x-ratelimit-limit-tokens"),
            number(&answered, "x-ratelimit-remaining-tokens")
        ),
        (6_000, 0)
    );
    let refused = gateway.ask(chat(&key)).await;
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (429, "rate_limit_exceeded")
    );
    assert_eq!(refused.json()["error"]["type"], "tokens");
    assert_eq!(refused.header("x-ratelimit-remaining-tokens"), Some("0"));
    assert!(wait_as_told(&refused).await <= 4);
    let mut client = gateway.open(chat(&key)).await;
    replica
        .next()
        .await
        .answer("200 OK", &completion("hi", "stop", 10))
        .await;
    assert_eq!(client.message().await.status(), 200);
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b3_a_streams_tokens_count_when_it_has_ended_and_a_refused_one_costs_nothing() {
    let (gateway, mut replica) = gateway().await;
    let key = key(&gateway, "limited", &["--tokens-per-minute", "1000"]).await;
    // The engine refuses it: nothing is used.
    let mut client = gateway.open(chat(&key)).await;
    let refusal = json!({"error": {"message": "no", "type": "BadRequestError", "code": 400}});
    replica.next().await.answer("400 Bad Request", &refusal).await;
    assert_eq!(client.message().await.status(), 400);
    let mut client = gateway.open(with(Request::chat(true), &key)).await;
    let mut asked = replica.next().await;
    asked.begin("hi").await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(600, 600)).await;
    asked.done().await;
    let answered = client.message().await;
    // Its head was written before its tokens were known.
    assert!(number(&answered, "x-ratelimit-remaining-tokens") > 900);
    let answers = replica.always("hi");
    assert_eq!(refused(&gateway, || chat(&key)).await.json()["error"]["type"], "tokens");
    answers.abort();
}

#[tokio::test]
async fn b3_requests_at_once_are_bounded_until_an_answer_has_ended() {
    let (gateway, mut replica) = gateway().await;
    let key = key(&gateway, "limited", &["--concurrency", "1"]).await;
    let mut running = gateway.open(with(Request::chat(true), &key)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    running.head().await;
    let refused = gateway.ask(chat(&key)).await;
    assert_eq!(
        (refused.status(), refused.code().as_str()),
        (429, "rate_limit_exceeded")
    );
    // Another key isn't concerned.
    let mut other = gateway.open(Request::chat(false)).await;
    let another = replica.next().await;
    another.tell_as_asked("hi").await;
    assert_eq!(other.message().await.status(), 200);
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(10, 1)).await;
    asked.done().await;
    running.read_to("[DONE]").await;
    let answers = replica.always("hi");
    until("its place is free", async || {
        (gateway.ask(chat(&key)).await.status() == 200).then_some(())
    })
    .await;
    answers.abort();
}

#[tokio::test]
async fn b3_a_changed_key_file_leaves_what_other_keys_have_used() {
    let (gateway, replica) = gateway().await;
    let answers = replica.always("hi");
    let used = key(&gateway, "used", &["--requests-per-minute", "1"]).await;
    assert_eq!(gateway.ask(chat(&used)).await.status(), 200);
    let new = key(&gateway, "new", &["--requests-per-minute", "1"]).await;
    assert_eq!(gateway.ask(chat(&used)).await.status(), 429);
    assert_eq!(gateway.ask(chat(&new)).await.status(), 200);
    answers.abort();
}
