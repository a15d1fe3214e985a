//! B20: when a stream shows a call. What must be shown early is seen before the replica goes on.

use serde_json::{Value, json};
use std::time::Duration;

use super::harness::{Asked, Gateway, MODEL, Replica, Request, Settings, delta, finish, record, usage};

const TEXT: &str = "A long text, all in one string of a plain schema.";

fn request(stream: bool) -> Request {
    let parameters = json!({"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}, "text": {"type": "string"}}});
    let body = json!({
        "model": MODEL, "stream": stream, "messages": [{"role": "user", "content": "Write it down."}],
        "tools": [{"type": "function", "function": {"name": "write_file", "parameters": parameters}}],
    });
    Request::post("/v1/chat/completions", &body).id("r")
}

async fn gateway(settings: impl FnOnce(Settings) -> Settings) -> (Gateway, Replica) {
    let replica = Replica::start().await;
    let gateway = settings(Settings::before(&[&replica]).set("tools", "reask = 0"))
        .start()
        .await;
    (gateway, replica)
}

/// The call up to the middle of its text.
async fn begins(replica: &mut Replica) -> Asked {
    let mut asked = replica.next().await;
    asked.stream().await;
    asked.event(&delta(json!({"role": "assistant", "content": ""}))).await;
    asked
        .event(&delta(json!({"content": "<tool_call>\n{\"name\": \"write_file\", "})))
        .await;
    let text = format!("\"arguments\": {{\"path\": \"a.txt\", \"text\": \"{TEXT}");
    asked.event(&delta(json!({"content": text}))).await;
    asked
}

async fn ends(mut asked: Asked, rest: &str) {
    asked.event(&delta(json!({"content": rest}))).await;
    asked.event(&finish("stop")).await;
    asked.event(&usage(10, 3)).await;
    asked.done().await;
}

fn arguments(chunks: &[Value]) -> String {
    let mut arguments = String::new();
    for chunk in chunks {
        for call in chunk["choices"][0]["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            arguments += call["function"]["arguments"].as_str().unwrap();
        }
    }
    arguments
}

fn whole() -> String {
    format!("{{\"path\": \"a.txt\", \"text\": \"{TEXT} And more.\"}}")
}

#[tokio::test]
async fn b20_certain_shows_a_call_while_it_is_written() {
    for (setting, header) in [("release = \"certain\"", None), ("release = \"hold\"", Some("certain"))] {
        let (gateway, mut replica) = gateway(|settings| settings.set("tools", setting)).await;
        let request = header
            .into_iter()
            .fold(request(true), |request, mode| request.header("x-sluice-tools", mode));
        let mut client = gateway.open(request).await;
        let asked = begins(&mut replica).await;
        let head = client.head().await;
        let early = client.read_to("in one string of a plain schema.").await;
        assert!(early.contains("write_file"), "{early}");
        ends(asked, " And more.\"}}\n</tool_call>").await;
        let rest = client.rest(head).await;
        let text = early + &rest.text();
        let chunks: Vec<Value> = text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "))
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect();
        assert_eq!(arguments(&chunks), whole());
        assert!(text.contains("\"finish_reason\":\"tool_calls\"") && text.contains("[DONE]"));
    }
}

#[tokio::test]
async fn b20_auto_goes_on_as_certain_past_its_bounds() {
    for setting in ["release_bytes = 64", "release_after = \"1ms\""] {
        let (gateway, mut replica) = gateway(|settings| settings.set("tools", setting)).await;
        let mut client = gateway.open(request(true)).await;
        let mut asked = begins(&mut replica).await;
        client.head().await;
        if setting.starts_with("release_after") {
            // The bound is looked at when more comes; until then there is nothing more to show.
            let writes_on = async {
                loop {
                    asked.event(&delta(json!({"content": "."}))).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                _ = client.read_to("write_file") => {}
                () = writes_on => {}
            }
        } else {
            client.read_to("in one string of a plain schema.").await;
        }
    }
}

#[tokio::test]
async fn b20_hold_and_a_short_call_of_auto_come_whole() {
    for mode in ["hold", "auto"] {
        let (gateway, mut replica) = gateway(|settings| settings).await;
        let mut client = gateway.open(request(true).header("x-sluice-tools", mode)).await;
        let asked = begins(&mut replica).await;
        ends(asked, " And more.\"}}\n</tool_call>").await;
        let chunks = client.message().await.chunks();
        let calls: Vec<_> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array())
            .collect();
        assert_eq!(calls.len(), 1, "{mode}: one delta");
        assert_eq!(arguments(&chunks), whole());
    }
}

#[tokio::test]
async fn b20_a_shown_call_that_breaks_off_is_an_error() {
    let (gateway, mut replica) = gateway(|settings| settings).await;
    let mut client = gateway.open(request(true).header("x-sluice-tools", "certain")).await;
    let asked = begins(&mut replica).await;
    ends(asked, " And").await;
    let text = client.message().await.text();
    assert!(text.contains("\"code\":\"invalid_tool_call\""), "{text}");
    assert!(
        !text.contains("[DONE]") && !text.contains("\"finish_reason\":\"stop\""),
        "{text}"
    );
    let row = record(&gateway, "r").await;
    assert_eq!(row["error"], "invalid_tool_call");
    assert_eq!(
        row["verdicts"],
        json!([{"tool": "write_file", "verdict": "refused", "kinds": ["cut"]}])
    );
}

#[tokio::test]
async fn b20_a_mode_that_is_none_is_refused() {
    let (gateway, replica) = gateway(|settings| settings).await;
    let answer = gateway.ask(request(true).header("x-sluice-tools", "sometimes")).await;
    assert_eq!(answer.status(), 400);
    assert!(answer.error().contains("x-sluice-tools"), "{}", answer.error());
    assert!(replica.is_unasked());
}
