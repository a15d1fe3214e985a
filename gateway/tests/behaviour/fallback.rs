//! Fallback across backends: another model stands in where nobody serves the one that was asked for, for images that it doesn't take, and
//! where a request finds no place or no answer there before anything was shown.

use serde_json::{Value, json};

use super::harness::{Asked, Client, Gateway, MODEL, OTHER_MODEL, Replica, Request, Settings, delta, record, until};

/// A backend of a simulated replica, which takes no images, with one more line.
fn simulated(name: &str, line: &str) -> String {
    format!(
        "[[backend]]\nname = \"{name}\"\nmodel = \"{name}-model\"\n{line}\n[[backend.replica]]\nname = \"{name}-a\"\nlauncher = \"simulated\"\nspeed = 0.0\n"
    )
}

fn chat(model: &str, content: &Value, stream: bool) -> Request {
    let body = json!({"model": model, "messages": [{"role": "user", "content": content}], "stream": stream});
    Request::post("/v1/chat/completions", &body)
}

fn image() -> Value {
    let png = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    json!([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": png}}])
}

/// Asked for one model, answered by another one, which says so.
struct StandIn {
    asked: &'static str,
    backend: &'static str,
    replica: &'static str,
    model: &'static str,
}

impl StandIn {
    async fn answers(&self, gateway: &Gateway, content: &Value) {
        for (stream, id) in [(false, "whole"), (true, "stream")] {
            let answer = gateway.ask(chat(self.asked, content, stream).id(id)).await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
            assert_eq!(answer.header("x-sluice-fallback"), Some(self.backend));
            assert_eq!(answer.header("x-sluice-replica"), Some(self.replica));
            let model = if stream {
                answer.chunks()[0]["model"].clone()
            } else {
                answer.json()["model"].clone()
            };
            assert_eq!(model, self.model);
            assert_eq!(record(gateway, id).await["model"], self.model);
        }
    }
}

#[tokio::test]
async fn requests_with_images_go_to_the_backend_that_takes_them() {
    let replica = Replica::start().await;
    let text_only = |line: &str| simulated("text", &format!("images = false\n{line}"));
    let alone = Settings::before(&[&replica]);
    let both = alone.clone().then(&text_only("fallback = [\"test\"]"));
    let mut gateway = both.start_unready().await;
    gateway.has_ready(&["a", "text-a"]).await;
    replica.always("seen");
    let stand_in = StandIn {
        asked: "text-model",
        backend: "test",
        replica: "a",
        model: MODEL,
    };
    stand_in.answers(&gateway, &image()).await;
    let answer = gateway.ask(chat("text-model", &json!("Hi"), false)).await;
    assert_eq!(
        (answer.header("x-sluice-replica"), answer.header("x-sluice-fallback")),
        (Some("text-a"), None)
    );
    assert_eq!(answer.json()["model"], "text-model-simulated");

    gateway.configure(alone.then(&text_only("")));
    until("nobody stands in any more", async || {
        let refused = gateway.ask(chat("text-model", &image(), false)).await;
        if refused.status() == 200 {
            return None;
        }
        assert_eq!(
            (refused.status(), refused.json()["error"]["param"].clone()),
            (400, json!("messages"))
        );
        assert!(refused.error().contains("takes no images"), "{}", refused.text());
        Some(())
    })
    .await;
}

#[tokio::test]
async fn another_backend_stands_in_while_nobody_serves_the_one_that_was_asked_for() {
    let gone = Replica::start().await.dead().await;
    let address = gone.url().strip_prefix("http://").unwrap().parse().unwrap();
    let gateway = Settings::before(&[&gone])
        .each_replica("probe = \"100ms\"")
        .backend(&format!("model = \"{MODEL}\"\nfallback = [\"other\"]\n"))
        .then(&simulated("other", ""))
        .start_unready()
        .await;
    until("the other one answers", async || {
        let answer = gateway.ask(chat(MODEL, &json!("Hi"), false)).await;
        (answer.status() == 200).then_some(())
    })
    .await;
    let stand_in = StandIn {
        asked: MODEL,
        backend: "other",
        replica: "other-a",
        model: "other-model-simulated",
    };
    stand_in.answers(&gateway, &json!("Hi")).await;
    // Back: its requests are its own again.
    let replica = Replica::at(address).await;
    gateway.has_ready(&["a", "other-a"]).await;
    replica.always("own");
    let answer = gateway.ask(chat(MODEL, &json!("Hi"), false)).await;
    assert_eq!(
        (answer.header("x-sluice-replica"), answer.header("x-sluice-fallback")),
        (Some("a"), None)
    );
}

/// A backend `test` of one replica, and one that stands in for it, whose replica is `b`.
fn with_stand_in(replica: &Replica, other: &Replica) -> Settings {
    Settings::before(&[replica])
        .each_replica("probe = \"100ms\"")
        .backend(&format!("model = \"{MODEL}\"\nfallback = [\"other\"]\n"))
        .then(&format!(
            "[[backend]]\nname = \"other\"\nmodel = \"{OTHER_MODEL}\"\n[[backend.replica]]\nname = \"b\"\nlauncher = \"external\"\nurl = \"{}\"\nprobe = \"100ms\"\n",
            other.url()
        ))
}

/// Both are ready.
async fn both(settings: Settings) -> Gateway {
    let gateway = settings.start_unready().await;
    gateway.has_ready(&["a", "b"]).await;
    gateway
}

/// The answer came from the other backend.
async fn stood_in(gateway: &Gateway, client: &mut Client, id: &str, attempts: u64) {
    let answer = client.message().await;
    assert_eq!(answer.status(), 200, "{id}: {}", answer.text());
    assert_eq!(
        (answer.header("x-sluice-fallback"), answer.header("x-sluice-replica")),
        (Some("other"), Some("b")),
        "{id}"
    );
    let row = record(gateway, id).await;
    assert_eq!(
        (&row["model"], &row["replica"], &row["attempts"], &row["status"]),
        (&json!(OTHER_MODEL), &json!("b"), &json!(attempts), &json!(200)),
        "{row}"
    );
}

async fn refuses(asked: Asked) {
    let error = json!({"error": {"message": "no", "type": "InternalServerError", "code": 503}});
    asked.answer("503 Service Unavailable", &error).await;
}

#[tokio::test]
async fn a_request_that_every_replica_of_its_backend_failed_goes_over_and_its_key_is_asked_once() {
    let [mut a, mut b] = [Replica::start().await, Replica::start().await];
    let gateway = both(with_stand_in(&a, &b).set("hold", "time = \"1s\"")).await;
    for (id, stream) in [("stream", true), ("whole", false)] {
        // Had it to pay a second time, it would be refused.
        let key = gateway.new_key(id, &["--requests-per-minute", "1"]);
        gateway.hang_up();
        let with_key = |request: Request| {
            let request = request.without_key();
            request.header("authorization", &format!("Bearer {key}"))
        };
        until("the key is accepted", async || {
            let listed = gateway.ask(with_key(Request::get("/v1/models"))).await;
            (listed.status() == 200).then_some(())
        })
        .await;
        let mut client = gateway.open(with_key(Request::chat(stream).id(id))).await;
        refuses(a.next().await).await;
        refuses(a.next().await).await;
        let asked = b.next().await;
        assert_eq!(asked.header("authorization"), None, "the other backend has no key");
        assert_eq!(asked.json()["model"], OTHER_MODEL);
        asked.tell_as_asked("stands in").await;
        stood_in(&gateway, &mut client, id, 3).await;
    }

    // Nobody can: the client hears of the last one that was asked.
    let mut client = gateway.open(Request::chat(true).id("neither")).await;
    refuses(a.next().await).await;
    refuses(a.next().await).await;
    refuses(b.next().await).await;
    refuses(b.next().await).await;
    assert_eq!(client.message().await.status(), 503);
    assert_eq!(record(&gateway, "neither").await["attempts"], 4);
}

#[tokio::test]
async fn b34_a_request_that_finds_no_place_goes_over() {
    let [mut a, mut b] = [Replica::start().await, Replica::start().await];
    let gateway = both(
        with_stand_in(&a, &b)
            .set("admission", "sequences = 1")
            .set("admission", "queue_wait = \"300ms\"")
            .set("server", "head_after = \"30s\""),
    )
    .await;
    let mut running = gateway.open(Request::chat(true).id("running")).await;
    let mut on_a = a.next().await;
    on_a.begin("at work").await;
    running.head().await;
    running.read_to("at work").await;
    for (id, stream) in [("stream", true), ("whole", false)] {
        let mut client = gateway.open(Request::chat(stream).id(id)).await;
        b.next().await.tell_as_asked("stands in").await;
        stood_in(&gateway, &mut client, id, 1).await;
    }
    assert!(a.is_unasked());
    drop(on_a);
}

#[tokio::test]
async fn b35_a_request_whose_replica_is_not_back_within_hold_goes_over() {
    let [mut a, mut b] = [Replica::start().await, Replica::start().await];
    let gateway = both(with_stand_in(&a, &b).set("hold", "time = \"400ms\"")).await;
    a.stop().await;
    for (id, stream) in [("stream", true), ("whole", false)] {
        let mut client = gateway.open(Request::chat(stream).id(id)).await;
        b.next().await.tell_as_asked("stands in").await;
        let answer = client.message().await;
        assert_eq!(
            (answer.status(), answer.header("x-sluice-replica")),
            (200, Some("b")),
            "{}",
            answer.text()
        );
    }
    assert!(gateway.log().contains("held until a replica is back"));
}

#[tokio::test]
async fn an_answer_of_which_something_was_shown_stays_with_its_model() {
    let [mut a, b] = [Replica::start().await, Replica::start().await];
    let gateway = both(with_stand_in(&a, &b).set("hold", "time = \"200ms\"")).await;
    let body =
        json!({"model": MODEL, "stream": true, "logprobs": true, "messages": [{"role": "user", "content": "x"}]});
    let mut client = gateway
        .open(Request::post("/v1/chat/completions", &body).id("shown"))
        .await;
    let mut asked = a.next().await;
    asked.stream().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    let head = client.head().await;
    client.read_to("assistant").await;
    a.stop().await;
    asked.close();
    let answer = client.rest(head).await;
    assert!(
        answer.text().contains("\"error\"") && !answer.text().contains("[DONE]"),
        "{}",
        answer.text()
    );
    assert!(b.is_unasked(), "another model can't go on with it");
}
