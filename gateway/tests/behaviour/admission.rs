//! B34: a replica is given what it can hold, the rest waits in order, and who would wait too long is refused at once. What waits is
//! seen in the metrics; what is sent to the replica, and in which order, by the replica.

use serde_json::{Value, json};

use super::harness::{Asked, Client, Gateway, MODEL, Replica, Request, Settings, delta, record, until};

/// One request at a time.
fn one_by_one(replicas: &[&Replica]) -> Settings {
    Settings::before(replicas).set("admission", "sequences = 1")
}

fn body(text: &str) -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": text}]})
}

fn chat(text: &str) -> Request {
    Request::post("/v1/chat/completions", &body(text))
        .id(text)
        .session(text)
}

fn text(asked: &Asked) -> String {
    asked.json()["messages"][0]["content"].as_str().unwrap().to_owned()
}

/// The sum of a metric's series that have this label.
async fn metric(gateway: &Gateway, name: &str, label: &str) -> u64 {
    let page = gateway.metrics().await;
    let series = page
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    series
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64)
        .sum()
}

async fn waiting(gateway: &Gateway, count: u64) {
    until(&format!("{count} wait"), async || {
        (metric(gateway, "sluice_queue_length", "").await == count).then_some(())
    })
    .await;
}

/// Opens it, and sees it wait behind `before` others.
async fn queue(gateway: &Gateway, request: Request, before: u64) -> Client {
    let client = gateway.open(request).await;
    waiting(gateway, before + 1).await;
    client
}

async fn key(gateway: &Gateway, name: &str, more: &[&str]) -> impl Fn(Request) -> Request + use<> {
    let key = gateway.new_key(name, more);
    gateway.hang_up();
    let with = move |request: Request| request.without_key().header("authorization", &format!("Bearer {key}"));
    until("the key is accepted", async || {
        (gateway.ask(with(Request::get("/v1/models"))).await.status() == 200).then_some(())
    })
    .await;
    with
}

#[tokio::test]
async fn b34_the_more_urgent_goes_first_and_no_more_urgent_than_its_key() {
    let mut replica = Replica::start().await;
    let gateway = one_by_one(&[&replica]).start().await;
    let urgent = key(&gateway, "urgent", &["--priority", "high"]).await;
    let running = gateway.open(chat("running")).await;
    let first = replica.next().await;
    let low = |text: &str| chat(text).header("x-sluice-priority", "low");
    let mut field = body("low by field");
    field["priority"] = json!(3);
    let clients = [
        queue(&gateway, low("low"), 0).await,
        queue(&gateway, Request::post("/v1/chat/completions", &field), 1).await,
        queue(&gateway, chat("normal"), 2).await,
        queue(&gateway, chat("would be high").header("x-sluice-priority", "high"), 3).await,
        queue(&gateway, urgent(chat("high")), 4).await,
        queue(&gateway, urgent(low("humble")), 5).await,
    ];
    assert_eq!(metric(&gateway, "sluice_queue_length", "priority=\"low\"").await, 3);
    assert!(replica.is_unasked());
    first.tell_text("done").await;
    let mut order = Vec::new();
    for _ in 0..6 {
        let asked = replica.next().await;
        assert!(replica.is_unasked(), "one at a time");
        order.push(text(&asked));
        asked.tell_text("done").await;
    }
    // Of two keys with as much to do the one whose turn it was not goes first.
    let (ahead, behind) = order.split_at(3);
    assert_eq!(ahead, ["high", "normal", "would be high"]);
    assert!(behind.contains(&"humble".to_owned()), "{order:?}");
    let low = order.iter().position(|text| text == "low");
    assert!(low < order.iter().position(|text| text == "low by field"), "{order:?}");
    for mut client in std::iter::once(running).chain(clients) {
        assert!(client.message().await.text().contains("done"));
    }
    let word = gateway.ask(chat("x").header("x-sluice-priority", "urgent")).await;
    assert_eq!(
        (word.status(), word.error().contains("high, normal or low")),
        (400, true)
    );
}

#[tokio::test]
async fn b34_keys_take_turns() {
    let mut replica = Replica::start().await;
    let gateway = one_by_one(&[&replica]).start().await;
    let other = key(&gateway, "other", &[]).await;
    let mut clients = vec![gateway.open(chat("running")).await];
    let first = replica.next().await;
    for n in 0..5 {
        clients.push(queue(&gateway, chat(&format!("many-{n}")), n).await);
    }
    clients.push(queue(&gateway, other(chat("one")), 5).await);
    first.tell_text("done").await;
    let mut order = Vec::new();
    for _ in 0..6 {
        let asked = replica.next().await;
        order.push(text(&asked));
        asked.tell_text("done").await;
    }
    assert!(order[..2].contains(&"one".to_owned()), "{order:?}");
    order.retain(|text| text != "one");
    assert_eq!(order, ["many-0", "many-1", "many-2", "many-3", "many-4"], "by arrival");
    let row = record(&gateway, "many-4").await;
    assert!(row["queue_ms"].as_f64().unwrap() > 0.0, "{row}");
    assert_eq!(
        metric(&gateway, "sluice_admission_total", "outcome=\"waited\"").await,
        6
    );
}

#[tokio::test]
async fn b34_who_would_wait_too_long_is_refused_at_once_and_told_when_to_come_back() {
    let mut replica = Replica::start().await;
    let gateway = one_by_one(&[&replica])
        .set("admission", "queue_wait = \"1ms\"")
        .start()
        .await;
    // How long a place is held is known from here on.
    let mut client = gateway.open(chat("measured")).await;
    let asked = replica.next().await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    asked.tell_text("done").await;
    client.message().await;
    let mut running = gateway.open(chat("running")).await;
    let asked = replica.next().await;
    for stream in [true, false] {
        let refused = gateway
            .ask(Request::chat(stream).id(&format!("refused {stream}")))
            .await;
        assert_eq!(refused.status(), 503, "{}", refused.text());
        assert!(refused.error().contains("queue_wait"), "{}", refused.text());
        assert_eq!(
            (refused.header("retry-after"), refused.header("x-should-retry")),
            (Some("1"), Some("true"))
        );
    }
    assert_eq!(
        metric(&gateway, "sluice_admission_total", "outcome=\"too_long\"").await,
        2
    );
    asked.tell_text("undisturbed").await;
    assert!(running.message().await.text().contains("undisturbed"));
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b34_the_queue_is_bounded_for_all_and_for_each_key() {
    for (line, status, limit) in [
        ("queue = 1", 503, "limit queue)"),
        ("queue_of_key = 1", 429, "limit queue_of_key)"),
    ] {
        let mut replica = Replica::start().await;
        let gateway = one_by_one(&[&replica]).set("admission", line).start().await;
        let mut running = gateway.open(chat("running")).await;
        let first = replica.next().await;
        let mut waits = queue(&gateway, chat("waits"), 0).await;
        let refused = gateway.ask(chat("refused")).await;
        assert_eq!(refused.status(), status, "{}", refused.text());
        assert!(refused.error().contains(limit), "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
        first.tell_text("done").await;
        replica.next().await.tell_text("done").await;
        for client in [&mut running, &mut waits] {
            assert!(client.message().await.text().contains("done"));
        }
    }
}

#[tokio::test]
async fn b11_b12_who_leaves_or_is_cancelled_in_the_queue_is_never_sent() {
    let mut replica = Replica::start().await;
    let gateway = one_by_one(&[&replica]).start().await;
    let mut running = gateway.open(chat("running")).await;
    let first = replica.next().await;
    let leaves = queue(&gateway, chat("leaves"), 0).await;
    let mut cancelled = queue(&gateway, chat("cancelled"), 1).await;
    let mut stays = queue(&gateway, chat("stays"), 2).await;
    drop(leaves);
    waiting(&gateway, 2).await;
    let cancel = Request::new("POST", "/v1/requests/cancelled/cancel");
    assert_eq!(gateway.ask(cancel).await.status(), 200);
    let answer = cancelled.message().await;
    assert_eq!((answer.status(), answer.code().as_str()), (499, "cancelled"));
    waiting(&gateway, 1).await;
    first.tell_text("done").await;
    let next = replica.next().await;
    assert_eq!(text(&next), "stays");
    next.tell_text("done").await;
    for client in [&mut running, &mut stays] {
        assert!(client.message().await.text().contains("done"));
    }
    for id in ["leaves", "cancelled"] {
        let row = record(&gateway, id).await;
        assert_eq!(
            (&row["cancelled"], &row["attempts"]),
            (&json!(true), &json!(0)),
            "{row}"
        );
        assert!(row["queue_ms"].as_f64().unwrap() > 0.0, "{row}");
    }
    assert_eq!(metric(&gateway, "sluice_admission_total", "outcome=\"left\"").await, 2);
}

#[tokio::test]
async fn b34_who_waits_for_long_gets_its_head_and_sees_its_place() {
    let mut replica = Replica::start().await;
    let settings = one_by_one(&[&replica]).set("server", "head_after = \"20ms\"");
    let gateway = settings.set("server", "keep_alive = \"20ms\"").start().await;
    let mut running = gateway.open(chat("running")).await;
    let first = replica.next().await;
    let mut clients = Vec::new();
    for (n, name) in ["one", "two"].into_iter().enumerate() {
        let mut client = queue(&gateway, chat(name), n as u64).await;
        let head = client.head().await;
        assert_eq!(head.status, 200);
        let comment = client.piece().await.unwrap().unwrap();
        assert_eq!(comment, format!(": place {} in the queue\n\n", n + 1).into_bytes());
        clients.push((client, head));
    }
    // Cancelled now, it is told in the stream.
    let (mut two, head) = clients.pop().unwrap();
    assert_eq!(
        gateway
            .ask(Request::new("POST", "/v1/requests/two/cancel"))
            .await
            .status(),
        200
    );
    let rest = two.rest(head).await;
    assert!(rest.text().contains("\"code\":\"cancelled\"") && !rest.text().contains("[DONE]"));
    first.tell_text("done").await;
    replica.next().await.tell_text("done").await;
    let (mut one, head) = clients.pop().unwrap();
    assert!(one.rest(head).await.text().contains("done"));
    assert!(running.message().await.text().contains("done"));
}

#[tokio::test]
async fn b34_n_counts_n() {
    let mut replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("admission", "sequences = 3")
        .start()
        .await;
    let mut pair = body("two");
    pair["n"] = json!(2);
    let pair = || Request::post("/v1/chat/completions", &pair);
    let first = gateway.open(pair()).await;
    let asked = replica.next().await;
    let second = queue(&gateway, pair(), 0).await;
    // What fits beside the first needn't wait for the second.
    let third = gateway.open(chat("one")).await;
    let beside = replica.next().await;
    assert_eq!(text(&beside), "one");
    drop(first);
    asked.gone().await;
    assert_eq!(text(&replica.next().await), "two");
    drop((second, third));
}

#[tokio::test]
async fn b34_a_place_is_given_back_however_its_request_ends() {
    let mut replica = Replica::start().await;
    let settings = one_by_one(&[&replica]).set("upstream", "attempts = 1");
    let gateway = settings.set("continuation", "enabled = false").start().await;
    for end in [
        "finished",
        "whole",
        "left before",
        "left in the middle",
        "broken",
        "refused",
    ] {
        let request = if end == "whole" {
            Request::chat(false)
        } else {
            chat(end)
        };
        let mut client = gateway.open(request).await;
        let mut asked = replica.next().await;
        match end {
            "finished" | "whole" => asked.tell_as_asked("done").await,
            "refused" => {
                asked
                    .answer("400 Bad Request", &json!({"error": {"message": "no", "code": 400}}))
                    .await
            }
            "left before" => {
                drop(client);
                asked.gone().await;
                continue;
            }
            _ => {
                asked.stream().await;
                asked
                    .event(&delta(json!({"role": "assistant", "content": "so far"})))
                    .await;
                let head = client.head().await;
                client.read_to("so far").await;
                if end == "broken" {
                    asked.reset();
                    assert!(client.rest(head).await.text().contains("error"));
                } else {
                    drop(client);
                    asked.gone().await;
                }
                continue;
            }
        }
        client.message().await;
    }
    let mut last = gateway.open(chat("last")).await;
    replica.next().await.tell_text("done").await;
    assert!(last.message().await.text().contains("done"));
}

#[tokio::test]
async fn b34_a_place_goes_with_its_request_to_another_replica() {
    let (mut a, mut b) = (Replica::start().await, Replica::start().await);
    let gateway = one_by_one(&[&a, &b]).start().await;
    let mut first = gateway.open(chat("first")).await;
    let moved = tokio::select! {
        asked = a.next() => { asked.reset(); b.next().await }
        asked = b.next() => { asked.reset(); a.next().await }
    };
    assert_eq!(text(&moved), "first");
    moved.tell_text("done").await;
    assert!(first.message().await.text().contains("done"));
    // Both have room again, for one each.
    let clients = [gateway.open(chat("left")).await, gateway.open(chat("right")).await];
    let (left, right) = tokio::join!(a.next(), b.next());
    let third = queue(&gateway, chat("third"), 0).await;
    assert!(a.is_unasked() && b.is_unasked());
    left.tell_text("done").await;
    let next = a.next().await;
    assert_eq!(text(&next), "third");
    next.tell_text("done").await;
    right.tell_text("done").await;
    for mut client in clients.into_iter().chain([third]) {
        assert!(client.message().await.text().contains("done"));
    }
}
