//! B10, B31 (first half): a replica that breaks before the first data line is followed by another one; after it the client is
//! told, where the answer may not go on elsewhere (`continuation`). Never a clean end.

use futures_util::future::join_all;
use serde_json::json;

use super::harness::{
    Asked, Breaks, Replica, Request, Settings, completion, delta, finish, first, record, two, two_with, until, within,
};

/// Each is an end in the middle.
const ENDS: [Breaks; 7] = [
    Breaks::Reset,
    Breaks::EndOfFile,
    Breaks::CleanEnd,
    Breaks::Done,
    Breaks::ErrorThenDone,
    Breaks::Oversized,
    Breaks::Garbage,
];

#[tokio::test]
async fn b31_every_end_before_the_first_data_line_is_followed_by_another_replica() {
    let cases = ENDS.map(async |end| {
        let (gateway, mut a, mut b) = two().await;
        let mut client = gateway.open(Request::chat(true).id("r")).await;
        let (mut asked, other) = first(&mut a, &mut b).await;
        let sent = asked.body.clone();
        asked.stream().await;
        tokio::join!(end.play(asked), async {
            let again = other.next().await;
            assert_eq!(again.body, sent, "{end:?}: another body");
            again.tell_text("from the other").await;
        });
        let answer = client.message().await;
        let text: String = answer
            .chunks()
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(text, "from the other", "{end:?}");
        let row = record(&gateway, "r").await;
        assert_eq!(
            (&row["attempts"], &row["status"], &row["error"]),
            (&json!(2), &json!(200), &json!(null)),
            "{end:?}"
        );
        assert_eq!(row["route"], "repin");
    });
    join_all(cases).await;
}

#[tokio::test]
async fn b10_every_end_after_the_first_data_line_is_one_error_event_and_no_done() {
    let cases = ENDS.map(async |end| {
        let (gateway, mut a, mut b) = two_with(|s| s.set("continuation", "enabled = false")).await;
        let mut client = gateway.open(Request::chat(true).id("r")).await;
        let (mut asked, other) = first(&mut a, &mut b).await;
        asked.begin("").await;
        asked.event(&delta(json!({"content": "so far"}))).await;
        let head = client.head().await;
        client.read_to("so far").await;
        let (_, rest) = tokio::join!(end.play(asked), client.rest(head));
        let events = rest.events();
        let errors: Vec<&String> = events
            .iter()
            .filter(|event| event.starts_with("data: {\"error\":{"))
            .collect();
        assert_eq!(errors.len(), 1, "{end:?}: {}", rest.text());
        assert_eq!(events.last(), Some(errors[0]), "{end:?}");
        assert!(!rest.text().contains("[DONE]"), "{end:?}");
        assert!(other.is_unasked(), "{end:?}");
        let row = record(&gateway, "r").await;
        assert!(row["error"].is_string(), "{end:?}: {row}");
        assert_eq!(
            (&row["cancelled"], &row["status"]),
            (&json!(false), &json!(200)),
            "{end:?}"
        );
    });
    join_all(cases).await;
}

#[tokio::test]
async fn b10_a_missing_done_after_the_finish_is_no_failure() {
    let (gateway, mut a, mut b) = two().await;
    let mut client = gateway.open(Request::chat(true)).await;
    let (mut asked, _) = first(&mut a, &mut b).await;
    asked.begin("all").await;
    asked.event(&finish("stop")).await;
    asked.write(b"0\r\n\r\n").await;
    client.message().await.chunks();
}

#[tokio::test]
async fn b10_b31_a_stall_is_a_failure_too() {
    let (gateway, mut a, mut b) = two_with(|s| {
        s.set("upstream", "stall = \"300ms\"")
            .set("upstream", "answer = \"800ms\"")
            .set("continuation", "enabled = false")
    })
    .await;
    // Before the first token: another replica.
    let mut client = gateway.open(Request::chat(true)).await;
    let (mut asked, other) = first(&mut a, &mut b).await;
    asked.stream().await;
    tokio::join!(asked.gone(), async { other.next().await.tell_text("awake").await });
    assert!(client.message().await.text().contains("awake"));
    // After it: an error event, and the replica is let go.
    let mut client = gateway.open(Request::chat(true)).await;
    let (mut asked, _) = first(&mut a, &mut b).await;
    asked.begin("so far").await;
    let head = client.head().await;
    let (_, rest) = tokio::join!(asked.gone(), client.rest(head));
    assert!(
        rest.text().ends_with("}\n\n") && rest.text().contains("upstream_stalled"),
        "{}",
        rest.text()
    );
}

#[tokio::test]
async fn b10_b31_a_whole_answer_that_stalls_is_asked_anew_and_504_when_nobody_is_left() {
    let (gateway, mut a, mut b) = two_with(|s| s.set("upstream", "stall = \"300ms\"")).await;
    let body = completion("half an answer", "stop", 10).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // The head, or half of the body as well, and then silence until the gateway lets go.
    let falls_silent = async |mut asked: Asked, sent: usize| {
        asked.write(head.as_bytes()).await;
        asked.write(&body.as_bytes()[..sent]).await;
        asked.gone().await;
    };
    for sent in [0, body.len() / 2, body.len() - 1] {
        let id = format!("r{sent}");
        let mut client = gateway.open(Request::chat(false).id(&id)).await;
        let (asked, other) = first(&mut a, &mut b).await;
        falls_silent(asked, sent).await;
        other.next().await.tell_as_asked("a whole one").await;
        let answer = client.message().await;
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "a whole one");
        assert_eq!(answer.header("x-sluice-attempts"), Some("2"));
        let row = record(&gateway, &id).await;
        assert_eq!((&row["attempts"], &row["error"]), (&json!(2), &json!(null)), "{row}");
    }
    let mut client = gateway.open(Request::chat(false).id("nobody")).await;
    let (asked, other) = first(&mut a, &mut b).await;
    falls_silent(asked, 10).await;
    falls_silent(other.next().await, 10).await;
    let answer = client.message().await;
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_stalled"));
    assert!(!answer.text().contains("half an"), "{}", answer.text());
    let row = record(&gateway, "nobody").await;
    assert_eq!(
        (&row["attempts"], &row["status"], &row["error"]),
        (&json!(2), &json!(504), &json!("upstream_stalled")),
        "{row}"
    );
}

#[tokio::test]
async fn b31_no_head_from_a_replica_is_followed_by_another_and_by_504_if_there_is_none() {
    let (gateway, mut a, mut b) = two_with(|s| s.set("upstream", "answer = \"400ms\"")).await;
    for stream in [true, false] {
        let mut client = gateway.open(Request::chat(stream)).await;
        let (asked, other) = first(&mut a, &mut b).await;
        tokio::join!(asked.gone(), async { other.next().await.tell_as_asked("second").await });
        assert!(client.message().await.text().contains("second"));
        let mut client = gateway.open(Request::chat(stream)).await;
        let (asked, other) = first(&mut a, &mut b).await;
        tokio::join!(asked.gone(), async { other.next().await.gone().await });
        let answer = client.message().await;
        assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    }
}

#[tokio::test]
async fn b31_5xx_goes_to_another_replica_stream_or_not() {
    let (gateway, mut a, mut b) = two().await;
    for status in [
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
    ] {
        for stream in [true, false] {
            let mut client = gateway.open(Request::chat(stream)).await;
            let (asked, other) = first(&mut a, &mut b).await;
            asked
                .answer(
                    status,
                    &json!({"error": {"message": "no", "type": "InternalServerError", "code": 500}}),
                )
                .await;
            other.next().await.tell_as_asked("second").await;
            let answer = client.message().await;
            assert_eq!(answer.status(), 200, "{status}");
            assert_eq!(answer.header("x-sluice-attempts"), Some("2"));
            assert_eq!(answer.header("x-sluice-route"), Some("repin"));
        }
    }
}

#[tokio::test]
async fn b31_the_same_500_from_two_replicas_is_passed_on() {
    let (c, d, e) = (Replica::start().await, Replica::start().await, Replica::start().await);
    let gateway = Settings::before(&[&c, &d, &e]).start().await;
    let mut replicas = [c, d, e];
    let mut client = gateway.open(Request::chat(true).id("r")).await;
    for _ in 0..2 {
        let index = until("one is asked", async || {
            replicas.iter().position(|replica| !replica.is_unasked())
        })
        .await;
        let error =
            json!({"error": {"message": "list index out of range", "type": "InternalServerError", "code": 500}});
        replicas[index]
            .next()
            .await
            .answer("500 Internal Server Error", &error)
            .await;
    }
    let answer = client.message().await;
    assert_eq!(
        (answer.status(), answer.error().as_str()),
        (500, "list index out of range")
    );
    assert!(replicas.iter().all(Replica::is_unasked), "a third replica was asked");
    assert_eq!(record(&gateway, "r").await["attempts"], 2);
}

#[tokio::test]
async fn b31_the_only_replica_is_asked_once_more_after_a_5xx_and_the_same_500_is_passed_on() {
    let mut replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let error = |message: &str| json!({"error": {"message": message, "type": "InternalServerError", "code": 500}});
    for (id, first, second, status) in [
        ("passes", "503 Service Unavailable", None, 200),
        ("lasts", "503 Service Unavailable", Some("504 Gateway Timeout"), 504),
        (
            "its-own",
            "500 Internal Server Error",
            Some("500 Internal Server Error"),
            500,
        ),
    ] {
        for stream in [true, false] {
            let id = format!("{id}-{stream}");
            let mut client = gateway.open(Request::chat(stream).id(&id)).await;
            replica.next().await.answer(first, &error("no")).await;
            let again = replica.next().await;
            match second {
                Some(second) => again.answer(second, &error("no")).await,
                None => again.tell_as_asked("now").await,
            }
            let answer = client.message().await;
            assert_eq!(answer.status(), status, "{id}: {}", answer.text());
            assert_eq!(record(&gateway, &id).await["attempts"], 2, "{id}");
            assert!(replica.is_unasked(), "{id}: a third attempt");
        }
    }
}

#[tokio::test]
async fn b31_attempts_are_bounded_and_the_failed_one_is_closed_before_the_next_begins() {
    let mut replicas = Vec::new();
    for _ in 0..4 {
        replicas.push(Replica::start().await);
    }
    let gateway = Settings::before(&replicas.iter().collect::<Vec<_>>())
        .set("upstream", "attempts = 2")
        .start()
        .await;
    let mut client = gateway.open(Request::chat(true)).await;
    for attempt in 1..=2 {
        let index = until("one is asked", async || {
            replicas.iter().position(|replica| !replica.is_unasked())
        })
        .await;
        let mut asked = replicas[index].next().await;
        asked.stream().await;
        asked.event(&json!({"error": {"message": format!("attempt {attempt}"), "type": "InternalServerError", "code": 500}})).await;
        asked.gone().await;
    }
    let rest = client.message().await;
    assert!(
        replicas.iter().all(Replica::is_unasked),
        "more attempts than configured"
    );
    assert!(
        rest.text().contains("attempt 2") && !rest.text().contains("[DONE]"),
        "{}",
        rest.text()
    );
}

#[tokio::test]
async fn b31_a_dead_replica_is_passed_over() {
    let (gateway, mut a, mut b) = two().await;
    a.stop().await;
    let answering = tokio::spawn(async move {
        for _ in 0..6 {
            b.next().await.tell_as_asked("alive").await;
        }
        b
    });
    for n in 0..6 {
        let answer = gateway.ask(Request::chat(n % 2 == 0).session(&format!("s{n}"))).await;
        assert_eq!((answer.status(), answer.header("x-sluice-replica")), (200, Some("b")));
    }
    within("the living replica answers", answering).await.unwrap();
}

#[tokio::test]
async fn b31_one_that_can_not_be_connected_to_takes_no_attempt() {
    let mut replicas = vec![Replica::start().await, Replica::start().await, Replica::start().await];
    let gateway = Settings::before(&replicas.iter().collect::<Vec<_>>())
        .set("upstream", "attempts = 2")
        .start()
        .await;
    async fn asked(replicas: &[Replica]) -> usize {
        let position = async || replicas.iter().position(|replica| !replica.is_unasked());
        until("one is asked", position).await
    }
    // The session's home dies.
    let mut client = gateway.open(Request::chat(false).session("s")).await;
    let mut home = replicas.remove(asked(&replicas).await);
    home.next().await.tell_as_asked("at home").await;
    client.message().await;
    home.stop().await;
    // The next one breaks: that is the first attempt that anybody got.
    let mut client = gateway.open(Request::chat(false).session("s")).await;
    let breaks = asked(&replicas).await;
    replicas.remove(breaks).next().await.close();
    replicas[0].next().await.tell_as_asked("the last one").await;
    let answer = client.message().await;
    assert_eq!(
        (answer.status(), answer.header("x-sluice-attempts")),
        (200, Some("3")),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn b31_a_whole_answer_that_breaks_is_asked_anew() {
    let cases = [0, 30, 150].map(async |cut| {
        let (gateway, mut a, mut b) = two().await;
        let mut client = gateway.open(Request::chat(false).id("r")).await;
        let (mut asked, other) = first(&mut a, &mut b).await;
        let body = completion("half an answer", "stop", 10).to_string();
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        asked.write(&whole.as_bytes()[..cut]).await;
        asked.close();
        other.next().await.tell_as_asked("a whole one").await;
        let answer = client.message().await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "a whole one");
        assert_eq!(record(&gateway, "r").await["attempts"], 2);
    });
    join_all(cases).await;
}

#[tokio::test]
async fn b10_b31_a_whole_answer_without_a_finish_is_asked_anew() {
    let (gateway, mut a, mut b) = two().await;
    let mut unfinished = completion("cut", "stop", 10);
    unfinished["choices"][0]["finish_reason"] = json!(null);
    let error =
        json!({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}});
    for broken in [unfinished, error, json!("nonsense")] {
        let mut client = gateway.open(Request::chat(false)).await;
        let (asked, other) = first(&mut a, &mut b).await;
        asked.answer("200 OK", &broken).await;
        other.next().await.tell_as_asked("a whole one").await;
        let answer = client.message().await;
        assert_eq!(
            answer.json()["choices"][0]["message"]["content"],
            "a whole one",
            "after {broken}"
        );
    }
}

#[tokio::test]
async fn a_request_that_meets_a_closing_idle_connection_is_sent_once_more() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    for round in 0..3 {
        let mut client = gateway.open(Request::chat(false).id(&format!("r{round}"))).await;
        let asked = replica.next().await;
        asked.answer_and_close_on_next(&completion("hi", "stop", 10)).await;
        assert_eq!(client.message().await.status(), 200);
        // The connection is idle in the pool; the replica closes it as soon as the next request has come.
        let mut client = gateway.open(Request::chat(false).id(&format!("s{round}"))).await;
        replica.next().await.tell_as_asked("again").await;
        let answer = client.message().await;
        assert_eq!(
            (answer.status(), answer.header("x-sluice-attempts")),
            (200, Some("1")),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn waiting_for_the_next_replica_after_a_stall_costs_no_cpu() {
    let (gateway, mut a, mut b) = two_with(|s| s.set("upstream", "answer = \"2s\"")).await;
    let _client = gateway.open(Request::chat(true)).await;
    let (mut asked, other) = first(&mut a, &mut b).await;
    asked.stream().await;
    asked.gone().await;
    let _silent = other.next().await;
    let before = gateway.cpu_ticks();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    // A hundred ticks a second: a loop that spins would have used most of them.
    let used = gateway.cpu_ticks() - before;
    assert!(used < 25, "{used} ticks of CPU in a second of waiting");
}
