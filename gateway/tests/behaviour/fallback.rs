//! Fallback across backends: another model stands in where nobody serves the one that was asked for, and for images that it doesn't take.

use serde_json::{Value, json};

use super::harness::{Gateway, MODEL, Replica, Request, Settings, record, until};

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
