//! B31, B32: a session stays with its replica, new ones spread, and a dead replica's sessions move.

use std::collections::HashMap;

use serde_json::json;

use super::harness::{MODEL, Message, Replica, Request, Settings};

fn turn(session: &str, turns: usize) -> Request {
    let mut messages = vec![json!({"role": "user", "content": "Hello"})];
    for n in 1..turns {
        messages.push(json!({"role": "assistant", "content": "hi"}));
        messages.push(json!({"role": "user", "content": format!("and {n}?")}));
    }
    Request::post(
        "/v1/chat/completions",
        &json!({"model": MODEL, "messages": messages, "stream": true}),
    )
    .session(session)
}

fn seen(answer: &Message) -> (String, String) {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let header = |name: &str| answer.header(name).unwrap().to_owned();
    (header("x-sluice-replica"), header("x-sluice-route"))
}

#[tokio::test]
async fn b32_a_session_stays_with_its_replica_and_new_ones_spread() {
    let replicas = [Replica::start().await, Replica::start().await, Replica::start().await];
    let gateway = Settings::before(&replicas.each_ref()).start().await;
    for replica in replicas {
        replica.always("hi");
    }
    let mut load: HashMap<String, usize> = HashMap::new();
    for session in 0..30 {
        let session = format!("session-{session}");
        let (home, route) = seen(&gateway.ask(turn(&session, 1)).await);
        assert_eq!(route, "new");
        for turns in 2..5 {
            assert_eq!(
                seen(&gateway.ask(turn(&session, turns)).await),
                (home.clone(), "hit".to_owned())
            );
        }
        *load.entry(home).or_default() += 1;
    }
    assert_eq!(load.len(), 3, "{load:?}");
    assert!(load.values().all(|sessions| *sessions >= 3), "{load:?}");
}

#[tokio::test]
async fn b32_a_session_is_known_by_what_agents_send() {
    let replicas = [Replica::start().await, Replica::start().await];
    let gateway = Settings::before(&replicas.each_ref()).start().await;
    for replica in replicas {
        replica.always("hi");
    }
    let ask = |text: &str| json!({"model": MODEL, "messages": [{"role": "user", "content": text}]});
    let with = |field: &str, n: usize| {
        let mut body = ask(&format!("question {n} of {field}"));
        match field {
            "session_id" | "prompt_cache_key" => body[field] = json!("one"),
            "metadata" => body[field] = json!({"session_id": "two"}),
            header => return Request::post("/v1/chat/completions", &body).header(header, "three"),
        }
        Request::post("/v1/chat/completions", &body)
    };
    for field in [
        "x-claude-code-session-id",
        "x-session-affinity",
        "session_id",
        "metadata",
    ] {
        let (home, _) = seen(&gateway.ask(with(field, 0)).await);
        for n in 1..4 {
            assert_eq!(
                seen(&gateway.ask(with(field, n)).await),
                (home.clone(), "hit".to_owned()),
                "{field}"
            );
        }
    }
}

#[tokio::test]
async fn b31_the_sessions_of_a_dead_replica_move_once() {
    let (mut a, b) = (Replica::start().await, Replica::start().await);
    let gateway = Settings::before(&[&a, &b]).start().await;
    b.always("hi");
    // A session whose home is a.
    let mut session = None;
    for n in 0..64 {
        let name = format!("s{n}");
        let mut client = gateway.open(turn(&name, 1)).await;
        let asked = tokio::select! {
            asked = a.next() => Some(asked),
            head = client.head() => {
                client.rest(head).await;
                None
            }
        };
        if let Some(asked) = asked {
            asked.tell_text("hi").await;
            assert_eq!(seen(&client.message().await).0, "a");
            session = Some(name);
            break;
        }
    }
    let session = session.expect("one of 64 sessions has its home on a");
    a.stop().await;
    assert_eq!(
        seen(&gateway.ask(turn(&session, 2)).await),
        ("b".to_owned(), "repin".to_owned())
    );
    assert_eq!(
        seen(&gateway.ask(turn(&session, 3)).await),
        ("b".to_owned(), "hit".to_owned())
    );
}

#[tokio::test]
async fn a_conversation_with_a_past_that_is_not_known_is_a_miss() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("hi");
    assert_eq!(seen(&gateway.ask(turn("old", 4)).await).1, "miss");
    assert_eq!(seen(&gateway.ask(turn("old", 5)).await).1, "hit");
}
